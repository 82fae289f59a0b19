"""The sliding window over pictures: cut, run, brought to the window's own size, summed and divided.

mmseg's slide mode (open-mmlab/mmsegmentation: models/segmentors/encoder_decoder.py, slide_inference): each window's logits
are enlarged to the window, summed over the picture, and divided by how many windows saw a pixel. Windows come row by row,
so the rows above the next one are finished: `picture_bands` gives them away as soon as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from segship.errors import PackageError
from segship.inference import tiling as windows
from segship.inference.bands import BAND_PIXELS, Band
from segship.inference.preprocess import resize_planes
from segship.inference.resize import Size
from segship.manifest import Recipe, Tiling

Float = NDArray[np.float32]
Run = Callable[[Float], Sequence[Float]]
"""(N, C, h, w) to all outputs, each (N, K, h', w')"""


def run_picture(run: Run, x: Float, recipe: Recipe, batch: int = 1) -> tuple[Float, ...]:
    """All outputs, each (K, …), for one prepared picture (C, h, w): of the whole, or of its windows put together.

    Windows go through ``run`` ``batch`` at a time; a side that the network does not take is filled up with zeros below and
    to the right, and cut off again. Their combined logits lie on the prepared picture's own grid.
    """
    tiling = recipe.tiling
    if tiling is None:
        return tuple(output[0] for output in run(x[None]))
    totals: list[windows.Sums] = []
    for chosen in _groups(x, _known(recipe), batch):
        outputs, size, filled = _run(run, x, chosen, recipe)
        if not totals:
            totals = [windows.Sums.zeros(output.shape[1], x.shape[1:]) for output in outputs]
        for total, output in zip(totals, outputs, strict=True):
            for start, one in zip(chosen, output, strict=True):
                total.add(_on_window(one, size, filled, recipe), start, None)
    return tuple(np.asarray(total.mean(), np.float32) for total in totals)


def picture_bands(run: Run, x: Float, recipe: Recipe, batch: int = 1) -> Iterator[Band]:
    """(rows, scores (K, rows, W)) of the first output that `run_picture` puts together, to the bit, from the top down.

    For packages with windows. What is held is a row of windows, not the picture: 19 classes of 2048 x 1024 pixels are
    159 MB, in windows of 512 rows half of that, and no more for a picture of any height. Each band's array is the caller's.
    """
    tiling = _known(recipe)
    height, width = x.shape[1:]
    groups = _groups(x, tiling, batch)
    ends = [*(group[0][0] for group in groups[1:]), height]  # no window to come begins above
    most = max(
        max(end, min(group[-1][0] + int(tiling.window[0]), height)) - group[0][0]
        for group, end in zip(groups, ends, strict=True)
    )
    total, seen = np.empty(0, np.float32), np.zeros((most, width), np.float32)
    for chosen, end in zip(groups, ends, strict=True):
        outputs, size, filled = _run(run, x, chosen, recipe)
        if not total.size:
            total = np.zeros((outputs[0].shape[1], most, width), np.float32)
        top = chosen[0][0]
        sums = windows.Sums(total=total, seen=seen)
        for start, one in zip(chosen, outputs[0], strict=True):
            sums.add(_on_window(one, size, filled, recipe), (start[0] - top, start[1]), None)
        del outputs, one  # they need not lie beside the next ones
        step = max(1, BAND_PIXELS // width)
        for low, high in pairwise((*range(0, end - top, step), end - top)):
            yield slice(top + low, top + high), np.divide(total[:, low:high], seen[low:high], dtype=np.float32)
        _move_up(total, end - top)
        _move_up(seen[None], end - top)


def _move_up(planes: Float, rows: int) -> None:
    """Forget the first ``rows`` of (K, h, W), in place; zeros come from below."""
    left = planes.shape[1] - rows
    for plane in planes if rows else ():  # one at a time: numpy copies what overlaps
        plane[:left] = plane[rows:]
        plane[left:] = 0


def _known(recipe: Recipe) -> Tiling:
    tiling = recipe.tiling
    assert tiling is not None
    if tiling.average != "logits" or tiling.mirror_axes or tiling.weighting != "uniform" or tiling.pad_mode != "none":
        raise PackageError(
            f"package '{recipe.name}' tiles pictures in a way that this version does not know; update with `pip install -U segship`"
        )
    return tiling


def _groups(x: Float, tiling: Tiling, batch: int) -> list[list[windows.Start]]:
    """The windows of (C, h, w), row by row, ``batch`` at a time."""
    starts = windows.window_starts(x.shape[1:], tiling)
    return [starts[first : first + batch] for first in range(0, len(starts), batch)]


def _run(run: Run, x: Float, chosen: Sequence[windows.Start], recipe: Recipe) -> tuple[Sequence[Float], Size, Size]:
    """All outputs of some windows, the windows' own size, and the one that they were filled up to."""
    assert recipe.tiling is not None
    parts = np.stack([windows.cut(x, start, recipe.tiling) for start in chosen])
    filled = _filled(parts, recipe)
    return run(filled), (parts.shape[2], parts.shape[3]), (filled.shape[2], filled.shape[3])


def _filled(parts: Float, recipe: Recipe) -> Float:
    """Windows filled up with zeros to sizes that the network takes."""
    multiples = recipe.network.size_multiple
    missing = [-side % multiple for side, multiple in zip(parts.shape[2:], multiples, strict=True)]
    if not any(missing):
        return parts
    return np.pad(parts, [(0, 0), (0, 0), *((0, gap) for gap in missing)])


def _on_window(output: Float, size: Size, filled: Size, recipe: Recipe) -> Float:
    """(K, h, w) on the grid of a window of ``size``, which the network saw ``filled`` up."""
    if output.shape[1:] != filled:
        output = resize_planes(output, filled, recipe.decode.restore_method)
    return output[:, : size[0], : size[1]]
