"""Calibration pictures: every source, the package's own preprocessing, and no overlap with the evaluation."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from packages import manifest_data

from segship.convert.calibration import load_calibration, without_overlap
from segship.datasets import open_dataset
from segship.errors import DatasetError, InputError, UsageError
from segship.inference.images import read_image
from segship.inference.preprocess import prepare
from segship.manifest import Manifest, Recipe


@pytest.fixture
def recipe() -> Recipe:
    return Manifest.model_validate(manifest_data()).recipe


def picture(seed: int, height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "training" / "deeper").mkdir(parents=True)
    for index in range(5):
        name = "deeper/4.bmp" if index == 4 else f"{index}.png"
        cv2.imwrite(str(tmp_path / "training" / name), picture(index))
    (tmp_path / "training" / "notes.txt").write_text("not a picture")
    return tmp_path / "training"


def test_a_folder_is_searched_and_prepared_as_prediction_does(folder: Path, recipe: Recipe) -> None:
    found = load_calibration(folder, recipe)
    assert found.names == ("0.png", "1.png", "2.png", "3.png", "4.bmp")
    assert found.inputs.shape == (5, 3, 32, 32)
    assert found.inputs.dtype == np.float32
    assert recipe.input.kind == "image"
    assert np.array_equal(found.inputs[4], prepare(read_image(folder / "deeper/4.bmp", recipe.input), recipe).x)
    assert any("fewer than 64" in warning for warning in found.warnings)
    record = found.record()
    assert (record["images"], record["available"], len(record["pixel_sha256"])) == (5, 5, 5)
    # the identity is of the set, not of its order or names
    assert record["sha256"] == load_calibration(folder, recipe).sha256


def test_a_list_is_relative_to_its_folder(folder: Path, recipe: Recipe) -> None:
    listing = folder / "list.txt"
    listing.write_text(f"# training\n2.png\n\n  deeper/4.bmp  \n{folder / '0.png'}\n")
    assert load_calibration(listing, recipe).names == ("2.png", "4.bmp", "0.png")
    listing.write_text("none.png\n")
    with pytest.raises(UsageError, match=r"none\.png, which is not there"):
        load_calibration(listing, recipe)
    listing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="list of pictures"):
        load_calibration(listing, recipe)
    listing.write_text("# nothing\n")
    with pytest.raises(UsageError, match="no picture"):
        load_calibration(listing, recipe)


def test_arrays_are_decoded_pictures(tmp_path: Path, folder: Path, recipe: Recipe) -> None:
    stack = np.stack([picture(index) for index in range(3)])
    np.savez(tmp_path / "a.npz", stack=stack, one=picture(7, 20, 20))
    found = load_calibration(tmp_path / "a.npz", recipe, array_order="bgr")
    assert found.names == ("stack[0]", "stack[1]", "stack[2]", "one")
    # what OpenCV wrote as a file is the same picture, whatever its container
    assert found.pixel_sha256[:3] == load_calibration(folder, recipe).pixel_sha256[:3]
    assert load_calibration(tmp_path / "a.npz", recipe).pixel_sha256 != found.pixel_sha256
    np.savez(tmp_path / "b.npz", x=stack.astype(np.float32))
    with pytest.raises(UsageError, match="float32; give decoded pictures"):
        load_calibration(tmp_path / "b.npz", recipe)
    np.savez(tmp_path / "c.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UsageError, match="cannot be read as arrays"):
        load_calibration(tmp_path / "c.npz", recipe)
    np.savez(tmp_path / "d.npz", x=np.zeros((1, 2, 3, 4, 5), np.uint8))
    with pytest.raises(UsageError, match="shape"):
        load_calibration(tmp_path / "d.npz", recipe)


def test_one_picture_and_a_subset(folder: Path, recipe: Recipe) -> None:
    assert load_calibration(folder / "0.png", recipe).names == ("0.png",)
    assert load_calibration(folder, recipe, subset=3).names == ("0.png", "2.png", "4.bmp")
    assert load_calibration(folder, recipe, subset=3).available == 5
    with pytest.raises(UsageError, match="at least 1"):
        load_calibration(folder, recipe, subset=0)


def test_bad_sources(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="no calibration data"):
        load_calibration(tmp_path / "none", recipe)
    with pytest.raises(UsageError, match="holds no image"):
        load_calibration(tmp_path, recipe)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"a\.png"):
        load_calibration(tmp_path, recipe)
    with pytest.raises(UsageError, match="plain folder"):
        load_calibration(tmp_path, recipe, split="default")


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for index in (3, 8, 9):
        cv2.imwrite(str(tmp_path / "data/images" / f"case{index}.png"), picture(index))
        cv2.imwrite(str(tmp_path / "data/masks" / f"case{index}.png"), np.uint8(255) * (picture(index)[..., 0] > 99))
    return tmp_path / "data"


def test_a_data_sets_masks_are_not_calibrated_on(paired: Path, recipe: Recipe) -> None:
    assert load_calibration(paired, recipe).names == ("case3", "case8", "case9")


def test_pictures_of_the_evaluation_are_refused_under_any_name_and_size(
    folder: Path, paired: Path, recipe: Recipe
) -> None:
    dataset = open_dataset(paired)
    calibration = load_calibration(folder, recipe)
    with pytest.raises(DatasetError, match=r"1 calibration picture.*3\.png"):
        without_overlap(calibration, dataset, recipe, drop=False)
    left = without_overlap(calibration, dataset, recipe, drop=True)
    assert left.names == ("0.png", "1.png", "2.png", "4.bmp")
    assert len(left.inputs) == len(left.pixel_sha256) == len(left.input_sha256) == 4
    assert any("left out 1" in warning for warning in left.warnings)
    assert without_overlap(calibration, None, recipe, drop=False) is calibration
    # a case of the evaluation itself is no copy: the wrong split was named
    with pytest.raises(DatasetError, match=r"3 calibration pictures are evaluation cases.*--calibrate-split"):
        without_overlap(load_calibration(paired, recipe), dataset, recipe, drop=True)
    # a copy that was already brought to the network's size
    small = folder.parent / "small"
    small.mkdir()
    cv2.imwrite(str(small / "x.png"), cv2.resize(picture(8), (32, 32), interpolation=cv2.INTER_LINEAR))
    with pytest.raises(DatasetError, match=r"x\.png"):
        without_overlap(load_calibration(small, recipe), dataset, recipe, drop=True)


def test_copies_are_warned_of(folder: Path, recipe: Recipe) -> None:
    cv2.imwrite(str(folder / "copy.png"), picture(0))
    assert any("copies" in warning for warning in load_calibration(folder, recipe).warnings)
