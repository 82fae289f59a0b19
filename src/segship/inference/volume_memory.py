"""How much memory a case's arrays take at the peak of each part of its way, from its grid and the manifest alone.

The steps are walked as `volume_chain`, `volume_network` and `volume_decode` run them, counting what each holds at once:
bytes in, bytes out, and what only the step itself needs. A crop is counted as taking nothing away, as how much it takes is
not known before the voxels are read. The memory of process, engine and network is not in here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from segship.inference import tiling as windows
from segship.inference.resample import Rule, Shape3, Spacing, separate_axis
from segship.inference.volume_chain import resampled_shape, rule_of
from segship.inference.volume_decode import restore_rule
from segship.inference.volume_network import TileOptions, batch_of
from segship.manifest import (
    Argmax,
    CropToNonzero,
    Pad,
    PreviousStageChannels,
    Recipe,
    ReplaceNonFinite,
    Resample,
    Threshold,
    Tiling,
    Transpose,
    VolumeInput,
    ZScore,
)

F4 = 4
"""bytes of a float32 and of an int32"""
_GAUSSIAN = 32
"""bytes a voxel of the window: making its weights in float64"""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """What a case's files say before they are read."""

    shape: Shape3
    spacing: Spacing
    """(z, y, x) in millimetres, in the reader's order"""
    file_bytes: int = 0
    """of its largest file"""
    stored_bytes: int = 4
    """of one voxel in a file"""
    turned: bool = False
    """the reader turns its axes"""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a case's arrays take at the peak of each part, and between the first two."""

    reading: int
    """reading and preprocessing"""
    waiting: int
    """preprocessed, until its turn comes"""
    running: int
    writing: int

    @property
    def peak(self) -> int:
        return max(self.reading, self.running, self.writing)


def memory_of(
    case: Extent, recipe: Recipe, tiles: TileOptions, *, probabilities: bool = False, image: bool = True
) -> Memory:
    """``image`` says that the voxels as read stay until the labels are written. Raises InputError for a grid without
    extent."""
    spec = recipe.input
    assert isinstance(spec, VolumeInput)
    given = F4 * len(spec.channels) * math.prod(case.shape)
    prepared = _Prepared.of(case, recipe, keep=image or case.stored_bytes == F4)  # float32 may be read without a copy
    kept = given if image else 0
    ready = kept + F4 * prepared.channels * math.prod(prepared.shape)
    return Memory(
        reading=max(_reading(case, spec), given + prepared.peak),
        waiting=ready,
        running=ready + _running(prepared.shape, recipe, tiles),
        writing=kept + _writing(case.shape, prepared, recipe, tiles, probabilities),
    )


def _reading(case: Extent, spec: VolumeInput) -> int:
    """Files one after the other, each as it is packed, unpacked, and as float32; then all channels in one array."""
    channels, voxels = len(spec.channels), math.prod(case.shape)
    files = 1 if spec.channel_files == "one-file" else channels
    part = channels * voxels // files
    one = max(case.file_bytes + case.stored_bytes * part, (case.stored_bytes + F4) * part)
    if case.turned:
        one = max(one, 2 * F4 * part)
    before = F4 * part * (files - 1)
    return max(before + one, 2 * F4 * channels * voxels if files > 1 else 0)


# ------------------------------------------------------------------------------------------- preprocessing


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """What the steps make of a case, and the most that they hold beside the case itself."""

    shape: Shape3
    channels: int
    peak: int
    resampled: Shape3 | None
    """the grid before the resampling, None where nothing is resampled"""
    before: Spacing
    after: Spacing
    padded: bool
    """the grid grew after the resampling"""
    moved: bool
    """axes are turned or cut, and labels have to be turned back"""

    @classmethod
    def of(cls, case: Extent, recipe: Recipe, keep: bool) -> _Prepared:
        walk = _Walk(case, recipe, keep)
        for step in recipe.preprocess:
            walk.run(step)
        walk.holds(0)
        return cls(
            shape=walk.shape, channels=walk.channels, peak=walk.peak, resampled=walk.source, before=walk.before,
            after=walk.spacing, padded=walk.padded, moved=walk.moved,
        )  # fmt: skip


class _Walk:
    """Steps counted one by one: ``own`` bytes are held between steps, ``peak`` is the most that was held at once."""

    def __init__(self, case: Extent, recipe: Recipe, keep: bool) -> None:
        """``keep``: the case's own array is left as it is."""
        self.keep = keep
        assert isinstance(recipe.input, VolumeInput)
        self.shape, self.spacing = case.shape, case.spacing
        self.channels = len(recipe.input.channels)
        self.masked = any(
            isinstance(step, PreviousStageChannels)
            or (isinstance(step, ZScore) and (step.mask == "nonzero" or step.outside_mask == "zero"))
            for step in recipe.preprocess
        )
        self.previous = any(isinstance(step, PreviousStageChannels) for step in recipe.preprocess)
        self.wide = 1
        self.mask = False
        self.copied = False
        """do the steps hold an array of their own, and not the case's?"""
        self.source: Shape3 | None = None
        self.before = case.spacing
        self.padded = self.moved = False
        self.peak = 0

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    @property
    def array(self) -> int:
        return F4 * self.wide * self.channels * self.voxels

    @property
    def own(self) -> int:
        labels = F4 * self.voxels if self.previous else 0
        return (self.array if self.copied else 0) + (self.voxels if self.mask else 0) + labels

    def holds(self, more: int) -> None:
        self.peak = max(self.peak, self.own + more)

    def run(self, step: object) -> None:
        if isinstance(step, Transpose):
            a, b, c = step.axes
            self.holds(self.array)
            self.shape = (self.shape[a], self.shape[b], self.shape[c])
            self.spacing = (self.spacing[a], self.spacing[b], self.spacing[c])
            self.copied = self.copied or step.axes != (0, 1, 2)
            self.moved = self.moved or step.axes != (0, 1, 2)
        elif isinstance(step, CropToNonzero):
            self.holds((7 if self.masked else 2) * self.voxels)
            self.mask, self.moved = self.masked, True
            self.copied = self.copied or self.keep
            self.holds(2 * self.voxels)
        elif isinstance(step, Resample):
            self._resample(step)
        elif isinstance(step, Pad):
            self._pad(step)
        elif isinstance(step, PreviousStageChannels):
            more = F4 * len(step.labels) * self.voxels
            self.holds(2 * more + self.array)
            self.channels += len(step.labels)
            self.previous = False
            self.copied = True
        else:
            self._values(step)

    def _values(self, step: object) -> None:
        """Steps that change values and leave the grid: in place, on an array of their own."""
        wide = 2 if getattr(step, "dtype", "float32") == "float64" else 1
        if wide != self.wide:
            before, self.wide = self.own, wide
            self.copied = True
            self.holds(before)
        self.copied = self.copied or self.keep
        self.holds(_value_bytes(step, self.channels) * self.wide * self.voxels)

    def _resample(self, step: Resample) -> None:
        wanted = [have if want is None else want for have, want in zip(self.spacing, step.spacing_mm_zyx, strict=True)]
        spacing = (wanted[0], wanted[1], wanted[2])
        target = resampled_shape(self.shape, self.spacing, spacing, step.shape_rule)
        self.source, self.before = self.shape, self.spacing
        if target != self.shape:
            rule, cells = rule_of(step), math.prod(target)
            alone = resampling_bytes(self.shape, target, rule, self.spacing, spacing)
            made = F4 * self.channels * cells
            if self.mask:
                self.holds(F4 * self.voxels + F4 * cells + alone)
            self.holds(made + alone + (cells if self.mask else 0))
            if self.previous:  # label by label: its share, the best so far, the nearest, the answer
                self.holds(made + alone + F4 * self.voxels + 4 * F4 * cells + 2 * cells)
            self.shape, self.copied, self.wide = target, True, 1
        self.spacing = spacing

    def _pad(self, step: Pad) -> None:
        least = step.minimum or (1, 1, 1)
        sides = [max(side, low) for side, low in zip(self.shape, least, strict=True)]
        sides = [-(-side // step.multiple_of) * step.multiple_of for side in sides]
        if sides == list(self.shape):
            return
        before = self.own
        self.shape, self.copied, self.padded = (sides[0], sides[1], sides[2]), True, True
        self.holds(before)


def _value_bytes(step: object, channels: int) -> int:
    """Bytes a voxel of the grid that a step of values needs for itself."""
    if isinstance(step, ReplaceNonFinite):
        return 2 * channels
    if not isinstance(step, ZScore):
        return 0
    if step.between is not None:
        return 3 + 2 * F4
    known = step.mean is not None and step.std is not None
    if step.mask == "nonzero":
        return 2 * F4
    return 0 if known else F4


def resampling_bytes(shape: Sequence[int], target: Sequence[int], rule: Rule, before: Spacing, after: Spacing) -> int:
    """What `resample` holds for one channel beside its source and its result."""
    separate = separate_axis(rule, before, after)
    axes = [axis for axis in range(3) if axis != separate and shape[axis] != target[axis]]
    torch = rule.kind != "spline"
    axes = axes[::-1] if torch else sorted(axes, key=lambda axis: target[axis] / shape[axis])
    sides, sizes = list(shape), [0]
    for axis in axes:
        sides[axis] = target[axis]
        sizes.append(F4 * math.prod(sides))
    if not axes:
        return 0
    steps = list(pairwise(sizes))
    if torch:
        return max(held + 2 * made for held, made in steps)
    inner = [held + made for held, made in steps]
    if separate is None and rule.order:
        inner[-1] = steps[-1][0]  # the last axis is written into the result itself
    return max(inner)


# ------------------------------------------------------------------------------------------------ windows


def _running(grid: Shape3, recipe: Recipe, tiles: TileOptions) -> int:
    """Sums over the grid, one batch of windows, and the means cut back; beside the network's input."""
    assert recipe.tiling is not None
    tiling = tiles.applied(recipe.tiling)
    classes, channels = recipe.network.outputs[0].channels, recipe.network.input_channels
    area = grid[-len(tiling.window) :]
    kept = [part.stop - part.start for part in windows.remainder_crop(area, tiling)]
    sides = [n + sum(extra) for n, extra in zip(kept, windows.padding(kept, tiling), strict=True)]
    cells, whole = math.prod(sides), F4 * classes * math.prod(grid)
    flat = len(area) < 3
    padded = F4 * channels * cells if flat or tuple(sides) != tuple(area) else 0
    out = whole if flat else 0
    cut = F4 * classes * math.prod(kept) if tuple(sides) != tuple(kept) or flat else 0
    cut += F4 * classes * math.prod(area) if tuple(kept) != tuple(area) else 0
    members = len(tiles.members or recipe.network.members)
    sums, ending = F4 * (classes + 1) * cells, cut
    if tiling.accumulator == "float16":
        sums, ending = sums // 2, 2 * F4 * (classes + 1) * cells + cut
        out += whole // 2 * members
    return padded + out + sums + max(window_bytes(recipe, tiles, tiling), ending)


def window_bytes(recipe: Recipe, tiles: TileOptions, tiling: Tiling) -> int:
    """Of one batch of windows, cut out, answered, averaged and weighted."""
    voxels, batch = math.prod(tiling.window), batch_of(tiles, tiling)
    classes, channels = recipe.network.outputs[0].channels, recipe.network.input_channels
    together = -(-batch // 2 ** len(tiling.mirror_axes))
    passing = 2 if tiling.average == "probabilities" else 1
    at_work = F4 * (batch * (channels + classes) + classes * (together + passing))
    return voxels * max(at_work, _GAUSSIAN)


# ------------------------------------------------------------------------------------------------ writing


def _writing(shape: Shape3, prepared: _Prepared, recipe: Recipe, tiles: TileOptions, probabilities: bool) -> int:
    """Scores on the network's grid, labels on the case's, and the file; or probabilities, the larger by far."""
    classes, voxels = recipe.network.outputs[0].channels, math.prod(shape)
    scores = F4 * classes * math.prod(prepared.shape)
    if tiles.half_sums:
        scores += scores // 2
    if prepared.padded:
        scores += F4 * classes * math.prod(prepared.resampled or shape)
    size = 2 if max(label.id for label in recipe.labels) > 255 else 1
    deciding = _deciding(voxels, prepared, recipe, tiles)
    filing = 3 * size * voxels  # labels, in the file's order, and packed
    cleaning = 16 * voxels if recipe.postprocess else 0
    need = scores + max(deciding, filing, cleaning)
    if probabilities:
        whole = F4 * classes * voxels
        turned = whole if prepared.moved or prepared.padded else 0
        need = max(need, scores + whole + max(turned, whole) + size * voxels)
    return need


def _deciding(voxels: int, prepared: _Prepared, recipe: Recipe, tiles: TileOptions) -> int:
    decode = recipe.decode
    classes, cells = recipe.network.outputs[0].channels, math.prod(prepared.shape)
    alone = 0
    rule = restore_rule(decode)
    if prepared.resampled is not None and prepared.resampled != prepared.shape and (rule.order != 1 or tiles.half_sums):
        after = resampling_bytes(prepared.shape, prepared.resampled, rule, prepared.after, prepared.before)
        alone = (3 if tiles.half_sums else 1) * (3 * F4 * voxels + after)
    if isinstance(decode.decision, Argmax):
        ids = tuple(label.id for label in recipe.labels)
        renumbered = 0 if ids == tuple(range(len(ids))) else 9 * voxels
        return cells + 2 * voxels + max(alone, renumbered)
    early = recipe.tiling is not None and recipe.tiling.average == "probabilities"
    activated = 2 * F4 * classes * cells if decode.restore_what == "probabilities" and not early else 0
    masks = 2 * classes * voxels if isinstance(decode.decision, Threshold) else 3 * voxels
    return activated + cells + masks + alone
