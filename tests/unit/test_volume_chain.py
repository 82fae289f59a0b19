"""Preprocessing of volumes and the way back, against nnU-Net's own arrays and by round trips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from volume_recipes import volume_recipe

from segship.errors import InputError
from segship.inference.volume_chain import fill_holes, prepare_volume
from segship.inference.volume_decode import clean, decide, probabilities
from segship.inference.volumes import Volume
from segship.manifest import (
    Clip,
    CropToNonzero,
    Divide,
    KeepLargest,
    Pad,
    PreviousStageChannels,
    Regions,
    ReplaceNonFinite,
    Resample,
    Transpose,
    ZScore,
)


def volume(channels: np.ndarray, spacing: tuple[float, float, float] = (3.0, 1.5, 1.0)) -> Volume:
    return Volume(channels=np.asarray(channels, np.float32), spacing=spacing, name="case")


def resample(spacing: tuple[float | None, ...] = (2.0, 2.0, 2.0), order: int = 3) -> Resample:
    return Resample(
        spacing_mm_zyx=spacing, shape_rule="round-half-even", method="skimage:edge", order=order, order_z=0,
        separate_z="auto", anisotropy_threshold=3.0,
    )  # type: ignore[arg-type] # fmt: skip


def zscore(**changes: object) -> ZScore:
    settings: dict[str, object] = {
        "channel": 0, "mean": None, "std": None, "epsilon": 1e-8, "epsilon_rule": "maximum", "mask": "none",
    }  # fmt: skip
    return ZScore(**{**settings, **changes})  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    axes=st.permutations([0, 1, 2]),
    low=st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)),
    seed=st.integers(0, 99),
)
def test_what_is_moved_comes_back(
    shape: tuple[int, int, int], axes: list[int], low: tuple[int, int, int], seed: int
) -> None:
    """Labels made from the prepared grid itself land on the voxels they came from."""
    inner = np.random.default_rng(seed).integers(1, 3, shape)
    whole = np.zeros([n + a + 2 for n, a in zip(shape, low, strict=True)])
    whole[tuple(slice(a, a + n) for a, n in zip(low, shape, strict=True))] = inner
    recipe = volume_recipe(
        preprocess=(
            Transpose(axes=tuple(axes)),
            CropToNonzero(fill_holes=True),
            Pad(minimum=(5, 5, 5), where="both", mode="constant"),
        )  # type: ignore[arg-type]
    )
    found = prepare_volume(volume(whole[None]), recipe)
    scores = np.stack([np.full(found.x.shape[1:], 0.5), found.x[0] == 2]).astype(np.float32)
    assert (decide(scores, found.frame, recipe) == (whole == 2)).all()
    chances = probabilities(scores, found.frame, recipe)
    assert chances.shape == (2, *whole.shape)
    assert np.abs(chances.sum(axis=0) - 1).max() <= 1e-6
    assert (chances[0][whole == 0] >= chances[1][whole == 0]).all()


@pytest.mark.parametrize("steps", [(), (Transpose(axes=(2, 0, 1)),)])
def test_a_case_that_is_not_kept_is_cropped_in_its_own_memory(steps: tuple[Transpose, ...]) -> None:
    whole = np.zeros((2, 9, 8, 7), np.float32)
    whole[:, 2:7, 1:8, 3:6] = np.random.default_rng(0).uniform(1, 9, (2, 5, 7, 3))
    recipe = volume_recipe(
        input=volume_recipe().input.model_copy(update={"channels": volume_recipe().input.channels * 2}),
        network=volume_recipe().network.model_copy(update={"input_channels": 2}),
        preprocess=(*steps, CropToNonzero(fill_holes=True), zscore(), zscore(channel=1)),
    )
    kept = volume(whole.copy())
    wanted = prepare_volume(kept, recipe)
    assert (kept.channels == whole).all()
    given = volume(whole.copy())
    found = prepare_volume(given, recipe, keep=False)
    assert np.array_equal(found.x, wanted.x)
    assert found.frame == wanted.frame
    assert np.shares_memory(found.x, given.channels) == (not steps)


def test_resampled_labels_have_the_cases_own_grid() -> None:
    whole = np.zeros((1, 12, 20, 30))
    whole[0, 3:9, 4:18, 5:25] = 100
    recipe = volume_recipe(preprocess=(CropToNonzero(fill_holes=True), resample(), zscore()))
    found = prepare_volume(volume(whole), recipe)
    assert found.x.shape == (1, 9, 10, 10)
    assert found.spacing == (2.0, 2.0, 2.0)
    scores = np.stack([np.zeros((9, 10, 10)), np.ones((9, 10, 10))]).astype(np.float32)
    assert (decide(scores, found.frame, recipe) == (whole[0] != 0)).all()


def test_regions_are_written_one_over_the_other_and_outside_the_crop_nothing_is() -> None:
    whole = np.zeros((1, 3, 4, 5))
    whole[0, :, 1:3, 1:4] = 1
    base = volume_recipe(preprocess=(CropToNonzero(fill_holes=True),))
    decode = base.decode.model_copy(update={"activation": "sigmoid", "decision": Regions(threshold=0.5, order=(7, 9))})
    recipe = base.model_copy(update={"decode": decode})
    found = prepare_volume(volume(whole), recipe)
    scores = np.full((2, 3, 2, 3), 1.0, np.float32)
    scores[1, :, :, 0] = -1
    labels = decide(scores, found.frame, recipe)
    assert set(np.unique(labels[:, 1:3, 2:4])) == {9}
    assert set(np.unique(labels[:, 1:3, 1])) == {7}
    assert labels[:, 0].max() == 0
    assert probabilities(scores, found.frame, recipe)[:, :, 0].max() == 0


def test_statistics_of_the_mask_alone() -> None:
    whole = np.zeros((1, 4, 4, 4), np.float32)
    whole[0, 1:3, 1:3, 1:3] = np.arange(1, 9).reshape(2, 2, 2)
    whole[0, 0, 0, 0] = 5  # the box is the whole volume
    whole[0, 3, 3, 3] = 5
    inside = whole[0] != 0
    values = whole[0][inside]
    recipe = volume_recipe(preprocess=(CropToNonzero(fill_holes=True), zscore(mask="nonzero")))
    x = prepare_volume(volume(whole), recipe).x[0]
    assert np.abs(x[inside] - (values - values.mean()) / values.std()).max() <= 1e-6
    assert (x[~inside] == 0).all()
    zeroed = volume_recipe(preprocess=(CropToNonzero(fill_holes=True), zscore(mean=1.0, std=2.0, outside_mask="zero")))
    y = prepare_volume(volume(whole), zeroed).x[0]
    assert np.abs(y[inside] - (values - 1) / 2).max() <= 1e-6
    assert (y[~inside] == 0).all()


def test_statistics_between_two_bounds() -> None:
    whole = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    recipe = volume_recipe(
        preprocess=(Clip(low=3, high=15), zscore(between=(3.0, 15.0), epsilon=0.0, epsilon_rule="add"))
    )
    x = prepare_volume(volume(whole), recipe).x[0]
    inner = np.arange(4, 15)
    assert np.abs(x - (whole[0].clip(3, 15) - inner.mean()) / inner.std()).max() <= 1e-6


def test_one_channel_is_divided_alone() -> None:
    whole = np.stack([np.full((2, 2, 2), 255.0), np.full((2, 2, 2), 7.0)])
    base = volume_recipe(preprocess=(Divide(by=255.0, channel=0),))
    two = base.input.channels * 2
    recipe = base.model_copy(
        update={
            "input": base.input.model_copy(update={"channels": two}),
            "network": base.network.model_copy(update={"input_channels": 2}),
        }
    )
    x = prepare_volume(volume(whole), recipe).x
    assert (x[0] == 1).all()
    assert (x[1] == 7).all()


def test_the_previous_stage_becomes_one_channel_a_label() -> None:
    whole = np.zeros((1, 6, 8, 8), np.float32)
    whole[0, 1:5, 2:7, 1:7] = 3
    before = np.zeros((6, 8, 8), np.uint8)
    before[2:4, 3:5, 2:5] = 2
    base = volume_recipe(
        preprocess=(
            CropToNonzero(fill_holes=True),
            resample((3.0, 1.5, 1.0)),
            PreviousStageChannels(labels=(1, 2), crop=True),
        )
    )
    recipe = base.model_copy(update={"network": base.network.model_copy(update={"input_channels": 3})})
    x = prepare_volume(volume(whole), recipe, before).x
    assert x.shape == (3, 4, 5, 6)
    assert x[1].max() == 0
    assert (x[2] == (before[1:5, 2:7, 1:7] == 2)).all()
    with pytest.raises(InputError, match="needs the labels of its previous stage"):
        prepare_volume(volume(whole), recipe)
    with pytest.raises(InputError, match=r"previous stage's labels are \(1, 2, 3\)"):
        prepare_volume(volume(whole), recipe, np.zeros((1, 2, 3), np.uint8))


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7)), seed=st.integers(0, 999))
def test_holes_are_scipys(shape: tuple[int, int, int], seed: int) -> None:
    mask = np.random.default_rng(seed).random(shape) > 0.4
    assert (fill_holes(mask) == ndimage.binary_fill_holes(mask)).all()


def test_an_empty_volume_is_kept_whole() -> None:
    recipe = volume_recipe(preprocess=(CropToNonzero(fill_holes=True), zscore(mask="nonzero")))
    found = prepare_volume(volume(np.zeros((1, 3, 4, 5))), recipe)
    assert found.x.shape == (1, 3, 4, 5)
    assert (found.x == 0).all()


@pytest.mark.parametrize(
    ("channels", "spacing", "message"),
    [
        (np.zeros((2, 3, 3, 3)), (1.0, 1.0, 1.0), r"has 2 channel\(s\), the network takes 1: CT"),
        (np.zeros((1, 3, 0, 3)), (1.0, 1.0, 1.0), "some extent"),
        (np.zeros((1, 3, 3, 3)), (1.0, 0.0, 1.0), "must be positive"),
        (np.zeros((1, 3, 3, 3)), (1.0, float("nan"), 1.0), "must be positive"),
        (
            np.full((1, 3, 3, 3), np.nan),
            (1.0, 1.0, 1.0),
            r"27 NaN or infinite values, the first at .* = \(0, 0, 0, 0\)",
        ),
        (np.ones((1, 3, 3, 3)), (0.001, 1.0, 1.0), "no voxel left"),
    ],
)
def test_cases_that_are_refused(channels: np.ndarray, spacing: tuple[float, float, float], message: str) -> None:
    recipe = volume_recipe(preprocess=(resample(),))
    with pytest.raises(InputError, match=message):
        prepare_volume(volume(channels, spacing), recipe)


def test_nan_is_replaced_where_the_recipe_says_so() -> None:
    recipe = volume_recipe(preprocess=(ReplaceNonFinite(value=0.0),))
    x = prepare_volume(volume(np.full((1, 2, 2, 2), np.nan)), recipe).x
    assert (x == 0).all()


def test_small_components_go_by_their_size_in_cubic_millimetres() -> None:
    whole = np.ones((1, 1, 6, 6))
    labels = np.zeros((1, 6, 6), np.uint8)
    labels[0, 0, :4] = 1  # 4 voxels of 4.5 mm³
    labels[0, 3, :3] = 1  # 13.5 mm³
    labels[0, 5, 0] = 1  # 4.5 mm³
    rule = KeepLargest(labels=(1,), joint=False, minimum_mm3=10.0, connectivity="face")
    recipe = volume_recipe(postprocess=(rule,))
    found = prepare_volume(volume(whole), recipe)
    cleaned = clean(labels, found.frame, recipe)
    assert cleaned.sum() == 7
    assert cleaned[0, 5, 0] == 0


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (Clip(low=-1, high=1, channel=0),),
        (Transpose(axes=(0, 1, 2)), zscore()),
        (Transpose(axes=(2, 1, 0)), zscore()),
        (CropToNonzero(fill_holes=True), Divide(by=2.0, channel=0)),  # nothing to crop away: the box is the whole
        (resample((3.0, 1.5, 1.0)), zscore()),  # nor to resample
    ],
)
def test_the_cases_own_values_stay_and_are_not_shared(steps: tuple[object, ...]) -> None:
    given = np.random.default_rng(1).normal(3, 2, (1, 5, 6, 7)).astype(np.float32)
    case = volume(given.copy())
    prepared = prepare_volume(case, volume_recipe(preprocess=steps))
    assert not np.shares_memory(prepared.x, case.channels)
    prepared.x[...] = 0
    assert (case.channels == given).all()
