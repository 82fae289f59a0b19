"""Evaluating packages for volumes: nnU-Net's numbers, its summaries, drops where cases have no Dice, pictures, page."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from evaluations import case_scores, evaluation
from nnunet_data import blob, raw_data, write_json, write_nifti
from tiny_volume import volume_package

from segship.datasets import open_dataset
from segship.errors import UsageError
from segship.inference.predictor import Predictor
from segship.measure.evaluate import EvaluateResult, evaluate
from segship.measure.report import report
from segship.measure.seen import training_note
from segship.metrics import nnunet, nnunet_v1
from segship.metrics.evaluation import Evaluation, drop_against


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cache: None) -> tuple[Path, EvaluateResult]:
    """Both precisions at two batches, surfaces included, and the report; one case has no foreground at all."""
    root = tmp_path_factory.mktemp("volumes")
    data = raw_data(root / "Dataset003_Liver")
    write_nifti(data / "imagesTr" / "none_0000.nii.gz", np.zeros((5, 12, 14), np.int16))
    write_nifti(data / "labelsTr" / "none.nii.gz", np.zeros((5, 12, 14), np.uint8))
    write_json(data / "splits_final.json", [{"train": ["liver_1", "liver_2"], "val": ["liver_3"]}])
    package = volume_package(root / "net.segship")
    result = evaluate(package, data, precision=("int8", "fp32"), batch=(1, 4), surface_mm=1.0, output=root / "out")
    return root, result


def test_numbers_are_those_of_predictions_and_labels(made: tuple[Path, EvaluateResult]) -> None:
    root, result = made
    dataset = open_dataset(root / "Dataset003_Liver")
    with Predictor.open(root / "net.segship") as predictor:
        wanted = [
            nnunet.score_arrays(
                case.id, case.read_labels().labels, predictor(case.read_image()).labels, {1: "liver", 2: "tumour"}
            )
            for case in dataset.cases
        ]
    found = result.variants[0].evaluation
    assert [score.id for score in found.scores] == ["liver_1", "liver_2", "liver_3", "none"]
    for score, expected in zip(found.scores, wanted, strict=True):
        assert score.counts == expected.counts
    assert found.metrics["Dice"] == pytest.approx(nnunet.summarise(wanted)["Dice"])
    assert 0.9 < found.value <= 1, "the painted grey levels are found again"
    assert found.metrics["HD95"] < 2
    assert math.isnan(found.scores[3].values["Dice"])
    assert "none" not in found.per_case()


def test_the_drop_and_both_batches(made: tuple[Path, EvaluateResult]) -> None:
    int8 = made[1].variant("int8")
    assert int8 is not None
    assert int8.drop is not None
    assert int8.drop.drop > 0.01, "moved borders lose voxels"
    assert int8.drop.cases == 3, "the empty case has no Dice on either side"
    assert int8.agreement["none"] == 1
    assert int8.agreement["liver_1"] < 1
    assert set(int8.by_batch) == {1, 4}
    one, four = int8.by_batch[1], int8.by_batch[4]
    assert {name: one[name] for name in four} == pytest.approx(four, nan_ok=True)
    text = made[1].as_text()
    assert "precision  batch  Accuracy    Dice  Precision  Recall" in text
    assert "1 of 4 cases have no Dice" in text


def test_cases_that_were_trained_on_are_told(made: tuple[Path, EvaluateResult]) -> None:
    assert made[1].notes[0] == (
        "warning: 2 of 4 cases were trained on (by folds 0; liver_1, liver_2; splits_final.json): the numbers do not say "
        "how good the network is on new ones"
    )


def test_training_notes_need_a_splits_file_and_folds(tmp_path: Path) -> None:
    data = open_dataset(raw_data(tmp_path / "raw"))
    assert training_note({}, data, tmp_path / "raw") is None
    unknown = training_note({"folds": "0 1"}, data, tmp_path / "raw")
    assert unknown is not None
    assert "is not known: no splits_final.json" in unknown
    splits = write_json(tmp_path / "mine.json", [{"train": ["a"], "val": ["liver_1"]}])
    assert training_note({"folds": "0"}, data, tmp_path / "raw", splits) is None
    everything = training_note({"folds": "all"}, data, tmp_path / "raw", splits)
    assert everything is not None
    assert "1 of 3 cases were trained on (this network was trained on all cases; liver_1" in everything


def test_validation_cases_of_the_model_folder_tell_too(tmp_path: Path) -> None:
    root = raw_data(tmp_path / "raw")
    data = open_dataset(root)
    note = training_note({"folds": "0"}, data, root, validation={"0": ["liver_1", "elsewhere"]})
    assert note is not None
    assert note.startswith("warning: 2 of 3 cases were trained on (by folds 0, whose validation cases the model folder")
    both = training_note({"folds": "0 1"}, data, root, validation={"0": ["liver_1"], "1": ["liver_2"]})
    assert both is not None
    assert "3 of 3 cases" in both, "what one fold was validated on another was trained on"
    assert training_note({"folds": "0"}, data.select(["liver_1"]), root, validation={"0": ["liver_1"]}) is None
    other = training_note({"folds": "0"}, data, root, validation={"0": ["heart_1"]})
    assert other is not None
    assert "is not known" in other, "another data set's list says nothing"


def test_the_folder_holds_nnunets_own_summary(made: tuple[Path, EvaluateResult]) -> None:
    root, result = made
    found = json.loads((root / "out" / "fp32" / "summary.json").read_text())
    assert list(found) == ["foreground_mean", "foreground_mean_present", "mean", "metric_per_case"]
    assert list(found["mean"]) == ["1", "2"]
    row = found["metric_per_case"][3]
    assert math.isnan(row["metrics"]["1"]["Dice"])
    assert row["prediction_file"] == "none.nii.gz"
    assert row["reference_file"].endswith("labelsTr/none.nii.gz")
    assert found["foreground_mean"]["Dice"] == pytest.approx(result.variants[0].evaluation.metrics["foreground_mean"])
    rows = list(csv.DictReader((root / "out" / "int8" / "cases.csv").open()))
    assert rows[3]["Dice"] == "", "no number is no number"
    summary = json.loads((root / "out" / "summary.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert summary["variants"][1]["metrics_by_batch"].keys() == {"1", "4"}


def test_v1s_summary_on_request(tmp_path: Path, cache: None) -> None:
    data = raw_data(tmp_path / "raw", ["a", "b"])
    package = volume_package(tmp_path / "net.segship")
    evaluate(package, data, output=tmp_path / "out", format="v1", record=False)
    found = json.loads((tmp_path / "out" / "fp32" / "summary.json").read_text())
    assert found["author"] == "Fabian"
    assert len(found["results"]["all"][0]["1"]) == 13


def test_pictures_show_a_slice_of_each_case(made: tuple[Path, EvaluateResult]) -> None:
    out = made[0] / "out"
    about = json.loads((out / "pictures.json").read_text())
    assert {entry["case"] for entry in about["worst"]} == {"liver_1", "liver_2", "liver_3"}
    assert {entry["precision"] for entry in about["disagreements"]} == {"int8"}
    assert set(about["worst"][0]["panels"]) == {"input", "prediction", "truth", "difference"}
    assert all((out / "pictures" / name).stat().st_size > 100 for name in about["worst"][0]["panels"].values())


def test_the_report_has_the_table_by_precision_and_batch(made: tuple[Path, EvaluateResult]) -> None:
    page = report(made[0] / "out").read_text()
    start = page.index("Precision and batch")
    table = page[start : page.index("Published for", start)]
    assert [table.count(f">{name}<") for name in ("Accuracy", "Dice", "Precision", "Recall", "fp32", "int8")] == [
        1, 1, 1, 1, 2, 2,
    ]  # fmt: skip
    assert f"{made[1].variants[0].by_batch[1]['Dice']:.6f}" in table
    assert "Lower is better for HD95" in page


def test_regions_are_scored_as_regions(tmp_path: Path, cache: None) -> None:
    data = raw_data(tmp_path / "raw", ["a", "b"])
    package = volume_package(tmp_path / "net.segship", "regions")
    result = evaluate(package, data, output=tmp_path / "out", record=False)
    found = json.loads((tmp_path / "out" / "fp32" / "summary.json").read_text())
    assert list(found["mean"]) == ["(1, 2)", "2"]
    truth = [blob(seed) for seed in range(2)]
    assert found["mean"]["(1, 2)"]["n_ref"] == pytest.approx(np.mean([(t > 0).sum() for t in truth]))
    assert result.variants[0].evaluation.metrics["Dice whole"] > 0.9


def test_labels_are_turned_as_the_packages_reader_turns_images(tmp_path: Path, cache: None) -> None:
    data = raw_data(tmp_path / "raw", ["a"])
    package = volume_package(tmp_path / "net.segship", reader="nibabel-reorient")
    assert evaluate(package, data, record=False).variants[0].evaluation.value > 0.9


def test_windows_can_be_run_otherwise(tmp_path: Path, cache: None) -> None:
    from segship.inference.volume_network import TileOptions

    data = raw_data(tmp_path / "raw", ["a"])
    package = volume_package(tmp_path / "net.segship")
    usual, wide = (
        evaluate(package, data, record=False, tiles=tiles).variants[0].evaluation.metrics
        for tiles in (None, TileOptions(step_size=1.0))
    )
    assert usual == pytest.approx(wide), "one voxel decides, whatever the windows"


def test_what_other_worlds_do_not_have_is_refused(tmp_path: Path) -> None:
    from tiny_package import tiny_package

    package = tiny_package(tmp_path / "net.segship")
    with pytest.raises(UsageError, match="--format chooses nnU-Net's"):
        evaluate(package, tmp_path, format="v2")


# ------------------------------------------------------------------------------- drops without a number


def made_up(precision: str, dice: dict[str, float]) -> Evaluation:
    mean = {"Dice": nnunet_v1.nanmean(list(dice.values()))}
    scores = case_scores("Dice", dice)
    return evaluation("Dice", mean, scores, precision=precision, undefined=nnunet.UNDEFINED)


def test_finding_something_where_nothing_is_is_a_loss() -> None:
    fp32 = made_up("fp32", {"a": 0.9, "b": 0.8, "empty": math.nan, "both": math.nan})
    int8 = made_up("int8", {"a": 0.9, "b": 0.8, "empty": 0.0, "both": math.nan})
    drop = drop_against(fp32, int8)
    assert drop.cases == 3
    assert drop.drop == pytest.approx(1 / 3)
    assert (drop.worst_case, drop.worst_drop) == ("empty", 1.0)


def test_no_case_with_a_number_is_an_error() -> None:
    with pytest.raises(UsageError, match="no case has a Dice"):
        drop_against(made_up("fp32", {"a": 0.9}), made_up("int8", {"a": math.nan}))
