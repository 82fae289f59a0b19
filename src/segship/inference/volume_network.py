"""A volume (or a large picture) through the network window by window: tiles × mirrorings × ensemble members.

What is averaged, how tiles are weighted and summed is the manifest's; how many tiles share a batch, and which
mirrorings and members take part, is the caller's (`TileOptions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from segship.errors import UsageError
from segship.inference import tiling as windows
from segship.inference.decode import activate
from segship.inference.tiling import Float, Start, Sums
from segship.manifest import Argmax, Recipe, Tiling

Progress = Callable[[int, int, str], None]
Passes = Sequence[Callable[[Float], Float]]
"""one function an ensemble member: (N, C, *window) float32 to raw logits (N, K, *window)"""

BATCH_VOXELS = {2: 1 << 20, 3: 1 << 18}
"""by a window's axes: windows share a batch up to about so many voxels. More gains nothing on a processor and costs memory
(measured: four windows of 64³ at once take the processor time of four, and twice the memory of one)"""

SURELY_NOT = -16.0
"""a logit whose probability is 1e-7"""


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """What the user may change about the windows; None: as the manifest says."""

    step_size: float | None = None
    """step as a part of the window, 0 < step <= 1"""
    mirror: bool = True
    """test-time mirroring where the manifest has it"""
    mirror_axes: tuple[int, ...] | None = None
    """mirror along these alone, of the manifest's; None: all of them"""
    members: tuple[str, ...] | None = None
    """ensemble members by name; None: all"""
    batch: int | None = None
    crop_remainder: bool = False
    """leave short remainders out as MLPerf does, whatever the manifest says (``tiling.compat_crop``)"""
    half_sums: bool = False
    """sum in float16 as nnU-Net v2 does, to reproduce its files"""

    def __post_init__(self) -> None:
        if self.step_size is not None and not 0 < self.step_size <= 1:
            raise UsageError(f"step size is a part of the window, above 0 and up to 1, not {self.step_size}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"batch is at least 1, got {self.batch}")

    def applied(self, tiling: Tiling) -> Tiling:
        """The manifest's tiling with these changes."""
        changes: dict[str, object] = {}
        if self.step_size is not None:
            changes["step"] = tuple(side * self.step_size for side in tiling.window)
        if not self.mirror:
            changes["mirror_axes"] = ()
        elif self.mirror_axes is not None:
            changes["mirror_axes"] = tuple(axis for axis in tiling.mirror_axes if axis in self.mirror_axes)
        if self.half_sums:
            changes["accumulator"] = "float16"
        changed = tiling.model_copy(update=changes) if changes else tiling
        return windows.compat_crop(changed) if self.crop_remainder else changed


def first_tiles(tiles: TileOptions) -> TileOptions:
    """What a run's options mean for the first stage of a cascade: its folds and its window are its own."""
    return replace(tiles, members=None, batch=None)


def count_passes(shape: Sequence[int], tiling: Tiling, members: int) -> int:
    """How often the network runs on one window for a grid of this shape: the price of a case."""
    kept = windows.remainder_crop(shape[-len(tiling.window) :], tiling)
    spatial = [part.stop - part.start for part in kept]
    slices = 1 if len(shape) == len(tiling.window) else shape[0]
    return slices * windows.count_windows(spatial, tiling) * 2 ** len(tiling.mirror_axes) * members


def scores(
    x: Float, recipe: Recipe, passes: Passes, options: TileOptions | None = None, progress: Progress | None = None
) -> np.ndarray:
    """The network's answer for a whole grid: x (C, *axes) float32 to logits or probabilities (K, *axes).

    A window of two axes runs over every slice of a volume. The result is float32, float16 where sums are kept so.
    What the manifest leaves out (``tiling.remainder_crop``) comes back as background.
    """
    options = options or TileOptions()
    if recipe.tiling is None:
        raise UsageError(f"package '{recipe.name}' has no tiling; the network takes a whole case at once")
    tiling = options.applied(recipe.tiling)
    run = _Run(recipe=recipe, tiling=tiling, passes=passes, batch=batch_of(options, tiling))
    total = count_passes(x.shape[1:], tiling, len(passes))
    report = _counter(progress, total)
    if tiling.accumulator == "float16":  # upstream rounds a member's mean before it adds the next
        parts = [_over_grid(replace(run, passes=[one]), x, report) for one in passes]
        return _half_mean(parts)
    return _over_grid(run, x, report)


@dataclass(frozen=True, kw_only=True)
class _Run:
    recipe: Recipe
    tiling: Tiling
    passes: Passes
    batch: int

    @property
    def classes(self) -> int:
        return self.recipe.network.outputs[0].channels


def batch_of(options: TileOptions, tiling: Tiling) -> int:
    """How many windows go through the network at once."""
    voxels = int(np.prod(tiling.window))
    return options.batch or max(1, min(16, BATCH_VOXELS[len(tiling.window)] // voxels))


def lone_window(recipe: Recipe) -> tuple[int, ...] | None:
    """(1, C, *window) where windows are so large that each goes through the network alone, else None.

    An engine that is told the one shape it will see plans its memory ahead: a full-size 3D network then takes a tenth
    less of it.
    """
    tiling = recipe.tiling
    if tiling is None or recipe.input.kind != "volume" or tiling.pad_mode == "none":
        return None
    if batch_of(TileOptions(), tiling) > 1:
        return None
    return (1, recipe.network.input_channels, *tiling.window)


def _counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total, "windows")

    return count


def _over_grid(run: _Run, x: Float, report: Callable[[int], None]) -> np.ndarray:
    flat = len(run.tiling.window) == x.ndim - 1
    if flat:
        return _one_grid(run, x, report)
    out: np.ndarray | None = None
    for z in range(x.shape[1]):
        found = _one_grid(run, np.ascontiguousarray(x[:, z]), report)
        if out is None:
            out = np.empty((len(found), x.shape[1], *found.shape[1:]), found.dtype)
        out[:, z] = found
    assert out is not None
    return out


def _one_grid(run: _Run, x: Float, report: Callable[[int], None]) -> np.ndarray:
    kept = (slice(None), *windows.remainder_crop(x.shape[1:], run.tiling))
    padded, back = windows.pad(x[kept], run.tiling)
    starts = windows.window_starts(padded.shape[1:], run.tiling)
    weight = windows.weights(run.tiling, len(starts))
    sums = Sums.zeros(run.classes, padded.shape[1:], half=run.tiling.accumulator == "float16")
    for start, result in _results(run, padded, starts, report):
        sums.add(result, start, weight)
    found = sums.mean()[(slice(None), *back)]
    if found.shape[1:] == x.shape[1:]:
        return np.ascontiguousarray(found)
    whole = np.full((run.classes, *x.shape[1:]), _background(run), found.dtype)
    whole[kept] = found
    return whole


def _background(run: _Run) -> float:
    """A score that decides for background where every class has it: of equal scores the first class wins."""
    exclusive = isinstance(run.recipe.decode.decision, Argmax)
    return 0.0 if exclusive or run.tiling.average == "probabilities" else SURELY_NOT


def _results(
    run: _Run, x: Float, starts: Sequence[Start], report: Callable[[int], None]
) -> Iterator[tuple[Start, Float]]:
    """Each window's mean over mirrorings and members, in the order of ``starts``."""
    subsets = windows.mirror_subsets(run.tiling.mirror_axes)
    constant: dict[tuple[float, ...], Float] = {}
    waiting: list[tuple[Start, Float]] = []
    for start in starts:
        tile = windows.cut(x, start, run.tiling)
        value = _constant_value(tile)
        if value is not None and value in constant and constant[value].shape[1:] == tile.shape[1:]:
            yield from _flush(run, waiting, subsets, report)
            waiting = []
            report(len(subsets) * len(run.passes))
            yield start, constant[value]  # the same input has the same output: nothing to compute
            continue
        if value is not None:
            yield from _flush(run, waiting, subsets, report)
            waiting = []
            for same, result in _flush(run, [(start, tile)], subsets, report):
                constant[value] = result
                yield same, result
            continue
        waiting.append((start, tile))
        if len(waiting) * len(subsets) >= run.batch:
            yield from _flush(run, waiting, subsets, report)
            waiting = []
    yield from _flush(run, waiting, subsets, report)


def _constant_value(tile: Float) -> tuple[float, ...] | None:
    """The value of each channel where all are constant; None otherwise. Looks at one row first, as most differ there."""
    first = tile[(slice(None),) + (slice(0, 1),) * (tile.ndim - 1)]
    row = tile[(slice(None),) + (slice(0, 1),) * (tile.ndim - 2)]
    if not bool((row == first).all()) or not bool((tile == first).all()):
        return None
    return tuple(float(value) for value in first.reshape(-1))


def _flush(
    run: _Run, waiting: Sequence[tuple[Start, Float]], subsets: list[tuple[int, ...]], report: Callable[[int], None]
) -> Iterator[tuple[Start, Float]]:
    if not waiting:
        return
    jobs = [(number, subset) for number in range(len(waiting)) for subset in subsets]
    means: list[Float | None] = [None] * len(waiting)
    share = np.float32(len(subsets) * len(run.passes))
    for begin in range(0, len(jobs), run.batch):
        part = jobs[begin : begin + run.batch]
        x = np.stack([windows.flip(waiting[number][1], subset, 1) for number, subset in part])
        for one in run.passes:
            for (number, subset), raw in zip(part, one(x), strict=True):
                result = windows.flip(_activated(run, raw), subset, 1)
                so_far = means[number]
                means[number] = np.array(result, np.float32) if so_far is None else np.add(so_far, result, out=so_far)
            report(len(part))
    for (start, _), total in zip(waiting, means, strict=True):
        assert total is not None
        yield start, np.divide(total, share, out=total) if share != 1 else total


def _activated(run: _Run, raw: Float) -> Float:
    if run.tiling.average == "probabilities":
        return np.asarray(activate(raw, run.recipe.decode.activation), np.float32)
    return raw


def _half_mean(parts: Sequence[np.ndarray]) -> np.ndarray:
    total = parts[0]
    for part in parts[1:]:
        total = (total.astype(np.float32) + part.astype(np.float32)).astype(np.float16)
    return (total.astype(np.float32) / np.float32(len(parts))).astype(np.float16) if len(parts) > 1 else total
