"""Volumes' files: every reader, direction and number type in, the case's own geometry out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest
from cpp_cases import (
    VOLUME_ARGMAX,
    affine,
    big_endian,
    packed_twice,
    picture,
    tiling,
    values,
    volume_input,
    volume_package,
    write_volume,
)
from cpp_compare import Runner, check_decoded, check_stages

from segship.inference.predictor import Predictor
from segship.manifest import CropToNonzero, Transpose, VolumeInput
from segship.package import Package

READERS = ("nibabel", "nibabel-reorient", "nibabel-stored", "simpleitk", "simpleitk-reorient")
KINDS = ("plain", "oblique", "flipped", "mirrored")


def beside(package: Package, run_cpp: Runner, inputs: list[Path], folder: Path) -> None:
    """Stages, and the label files with every byte of their headers."""
    from segship.cli import run as segship

    found = run_cpp(package, *inputs)
    assert found.code == 0, found.err
    assert segship(["predict", str(package.path), *map(str, inputs), "-o", str(folder), "-q"]) == 0
    with Predictor.open(package) as predictor:
        for path in inputs:
            name = path.name.split(".")[0].removesuffix("_0000")
            try:
                check_stages(found.of(name), predictor.trace(path))
                if package.manifest.input.file_ending == ".nii.gz":  # type: ignore[union-attr]
                    same_file(found.folder / f"{name}.nii.gz", folder / f"{name}.nii.gz")
            except AssertionError as error:
                raise AssertionError(f"{path.name}: {error}") from None


def same_file(found: Path, wanted: Path) -> None:
    ours, theirs = nibabel.load(found), nibabel.load(wanted)
    assert ours.get_data_dtype() == theirs.get_data_dtype()
    assert bytes(ours.header.binaryblock) == bytes(theirs.header.binaryblock)
    check_decoded(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))


@pytest.mark.parametrize("reader", READERS)
def test_every_direction(reader: str, run_cpp: Runner, tmp_path: Path) -> None:
    inputs = [write_volume(tmp_path / "in" / f"{kind}_0000.nii.gz", (13, 16, 11), kind=kind) for kind in KINDS]
    steps = (Transpose(axes=(1, 0, 2)), CropToNonzero(fill_holes=True))
    package = volume_package(tmp_path / "net.segship", *steps, spec=volume_input(reader))
    beside(package, run_cpp, inputs, tmp_path / "py")


@pytest.mark.parametrize("orientation", ["LPS", "RPI", "ASL", "IRP"])
def test_an_orientation_of_the_packages_own(orientation: str, run_cpp: Runner, tmp_path: Path) -> None:
    inputs = [write_volume(tmp_path / "in" / f"{kind}_0000.nii.gz", (13, 16, 11), kind=kind) for kind in KINDS]
    for reader in ("nibabel-stored", "simpleitk"):
        spec = volume_input(reader, orientation=orientation)
        package = volume_package(tmp_path / f"{reader}.segship", spec=spec)
        beside(package, run_cpp, inputs, tmp_path / reader)


@pytest.mark.parametrize("reader", ["nibabel", "simpleitk"])
def test_every_number_type(reader: str, run_cpp: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    inputs = [
        write_volume(folder / f"{dtype}_0000.nii.gz", (12, 14, 10), dtype=dtype, seed=seed)
        for seed, dtype in enumerate(("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"))
    ]
    inputs.append(write_volume(folder / "scaled_0000.nii.gz", (12, 14, 10), slope=(0.731, -3.25)))
    inputs.append(write_volume(folder / "scaledfloat_0000.nii.gz", (12, 14, 10), dtype="f4", slope=(1.5, 2.0)))
    inputs.append(write_volume(folder / "plain_0000.nii", (12, 14, 10)))
    inputs.append(write_volume(folder / "two_0000.nii.gz", (12, 14, 10), version=2))
    inputs.append(big_endian(folder / "other_0000.nii", inputs[2]))
    inputs.append(packed_twice(folder / "twice_0000.nii.gz", inputs[2]))
    inputs.append(write_volume(folder / "metres_0000.nii.gz", (12, 14, 10), zooms=(0.0015, 0.0012, 0.002)))
    image = nibabel.load(inputs[-1])
    image.header.set_xyzt_units("meter", "sec")
    nibabel.save(image, inputs[-1])
    inputs.append(write_volume(folder / "four_0000.nii.gz", (12, 14, 10, 1)))
    if reader == "nibabel":
        inputs.pop()  # three axes alone
    package = volume_package(tmp_path / "net.segship", CropToNonzero(fill_holes=True), spec=volume_input(reader))
    beside(package, run_cpp, inputs, tmp_path / "py")


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (0, 0), (2, 1)])
def test_either_or_no_affine(codes: tuple[int, int], run_cpp: Runner, tmp_path: Path) -> None:
    """qform and sform codes decide which of the header's transforms is the file's place."""
    path = write_volume(tmp_path / "in" / "a_0000.nii.gz", (12, 14, 10))
    image = nibabel.load(path)
    image.header.set_qform(affine("oblique"), code=codes[0])
    image.header.set_sform(affine("mirrored"), code=codes[1])
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    for reader in READERS:
        package = volume_package(tmp_path / f"{reader}.segship", spec=volume_input(reader))
        beside(package, run_cpp, [path], tmp_path / reader)


def test_all_channels_in_one_file(run_cpp: Runner, tmp_path: Path) -> None:
    path = write_volume(tmp_path / "in" / "both.nii.gz", (13, 14, 11, 2))
    spec = volume_input("simpleitk", channels=2, channel_files="one-file")
    package = volume_package(tmp_path / "net.segship", spec=spec)
    beside(package, run_cpp, [path], tmp_path / "py")


def test_a_flat_file_is_one_slice(run_cpp: Runner, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "flat_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values((40, 31)).astype(np.int16), affine()), path)
    package = volume_package(
        tmp_path / "net.segship", spec=volume_input("simpleitk"), windows=tiling((12, 16), mirror_axes=(0, 1))
    )
    beside(package, run_cpp, [path], tmp_path / "py")


def test_a_case_that_is_a_folder(run_cpp: Runner, tmp_path: Path) -> None:
    for number in range(2):
        write_volume(tmp_path / "in" / f"case_{number:05d}" / "imaging.nii.gz", (13, 14, 11), seed=number)
    spec = volume_input("nibabel-stored", channel_files="one-file", folder_file="imaging.nii.gz")
    package = volume_package(tmp_path / "net.segship", spec=spec)
    found = run_cpp(package, tmp_path / "in")
    assert found.code == 0, found.err
    assert sorted(path.name for path in found.folder.glob("*.nii.gz")) == ["case_00000.nii.gz", "case_00001.nii.gz"]
    with Predictor.open(package) as predictor:
        for name in ("case_00000", "case_00001"):
            check_stages(found.of(name), predictor.trace(tmp_path / "in" / name / "imaging.nii.gz"))


def test_arrays_that_were_prepared_before(run_cpp: Runner, tmp_path: Path) -> None:
    np.save(tmp_path / "case_00000_x.npy", values((12, 20, 16), 2)[None] / 150)
    spec = volume_input("nibabel-stored", channel_files="one-file")
    package = volume_package(tmp_path / "net.segship", CropToNonzero(fill_holes=True), spec=spec)
    found = run_cpp(package, tmp_path / "case_00000_x.npy")
    assert found.code == 0, found.err
    with Predictor.open(package) as predictor:
        wanted = predictor.trace(tmp_path / "case_00000_x.npy")
    check_stages(next(iter(found.stages.values())), wanted)


def picture_input(channels: int) -> VolumeInput:
    return volume_input("image-2d", channels=channels, file_ending=".png", channel_files="one-file")


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_as_slices(channels: int, run_cpp: Runner, tmp_path: Path) -> None:
    """nnU-Net's natural images: PNG in, PNG of labels out; bit depth kept, EXIF ignored."""
    pixels = picture(50, 37, 1, channels)
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a_0000.png"), pixels)
    cv2.imwrite(str(tmp_path / "in" / "wide_0000.png"), pixels.astype(np.uint16))
    inputs = [tmp_path / "in" / "a_0000.png", tmp_path / "in" / "wide_0000.png"]
    spec = picture_input(channels)
    package = volume_package(
        tmp_path / "net.segship", spec=spec, windows=tiling((16, 24), mirror_axes=(0, 1)), decode=VOLUME_ARGMAX
    )
    beside(package, run_cpp, inputs, tmp_path / "py")
    found = run_cpp(package, *inputs)
    for name in ("a", "wide"):
        written = cv2.imread(str(found.folder / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        check_decoded(np.asarray(written), cv2.imread(str(tmp_path / "py" / f"{name}.png"), cv2.IMREAD_UNCHANGED))
        assert written.shape == (50, 37)


@pytest.mark.parametrize("beside_it", [True, False])
def test_tiffs_of_three_axes(beside_it: bool, run_cpp: Runner, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    (tmp_path / "in").mkdir()
    tifffile.imwrite(
        tmp_path / "in" / "a_0000.tif", values((11, 20, 17), 1).astype(np.uint16), photometric="minisblack"
    )
    if beside_it:
        (tmp_path / "in" / "a.json").write_text(json.dumps({"spacing": [3.0, 1.0, 1.25]}))
    spec: dict[str, Any] = {"file_ending": ".tif", "channel_files": "suffix-0000"}
    package = volume_package(tmp_path / "net.segship", spec=volume_input("tiff-3d", **spec))
    found = run_cpp(package, tmp_path / "in" / "a_0000.tif")
    assert found.code == 0, found.err
    with Predictor.open(package) as predictor:
        check_stages(found.of("a"), predictor.trace(tmp_path / "in" / "a_0000.tif"))
    written = tifffile.imread(found.folder / "a.tif")
    assert written.shape == (11, 20, 17)
    spacing = json.loads((found.folder / "a.json").read_text())["spacing"]
    assert spacing == ([3.0, 1.0, 1.25] if beside_it else [1.0, 1.0, 1.0])
