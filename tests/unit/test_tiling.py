"""Windows: where they lie, that they cover everything, that mirrored ones come back the right way round."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from volume_recipes import volume_recipe

from segship.errors import UsageError
from segship.inference import tiling as windows
from segship.inference.volume_network import TileOptions, count_passes, scores
from segship.manifest import Decode, Threshold, Tiling

RECIPE = volume_recipe()
RULES = ("even-spread", "flush-last", "stride-multiple")


def make(window: tuple[int, ...] = (4, 6), **changes: object) -> Tiling:
    settings: dict[str, object] = {
        "window": window,
        "step": tuple(side / 2 for side in window),
        "positions": "even-spread",
        "weighting": "gaussian",
        "gaussian_sigma_scale": 1 / 8,
        "pad_mode": "constant",
        "average": "logits",
    }
    return Tiling(**{**settings, **changes})  # type: ignore[arg-type]


def nnunet_steps(size: int, patch: int, fraction: float) -> list[int]:
    """The rule as nnU-Net's own documentation states it, axis by axis."""
    count = math.ceil((size - patch) / (patch * fraction)) + 1
    if count == 1:
        return [0]
    return [round((size - patch) / (count - 1) * i) for i in range(count)]


@given(size=st.integers(1, 400), patch=st.integers(1, 130), fraction=st.sampled_from([0.25, 0.5, 0.7, 1.0]))
def test_even_spread_is_nnunets(size: int, patch: int, fraction: float) -> None:
    got = windows.axis_starts(size, patch, patch * fraction, "even-spread")
    assert got == (nnunet_steps(size, patch, fraction) if size > patch else [0])


def test_the_example_of_the_documentation() -> None:
    assert windows.axis_starts(110, 64, 32, "even-spread") == [0, 23, 46]


@given(size=st.integers(1, 300), crop=st.integers(1, 100), stride=st.integers(1, 100))
def test_flush_last_is_mmsegmentations(size: int, crop: int, stride: int) -> None:
    stride = min(stride, crop)
    count = max(size - crop + stride - 1, 0) // stride + 1
    wanted = [max(min(i * stride + crop, size) - crop, 0) for i in range(count)]
    assert windows.axis_starts(size, crop, stride, "flush-last") == wanted


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    window=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    fraction=st.sampled_from([0.2, 0.5, 0.75, 1.0]),
    positions=st.sampled_from(RULES),
    weighting=st.sampled_from(["uniform", "gaussian", "gaussian-centred"]),
)
def test_every_pixel_is_covered_and_a_constant_network_stays_constant(
    shape: tuple[int, int], window: tuple[int, int], fraction: float, positions: str, weighting: str
) -> None:
    tiling = make(window, step=tuple(s * fraction for s in window), positions=positions, weighting=weighting)
    x = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    padded, back = windows.pad(x, tiling)
    assert np.array_equal(padded[(slice(None), *back)], x)
    starts = windows.window_starts(padded.shape[1:], tiling)
    assert len(starts) == windows.count_windows(shape, tiling)
    sums = windows.Sums.zeros(2, padded.shape[1:])
    weight = windows.weights(tiling, len(starts))
    for start in starts:
        assert all(s >= 0 for s in start)
        sums.add(np.full((2, *window), 3.25, np.float32), start, weight)
    assert sums.seen.min() > 0
    assert np.abs(sums.mean() - 3.25).max() <= 1e-5


@pytest.mark.parametrize("window", [(16, 40, 48), (96, 112), (7, 5)])
def test_the_gaussian_is_nnunets(window: tuple[int, ...]) -> None:
    point = np.zeros(window)
    point[tuple(side // 2 for side in window)] = 1
    wanted = ndimage.gaussian_filter(point, [side / 8 for side in window], 0, mode="constant", cval=0)
    wanted = wanted / wanted.max() * 10
    got = windows.gaussian(window, 1 / 8)
    assert got.dtype == np.float32
    assert got.max() == 10
    assert got.min() > 0
    assert np.abs(got - np.maximum(wanted, wanted[wanted > 0].min())).max() <= 1e-6


def test_the_half_precision_gaussian_ends_in_the_smallest_half() -> None:
    assert windows.gaussian((128, 128, 128), 1 / 8, False, "float16").min() == pytest.approx(5.96e-8, rel=1e-3)


def test_mlperfs_gaussian() -> None:
    got = windows.gaussian((128, 128, 128), 0.125 * math.sqrt(3), True)
    assert got[0, 0, 0] == pytest.approx(3.8013e-4, rel=1e-4)
    assert got[64, 64, 0] == pytest.approx(0.072440, rel=1e-4)
    assert float(got.sum(dtype=np.float64)) == pytest.approx(314764.46, rel=1e-6)


def test_mirror_subsets_begin_with_none_and_grow() -> None:
    assert windows.mirror_subsets((0, 1, 2)) == [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    assert windows.mirror_subsets(()) == [()]


@pytest.mark.parametrize("axes", list(itertools.chain(*(itertools.combinations(range(3), k) for k in range(4)))))
def test_a_mirrored_window_is_flipped_back_along_the_same_axes(axes: tuple[int, ...]) -> None:
    """One bright corner: an output that is not flipped back, or along another axis, lands in another corner."""
    x = np.zeros((1, 4, 5, 6), np.float32)
    x[0, 0, 0, 0] = 8
    tiling = make((4, 5, 6), mirror_axes=axes, gaussian_sigma_scale=1 / 8)
    recipe = RECIPE.model_copy(update={"tiling": tiling})
    seen: list[np.ndarray] = []

    def network(batch: np.ndarray) -> np.ndarray:
        seen.extend(batch)
        return np.concatenate([batch, -batch], axis=1)

    got = scores(x, recipe, [network])
    assert len(seen) == 2 ** len(axes)
    assert len({one.tobytes() for one in seen}) == len(seen)
    assert np.abs(got - np.concatenate([x, -x])).max() <= 1e-6


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 11)),
    axes=st.sets(st.integers(0, 2)),
    members=st.integers(1, 3),
    batch=st.integers(1, 5),
)
def test_a_pointwise_network_gives_itself_whatever_the_windows(
    shape: tuple[int, int, int], axes: set[int], members: int, batch: int
) -> None:
    tiling = make((3, 4, 5), mirror_axes=tuple(sorted(axes)))
    recipe = RECIPE.model_copy(update={"tiling": tiling})
    x = np.random.default_rng(2).normal(size=(1, *shape)).astype(np.float32)
    passes = [lambda b, k=k: np.concatenate([b * (k + 1), b - k], axis=1) for k in range(members)]
    counted: list[tuple[int, int]] = []
    got = scores(x, recipe, passes, TileOptions(batch=batch), lambda done, total, _: counted.append((done, total)))
    factor = np.mean([k + 1 for k in range(members)])
    wanted = np.concatenate([x * factor, x - np.mean(range(members))])
    assert got.shape == (2, *shape)
    assert np.abs(got - wanted).max() <= 1e-4
    assert counted[-1] == (count_passes(shape, tiling, members),) * 2


def test_windows_of_two_axes_run_over_every_slice() -> None:
    recipe = RECIPE.model_copy(update={"tiling": make((4, 5))})
    x = np.random.default_rng(3).normal(size=(1, 3, 6, 9)).astype(np.float32)
    got = scores(x, recipe, [lambda b: np.concatenate([b, 2 * b], axis=1)])
    assert np.abs(got - np.concatenate([x, 2 * x])).max() <= 1e-5


def test_equal_constant_windows_are_computed_once() -> None:
    recipe = RECIPE.model_copy(update={"tiling": make((4, 4, 4), mirror_axes=(0,))})
    x = np.zeros((1, 4, 4, 40), np.float32)
    x[..., :4] = 1
    calls: list[int] = []

    def network(batch: np.ndarray) -> np.ndarray:
        calls.append(len(batch))
        return np.concatenate([batch, -batch], axis=1)

    scores(x, recipe, [network], TileOptions(batch=2))
    assert sum(calls) < count_passes(x.shape[1:], recipe.tiling, 1) / 3  # type: ignore[arg-type]


def test_short_remainders_are_left_out_where_the_manifest_says_so() -> None:
    """9 = 2 strides of 4 + 1: the odd voxel goes behind; 11 leaves 3, which is not short; 5 stays, the window has 8."""
    tiling = make(
        (8, 8, 8), step=(4, 4, 4), positions="stride-multiple", weighting="gaussian-centred", crop_remainder_below=2
    )
    recipe = RECIPE.model_copy(update={"tiling": tiling})
    x = np.random.default_rng(4).normal(size=(1, 9, 11, 5)).astype(np.float32)
    seen: list[np.ndarray] = []

    def network(batch: np.ndarray) -> np.ndarray:
        seen.extend(batch)
        return np.concatenate([batch, -batch], axis=1)

    counted: list[tuple[int, int]] = []
    got = scores(x, recipe, [network], TileOptions(batch=2), lambda done, total, _: counted.append((done, total)))
    wanted = np.concatenate([x, -x])
    wanted[:, 8] = 0
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 1e-5
    assert counted[-1] == (2, 2)
    assert len(seen) == 2
    assert not any((x[0, 8, 0, 0] == window).any() for window in seen)


def test_what_is_left_out_is_no_class_where_classes_are_independent() -> None:
    tiling = make((4, 4, 4), step=(4, 4, 4), positions="stride-multiple", weighting="uniform", crop_remainder_below=3)
    decode = Decode(
        activation="sigmoid", decision=Threshold(threshold=0.3), restore_what="logits", restore_method="skimage:edge"
    )
    recipe = RECIPE.model_copy(update={"tiling": tiling, "decode": decode})
    got = scores(np.ones((1, 6, 4, 4), np.float32), recipe, [lambda b: np.concatenate([b, b], axis=1)])
    assert (got[:, [0, -1]] < -10).all()
    assert (got[:, 1:5] == 1).all()


@pytest.mark.parametrize("bad", [{"step_size": 0.0}, {"step_size": 1.5}, {"batch": 0}])
def test_options_that_make_no_sense(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        TileOptions(**bad)  # type: ignore[arg-type]
