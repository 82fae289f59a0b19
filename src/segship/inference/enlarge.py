"""Scores on the network's grid to labels on the input's grid, without ever holding the scores at full size.

Linear interpolation is a weighted mean of the corners of a cell. Where one class is the largest at all corners of a
cell it is the largest everywhere inside, so its label is written without looking at a score again; only cells on the
border between two labels are interpolated, class by class. The answer is that of interpolating every class and taking
the first maximum (up to ties within float32's rounding); time and memory hardly depend on the number of classes.

Scores are (K, z, y, x) float32; labels (Z, Y, X). Pictures are volumes of one slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segship.inference.resample import (
    Float,
    Rule,
    Shape3,
    Spacing,
    linear_taps,
    nearest_index,
    resample,
    separate_axis,
)

Labels = NDArray[np.uint8] | NDArray[np.uint16]

_CHUNK = 1 << 17
"""border voxels interpolated at once: 8 corners of them stay in the processor's cache"""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Taps:
    """Both source samples of each output sample of one axis, and the weight of the second."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: Float
    one: bool
    """every output sample is one source sample: nothing is mixed along this axis"""


def argmax_on_grid(scores: Float, shape: Shape3, rule: Rule, before: Spacing, after: Spacing) -> Labels:
    """Index of the largest interpolated score, the first of equals: uint8, uint16 above 256 classes."""
    if scores.shape[1:] == tuple(shape) or rule.order != 1:
        return first_maximum(resample_one_by_one(scores, shape, rule, before, after))
    axes = _axes(scores.shape[1:], shape, rule, before, after)
    best = first_maximum(iter(scores))
    mixed = ~_uniform(best, axes)
    out = np.empty(shape, best.dtype)
    for z in range(shape[0]):
        corner = int(axes[0].low[z])
        _spread(best[corner], axes, out[z])
        border = _border(mixed[corner], axes)
        for rows, columns in _chunks(border):
            mixed_scores = (_at(channel, axes, z, rows, columns) for channel in scores)
            out[z, rows, columns] = first_maximum(mixed_scores, out.dtype)
    return out


def above_on_grid(
    scores: Float, limit: float, shape: Shape3, rule: Rule, before: Spacing, after: Spacing
) -> NDArray[np.bool_]:
    """(K, Z, Y, X) bool: where each interpolated score is above ``limit``."""
    if scores.shape[1:] == tuple(shape) or rule.order != 1:
        parts = [one > np.float32(limit) for one in resample_one_by_one(scores, shape, rule, before, after)]
        return np.stack(parts)
    axes = _axes(scores.shape[1:], shape, rule, before, after)
    out = np.empty((len(scores), *shape), bool)
    for channel, found in zip(scores, out, strict=True):
        above = channel > np.float32(limit)
        mixed = ~_uniform(above, axes)
        for z in range(shape[0]):
            corner = int(axes[0].low[z])
            _spread(above[corner], axes, found[z])
            for rows, columns in _chunks(_border(mixed[corner], axes)):
                found[z, rows, columns] = _at(channel, axes, z, rows, columns) > np.float32(limit)
    return out


def first_maximum(scores: Iterator[Float], dtype: np.dtype[np.generic] | None = None) -> Labels:
    """Index of the largest of arrays that come one after another; the first of equals. They are not changed."""
    best = next(scores).copy()
    index = np.zeros(best.shape, dtype or np.uint8)
    for k, one in enumerate(scores, start=1):
        if k == 256 and dtype is None:
            index = index.astype(np.uint16)
        better = one > best
        index[better] = k
        np.copyto(best, one, where=better)
    return index  # type: ignore[return-value]


def resample_one_by_one(scores: Float, shape: Shape3, rule: Rule, before: Spacing, after: Spacing) -> Iterator[Float]:
    """Each channel on the grid ``shape``, one held at a time."""
    for k in range(len(scores)):
        yield resample(scores[k : k + 1], shape, rule, before, after)[0]


def _axes(have: tuple[int, ...], shape: Shape3, rule: Rule, before: Spacing, after: Spacing) -> tuple[_Taps, ...]:
    separate = separate_axis(rule, before, after)
    axes = []
    for axis, (source, target) in enumerate(zip(have, shape, strict=True)):
        if axis == separate or source == target:
            index = nearest_index(source, target, rule.kind)
            axes.append(_Taps(low=index, high=index, weight=np.zeros(target, np.float32), one=True))
            continue
        low, high, weight = linear_taps(source, target, rule.kind)
        axes.append(_Taps(low=low, high=high, weight=weight.astype(np.float32), one=False))
    return tuple(axes)


def _uniform(labels: NDArray[np.generic], axes: tuple[_Taps, ...]) -> NDArray[np.bool_]:
    """Whether a cell, named by its lower corner, has one label at all corners that are mixed."""
    uniform = np.ones(labels.shape, bool)
    for axis, taps in enumerate(axes):
        if taps.one or labels.shape[axis] == 1:
            continue
        lower = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        upper = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        same = uniform[lower] & uniform[upper] & (labels[lower] == labels[upper])
        uniform = np.zeros(labels.shape, bool)
        uniform[lower] = same
    return uniform


def _spread(plane: NDArray[np.generic], axes: tuple[_Taps, ...], out: NDArray[np.generic]) -> None:
    """out[y, x] = plane[low y, low x]"""
    np.take(plane.take(axes[2].low, axis=1), axes[1].low, axis=0, out=out)


def _border(mixed: NDArray[np.bool_], axes: tuple[_Taps, ...]) -> NDArray[np.bool_]:
    return np.asarray(mixed.take(axes[2].low, axis=1).take(axes[1].low, axis=0))


def _chunks(border: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    rows, columns = np.nonzero(border)
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK], columns[start : start + _CHUNK]


def _at(channel: Float, axes: tuple[_Taps, ...], z: int, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Float:
    """The interpolated scores of one channel at (z, rows, columns)."""
    first, second, weight = channel[axes[0].low[z]], channel[axes[0].high[z]], axes[0].weight[z]
    if weight == 0 or 4 * len(rows) > first.size:  # many points: mixing the whole plane once is less work
        return _in_plane(_mix(first, second, weight), axes, rows, columns)
    return _mix(_in_plane(first, axes, rows, columns), _in_plane(second, axes, rows, columns), weight)


def _in_plane(plane: Float, axes: tuple[_Taps, ...], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Float:
    y, x = axes[1], axes[2]
    width = plane.shape[1]
    flat = np.ascontiguousarray(plane).reshape(-1)
    low, high, weight = x.low[columns], x.high[columns], x.weight[columns]
    start = y.low[rows] * width
    upper = _mix(flat.take(start + low), flat.take(start + high), weight)
    if y.one:
        return upper
    start = y.high[rows] * width
    lower = _mix(flat.take(start + low), flat.take(start + high), weight)
    return _mix(upper, lower, y.weight[rows])


def _mix(a: Float, b: Float, weight: Float | np.float32) -> Float:
    """a·(1 − w) + b·w: monotone in a and b also in floating point, which the short cut above relies on."""
    if np.ndim(weight) == 0 and weight == 0:
        return a
    return np.asarray(a * (np.float32(1) - weight) + b * weight, np.float32)
