"""A CT stored in any of the 48 orientations: the same mask in space, and the file's own geometry to the last bit."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

from segship.families import unet3d_mlperf
from segship.inference.volume_chain import prepare_volume
from segship.inference.volume_network import scores
from segship.inference.volume_prediction import VolumePrediction
from segship.inference.volumes import read_volume
from segship.manifest import Recipe

CODES = ["".join(axes) for order in itertools.permutations(("RL", "AP", "SI")) for axes in itertools.product(*order)]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return unet3d_mlperf.tiny().recipe


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An I,P,L file of unequal sides and spacings, a blob off every axis' middle, and an oblique affine."""
    rng = np.random.default_rng(4)
    values = rng.normal(0, 30, (21, 40, 34))
    values[3:9, 6:22, 20:31] += 180
    values[10:18, 25:36, 2:12] += 320
    turn = np.deg2rad(7)
    tilt = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.array([[0, 0, -0.83], [0, -0.91, 0], [-2.75, 0, 0]])
    affine[:3, 3] = (11, -70, 300)
    image = nibabel.Nifti1Image(values.astype(np.int16), affine)
    path = tmp_path_factory.mktemp("ct") / "ipl.nii.gz"
    nibabel.save(image, path)
    assert nibabel.aff2axcodes(affine) == ("I", "P", "L")
    return path


def network(x: np.ndarray) -> np.ndarray:
    """Scores that depend on each direction: a flipped or exchanged axis gives another answer."""
    slope = x - 0.5 * np.roll(x, 2, 2) - 0.3 * np.roll(x, 3, 3) + 0.2 * np.roll(x, 1, 4)
    return np.concatenate([np.full_like(x, 0.9), slope + 1.1, 1.2 * x - 0.9], 1)


def predict(path: Path, recipe: Recipe) -> VolumePrediction:
    assert recipe.input.kind == "volume"
    volume = read_volume(path, recipe.input)
    prepared = prepare_volume(volume, recipe)
    found = scores(prepared.x, recipe, [network])
    return VolumePrediction(scores=found, frame=prepared.frame, recipe=recipe, volume=volume)


@pytest.fixture(scope="module")
def wanted(stored: Path, recipe: Recipe) -> np.ndarray:
    labels = predict(stored, recipe).labels
    counts = np.bincount(labels.ravel(), minlength=3)
    assert counts.min() > 200
    return labels


def test_there_are_48() -> None:
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("codes", CODES)
def test_the_same_mask_from_every_orientation(
    codes: str, stored: Path, wanted: np.ndarray, recipe: Recipe, tmp_path: Path
) -> None:
    from nibabel.orientations import axcodes2ornt, ornt_transform

    source = nibabel.load(stored)
    image = source.as_reoriented(ornt_transform(axcodes2ornt("IPL"), axcodes2ornt(tuple(codes))))
    nibabel.save(image, tmp_path / "ct.nii.gz")
    predict(tmp_path / "ct.nii.gz", recipe).save(tmp_path / "mask.nii.gz")
    image, mask = nibabel.load(tmp_path / "ct.nii.gz"), nibabel.load(tmp_path / "mask.nii.gz")
    assert mask.shape == image.shape
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(mask.affine, image.affine)
    for field in ("pixdim", "qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_y", "srow_z"):
        assert np.array_equal(mask.header[field], image.header[field]), field
    back = mask.as_reoriented(ornt_transform(axcodes2ornt(tuple(codes)), axcodes2ornt("IPL")))
    assert np.array_equal(np.asarray(back.dataobj), wanted)


def test_as_stored_leaves_the_axes_alone(stored: Path, recipe: Recipe, wanted: np.ndarray, tmp_path: Path) -> None:
    plain = recipe.model_copy(update={"input": recipe.input.model_copy(update={"orientation": None})})
    assert np.array_equal(predict(stored, plain).labels, wanted)
    from nibabel.orientations import axcodes2ornt, ornt_transform

    turned = nibabel.load(stored).as_reoriented(ornt_transform(axcodes2ornt("IPL"), axcodes2ornt("RAS")))
    nibabel.save(turned, tmp_path / "ras.nii.gz")
    found = predict(tmp_path / "ras.nii.gz", plain)
    assert found.volume.shape == turned.shape
    assert found.labels.shape == turned.shape


def test_probabilities_lie_on_the_same_grid(stored: Path, recipe: Recipe, wanted: np.ndarray) -> None:
    found = predict(stored, recipe)
    probabilities = found.probabilities
    assert probabilities.shape == (3, *wanted.shape)
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    assert np.mean(probabilities.argmax(axis=0) == wanted) > 0.9999
