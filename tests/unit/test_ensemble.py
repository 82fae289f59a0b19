"""`segship ensemble`: the mean of probability files decided as nnU-Net decides it, on the case's own grid."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pytest
from command_line import Call
from nibabel.orientations import io_orientation
from nnunet_data import write_json, write_nifti
from tiny_volume import volume_package

from segship.datasets.label_files import read_as_volume
from segship.errors import InputError, UsageError
from segship.measure.ensemble import ensemble
from segship.measure.npz_channels import open_probabilities

SHAPE = (4, 6, 5)
OBLIQUE = np.array([[0, -1.5, 0, 3], [0, 0, 2.0, 5], [0.8, 0, 0, -7], [0, 0, 0, 1]])
LABELS = {"labels": {"background": 0, "liver": 1, "tumour": 2}, "file_ending": ".nii.gz"}
REGIONS = {
    "labels": {"background": 0, "whole": [1, 2], "tumour": 2},
    "regions_class_order": [1, 2],
    "file_ending": ".nii.gz",
}


def softmax(seed: int, classes: int = 3, shape: tuple[int, ...] = SHAPE, dtype: Any = np.float32) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 2, (classes, *shape))
    found = np.exp(logits) / np.exp(logits).sum(axis=0)
    return found.astype(dtype)


def write_case(folder: Path, case: str, probabilities: np.ndarray, properties: dict[str, Any] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities)
    if properties is not None:
        (folder / f"{case}.pkl").write_bytes(pickle.dumps(properties))


def two_folders(root: Path, **more: Any) -> list[Path]:
    """Two cases of two networks, placed by an affine."""
    properties = {"nibabel_stuff": {"original_affine": OBLIQUE}, "spacing": [2.0, 1.5, 0.8]}
    for number, name in enumerate("AB"):
        for seed, case in enumerate(("one", "two")):
            write_case(root / name, case, softmax(10 * number + seed, **more), properties)
    return [root / "A", root / "B"]


def stored(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    return np.asarray(image.dataobj), np.asarray(image.affine)  # type: ignore[attr-defined]


def test_exclusive_classes(tmp_path: Path) -> None:
    folders = two_folders(tmp_path)
    write_json(folders[0] / "dataset.json", LABELS)
    result = ensemble(folders, tmp_path / "out")
    assert (result.done, result.failed) == (2, ())
    mean = (softmax(1) + softmax(11)) / 2
    labels, affine = stored(tmp_path / "out" / "two.nii.gz")
    assert np.array_equal(labels.T, mean.argmax(axis=0))
    assert labels.dtype == np.uint8
    assert np.allclose(affine, OBLIQUE)


def test_ties_fall_to_the_first_as_in_argmax(tmp_path: Path) -> None:
    values = np.float32(np.random.default_rng(0).choice([0.1, 0.2, 0.3], (2, 3, *SHAPE)))
    for name, part in zip("AB", values, strict=True):
        write_case(tmp_path / name, "x", part, {"nibabel_stuff": {"original_affine": OBLIQUE}})
    about = write_json(tmp_path / "dataset.json", LABELS)
    ensemble([tmp_path / "A", tmp_path / "B"], tmp_path / "out", dataset=about)
    total = values[0].copy()
    total += values[1]
    total /= 2
    assert np.array_equal(stored(tmp_path / "out" / "x.nii.gz")[0].T, total.argmax(axis=0))


def test_regions_are_written_over_each_other_in_order(tmp_path: Path) -> None:
    parts = [np.random.default_rng(n).random((2, *SHAPE)).astype(np.float32) for n in range(3)]
    for name, part in zip("ABC", parts, strict=True):
        write_case(tmp_path / name, "x", part, {"nibabel_stuff": {"original_affine": OBLIQUE}})
    about = write_json(tmp_path / "dataset.json", REGIONS)
    ensemble([tmp_path / name for name in "ABC"], tmp_path / "out", dataset=about)
    mean = sum(parts) / 3
    wanted = np.where(mean[0] > 0.5, 1, 0)
    wanted[mean[1] > 0.5] = 2
    assert np.array_equal(stored(tmp_path / "out" / "x.nii.gz")[0].T, wanted)
    result = ensemble([tmp_path / "A", tmp_path / "B"], tmp_path / "guess")
    assert "do not add up to 1, so they may be regions" in result.failed[0][1]


def test_upstreams_own_probabilities_give_upstreams_labels(shared: Path, tmp_path: Path) -> None:
    trained = shared / "reference" / "nnunet_v2_trained"
    for folder in ("A", "B"):
        (tmp_path / folder).mkdir()
        for path in (trained / "predictions").glob("*.npz"):
            (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    about = next(trained.glob("nnUNet*/dataset.json"))
    result = ensemble([tmp_path / "A", tmp_path / "B"], tmp_path / "out", dataset=about, save_probabilities=True)
    assert result.done == 2
    for path in (tmp_path / "out").glob("*.png"):
        wanted = cv2.imread(str(trained / "predictions" / path.name), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), wanted)
        with np.load(trained / "predictions" / f"{path.stem}.npz") as theirs, np.load(path.with_suffix(".npz")) as ours:
            assert np.array_equal(theirs["probabilities"], ours["probabilities"])


# ------------------------------------------------------------------------------------- where a case lies


def properties_by(reader: str, path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """(labels as the reader of nnU-Net gives them, what it keeps of the file)."""
    if reader.startswith("nibabel"):
        image: Any = nib.load(path)
        kept = {"original_affine": image.affine}
        if reader.endswith("reorient"):
            image = image.as_reoriented(io_orientation(image.affine))
            kept["reoriented_affine"] = image.affine
        return np.asarray(image.dataobj).T, {"nibabel_stuff": kept}
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(str(path))
    kept = {}
    if reader.endswith("reorient"):
        kept["original_orientation"] = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(
            image.GetDirection()
        )
        image = sitk.DICOMOrient(image, "RAS")
    kept |= {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    return sitk.GetArrayFromImage(image), {"sitk_stuff": kept}


@pytest.mark.parametrize("reader", ["nibabel", "nibabel-reorient", "simpleitk", "simpleitk-reorient"])
@pytest.mark.parametrize("source", ["pkl", "label file"])
def test_labels_land_where_the_case_lies(tmp_path: Path, reader: str, source: str) -> None:
    truth = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    original = write_nifti(tmp_path / "original.nii.gz", truth, OBLIQUE)
    array, kept = properties_by(reader, original)
    probabilities = np.stack([array == k for k in range(3)]).astype(np.float32)
    for name in "AB":
        write_case(tmp_path / name, "x", probabilities, kept if source == "pkl" else None)
        if source == "label file":
            (tmp_path / name / "x.nii.gz").write_bytes(original.read_bytes())
            plan = {"image_reader_writer": "NibabelIOWithReorient" if reader.endswith("reorient") else "NibabelIO"}
            write_json(tmp_path / name / "plans.json", plan)
    about = write_json(tmp_path / "dataset.json", LABELS)
    result = ensemble([tmp_path / "A", tmp_path / "B"], tmp_path / "out", dataset=about)
    assert result.failed == ()
    labels, affine = stored(tmp_path / "out" / "x.nii.gz")
    assert np.array_equal(labels, truth.T)
    assert np.allclose(affine, OBLIQUE, atol=1e-5)


def test_a_package_says_what_the_classes_are(tmp_path: Path) -> None:
    folders = two_folders(tmp_path)
    package = volume_package(tmp_path / "net.segship")
    assert ensemble(folders, tmp_path / "out", package=package.path).done == 2
    other = volume_package(tmp_path / "regions.segship", "regions")
    result = ensemble(folders, tmp_path / "other", package=other.path)
    assert "has 3 classes, where 2 are named" in result.failed[0][1]


def test_without_names_the_largest_wins_and_that_is_said(segship: Call, tmp_path: Path) -> None:
    folders = two_folders(tmp_path, dtype=np.float16)
    code, text, _ = segship("ensemble", "-i", *folders, "-o", tmp_path / "out")
    assert code == 0
    assert "2 cases, mean of 2 folders" in text
    assert "probabilities add up to 1, so the largest won" in text


# ------------------------------------------------------------------------------------------------ faults


def test_one_damaged_file_fails_its_case_alone(segship: Call, tmp_path: Path) -> None:
    folders = two_folders(tmp_path)
    whole = (folders[1] / "one.npz").read_bytes()
    (folders[1] / "one.npz").write_bytes(whole[: len(whole) // 2])
    code, text, said = segship("ensemble", "-i", *folders, "-o", tmp_path / "out", "--json")
    assert code == 1
    assert "failed: one:" in said
    assert "one.npz" in said
    assert json.loads(text)["done"] == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["two.nii.gz"]


def test_folders_have_to_hold_the_same_cases(tmp_path: Path) -> None:
    folders = two_folders(tmp_path)
    (folders[1] / "two.npz").unlink()
    with pytest.raises(UsageError, match=r"B lacks the probabilities of 1 cases that others hold \(two\)"):
        ensemble(folders, tmp_path / "out")
    with pytest.raises(UsageError, match="at least two folders"):
        ensemble(folders[:1], tmp_path / "out")
    with pytest.raises(UsageError, match="there is no folder"):
        ensemble([folders[0], tmp_path / "C"], tmp_path / "out")
    with pytest.raises(UsageError, match="one of the folders to average"):
        ensemble([folders[0], folders[0]], folders[0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="predict with --save-probabilities"):
        ensemble([tmp_path / "empty"] * 2, tmp_path / "out")


def test_a_case_without_a_place_is_named(tmp_path: Path) -> None:
    for name in "AB":
        write_case(tmp_path / name, "x", softmax(0))
    result = ensemble([tmp_path / "A", tmp_path / "B"], tmp_path / "out")
    assert "neither x.pkl nor x.nii.gz lies beside the probabilities" in result.failed[0][1]


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "v1.npz", softmax=softmax(0))
    np.savez(tmp_path / "flat.npz", probabilities=np.zeros((3, 4), np.float32))
    np.savez(tmp_path / "objects.npz", probabilities=np.array([{}], object))
    (tmp_path / "text.npz").write_text("no archive")
    for name, said in (
        ("v1", "v1's softmax files cannot be averaged"),
        ("flat", r"of shape \(3, 4\)"),
        ("objects", "is object of shape"),
        ("text", "is no complete npz file"),
    ):
        with pytest.raises(InputError, match=said), open_probabilities(tmp_path / f"{name}.npz"):
            pass


def test_many_classes_are_never_in_memory_together(tmp_path: Path) -> None:
    shape, classes = (32, 48, 48), 40
    properties = {"nibabel_stuff": {"original_affine": OBLIQUE}}
    for seed, name in enumerate("AB"):
        write_case(tmp_path / name, "x", softmax(seed, classes, shape), properties)
    about = write_json(
        tmp_path / "dataset.json", {"labels": {str(k): k for k in range(classes)}, "file_ending": ".nii"}
    )
    tracemalloc.start()
    try:
        result = ensemble([tmp_path / "A", tmp_path / "B"], tmp_path / "out", dataset=about)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.failed == ()
    mean = (softmax(0, classes, shape) + softmax(1, classes, shape)) / 2
    assert np.array_equal(read_as_volume(tmp_path / "out" / "x.nii").channels[0], mean.argmax(axis=0))
    assert peak < 10 * 4 * np.prod(shape), "a few classes, not forty"


@pytest.mark.parametrize("reader", ["nibabel-reorient", "simpleitk-reorient", "simpleitk"])
@pytest.mark.parametrize("labels_beside", [True, False])
def test_what_predict_leaves_is_what_ensemble_takes(
    segship: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, labels_beside: bool
) -> None:
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    package = volume_package(tmp_path / "net.segship", reader=reader)
    image = np.random.default_rng(0).integers(0, 3, (6, 7, 8)).astype(np.int16) * 60
    write_nifti(tmp_path / "cases" / "x_0000.nii.gz", image, OBLIQUE)
    for name in "AB":
        code, _, said = segship(
            "predict", package.path, "-i", tmp_path / "cases", "-o", tmp_path / name, "--save-probabilities"
        )
        assert code == 0, said
    wanted = stored(tmp_path / "A" / "x.nii.gz")
    if not labels_beside:
        for name in "AB":
            (tmp_path / name / "x.nii.gz").unlink()
    result = ensemble([tmp_path / "A", tmp_path / "B"], tmp_path / "out", package=package.path)
    assert result.failed == ()
    found = stored(tmp_path / "out" / "x.nii.gz")
    assert np.array_equal(found[0], wanted[0])
    assert np.array_equal(found[0].T, image // 60), "voxel by voxel the painted classes"
    assert np.allclose(found[1], wanted[1], atol=1e-5)
