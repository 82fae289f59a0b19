"""Resampling by matrices against the library code that defines the rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segship.inference.resample import (
    Rule,
    axis_matrix,
    nearest_index,
    resample,
    resample_labels,
    separate_axis,
)

SPLINE = Rule(order=3, order_z=0, separate_z="auto", anisotropy_threshold=3)
LINEAR = Rule(order=1, order_z=0, separate_z="auto", anisotropy_threshold=3)
EVEN = (1.0, 1.0, 1.0)
sizes = st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(1, 14))


def by_scipy(x: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """What skimage.transform.resize(mode='edge', anti_aliasing=False, clip=True) does, in float64."""
    zoom = [after / before for after, before in zip(shape, x.shape, strict=True)]
    out = ndimage.zoom(x.astype(np.float64), zoom, order=order, mode="nearest", grid_mode=True)
    return np.clip(out, x.min(), x.max())


@settings(max_examples=60, deadline=None)
@given(before=sizes, after=sizes, seed=st.integers(0, 2**31))
def test_cubic_and_linear_are_scipys(before: tuple[int, ...], after: tuple[int, ...], seed: int) -> None:
    x = np.random.default_rng(seed).normal(0, 300, (2, *before)).astype(np.float32)
    for rule in (SPLINE, LINEAR):
        got = resample(x, after, rule, EVEN, EVEN)  # type: ignore[arg-type]
        for channel, mine in zip(x, got, strict=True):
            assert np.abs(mine - by_scipy(channel, after, rule.order)).max() <= 2e-6 * np.abs(x).max() + 1e-6


@settings(max_examples=30, deadline=None)
@given(before=sizes, after=sizes, seed=st.integers(0, 2**31))
def test_linear_is_torchs_trilinear(before: tuple[int, ...], after: tuple[int, ...], seed: int) -> None:
    x = np.random.default_rng(seed).normal(0, 3, (1, *before)).astype(np.float32)
    for align in (False, True):
        kind = "torch-align-corners" if align else "torch"
        rule = Rule(order=1, order_z=0, separate_z="never", anisotropy_threshold=3, kind=kind)  # type: ignore[arg-type]
        got = resample(x, after, rule, EVEN, EVEN)  # type: ignore[arg-type]
        wanted = torch.nn.functional.interpolate(
            torch.from_numpy(x)[None], size=after, mode="trilinear", align_corners=align
        )[0]
        assert np.abs(got - wanted.numpy()).max() <= 2e-5


@settings(max_examples=30, deadline=None)
@given(before=st.integers(1, 40), after=st.integers(1, 40))
def test_nearest_along_the_separate_axis_is_torchs_nearest_exact(before: int, after: int) -> None:
    ramp = torch.arange(before, dtype=torch.float32)[None, None]
    wanted = torch.nn.functional.interpolate(ramp, size=after, mode="nearest-exact")[0, 0].numpy()
    assert (nearest_index(before, after, "torch") == wanted).all()


@settings(max_examples=40, deadline=None)
@given(before=st.integers(1, 60), after=st.integers(1, 60), order=st.sampled_from([1, 3]))
def test_weights_add_up_to_one(before: int, after: int, order: int) -> None:
    assert np.abs(axis_matrix(before, after, order).sum(axis=1) - 1).max() <= 1e-5


def test_slices_are_resampled_apart_where_the_volume_is_anisotropic() -> None:
    x = np.random.default_rng(1).normal(0, 100, (1, 6, 9, 11)).astype(np.float32)
    got = resample(x, (9, 13, 8), SPLINE, (5.0, 0.8, 0.8), (3.0, 0.6, 1.1))
    planes = np.stack([by_scipy(plane, (13, 8), 3) for plane in x[0]])
    assert np.abs(got[0] - planes[nearest_index(6, 9)]).max() <= 1e-3


@pytest.mark.parametrize(
    ("before", "after", "how", "axis"),
    [
        ((5.0, 0.8, 0.8), (1.0, 1.0, 1.0), "auto", 0),
        ((1.0, 1.0, 1.0), (0.5, 0.5, 4.0), "auto", 2),
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), "auto", None),  # three times is not more than three times
        ((5.0, 5.0, 0.8), (1.0, 1.0, 1.0), "auto", None),  # two axes tie
        ((1.2, 1.0, 1.0), (1.0, 1.0, 1.0), "always", 0),
        ((5.0, 0.8, 0.8), (5.0, 0.8, 0.8), "never", None),
    ],
)
def test_which_axis_is_separate(
    before: tuple[float, ...], after: tuple[float, ...], how: str, axis: int | None
) -> None:
    rule = Rule(order=3, order_z=0, separate_z=how, anisotropy_threshold=3)  # type: ignore[arg-type]
    assert separate_axis(rule, before, after) == axis  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(before=sizes, after=sizes, seed=st.integers(0, 2**31))
def test_labels_are_never_invented(before: tuple[int, ...], after: tuple[int, ...], seed: int) -> None:
    labels = np.random.default_rng(seed).choice([0, 2, 7], before).astype(np.uint8)
    for half in (False, True):
        got = resample_labels(labels, after, LINEAR, EVEN, EVEN, half=half)  # type: ignore[arg-type]
        assert got.shape == after
        assert set(np.unique(got)) <= set(np.unique(labels)) | ({0} if half else set())


def test_a_uniform_label_map_stays_uniform() -> None:
    got = resample_labels(np.full((3, 4, 5), 6, np.uint8), (7, 3, 9), LINEAR, EVEN, EVEN)
    assert (got == 6).all()
