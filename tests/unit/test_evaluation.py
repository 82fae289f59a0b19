"""Evaluating a package: the numbers, what they are recorded with, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from evaluations import case_scores, evaluation
from tiny_package import cell_folder, tiny_package

from segship.datasets import open_dataset
from segship.errors import DatasetError, OutputError, UsageError
from segship.inference.images import pixel_sha256
from segship.inference.predictor import Predictor
from segship.measure.evaluate import evaluate
from segship.measure.gallery import choose_pictures
from segship.metrics import nuclei
from segship.metrics.evaluation import Evaluation, calibration_hashes, check_disjoint, drop_against, evaluate_cases
from segship.package import Package, open_package, update_package


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return tiny_package(tmp_path / "net.segship")


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return cell_folder(tmp_path / "cells", 6)


def test_scores_are_those_of_each_prediction(package: Package, cells: Path) -> None:
    dataset = open_dataset(cells)
    with Predictor.open(package) as predictor:
        found = evaluate_cases(predictor, dataset, batch=4)
        expected = [nuclei.score_case(predictor(c.read_image()), c) for c in dataset.cases]
    assert [score.id for score in found.scores] == dataset.ids
    for score, wanted in zip(found.scores, expected, strict=True):
        assert score.values == pytest.approx(wanted.values, abs=1e-3)
    assert found.value == found.metrics["iou"] == pytest.approx(np.mean(list(found.per_case().values())))
    assert found.value > 0.5, "the bright-is-nucleus network finds bright discs"
    picture = cv2.imread(str(cells / "images" / "cell01.png"))
    assert found.pixel_sha256["cell01"] == pixel_sha256(picture)


def test_a_damaged_input_is_a_failure_and_in_no_number(package: Package, cells: Path) -> None:
    (cells / "images" / "cell03.png").write_bytes(b"\x89PNG broken")
    result = evaluate(package, cells, engine="fake", record=False)
    found = result.variants[0].evaluation
    assert [case for case, _ in found.failures] == ["cell03"]
    assert len(found.scores) == 5
    assert result.failed
    assert "failed: cell03" in result.as_text()
    for image in (cells / "images").iterdir():
        image.write_bytes(b"")
    with pytest.raises(DatasetError, match="no case of data set cells could be predicted"):
        evaluate(package, cells, engine="fake", record=False)


def test_calibration_images_are_refused(package: Package, cells: Path) -> None:
    picture = cv2.imread(str(cells / "images" / "cell02.png"))
    record = {"images": 1, "pixel_sha256": [pixel_sha256(picture)], "input_sha256": []}
    calibrated = update_package(package, provenance={"calibration": {"int8": record}})
    with pytest.raises(DatasetError, match="cell02: int8 was calibrated on this very image"):
        evaluate(calibrated, cells, precision="int8", engine="fake")
    # fp32 was not calibrated on anything
    assert evaluate(calibrated, cells, engine="fake", record=False).as_dict()["cases"] == 6
    assert evaluate(calibrated, cells, precision="int8", engine="fake", exclude=["cell02"]).as_dict()["cases"] == 5


def test_a_copy_at_network_size_of_a_calibration_image_is_refused(package: Package, cells: Path) -> None:
    with Predictor.open(package, engine="fake") as predictor:
        x = predictor.prepare(cells / "images" / "cell04.png").x
    record = {"int8": {"pixel_sha256": ["0" * 64], "input_sha256": [pixel_sha256(x)]}}
    calibrated = update_package(package, provenance={"calibration": record})
    small = cv2.resize(cv2.imread(str(cells / "images" / "cell04.png")), (96, 96))
    cv2.imwrite(str(cells / "images" / "cell04.png"), small)
    cv2.imwrite(str(cells / "masks" / "cell04.png"), np.zeros((96, 96), np.uint8))
    with pytest.raises(DatasetError, match="cell04"):
        evaluate(calibrated, cells, precision="int8", engine="fake")


def test_check_disjoint_names_the_cases() -> None:
    provenance = {"calibration": {"int8": {"pixel_sha256": ["aa"], "input_sha256": ["bb"]}}}
    assert calibration_hashes(provenance, "int8") == {"aa", "bb"}
    assert calibration_hashes(provenance, "fp16") == frozenset()
    check_disjoint(provenance, {"x": "cc"})
    with pytest.raises(DatasetError, match="x: a variant"):
        check_disjoint(provenance, {"x": "aa", "y": "cc"})


def scored(values: dict[str, float], precision: str = "fp32", dataset: str = "0" * 64) -> Evaluation:
    mean = {"iou": float(np.mean(list(values.values())))}
    return evaluation("iou", mean, case_scores("iou", values), precision=precision, dataset_sha256=dataset)


def test_drop_is_a_paired_difference() -> None:
    fp32 = scored({"a": 0.9, "b": 0.8, "c": 0.7})
    int8 = scored({"a": 0.9, "b": 0.7, "c": 0.71}, "int8")
    drop = drop_against(fp32, int8)
    assert drop.drop == pytest.approx(0.03)
    assert drop.drop == pytest.approx(drop.fp32 - drop.value)
    assert (drop.worst_case, drop.cases) == ("b", 3)
    assert drop.worst_drop == pytest.approx(0.1)
    assert drop.interval95[0] <= drop.drop <= drop.interval95[1]


def test_drop_refuses_what_cannot_be_paired() -> None:
    fp32 = scored({"a": 0.9, "b": 0.8})
    with pytest.raises(UsageError, match="different content hashes"):
        drop_against(fp32, scored({"a": 0.9, "b": 0.8}, "int8", "1" * 64))
    with pytest.raises(UsageError, match="same cases"):
        drop_against(fp32, scored({"a": 0.9}, "int8"))
    with pytest.raises(UsageError, match="no value per case"):
        drop_against(fp32, scored({"a": 0.9, "b": 0.8}, "int8"), metric="iou-batch16")


def test_evaluate_records_numbers_with_all_they_depend_on(package: Package, cells: Path, tmp_path: Path) -> None:
    result = evaluate(package, cells, precision=("int8", "fp32"), output=tmp_path / "out")
    records = open_package(package.path).provenance()["accuracy"]
    assert [r["precision"] for r in records] == ["fp32", "int8"], "fp32 comes first: the others are compared with it"
    record = records[1]
    assert record["metric"] == "iou"
    assert record["value"] == result.variants[1].evaluation.value
    assert (record["dataset"], record["cases"], record["engine"]) == ("cells", 6, "openvino")
    assert record["dataset_sha256"] == open_dataset(cells).sha256
    assert record["split_sha256"] == open_dataset(cells).split_sha256
    assert record["executed"]["convolution_share"] == {"f32": 1.0}
    assert open_package(package.path).provenance()["source"] == {"file": "bright"}, "what was there stays"
    variant = result.package.manifest.variant("int8")
    assert variant is not None
    assert variant.drop == result.variants[1].drop
    assert variant.executed
    evaluate(result.package, cells, precision=("fp32", "int8"))
    assert len(open_package(package.path).provenance()["accuracy"]) == 2, "measured again: replaced, not doubled"


def test_a_drop_over_fewer_cases_does_not_replace_one_over_more(package: Package, cells: Path) -> None:
    many = evaluate(package, cells, precision=("fp32", "int8"))
    few = evaluate(many.package, cells, precision=("fp32", "int8"), exclude=["cell01"])
    variant = few.package.manifest.variant("int8")
    assert variant is not None
    assert variant.drop is not None
    assert variant.drop.cases == 6
    assert len(few.package.provenance()["accuracy"]) == 4


def test_evaluate_without_recording_leaves_the_package_alone(
    package: Package, cells: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = package.path.read_bytes()
    evaluate(package, cells, engine="fake", record=False)
    assert package.path.read_bytes() == before

    def refuse(*args: object, **kwargs: object) -> None:
        raise OutputError("cannot write")

    monkeypatch.setattr("segship.measure.recording.update_package", refuse)
    assert "not recorded" in evaluate(package, cells, engine="fake").notes[-1]


def test_json_and_files(package: Package, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = evaluate(package, cells, precision=("fp32", "int8"), output=out, record=False)
    told = result.as_dict()
    assert told["cases"] == 6
    assert len(told["dataset_sha256"]) == 64
    assert set(nuclei.METRICS) == set(told["metrics"])
    assert told["variants"][0]["drop"] == 0.0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["metrics"] == told["metrics"]
    assert summary["environment"]["processor"]
    rows = list(csv.DictReader((out / "int8" / "cases.csv").open()))
    assert [row["case"] for row in rows] == [f"cell{i:02}" for i in range(1, 7)]
    assert float(rows[0]["iou"]) == pytest.approx(result.variants[1].evaluation.per_case()["cell01"], abs=1e-6)
    assert 0.9 < float(rows[0]["label_agreement_with_fp32"]) <= 1
    about = json.loads((out / "pictures.json").read_text())
    assert len(about["worst"]) == 4
    assert about["worst"][0]["score"] == min(result.variants[0].evaluation.per_case().values())
    for kind in ("examples", "worst", "disagreements"):
        for entry in about[kind]:
            for name in entry["panels"].values():
                assert cv2.imread(str(out / "pictures" / name)) is not None
    assert {"prediction", "truth", "difference"} <= set(about["worst"][0]["panels"])


def test_text_names_each_number(package: Package, cells: Path) -> None:
    text = evaluate(package, cells, precision=("fp32", "int8"), record=False).as_text()
    assert "iou-logit-half" in text
    assert "int8: iou drop against fp32" in text
    assert "paired bootstrap over 6 cases" in text


def test_examples_are_spread_and_worst_are_worst() -> None:
    fp32 = scored({f"{i:02}": i / 20 for i in range(20)})
    agreement = {"int8": {"03": 0.99, "04": 0.9, "05": 1.0}}
    chosen = choose_pictures({"fp32": fp32, "int8": replace(fp32, precision="int8")}, agreement)
    scores = [score for _, score in chosen.examples]
    assert len(scores) == 6
    assert scores == sorted(scores, reverse=True)
    assert max(scores) < 0.95, "not the very best"
    assert [case for case, _ in chosen.worst] == ["00", "01", "02", "03"]
    assert chosen.disagreements == (("04", "int8", 0.9), ("03", "int8", 0.99)), "equal cases are no disagreement"
    one = choose_pictures({"fp32": scored({"a": 0.5})}, {})
    assert [case for case, _ in one.examples] == [case for case, _ in one.worst] == ["a"]


def test_label_masks_of_two_classes_meet_a_two_class_network(tmp_path: Path) -> None:
    """A one-class network on two-class masks is an error that says so, not a number."""
    root = cell_folder(tmp_path / "two", 2)
    for path in (root / "masks").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(path), np.where(mask > 0, 2, 1).astype(np.uint8))
    with pytest.raises(DatasetError, match="the prediction is 1×96×96 and the ground truth 2×96×96"):
        evaluate(tiny_package(tmp_path / "net.segship"), root, engine="fake", record=False)
