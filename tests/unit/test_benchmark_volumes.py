"""Timing packages that take volumes: windows, a prepared case, files to label file; the page that shows them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nnunet_data import raw_data
from tiny_package import tiny_package
from tiny_volume import volume_package

from segship.errors import UsageError
from segship.inference.volume_network import TileOptions
from segship.inference.volumes import Volume, read_volume
from segship.manifest import Channel, VolumeInput
from segship.measure import report as page
from segship.measure.benchmark import benchmark
from segship.measure.benchmark_volumes import write_sample
from segship.measure.evaluate import evaluate
from segship.measure.rundir import write_run_summary

QUICK = {"warmup": 1, "iterations": 2, "repeat": 2}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("segship.measure.timing.SETTLE_SECONDS", 0.0)


def test_windows_and_a_case_by_precision_batch_and_engine(tmp_path: Path) -> None:
    data = raw_data(tmp_path / "raw")
    package = volume_package(tmp_path / "net.segship")
    result = benchmark(package, data / "imagesTr", batch=(1, 4), against=("onnxruntime",), **QUICK)
    told = result.as_dict()
    json.dumps(told)
    assert told["unit"] == "window"
    assert [(row["engine"], row["precision"]) for row in told["variants"]] == [
        ("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"),
    ]  # fmt: skip
    for row in told["variants"]:
        for name in ("latency_ms", "windows_per_second", "case_network_seconds", "case_seconds", "files_per_second"):
            assert set(row[name]) == {"1", "4"}, name
            assert min(row[name].values()) > 0
        assert row["images_per_second"] == row["windows_per_second"]
    fp32, int8, other, _ = result.rows
    assert (fp32.max_abs, fp32.label_agreement) == (0.0, 1.0)
    assert int8.label_agreement is not None
    assert int8.label_agreement < 1, "moved borders give other labels, and the table says so"
    assert other.label_agreement == 1
    text = result.as_text()
    assert text.index("labels equal") < text.index("network windows/s")
    assert "case, files→labels s" in text
    assert "case liver_1, the first of 3" in text
    assert "windows/s  " in result.rate_table()


def test_only_the_network_and_windows_run_otherwise(tmp_path: Path) -> None:
    data = raw_data(tmp_path / "raw")
    package = volume_package(tmp_path / "net.segship")
    tiles = TileOptions(mirror=False, step_size=1.0)
    result = benchmark(package, data / "imagesTr", precision="fp32", batch=(2,), files=False, tiles=tiles, **QUICK)
    (row,) = result.as_dict()["variants"]
    assert (row["case_seconds"], row["case_network_seconds"]) == ({}, {})
    assert set(row["windows_per_second"]) == {"2"}


def test_what_cannot_be_timed_is_said(tmp_path: Path) -> None:
    package = volume_package(tmp_path / "net.segship")
    with pytest.raises(UsageError, match="no golden sample; name the files of a case"):
        benchmark(package, **QUICK)
    data = raw_data(tmp_path / "raw", channels=2)
    with pytest.raises(UsageError, match="no whole case among the inputs"):
        benchmark(package, data / "imagesTr" / "liver_1_0001.nii.gz", **QUICK)
    with pytest.raises(UsageError, match="are for packages of volumes"):
        benchmark(tiny_package(tmp_path / "p.segship"), tiles=TileOptions(mirror=False), **QUICK)


@pytest.mark.parametrize(
    ("reader", "ending", "channels", "files"),
    [
        ("simpleitk", ".nii.gz", 2, "suffix-0000"),
        ("nibabel", ".nii.gz", 1, "suffix-0000"),
        ("nibabel-reorient", ".nii.gz", 1, "suffix-0000"),
        ("image-2d", ".png", 3, "one-file"),
        ("image-2d", ".png", 1, "suffix-0000"),
        ("tiff-3d", ".tif", 2, "suffix-0000"),
    ],
)
def test_a_sample_becomes_files_that_its_reader_takes(
    tmp_path: Path, reader: str, ending: str, channels: int, files: str
) -> None:
    spec = VolumeInput(
        reader=reader,  # type: ignore[arg-type]
        channels=tuple(Channel(name=str(n)) for n in range(channels)), file_ending=ending,
        channel_files=files,  # type: ignore[arg-type]
    )  # fmt: skip
    depth = 1 if reader == "image-2d" else 3
    values = np.random.default_rng(0).integers(0, 255, (channels, depth, 5, 6)).astype(np.float32)
    volume = Volume(channels=values, spacing=(2.5, 0.5, 0.75), name="drawn")
    found = read_volume(write_sample(volume, spec, tmp_path / "s"), spec)
    assert found.channels.shape == values.shape
    assert (found.channels == values).all()
    if reader != "image-2d":
        assert found.spacing == pytest.approx(volume.spacing)


def test_the_page_of_a_run_says_windows_and_cases(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data = raw_data(tmp_path / "raw")
    package = volume_package(tmp_path / "run" / "net.segship")
    timed = benchmark(package, data / "imagesTr", batch=(1, 2), **QUICK)
    scored = evaluate(package, data, precision=("fp32", "int8"), output=tmp_path / "run" / "evaluation", batch=(1, 2))
    write_run_summary(tmp_path / "run", scored.package, evaluation=scored, benchmark=timed)
    text = page.report(tmp_path / "run").read_text()
    assert "windows/s" in text
    assert "img/s" not in text
    assert " a case</b> from files to label file (case liver_1, the first of 3)" in text
    start = text.index("Precision and batch")
    table = text[start : text.index("</section>", start)]
    assert "Published for Task02_Heart" in table
    assert "0.979568" in table
    assert "0.965416" in table
    assert "partly trained on" in table
    assert table.count('<th scope="row">fp32</th>') == 2, "two batches"
    bare = replace(timed.rows[0], files={}, cases={})
    alone = replace(timed, rows=(bare,))
    write_run_summary(tmp_path / "run", scored.package, evaluation=scored, benchmark=alone)
    assert "windows/s</b> in the network alone" in page.report(tmp_path / "run").read_text()
