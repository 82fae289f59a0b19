"""Resizing by the rules that the manifest names, each equal to the library it is named after.

    opencv:linear, :nearest, :area      cv2.resize
    pillow:bilinear, :lanczos           Pillow's resampling, horizontal pass first whatever its version
    skimage:linear-antialias            scikit-image 0.19 and later: transform.resize(mode="constant")
    skimage:linear                      the same without its Gaussian (scikit-image 0.14)
    torch:bilinear, -align-corners      torch's interpolate on floats, without anti-aliasing

Arrays are (H, W, C), sizes (height, width).
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from segship.errors import InputError, PackageError

Size = tuple[int, int]

_OPENCV = {"linear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST, "area": cv2.INTER_AREA}
_OUTPUTS = 8
"""rows of one dense product: more waste multiplications with zeros, fewer waste calls"""
_ROWS = 32
"""rows of the result made at once: small temporaries are reused by the allocator, large ones cost page faults"""
_CACHED_VALUES = 1 << 16
"""float64 values that a product reads at once: half a MiB"""
Taps = tuple[np.ndarray, np.ndarray]


def resize(array: np.ndarray, size: Size, method: str) -> np.ndarray:
    """Resize (H, W, C) to ``size`` by a rule named in the manifest.

    The dtype is kept, but for `skimage:*`, which gives float64 (integers divided by their type's maximum), and
    `torch:*`, which gives float32. Raises PackageError for a method that is not known here.
    """
    library, _, rule = method.partition(":")
    if library == "skimage" and rule in ("linear", "linear-antialias"):
        return _resize_skimage(array, size, rule == "linear-antialias")
    if (array.shape[0], array.shape[1]) == size:
        return array
    if library == "opencv" and rule in _OPENCV:
        return _resize_opencv(array, size, _OPENCV[rule])
    if library == "pillow" and rule in ("bilinear", "lanczos"):
        return _resize_pillow(array, size, rule)
    if method == "torch:bilinear":  # OpenCV's float path has the same half-pixel rule, and no anti-aliasing either
        return _resize_opencv(array.astype(np.float32, copy=False), size, cv2.INTER_LINEAR)
    if method == "torch:bilinear-align-corners":
        return _resize_align_corners(array, size)
    raise PackageError(
        f"resize method '{method}' is not run by this version of segship; update with `pip install -U segship`"
    )


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
    height, width = size

    def one(plane: np.ndarray) -> np.ndarray:
        # Two calls: Pillow 13 chooses which axis goes first, and rounding in between makes that visible.
        across = pil.fromarray(np.ascontiguousarray(plane)).resize((width, plane.shape[0]), kernel)
        return np.asarray(across.resize((width, height), kernel))

    if array.dtype == np.uint8 and array.shape[2] == 3:
        return one(array)
    kind = np.uint8 if array.dtype == np.uint8 else np.float32
    planes = [one(array[..., c].astype(kind, copy=False)) for c in range(array.shape[2])]
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


# ------------------------------------------------------------------------------------------ scikit-image


def _resize_skimage(array: np.ndarray, size: Size, antialias: bool) -> np.ndarray:
    """float64 (h, w, C) in the range that integers have after division by their type's maximum.

    Gaussian and bilinear interpolation are both linear and separable, so each axis is one banded matrix: only
    the values that reach the result are ever filtered. Zeros stand outside the picture in both.
    """
    if array.dtype == np.bool_:
        rows, columns = (_nearest(before, after) for before, after in zip(array.shape, size, strict=False))
        return array[rows][:, columns].astype(np.float64)
    down, across = (_taps(before, after, antialias) for before, after in zip(array.shape, size, strict=False))
    plain = down[1].shape[1] == across[1].shape[1] == 2
    out = (_resize_by_gathering if plain else _resize_by_bands)(array, size, down, across)
    np.clip(out, array.min(), array.max(), out=out)
    return np.divide(out, np.iinfo(array.dtype).max, out=out) if array.dtype.kind in "iu" else out


def _nearest(before: int, after: int) -> np.ndarray:
    centre = (np.arange(after) + 0.5) * (before / after) - 0.5
    return np.clip(np.floor(centre + 0.5).astype(np.int64), 0, before - 1)


def _taps(before: int, after: int, antialias: bool) -> Taps:
    """First source index (after,) and weights (after, taps) of each output along one axis; zero outside the source."""
    factor = before / after
    centre = (np.arange(after) + 0.5) * factor - 0.5
    first = np.floor(centre).astype(np.int64)
    fraction = centre - first
    sigma = max(0.0, (factor - 1) / 2) if antialias else 0.0
    radius = int(4 * sigma + 0.5)
    kernel = np.ones(1)
    if radius:
        kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        kernel /= kernel.sum()
    weights = np.zeros((after, 2 * radius + 2))
    for shift, share in ((0, 1 - fraction), (1, fraction)):
        inside = (first + shift >= 0) & (first + shift < before)  # outside, the filtered picture is zero
        weights[:, shift : shift + 2 * radius + 1] += (share * inside)[:, None] * kernel
    start = first - radius
    index = start[:, None] + np.arange(weights.shape[1])
    weights[(index < 0) | (index >= before)] = 0
    return start, weights


def _resize_by_gathering(array: np.ndarray, size: Size, down: Taps, across: Taps) -> np.ndarray:
    """Two taps an axis: four pictures of the result's size, weighted, a few rows at a time."""
    rows, columns = (
        [np.clip(start + k, 0, before - 1) for k in (0, 1)]
        for (start, _), before in zip((down, across), array.shape, strict=False)
    )
    out = np.empty((*size, array.shape[2]))
    for top in range(0, size[0], _ROWS):
        chosen = slice(top, top + _ROWS)
        above, below = (_two_columns(array[row[chosen]], columns, across[1]) for row in rows)
        above *= down[1][chosen, 0, None, None]
        below *= down[1][chosen, 1, None, None]
        np.add(above, below, out=out[chosen])
    return out


def _two_columns(rows: np.ndarray, columns: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    left, right = (rows.take(column, axis=1) * weights[:, k, None] for k, column in enumerate(columns))
    left += right
    return np.asarray(left)


def _resize_by_bands(array: np.ndarray, size: Size, down: Taps, across: Taps) -> np.ndarray:
    """Dense products of a few outputs at a time, so that BLAS does the work on what lies in the cache."""
    height, width = size
    _, before, channels = array.shape
    rows = array.reshape(len(array), -1)
    horizontal = _bands(*across, before)
    vertical = _bands(*down, len(array))
    out = np.empty((height, width, channels))
    values, group_size = rows.shape[1], _ROWS // _OUTPUTS
    for first in range(0, len(vertical), group_size):
        group = vertical[first : first + group_size]
        top, bottom = group[0].first, group[-1].first + len(group[-1].matrix)
        strip = np.empty((bottom - top, values))
        for band in group:
            step = max(256, _CACHED_VALUES // (band.high - band.low))
            for left in range(0, values, step):
                part = rows[band.low : band.high, left : left + step].astype(np.float64)
                lines = slice(band.first - top, band.first - top + len(band.matrix))
                np.matmul(band.matrix, part, out=strip[lines, left : left + step])
        turned = np.ascontiguousarray(strip.reshape(-1, before, channels).transpose(1, 0, 2)).reshape(before, -1)
        for band in horizontal:
            found = band.matrix @ turned[band.low : band.high]
            found = found.reshape(len(band.matrix), -1, channels)
            out[top:bottom, band.first : band.first + len(band.matrix)] = found.transpose(1, 0, 2)
    return out


class _Band(NamedTuple):
    """``matrix @ source[low:high]`` gives the outputs that begin at ``first``."""

    first: int
    low: int
    high: int
    matrix: np.ndarray


def _bands(start: np.ndarray, weights: np.ndarray, before: int) -> list[_Band]:
    count, taps = weights.shape
    bands = []
    for i in range(0, count, _OUTPUTS):
        stop = min(i + _OUTPUTS, count)
        low, high = max(0, int(start[i])), min(before, int(start[stop - 1]) + taps)
        matrix = np.zeros((stop - i, high - low))
        for j in range(i, stop):
            a, b = max(low, int(start[j])), min(high, int(start[j]) + taps)
            matrix[j - i, a - low : b - low] = weights[j, a - start[j] : b - start[j]]
        bands.append(_Band(i, low, high, matrix))
    return bands
