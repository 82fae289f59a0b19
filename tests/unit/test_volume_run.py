"""What `segship run` does otherwise for volumes: cases of several files, label files and the world's summary left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nnunet_data import blob, decathlon, raw_data
from tiny_package import tiny_package
from tiny_volume import volume_package

from segship.datasets import open_dataset
from segship.datasets.label_files import read_label_file
from segship.errors import OutputError, SegshipError
from segship.inference.predictor import Predictor
from segship.measure.evaluate import evaluate
from segship.measure.volume_run import bring_previous, files_of, link_cases, predict_volumes, window_batches


def test_cases_are_linked_with_channels_numbered_and_labels_beside(tmp_path: Path) -> None:
    dataset = open_dataset(raw_data(tmp_path / "raw", channels=2)).select(["liver_1", "liver_3"])
    found = open_dataset(link_cases(dataset, tmp_path / "calibration"))
    assert found.ids == ["liver_1", "liver_3"]
    assert found.sha256 == dataset.sha256
    assert [path.name for path in files_of(found.cases[0])] == ["liver_1_0000.nii.gz", "liver_1_0001.nii.gz"]
    again = link_cases(dataset.select(["liver_3"]), tmp_path / "calibration")
    assert open_dataset(again).ids == ["liver_3"], "what an earlier run linked is gone"


def test_the_decathlons_files_get_a_channel_number(tmp_path: Path) -> None:
    linked = link_cases(open_dataset(decathlon(tmp_path / "Task02_Heart")), tmp_path / "calibration")
    assert sorted(path.name for path in (linked / "imagesTr").iterdir()) == ["la_003_0000.nii.gz", "la_004_0000.nii.gz"]


def test_a_system_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refused)
    dataset = open_dataset(raw_data(tmp_path / "raw"))
    linked = link_cases(dataset, tmp_path / "calibration")
    assert not (linked / "labelsTr" / "liver_1.nii.gz").is_symlink()
    assert open_dataset(linked).sha256 == dataset.sha256


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "calibration").write_text("a file")
    with pytest.raises(OutputError, match="calibration"):
        link_cases(open_dataset(raw_data(tmp_path / "raw")), tmp_path / "calibration")


def test_label_files_and_nnunets_summary_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    data = raw_data(tmp_path / "raw", ["a", "b"])
    package = volume_package(tmp_path / "net.segship")
    evaluate(package, data, output=tmp_path / "evaluation", record=False)
    files = [file for case in open_dataset(data).cases for file in files_of(case)]
    target = tmp_path / "predictions"
    with Predictor.open(package) as predictor:
        predict_volumes(predictor, files, target, tmp_path / "evaluation", None)
    assert np.mean(read_label_file(target / "a.nii.gz").labels == blob(0)) > 0.99
    assert (target / "previews" / "b.png").stat().st_size > 100
    rows = json.loads((target / "summary.json").read_text())["metric_per_case"]
    assert [row["prediction_file"] for row in rows] == ["a.nii.gz", "b.nii.gz"]
    (data / "imagesTr" / "b_0000.nii.gz").write_bytes(b"cut")
    with Predictor.open(package) as predictor, pytest.raises(SegshipError, match="1 cases could not be predicted"):
        predict_volumes(predictor, files, tmp_path / "other", tmp_path / "nothing", None)


def test_a_saved_tiff_gets_its_spacing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    with Predictor.open(volume_package(tmp_path / "net.segship")) as predictor:
        found = predictor((blob(0) * np.float32(60), (2.5, 0.5, 0.75)))
    written = found.save(tmp_path / "liver_1.tif")  # type: ignore[arg-type]
    assert [path.name for path in written] == ["liver_1.tif", "liver_1.json"]
    assert json.loads(written[1].read_text()) == {"spacing": [2.5, 0.5, 0.75]}
    assert found.save(tmp_path / "liver_1.nii.gz") == [tmp_path / "liver_1.nii.gz"]  # type: ignore[arg-type]


def test_batches_whose_windows_are_too_large_are_left_out(tmp_path: Path) -> None:
    manifest = volume_package(tmp_path / "net.segship").manifest
    assert window_batches(manifest, (1, 8)) == ((1, 8), [])
    assert manifest.tiling is not None
    large = manifest.tiling.model_copy(update={"window": (128, 160, 112)})
    kept, notes = window_batches(manifest.model_copy(update={"tiling": large}), (1, 8))
    assert kept == (1,)
    assert notes == ["batch 8 was left out: so many windows of 128x160x112 at once are large"]
    assert window_batches(tiny_package(tmp_path / "p.segship").manifest, (1, 8)) == ((), [])


def test_a_cascades_first_stage_comes_along(tmp_path: Path) -> None:
    first = volume_package(tmp_path / "models" / "3d_lowres.segship").path
    (tmp_path / "run").mkdir()
    bring_previous(None, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    for _ in range(2):
        bring_previous(str(first), tmp_path / "run")
        assert (tmp_path / "run" / "3d_lowres.segship").resolve() == first.resolve()
