"""Weights rounded with their errors carried on: neighbours only, sums kept."""

from __future__ import annotations

import numpy as np
import pytest

from segship.convert import rounding

SHAPES = [(8, 5, 3, 3), (4, 16, 1, 1), (3, 1, 3, 3), (2, 3, 3, 3, 3)]


def weights(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_half_precision_weight_is_one_of_its_two_neighbours(shape: tuple[int, ...]) -> None:
    exact = weights(shape)
    found = rounding.to_float16(exact)
    assert found.dtype == np.float16
    assert found.shape == exact.shape
    step = np.abs(np.spacing(exact.astype(np.float16))).astype(np.float64)
    assert (np.abs(found.astype(np.float64) - exact) <= step * 1.0001).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_errors_of_an_output_channel_cancel(shape: tuple[int, ...]) -> None:
    exact = weights(shape).astype(np.float64)
    axes = tuple(range(1, len(shape)))
    scaled = exact / np.abs(exact).max() * 127
    for found, plain, source, step in (
        (rounding.to_integers(scaled, 127), np.rint(scaled), scaled, 1.0),
        (
            rounding.to_float16(exact.astype(np.float32)),
            exact.astype(np.float16),
            exact,
            2.0**-11 * np.abs(exact).max(),
        ),
    ):
        carried = np.abs((found.astype(np.float64) - source).sum(axis=axes))
        assert (carried <= step * 1.01).all()
        assert carried.mean() < np.abs((plain.astype(np.float64) - source).sum(axis=axes)).mean()


def test_the_axis_of_output_channels() -> None:
    exact = weights((5, 8, 2, 2))
    turned = np.ascontiguousarray(exact.transpose(1, 0, 2, 3))
    np.testing.assert_array_equal(rounding.to_float16(exact, axis=1), rounding.to_float16(turned).transpose(1, 0, 2, 3))
    np.testing.assert_array_equal(
        rounding.to_integers(exact * 9, 20, 1), rounding.to_integers(turned * 9, 20).transpose(1, 0, 2, 3)
    )


def test_what_is_exact_stays_and_what_is_too_large_is_cut_off() -> None:
    exact = np.array([[0.0, 1.0, -2.0, 0.5, 130.0, -400.0]])
    assert rounding.to_integers(exact, 127)[0, [0, 1, 2, 4, 5]].tolist() == [0, 1, -2, 127, -127]
    assert rounding.to_integers(exact, 127)[0, 3] in (0, 1)
    halves = np.float32([[0.0, 1.0, -0.25, 65504.0]])
    np.testing.assert_array_equal(rounding.to_float16(halves), halves.astype(np.float16))
