"""Pixels from one form to another: depth, channel order, grey. Arrays are (H, W, C)."""

from __future__ import annotations

import cv2
import numpy as np

from segship.errors import InputError
from segship.manifest import ImageInput


def to_8_bit(pixels: np.ndarray, name: str) -> np.ndarray:
    """uint8 of bool (0/255), uint16 (its high byte) or small integers. Raises InputError for all others."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint16:  # as OpenCV and libpng: the high byte, no rounding
        return (pixels >> 8).astype(np.uint8)
    if pixels.dtype.kind in "iu":
        if pixels.min() >= 0 and pixels.max() <= 255:
            return pixels.astype(np.uint8)
        raise InputError(
            f"{name} holds {pixels.dtype} values outside 0..255; give uint8, or uint16 for 16-bit pictures"
        )
    if not np.isfinite(pixels).all():
        raise InputError(f"{name} holds NaN or infinite values; replace them first")
    raise InputError(
        f"{name} holds {pixels.dtype} pixels but this network reads 8-bit pictures; give uint8 0..255, "
        "for values of 0..1: (x * 255).round().astype(numpy.uint8)"
    )


def to_order(pixels: np.ndarray, have: str, spec: ImageInput, name: str) -> np.ndarray:
    """Channels as the manifest takes them, from pixels of order ``have``. Raises InputError where they are too few."""
    channels, count = pixels.shape[2], len(spec.channels)
    if spec.channel_order == "grey":
        if channels == 3 and count == 1:
            pixels = grey(pixels, have, name)
    elif channels == 1 and count == 3 and spec.grey == "expand":
        pixels = np.repeat(pixels, 3, axis=2)
    elif channels >= 3 and have != spec.channel_order:
        pixels = pixels[..., ::-1] if channels == 3 else pixels[..., [2, 1, 0, *range(3, channels)]]
    allowed = {count, *((1,) if spec.grey == "keep" else ()), *((count + 1,) if spec.alpha == "keep" else ())}
    if pixels.shape[2] not in allowed:
        raise InputError(f"{name} has {pixels.shape[2]} channel(s), the network takes {count}; convert it first")
    return np.ascontiguousarray(pixels)


def grey(pixels: np.ndarray, order: str, name: str) -> np.ndarray:
    """One plane by OpenCV's weights. Raises InputError for types that it does not weigh."""
    if pixels.dtype not in (np.uint8, np.uint16, np.float32):
        raise InputError(f"{name} holds {pixels.dtype} colours; give a grey array, or uint8, uint16 or float32 colours")
    code = cv2.COLOR_BGR2GRAY if order == "bgr" else cv2.COLOR_RGB2GRAY
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), code))[..., None]


def rgb8(pixels: np.ndarray, order: str) -> np.ndarray:
    """uint8 (H, W, 3) RGB to look at: floats stand for 0..1 and integers for 0..255, unless they go beyond."""
    if pixels.dtype == np.bool_ or pixels.dtype == np.uint16:
        pixels = to_8_bit(pixels, "image")
    elif pixels.dtype != np.uint8:
        top = max(float(pixels.max()), 1.0 if pixels.dtype.kind == "f" else 255.0)
        pixels = np.rint(np.clip(pixels / top, 0, 1) * 255).astype(np.uint8)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3][..., ::-1] if order == "bgr" else pixels[..., :3])
