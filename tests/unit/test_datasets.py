"""Opening data sets: layouts are recognised, masks mean what they say, contradictions are refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from segship.datasets import divide_by_pixels, open_dataset, recognise_layout
from segship.datasets.cases import MaskCache
from segship.datasets.folders import open_folders
from segship.errors import DatasetError, UsageError


def png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def square(value: int = 255, size: int = 20) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[5:12, 3:10] = value
    return mask


def picture(seed: int, size: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)


@pytest.fixture
def paired(tmp_path: Path) -> Path:
    root = tmp_path / "cells"
    for i in range(4):
        png(root / "images" / f"c{i}{['.png', '.jpg', '.tif', '.bmp'][i]}", picture(i))
        png(root / "masks" / f"c{i}.png", square())
    return root


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    for i in range(6):
        png(root / f"id{i}" / "images" / f"id{i}.png", picture(i))
        png(root / f"id{i}" / "masks" / "a.png", square())
        second = np.zeros((20, 20), np.uint8)
        second[15:18, 15:18] = 255
        png(root / f"id{i}" / "masks" / "b.png", second)
    return root


def test_paired_folders(paired: Path) -> None:
    dataset = open_dataset(paired)
    assert (dataset.layout, dataset.name, dataset.ids) == ("folders", "cells", ["c0", "c1", "c2", "c3"])
    case = dataset.cases[0]
    assert case.read_image() == paired / "images" / "c0.png"
    target = case.target()
    assert target.shape == (1, 20, 20)
    assert target.dtype == np.bool_
    assert target.sum() == 49
    network = case.target_network(16, 16)
    assert (network.shape, network.dtype) == ((1, 16, 16), np.uint8)
    assert set(np.unique(network)) - {0, 255}, "a reduced mask is soft at its borders"
    assert dataset.notes == ()


def test_raw_folder_and_zip_are_equal(raw: Path, tmp_path: Path) -> None:
    archive = tmp_path / "raw.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(raw.rglob("*.png")):
            file.write(path, path.relative_to(raw))
    folder, zipped = open_dataset(raw), open_dataset(archive)
    assert folder.layout == zipped.layout == "dsb2018"
    assert folder.sha256 == zipped.sha256
    assert zipped.cases[0].target().sum() == 49 + 9
    assert isinstance(zipped.cases[0].read_image(), bytes)
    assert isinstance(folder.cases[0].read_image(), Path)


def test_network_target_of_raw_equals_the_preparation(raw: Path) -> None:
    from segship.datasets import dsb2018

    case = open_dataset(raw).cases[0]
    expected = dsb2018.prepared_masks(dsb2018.open_dataset(raw).cases[0], (16, 16))
    np.testing.assert_array_equal(case.target_network(16, 16), expected)


def test_prepared_layout_keeps_soft_masks(tmp_path: Path) -> None:
    soft = square()
    soft[0, :4] = (0, 127, 128, 200)
    png(tmp_path / "images/a.png", picture(0))
    png(tmp_path / "masks/0/a.png", soft)
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "prepared"
    np.testing.assert_array_equal(dataset.cases[0].target_network(20, 20)[0], soft)
    assert dataset.cases[0].target()[0, 0, :4].tolist() == [False, False, True, True]


def test_prepared_refuses_zero_one_masks(tmp_path: Path) -> None:
    png(tmp_path / "images/a.png", picture(0))
    png(tmp_path / "masks/0/a.png", square(1))
    with pytest.raises(DatasetError, match="only 0 and 1"):
        open_dataset(tmp_path).cases[0].target()


def test_paired_zero_one_masks_are_taken_and_said(paired: Path) -> None:
    for i in range(4):
        png(paired / "masks" / f"c{i}.png", square(1))
    dataset = open_dataset(paired)
    assert dataset.cases[2].target().sum() == 49
    assert "0 and 1" in dataset.notes[0]


def test_paired_mixture_of_mask_kinds_is_refused(paired: Path) -> None:
    png(paired / "masks" / "c3.png", square(1))
    dataset = open_dataset(paired)
    with pytest.raises(DatasetError, match=r"c3\.png holds only 0 and 1"):
        dataset.cases[3].target()


def test_paired_label_ids(paired: Path) -> None:
    for i in range(4):
        mask = square(1)
        mask[15:17, 15:17] = 3
        png(paired / "masks" / f"c{i}.png", mask)
    dataset = open_dataset(paired)
    assert dataset.cases[0].target().sum(axis=(1, 2)).tolist() == [49, 0, 4]
    assert "classes 1 to 3" in dataset.notes[0]
    fewer = open_dataset(paired, num_classes=2)
    with pytest.raises(DatasetError, match="holds label 3, but there are 2 classes"):
        fewer.cases[0].target()


def test_paired_class_folders(paired: Path) -> None:
    for i in range(4):
        (paired / "masks" / f"c{i}.png").unlink()
        png(paired / "masks" / "nucleus" / f"c{i}.png", square())
        png(paired / "masks" / "body" / f"c{i}.png", np.full((20, 20), 255, np.uint8))
    dataset = open_dataset(paired)
    assert dataset.layout == "folders"
    # class folders in the order of their names
    assert dataset.cases[0].target().sum(axis=(1, 2)).tolist() == [400, 49]


def test_paired_problems_are_named(paired: Path) -> None:
    (paired / "masks" / "c2.png").unlink()
    with pytest.raises(DatasetError, match=r"images without a mask in .*masks: 1 \(c2\)"):
        open_dataset(paired)
    png(paired / "masks" / "c2.png", square())
    png(paired / "images" / "c2.png", picture(9))
    with pytest.raises(DatasetError, match="have one name"):
        open_dataset(paired)
    (paired / "images" / "c2.png").unlink()
    png(paired / "masks" / "extra.png", square())
    assert "without an image, not used: 1 (extra)" in open_dataset(paired).notes[0]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.stack([square(), square(9), square(200)], axis=-1), "in colour"),
        (np.full((20, 20), 60000, np.uint16), "60000"),
    ],
)
def test_masks_of_no_meaning(paired: Path, mask: np.ndarray, message: str) -> None:
    png(paired / "masks" / "c0.png", mask)
    with pytest.raises(DatasetError, match=message):
        open_dataset(paired)


def test_damaged_mask_and_image(paired: Path) -> None:
    (paired / "masks" / "c0.png").write_bytes(b"not a picture")
    with pytest.raises(DatasetError, match=r"c0\.png is no image"):
        open_dataset(paired)
    png(paired / "masks" / "c0.png", square())
    (paired / "images" / "c0.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="image c0 is no picture"):
        open_dataset(paired).cases[0].pixel_hash()
    assert open_dataset(paired).sha256, "a damaged picture is part of the data set's identity all the same"


def test_recognition(tmp_path: Path, raw: Path, paired: Path) -> None:
    assert recognise_layout(raw) == "dsb2018"
    assert recognise_layout(paired) == "folders"
    with pytest.raises(DatasetError, match="there is no data set at"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="looked for"):
        open_dataset(tmp_path / "empty")
    with pytest.raises(UsageError, match="dsb2018, prepared, folders"):
        open_dataset(raw, layout="pascal")
    with pytest.raises(DatasetError, match="has the layout 'dsb2018', not 'prepared'"):
        open_dataset(raw, layout="prepared")


def test_split_parts_and_exclusion(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("id3\nid1\n\nother\n")
    validation = open_dataset(raw, split=tmp_path / "ids.txt")
    assert validation.ids == ["id3", "id1"], "validation order is the list's order"
    assert validation.split == "ids.txt"
    assert "absent from the data set: 1 of" in validation.notes[0]
    training = open_dataset(raw, split=tmp_path / "ids.txt", part="training")
    assert training.ids == ["id0", "id2", "id4", "id5"]
    default = open_dataset(raw, split="default")
    assert len(default.cases) == 2
    assert not set(default.ids) & set(open_dataset(raw, split="default", part="training").ids)
    assert open_dataset(raw, exclude=["id0"]).ids == ["id1", "id2", "id3", "id4", "id5"]
    with pytest.raises(DatasetError, match="no case"):
        open_dataset(raw, exclude=[f"id{i}" for i in range(6)])
    with pytest.raises(DatasetError, match="has no case id9"):
        open_dataset(raw).select(["id9"])


def test_hash_follows_content_not_names_of_folders(paired: Path, tmp_path: Path) -> None:
    before = open_dataset(paired).sha256
    moved = paired.rename(tmp_path / "elsewhere")
    assert open_dataset(moved).sha256 == before
    png(moved / "masks" / "c1.png", square(255, 20).T.copy())
    assert open_dataset(moved).sha256 != before


def test_divide_by_pixels_keeps_copies_together(tmp_path: Path) -> None:
    for i in range(24):
        png(tmp_path / "images" / f"{i:02}.png", picture(i))
        png(tmp_path / "images" / f"{i:02}-copy.tif", picture(i))
        for stem in (f"{i:02}", f"{i:02}-copy"):
            png(tmp_path / "masks" / f"{stem}.png", square())
    dataset = open_folders(tmp_path)
    calibration, evaluation = divide_by_pixels(dataset, 0.3)
    assert sorted(calibration.ids + evaluation.ids) == dataset.ids
    assert {c.pixel_hash() for c in calibration.cases}.isdisjoint(c.pixel_hash() for c in evaluation.cases)
    assert 0 < len(evaluation.cases) < len(calibration.cases)
    # a picture stays on its side in any other set
    half = dataset.select(dataset.ids[:24])
    assert set(divide_by_pixels(half, 0.3)[1].ids) == set(evaluation.ids) & set(half.ids)
    with pytest.raises(DatasetError, match="cannot be divided"):
        divide_by_pixels(dataset.select(["00", "00-copy"]))


def test_mask_cache_is_bounded() -> None:
    cache = MaskCache(limit_bytes=100)
    reads = []

    def read(key: str) -> np.ndarray:
        reads.append(key)
        return np.arange(400).reshape(1, 20, 20) % 3 == 0

    first = cache.get("a", lambda: read("a"))
    np.testing.assert_array_equal(cache.get("a", lambda: read("a")), first)
    for key in "bca":
        cache.get(key, lambda key=key: read(key))
    assert reads == ["a", "b", "c", "a"]


def test_dsb2018_archive(shared: Path) -> None:
    facts = json.loads((shared / "reference/dsb2018_splits.json").read_text())
    dataset = open_dataset(shared / "data/dsb2018/stage1_train.zip", split="default")
    assert dataset.name == "DSB2018 stage1_train"
    assert len(dataset.cases) == 133
    assert dataset.split_sha256 == "be1f24c14db340c500b66190c7e4a12e67d0a4003a81a57f5f033c335649f5df"
    assert facts
    ascend = open_dataset(shared / "data/dsb2018/stage1_train.zip", split="ascend")
    assert len(ascend.cases) == 133
    assert "74a77855" in ascend.notes[0]
    reference = json.loads((shared / "reference/dsb2018_pipeline.json").read_text())
    stored = np.load(shared / "reference/dsb2018_pipeline.npz")["mask"]
    everything = open_dataset(shared / "data/dsb2018/stage1_train.zip")
    for case, mask in zip(everything.select(reference["ids"]).cases, stored, strict=True):
        assert np.abs(case.target_network(96, 96)[0].astype(int) - mask).max() <= 1
