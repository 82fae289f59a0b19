"""The sliding window over pictures: cut, run, brought to the window's own size, summed and divided.

mmseg's slide mode (open-mmlab/mmsegmentation: models/segmentors/encoder_decoder.py, slide_inference): each window's logits
are enlarged to the window, summed over the picture, and divided by how many windows saw a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from segship.errors import PackageError
from segship.inference import tiling as windows
from segship.inference.preprocess import resize_planes
from segship.manifest import Recipe

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
    if tiling.average != "logits" or tiling.mirror_axes or tiling.weighting != "uniform" or tiling.pad_mode != "none":
        raise PackageError(
            f"package '{recipe.name}' tiles pictures in a way that this version does not know; update with `pip install -U segship`"
        )
    starts = windows.window_starts(x.shape[1:], tiling)
    totals: list[windows.Sums] = []
    for first in range(0, len(starts), batch):
        chosen = starts[first : first + batch]
        parts = np.stack([windows.cut(x, start, tiling) for start in chosen])
        size = (parts.shape[2], parts.shape[3])
        outputs = run(_filled(parts, recipe))
        if not totals:
            totals = [windows.Sums.zeros(output.shape[1], x.shape[1:]) for output in outputs]
        for total, output in zip(totals, outputs, strict=True):
            for start, one in zip(chosen, output, strict=True):
                total.add(_on_window(one, size, recipe), start, None)
    return tuple(np.asarray(total.mean(), np.float32) for total in totals)


def _filled(parts: Float, recipe: Recipe) -> Float:
    """Windows filled up with zeros to sizes that the network takes."""
    multiples = recipe.network.size_multiple
    missing = [-side % multiple for side, multiple in zip(parts.shape[2:], multiples, strict=True)]
    if not any(missing):
        return parts
    return np.pad(parts, [(0, 0), (0, 0), *((0, gap) for gap in missing)])


def _on_window(output: Float, size: tuple[int, int], recipe: Recipe) -> Float:
    """(K, h, w) on the window's own grid."""
    multiples = recipe.network.size_multiple
    filled = tuple(-(-side // multiple) * multiple for side, multiple in zip(size, multiples, strict=True))
    if output.shape[1:] != filled:
        output = resize_planes(output, (filled[0], filled[1]), recipe.decode.restore_method)
    return output[:, : size[0], : size[1]]
