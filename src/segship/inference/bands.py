"""Scores from the network's grid to the picture's own grid, a few rows at a time.

What travels back is a chain of linear interpolations, cuts and mirrorings (`preprocess.restore`). Along one axis such a
chain is a sparse matrix: each row of the picture is a weighted sum of two rows of the network's grid for each
interpolation. So any band of rows is made by itself, and a picture of 2048 × 1024 with 19 classes needs a few megabytes
instead of 160. The values are those of `restore` up to float32's rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.inference.preprocess import Frame, by_input_size, restore
from segship.inference.resize import Size

BAND_PIXELS = 1 << 15
"""of the picture, made at once: with 19 classes 2.5 MB, which stay in the processor's cache"""
METHODS = ("torch:bilinear", "torch:bilinear-align-corners")
Float = NDArray[np.float32]
Band = tuple[slice, Float]
"""rows, and (K, rows, W) of them"""


@dataclass(frozen=True, kw_only=True)
class _Move:
    """One step back towards the picture, for both axes; sizes are (height, width)."""

    kind: str
    before: Size
    after: Size
    offset: tuple[int, int] = (0, 0)


def restored_bands(planes: Float, frame: Frame, method: str, path: str) -> Iterator[Band]:
    """(rows, scores (K, rows, W)) from the top of the picture down. Each band's array is the caller's until the next one."""
    moves = _moves((planes.shape[1], planes.shape[2]), frame, path)
    height, width = frame.original_hw
    if moves is None or method not in METHODS:
        yield slice(0, height), restore(planes, frame, method, path)
        return
    step = max(1, BAND_PIXELS // width)
    aligned = method == METHODS[1]
    index, weight = _rows(moves, height, aligned)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        if not moves:
            yield rows, planes[:, rows]
            continue
        yield rows, _restored(planes, index[rows], weight[rows], moves, aligned)


def restored_stream(bands: Iterable[Band], grid: Size, frame: Frame, method: str, path: str) -> Iterator[Band]:
    """`restored_bands`, to the bit, of planes on ``grid`` that come in bands themselves, from the top down.

    No more of them is kept than the next band of the picture needs. Its bands are those of `restored_bands`: OpenCV's last
    bits differ between the first row of an array and the others.
    """
    moves = _moves(grid, frame, path)
    height, width = frame.original_hw
    if moves is None or method not in METHODS:
        yield from restored_bands(np.concatenate([part for _, part in bands], axis=1), frame, method, path)
        return
    step, aligned, done, top = max(1, BAND_PIXELS // width), method == METHODS[1], 0, 0
    index, weight = _rows(moves, height, aligned)
    first, last = index.min(axis=1), index.max(axis=1)  # neither ever falls: nothing is turned upside down
    held: Float | None = None
    for rows, part in bands:
        held = part if held is None or not held.shape[1] else np.concatenate([held, part], axis=1)
        ready = int(np.searchsorted(last, rows.stop))
        while done < height and (now := slice(done, min(done + step, height))).stop <= ready:
            if moves:
                yield now, _restored(held, index[now] - top, weight[now], moves, aligned)
            else:
                yield now, held[:, now.start - top : now.stop - top]
            done = now.stop
        kept = min(int(first[done]), rows.stop) if done < height else rows.stop
        held, top = held[:, kept - top :], kept


def _restored(planes: Float, index: NDArray[np.intp], weight: Float, moves: list[_Move], aligned: bool) -> Float:
    mixed = _mix_rows(planes, index, weight)
    return np.stack([_across(plane, moves, aligned) for plane in mixed])


def _moves(grid: Size, frame: Frame, path: str) -> list[_Move] | None:
    """The way from ``grid`` to the picture; None where part of it is neither interpolation, cut nor mirroring."""
    moves: list[_Move] = []
    if by_input_size(grid, frame, path):
        moves.append(_Move(kind="resize", before=grid, after=frame.prepared_hw))
        grid = frame.prepared_hw
    for step in reversed(frame.geometry):
        if step.kind == "crop":
            return None
        kind = {"pad": "cut"}.get(step.kind, step.kind)
        moves.append(_Move(kind=kind, before=grid, after=step.before_hw, offset=step.offset_yx))
        grid = step.before_hw
    return [move for move in moves if move.kind != "resize" or move.before != move.after]


def _rows(moves: list[_Move], height: int, aligned: bool) -> tuple[NDArray[np.intp], Float]:
    """(height, T) rows of the network's grid that each row of the picture is made of, and their weights."""
    index = np.arange(height)[:, None]
    weight = np.ones((height, 1))
    for move in reversed(moves):
        if move.kind == "cut":
            index = index + move.offset[0]
        elif move.kind == "resize":
            low, high, fraction = _taps(move.before[0], move.after[0], aligned)
            share = fraction[index]
            weight = np.concatenate([weight * (1 - share), weight * share], axis=1)
            index = np.concatenate([low[index], high[index]], axis=1)
    return index.astype(np.intp), weight.astype(np.float32)


def _taps(before: int, after: int, aligned: bool) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Both samples of each output of one linear interpolation, and the weight of the second (torch's two rules)."""
    position = np.arange(after, dtype=np.float64)
    if aligned:
        position *= (before - 1) / (after - 1) if after > 1 else 0.0
    else:
        position = np.clip((position + 0.5) * (before / after) - 0.5, 0, before - 1)
    low = np.minimum(position.astype(np.intp), before - 1)
    return low, np.minimum(low + 1, before - 1), position - low


def _mix_rows(planes: Float, index: NDArray[np.intp], weight: Float) -> Float:
    """(K, rows, w)"""
    mixed = planes[:, index[:, 0]] * weight[:, 0, None]
    for k in range(1, index.shape[1]):
        if weight[:, k].any():
            mixed += planes[:, index[:, k]] * weight[:, k, None]
    return mixed


def _across(plane: Float, moves: list[_Move], aligned: bool) -> Float:
    """The same moves along the other axis of (rows, w)."""
    for move in moves:
        if move.kind == "cut":
            plane = plane[:, move.offset[1] : move.offset[1] + move.after[1]]
        elif move.kind == "mirror":
            plane = plane[:, ::-1]
        elif move.before[1] != move.after[1]:
            plane = _widen(np.ascontiguousarray(plane), move.after[1], aligned)
    return plane


def _widen(plane: Float, width: int, aligned: bool) -> Float:
    if not aligned:  # OpenCV's float path has torch's half-pixel rule
        found = cv2.resize(plane, (width, plane.shape[0]), interpolation=cv2.INTER_LINEAR)
        return np.asarray(found, np.float32)
    low, high, fraction = _taps(plane.shape[1], width, True)
    share = fraction.astype(np.float32)
    return plane.take(low, axis=1) * (np.float32(1) - share) + plane.take(high, axis=1) * share
