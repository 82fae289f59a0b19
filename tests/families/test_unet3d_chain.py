"""The MLPerf 3D U-Net from a checkpoint and KiTS19-like files to labels, scores, int8 and a report."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from segship.cli import run as segship
from segship.convert.export import export
from segship.convert.precision import compile_package
from segship.datasets.kits19_folder import prepare_folders
from segship.errors import DatasetError, UsageError
from segship.families import unet3d_mlperf
from segship.inference.predictor import Predictor
from segship.inference.tiling import remainder_crop
from segship.inference.volume_labels import labels_on_network_grid
from segship.inference.volume_network import TileOptions
from segship.inference.volumes import read_labels, read_volume, volume_from_array
from segship.measure.evaluate import evaluate
from segship.metrics.kits19 import dice_scores, kits_scores
from segship.package import open_package


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw/ and prepared/ of four synthetic cases: 00000 and 00003 are evaluated on."""
    root = tmp_path_factory.mktemp("kits")
    prepare_folders(root / "raw", root / "prepared", synthetic=4, size=48, minimum=32)
    return root


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, kits: Path) -> Path:
    root = tmp_path_factory.mktemp("net")
    state = unet3d_mlperf.tiny().network.state_dict()  # type: ignore[union-attr]
    torch.save({"best_model_state_dict": state, "epoch": 2.0, "mean_dice": 0.1}, root / "net.pth")
    export(
        root / "net.pth", root / "net.segship", engines=["openvino"], options={"window": "32x64x64", "pad_to": "32"},
        sample=kits / "raw/case_00001/imaging.nii.gz",
    )  # fmt: skip
    return root / "net.segship"


def test_labels_lie_in_the_files_own_geometry(package: Path, kits: Path, tmp_path: Path) -> None:
    assert segship(["predict", str(package), str(kits / "raw"), "-o", str(tmp_path), "-q"]) == 0
    for number in range(4):
        image = nibabel.load(kits / f"raw/case_{number:05d}/imaging.nii.gz")
        mask = nibabel.load(tmp_path / f"case_{number:05d}.nii.gz")
        assert mask.shape == image.shape
        assert np.array_equal(mask.affine, image.affine)
        assert np.array_equal(mask.header["pixdim"], image.header["pixdim"])
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}


def test_no_torch_is_needed_to_predict(package: Path, kits: Path) -> None:
    code = (
        "import sys, segship\n"
        f"found = segship.load({str(package)!r})({str(kits / 'raw/case_00000/imaging.nii.gz')!r})\n"
        "assert found.name == 'case_00000' and found.labels.ndim == 3\n"
        "heavy = [m for m in ('torch', 'onnx', 'matplotlib', 'pandas') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


@pytest.mark.parametrize("score", ["mlperf-full", "mlperf", "kits"])
def test_each_score_is_what_it_says(package: Path, kits: Path, tmp_path: Path, score: str) -> None:
    result = evaluate(package, kits / "raw", score=score, output=tmp_path)
    found = result.variants[0].evaluation
    assert [row.id for row in found.scores] == ["case_00000", "case_00003"]
    assert any(f"score {score}:" in note for note in result.notes)
    assert result.as_dict()["score"] == score
    assert "0.9076" in result.as_text()
    with Predictor.open(package) as predictor:
        tiles = TileOptions(crop_remainder=score == "mlperf")
        path = kits / "raw/case_00003"
        answer = predictor(path / "imaging.nii.gz", tiles=tiles)  # type: ignore[call-arg]
    spec = open_package(package).manifest.input
    assert spec.kind == "volume"
    truth = read_labels(path / "segmentation.nii.gz", spec)
    if score == "kits":
        wanted = kits_scores(answer.labels, truth)
    else:
        grid = labels_on_network_grid(truth, answer.frame)  # type: ignore[union-attr]
        kept = remainder_crop(grid.shape, tiles.applied(open_package(package).manifest.tiling))  # type: ignore[arg-type]
        assert (grid[kept].size < grid.size) == (score == "mlperf")
        wanted = dice_scores(answer.scores[(slice(None), *kept)].argmax(axis=0), grid[kept])  # type: ignore[union-attr]
    assert list(found.scores[1].values.values())[1:] == pytest.approx(list(wanted))
    assert found.scores[1].values["mean Dice"] == pytest.approx(sum(wanted) / 2)
    rows = list(csv.DictReader((tmp_path / "fp32/cases.csv").open()))
    assert [row["case"] for row in rows] == ["case_00000", "case_00003"]
    assert float(rows[1]["mean Dice"]) == pytest.approx(sum(wanted) / 2, abs=1e-6)
    records = open_package(package).provenance()["accuracy"]
    assert [r["value"] for r in records if r["score"] == score] == [found.value]


def test_raw_files_and_prepared_arrays_score_the_same(package: Path, kits: Path) -> None:
    raw = evaluate(package, kits / "raw", split="all", record=False).variants[0].evaluation
    prepared = evaluate(package, kits / "prepared", split="all", record=False).variants[0].evaluation
    assert len(raw.scores) == len(prepared.scores) == 4
    assert prepared.metrics == pytest.approx(raw.metrics, abs=1e-9)
    with pytest.raises(UsageError, match="has no grid of its own"):
        evaluate(package, kits / "prepared", score="kits", record=False)
    with pytest.raises(UsageError, match="no score is called"):
        evaluate(package, kits / "prepared", score="best", record=False)


def test_simpleitk_reads_the_same_case(kits: Path) -> None:
    itk = pytest.importorskip("SimpleITK")
    from segship.datasets.kits19_steps import reading, steps
    from segship.inference.volume_chain import prepare_steps

    path = kits / "raw/case_00002/imaging.nii.gz"
    image = itk.ReadImage(str(path))
    array = itk.GetArrayFromImage(image).transpose(2, 1, 0)
    spacing = [float(np.float32(mm)) for mm in image.GetSpacing()]
    theirs = prepare_steps(volume_from_array(array, spacing, "itk"), steps())
    ours = prepare_steps(read_volume(path, reading()), steps())
    assert np.array_equal(theirs.x, ours.x)


@pytest.mark.slow
def test_int8_is_calibrated_on_training_cases_alone(package: Path, kits: Path, tmp_path: Path) -> None:
    for source in ("raw", "prepared"):
        made = compile_package(
            package, "int8", calibrate=kits / source, subset=4, output=tmp_path / f"{source}.segship", engine="openvino",
            validate=kits / source, max_drop=1.0,
        )  # fmt: skip
        assert made.variant.drop is not None
        assert made.variant.drop.cases == 2, "validated on the evaluation cases alone"
        record = made.package.provenance()["calibration"]["int8"]
        assert record["available"] == 2
        assert not any("no labels" in warning for warning in made.warnings)
        result = evaluate(made.package, kits / source, precision=("fp32", "int8"), record=False)
        assert result.variants[1].drop is not None
        with pytest.raises(DatasetError, match="was calibrated on this very image"):
            evaluate(made.package, kits / source, split="all", precision="int8", record=False)
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out/case_00000").symlink_to(kits / "raw/case_00000")
    with pytest.raises(DatasetError, match="evaluation cases alone"):
        compile_package(package, "int8", calibrate=tmp_path / "held_out", output=tmp_path / "no.segship")
    assert not (tmp_path / "no.segship").exists()


@pytest.mark.slow
def test_a_run_ends_in_a_report(package: Path, kits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    arguments = ["run", str(package.with_name("net.pth")), "--data", str(kits / "raw"), "-o", str(tmp_path / "run")]
    options = [
        "--window",
        "32x64x64",
        "--pad-to",
        "32",
        "--precision",
        "fp16",
        "--batch",
        "1",
        "--repeat",
        "1",
        "--iterations",
        "1",
    ]
    assert segship([*arguments, *options, "-q"]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["metric"]["name"] == "mean Dice"
    assert summary["dataset"]["cases"] == 2
    assert {row["precision"] for row in summary["variants"]} == {"fp32", "fp16"}
    page = (tmp_path / "run/report.html").read_text()
    assert "0.9076" in page
    assert "mean Dice" in page
    assert (tmp_path / "run/predictions/case_00003.nii.gz").exists()
