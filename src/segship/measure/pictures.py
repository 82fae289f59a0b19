"""Panels that show what a number means: the input, the prediction, the truth, and where they differ.

Masks are drawn over the picture; maps of grey levels stand as they are, as heat over the picture, and as differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.inference.writers import Color, blend_labels, draw_overlay, write_png
from segship.manifest import Label

Bytes = NDArray[np.uint8]
Bool = NDArray[np.bool_]
Values = NDArray[np.uint8] | NDArray[np.float32]

MAX_SIDE = 480
"""pixels of a panel's longer side; larger images are reduced, smaller ones kept"""

# Okabe and Ito's colours, told apart with any colour vision
BOTH: Color = (233, 233, 228)
ONLY_FIRST: Color = (0, 114, 178)
ONLY_SECOND: Color = (230, 159, 0)
VOID: Color = (20, 20, 20)


def overlay_panel(rgb: Bytes, masks: Bool, labels: Sequence[Label]) -> Bytes:
    """The picture (H, W, 3) reduced to MAX_SIDE with each of (K, H, W) tinted and outlined in its label's colour."""
    small, reduced = _reduce(rgb), _reduce_masks(masks)
    keep = [k for k, label in enumerate(labels) if label.id != 0]
    return np.asarray(draw_overlay(small, reduced[keep], [labels[k].color for k in keep]), np.uint8)


def input_panel(rgb: Bytes) -> Bytes:
    return _reduce(rgb)


def difference_panel(rgb: Bytes, first: Bool, second: Bool) -> Bytes:
    """The picture dimmed to grey; pixels in any class of both masks light, only in the first blue, only in the second
    orange (each (K, H, W), e.g. ground truth and prediction)."""
    small = _reduce(rgb)
    a, b = _reduce_masks(first), _reduce_masks(second)
    grey = (small.mean(axis=2, keepdims=True) * 0.35 + 20).astype(np.uint8).repeat(3, axis=2)
    only_first, only_second = (a & ~b).any(axis=0), (b & ~a).any(axis=0)
    grey[(a & b).any(axis=0)] = np.array(BOTH, np.uint8) // 2 + grey[(a & b).any(axis=0)] // 2
    grey[only_first] = ONLY_FIRST
    grey[only_second] = ONLY_SECOND
    return grey


def label_panel(rgb: Bytes, found: NDArray[np.generic], labels: Sequence[Label], void: int | None = None) -> Bytes:
    """The picture reduced to MAX_SIDE, mixed half and half with the colour of each pixel's class; ``void`` is dark."""
    small, reduced = _reduce(rgb), _reduce_numbers(found, rgb)
    mixed = np.asarray(blend_labels(small, reduced, {label.id: label.color for label in labels}), np.uint8)
    if void is not None:
        mixed[reduced == void] = small[reduced == void] // 4
    return mixed


def label_difference_panel(
    rgb: Bytes, first: NDArray[np.generic], second: NDArray[np.generic], void: int | None = None
) -> Bytes:
    """The picture in grey; where two maps of exclusive classes (H, W) agree light, where not orange, ``void`` dark."""
    small = _reduce(rgb)
    a, b = _reduce_numbers(first, rgb), _reduce_numbers(second, rgb)
    grey = (small.mean(axis=2, keepdims=True) * 0.35 + 20).astype(np.uint8).repeat(3, axis=2)
    shown = np.where((a == b)[..., None], np.array(BOTH, np.uint8) // 2 + grey // 2, np.array(ONLY_SECOND, np.uint8))
    if void is not None:
        shown[a == void] = VOID
    return np.asarray(shown, np.uint8)


def grey_panel(rgb: Bytes, values: Values) -> Bytes:
    """A map (H, W), uint8 or 0..1, as a grey picture of the size of the photo's panel."""
    return (_reduce_map(values, rgb) * 255).round().astype(np.uint8)[..., None].repeat(3, axis=2)


def heat_panel(rgb: Bytes, values: Values) -> Bytes:
    """The picture with a map (H, W) laid over it as heat: the higher, the brighter and the less of the picture shows."""
    small, heat = _reduce(rgb), _reduce_map(values, rgb)
    colors = cv2.applyColorMap((heat * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    share = 0.75 * heat[..., None]
    return np.asarray((small * (1 - share) * 0.8 + colors * share).round(), np.uint8)


def map_difference_panel(rgb: Bytes, first: Values, second: Values, scale: float = 1.0) -> Bytes:
    """The picture dimmed to grey; blue where the first map (H, W) is higher, orange where the second is, the stronger the
    larger ``scale`` times the difference."""
    small = _reduce(rgb)
    a, b = _reduce_map(first, rgb), _reduce_map(second, rgb)
    grey = np.asarray(small.mean(axis=2, keepdims=True) * 0.35 + 20).repeat(3, axis=2)
    share = np.clip(np.abs(a - b) * scale, 0, 1)[..., None]
    colors = np.where((a > b)[..., None], np.array(ONLY_FIRST), np.array(ONLY_SECOND))
    return np.asarray((grey * (1 - share) + colors * share).round(), np.uint8)


def write_panels(folder: Path, stem: str, panels: dict[str, Bytes]) -> dict[str, str]:
    """Write each panel as ``<stem>-<name>.png``; returns name -> file name."""
    written = {}
    for name, pixels in panels.items():
        path = folder / f"{stem}-{name}.png"
        write_png(path, pixels)
        written[name] = path.name
    return written


def _scale(height: int, width: int) -> tuple[int, int]:
    factor = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _reduce(rgb: Bytes) -> Bytes:
    height, width = _scale(*rgb.shape[:2])
    if (height, width) == rgb.shape[:2]:
        return rgb.copy()
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _reduce_masks(masks: Bool) -> Bool:
    height, width = _scale(*masks.shape[1:])
    if (height, width) == masks.shape[1:]:
        return masks
    planes = [
        cv2.resize(plane.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA) for plane in masks
    ]
    return np.stack(planes) > 127


def _reduce_numbers(found: NDArray[np.generic], rgb: Bytes) -> NDArray[np.generic]:
    """(h, w) of the size of the photo's panel, by nearest neighbour: numbers of classes have no mean."""
    height, width = _scale(*rgb.shape[:2])
    if found.shape == (height, width):
        return found
    values = found.astype(np.uint16)
    return np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST))


def _reduce_map(values: Values, rgb: Bytes) -> NDArray[np.float32]:
    """(h, w) 0..1 of the size of the photo's panel."""
    height, width = _scale(*rgb.shape[:2])
    unit = values.astype(np.float32) / np.float32(255 if values.dtype == np.uint8 else 1)
    reduced = unit if unit.shape == (height, width) else cv2.resize(unit, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(np.clip(reduced, 0, 1), np.float32)
