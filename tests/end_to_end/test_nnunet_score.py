"""`segship score nnunet` and `nnunet-v1` from files alone, as their users type it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import Call
from nnunet_data import blob, raw_data, write_json, write_nifti, write_png


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """(raw data, a folder of predictions with some voxels moved)."""
    root = raw_data(tmp_path / "Dataset003_Liver")
    for seed in range(3):
        write_nifti(tmp_path / "pred" / f"liver_{seed + 1}.nii.gz", np.roll(blob(seed), 1, axis=2))
    return root, tmp_path / "pred"


def golden_files(shared: Path, root: Path) -> tuple[Path, Path]:
    """The reference pairs as NIfTI files, spacing x, y, z = 1.5, 1, 2."""
    with np.load(shared / "reference" / "nnunet_metrics.npz") as stored:
        for name in stored:
            case, _, part = name.rpartition("__")
            write_nifti(root / {"ref": "gt", "pred": "pred"}[part] / f"{case}.nii.gz", stored[name])
    return root / "gt", root / "pred"


def compare(found: object, wanted: object) -> None:
    if isinstance(wanted, dict):
        assert isinstance(found, dict)
        for key, value in wanted.items():
            if key not in ("id", "timestamp", "prediction_file", "reference_file", "test", "reference"):
                compare(found[key], value)
    elif isinstance(wanted, list):
        assert isinstance(found, list)
        for one, other in zip(found, wanted, strict=True):
            compare(one, other)
    elif wanted is None:
        assert isinstance(found, float)
        assert math.isnan(found)
    else:
        assert found == pytest.approx(wanted, abs=1e-12)


def test_files_give_upstreams_summaries(segship: Call, shared: Path, tmp_path: Path) -> None:
    golden = json.loads((shared / "reference" / "nnunet_metrics.json").read_text())
    gt, pred = golden_files(shared, tmp_path)
    out = tmp_path / "summary.json"
    for arguments, wanted in (
        (("nnunet", gt, pred, "-l", 1, 2), golden["v2"]["labels"]["summary"]),
        (("nnunet", gt, pred, "-l", 1, 2, "-il", 3), golden["v2"]["labels_ignore3"]["summary"]),
        (("nnunet", "-l", "1+2", 2, "--ignore", 3, "--", gt, pred), golden["v2"]["regions_mixed"]["summary"]),
        (("nnunet-v1", gt, pred, "-l", 1, 2), golden["v1"]),
    ):
        code, _, said = segship("score", *arguments[:1], "-o", out, *arguments[1:])
        assert code == 0, said
        compare(json.loads(out.read_text()), wanted)
    files = json.loads(out.read_text())["results"]["all"][0]
    assert files["test"] == str(pred / "c0_overlap.nii.gz")


def test_the_trained_models_predictions_have_upstreams_dice(segship: Call, shared: Path) -> None:
    trained = shared / "reference" / "nnunet_v2_trained"
    wanted = json.loads((trained / "dice.json").read_text())
    about = next(trained.glob("nnUNet*/dataset.json"))
    for folder, key, mean in (("predictions", "pred", 0.90067), ("predictions_disable_tta", "pred_notta", 0.89777)):
        found = json.loads(
            segship("score", "nnunet", trained / "labels", trained / folder, "-djfile", about, "--json")[1]
        )
        assert found["metrics"]["Dice"] == pytest.approx(wanted[key]["mean_dice"]["1"], abs=1e-12)
        assert round(found["metrics"]["foreground_mean"], 5) == mean
        for case in wanted[key]["per_case"]:
            assert found["per_case"][case["case"].removesuffix(".png")]["Dice"] == pytest.approx(
                case["1"]["Dice"], abs=1e-12
            )


def test_the_raw_folder_itself_is_enough(segship: Call, sets: tuple[Path, Path]) -> None:
    code, text, _ = segship("score", "nnunet", *sets)
    assert code == 0
    assert re.search(r"^liver_2 +0\.\d{4}$", text, re.MULTILINE)
    assert re.search(r"^Dice tumour +0\.\d{4}  Dice of tumour alone", text, re.MULTILINE)
    assert "3 cases" in text


def test_surfaces_are_added_on_request(segship: Call, sets: tuple[Path, Path]) -> None:
    found = json.loads(segship("score", "nnunet", *sets, "--surface", "--tolerance", 1.4, "--json")[1])["metrics"]
    assert found["HD95"] == pytest.approx(1.5), "one column of 1.5 mm"
    assert 0 < found["NSD"] < 1
    assert (
        json.loads(segship("score", "nnunet", *sets, "--surface", "--tolerance", 1.5, "--json")[1])["metrics"]["NSD"]
        == 1
    )


def test_v1_prints_its_thirteen(segship: Call, sets: tuple[Path, Path]) -> None:
    text = segship("score", "nnunet-v1", *sets, "-l", 1)[1]
    assert "1 False Omission Rate" in text
    assert segship("score", "nnunet-v1", *sets, "-l", 1, "--ignore", 2)[0] == 2, "v1 has no ignore label"


def test_missing_and_surplus_predictions(segship: Call, sets: tuple[Path, Path]) -> None:
    (sets[1] / "liver_2.nii.gz").unlink()
    code, _, said = segship("score", "nnunet", *sets)
    assert code == 1
    assert "no prediction in" in said
    assert "liver_2" in said
    code, text, _ = segship("score", "nnunet", *sets, "--chill")
    assert code == 0
    assert "left out: 1 of 3" in text
    write_nifti(sets[1] / "other.nii.gz", blob(0))
    assert "predictions without ground truth: 1 (other)" in segship("score", "nnunet", *sets, "--chill")[2]


def test_geometry_is_told_and_shapes_refused(segship: Call, sets: tuple[Path, Path]) -> None:
    write_nifti(sets[1] / "liver_1.nii.gz", blob(0), np.diag([1.5, 1.0, 2.0, 1.0]))
    code, text, _ = segship("score", "nnunet", *sets)
    assert code == 0
    assert "1 of 3 predictions lie elsewhere in space than their reference (liver_1)" in text
    write_nifti(sets[1] / "liver_1.nii.gz", blob(0)[:, :, 1:])
    code, _, said = segship("score", "nnunet", *sets)
    assert code == 1
    assert re.search(r"error: .*liver_1\.nii\.gz: case liver_1: the prediction has 5×12×13 voxels", said)
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("liver_1.nii.gz", blob(0).astype(np.float32) / 3, "holds fractions"),
        ("liver_1.nii.gz", (blob(0) > 0).astype(np.uint8) * 255, "holds the label 255, but dataset.json names 0, 1, 2"),
    ],
)
def test_files_that_are_no_labels(
    segship: Call, sets: tuple[Path, Path], name: str, array: np.ndarray, said: str
) -> None:
    write_nifti(sets[1] / name, array)
    code, _, error = segship("score", "nnunet", *sets)
    assert code == 1
    assert name in error
    assert said in error


def test_a_cut_file_is_named(segship: Call, sets: tuple[Path, Path]) -> None:
    path = sets[1] / "liver_3.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    code, _, said = segship("score", "nnunet", *sets)
    assert code == 1
    assert "liver_3.nii.gz" in said
    assert said.count("\n") == 1


def test_somebody_has_to_say_which_labels(segship: Call, sets: tuple[Path, Path]) -> None:
    (sets[0] / "dataset.json").unlink()
    code, _, said = segship("score", "nnunet", *sets)
    assert code == 2
    assert "give -l 1 2" in said
    about = write_json(sets[1] / "dataset.json", {"labels": {"background": 0, "liver": 1}})
    code, _, said = segship("score", "nnunet", *sets)
    assert "holds the label 2, but dataset.json names 0, 1" in said, "as nnU-Net leaves one with its predictions"
    assert segship("score", "nnunet", *sets, "--dataset", about, "-l", 1)[0] == 2
    assert segship("score", "nnunet", *sets, "-l", 1, 2, "--ignore", 2)[0] == 2
    assert segship("score", "nnunet", *sets, "-l", "one")[0] == 2
    assert segship("score", "sod", *sets, "-l", 1)[0] == 2


def test_pictures_are_scored_too(segship: Call, tmp_path: Path) -> None:
    for folder, shift in (("gt", 0), ("pred", 1)):
        write_png(tmp_path / folder / "x.png", np.roll(blob(0)[2], shift, axis=1))
    code, text, _ = segship("score", "nnunet", tmp_path / "gt", tmp_path / "pred", "-l", 1, 2, "--surface")
    assert code == 0
    assert "HD95 are in pixels" in text


# ----------------------------------------------------------------------------------------------- evaluate


def test_evaluate_takes_nnunets_words(segship: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_volume import volume_package

    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    data = raw_data(tmp_path / "Dataset003_Liver")
    volume_package(tmp_path / "net.segship")
    splits = write_json(tmp_path / "my_splits.json", [{"train": ["liver_2"], "val": ["liver_1"]}])
    code, text, said = segship(
        "evaluate", tmp_path / "net.segship", data, "--disable_tta", "-step_size", 1, "--batch", "1,2", "--splits", splits,
        "--format", "v1", "--surface", "--tolerance", 2, "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0, said
    found = json.loads(text)
    assert found["layout"] == "nnunet"
    assert found["metrics"]["Dice"] > 0.9
    assert found["metrics"]["NSD"] > 0.9
    assert set(found["variants"][0]["metrics_by_batch"]) == {"1", "2"}
    assert "1 of 3 cases were trained on (by folds 0; liver_2; my_splits.json)" in found["notes"][0]
    assert "results" in json.loads((tmp_path / "out" / "fp32" / "summary.json").read_text())


@pytest.mark.slow
def test_the_trained_model_scores_as_upstream_says(
    segship: Call, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    trained = shared / "reference" / "nnunet_v2_trained"
    package = tmp_path / "nuclei.segship"
    assert segship("export", next(trained.glob("nnUNet*")), "-o", package, "-q")[0] == 0
    found = json.loads(segship("evaluate", package, trained, "--json")[1])
    wanted = json.loads((trained / "dice.json").read_text())["pred"]["mean_dice"]["1"]
    assert found["cases"] == 8
    assert found["metrics"]["Dice"] >= 0.900
    assert found["metrics"]["Dice"] == pytest.approx(wanted, abs=5e-4)
