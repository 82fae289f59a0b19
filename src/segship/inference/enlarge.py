"""Scores on the network's grid to labels on the input's grid, without ever holding the scores at full size.

Linear interpolation is a weighted mean of the corners of a cell. Where one class is the largest at all corners of a
cell it is the largest everywhere inside, so its label is written without looking at a score again; only in cells on the
border between two labels is anything interpolated, and there only classes that can win: a class whose largest corner
lies below the smallest corner of another cannot. The answer is that of interpolating every class and taking the first
maximum (up to ties within float32's rounding); time and memory hardly depend on the number of classes.

The grid is worked through layer by layer of the network's grid, on all threads: what a layer needs fits into a cache.

Scores are (K, z, y, x) float32; labels (Z, Y, X). Pictures are volumes of one slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from segship.inference.pipeline import helper_threads
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
Index = NDArray[np.intp]
T = TypeVar("T")

_CHUNK = 1 << 16
"""voxels handled at once: what is computed for them stays in the processor's cache"""


# --------------------------------------------------------------------------------------------------- labels


def argmax_on_grid(scores: Float, shape: Shape3, rule: Rule, before: Spacing, after: Spacing) -> Labels:
    """Index of the largest interpolated score, the first of equals: uint8, uint16 above 256 classes."""
    if scores.shape[1:] == tuple(shape):
        return largest(scores)
    if rule.order != 1:
        return first_maximum(resample_one_by_one(scores, shape, rule, before, after))
    best = largest(scores)
    grid = _Grid.of(scores.shape[1:], shape, rule, before, after)
    out = np.empty(shape, best.dtype)

    def decide(layer: _Layer) -> None:
        _spread(best[layer.corner], grid, out[layer.planes])
        for cells in _mixed_cells(best, layer, grid):
            out[layer.planes].reshape(len(layer.weight), -1)[:, cells.points] = _winners(scores, layer, cells, grid)

    _on_threads(decide, grid.layers)
    return out


def each_above(
    scores: Float, limit: float, shape: Shape3, rule: Rule, before: Spacing, after: Spacing
) -> Iterator[NDArray[np.bool_]]:
    """(Z, Y, X) bool, class by class: where the interpolated score is above ``limit``."""
    least = np.float32(limit)
    if scores.shape[1:] == tuple(shape) or rule.order != 1:
        for one in resample_one_by_one(scores, shape, rule, before, after):
            yield one > least
        return
    grid = _Grid.of(scores.shape[1:], shape, rule, before, after)
    for channel in scores:
        yield _one_above(channel, least, shape, grid)


def _one_above(channel: Float, limit: np.float32, shape: Shape3, grid: _Grid) -> NDArray[np.bool_]:
    above = channel > limit
    out = np.empty(shape, bool)

    def decide(layer: _Layer) -> None:
        _spread(above[layer.corner], grid, out[layer.planes])
        for cells in _mixed_cells(above, layer, grid):
            values = _between(channel, layer, cells, grid)
            out[layer.planes].reshape(len(layer.weight), -1)[:, cells.points] = values > limit

    _on_threads(decide, grid.layers)
    return out


# -------------------------------------------------------------------------------------------------- maximum


def largest(scores: Float) -> Labels:
    """Index of the largest score along the first axis, the first of equals: uint8, uint16 above 256 classes.

    A running maximum over pieces that stay in the cache: many times quicker than `numpy.argmax` along a first axis.
    """
    shape = scores.shape[1:]
    flat = np.ascontiguousarray(scores).reshape(len(scores), -1)
    out: Labels = np.zeros(flat.shape[1], _dtype(len(scores)))

    def decide(start: int) -> None:
        piece = slice(start, start + _CHUNK)
        best, index = flat[0, piece].copy(), out[piece]
        for k in range(1, len(flat)):
            _keep_larger(best, index, flat[k, piece], k)

    _on_threads(decide, range(0, flat.shape[1], _CHUNK))
    return out.reshape(shape)


def _dtype(classes: int) -> Any:
    return np.uint8 if classes <= 256 else np.uint16


def first_maximum(scores: Iterator[NDArray[np.floating[Any]]]) -> Labels:
    """`largest` of arrays that come one after another. They are not changed."""
    best = next(scores).copy()
    index: Labels = np.zeros(best.shape, np.uint8)
    for k, one in enumerate(scores, start=1):
        if k == 256:
            index = index.astype(np.uint16)
        _keep_larger(best, index, one, k)
    return index


def _keep_larger(best: NDArray[np.floating[Any]], index: Labels, one: NDArray[np.floating[Any]], k: int) -> None:
    """Both in place. ``k`` is above every index so far, so the larger number is the later one."""
    better = (one > best).view(np.uint8)
    np.maximum(index, better * index.dtype.type(k), out=index)
    np.maximum(best, one, out=best)


def resample_one_by_one(scores: Float, shape: Shape3, rule: Rule, before: Spacing, after: Spacing) -> Iterator[Float]:
    """Each channel on the grid ``shape``, one held at a time."""
    for k in range(len(scores)):
        yield resample(scores[k : k + 1], shape, rule, before, after)[0]


# ----------------------------------------------------------------------------------------------------- grid


@dataclass(frozen=True, kw_only=True, eq=False)
class _Taps:
    """The lower source sample of each output sample of one axis, and the share of the sample after it."""

    low: Index
    weight: Float
    mixes: bool
    """False: every output sample is one source sample"""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    """The output planes whose lower source plane is one and the same."""

    corner: int
    planes: slice
    weight: Float
    """(planes,): the share of the source plane after ``corner``"""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Grid:
    y: _Taps
    x: _Taps
    deep: bool
    """two source planes are mixed"""
    layers: tuple[_Layer, ...]
    width: int
    """of a source plane"""
    sides: tuple[int, int]
    """of an output plane"""

    @classmethod
    def of(cls, have: Sequence[int], shape: Shape3, rule: Rule, before: Spacing, after: Spacing) -> _Grid:
        separate = separate_axis(rule, before, after)
        z, y, x = (_taps(have[axis], shape[axis], rule, axis == separate) for axis in range(3))
        corners, first = np.unique(z.low, return_index=True)
        ends = [*first[1:], len(z.low)]
        layers = (
            _Layer(corner=int(corner), planes=slice(int(a), int(b)), weight=z.weight[a:b])
            for corner, a, b in zip(corners, first, ends, strict=True)
        )
        return cls(y=y, x=x, deep=z.mixes, layers=tuple(layers), width=have[2], sides=(shape[1], shape[2]))


def _taps(source: int, target: int, rule: Rule, separate: bool) -> _Taps:
    if separate or source == target or source == 1:
        index = np.zeros(target, np.intp) if source == 1 else nearest_index(source, target, rule.kind)
        return _Taps(low=index, weight=np.zeros(target, np.float32), mixes=False)
    low, _, weight = linear_taps(source, target, rule.kind)
    return _Taps(low=low, weight=weight.astype(np.float32), mixes=True)


def _spread(plane: NDArray[np.generic], grid: _Grid, out: NDArray[np.generic]) -> None:
    """out[:, y, x] = plane[low y, low x]"""
    np.take(plane.take(grid.x.low, axis=1), grid.y.low, axis=0, out=out[0], mode="clip")
    out[1:] = out[0]


# ---------------------------------------------------------------------------------------------------- cells


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cells:
    """Output voxels of a layer that lie in cells with several labels. One entry a voxel of a plane."""

    points: Index
    """where the voxel lies in its plane, flat"""
    corner: Index
    """the cell's lower corner in the source plane, flat"""
    y: Float
    x: Float
    """weights of the upper neighbours"""


def _mixed_cells(labels: NDArray[np.generic], layer: _Layer, grid: _Grid) -> Iterator[_Cells]:
    mixed = _mixed(labels, layer.corner, grid)
    if not mixed.any():
        return
    found = np.flatnonzero(mixed.take(grid.x.low, axis=1).take(grid.y.low, axis=0))
    for start in range(0, len(found), _CHUNK):
        points = found[start : start + _CHUNK]
        rows, columns = np.divmod(points, grid.sides[1])
        corner = grid.y.low.take(rows) * grid.width + grid.x.low.take(columns)
        yield _Cells(points=points, corner=corner, y=grid.y.weight.take(rows), x=grid.x.weight.take(columns))


def _mixed(labels: NDArray[np.generic], corner: int, grid: _Grid) -> NDArray[np.bool_]:
    """(y, x): does the cell above this lower corner hold more than one label at the corners that are mixed?"""
    plane = labels[corner]
    mixed = labels[corner + 1] != plane if grid.deep else np.zeros(plane.shape, bool)
    if grid.y.mixes:
        mixed[:-1] |= mixed[1:]
        mixed[:-1] |= plane[1:] != plane[:-1]
        mixed[-1] = False  # there is no cell above the last row
    if grid.x.mixes:
        mixed[:, :-1] |= mixed[:, 1:]
        mixed[:, :-1] |= plane[:, 1:] != plane[:, :-1]
        mixed[:, -1] = False
    return mixed


def _between(channel: Float, layer: _Layer, cells: _Cells, grid: _Grid) -> Float:
    """(planes, voxels): interpolated scores of one channel (z, y, x)."""
    lower = _in_plane(channel[layer.corner], cells, grid)
    if not grid.deep:
        return np.broadcast_to(lower, (len(layer.weight), len(lower)))
    upper = _in_plane(channel[layer.corner + 1], cells, grid)
    return _mix(lower, upper, layer.weight[:, None])


def _in_plane(plane: Float, cells: _Cells, grid: _Grid) -> Float:
    flat = np.ascontiguousarray(plane).reshape(-1)
    upper = _in_row(flat, cells, grid)
    return _mix(upper, _in_row(flat[grid.width :], cells, grid), cells.y) if grid.y.mixes else upper


def _in_row(flat: Float, cells: _Cells, grid: _Grid) -> Float:
    first = flat.take(cells.corner)
    return _mix(first, flat[1:].take(cells.corner), cells.x) if grid.x.mixes else first


def _mix(a: Float, b: Float, weight: Float) -> Float:
    """a·(1 − w) + b·w: monotone in a and b also in floating point, which the short cuts here rely on."""
    return np.asarray(a * (np.float32(1) - weight) + b * weight, np.float32)


# -------------------------------------------------------------------------------------------------- winners


def _winners(scores: Float, layer: _Layer, cells: _Cells, grid: _Grid) -> Labels:
    """(planes, voxels): the class that wins at each."""
    out: Labels = np.zeros((len(layer.weight), len(cells.points)), _dtype(len(scores)))
    if len(scores) == 2:
        planes = slice(layer.corner, layer.corner + (2 if grid.deep else 1))
        ahead = _Layer(corner=0, planes=layer.planes, weight=layer.weight)
        out[...] = _between(scores[1, planes] - scores[0, planes], ahead, cells, grid) > 0
        return out
    best = np.full(out.shape, -np.inf, np.float32)
    for k, some in _contenders(scores, layer, cells, grid):
        values = _between(scores[k], layer, _part(cells, some), grid)
        for value, b, index in zip(values, best, out, strict=True):
            held = b.take(some)
            better = value > held
            index[some[better]] = k
            b[some] = np.maximum(value, held)
    return out


def _contenders(scores: Float, layer: _Layer, cells: _Cells, grid: _Grid) -> Iterator[tuple[int, Index]]:
    """Classes that may win somewhere, in order, and the voxels where."""
    number = np.zeros(scores[0, 0].size, np.intp)
    number[cells.corner] = 1
    corners = np.flatnonzero(number)
    highest = np.empty((len(scores), len(corners)), np.float32)
    bar = np.full(len(corners), -np.inf, np.float32)
    for channel, high in zip(scores, highest, strict=True):
        low = _extremes(channel, layer, corners, grid, high)
        np.maximum(bar, low, out=bar)
    number[corners] = np.arange(len(corners))
    cell_of = number.take(cells.corner)
    for k, high in enumerate(highest):
        able = high >= bar
        if able.any():
            some = np.flatnonzero(able.take(cell_of))
            yield k, some


def _extremes(channel: Float, layer: _Layer, corners: Index, grid: _Grid, high: Float) -> Float:
    """The smallest of each cell's corners; the largest goes into ``high``."""
    low: Float | None = None
    for z in (0, 1) if grid.deep else (0,):
        flat = np.ascontiguousarray(channel[layer.corner + z]).reshape(-1)
        for y in (0, grid.width) if grid.y.mixes else (0,):
            for x in (0, 1) if grid.x.mixes else (0,):
                values = flat[y + x :].take(corners)
                if low is None:
                    low = values
                    high[...] = values
                else:
                    np.minimum(low, values, out=low)
                    np.maximum(high, values, out=high)
    assert low is not None
    return low


def _part(cells: _Cells, some: Index) -> _Cells:
    if len(some) == len(cells.points):
        return cells
    return _Cells(
        points=cells.points.take(some),
        corner=cells.corner.take(some),
        y=cells.y.take(some),
        x=cells.x.take(some),
    )


def _on_threads(work: Callable[[T], None], jobs: Iterable[T]) -> None:
    """Every job once, on all threads; the first exception is raised."""
    waiting = list(jobs)
    threads = min(helper_threads(), len(waiting))
    if threads <= 1:
        for job in waiting:
            work(job)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="segship-enlarge") as executor:
        for _ in executor.map(work, waiting):
            pass
