"""The sliding window as arithmetic: where windows lie, how they are weighted, mirrored and summed.

One definition for pictures and volumes, two and three axes. Rules and their sources:

    even-spread       MIC-DKFZ/nnUNet: inference/sliding_window_prediction.py (compute_steps_for_sliding_window)
    flush-last        open-mmlab/mmsegmentation: models/segmentors/encoder_decoder.py (slide_inference)
    stride-multiple   mlcommons/training: retired_benchmarks/unet3d/pytorch/runtime/inference.py; the last window lies
                      flush with the border where the stride does not divide what is left
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from segship.manifest import Tiling

Float = NDArray[np.float32]
Start = tuple[int, ...]


def axis_starts(size: int, window: int, step: float, positions: str) -> list[int]:
    """Where windows begin along one axis of ``size`` >= 1; a single 0 where one window covers it all."""
    if size <= window:
        return [0]
    room = size - window
    if positions == "even-spread":
        count = math.ceil(room / step) + 1
        return [int(np.round(room / (count - 1) * i)) for i in range(count)]
    stride = max(1, int(step))
    count = -(-room // stride) + 1
    return [min(i * stride, room) for i in range(count)]


def window_starts(shape: Sequence[int], tiling: Tiling) -> list[Start]:
    """Every window's first corner, first axis outermost. ``shape`` is padded to the window already (see `padding`)."""
    axes = [
        axis_starts(size, window, step, tiling.positions)
        for size, window, step in zip(shape, tiling.window, tiling.step, strict=True)
    ]
    return list(itertools.product(*axes))


def padding(shape: Sequence[int], tiling: Tiling) -> list[tuple[int, int]]:
    """(before, after) of each axis: up to the window, for 'stride-multiple' up to the next multiple of the stride."""
    if tiling.pad_mode == "none":
        return [(0, 0)] * len(shape)
    out = []
    for size, window, step in zip(shape, tiling.window, tiling.step, strict=True):
        target = max(size, window)
        if tiling.positions == "stride-multiple":
            stride = max(1, int(step))
            target = -(-size // stride) * stride
            while target < window:
                target += stride
        missing = target - size
        out.append((missing // 2, missing - missing // 2))
    return out


def remainder_crop(shape: Sequence[int], tiling: Tiling) -> tuple[slice, ...]:
    """What stays of a grid where the manifest cuts short remainders away (``crop_remainder_below``); all of it else.

    An axis whose remainder over the stride is shorter than that loses it, half in front and the rest behind: what is cut
    is neither predicted nor scored. Upstream also cuts an axis below the window, and pads it again; here it stays.
    """
    out = []
    for size, window, step in zip(shape, tiling.window, tiling.step, strict=True):
        short = size % max(1, int(step))
        if short >= tiling.crop_remainder_below or size - short < window:
            short = 0
        out.append(slice(short // 2, size - (short - short // 2)))
    return tuple(out)


def compat_crop(tiling: Tiling) -> Tiling:
    """The same by MLPerf's rule, whatever the manifest says: a remainder below half a stride is cut away, a longer one
    padded to a whole stride."""
    below = min(max(1, int(step)) // 2 for step in tiling.step)
    return tiling.model_copy(update={"crop_remainder_below": below, "positions": "stride-multiple"})


def pad(x: Float, tiling: Tiling) -> tuple[Float, tuple[slice, ...]]:
    """(C, *axes) padded for the window, and the slices that cut a result back."""
    widths = padding(x.shape[1:], tiling)
    cut = tuple(slice(before, before + size) for (before, _), size in zip(widths, x.shape[1:], strict=True))
    if not any(before or after for before, after in widths):
        return x, cut
    if tiling.pad_mode == "edge":
        return np.pad(x, [(0, 0), *widths], mode="edge"), cut
    return np.pad(x, [(0, 0), *widths], constant_values=np.float32(tiling.pad_value)), cut


def mirror_subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """No axis first, then every combination of the mirror axes, small ones first."""
    ordered = sorted(axes)
    return [subset for size in range(len(ordered) + 1) for subset in itertools.combinations(ordered, size)]


def flip(x: Float, axes: Sequence[int], first: int) -> Float:
    """Flip spatial axes (0, 1 …) of an array whose spatial axes begin at ``first``; its own inverse."""
    return np.flip(x, tuple(first + axis for axis in axes)) if axes else x


def weights(tiling: Tiling, windows: int) -> Float | None:
    """The weight of each position in a window, float32, or None where all count the same."""
    if tiling.weighting == "uniform" or (windows == 1 and not tiling.gaussian_single_tile):
        return None
    scale = tiling.gaussian_sigma_scale
    assert scale is not None  # the manifest says so for Gaussian weights
    return gaussian(tiling.window, scale, tiling.weighting == "gaussian-centred", tiling.accumulator)


@lru_cache(maxsize=8)
def gaussian(window: tuple[int, ...], scale: float, centred: bool = False, dtype: str = "float32") -> Float:
    """A Gaussian window, float32 values (rounded to ``dtype`` first), none of them 0.

    Filtered from a single 1 at window // 2, cut off at four standard deviations and scaled to a maximum of 10, as
    nnU-Net has it; or ``centred``: the formula itself around (window - 1) / 2, maximum 1, as MLPerf has it.
    """
    if centred:
        out = np.ones((), np.float64)
        for side in window:
            line = np.exp(-((np.arange(side) - (side - 1) / 2) ** 2) / (2 * (scale * side) ** 2))
            out = np.multiply.outer(out, line)
        out = out / out.max()
    else:
        from scipy import ndimage

        point = np.zeros(window)
        point[tuple(side // 2 for side in window)] = 1
        out = ndimage.gaussian_filter(point, [side * scale for side in window], order=0, mode="constant", cval=0)
        out = out / (out.max() / 10)
    rounded = out.astype(dtype)
    rounded[rounded == 0] = rounded[rounded != 0].min()
    result = rounded.astype(np.float32)
    result.setflags(write=False)
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """Weighted sums of window results over the whole grid: `add` each window, then take the `mean`.

    ``half`` rounds each sum to float16 after every window, as nnU-Net v2 does: for reproducing its files only.
    """

    total: NDArray[np.floating]
    """(K, *axes)"""
    seen: NDArray[np.floating]
    """(*axes)"""

    @classmethod
    def zeros(cls, classes: int, shape: Sequence[int], *, half: bool = False) -> Sums:
        kind = np.float16 if half else np.float32
        return cls(total=np.zeros((classes, *shape), kind), seen=np.zeros(shape, kind))

    def add(self, result: Float, start: Start, weight: Float | None) -> None:
        """``result`` (K, *window) at ``start``; windows beyond the grid's end are cut."""
        sides = self.seen.shape
        box = tuple(slice(s, min(s + n, side)) for s, n, side in zip(start, result.shape[1:], sides, strict=True))
        inside = tuple(slice(0, part.stop - part.start) for part in box)
        result = result[(slice(None), *inside)]
        if weight is None:
            self._into(self.total, (slice(None), *box), result)
            self._into(self.seen, box, np.float32(1))
            return
        weight = weight[inside]
        self._into(self.total, (slice(None), *box), result * weight)
        self._into(self.seen, box, weight)

    def _into(self, target: NDArray[np.floating], where: tuple[slice, ...], value: Float | np.float32) -> None:
        if target.dtype == np.float32:
            target[where] += value
        else:
            target[where] = (target[where].astype(np.float32) + value).astype(np.float16)

    def mean(self) -> NDArray[np.floating]:
        """(K, *axes): the sums divided by the weights, in place for float32."""
        if self.total.dtype == np.float32:
            return np.divide(self.total, self.seen, out=self.total)
        return (self.total.astype(np.float32) / self.seen.astype(np.float32)).astype(np.float16)


def cut(x: Float, start: Start, tiling: Tiling) -> Float:
    """One window of (C, *axes): a view, smaller than the window where the grid is."""
    box = tuple(slice(s, s + n) for s, n in zip(start, tiling.window, strict=True))
    return x[(slice(None), *box)]


def count_windows(shape: Sequence[int], tiling: Tiling) -> int:
    """How many windows a grid takes, without listing them."""
    padded = [size + sum(extra) for size, extra in zip(shape, padding(shape, tiling), strict=True)]
    axes = (
        len(axis_starts(size, window, step, tiling.positions))
        for size, window, step in zip(padded, tiling.window, tiling.step, strict=True)
    )
    return math.prod(axes)


def slices(shape: Sequence[int], tiling: Tiling) -> Iterator[int | None]:
    """What lies above the window's axes: each slice of a volume for a 2D window, once (None) for the rest."""
    if len(shape) == len(tiling.window):
        yield None
    else:
        yield from range(shape[0])
