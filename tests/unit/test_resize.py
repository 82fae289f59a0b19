"""Resizing: equal to the libraries that the methods are named after, whatever their version does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pil

from segship.inference.resize import resize

RNG = np.random.default_rng(11)
SIZES = [((61, 83), (32, 32)), ((40, 40), (96, 32)), ((20, 31), (64, 80)), ((1, 1), (9, 7)), ((1, 200), (32, 32))]


def picture(height: int, width: int, channels: int = 3, dtype: str = "uint8") -> np.ndarray:
    """Smooth with noise, never black, so that the zeros outside show."""
    y, x = np.mgrid[:height, :width]
    base = 90 + 50 * np.sin(y / 5)[..., None] * np.cos(x / 7)[..., None] + RNG.normal(0, 20, (height, width, channels))
    clipped = np.clip(base, 8, 250)
    return (clipped * 257).astype(np.uint16) if dtype == "uint16" else clipped.astype(np.uint8)


@pytest.mark.parametrize(("before", "after"), SIZES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("antialias", [True, False])
def test_scikit_image_is_equalled(before: tuple[int, int], after: tuple[int, int], dtype: str, antialias: bool) -> None:
    transform = pytest.importorskip("skimage.transform")
    source = picture(*before, dtype=dtype)
    expected = transform.resize(source, after, mode="constant", anti_aliasing=antialias)
    found = resize(source, after, "skimage:linear-antialias" if antialias else "skimage:linear")
    assert found.dtype == expected.dtype == np.float64
    assert np.abs(found - expected).max() <= 1e-12


@settings(max_examples=40, deadline=None)
@given(
    before=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    after=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    antialias=st.booleans(),
)
def test_scikit_image_is_equalled_at_any_size(before: tuple[int, int], after: tuple[int, int], antialias: bool) -> None:
    transform = pytest.importorskip("skimage.transform")
    source = picture(*before, channels=1)
    expected = transform.resize(source, after, mode="constant", anti_aliasing=antialias)
    found = resize(source, after, "skimage:linear-antialias" if antialias else "skimage:linear")
    assert np.abs(found - expected).max() <= 1e-12


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_a_bool_picture_takes_the_nearest_pixel(before: tuple[int, int], after: tuple[int, int]) -> None:
    transform = pytest.importorskip("skimage.transform")
    source = RNG.random((*before, 1)) > 0.5
    expected = transform.resize(source, after, mode="constant").astype(np.float64)
    found = resize(source, after, "skimage:linear-antialias")
    assert found.dtype == np.float64
    assert np.array_equal(found, expected)


def test_an_unchanged_size_still_becomes_floats_of_full_scale() -> None:
    source = picture(12, 9)
    for method in ("skimage:linear", "skimage:linear-antialias"):
        assert np.abs(resize(source, (12, 9), method) - source / 255).max() <= 1e-15


def taps(before: int, after: int, kernel: str) -> np.ndarray:
    """(after, before) int64 fixed-point weights, straight from the definition."""
    scale = before / after
    stretch = max(scale, 1.0)
    support = stretch * (1 if kernel == "bilinear" else 3)
    matrix = np.zeros((after, before), np.int64)
    for x in range(after):
        centre = (x + 0.5) * scale
        low, high = max(0, int(centre - support + 0.5)), min(before, int(centre + support + 0.5))
        position = (np.arange(low, high) - centre + 0.5) / stretch
        if kernel == "bilinear":
            weight = np.clip(1 - np.abs(position), 0, None)
        else:
            weight = np.where(np.abs(position) < 3, np.sinc(position) * np.sinc(position / 3), 0)
        weight = weight / weight.sum()
        matrix[x, low:high] = np.trunc(weight * (1 << 22) + np.where(weight < 0, -0.5, 0.5)).astype(np.int64)
    return matrix


def one_pass(plane: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Weighted sums over the rows of a plane, rounded and clipped to 8 bits."""
    return np.clip((matrix @ plane.astype(np.int64) + (1 << 21)) >> 22, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos"])
@pytest.mark.parametrize(
    ("before", "after"),
    [((64, 64), (150, 90)), ((150, 40), (20, 90)), ((90, 200), (64, 64)), ((30, 40), (30, 17)), ((3, 500), (64, 64))],
)
def test_pillow_runs_across_first_and_rounds_in_between(
    kernel: str, before: tuple[int, int], after: tuple[int, int]
) -> None:
    source = RNG.integers(0, 256, (*before, 1), dtype=np.uint8)  # noise: the order of the passes shows most
    plane = source[..., 0]
    if after[1] != before[1]:
        plane = one_pass(plane.T, taps(before[1], after[1], kernel)).T
    if after[0] != before[0]:
        plane = one_pass(plane, taps(before[0], after[0], kernel))
    assert np.array_equal(resize(source, after, f"pillow:{kernel}")[..., 0], plane)


def test_colours_and_planes_agree() -> None:
    source = picture(50, 70)
    for method in ("pillow:lanczos", "pillow:bilinear"):
        whole = resize(source, (33, 91), method)
        planes = [resize(source[..., c : c + 1], (33, 91), method)[..., 0] for c in range(3)]
        assert np.array_equal(whole, np.stack(planes, axis=2))


def test_pillow_itself_where_only_one_axis_changes() -> None:
    source = picture(50, 70)
    expected = np.asarray(Pil.fromarray(source).resize((31, 50), Pil.Resampling.LANCZOS))
    assert np.array_equal(resize(source, (50, 31), "pillow:lanczos"), expected)
