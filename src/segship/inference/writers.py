"""Results as files. Each is encoded in memory, written beside its final name and renamed: there whole or not at all.

A place that cannot be written (read-only, full, a folder in the way) is an OutputError that says what to do.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from segship.errors import OutputError
from segship.package import replacing

Color = tuple[int, int, int]


def write_bytes(path: Path, data: bytes) -> Path:
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def _encode(suffix: str, array: np.ndarray, parameters: Sequence[int]) -> bytes:
    done, data = cv2.imencode(suffix, array, parameters)
    if not done:
        raise OutputError(f"OpenCV cannot write an array of shape {array.shape} and type {array.dtype} as {suffix}")
    return data.tobytes()


# Measured on photos with and without alpha: level 1 with one fixed row filter takes half to two thirds of the time of
# trying all filters, for files up to a tenth larger; level 6 takes five times as long for files a tenth smaller.
_PICTURE: tuple[int, ...] = (cv2.IMWRITE_PNG_COMPRESSION, 1)
# Flat areas compress best without PNG's row filters.
_FLAT = _PICTURE
if hasattr(cv2, "IMWRITE_PNG_FILTER"):
    _FLAT = (*_PICTURE, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)
    _PICTURE = (*_PICTURE, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)


def encode_png(array: np.ndarray, *, flat: bool = False) -> bytes:
    """Lossless PNG: grey (H, W) uint8 or uint16, RGB (H, W, 3) or RGBA (H, W, 4) uint8.

    ``flat`` for masks and labels: compressed as areas of one value. Equal arrays give equal bytes.
    """
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGBA2BGRA if array.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    return _encode(".png", array, _FLAT if flat else _PICTURE)


def write_png(path: Path, array: np.ndarray) -> Path:
    """Lossless PNG of a continuous uint8 picture: grey (H, W), RGB (H, W, 3) or RGBA (H, W, 4)."""
    return write_bytes(path, encode_png(array))


def write_label_png(path: Path, labels: np.ndarray) -> Path:
    """uint8 or uint16 ids (H, W) as they are."""
    return write_bytes(path, encode_png(labels, flat=True))


def write_mask_png(path: Path, mask: np.ndarray) -> Path:
    """A bool mask (H, W) as 0/255."""
    return write_label_png(path, mask.astype(np.uint8) * np.uint8(255))


def write_palette_png(path: Path, labels: np.ndarray, colors: Mapping[int, Color]) -> Path:
    """uint8 labels (H, W) as an indexed PNG: the pixel values are the ids, shown in their colours."""
    return write_bytes(path, encode_palette_png(labels, colors))


def encode_palette_png(labels: np.ndarray, colors: Mapping[int, Color]) -> bytes:
    """An indexed PNG of uint8 labels (H, W): the pixel values are the ids, shown in their colours."""
    from PIL import Image

    if labels.dtype != np.uint8:
        raise OutputError("a palette PNG holds ids up to 255; write without palette (16-bit) instead")
    palette = np.zeros((256, 3), np.uint8)
    for index, color in colors.items():
        palette[index] = color
    picture = Image.fromarray(labels)
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def to_levels(values: np.ndarray) -> np.ndarray:
    """A map of 0..1 as uint8 0..255, rounded; uint8 stays as it is."""
    if values.dtype == np.uint8:
        return values
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def write_probability_png(path: Path, probability: np.ndarray) -> Path:
    """A probability map (H, W) in 8 bits, rounded: for looking at; npz keeps the values."""
    return write_png(path, to_levels(probability))


def write_jpeg(path: Path, array: np.ndarray) -> Path:
    """Lossy grey JPEG with OpenCV's default quality, only for files that another program's users expect."""
    return write_bytes(path, _encode(".jpg", array, ()))


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return write_bytes(path, buffer.getvalue())


def write_raw(path: Path, array: np.ndarray) -> Path:
    """Little-endian float32 without a header, in C order."""
    return write_bytes(path, np.ascontiguousarray(array, dtype="<f4").tobytes())


def draw_overlay(rgb: np.ndarray, masks: np.ndarray, colors: Sequence[Color], tint: float = 0.35) -> np.ndarray:
    """The picture (uint8 H, W, 3 RGB) with each mask of (K, H, W) tinted in its colour and outlined; a new array."""
    out = rgb.copy()
    thickness = max(1, round(min(rgb.shape[:2]) / 400))
    for mask, color in zip(masks, colors, strict=True):
        out[mask] = (out[mask] * (1 - tint) + np.array(color) * tint).astype(np.uint8)
        outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(out, outline, -1, color, thickness)
    return out


def colored(labels: np.ndarray, colors: Mapping[int, Color]) -> np.ndarray:
    """uint8 (H, W, 3) RGB: each label of (H, W) in its colour, numbers without one black."""
    table = np.zeros((max(int(labels.max(initial=0)), *colors) + 1, 3), np.uint8)
    for number, color in colors.items():
        table[number] = color
    return np.asarray(table[labels])


def renumbered(labels: np.ndarray, numbers: Mapping[int, int]) -> np.ndarray:
    """Labels (H, W) as other numbers: uint8, or uint16 where one is above 255. Labels that are not named stay."""
    table = np.arange(max(int(labels.max(initial=0)), *numbers) + 1)
    for label, number in numbers.items():
        table[label] = number
    return np.asarray(table.astype(np.uint8 if table.max() <= 255 else np.uint16)[labels])


def blend_labels(rgb: np.ndarray, labels: np.ndarray, colors: Mapping[int, Color]) -> np.ndarray:
    """The picture (uint8 H, W, 3 RGB) mixed half and half with every class's colour, rounded down: mmseg's overlay at its
    opacity of 0.5 (open-mmlab/mmsegmentation 0.30: mmseg/models/segmentors/base.py, show_result)."""
    mixed = rgb.astype(np.uint16) + colored(labels, colors)
    mixed >>= 1
    return mixed.astype(np.uint8)


def draw_heat(rgb: np.ndarray, levels: np.ndarray, color: Color, tint: float = 0.55) -> np.ndarray:
    """The picture (uint8 H, W, 3 RGB) tinted as strongly as a map (uint8 H, W) says, outlined at half; a new array."""
    # in 256ths: 16 bits hold the sums, and whole numbers take a third of the time of floats
    strength = np.rint(np.arange(256) * (tint * 256 / 255)).astype(np.uint16)[levels]
    rest = np.uint16(256) - strength
    shown = np.empty_like(rgb, order="C")
    for channel, value in enumerate(color):
        shown[..., channel] = (rgb[..., channel] * rest + strength * np.uint16(value) + np.uint16(128)) >> 8
    thickness = max(1, round(min(rgb.shape[:2]) / 400))
    outline, _ = cv2.findContours((levels > 127).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(shown, outline, -1, color, thickness)
    return shown
