"""The manifest's preprocessing steps on volumes, and their way back.

`prepare_volume` runs the whole chain for one case. What changes the grid leaves a record (`Moved`), walked backwards
by `volume_decode`: undo is data, not a closure.

Arrays are (C, z, y, x) float32, spacings (z, y, x) in millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segship.errors import InputError, PackageError
from segship.inference.preprocess import apply_step, check_channels, zscore
from segship.inference.resample import Rule, Shape3, Spacing, resample, resample_labels
from segship.inference.volumes import Volume
from segship.manifest import (
    CropToNonzero,
    Pad,
    PreviousStageChannels,
    Recipe,
    ReplaceNonFinite,
    Resample,
    Resize,
    ResizeKeepRatio,
    Step,
    Transpose,
    ZScore,
)

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What one step did to the grid."""

    kind: Literal["transpose", "crop", "resample", "pad"]
    before: Shape3
    after: Shape3
    before_spacing: Spacing
    after_spacing: Spacing
    axes: tuple[int, int, int] = (0, 1, 2)
    """of a transpose: output axis i is input axis axes[i]"""
    start: Shape3 = (0, 0, 0)
    """of a crop: where it begins in the larger grid; of padding: where the case begins in the padded grid"""
    mode: Literal["constant", "edge", "reflect"] = "constant"
    """of padding: where its values come from"""


@dataclass(frozen=True, kw_only=True)
class VolumeFrame:
    """Where a network input came from: all that is needed to put labels back onto the case's own grid."""

    name: str
    shape: Shape3
    spacing: Spacing
    moved: tuple[Moved, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedVolume:
    """The network's input for one case: float32 (C, z, y, x) on its grid, before any tile is cut."""

    x: np.ndarray
    spacing: Spacing
    frame: VolumeFrame

    def without_values(self) -> PreparedVolume:
        """The same with an array of zeros that takes no memory: what is needed once the network has run."""
        return replace(self, x=np.broadcast_to(np.float32(0), self.x.shape))


@dataclass(frozen=True, kw_only=True, eq=False)
class _State:
    x: np.ndarray
    spacing: Spacing
    mask: Mask | None
    """the hole-filled non-zero mask on the current grid, once a crop has made it"""
    previous: np.ndarray | None
    """the previous stage's labels on the current grid; -1 outside the mask"""
    cascade: PreviousStageChannels | None
    moved: tuple[Moved, ...] = ()
    borrowed: bool = False
    """``x`` is still the case's own array: whoever changes values copies it first"""

    @property
    def shape(self) -> Shape3:
        return self.x.shape[1], self.x.shape[2], self.x.shape[3]


def prepare_volume(
    volume: Volume, recipe: Recipe, previous: np.ndarray | None = None, *, keep: bool = True
) -> PreparedVolume:
    """Run the manifest's steps over one case.

    ``previous`` holds the labels (z, y, x) of a cascade's first stage on the case's own grid. Without ``keep`` the case's
    own values may be overwritten, which saves a copy. Raises InputError for NaN, wrong channels or a grid without extent,
    PackageError for a step that only pictures have.
    """
    check_volume(volume, recipe)
    if volume.prepared:
        return _as_it_is(volume, recipe)
    cascade = next((step for step in recipe.preprocess if isinstance(step, PreviousStageChannels)), None)
    if cascade is not None and previous is None:
        raise InputError(
            f"{volume.name}: this network needs the labels of its previous stage; give the package of that stage or "
            "--prev-stage-predictions"
        )
    if previous is not None and previous.shape != volume.shape:
        raise InputError(f"{volume.name}: the previous stage's labels are {previous.shape}, the case {volume.shape}")
    kept = previous.astype(np.int32) if cascade is not None and previous is not None else None
    state = _run_steps(volume, recipe.preprocess, kept, cascade, keep)
    check_channels(len(state.x), recipe, volume.name)
    return _prepared(volume, state)


def prepare_steps(volume: Volume, steps: Sequence[Step]) -> PreparedVolume:
    """The same with steps alone, where no package is at hand. Raises as `prepare_volume`."""
    check_values(volume, steps)
    return _prepared(volume, _run_steps(volume, steps, None, None))


def _run_steps(
    volume: Volume,
    steps: Sequence[Step],
    previous: np.ndarray | None,
    cascade: PreviousStageChannels | None,
    keep: bool = True,
) -> _State:
    given = volume.channels
    x = np.asarray(given, np.float32)
    borrowed = (keep or not given.flags.writeable) and np.may_share_memory(x, given)
    state = _State(x=x, spacing=volume.spacing, mask=None, previous=previous, cascade=cascade, borrowed=borrowed)
    masked = _needs_mask(steps)
    for step in steps:
        state = _run(state, step, masked)
        state = replace(state, borrowed=borrowed and np.may_share_memory(state.x, given))
    return _owned(state)


def _owned(state: _State) -> _State:
    """With an array that may be changed."""
    return replace(state, x=state.x.copy(), borrowed=False) if state.borrowed else state


def _prepared(volume: Volume, state: _State) -> PreparedVolume:
    frame = VolumeFrame(
        name=volume.name, shape=volume.shape, spacing=volume.spacing, moved=state.moved, notes=volume.notes
    )
    return PreparedVolume(x=np.ascontiguousarray(state.x), spacing=state.spacing, frame=frame)


def _as_it_is(volume: Volume, recipe: Recipe) -> PreparedVolume:
    """A case that was prepared before: its grid is the network's."""
    check_channels(len(volume.channels), recipe, volume.name)
    frame = VolumeFrame(name=volume.name, shape=volume.shape, spacing=volume.spacing, moved=(), notes=volume.notes)
    return PreparedVolume(x=np.ascontiguousarray(volume.channels, np.float32), spacing=volume.spacing, frame=frame)


def check_volume(volume: Volume, recipe: Recipe) -> None:
    """Raise InputError for a case that no step should see: wrong channels, no extent, bad spacing, NaN."""
    if volume.channels.ndim != 4 or 0 in volume.channels.shape:
        raise InputError(f"{volume.name} has shape {volume.channels.shape}; give (channels, z, y, x) with some extent")
    wanted = len(recipe.input.channels)
    if len(volume.channels) != wanted:
        names = ", ".join(channel.name for channel in recipe.input.channels)
        raise InputError(f"{volume.name} has {len(volume.channels)} channel(s), the network takes {wanted}: {names}")
    check_values(volume, recipe.preprocess)


def check_values(volume: Volume, steps: Sequence[Step]) -> None:
    """Raise InputError for a spacing that is none, and for NaN where no step replaces it."""
    if not all(np.isfinite(s) and s > 0 for s in volume.spacing):
        raise InputError(
            f"{volume.name} has the spacing {volume.spacing}; it must be positive, correct the file's header"
        )
    if any(isinstance(step, ReplaceNonFinite) for step in steps):
        return
    if not np.isfinite(volume.channels.sum(dtype=np.float64)):
        bad = np.argwhere(~np.isfinite(volume.channels))
        if len(bad):
            where = ", ".join(str(int(i)) for i in bad[0])
            raise InputError(
                f"{volume.name} holds {len(bad)} NaN or infinite values, the first at (channel, z, y, x) = ({where}); "
                "replace them first"
            )


def _needs_mask(steps: Sequence[Step]) -> bool:
    for step in steps:
        if isinstance(step, ZScore) and (step.mask == "nonzero" or step.outside_mask == "zero"):
            return True
        if isinstance(step, PreviousStageChannels):
            return True
    return False


def _run(state: _State, step: Step, masked: bool) -> _State:
    if isinstance(step, Transpose):
        return _transpose(state, step)
    if isinstance(step, CropToNonzero):
        return _crop(state, step, masked)
    if isinstance(step, Resample):
        return _resample(state, step)
    if isinstance(step, Pad):
        return _pad(state, step)
    if isinstance(step, PreviousStageChannels):
        return _append_previous(state, step)
    if isinstance(step, Resize | ResizeKeepRatio):
        raise PackageError(f"step '{step.step}' is for pictures; this package applies it to a volume")
    if isinstance(step, ZScore):
        if step.channel >= len(state.x):
            raise PackageError(f"step 'zscore' names channel {step.channel}, the input has {len(state.x)}")
        state = _owned(state)
        zscore(state.x[step.channel], step, state.mask)
        return state
    state = _owned(state)
    return replace(state, x=apply_step(state.x, step, channel_axis=0, in_place=True))


def _transpose(state: _State, step: Transpose) -> _State:
    axes = step.axes
    x = np.ascontiguousarray(state.x.transpose(0, *(a + 1 for a in axes)))
    spacing = (state.spacing[axes[0]], state.spacing[axes[1]], state.spacing[axes[2]])
    moved = Moved(
        kind="transpose", before=state.shape, after=(x.shape[1], x.shape[2], x.shape[3]),
        before_spacing=state.spacing, after_spacing=spacing, axes=axes,
    )  # fmt: skip
    return replace(
        state,
        x=x,
        spacing=spacing,
        mask=None if state.mask is None else np.ascontiguousarray(state.mask.transpose(axes)),
        previous=None if state.previous is None else np.ascontiguousarray(state.previous.transpose(axes)),
        moved=(*state.moved, moved),
    )


def _crop(state: _State, step: CropToNonzero, masked: bool) -> _State:
    """To the bounding box of what is not zero in any channel; an empty case stays whole."""
    present = state.x[0] != 0
    for channel in state.x[1:]:
        present |= channel != 0
    sides = [np.flatnonzero(present.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    whole = any(len(side) == 0 for side in sides)
    low = (0, 0, 0) if whole else (int(sides[0][0]), int(sides[1][0]), int(sides[2][0]))
    high = state.shape if whole else (int(sides[0][-1]) + 1, int(sides[1][-1]) + 1, int(sides[2][-1]) + 1)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    mask = None
    if masked:
        mask = np.ascontiguousarray(fill_holes(present)[box] if step.fill_holes else present[box])
    previous = state.previous
    if previous is not None and state.cascade is not None and state.cascade.crop:
        previous = np.ascontiguousarray(previous[box])
        if mask is not None:
            previous[(previous == 0) & ~mask] = -1
    x = np.ascontiguousarray(state.x[(slice(None), *box)]) if state.borrowed else _moved_up(state.x, box)
    moved = Moved(
        kind="crop", before=state.shape, after=(x.shape[1], x.shape[2], x.shape[3]),
        before_spacing=state.spacing, after_spacing=state.spacing, start=low,
    )  # fmt: skip
    return replace(state, x=x, mask=mask, previous=previous, moved=(*state.moved, moved))


def _moved_up(x: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """A part of (C, z, y, x) as one contiguous array in the memory of the whole, which is overwritten: no second copy."""
    part = x[(slice(None), *box)]
    if part.flags.c_contiguous or not (x.flags.c_contiguous and x.flags.writeable):
        return np.ascontiguousarray(part)
    out = x.reshape(-1)[: part.size].reshape(part.shape)
    for target, channel in zip(out, part, strict=True):  # never beyond where it is read from, so in order
        for plane, source in zip(target, channel, strict=True):
            plane[...] = source  # numpy looks out for the overlap of two planes
    return out


def fill_holes(mask: Mask) -> Mask:
    """Background that no face-connected path leads out of becomes foreground, as scipy's binary_fill_holes says.

    By numbering the background's components instead of dilating step by step: minutes become seconds on a CT.
    """
    from scipy import ndimage

    numbered, count = ndimage.label(~mask)
    if count == 0:
        return mask
    outside = np.zeros(count + 1, bool)
    for axis in range(mask.ndim):
        for face in (numbered.take(0, axis), numbered.take(-1, axis)):
            outside[np.unique(face)] = True
    outside[0] = False
    filled: Mask = np.empty(mask.shape, bool)
    for target, plane in zip(filled, numbered, strict=True):  # numbers become 64-bit where they pick
        np.logical_not(outside[plane], out=target)
    return filled


def _resample(state: _State, step: Resample) -> _State:
    target = tuple(
        have if want is None else want for have, want in zip(state.spacing, step.spacing_mm_zyx, strict=True)
    )
    spacing = (target[0], target[1], target[2])
    shape = resampled_shape(state.shape, state.spacing, spacing, step.shape_rule)
    moved = Moved(kind="resample", before=state.shape, after=shape, before_spacing=state.spacing, after_spacing=spacing)
    if shape == state.shape:
        return replace(state, spacing=spacing, moved=(*state.moved, moved))
    rule = rule_of(step)
    mask = state.mask
    if mask is not None:
        linear = replace(rule, order=1)
        mask = resample(mask[None].astype(np.float32), shape, linear, state.spacing, spacing)[0] >= 0.5
    return replace(
        state,
        x=resample(state.x, shape, rule, state.spacing, spacing),
        spacing=spacing,
        mask=mask,
        previous=None if state.previous is None else _resample_previous(state, shape, rule, spacing),
        moved=(*state.moved, moved),
    )


def _resample_previous(state: _State, shape: Shape3, rule: Rule, spacing: Spacing) -> np.ndarray:
    assert state.previous is not None
    half = state.cascade is not None and state.cascade.resampling == "half"
    linear = replace(rule, order=1)
    return np.asarray(resample_labels(state.previous, shape, linear, state.spacing, spacing, half=half))


def rule_of(step: Resample) -> Rule:
    """The resampling rule of a manifest step. PackageError for a method that is not run here."""
    kinds = {
        "skimage:edge": "spline",
        "torch:trilinear": "torch",
        "torch:trilinear-align-corners": "torch-align-corners",
    }
    if step.method == "torch:nearest":
        return Rule(order=0, order_z=0, separate_z="never", anisotropy_threshold=step.anisotropy_threshold)
    return Rule(
        order=step.order,
        order_z=step.order_z,
        separate_z=step.separate_z,
        anisotropy_threshold=step.anisotropy_threshold,
        kind=kinds[step.method],  # type: ignore[arg-type]
    )


def resampled_shape(shape: Shape3, before: Spacing, after: Spacing, rule: str) -> Shape3:
    """The grid that covers the same extent at another spacing; truncated, an axis keeps at least one voxel."""
    exact = [old / new * n for n, old, new in zip(shape, before, after, strict=True)]
    sides = [round(value) if rule == "round-half-even" else max(1, int(value)) for value in exact]
    if min(sides) < 1:
        raise InputError(
            f"a case of {shape} voxels at {before} mm has no voxel left at {after} mm; check the file's spacing"
        )
    return sides[0], sides[1], sides[2]


def _pad(state: _State, step: Pad) -> _State:
    least = step.minimum or (1, 1, 1)
    target = [max(have, low) for have, low in zip(state.shape, least, strict=True)]
    target = [-(-side // step.multiple_of) * step.multiple_of for side in target]
    missing = [want - have for want, have in zip(target, state.shape, strict=True)]
    if not any(missing):
        return state
    first = [gap // 2 if step.where == "both" else 0 for gap in missing]
    widths = [(0, 0), *((a, gap - a) for a, gap in zip(first, missing, strict=True))]
    if step.mode == "constant":
        x = np.pad(state.x, widths, constant_values=np.float32(step.value))
    else:
        x = np.pad(state.x, widths, mode=step.mode)
    moved = Moved(
        kind="pad", before=state.shape, after=(target[0], target[1], target[2]),
        before_spacing=state.spacing, after_spacing=state.spacing, start=(first[0], first[1], first[2]), mode=step.mode,
    )  # fmt: skip
    mask = None if state.mask is None else np.pad(state.mask, widths[1:])
    previous = None if state.previous is None else np.pad(state.previous, widths[1:])
    return replace(state, x=x, mask=mask, previous=previous, moved=(*state.moved, moved))


def _append_previous(state: _State, step: PreviousStageChannels) -> _State:
    assert state.previous is not None
    if state.previous.shape != state.shape:
        raise PackageError("step 'previous_stage_channels' without a crop needs a resampling before it; export again")
    planes = [(state.previous == label).astype(np.float32)[None] for label in step.labels]
    return replace(state, x=np.concatenate([state.x, *planes]))
