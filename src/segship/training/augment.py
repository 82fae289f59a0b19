"""Augmentation of the UNet++ recipe: pure functions of arrays and a random generator.

Images are (H, W, 3) uint8 BGR, masks (K, H, W) uint8 0..255. ``upstream`` repeats what
4uiiurz1/pytorch-nested-unet asks of albumentations 0.5.2; ``strong`` is ours.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Random = np.random.Generator

UPSTREAM_LIMIT = 0.2  # brightness and contrast
STRONG_SCALE = (0.6, 1.6)


def upstream(image: Bytes, masks: Bytes, random: Random) -> tuple[Bytes, Floats]:
    """Upstream's transforms at network size; returns the image and the target (K, h, w) float32 0..1.

    A quarter turn (p 0.5), a flip (p 0.5), then exactly one of hue/saturation/value, brightness, contrast.
    """
    if random.random() < 0.5:
        turns = int(random.integers(4))
        image, masks = np.rot90(image, turns), np.rot90(masks, turns, (1, 2))
    if random.random() < 0.5:
        axes = ((0, 1), (0,), (1,))[int(random.integers(3))]
        image, masks = np.flip(image, axes), np.flip(masks, tuple(axis + 1 for axis in axes))
    image = np.ascontiguousarray(image)
    choice = int(random.integers(3))
    if choice == 0:
        image = shift_hsv(image, *(float(random.uniform(-limit, limit)) for limit in (20, 30, 20)))
    elif choice == 1:
        image = linear(image, 1.0, 255 * float(random.uniform(-UPSTREAM_LIMIT, UPSTREAM_LIMIT)))
    else:
        image = linear(image, 1.0 + float(random.uniform(-UPSTREAM_LIMIT, UPSTREAM_LIMIT)), 0.0)
    return image, np.ascontiguousarray(masks, np.float32) / np.float32(255)


def strong(image: Bytes, masks: Bytes, size_hw: tuple[int, int], random: Random) -> tuple[Bytes, Floats]:
    """Sample the network's grid straight from the image at its stored size; returns image and target (K, h, w).

    One bilinear warp: the eight symmetries of the square, scale with aspect jitter, small rotation, shift. Without
    them it equals the linear resize that the network meets at prediction, aliasing included, which is why it starts
    from the stored size and not from the small image. Then colour, blur and noise.
    """
    matrix = _random_warp(image.shape[:2], size_hw, random)
    height, width = size_hw

    def warp(plane: Bytes | Floats) -> NDArray[Any]:
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(plane, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)

    target = np.stack([warp(mask.astype(np.float32)) for mask in masks]) / np.float32(255)
    return _random_colour(np.asarray(warp(image), np.uint8), random), np.asarray(target, np.float32)


def warp_matrix(
    source_hw: tuple[int, int], size_hw: tuple[int, int], linear_map: NDArray[np.float64], shift: tuple[float, float]
) -> NDArray[np.float64]:
    """(2, 3) matrix from target pixel to source pixel (x, y), for a map of centred unit coordinates.

    Both grids span −0.5..0.5 with half-pixel centres, so the identity map is OpenCV's linear resize.
    """
    source = np.array([source_hw[1], source_hw[0]], np.float64)
    size = np.array([size_hw[1], size_hw[0]], np.float64)
    inner = linear_map * source[:, None] / size[None, :]
    offset = source * (0.5 + np.asarray(shift)) - 0.5 + inner @ (0.5 - size / 2)
    return np.concatenate([inner, offset[:, None]], 1)


def shift_hsv(image: Bytes, hue: float, saturation: float, value: float) -> Bytes:
    """Add to hue (of 180), saturation and value (of 255).

    The image is BGR but goes through the RGB conversions, as upstream's does: its checkpoints were trained so.
    """
    levels = np.arange(256, dtype=np.float64)
    planes = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    tables = (
        np.mod(levels + hue, 180).astype(np.uint8),
        np.clip(levels + saturation, 0, 255).astype(np.uint8),
        np.clip(levels + value, 0, 255).astype(np.uint8),
    )
    shifted = cv2.merge([cv2.LUT(plane, table) for plane, table in zip(planes, tables, strict=True)])
    return np.asarray(cv2.cvtColor(shifted, cv2.COLOR_HSV2RGB), np.uint8)


def linear(image: Bytes, factor: float, offset: float) -> Bytes:
    """``factor · image + offset``, clipped and truncated to 8 bits."""
    table = np.clip(np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset), 0, 255)
    return np.asarray(cv2.LUT(image, table.astype(np.uint8)), np.uint8)


def _random_warp(source_hw: tuple[int, int], size_hw: tuple[int, int], random: Random) -> NDArray[np.float64]:
    turn = np.array([[1.0, 0.0], [0.0, 1.0]])
    if random.random() < 0.5:
        turn = turn[::-1]
    turn = turn * random.choice([-1.0, 1.0], size=2)[:, None]
    # A third of the samples keep the scale of prediction exactly.
    if random.random() < 0.35:
        return warp_matrix(source_hw, size_hw, turn, (0.0, 0.0))
    scale = np.exp(random.uniform(*np.log(STRONG_SCALE))) * np.exp(random.uniform(-0.15, 0.15) * np.array([1, -1]))
    angle = np.deg2rad(random.uniform(-20, 20)) if random.random() < 0.5 else 0.0
    cosine, sine = np.cos(angle), np.sin(angle)
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    # The window stays inside when it is smaller than the image; a larger one may slide by a tenth.
    slack = np.maximum(0.5 - 0.5 / scale, 0.0) + 0.05
    shift = random.uniform(-slack, slack)
    return warp_matrix(source_hw, size_hw, (rotation @ turn) / scale[:, None], (float(shift[0]), float(shift[1])))


def _random_colour(image: Bytes, random: Random) -> Bytes:
    if random.random() < 0.5:
        image = shift_hsv(image, *(float(random.uniform(-limit, limit)) for limit in (20, 30, 20)))
    if random.random() < 0.1:
        image = np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR), np.uint8)
    if random.random() < 0.6:
        factor = float(np.exp(random.uniform(np.log(0.65), np.log(1.5))))
        # Scaled about zero a light image would only turn white.
        middle = float(image.mean()) if random.random() < 0.5 or image.mean() > 128 else 0.0
        image = linear(image, factor, middle * (1 - factor) + 255 * float(random.uniform(-0.08, 0.08)))
    if random.random() < 0.4:
        gamma = float(np.exp(random.uniform(np.log(0.65), np.log(1.5))))
        table = 255 * (np.arange(256) / 255) ** gamma
        image = np.asarray(cv2.LUT(image, table.round().astype(np.uint8)), np.uint8)
    if random.random() < 0.15:
        image = np.asarray(cv2.GaussianBlur(image, (3, 3), float(random.uniform(0.3, 0.8))), np.uint8)
    if random.random() < 0.2:
        noise = random.normal(0, random.uniform(1, 6), (*image.shape[:2], 1))
        image = np.clip(image + noise, 0, 255).round().astype(np.uint8)
    return image
