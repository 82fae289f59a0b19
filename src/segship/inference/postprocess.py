"""The manifest's clean-up rules, as plain functions over label maps (H, W) or (D, H, W) and masks of the same shape.

Components come from scipy.ndimage: connectivity "face" joins neighbours that share a side (4 in pictures, 6 in
volumes), "full" also those that share a corner (8, 26).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from segship.errors import PackageError
from segship.manifest import FillHoles, Instances, KeepLargest, Postprocess, RemoveSmall, SmoothMask


def components(mask: np.ndarray, connectivity: str) -> tuple[np.ndarray, int]:
    """Number the connected components of a mask 1, 2, 3 … in scan order: (int32 array, count)."""
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(mask.ndim, 1 if connectivity == "face" else mask.ndim)
    numbered, count = ndimage.label(mask, structure)
    return numbered, int(count)


def clean_mask(mask: np.ndarray, rules: Sequence[Postprocess], label: int) -> np.ndarray:
    """Apply the rules to one class's mask; ``label`` is its id, for rules that name labels."""
    for rule in rules:
        if isinstance(rule, KeepLargest):
            if label in rule.labels:
                mask = mask & ~_small_mask(mask, rule)
        elif isinstance(rule, RemoveSmall):
            mask = remove_small(mask, rule)
        elif isinstance(rule, FillHoles):
            mask = fill_holes(mask)
        elif isinstance(rule, SmoothMask):
            mask = smooth_mask(mask.astype(np.uint8) * np.uint8(255), rule.sigma) > 0
    return mask


def clean_labels(labels: np.ndarray, rules: Sequence[Postprocess]) -> np.ndarray:
    """Apply the rules to a label map; what a rule takes away becomes background (0)."""
    for rule in rules:
        if isinstance(rule, KeepLargest):
            labels = keep_largest(labels, rule)
        elif isinstance(rule, RemoveSmall):
            labels = _each(labels, lambda mask, rule=rule: remove_small(mask, rule))  # type: ignore[misc]
        elif isinstance(rule, FillHoles):
            labels = _each(labels, fill_holes)
        elif isinstance(rule, SmoothMask):
            raise PackageError("rule 'smooth_mask' cleans a single mask; this package applies it to a label map")
        elif isinstance(rule, Instances):
            labels = components(labels != 0, rule.connectivity)[0]
    return labels


def keep_largest(labels: np.ndarray, rule: KeepLargest, voxel_mm3: float = 1.0) -> np.ndarray:
    """Drop all but the largest component(s) of each named label, or of their union where ``rule.joint``.

    With ``minimum_mm3`` only components below it are dropped, the largest never. ``voxel_mm3`` is one element's size;
    pictures have none, there a pixel counts 1.
    """
    groups = [rule.labels] if rule.joint else [(label,) for label in rule.labels]
    out = labels.copy()
    for group in groups:
        mask = np.isin(labels, group)
        out[_small_mask(mask, rule, voxel_mm3)] = 0
    return out


def _small_mask(mask: np.ndarray, rule: KeepLargest, voxel_mm3: float = 1.0) -> np.ndarray:
    numbered, count = components(mask, rule.connectivity)
    if count < 2:
        return np.zeros(mask.shape, bool)
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)
    sizes[0] = 0
    drop = sizes < sizes.max()
    if rule.minimum_mm3 is not None:
        drop &= sizes * voxel_mm3 < rule.minimum_mm3
    drop[0] = False
    dropped: np.ndarray = drop[numbered]
    return dropped


def remove_small(mask: np.ndarray, rule: RemoveSmall) -> np.ndarray:
    """Drop components of fewer than ``rule.minimum_pixels`` elements."""
    numbered, count = components(mask, rule.connectivity)
    keep = np.bincount(numbered.ravel(), minlength=count + 1) >= rule.minimum_pixels
    keep[0] = False
    kept: np.ndarray = keep[numbered]
    return kept


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill background that does not reach the border."""
    from scipy import ndimage

    return np.asarray(ndimage.binary_fill_holes(mask))


def smooth_mask(mask: np.ndarray, sigma: float) -> np.ndarray:
    """Opening with a 3×3 cross, Gaussian in float64, then 255 from 127 up (danielgatis/rembg: bg.py, post_process_mask)."""
    import cv2
    from scipy import ndimage

    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
    blurred = ndimage.gaussian_filter(opened.astype(np.float64), sigma)
    return np.where(blurred < 127, 0, 255).astype(np.uint8)


def _each(labels: np.ndarray, clean: Callable[[np.ndarray], Any]) -> np.ndarray:
    """Clean every label's mask apart. A label grows only into background, never into another label."""
    out = labels.copy()
    for label in np.unique(labels):
        if label == 0:
            continue
        before = labels == label
        after = clean(before)
        out[before & ~after] = 0
        out[after & (out == 0)] = label
    return out
