"""nnU-Net's and the decathlon's layouts: recognised, read label by label, faults named; folds and their splits."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from nnunet_data import AFFINE, blob, decathlon, raw_data, write_json, write_nifti, write_png

from segship.datasets import open_dataset, recognise_layout
from segship.datasets.label_files import read_label_file
from segship.datasets.nnunet_json import read_dataset_json
from segship.datasets.nnunet_splits import find_splits, read_splits, seen_in_training
from segship.errors import DatasetError, UnsafePickle


def test_raw_data_is_recognised_and_read(tmp_path: Path) -> None:
    root = raw_data(tmp_path / "Dataset003_Liver", channels=2)
    dataset = open_dataset(root)
    assert (dataset.layout, dataset.name, dataset.ids) == (
        "nnunet", "Dataset003_Liver", ["liver_1", "liver_2", "liver_3"],
    )  # fmt: skip
    case = dataset.cases[1]
    assert [path.name for path in case.read_image()] == ["liver_2_0000.nii.gz", "liver_2_0001.nii.gz"]
    found = case.read_labels()
    assert np.array_equal(found.labels, blob(1))
    assert found.labels.dtype == np.uint8
    assert found.spacing == (2.0, 1.0, 1.5)
    assert case.target().shape == (2, 5, 12, 14), "one mask a foreground label"
    assert np.array_equal(case.target()[1], blob(1) == 2)


def test_one_channel_is_one_file(tmp_path: Path) -> None:
    source = open_dataset(raw_data(tmp_path)).cases[0].read_image()
    assert isinstance(source, Path)
    assert source.name == "liver_1_0000.nii.gz"


def test_the_decathlons_layout(tmp_path: Path) -> None:
    root = decathlon(tmp_path / "Task02_Heart")
    dataset = open_dataset(root)
    assert (dataset.layout, dataset.ids) == ("msd", ["la_003", "la_004"])
    assert dataset.cases[0].read_image() == root / "./imagesTr/la_003.nii.gz"
    assert read_dataset_json(root).labels == {1: "left atrium"}
    (root / "labelsTr" / "la_004.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"lists \./labelsTr/la_004\.nii\.gz, which is not in"):
        open_dataset(root)
    with pytest.raises(DatasetError, match="test cases have no labels"):
        open_dataset(root, split="test")


def test_plain_folders_of_volumes_and_of_numbered_pictures(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a" / "images" / "x.nii.gz", blob(0).astype(np.int16))
    write_nifti(tmp_path / "a" / "labels" / "x.nii.gz", blob(0))
    assert open_dataset(tmp_path / "a").layout == "nnunet"
    write_png(tmp_path / "b" / "images" / "x_0000.png", np.zeros((6, 7, 3), np.uint8))
    write_png(tmp_path / "b" / "labels" / "x.png", np.eye(6, 7, dtype=np.uint8))
    case = open_dataset(tmp_path / "b").cases[0]
    assert case.read_labels().labels.shape == (1, 6, 7)
    assert case.target().shape == (1, 6, 7)
    write_png(tmp_path / "c" / "images" / "x.png", np.zeros((6, 7, 3), np.uint8))
    write_png(tmp_path / "c" / "labels" / "x.png", np.eye(6, 7, dtype=np.uint8) * 255)
    assert recognise_layout(tmp_path / "c") == "folders", "pictures of equal stems stay what they were"


def test_a_file_list_in_dataset_json_counts(tmp_path: Path) -> None:
    write_nifti(tmp_path / "scans" / "one.nii.gz", blob(0).astype(np.int16))
    write_nifti(tmp_path / "labelsTr" / "one.nii.gz", blob(0))
    about = {"labels": {"background": 0, "liver": 1, "tumour": 2}, "file_ending": ".nii.gz"}
    about["dataset"] = {"case": {"images": ["scans/one.nii.gz"], "label": "labelsTr/one.nii.gz"}}
    write_json(tmp_path / "dataset.json", about)
    assert open_dataset(tmp_path).ids == ["case"]
    (tmp_path / "scans" / "one.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"lists scans/one\.nii\.gz, which is not there"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("labelsTr/liver_2.nii.gz", r"images without a label .*liver_2_0000\.nii\.gz"),
        ("imagesTr/liver_2_0001.nii.gz", "liver_2 lack a channel that others have"),
        ("imagesTr/liver_2_0000.nii.gz", "liver_2 has no channel file _0000"),
    ],
)
def test_files_that_stand_alone_are_named(tmp_path: Path, gone: str, said: str) -> None:
    root = raw_data(tmp_path, channels=2)
    (root / gone).unlink()
    with pytest.raises(DatasetError, match=said):
        open_dataset(root, "nnunet")


def test_labels_without_an_image_are_named(tmp_path: Path) -> None:
    root = raw_data(tmp_path)
    (root / "imagesTr" / "liver_3_0000.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"labels without an image .*liver_3"):
        open_dataset(root)


def test_the_test_part_is_a_split(tmp_path: Path) -> None:
    root = raw_data(tmp_path)
    write_nifti(root / "imagesTs" / "t_0000.nii.gz", blob(7).astype(np.int16))
    write_nifti(root / "labelsTs" / "t.nii.gz", blob(7))
    found = open_dataset(root, split="test")
    assert (found.ids, found.split) == (["t"], "test")


def test_labels_are_exact_or_refused(tmp_path: Path) -> None:
    many = np.arange(60000, 60000 + 24, dtype=np.uint16).reshape(2, 3, 4)
    found = read_label_file(write_nifti(tmp_path / "many.nii.gz", many))
    assert np.array_equal(found.labels, many)
    assert found.labels.dtype == np.uint16
    assert np.array_equal(read_label_file(write_png(tmp_path / "many.png", many[0])).labels[0], many[0])
    for name, array, said in (
        ("half.nii.gz", np.full((2, 3, 4), 0.5, np.float32), "fractions"),
        ("below.nii.gz", np.full((2, 3, 4), -1, np.int16), "from -1 to"),
    ):
        with pytest.raises(DatasetError, match=rf"{name} holds .*{said}|{name} holds {said}"):
            read_label_file(write_nifti(tmp_path / name, array))
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "many.nii.gz").read_bytes()[:60])
    with pytest.raises(DatasetError, match=r"cut\.nii\.gz"):
        read_label_file(tmp_path / "cut.nii.gz")


def test_turned_axes_are_turned_back_where_the_reader_does_so(tmp_path: Path) -> None:
    straight = write_nifti(tmp_path / "ras.nii.gz", blob(0), np.diag([1.5, 1.0, 2.0, 1.0]))
    flipped = write_nifti(tmp_path / "las.nii.gz", blob(0)[:, :, ::-1], np.diag([-1.5, 1.0, 2.0, 1.0]))
    assert not np.array_equal(read_label_file(straight).labels, read_label_file(flipped).labels)
    turned = read_label_file(flipped, reorient=True)
    assert np.array_equal(read_label_file(straight, reorient=True).labels, turned.labels)


def test_content_hash_is_of_voxels_not_of_packing(tmp_path: Path) -> None:
    one, other = raw_data(tmp_path / "one"), tmp_path / "other"
    for path in one.glob("*Tr/*.nii.gz"):
        array = read_label_file(path).labels if path.parent.name == "labelsTr" else None
        target = other / path.relative_to(one)
        target.parent.mkdir(parents=True, exist_ok=True)
        if array is not None:
            write_nifti(target, array, AFFINE)
        else:
            import gzip

            target.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    (other / "dataset.json").write_bytes((one / "dataset.json").read_bytes())
    assert open_dataset(one).sha256 == open_dataset(other).sha256
    write_nifti(other / "labelsTr" / "liver_1.nii.gz", blob(9))
    assert open_dataset(one).sha256 != open_dataset(other).sha256


# --------------------------------------------------------------------------------------------- dataset.json


def test_regions_and_the_ignore_label(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    path = write_json(tmp_path / "dataset.json", {"labels": labels, "regions_class_order": [1, 2, 3]})
    found = read_dataset_json(path)
    assert list(found.labels) == [(1, 2, 3), (2, 3), 3], "the file's order, lists as regions"
    assert found.ignore == 4
    assert found.regions_order == (1, 2, 3)
    single = write_json(tmp_path / "single.json", {"labels": {"background": 0, "liver": [1]}})
    assert list(read_dataset_json(single).labels) == [1], "lists of one are labels where nothing is joined"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", 'has no "labels"'),
        ('{"labels": {"background": 0}}', "no foreground label"),
        ('{"labels": {"liver": "one"}}', "an entry cannot be understood"),
    ],
)
def test_a_dataset_json_that_says_something_else(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match=said):
        read_dataset_json(tmp_path)


# ------------------------------------------------------------------------------------------------- splits

FOLDS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["b", "c"], "val": ["a"]}]


def test_splits_of_both_versions(tmp_path: Path) -> None:
    new = write_json(tmp_path / "splits_final.json", FOLDS)
    old = tmp_path / "old" / "splits_final.pkl"
    old.parent.mkdir()
    old.write_bytes(pickle.dumps([OrderedDict((k, np.array(v)) for k, v in fold.items()) for fold in FOLDS]))
    assert read_splits(new) == read_splits(old) == read_splits(tmp_path)
    folds = read_splits(new)
    assert seen_in_training(["a", "b", "c", "d"], folds, "0") == ["a", "b"]
    assert seen_in_training(["a", "b", "c", "d"], folds, "0 1") == ["a", "b", "c"]
    assert seen_in_training(["c", "d"], folds, "all") == ["c"]


def test_splits_are_found_where_nnunet_keeps_them(tmp_path: Path) -> None:
    raw = raw_data(tmp_path / "nnUNet_raw" / "Dataset003_Liver")
    assert find_splits(raw) is None
    kept = write_json(tmp_path / "nnUNet_preprocessed" / "Dataset003_Liver" / "splits_final.json", FOLDS)
    assert find_splits(raw) == kept


def test_a_fold_is_a_split(tmp_path: Path) -> None:
    root = raw_data(tmp_path)
    with pytest.raises(DatasetError, match=r"fold_0 needs splits_final\.json"):
        open_dataset(root, split="fold_0")
    write_json(root / "splits_final.json", [{"train": ["liver_1", "liver_3"], "val": ["liver_2"]}])
    found = open_dataset(root, split="fold_0")
    assert (found.ids, found.split) == (["liver_2"], "fold_0")
    with pytest.raises(DatasetError, match="1 folds, so there is no fold_3"):
        open_dataset(root, split="fold_3")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/never",)


def test_pickles_of_more_than_data_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "splits_final.pkl"
    path.write_bytes(pickle.dumps([{"train": Evil(), "val": []}]))
    with pytest.raises(UnsafePickle, match=r"splits_final\.pkl wants to run '(posix|nt)\.system'"):
        read_splits(path)
    path.write_bytes(b"\x80\x04nonsense")
    with pytest.raises(DatasetError, match="is no list of folds"):
        read_splits(path)
