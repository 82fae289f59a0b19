"""The manifest's preprocessing steps, and their way back: pure functions over arrays.

`prepare` runs the whole chain for one picture. Steps that change the geometry leave a record (`Geometry`), so
that whatever the network answers can be put back onto the picture's own grid: undo is data, not a closure.

Arrays of pictures are (H, W, C); those of volumes (C, z, y, x). Every value step computes in float32, one
rounding for each operation that the manifest names, in its order: that is what the trained networks saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from segship.errors import InputError, PackageError
from segship.inference.images import Image
from segship.manifest import (
    Clip,
    CropToNonzero,
    Divide,
    DivideByMaximum,
    Normalize,
    Pad,
    Recipe,
    ReplaceNonFinite,
    RescaleMinMax,
    Resize,
    ResizeKeepRatio,
    Step,
    Transpose,
    ZScore,
)

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What one step did to the grid; sizes are (height, width), the offset is where the picture starts."""

    kind: Literal["resize", "pad", "crop"]
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
        array, moved = run_step(array, step)
        if moved is not None and moved.before_hw != moved.after_hw:
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
    if shape[0] != network.input_channels:
        raise InputError(f"{name} gives {shape[0]} channel(s), the network takes {network.input_channels}")
    sides = shape[1:]
    if len(sides) != len(network.size_multiple):
        raise InputError(f"{name}: the network takes {network.layout} arrays, got {len(sides)} spatial axes")
    if network.size is not None and tuple(sides) != network.size:
        raise InputError(f"{name}: the network takes exactly {_by(network.size)}, got {_by(sides)}")
    if any(side % multiple or not side for side, multiple in zip(sides, network.size_multiple, strict=True)):
        nearest = [max(m, -(-side // m) * m) for side, m in zip(sides, network.size_multiple, strict=True)]
        raise InputError(
            f"{name}: the network takes sizes that are multiples of {_by(network.size_multiple)}, got {_by(sides)}; "
            f"resize or pad to {_by(nearest)}"
        )


def _by(sides: Any) -> str:
    return "x".join(str(side) for side in sides)


# ------------------------------------------------------------------------------------------------- steps


def run_step(array: np.ndarray, step: Step) -> tuple[np.ndarray, Geometry | None]:
    """One step on a picture (H, W, C): the new array and, where the grid changed, how."""
    before = (array.shape[0], array.shape[1])
    if isinstance(step, Resize | ResizeKeepRatio):
        size = (step.height, step.width) if isinstance(step, Resize) else keep_ratio_size(before, step)
        return resize(array, size, step.method), Geometry(kind="resize", before_hw=before, after_hw=size)
    if isinstance(step, Pad):
        padded, offset = _pad(array, step)
        after = (padded.shape[0], padded.shape[1])
        return padded, Geometry(kind="pad", before_hw=before, after_hw=after, offset_yx=offset)
    if isinstance(step, CropToNonzero):
        cropped, offset = _crop_to_nonzero(array, step)
        after = (cropped.shape[0], cropped.shape[1])
        return cropped, Geometry(kind="crop", before_hw=before, after_hw=after, offset_yx=offset)
    if isinstance(step, Transpose):
        raise PackageError("step 'transpose' reorders the axes of volumes; this package applies it to a picture")
    return apply_step(array, step), None


def apply_step(array: np.ndarray, step: Step, channel_axis: int = -1) -> np.ndarray:
    """One value step (normalize, divide, clip, zscore …) or `transpose` on an array with channels at ``channel_axis``.

    The input is never changed; the result is float32. Raises PackageError naming a step that is not run here.
    """
    if isinstance(step, Transpose):
        return np.ascontiguousarray(array.transpose(0, *(1 + axis for axis in step.axes)))
    run = _VALUE_STEPS.get(type(step))
    if run is None:
        raise PackageError(
            f"preprocessing step '{step.step}' belongs to volumes, which this version of segship does not run; "
            "update with `pip install -U segship`"
        )
    return run(_floats(array, copy=True, channel_axis=channel_axis), step, channel_axis)


def _floats(array: np.ndarray, copy: bool = False, channel_axis: int = -1) -> np.ndarray:
    """float32, each channel contiguous in memory so that per-channel arithmetic runs over whole planes."""
    planes = np.moveaxis(array, channel_axis, 0)
    if copy or array.dtype != np.float32:
        planes = np.array(planes, dtype=np.float32, order="C", copy=True)
    return np.moveaxis(planes, 0, channel_axis)


def _channel(x: np.ndarray, index: int, axis: int, name: str) -> np.ndarray:
    if index >= x.shape[axis]:
        raise PackageError(f"step '{name}' names channel {index}, the input has {x.shape[axis]}")
    view: np.ndarray = np.moveaxis(x, axis, 0)[index]
    return view


def _normalize(x: np.ndarray, step: Normalize, axis: int) -> np.ndarray:
    if len(step.subtract) != x.shape[axis]:
        raise PackageError(f"step 'normalize' has {len(step.subtract)} channels, the input has {x.shape[axis]}")
    for plane, subtract, multiply in zip(np.moveaxis(x, axis, 0), step.subtract, step.multiply, strict=True):
        np.subtract(plane, np.float32(subtract), out=plane)
        np.multiply(plane, np.float32(multiply), out=plane)
    return x


def _divide(x: np.ndarray, step: Divide, axis: int) -> np.ndarray:
    return np.divide(x, np.float32(step.by), out=x)


def _divide_by_maximum(x: np.ndarray, step: DivideByMaximum, axis: int) -> np.ndarray:
    if step.dtype == "float64":
        wide = x.astype(np.float64)
        return (wide / max(float(wide.max()), step.floor)).astype(np.float32)
    return np.divide(x, max(x.max(), np.float32(step.floor)), out=x)


def _clip(x: np.ndarray, step: Clip, axis: int) -> np.ndarray:
    target = x if step.channel is None else _channel(x, step.channel, axis, step.step)
    np.clip(target, np.float32(step.low), np.float32(step.high), out=target)
    return x


def _zscore(x: np.ndarray, step: ZScore, axis: int) -> np.ndarray:
    plane = _channel(x, step.channel, axis, step.step)
    where = plane != 0 if step.mask == "nonzero" else np.ones(plane.shape, bool)
    values = plane[where]
    if values.size == 0:
        return x
    mean = np.float32(values.mean() if step.mean is None else step.mean)
    std = np.float32(values.std() if step.std is None else step.std)
    epsilon = np.float32(step.epsilon)
    scale = max(std, epsilon) if step.epsilon_rule == "maximum" else std + epsilon
    if scale == 0:
        raise InputError(f"channel {step.channel} is constant and cannot be normalised; check that it holds a picture")
    plane[where] = (values - mean) / scale
    return x


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


def keep_ratio_size(size: Size, step: ResizeKeepRatio) -> Size:
    """Size that fits (long_side, short_side), ratio kept, sides rounded half up (open-mmlab/mmcv: rescale_size)."""
    height, width = size
    scale = min(step.long_side / max(height, width), step.short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(array: np.ndarray, size: Size, method: str) -> np.ndarray:
    """Resize (H, W, C) to ``size`` (height, width) by a rule named in the manifest; the dtype is kept.

    `opencv:*` is cv2.resize, `pillow:*` Pillow's resampling (per channel in floats for other types than uint8),
    `torch:bilinear` and `torch:bilinear-align-corners` torch's interpolate on floats (no anti-aliasing).
    """
    if (array.shape[0], array.shape[1]) == size:
        return array
    library, _, rule = method.partition(":")
    if library == "opencv":
        return _resize_opencv(array, size, _OPENCV[rule])
    if library == "pillow":
        return _resize_pillow(array, size, rule)
    if method == "torch:bilinear":  # OpenCV's float path has the same half-pixel rule, and no anti-aliasing either
        return _resize_opencv(array.astype(np.float32, copy=False), size, cv2.INTER_LINEAR)
    if method == "torch:bilinear-align-corners":
        return _resize_align_corners(array, size)
    raise PackageError(
        f"resize method '{method}' is not run by this version of segship; update with `pip install -U segship`"
    )


_OPENCV = {"linear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST, "area": cv2.INTER_AREA}


def _resize_opencv(array: np.ndarray, size: Size, interpolation: int) -> np.ndarray:
    given = array.dtype
    source = array.view(np.uint8) if given == np.bool_ else array
    try:
        out = cv2.resize(source, (size[1], size[0]), interpolation=interpolation)
    except cv2.error as error:
        raise InputError(f"OpenCV cannot resize an array of shape {array.shape} and type {given} ({error})") from error
    out = out if out.ndim == array.ndim else out[..., None]  # OpenCV drops a channel axis of one
    return out.view(np.bool_) if given == np.bool_ else out


def _resize_pillow(array: np.ndarray, size: Size, rule: str) -> np.ndarray:
    from PIL import Image as pil

    kernel = {"bilinear": pil.Resampling.BILINEAR, "lanczos": pil.Resampling.LANCZOS}[rule]
    wanted = (size[1], size[0])
    if array.dtype == np.uint8 and array.shape[2] == 3:
        return np.asarray(pil.fromarray(np.ascontiguousarray(array)).resize(wanted, kernel))
    kind = np.uint8 if array.dtype == np.uint8 else np.float32
    planes = [
        np.asarray(pil.fromarray(np.ascontiguousarray(array[..., c], dtype=kind)).resize(wanted, kernel))
        for c in range(array.shape[2])
    ]
    return np.stack(planes, axis=2).astype(array.dtype, copy=False)


def _resize_align_corners(array: np.ndarray, size: Size) -> np.ndarray:
    x = array.astype(np.float32, copy=False)
    for axis, (before, after) in enumerate(zip(array.shape, size, strict=False)):
        position = np.arange(after, dtype=np.float64) * ((before - 1) / (after - 1) if after > 1 else 0.0)
        low = np.minimum(position.astype(np.int64), before - 1)
        high = np.minimum(low + 1, before - 1)
        weight = (position - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        x = x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight
    return x


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


def restore(planes: np.ndarray, frame: Frame, method: str) -> np.ndarray:
    """Put (K, h, w) planes on the network's output grid back onto the picture's own grid: (K, H, W).

    Walks the geometry backwards: padding is cut off, resizes are undone with ``method``, what was cropped away
    comes back as zeros. An output coarser than the input (stride) is first brought to the network's input size.
    """
    out = planes
    steps = frame.geometry
    # With nothing but a resize behind it, an output of another stride goes to the picture's grid in one step.
    if out.shape[1:] != frame.prepared_hw and not (steps and steps[-1].kind == "resize"):
        out = _resize_planes(out, frame.prepared_hw, method)
    for step in reversed(steps):
        y, x = step.offset_yx
        if step.kind == "resize":
            out = _resize_planes(out, step.before_hw, method)
        elif step.kind == "pad":
            out = out[:, y : y + step.before_hw[0], x : x + step.before_hw[1]]
        else:
            whole = np.zeros((len(out), *step.before_hw), out.dtype)
            whole[:, y : y + step.after_hw[0], x : x + step.after_hw[1]] = out
            out = whole
    return np.ascontiguousarray(out)


def _resize_planes(planes: np.ndarray, size: Size, method: str) -> np.ndarray:
    # One plane at a time: OpenCV's last bits differ with the number of channels.
    return np.stack([resize(plane[..., None], size, method)[..., 0] for plane in planes])
