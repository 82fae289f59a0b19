"""Salient-object layouts: found under the names that the field uses, paired by stem, nothing left alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from segship.datasets import is_sod, open_dataset, recognise_layout
from segship.datasets.sod import open_sod_masks
from segship.errors import DatasetError

NAMES = ("ant", "bee.small", "cat")


def picture(seed: int, shape: tuple[int, ...] = (20, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def mask(seed: int) -> np.ndarray:
    """Soft at its edge: 0, 100, 128, 129, 255."""
    made = np.zeros((20, 30), np.uint8)
    made[5:15, 4 + seed : 14 + seed] = 255
    made[4, 4:8], made[15, 4:8], made[16, 4:8] = 100, 128, 129
    return made


def paired(root: Path, images: str, masks: str, image_type: str = ".jpg") -> Path:
    for seed, name in enumerate(NAMES):
        write(root / images / f"{name}{image_type}", picture(seed, (20, 30, 3)))
        write(root / masks / f"{name}.png", mask(seed))
    return root


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("Image", "Mask"),  # MSRA10K, THUR
        ("images", "ground_truth_mask"),  # ECSSD
        ("DUTS-TE-Image", "DUTS-TE-Mask"),  # DUTS
        ("DUTS-OMRON-image", "pixelwiseGT new-mask"),  # one of each kind, whatever they are called
        ("imgs", "gt"),  # HKU-IS
        ("im", "gt"),
        ("im_aug", "gt_aug"),
        ("JPEGImages", "GroundTruth"),
        (".", "."),  # MSRA-B: .jpg beside .png
    ],
)
def test_layouts_of_the_field(tmp_path: Path, images: str, masks: str) -> None:
    root = paired(tmp_path / "set", images, masks)
    assert is_sod(root)
    assert recognise_layout(root) == "sod"
    found = open_dataset(root)
    assert found.layout == "sod"
    assert found.ids == sorted(NAMES)
    for seed, case in enumerate(found.cases):
        assert case.read_image() == root / images / f"{NAMES[seed]}.jpg"
        np.testing.assert_array_equal(case.target_grey(), mask(seed)[None])
        np.testing.assert_array_equal(case.target(), mask(seed)[None] > 128)
        assert case.target_network(10, 15).shape == (1, 10, 15)


def test_own_folders_keep_their_layout_and_their_greys(tmp_path: Path) -> None:
    root = paired(tmp_path / "set", "images", "masks", ".png")
    assert recognise_layout(root) == "folders"
    np.testing.assert_array_equal(open_dataset(root).cases[0].target_grey(), mask(0)[None])
    assert open_dataset(root, "sod").layout == "sod"


def test_greys_are_part_of_the_content_hash(tmp_path: Path) -> None:
    root = paired(tmp_path / "set", "Image", "Mask")
    before = open_dataset(root)
    hash_before, masks_before = before.sha256, before.cases[0].target()
    changed = mask(0)
    changed[4, 4:8] = 101  # as much background as before
    write(root / "Mask" / "ant.png", changed)
    after = open_dataset(root)
    np.testing.assert_array_equal(masks_before, after.cases[0].target())
    assert hash_before != after.sha256


def test_files_that_stand_alone_are_named(tmp_path: Path) -> None:
    for root in (paired(tmp_path / "folders", "Image", "Mask"), paired(tmp_path / "flat", ".", ".")):
        image = next(root.rglob("cat.jpg"))
        write(image.with_name("dog.jpg"), picture(9, (20, 30, 3)))
        with pytest.raises(DatasetError, match=r"images without a mask in .*: 1 \(dog\)"):
            open_dataset(root)
        image.with_name("dog.jpg").unlink()
        image.unlink()
        with pytest.raises(DatasetError, match=r"masks without an image in .*: 1 \(cat\)"):
            open_dataset(root)


def test_folders_that_say_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="is no data set that segship reads"):
        open_dataset(tmp_path / "empty")
    with pytest.raises(DatasetError, match="holds no photos with masks; expected Image/"):
        open_dataset(tmp_path / "empty", "sod")
    (tmp_path / "bare" / "Image").mkdir(parents=True)
    (tmp_path / "bare" / "Mask").mkdir()
    with pytest.raises(DatasetError, match="holds no image; expected Image/"):
        open_dataset(tmp_path / "bare")
    root = paired(paired(tmp_path / "both", "DUTS-TE-Image", "DUTS-TE-Mask"), "DUTS-TR-Image", "DUTS-TR-Mask")
    with pytest.raises(DatasetError, match=r"holds 2 pairs \(DUTS-TE-Image \+ DUTS-TE-Mask; DUTS-TR-Image"):
        open_dataset(root)
    write(tmp_path / "pngs" / "a.png", mask(0))
    with pytest.raises(DatasetError, match="is no data set"):
        open_dataset(tmp_path / "pngs")
    with pytest.raises(DatasetError, match="holds no mask"):
        open_sod_masks(tmp_path / "empty")


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    root = paired(tmp_path / "set", "Image", "Mask")
    write(root / "Image" / "ant.png", picture(1))
    with pytest.raises(DatasetError, match="have one name"):
        open_dataset(root)


def test_hidden_files_and_other_types_do_not_count(tmp_path: Path) -> None:
    root = paired(tmp_path / "set", "Image", "Mask")
    (root / "Image" / "._ant.jpg").write_bytes(b"resource fork")
    (root / "Image" / "Thumbs.db").write_bytes(b"x")
    (root / "Mask" / "readme.txt").write_text("x")
    assert open_dataset(root).ids == sorted(NAMES)


def test_masks_of_0_and_1_are_taken_and_said(tmp_path: Path) -> None:
    root = paired(tmp_path / "set", "Image", "Mask")
    for name in NAMES:
        write(root / "Mask" / f"{name}.png", (mask(0) > 128).astype(np.uint8))
    found = open_dataset(root)
    assert "0 and 1" in found.notes[0]
    assert set(np.unique(found.cases[0].target_grey())) == {0, 255}
    write(root / "Mask" / "ant.png", mask(0))
    with pytest.raises(DatasetError, match=r"holds only 0 and 1, but masks are 0\.\.255 here"):
        open_dataset(root).cases[1].target_grey()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (picture(3, (20, 30, 3)), "is in colour; store it as a grey PNG"),
        (mask(0).astype(np.uint16) * 257, "has 16 bits a pixel; store it as an 8-bit grey PNG"),
    ],
)
def test_masks_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    root = paired(tmp_path / "set", "Image", "Mask")
    write(root / "Mask" / "ant.png", array)
    with pytest.raises(DatasetError, match=message):
        open_dataset(root).cases[0].target_grey()


def test_three_equal_planes_are_a_grey_mask(tmp_path: Path) -> None:
    root = paired(tmp_path / "set", "Image", "Mask")
    write(root / "Mask" / "ant.png", np.dstack([mask(0)] * 3))
    np.testing.assert_array_equal(open_dataset(root).cases[0].target_grey()[0], mask(0))


def test_a_list_of_ids_is_a_split(tmp_path: Path) -> None:
    root = paired(tmp_path / "set", "Image", "Mask")
    (tmp_path / "val.txt").write_text("bee.small\n")
    assert open_dataset(root, split=tmp_path / "val.txt").ids == ["bee.small"]
    assert open_dataset(root, split=tmp_path / "val.txt", part="training").ids == ["ant", "cat"]
    assert open_sod_masks(root / "Mask", tmp_path / "val.txt").ids == ["bee.small"]
