"""Evaluating a saliency package: its world's numbers, curves, pictures and page, with a metric where less is better."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from evaluations import case_scores, evaluation
from sod_package import photo_folder, sod_package
from test_report import Page

from segship.datasets import open_dataset
from segship.errors import DatasetError, InputError, UsageError
from segship.inference.predictor import Predictor
from segship.measure import curves, pictures, story
from segship.measure.evaluate import EvaluateResult, evaluate
from segship.measure.figures import Point, curve_plots, drop_plot, pareto, score_histogram, speed_plot
from segship.measure.gallery import choose_pictures
from segship.measure.report import report
from segship.measure.rundir import write_run_summary
from segship.metrics import sod
from segship.metrics.evaluation import Evaluation, drop_against
from segship.package import open_package
from segship.workflow import RunOptions, _divide, _Folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvaluateResult]:
    """Both precisions over six photos, the report made of it; made once."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSHIP_CACHE_DIR", str(root / "cache"))
        package = sod_package(root / "net.segship")
        photos = photo_folder(root / "photos", 6)
        result = evaluate(package, photos, precision=("int8", "fp32"), output=root / "evaluation")
    write_run_summary(root, result.package, evaluation=result)
    report(root)
    return root, result


def fp32_and_int8(fp32: dict[str, float], int8: dict[str, float]) -> tuple[Evaluation, Evaluation]:
    def made(precision: str, values: dict[str, float]) -> Evaluation:
        mean = {"MAE": float(np.mean(list(values.values())))}
        return evaluation("MAE", mean, case_scores("MAE", values), precision=precision, higher_is_better=False)

    return made("fp32", fp32), made("int8", int8)


def test_scores_are_those_of_each_map(run: tuple[Path, EvaluateResult]) -> None:
    root, result = run
    dataset = open_dataset(root / "photos")
    with Predictor.open(root / "net.segship") as predictor:
        wanted = [
            sod.score_arrays(case.id, predictor(case.read_image()).saliency, case.target_grey()[0])
            for case in dataset.cases
        ]
    found = result.variants[0].evaluation
    assert [score.id for score in found.scores] == dataset.ids
    for score, expected in zip(found.scores, wanted, strict=True):
        assert score.values == pytest.approx(expected.values, abs=2e-3)
    assert found.metrics["MAE"] == pytest.approx(np.mean([s.values["MAE"] for s in wanted]), abs=1e-3)
    assert 0.02 < found.value < 0.2, "the bright-is-salient network finds bright discs, not perfectly"
    assert found.curves["F"].max() == found.metrics["maxF"]


def test_a_higher_error_is_a_loss(run: tuple[Path, EvaluateResult]) -> None:
    root, result = run
    fp32, int8 = (v.evaluation for v in result.variants)
    drop = result.variants[1].drop
    assert drop is not None
    assert drop.drop == pytest.approx(int8.value - fp32.value, abs=1e-12)
    before, after = fp32.per_case(), int8.per_case()
    assert drop.worst_drop == pytest.approx(max(after[i] - before[i] for i in before))
    variant = open_package(root / "net.segship").manifest.variant("int8")
    assert variant is not None
    assert variant.drop == drop


def test_signs_of_drop_and_worst_case() -> None:
    fp32, int8 = fp32_and_int8({"a": 0.03, "b": 0.02, "c": 0.05}, {"a": 0.04, "b": 0.02, "c": 0.052})
    drop = drop_against(fp32, int8)
    assert drop.drop == pytest.approx(0.004)
    assert (drop.worst_case, drop.worst_drop) == ("a", pytest.approx(0.01))
    low, high = drop.interval95
    assert 0 <= low <= drop.drop <= high
    better = drop_against(fp32, fp32_and_int8({"a": 0.03}, {"a": 0.01, "b": 0.02, "c": 0.05})[1])
    assert better.drop < 0
    chosen = choose_pictures({"fp32": fp32}, {})
    assert [case for case, _ in chosen.worst] == ["c", "a", "b"]


def test_a_pooled_number_has_no_paired_drop(run: tuple[Path, EvaluateResult]) -> None:
    fp32, int8 = (v.evaluation for v in run[1].variants)
    with pytest.raises(UsageError, match="'maxF' is pooled over all cases"):
        drop_against(fp32, int8, "maxF")
    assert drop_against(fp32, int8, "S").metric == "S"


def test_summary_curves_and_cases(run: tuple[Path, EvaluateResult]) -> None:
    root, result = run
    summary = json.loads((root / "evaluation" / "summary.json").read_text())
    assert summary["metric"] == {"name": "MAE", "higher_is_better": False}
    assert set(summary["metrics"]) == set(sod.METRICS)
    assert summary["layout"] == "sod"
    assert summary["variants"][1]["label_agreement"] is None
    assert 0 < summary["variants"][1]["map_difference"] < 0.1
    rows = list(csv.DictReader((root / "evaluation" / "int8" / "cases.csv").open()))
    assert float(rows[0]["map_difference_from_fp32"]) > 0
    found = curves.read_csv(root / "evaluation" / "fp32" / "curves.csv")
    np.testing.assert_allclose(found["F"], result.variants[0].evaluation.curves["F"], atol=1e-6)
    assert len(found["F"]) == 256
    assert len(found["F_own_max"]) == 255
    assert cv2.imread(str(root / "evaluation" / "curves.png")) is not None


def test_text_names_each_number_and_both_scales(run: tuple[Path, EvaluateResult]) -> None:
    text = run[1].as_text()
    for name in sod.METRICS:
        assert re.search(rf"^{name} ", text, re.M), name
    assert "int8: MAE worse than fp32 by" in text
    assert "8.7251 is 0.0342" in text
    assert "No F can be above 1" in text


def test_maps_of_another_size_than_their_label_are_resized_and_that_is_said(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 3)
    label = photos / "Mask" / "photo02.png"
    cv2.imwrite(str(label), cv2.resize(cv2.imread(str(label), cv2.IMREAD_GRAYSCALE), (50, 40)))
    package = sod_package(tmp_path / "net.segship")
    found = evaluate(package, photos, engine="fake", record=False)
    assert any("resized to the size of their label: 1 of 3 (first photo02: " in note for note in found.notes)
    turned = np.rot90(cv2.imread(str(photos / "Mask" / "photo01.png"), cv2.IMREAD_GRAYSCALE))
    cv2.imwrite(str(photos / "Mask" / "photo01.png"), turned)
    with pytest.raises(DatasetError, match=r"photo01: the map is .* turned by 90°"):
        evaluate(package, photos, engine="fake", record=False)


def test_float_maps_score_nearly_as_bytes(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 3, "images", "masks")
    exact, bytes_ = (
        evaluate(sod_package(tmp_path / f"{kind}.segship", to_uint8=kind), photos, engine="fake", record=False)
        for kind in ("none", "truncate")
    )
    assert exact.dataset.layout == "sod", "a saliency package reads images/ + masks/ strictly"
    assert exact.as_dict()["metrics"]["MAE"] == pytest.approx(bytes_.as_dict()["metrics"]["MAE"], abs=4e-3)


def test_a_label_with_two_classes_is_refused(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 2, "images", "labels")
    for path in (photos / "labels").iterdir():
        cv2.imwrite(str(path), (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 128).astype(np.uint8) * 2)
    with pytest.raises(DatasetError, match="has 2 masks; salient objects have one"):
        evaluate(sod_package(tmp_path / "net.segship"), photos, layout="folders", engine="fake", record=False)


# ------------------------------------------------------------------------------------------------ the page


@pytest.fixture(scope="module")
def page(run: tuple[Path, EvaluateResult]) -> Page:
    return Page((run[0] / "report.html").read_text(encoding="utf-8"))


def test_the_page_shows_scores_curves_and_maps(run: tuple[Path, EvaluateResult], page: Page) -> None:
    result = run[1]
    metrics = result.variants[0].evaluation.metrics
    for name in ("MAE", "MAE_255", "maxF", "maxF_pr", "wF", "S"):
        assert f"{name} {metrics[name]:.4f}" in page.text, name
    assert "8.7251 is 0.0342" in page.text
    assert "No F can be above 1" in page.text
    assert "The highest MAE at fp32." in page.text
    assert "map difference to fp32" in page.text
    assert "The cases whose maps differ most from fp32" in page.text
    assert "map as heat" in page.text
    assert "labels equal" not in page.text.split("Parity with the source")[0]
    labels = [svg["aria-label"] or "" for svg in page.all("svg")]
    assert sum(text.startswith("Precision over recall of fp32, int8") for text in labels) == 2, "wide and narrow"
    assert any("F measure over thresholds" in text and "max F" in text for text in labels)
    assert all((image["src"] or "").startswith("data:image/webp;base64,") for image in page.all("img"))
    assert not page.all("script")


def test_an_evaluation_alone_has_the_same_scores(run: tuple[Path, EvaluateResult], tmp_path: Path) -> None:
    alone = Page(report(run[0] / "evaluation", tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "MAE_255" in alone.text
    assert "No F can be above 1" in alone.text


def test_words_follow_the_metrics_direction(run: tuple[Path, EvaluateResult]) -> None:
    detail = {"drop": 0.0012, "interval95": [0.0010, 0.0014]}
    rates = {"files_per_second": {"8": 90.0}}
    fp32 = {"precision": "fp32", "engine": "openvino", "value": 0.03, "drop": 0.0, "files_per_second": {"8": 20.0}}
    int8 = {"precision": "int8", "engine": "openvino", "value": 0.0312, "drop": 0.0012, "drop_detail": detail, **rates}
    data = {
        "metric": {"name": "MAE", "higher_is_better": False}, "file_batches": [8], "batches": [8], "package": None,
        "variants": [fp32, int8], "reference": fp32, "shown": int8, "parity": [], "dataset": None, "scorer": "sod",
    }  # fmt: skip
    said = "".join(text for _, text in story.sentences(data)[2])
    assert "its MAE rises by 0.0012" in said
    assert "interval of the rise" in said
    detail["drop"] = -0.0012
    assert "its MAE falls by 0.0012" in "".join(text for _, text in story.sentences(data)[2])
    assert ("+0.0012", "MAE from fp32 to int8") in story.tiles(data)
    assert story.shown_variant([fp32, int8]) is int8


def test_parity_of_a_map_is_told_by_its_levels() -> None:
    rows = [
        {"stage": "network", "max_abs": 8e-7, "label_agreement": None},
        {"stage": "decoded", "max_abs": 0.0, "label_agreement": 1.0},
    ]
    data = {"parity": rows, "package": None, "scorer": "sod"}
    said = "".join(text for _, text in story._about_parity(data))
    assert said == (
        "The network gives the trained network’s answers: every level of the map is equal, "
        "largest difference of the network’s output 8.0 × 10⁻⁷."
    )
    rows[1]["max_abs"] = 1 / 255
    assert "the map differs by at most 0.003922," in "".join(text for _, text in story._about_parity(data))


def test_plots_of_an_error() -> None:
    points = [Point(name="fp32", speed=20, value=0.030), Point(name="int8", speed=90, value=0.031)]
    assert [p.name for p in pareto(points, False)] == ["fp32", "int8"]
    worse = [*points, Point(name="int16", speed=15, value=0.032)]
    assert [p.name for p in pareto(worse, False)] == ["fp32", "int8"]
    assert "On the Pareto front: fp32, int8." in speed_plot(worse, metric="MAE", speed_label="images/s", higher_is_better=False)["wide"]  # fmt: skip
    assert (
        "MAE added per case" in drop_plot([0.1, -0.1], metric="MAE", precision="int8", higher_is_better=False)["half"]
    )
    small = score_histogram([0.01, 0.02, 0.04], metric="MAE", higher_is_better=False)["half"]
    assert small != score_histogram([0.01, 0.02, 0.04], metric="MAE")["half"], "errors are not squeezed into 0 to 1"
    ramp = np.linspace(1, 0, 256)
    one = {"precision": ramp, "recall": ramp, "F": ramp}
    plots = curve_plots({"fp32": one, "int8": one})
    assert set(plots) == {"pr", "f"}
    assert "max F 1.0000 at threshold 0" in plots["f"]["narrow"]


def test_panels_of_maps() -> None:
    rgb = np.full((20, 30, 3), 100, np.uint8)
    low, high = np.zeros((20, 30), np.uint8), np.full((20, 30), 255, np.uint8)
    assert (pictures.grey_panel(rgb, high) == 255).all()
    assert pictures.grey_panel(rgb, np.zeros((10, 10), np.float32)).shape == rgb.shape, "a label of another size"
    assert (pictures.map_difference_panel(rgb, high, low) == pictures.ONLY_FIRST).all()
    assert (pictures.map_difference_panel(rgb, low, high) == pictures.ONLY_SECOND).all()
    assert np.ptp(pictures.map_difference_panel(rgb, high, high)) == 0
    assert pictures.heat_panel(rgb, high).mean() > pictures.heat_panel(rgb, low).mean()


def test_damaged_curves_are_an_error_of_one_line(tmp_path: Path) -> None:
    assert curves.read_csv(tmp_path / "none.csv") == {}
    (tmp_path / "bad.csv").write_text("threshold,F\n0,x\n")
    with pytest.raises(InputError, match=r"bad\.csv cannot be read .*; evaluate again"):
        curves.read_csv(tmp_path / "bad.csv")
    assert curves.write_picture(tmp_path / "c.png", {"fp32": {}}) is None


def test_run_divides_a_salient_object_folder_and_names_what_is_missing(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 12, ".", ".")
    options = RunOptions(data=photos, output=tmp_path / "run")
    said: list[str] = []
    data, calibration, notes = _divide(options, _Folder(options.output, False), said.append)
    assert data is not None
    assert calibration is not None
    assert data.layout == "sod"
    listed = calibration.read_text().split()
    assert len(data.ids) + len(listed) == 12
    assert all(path.endswith(".jpg") for path in listed), "masks are nothing to calibrate on"
    assert "divided by a hash" in notes[0]
    (photos / "photo03.png").unlink()
    with pytest.raises(DatasetError, match=r"images without a mask in .* \(photo03\)"):
        _divide(options, _Folder(options.output, False), said.append)
    for mask in photos.glob("*.png"):
        mask.unlink()
    assert _divide(options, _Folder(options.output, False), said.append)[0] is None, "photos alone: nothing to score"
