"""Bad volumes: damaged, cut short, lying headers, wrong channels, other grids; each named, the others done."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from cpp_cases import tiling, volume_input, volume_package, write_volume
from cpp_compare import Runner, same

SHAPE = (12, 14, 10)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_package(tmp_path_factory.mktemp("package") / "net.segship").path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_volume(tmp_path_factory.mktemp("good") / "a.nii", SHAPE).read_bytes()


def patched(data: bytes, place: int, form: str, *numbers: Any) -> bytes:
    out = bytearray(data)
    struct.pack_into(form, out, place, *numbers)
    return bytes(out)


def with_voxels(shape: tuple[int, ...], change: Callable[[np.ndarray], None], path: Path) -> bytes:
    array = np.ones(shape, np.float32)
    change(array)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path.read_bytes()


def nan(array: np.ndarray) -> None:
    array[1, 2, 3] = np.nan


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", ""),
    "text": (lambda data: b"text\n" * 200, ""),
    "a picture": (lambda data: b"\x89PNG\r\n\x1a\n" + bytes(600), ""),
    "cut in the header": (lambda data: data[:300], ""),
    "cut in the voxels": (lambda data: data[:1000], ""),
    "the last byte gone": (lambda data: data[:-1], ""),
    "packed and cut": (lambda data: gzip.compress(data)[:-20], ""),
    "packed garbage": (lambda data: b"\x1f\x8b\x08\x00 garbage", ""),
    "a bit turned": (lambda data: turned_bit(gzip.compress(data, 0)), ""),
    "more than there is": (lambda data: patched(data, 40, "<8h", 3, 600, 500, 400, 1, 1, 1, 1), "declares"),
    "more than anything": (lambda data: patched(data, 40, "<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1), "27,000,000,000,000"),
    "negative sides": (lambda data: patched(data, 40, "<8h", 3, -12, 14, 10, 1, 1, 1, 1), ""),
    "no axes": (lambda data: patched(data, 40, "<8h", 0, 12, 14, 10, 1, 1, 1, 1), ""),
    "nine axes": (lambda data: patched(data, 40, "<8h", 9, 12, 14, 10, 1, 1, 1, 1), ""),
    "four axes": (lambda data: four_axes(data), "4 axes"),
    "colours": (lambda data: patched(data, 70, "<2h", 128, 24), "colours"),
    "complex numbers": (lambda data: patched(data, 70, "<2h", 32, 64), "complex"),
    "an unknown type": (lambda data: patched(data, 70, "<2h", 9999, 16), "header"),
    "voxels in another file": (lambda data: patched(data, 344, "4s", b"ni1\0"), "another file"),
    "another magic": (lambda data: patched(data, 344, "4s", b"xyz\0"), ""),
    "voxels before the header's end": (lambda data: patched(data, 108, "<f", 10.0), ""),
    "voxels nowhere": (lambda data: patched(data, 108, "<f", float("nan")), ""),
    "voxels far behind": (lambda data: patched(data, 108, "<f", 1e30), ""),
    "a slope of infinity": (lambda data: patched(data, 112, "<2f", 1.0, float("inf")), "header"),
    "a spacing of zero": (lambda data: patched(data, 76, "<4f", 1.0, 0.0, 1.0, 1.0), ""),
    "a spacing of nan": (lambda data: patched(data, 76, "<4f", 1.0, float("nan"), 1.0, 1.0), ""),
}  # fmt: skip


def turned_bit(packed: bytes) -> bytes:
    data = bytearray(packed)
    data[-20] ^= 1
    return bytes(data)


def four_axes(data: bytes) -> bytes:
    return patched(data, 40, "<8h", 4, 12, 14, 5, 2, 1, 1, 1)


@pytest.mark.parametrize("reader", ["nibabel", "simpleitk"])
def test_each_is_named_and_the_others_are_done(
    reader: str, whole: bytes, run_cpp: Runner, python: Any, tmp_path: Path
) -> None:
    """What Python refuses is refused; what Python reads is read."""
    package = volume_package(tmp_path / "net.segship", spec=volume_input(reader)).path
    folder = tmp_path / "in"
    folder.mkdir()
    names = {}
    for number, (name, (spoil, _)) in enumerate(BAD.items()):
        case = f"bad{number:02d}"
        names[case] = name
        (folder / f"{case}_0000.nii.gz").write_bytes(spoil(whole))
    (folder / "good_0000.nii.gz").write_bytes(gzip.compress(whole))
    ours, theirs = run_cpp(package, folder), python(package, folder)
    assert ours.code == theirs[0] == 1, (ours.err, theirs)
    assert (ours.folder / "good.nii.gz").is_file()
    wrong = []
    for case, name in names.items():
        refused = [line for line in theirs[1].splitlines() if line.startswith("failed:") and case in line]
        said = [line for line in ours.err.splitlines() if line.startswith("failed:") and case in line]
        if len(refused) != len(said):
            wrong.append(f"{name}: Python says {refused}, C++ {said}")
        word = BAD[name][1]
        if refused and said and word in refused[0] and word not in said[0]:
            wrong.append(f"{name}: '{word}' is not in {said[0]}")
    assert not wrong, "\n".join(wrong)


def test_a_bomb_is_not_unpacked(package: Path, whole: bytes, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    parts = [gzip.compress(whole)] + [gzip.compress(bytes(1 << 26))] * 16
    path = tmp_path / "bomb_0000.nii.gz"
    path.write_bytes(b"".join(parts))
    same(run_cpp(package, path), python(package, path), "far more than its header declares")


def nrrd(encoding: str) -> bytes:
    return (
        f"NRRD0004\ntype: float\ndimension: 3\nsizes: 1024 1024 1024\nendian: little\nencoding: {encoding}\n\n".encode()
    )


def meta(packed: bool) -> bytes:
    fields = {"NDims": 3, "DimSize": "1024 1024 1024", "CompressedData": packed, "ElementType": "MET_FLOAT"}
    return "".join(f"{key} = {value}\n" for key, value in (*fields.items(), ("ElementDataFile", "LOCAL"))).encode()


def npy(_: bytes) -> bytes:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1024, 1024, 1024), }"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(200)


def nifti(whole: bytes) -> bytes:
    return patched(whole[:600], 40, "<8h", 3, 1024, 1024, 1024, 1, 1, 1, 1)


# A few hundred bytes each, whose headers declare four gigabytes of voxels.
LYING: dict[str, Callable[[bytes], bytes]] = {
    "a_0000.nii": nifti,
    "a_0000.nii.gz": lambda whole: gzip.compress(nifti(whole)),
    "raw_0000.nrrd": lambda whole: nrrd("raw") + bytes(200),
    "gzip_0000.nrrd": lambda whole: nrrd("gzip") + gzip.compress(bytes(200)),
    "raw_0000.mha": lambda whole: meta(False) + bytes(200),
    "zlib_0000.mha": lambda whole: meta(True) + zlib.compress(bytes(200)),
    "a_x.npy": npy,
}


PEAK = """
import os, subprocess, sys
running = subprocess.Popen(sys.argv[1:])
_, status, used = os.wait4(running.pid, 0)
print(used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Runs its arguments, prints the peak in kB, ends with their exit status."""


@pytest.mark.parametrize("name", LYING)
def test_what_a_header_declares_takes_no_memory(name: str, binary: Path, whole: bytes, tmp_path: Path) -> None:
    ending = name[name.index(".") :]
    known = volume_input("simpleitk", file_ending=ending)
    spec = volume_input("nibabel-stored", channel_files="one-file") if ending == ".npy" else known
    package = volume_package(tmp_path / "net.segship", spec=spec).path
    (tmp_path / name).write_bytes(LYING[name](whole))
    words = [str(binary), str(package), str(tmp_path / name), "-o", str(tmp_path / "out")]
    # in a process between: a child's peak holds that of its parent, which may have run whole networks
    between = subprocess.run(
        [sys.executable, "-c", PEAK, *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert between.returncode == 1, between.stderr
    assert "failed: " in between.stderr
    assert int(between.stdout.splitlines()[-1]) < 2 << 20, between.stdout + between.stderr


def test_no_number_is_left_out_in_silence(package: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    path = tmp_path / "a_0000.nii.gz"
    with_voxels(SHAPE, nan, path)
    same(run_cpp(package, path), python(package, path), "1 NaN or infinite values", "(0, 3, 2, 1)")


def test_truncated_everywhere(package: Path, whole: bytes, run_cpp: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    packed = gzip.compress(whole)
    for data, kind, step in ((whole, "plain", 97), (packed, "packed", 61)):
        for end in range(0, len(data), step):
            (folder / f"{kind}{end}_0000.nii.gz").write_bytes(data[:end])
    ran = run_cpp(package, folder, trace=False)
    assert ran.code == 1
    failed = [line for line in ran.err.splitlines() if line.startswith("failed:")]
    assert len(failed) == len(list(folder.iterdir())), ran.err[-2000:]
    assert not list(ran.folder.rglob("*.nii.gz"))


def test_channels_that_do_not_fit(run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    package = volume_package(tmp_path / "net.segship", spec=volume_input(channels=2)).path
    folder = tmp_path / "in"
    for name, shape in (("a_0000", SHAPE), ("b_0000", SHAPE), ("b_0001", (12, 14, 9)), ("c_0000", SHAPE)):
        write_volume(folder / f"{name}.nii.gz", shape)
    for name in ("c_0001", "c_0002"):
        write_volume(folder / f"{name}.nii.gz", SHAPE)
    ours, theirs = run_cpp(package, folder), python(package, folder)
    assert ours.code == theirs[0]
    for word in ("a_0001.nii.gz", "c_0002.nii.gz"):
        assert word in ours.err
        assert word in theirs[1]
    other = tmp_path / "other"
    for name, shape in (("b_0000", SHAPE), ("b_0001", (12, 14, 9))):
        write_volume(other / f"{name}.nii.gz", shape)
    same(run_cpp(package, other), python(package, other), "the channels of a case lie on one grid")


def test_an_ending_that_is_not_read(package: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    same(run_cpp(package, tmp_path / "a.txt"), python(package, tmp_path / "a.txt"), "a.txt")
    (tmp_path / "empty").mkdir()
    same(run_cpp(package, tmp_path / "empty"), python(package, tmp_path / "empty"), "no case found")


def test_a_cascade_without_its_first_stage(run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    from segship.manifest import CropToNonzero, PreviousStage, PreviousStageChannels, Resample

    steps = (
        CropToNonzero(fill_holes=True),
        Resample(
            spacing_mm_zyx=(2.0, 1.0, 1.0), shape_rule="round-half-even", method="skimage:edge", order=3, order_z=0,
            separate_z="auto", anisotropy_threshold=3.0,
        ),
        PreviousStageChannels(labels=(1, 2), crop=True),
    )  # fmt: skip
    package = volume_package(
        tmp_path / "second.segship", *steps, planes=3, previous_stage=PreviousStage(file="first.segship"),
        windows=tiling((8, 8, 8), step=(4, 4, 4)),
    ).path  # fmt: skip
    path = write_volume(tmp_path / "a_0000.nii.gz", SHAPE)
    same(run_cpp(package, path), python(package, path), "first.segship")
    (tmp_path / "before").mkdir()
    ran = run_cpp(package, path, prev_stage_predictions=tmp_path / "before")
    assert ran.code == 1
    assert "a.nii.gz" in ran.err
    write_volume(tmp_path / "before" / "a.nii.gz", (5, 5, 5), dtype="u1")
    ran = run_cpp(package, path, prev_stage_predictions=tmp_path / "before")
    assert ran.code == 1
    assert "previous stage" in ran.err
