"""What `segship run` does otherwise for volumes: cases of several files, label files and the world's summary left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nnunet_data import blob, decathlon, raw_data
from tiny_volume import volume_package

from segship.datasets import open_dataset
from segship.datasets.label_files import read_label_file
from segship.errors import OutputError, SegshipError
from segship.inference.predictor import Predictor
from segship.measure.evaluate import evaluate
from segship.measure.volume_run import files_of, link_cases, predict_volumes


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
