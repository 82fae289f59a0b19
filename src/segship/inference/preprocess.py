"""The manifest's preprocessing steps, and their way back: pure functions over arrays.

`prepare` runs the whole chain for one picture. Steps that change the geometry leave a record (`Geometry`), so
that whatever the network answers can be put back onto the picture's own grid: undo is data, not a closure.

Arrays of pictures are (H, W, C); those of volumes (C, z, y, x). Every value step computes in float32 (float64
where the manifest says so), one rounding for each operation that the manifest names, in its order: that is what
the trained networks saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from segship.errors import InputError, PackageError
from segship.inference.images import Image
from segship.inference.resize import Size, resize
from segship.manifest import (
    Channels,
    Clip,
    CropToNonzero,
    Divide,
    DivideByMaximum,
    Mirror,
    Normalize,
    Pad,
    Recipe,
    ReplaceNonFinite,
    RescaleMinMax,
    Resize,
    ResizeByFactor,
    ResizeKeepRatio,
    Step,
    Transpose,
    ZScore,
)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What one step did to the grid; sizes are (height, width), the offset is where the picture starts."""

    kind: Literal["resize", "pad", "crop", "mirror"]
    before_hw: Size
    after_hw: Size
    offset_yx: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where a network input came from: all that is needed to put an answer back onto the picture's own grid."""

    name: str
    original_hw: Size
    prepared_hw: Size
    geometry: tuple[Geometry, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """The network's input for one picture, float32 (C, h, w) contiguous, and the way back."""

    x: np.ndarray
    frame: Frame

    @property
    def original_hw(self) -> Size:
        return self.frame.original_hw

    @property
    def prepared_hw(self) -> Size:
        return self.frame.prepared_hw


def prepare(image: Image, recipe: Recipe) -> Prepared:
    """Run the manifest's steps over one picture.

    Raises InputError when the result does not fit the network, PackageError for a step that only volumes have.
    """
    if recipe.input.kind != "image":
        raise PackageError(f"package '{recipe.name}' takes volumes; this version of segship runs packages for pictures")
    replaces = any(isinstance(step, ReplaceNonFinite) for step in recipe.preprocess)
    if image.pixels.dtype.kind == "f" and not replaces and not np.isfinite(image.pixels).all():
        raise InputError(f"{image.name} holds NaN or infinite values; replace them first")
    array = image.pixels
    geometry: list[Geometry] = []
    for step in recipe.preprocess:
        array, moved = run_step(array, step, in_place=not np.may_share_memory(array, image.pixels))
        if moved is not None and (moved.before_hw != moved.after_hw or moved.kind == "mirror"):
            geometry.append(moved)
    x = np.ascontiguousarray(_floats(array).transpose(2, 0, 1))
    check_input_shape(x.shape, recipe, image.name)
    frame = Frame(
        name=image.name,
        original_hw=image.size_hw,
        prepared_hw=(x.shape[1], x.shape[2]),
        geometry=tuple(geometry),
        notes=image.notes,
    )
    return Prepared(x=x, frame=frame)


def check_input_shape(shape: tuple[int, ...], recipe: Recipe, name: str) -> None:
    """Raise InputError unless a (C, *spatial) array fits the network's channels, fixed size and size multiples."""
    network = recipe.network
    check_channels(shape[0], recipe, name)
    sides = shape[1:]
    if len(sides) != len(network.size_multiple):
        raise InputError(f"{name}: the network takes {network.layout} arrays, got {len(sides)} spatial axes")
    if recipe.tiling is not None and recipe.input.kind == "image":
        return  # windows are cut and filled up one by one
    if network.size is not None and tuple(sides) != network.size:
        raise InputError(f"{name}: the network takes exactly {_by(network.size)}, got {_by(sides)}")
    if any(side % multiple or not side for side, multiple in zip(sides, network.size_multiple, strict=True)):
        nearest = [max(m, -(-side // m) * m) for side, m in zip(sides, network.size_multiple, strict=True)]
        raise InputError(
            f"{name}: the network takes sizes that are multiples of {_by(network.size_multiple)}, got {_by(sides)}; "
            f"resize or pad to {_by(nearest)}"
        )


def check_channels(count: int, recipe: Recipe, name: str) -> None:
    """Raise InputError unless the network takes that many channels."""
    if count != recipe.network.input_channels:
        raise InputError(f"{name} gives {count} channel(s), the network takes {recipe.network.input_channels}")


def _by(sides: Any) -> str:
    return "x".join(str(side) for side in sides)


# ------------------------------------------------------------------------------------------------- steps


def run_step(array: np.ndarray, step: Step, in_place: bool = False) -> tuple[np.ndarray, Geometry | None]:
    """One step on a picture (H, W, C): the new array and, where the grid changed, how.

    ``in_place`` lets a value step write over an array that nobody else needs.
    """
    before = (array.shape[0], array.shape[1])
    if isinstance(step, Resize | ResizeKeepRatio | ResizeByFactor):
        size = resized_size(before, step)
        return resize(array, size, step.method), Geometry(kind="resize", before_hw=before, after_hw=size)
    if isinstance(step, Pad):
        padded, offset = _pad(array, step)
        after = (padded.shape[0], padded.shape[1])
        return padded, Geometry(kind="pad", before_hw=before, after_hw=after, offset_yx=offset)
    if isinstance(step, CropToNonzero):
        cropped, offset = _crop_to_nonzero(array, step)
        after = (cropped.shape[0], cropped.shape[1])
        return cropped, Geometry(kind="crop", before_hw=before, after_hw=after, offset_yx=offset)
    if isinstance(step, Mirror):
        return array[:, ::-1], Geometry(kind="mirror", before_hw=before, after_hw=before)
    if isinstance(step, Transpose):
        raise PackageError("step 'transpose' reorders the axes of volumes; this package applies it to a picture")
    return apply_step(array, step, in_place=in_place), None


def apply_step(array: np.ndarray, step: Step, channel_axis: int = -1, in_place: bool = False) -> np.ndarray:
    """One value step (normalize, divide, clip, zscore …) or `transpose` on an array with channels at ``channel_axis``.

    The input is not changed unless ``in_place``; the result is float32, float64 after a step that says so. Raises
    PackageError naming a step that is not run here.
    """
    if isinstance(step, Transpose):
        return np.ascontiguousarray(array.transpose(0, *(1 + axis for axis in step.axes)))
    if isinstance(step, Channels):
        return _channels(array, step.count, channel_axis)
    run = _VALUE_STEPS.get(type(step))
    if run is None:
        raise PackageError(
            f"preprocessing step '{step.step}' belongs to volumes, which this version of segship does not run; "
            "update with `pip install -U segship`"
        )
    dtype = getattr(step, "dtype", "float32")
    return run(_floats(array, copy=not in_place, channel_axis=channel_axis, dtype=dtype), step, channel_axis)


def _floats(array: np.ndarray, copy: bool = False, channel_axis: int = -1, dtype: str = "float32") -> np.ndarray:
    """Floats, each channel contiguous in memory so that per-channel arithmetic runs over whole planes."""
    planes = np.moveaxis(array, channel_axis, 0)
    if copy or array.dtype != dtype or not array.flags.writeable:
        planes = np.array(planes, dtype=dtype, order="C", copy=True)
    return np.moveaxis(planes, 0, channel_axis)


def _channels(x: np.ndarray, count: int, axis: int) -> np.ndarray:
    have = x.shape[axis]
    if have == 1:
        return np.repeat(x, count, axis)
    if have < count:
        raise PackageError(f"step 'channels' keeps {count} planes, the input has {have}")
    return np.moveaxis(np.moveaxis(x, axis, 0)[:count], 0, axis)


def _channel(x: np.ndarray, index: int, axis: int, name: str) -> np.ndarray:
    if index >= x.shape[axis]:
        raise PackageError(f"step '{name}' names channel {index}, the input has {x.shape[axis]}")
    view: np.ndarray = np.moveaxis(x, axis, 0)[index]
    return view


def _normalize(x: np.ndarray, step: Normalize, axis: int) -> np.ndarray:
    number, planes, constants = x.dtype.type, x.shape[axis], len(step.subtract)
    if planes not in (1, constants, constants + 1):
        raise PackageError(f"step 'normalize' has {constants} channels, the input has {planes}")
    for plane, subtract, multiply in zip(np.moveaxis(x, axis, 0), step.subtract, step.multiply, strict=False):
        np.subtract(plane, number(subtract), out=plane)
        np.multiply(plane, number(multiply), out=plane)
    return x


def _divide(x: np.ndarray, step: Divide, axis: int) -> np.ndarray:
    target = x if step.channel is None else _channel(x, step.channel, axis, step.step)
    np.divide(target, np.float32(step.by), out=target)
    return x


def _divide_by_maximum(x: np.ndarray, step: DivideByMaximum, axis: int) -> np.ndarray:
    return np.divide(x, max(x.max(), x.dtype.type(step.floor)), out=x)


def _clip(x: np.ndarray, step: Clip, axis: int) -> np.ndarray:
    target = x if step.channel is None else _channel(x, step.channel, axis, step.step)
    np.clip(target, np.float32(step.low), np.float32(step.high), out=target)
    return x


def _zscore(x: np.ndarray, step: ZScore, axis: int) -> np.ndarray:
    plane = _channel(x, step.channel, axis, step.step)
    zscore(plane, step, plane != 0)
    return x


def zscore(plane: np.ndarray, step: ZScore, nonzero: np.ndarray | None) -> None:
    """Normalise one channel in place, float32; ``nonzero`` is the mask that the step may name (None: nothing is masked)."""
    where = nonzero if step.mask == "nonzero" else None
    values = plane.reshape(-1) if where is None else plane[where]
    if values.size:
        counted = values
        if step.between is not None:
            counted = values[(values > np.float32(step.between[0])) & (values < np.float32(step.between[1]))]
            counted = counted if counted.size else values
        mean = np.float32(counted.mean() if step.mean is None else step.mean)
        std = np.float32(counted.std() if step.std is None else step.std)
        epsilon = np.float32(step.epsilon)
        scale = max(std, epsilon) if step.epsilon_rule == "maximum" else std + epsilon
        if scale == 0:
            raise InputError(
                f"channel {step.channel} is constant and cannot be normalised; check that it holds a picture"
            )
        if where is None:
            np.subtract(plane, mean, out=plane)
            np.divide(plane, scale, out=plane)
        else:
            plane[where] = (values - mean) / scale
    if step.outside_mask == "zero" and nonzero is not None:
        plane[~nonzero] = 0


def _rescale_min_max(x: np.ndarray, step: RescaleMinMax, axis: int) -> np.ndarray:
    plane = _channel(x, step.channel, axis, step.step)
    low, high = plane.min(), plane.max()
    scale = max(high - low, np.float32(step.epsilon))
    np.subtract(plane, low, out=plane)
    if scale > 0:  # a constant channel with epsilon 0 becomes zeros
        np.divide(plane, scale, out=plane)
    return x


def _replace_non_finite(x: np.ndarray, step: ReplaceNonFinite, axis: int) -> np.ndarray:
    x[~np.isfinite(x)] = np.float32(step.value)
    return x


_VALUE_STEPS: dict[type, Callable[[np.ndarray, Any, int], np.ndarray]] = {
    Normalize: _normalize,
    Divide: _divide,
    DivideByMaximum: _divide_by_maximum,
    Clip: _clip,
    ZScore: _zscore,
    RescaleMinMax: _rescale_min_max,
    ReplaceNonFinite: _replace_non_finite,
}


# ---------------------------------------------------------------------------------------------- geometry


def resized_size(size: Size, step: Resize | ResizeKeepRatio | ResizeByFactor) -> Size:
    """(height, width) that a resizing step gives a picture of ``size``."""
    if isinstance(step, Resize):
        return step.height, step.width
    if isinstance(step, ResizeKeepRatio):
        return keep_ratio_size(size, step)
    height, width = (max(1, int(side * step.factor + 0.5)) for side in size)
    if not step.keep_ratio:
        return height, width
    fit = ResizeKeepRatio(long_side=max(height, width), short_side=min(height, width), method=step.method)
    return keep_ratio_size(size, fit)


def keep_ratio_size(size: Size, step: ResizeKeepRatio) -> Size:
    """Size that fits (long_side, short_side), ratio kept, sides rounded half up (open-mmlab/mmcv: rescale_size)."""
    height, width = size
    scale = min(step.long_side / max(height, width), step.short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _pad(array: np.ndarray, step: Pad) -> tuple[np.ndarray, tuple[int, int]]:
    target = [max(side, least) for side, least in zip(array.shape[:2], step.minimum or (1, 1), strict=True)]
    missing = [
        -(-side // step.multiple_of) * step.multiple_of - have for side, have in zip(target, array.shape, strict=False)
    ]
    first = [gap // 2 if step.where == "both" else 0 for gap in missing]
    widths = [(a, gap - a) for a, gap in zip(first, missing, strict=True)]
    if not any(missing):
        return array, (0, 0)
    if step.mode == "constant":
        padded = np.pad(array, [*widths, (0, 0)], constant_values=array.dtype.type(step.value))
    else:
        padded = np.pad(array, [*widths, (0, 0)], mode=step.mode)
    return padded, (first[0], first[1])


def _crop_to_nonzero(array: np.ndarray, step: CropToNonzero) -> tuple[np.ndarray, tuple[int, int]]:
    # Filling holes never changes a bounding box, so `fill_holes` makes no difference to where the crop lies.
    present = (array != 0).any(axis=2)
    rows, columns = np.flatnonzero(present.any(axis=1)), np.flatnonzero(present.any(axis=0))
    if rows.size == 0:
        return array, (0, 0)
    top, left = int(rows[0]), int(columns[0])
    return array[top : rows[-1] + 1, left : columns[-1] + 1], (top, left)


def by_input_size(grid: Size, frame: Frame, path: str) -> bool:
    """Whether an output on ``grid`` is brought to the network's input size before it travels on (`Decode.restore_path`)."""
    # With nothing but a resize behind it, an output of another stride may go to the picture's grid in one step.
    direct = path == "direct" and bool(frame.geometry) and frame.geometry[-1].kind == "resize"
    return grid != frame.prepared_hw and not direct


def restore(planes: np.ndarray, frame: Frame, method: str, path: str = "direct") -> np.ndarray:
    """Put (K, h, w) planes on the network's output grid back onto the picture's own grid: (K, H, W).

    Walks the geometry backwards: padding is cut off, resizes are undone with ``method``, what was cropped away
    comes back as zeros. An output coarser than the input (stride) goes the ``path`` of `Decode.restore_path`.
    """
    out = planes
    if by_input_size((out.shape[1], out.shape[2]), frame, path):
        out = resize_planes(out, frame.prepared_hw, method)
    for step in reversed(frame.geometry):
        y, x = step.offset_yx
        if step.kind == "resize":
            out = resize_planes(out, step.before_hw, method)
        elif step.kind == "mirror":
            out = out[:, :, ::-1]
        elif step.kind == "pad":
            out = out[:, y : y + step.before_hw[0], x : x + step.before_hw[1]]
        else:
            whole = np.zeros((len(out), *step.before_hw), out.dtype)
            whole[:, y : y + step.after_hw[0], x : x + step.after_hw[1]] = out
            out = whole
    return np.ascontiguousarray(out)


def resize_planes(planes: np.ndarray, size: Size, method: str) -> np.ndarray:
    # One plane at a time: OpenCV's last bits differ with the number of channels.
    planes = np.ascontiguousarray(planes)
    out = np.stack([resize(plane[..., None], size, method)[..., 0] for plane in planes])
    if planes.dtype == np.uint8 and out.dtype != np.uint8:  # a finished map stays in grey levels
        return np.clip(np.rint(out), 0, 255).astype(np.uint8)
    return out
