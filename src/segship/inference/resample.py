"""Resampling of volumes by the rules that nnU-Net and its kin were trained with, as matrix products along the axes.

Every rule here is separable and linear, so a whole axis is one small dense matrix: BLAS does the rest, which is some
thirty times faster than the spline code that defines the rule, with the same values to about 4e-6.

Arrays are (C, z, y, x) or (z, y, x), spacings (z, y, x) in millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segship.errors import PackageError

Shape3 = tuple[int, int, int]
Spacing = tuple[float, float, float]
Float = NDArray[np.float32]
Floating = NDArray[np.floating]
SeparateZ = Literal["auto", "always", "never"]

_SPLINE_PAD = 12
"""scikit-image's and scipy's padding before the cubic prefilter with mode 'nearest'"""
_NEGLIGIBLE = 1e-20
"""weights below are zero: the prefilter's tail otherwise fills the matrix with denormal numbers, which are slow"""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a grid becomes another. ``order`` in the plane (or everywhere), ``order_z`` along a separate axis."""

    order: int
    order_z: int
    separate_z: SeparateZ
    anisotropy_threshold: float
    kind: Literal["spline", "torch", "torch-align-corners"] = "spline"


def separate_axis(rule: Rule, before: Spacing, after: Spacing) -> int | None:
    """The axis that is resampled apart from the other two, or None (MIC-DKFZ/nnUNet: default_resampling.py).

    'auto': the coarsest axis of the first of the two spacings whose largest entry is more than the threshold times its
    smallest; 'always': the coarsest axis of ``before``. None where the coarsest axis is not unique.
    """
    if rule.separate_z == "never":
        return None
    if rule.separate_z == "always":
        return _coarsest(before)
    for spacing in (before, after):
        if max(spacing) / min(spacing) > rule.anisotropy_threshold:
            return _coarsest(spacing)
    return None


def _coarsest(spacing: Spacing) -> int | None:
    axes = [axis for axis, value in enumerate(spacing) if value == max(spacing)]
    return axes[0] if len(axes) == 1 else None


def resample(array: Float, shape: Shape3, rule: Rule, before: Spacing, after: Spacing) -> Float:
    """(C, z, y, x) on the grid ``shape``; the same array where the shape is right already. float32."""
    if array.shape[1:] == tuple(shape):
        return array
    separate = separate_axis(rule, before, after)
    out = np.empty((len(array), *shape), np.float32)
    for source, target in zip(array, out, strict=True):
        _resample_channel(np.asarray(source, np.float32), shape, rule, separate, target)
    return out


def resample_wide(array: NDArray[np.float64], shape: Shape3, rule: Rule, before: Spacing, after: Spacing) -> Floating:
    """`resample` of one channel (z, y, x) in float64 throughout: for who rounds the values again, to the last bit."""
    if array.shape == tuple(shape):
        return array
    return _resample_channel(array, shape, rule, separate_axis(rule, before, after))


def _resample_channel(
    x: Floating, shape: Shape3, rule: Rule, separate: int | None, into: Float | None = None
) -> Floating:
    """One channel in its own number type, written ``into`` an array where one is given: a large volume is not held twice."""
    if separate is None:
        out = along_axes(x, shape, rule.order, rule.kind, into=into)
        return _clipped(out, x, None) if rule.order > 1 else out
    in_plane = tuple(n if axis == separate else shape[axis] for axis, n in enumerate(x.shape))
    out = along_axes(x, in_plane, rule.order, rule.kind, skip=separate)
    if rule.order > 1:
        out = _clipped(out, x, separate)
    index = nearest_index(x.shape[separate], shape[separate], rule.kind)
    return out.take(index, axis=separate, out=into, mode="clip")


def _clipped(out: Floating, source: Floating, separate: int | None) -> Floating:
    """Clip to the source's range, of each slice where slices were resampled one by one: splines overshoot."""
    axes = None if separate is None else tuple(axis for axis in range(3) if axis != separate)
    low = source.min(axis=axes, keepdims=separate is not None)
    high = source.max(axis=axes, keepdims=separate is not None)
    return np.clip(out, low, high, out=out)


def along_axes(
    x: Floating,
    shape: Sequence[int],
    order: int,
    kind: str = "spline",
    skip: int | None = None,
    into: Float | None = None,
) -> Floating:
    """Resize every axis of (z, y, x) but ``skip`` by its matrix, axes that shrink first. Contiguous; ``into`` if given."""
    axes = [axis for axis in range(x.ndim) if axis != skip and x.shape[axis] != shape[axis]]
    if kind != "spline":  # torch's own order of operations, last axis first, to the last bit
        for axis in reversed(axes):
            x = _mixed(x, axis, *linear_taps(x.shape[axis], shape[axis], kind))
    elif order == 0:
        for axis in axes:
            x = x.take(_order0_index(x.shape[axis], shape[axis]), axis=axis)
    else:
        axes = sorted(axes, key=lambda a: shape[a] / x.shape[a])
        for axis in axes:
            last = into if axis == axes[-1] else None
            x = _apply(axis_matrix(x.shape[axis], shape[axis], order, kind, x.dtype.name), x, axis, last)
    if into is None or x is into:
        return np.ascontiguousarray(x)
    into[...] = x
    return into


def _mixed(
    x: Floating, axis: int, low: NDArray[np.int64], high: NDArray[np.int64], weight: NDArray[np.float64]
) -> Floating:
    second = weight.astype(x.dtype).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    out = x.take(low, axis)
    out *= x.dtype.type(1) - second
    upper = x.take(high, axis)
    upper *= second
    return np.add(out, upper, out=out)


def _apply(matrix: Floating, x: Floating, axis: int, into: Float | None) -> Floating:
    sides = (*x.shape[:axis], len(matrix), *x.shape[axis + 1 :])
    out: Floating = np.empty(sides, x.dtype) if into is None else into
    if axis == x.ndim - 1:
        return np.matmul(x, matrix.T, out=out)
    before = int(np.prod(x.shape[:axis]))
    after = int(np.prod(x.shape[axis + 1 :]))
    flat = np.ascontiguousarray(x).reshape(before, x.shape[axis], after)
    np.matmul(matrix, flat, out=out.reshape(before, len(matrix), after))
    return out


@lru_cache(maxsize=64)
def axis_matrix(before: int, after: int, order: int, kind: str = "spline", dtype: str = "float32") -> Floating:
    """(after, before): row o holds the weights of output sample o."""
    position = sample_positions(before, after, kind)
    if order == 1:
        low, high, weight = linear_taps(before, after, kind)
        matrix = np.zeros((after, before))
        rows = np.arange(after)
        np.add.at(matrix, (rows, low), 1 - weight)
        np.add.at(matrix, (rows, high), weight)
    elif order == 3:
        matrix = _cubic_matrix(before, position)
    else:
        raise PackageError(f"interpolation order {order} is not offered; orders are 0, 1 and 3")
    matrix[np.abs(matrix) < _NEGLIGIBLE] = 0
    out: Floating = matrix.astype(dtype)
    out.setflags(write=False)
    return out


def _cubic_matrix(before: int, position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edge padding, B-spline prefilter (mirrored ends) and the four-tap evaluation in one matrix."""
    from scipy import ndimage

    padded = np.pad(np.eye(before), ((_SPLINE_PAD, _SPLINE_PAD), (0, 0)), mode="edge")
    coefficients = ndimage.spline_filter1d(padded, order=3, axis=0, mode="mirror", output=np.float64)
    shifted = position + _SPLINE_PAD
    first = np.floor(shifted).astype(np.int64) - 1
    t = shifted - np.floor(shifted)
    taps = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    last = len(coefficients) - 1
    rows = [tap[:, None] * coefficients[np.clip(first + k, 0, last)] for k, tap in enumerate(taps)]
    return np.asarray(sum(rows[1:], rows[0]))


def sample_positions(before: int, after: int, kind: str = "spline") -> NDArray[np.float64]:
    """Where the output samples lie on the source axis."""
    index = np.arange(after, dtype=np.float64)
    if kind == "torch-align-corners":  # torch computes these positions in float32 too
        scale = np.float32(before - 1) / np.float32(after - 1) if after > 1 else np.float32(0)
        return (scale * index.astype(np.float32)).astype(np.float64)
    if kind == "torch":  # torch computes positions in float32, which large volumes can see
        scale = np.float32(before) / np.float32(after)
        return (np.float64(scale) * (index + 0.5) - 0.5).astype(np.float32).astype(np.float64)  # fused, one rounding
    return (index + 0.5) * (before / after) - 0.5


def linear_taps(
    before: int, after: int, kind: str = "spline"
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """(lower index, upper index, weight of the upper) of each output sample, clamped at the ends."""
    position = np.clip(sample_positions(before, after, kind), 0, before - 1)
    low = np.minimum(position.astype(np.int64), max(before - 2, 0))
    return low, np.minimum(low + 1, before - 1), np.asarray(position - low, np.float64)


def nearest_index(before: int, after: int, kind: str = "spline") -> NDArray[np.int64]:
    """Source index of each output sample along a separate axis (torch calls it nearest-exact)."""
    middle = np.arange(after) + 0.5
    if kind != "spline":
        position = middle.astype(np.float32) * (np.float32(before) / np.float32(after))
    else:
        position = before / after * middle
    return np.clip(np.floor(position).astype(np.int64), 0, before - 1)


def nearest_floor_index(before: int, after: int) -> NDArray[np.int64]:
    """Source index of each output sample as torch's mode 'nearest' takes it: floor, in float32."""
    scale = np.float32(before) / np.float32(after)
    return np.minimum(np.floor(np.arange(after, dtype=np.float32) * scale).astype(np.int64), before - 1)


def _order0_index(before: int, after: int) -> NDArray[np.int64]:
    return np.clip(np.floor(sample_positions(before, after) + 0.5).astype(np.int64), 0, before - 1)


def resample_labels(
    labels: NDArray[np.integer], shape: Shape3, rule: Rule, before: Spacing, after: Spacing, *, half: bool = False
) -> NDArray[np.integer]:
    """A label map (z, y, x) on another grid: each label's indicator is resized linearly and the largest wins.

    ``half`` is the older rule: a label is written where its indicator is at least 0.5, in ascending order, else 0.
    Exact ties go to the nearest neighbour's label where that is among them, else to the smallest.
    """
    if labels.shape == tuple(shape):
        return labels
    separate = separate_axis(rule, before, after)
    found = np.unique(labels)
    out = np.zeros(shape, labels.dtype)
    if half:
        for label in found:
            indicator = _resample_channel((labels == label).astype(np.float32), shape, rule, separate)
            out[indicator >= 0.5] = label
        return out
    nearest = labels
    for axis, size in enumerate(shape):
        pick = nearest_index if axis == separate else _order0_index
        nearest = nearest.take(pick(labels.shape[axis], size), axis=axis)
    best = np.full(shape, -1.0, np.float32)
    for label in found:
        indicator = _resample_channel((labels == label).astype(np.float32), shape, rule, separate)
        better = (indicator > best) | ((indicator == best) & (nearest == label))
        out[better] = label
        np.copyto(best, indicator, where=better)
    return out
