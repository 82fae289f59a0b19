"""Cityscapes and mmseg's folders: what is found, mapped, refused, prepared."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_labels import LABELS, TRAIN, VAL, cityscapes_tree, label_ids, scene

from segship.cli import cli
from segship.datasets import FolderOptions, default_split, open_dataset, recognise_layout
from segship.datasets.cityscapes import base_name, is_val, train_ids_of
from segship.datasets.cityscapes_labels import CLASSES, NAMES, cityscapes_labels, to_train_ids
from segship.datasets.cityscapes_prepare import prepare
from segship.datasets.label_png import from_colors, read_label_png, read_numbers
from segship.datasets.label_rules import LabelRules, parse_label_map
from segship.errors import DatasetError, DatasetMissing, UsageError


def test_the_table_of_classes() -> None:
    table = to_train_ids()
    assert [table[number] for number, _, _ in CLASSES] == list(range(19))
    assert (table != 255).sum() == 19
    assert NAMES[11] == "person"
    assert cityscapes_labels()[13].file_value == 26
    assert len({color for _, _, color in CLASSES}) == 19


def test_val_is_taken_sorted_by_path(tmp_path: Path) -> None:
    root = cityscapes_tree(tmp_path / "cs")
    assert recognise_layout(root) == "cityscapes"
    data = open_dataset(root)
    assert (data.ids, data.split, data.layout) == (list(VAL), "val", "cityscapes")
    assert is_val(data)
    assert data.notes == ("4 of the 500 pictures of Cityscapes val are here",)
    np.testing.assert_array_equal(data.cases[1].read_labels().labels[0], scene(1, 52, 96)[1])
    assert data.cases[0].target().shape == (19, 48, 96)
    assert open_dataset(root, split="train").ids == list(TRAIN)
    assert open_dataset(root, split="trainval").ids == [*TRAIN, *VAL]
    assert open_dataset(root, split="val", part="training").ids == list(TRAIN)
    assert default_split(root, "cityscapes") == "val"
    assert len(data.sha256) == 64
    picked = tmp_path / "ids.txt"
    picked.write_text(f"{VAL[2]}\n{TRAIN[0]}\n")
    assert open_dataset(root, split=picked).ids == [VAL[2], TRAIN[0]]


def test_label_ids_are_mapped_where_train_ids_lack(tmp_path: Path) -> None:
    root = cityscapes_tree(tmp_path / "cs", train_ids=False, ids=True)
    for case, seed in zip(open_dataset(root).cases, range(4), strict=True):
        np.testing.assert_array_equal(case.read_labels().labels[0], scene(seed, 48 + 4 * (seed % 2), 96)[1])


def test_what_cityscapes_lacks_is_said(tmp_path: Path) -> None:
    root = cityscapes_tree(tmp_path / "cs")
    with pytest.raises(UsageError, match="has the splits train, val, test, trainval, not 'valid'"):
        open_dataset(root, "cityscapes", "valid").cases[0]
    with pytest.raises(DatasetError, match="labels of Cityscapes' test pictures are not published"):
        open_dataset(root, split="test").cases[0].read_labels()
    (root / "gtFine" / "val" / "lindau" / f"{VAL[2]}_gtFine_labelTrainIds.png").unlink()
    with pytest.raises(DatasetError, match=rf"1 of 4 pictures have no label file \({VAL[2]}\)"):
        open_dataset(root)
    for path in (root / "leftImg8bit" / "val").rglob("*.png"):
        path.unlink()
    with pytest.raises(DatasetError, match="no pictures of split val \\(there are: train, test\\)"):
        open_dataset(root)
    with pytest.raises(DatasetError, match="holds no leftImg8bit/ beside gtFine/"):
        open_dataset(tmp_path, "cityscapes")


def test_label_ids_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a_gtFine_labelIds.png"
    cv2.imwrite(str(path), np.full((4, 4), 90, np.uint8))
    with pytest.raises(DatasetError, match="holds the label id 90"):
        train_ids_of(path)


def test_names() -> None:
    for end in ("_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png", ".png"):
        assert base_name(f"a_000000_000019{end}") == "a_000000_000019"


# ---------------------------------------------------------------------------------------------- label files


def test_numbers_are_read_as_stored(tmp_path: Path) -> None:
    numbers = np.arange(12, dtype=np.uint8).reshape(3, 4)
    indexed = Image.fromarray(numbers)
    indexed.putpalette(list(range(36)))
    indexed.save(tmp_path / "p.png")
    Image.fromarray(numbers).save(tmp_path / "l.png")
    Image.fromarray(numbers.astype(np.uint16) * 1000).save(tmp_path / "i.png")
    Image.fromarray(np.repeat(numbers[..., None], 3, axis=2)).save(tmp_path / "rgb.png")
    for name in ("p", "l", "rgb"):
        np.testing.assert_array_equal(read_numbers(tmp_path / f"{name}.png"), numbers)
    np.testing.assert_array_equal(read_numbers(tmp_path / "i.png"), numbers.astype(np.uint16) * 1000)
    palette = read_label_png(tmp_path / "p.png").palette
    assert palette is not None
    assert palette[3].tolist() == [9, 10, 11]
    Image.fromarray(np.zeros((2, 2, 3), np.uint8) + np.uint8([1, 2, 3])).save(tmp_path / "c.png")
    with pytest.raises(DatasetError, match="holds colours, not numbers"):
        read_numbers(tmp_path / "c.png")
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_numbers(tmp_path / "x.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "l.png").read_bytes()[:40])
    with pytest.raises(DatasetError, match="cannot be read"):
        read_numbers(tmp_path / "cut.png")


def test_colours_become_classes(tmp_path: Path) -> None:
    rgb = np.array([[LABELS[3].color, LABELS[18].color, (0, 0, 0)]], np.uint8)
    colors = {label.color: label.id for label in LABELS}
    np.testing.assert_array_equal(from_colors(rgb, colors, tmp_path, 255), [[3, 18, 255]])
    with pytest.raises(DatasetError, match=r"holds the colour \(1, 2, 3\)"):
        from_colors(np.array([[[1, 2, 3]]], np.uint8), colors, tmp_path, 255)


def test_rules_of_label_maps() -> None:
    values = np.array([0, 1, 2, 7, 255], np.uint8)
    assert LabelRules().apply(values) is values
    assert LabelRules(reduce_zero_label=True).apply(values).tolist() == [255, 0, 1, 6, 255]
    swapped = LabelRules(label_map={1: 2, 2: 1, 7: 255})
    assert swapped.apply(values).tolist() == [0, 2, 1, 255, 255]
    assert LabelRules(label_map={1: 5}, reduce_zero_label=True).apply(values).tolist() == [255, 0, 5, 6, 255]
    assert LabelRules(label_map={0: 1000}).apply(values).tolist() == [1000, 1, 2, 7, 255]
    behind = LabelRules(label_map={1: 5, 6: 255}, reduce_zero_label=True).apply(values)
    before = LabelRules(label_map={1: 5, 6: 255}).before(LabelRules(reduce_zero_label=True)).apply(values)
    assert LabelRules(reduce_zero_label=True).apply(before).tolist() == behind.tolist()
    packages = LabelRules(label_map={0: 1, 1: 255, 2: 0})
    given = LabelRules(label_map={7: 0, 2: 1, 0: 255, 1: 2})
    assert packages.apply(given.before(packages).apply(values)).tolist() == [255, 65535, 1, 0, 255]
    assert parse_label_map("0:255, 7:0") == {0: 255, 7: 0}
    assert parse_label_map("255,0,1") == {0: 255, 1: 0, 2: 1}
    for text in ("1:2:x", "a:b", "", "1:2,1:3", "1:2,3"):
        with pytest.raises(UsageError, match="a label map is written"):
            parse_label_map(text)
    with pytest.raises(UsageError, match="numbers from 0 to 65535"):
        LabelRules(label_map={0: -1})


# ------------------------------------------------------------------------------------------------- folders


def folders(root: Path, images: str, labels: str, suffix: str = ".jpg", end: str = ".png") -> Path:
    for place, name in enumerate(("b", "a", "sub/c")):
        picture, truth = scene(place, 20, 30)
        for folder in (root / images / name, root / labels / name):
            folder.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / images / f"{name}{suffix}"), picture)
        cv2.imwrite(str(root / labels / f"{name}{end}"), truth)
    return root


def test_mmseg_folders(tmp_path: Path) -> None:
    root = folders(tmp_path / "one", "img_dir/val", "ann_dir/val")
    folders(root, "img_dir/train", "ann_dir/train")
    assert recognise_layout(root) == "mmseg"
    data = open_dataset(root)
    assert (data.ids, data.split) == (["a", "b", "sub/c"], "val")
    assert open_dataset(root, split="val", part="training").split == "train"
    np.testing.assert_array_equal(data.cases[0].read_labels().labels[0], scene(1, 20, 30)[1])
    reduced = open_dataset(root, folders=FolderOptions(rules=LabelRules(reduce_zero_label=True)))
    assert reduced.cases[0].read_labels().labels.max() == 255
    assert reduced.sha256 != data.sha256
    ade = folders(tmp_path / "ade", "images/validation", "annotations/validation")
    assert open_dataset(ade).split == "validation"
    assert default_split(ade, "mmseg") is None
    assert default_split(root, "mmseg") == "val"
    assert recognise_layout(folders(tmp_path / "sod", "images", "annotations")) == "sod"
    listed = tmp_path / "val.txt"
    listed.write_text("b\n")
    flat = folders(tmp_path / "voc", "JPEGImages", "SegmentationClass")
    assert open_dataset(flat).split is None
    assert open_dataset(flat, split=listed).ids == ["b"]


def test_mmseg_folders_with_other_suffixes(tmp_path: Path) -> None:
    root = folders(tmp_path / "x", "pictures", "maps", "_img.png", "_lab.png")
    how = FolderOptions(img_dir="pictures", ann_dir="maps", img_suffix="_img.png", seg_map_suffix="_lab.png")
    assert open_dataset(root, "mmseg", folders=how).ids == ["a", "b", "sub/c"]
    with pytest.raises(DatasetError, match="pictures without a label map"):
        open_dataset(root, "mmseg", folders=FolderOptions(img_dir="pictures", ann_dir="maps"))
    with pytest.raises(UsageError, match="--img-dir and --ann-dir go together"):
        open_dataset(root, "mmseg", folders=FolderOptions(img_dir="pictures"))
    with pytest.raises(DatasetError, match="there is no folder"):
        open_dataset(root, "mmseg", folders=FolderOptions(img_dir="pictures", ann_dir="nothing"))
    with pytest.raises(UsageError, match="has no split 'test'"):
        open_dataset(folders(tmp_path / "y", "img_dir/val", "ann_dir/val"), split="test")


# ----------------------------------------------------------------------------------------------- preparing


def zipped(tree: Path, folder: Path) -> Path:
    """The two archives as downloaded."""
    folder.mkdir()
    for kind, name in (("leftImg8bit", "leftImg8bit_trainvaltest.zip"), ("gtFine", "gtFine_trainvaltest.zip")):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("README", "text")
            for path in sorted((tree / kind).rglob("*.png")):
                archive.write(path, path.relative_to(tree).as_posix())
    return folder


def test_prepare_from_archives_and_again(tmp_path: Path) -> None:
    tree = cityscapes_tree(tmp_path / "tree", train_ids=False, ids=True)
    source = zipped(tree, tmp_path / "zips")
    out = tmp_path / "out"
    seen: list[tuple[int, int, str]] = []
    found = prepare(source, out, progress=lambda *args: seen.append(args))
    assert found.counts == {"train": 5, "val": 4, "test": 1}
    assert (found.labels_written, found.pictures_written, found.complete) == (9, 10, False)
    assert "val 4 of 500" in str(found)
    assert seen[-1][:2] == (10, 10)
    for place, case in enumerate(open_dataset(out).cases):
        np.testing.assert_array_equal(case.read_labels().labels[0], scene(place, 48 + 4 * (place % 2), 96)[1])
    assert not list(out.rglob("*labelIds*"))
    assert not list(out.rglob(".*"))
    broken = next(out.rglob(f"{VAL[0]}_gtFine*"))
    broken.unlink()
    again = prepare(source, out)
    assert (again.labels_written, again.pictures_written) == (1, 0)
    assert broken.is_file()


def test_the_command_to_prepare(tmp_path: Path) -> None:
    tree = cityscapes_tree(tmp_path / "tree", train_ids=False, ids=True)
    done = CliRunner().invoke(cli, ["prepare", "cityscapes", str(tree), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["counts"] == {"train": 5, "val": 4, "test": 1}
    assert found["labels_written"] == 9
    again = CliRunner().invoke(cli, ["prepare", "cityscapes", str(tree), str(tmp_path / "out")])
    assert "val 4 of 500, test 1 of 1525 pictures" in again.stdout
    assert "0 label files of train ids and 0 pictures written now" in again.stdout


def test_prepare_in_place_and_beside(tmp_path: Path) -> None:
    tree = cityscapes_tree(tmp_path / "tree", train_ids=False, ids=True)
    beside = prepare(tree, tmp_path / "out")
    assert beside.pictures_written == 10
    inside = prepare(tree, tree)
    assert (inside.labels_written, inside.pictures_written) == (9, 0)
    first = open_dataset(tmp_path / "out")
    assert first.sha256 == open_dataset(tree).sha256


def test_prepare_checks_pairs_before_it_writes(tmp_path: Path) -> None:
    tree = cityscapes_tree(tmp_path / "tree", train_ids=False, ids=True)
    label = next((tree / "gtFine").rglob(f"{VAL[1]}*"))
    kept = label.read_bytes()
    label.unlink()
    with pytest.raises(DatasetError, match="pictures without a label file: 1 of 9"):
        prepare(tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    label.write_bytes(kept)
    picture = next((tree / "leftImg8bit").rglob(f"{VAL[1]}*"))
    picture.rename(tmp_path / "away.png")
    with pytest.raises(DatasetError, match="label files without a picture: 1 of 10"):
        prepare(tree, tmp_path / "out")
    with pytest.raises(DatasetError, match="holds no picture of Cityscapes"):
        prepare(tmp_path / "tree" / "gtFine" / "val", tmp_path / "out")
    with pytest.raises(DatasetMissing, match="there is nothing at"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(DatasetError, match="is no zip that can be read"):
        prepare(tmp_path / "bad.zip", tmp_path / "out")


def test_prepare_names_damaged_files_and_does_the_others(tmp_path: Path) -> None:
    tree = cityscapes_tree(tmp_path / "tree", train_ids=False, ids=True)
    next((tree / "gtFine").rglob(f"{VAL[0]}*")).write_bytes(b"nothing")
    cv2.imwrite(str(next((tree / "gtFine").rglob(f"{VAL[1]}*"))), label_ids(scene(1, 20, 20)[1]))
    with pytest.raises(DatasetError, match=rf"2 of 10 pictures were not prepared: .*{VAL[0]}.*no grey picture.*{VAL[1]}: the picture is \(52, 96\) pixels and its label \(20, 20\)"):  # fmt: skip
        prepare(tree, tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*labelTrainIds.png"))) == 7


def test_prepare_among_other_files(tmp_path: Path) -> None:
    """What other systems and parts of the data set leave there is passed over; a picture that is none is named."""
    tree = cityscapes_tree(tmp_path / "tree", train_ids=False, ids=True)
    picture = next((tree / "leftImg8bit" / "val").rglob(f"{VAL[0]}*"))
    (picture.parent / f"._{picture.name}").write_bytes(b"rest")
    (picture.parent / picture.name.replace("_0000", "_1111")).mkdir()
    (picture.parent / "Thumbs.db").write_bytes(b"rest")
    extra = tree / "leftImg8bit" / "train_extra" / "x"
    extra.mkdir(parents=True)
    (extra / picture.name).write_bytes(picture.read_bytes())
    assert prepare(tree, tmp_path / "out").counts == {"train": 5, "val": 4, "test": 1}
    picture.write_bytes(b"")
    with pytest.raises(DatasetError, match=f"{VAL[0]}_leftImg8bit.png is no PNG picture"):
        prepare(tree, tmp_path / "second")
    picture.unlink()
    picture.symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DatasetError, match=f"{VAL[0]}_leftImg8bit.png cannot be read"):
        prepare(tree, tmp_path / "second")


def test_prepare_takes_one_archive_of_pictures_as_an_error(tmp_path: Path) -> None:
    tree = cityscapes_tree(tmp_path / "tree", train_ids=False, ids=True)
    source = zipped(tree, tmp_path / "zips")
    with pytest.raises(DatasetError, match="has no label files; put gtFine_trainvaltest"):
        prepare(source / "leftImg8bit_trainvaltest.zip", tmp_path / "out")
    with pytest.raises(DatasetError, match="has no pictures; put leftImg8bit_trainvaltest"):
        prepare(source / "gtFine_trainvaltest.zip", tmp_path / "out")
