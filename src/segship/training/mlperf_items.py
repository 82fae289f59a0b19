"""One training item of the MLPerf 3D U-Net: a crop of a case, flipped, brightened, with noise.

Rules of mlcommons/training: retired_benchmarks/unet3d/pytorch/data_loading/pytorch_loader.py, in its order of random
draws: ``python`` stands for Python's random module, ``numeric`` for numpy's global generator. Unlike the reference, which
labels components of a whole case for every item, boxes are found once a case, and only the crop is read from the disk.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.errors import DatasetError

Box = tuple[slice, slice, slice]
Boxes = Mapping[int, Sequence[Box]]
"""for each class above 0 that a case has, the boxes that a foreground crop may be put around"""
KEPT_BOXES = 2
FLIP, BRIGHTEN, NOISE = 1 / 3, 0.1, 0.1
BRIGHTNESS = (0.7, 1.3)
LARGEST_NOISE = 0.1


def foreground_boxes(label: NDArray[np.uint8]) -> dict[int, list[Box]]:
    """The two components with the largest bounding boxes (face neighbours) of each class of ``label`` (D, H, W)."""
    from scipy import ndimage

    out: dict[int, list[Box]] = {}
    for kind in np.unique(label):
        if kind == 0:
            continue
        found = [box for box in ndimage.find_objects(ndimage.label(label == kind)[0]) if box is not None]
        volumes = [int(np.prod([side.stop - side.start for side in box])) for box in found]
        out[int(kind)] = [found[i] for i in np.argsort(volumes)[-KEPT_BOXES:]]
    return out


def crop_box(
    shape: Sequence[int],
    boxes: Boxes,
    patch: Sequence[int],
    oversampling: float,
    python: random.Random,
    numeric: np.random.RandomState,
) -> Box:
    """Where the crop of ``patch`` voxels lies in a case of ``shape``: around foreground with the chance ``oversampling``.

    A case without foreground gives a random crop (the reference fails there). DatasetError where the case is smaller.
    """
    if any(side < wanted for side, wanted in zip(shape, patch, strict=True)):
        raise DatasetError(
            f"a case of {_times(shape)} voxels is smaller than the patch of {_times(patch)}; lower --input_shape or prepare"
            " it with `segship prepare kits19`, which pads to 128"
        )
    if python.random() < oversampling and boxes:
        kinds = sorted(boxes)
        return _around(boxes[int(numeric.choice(np.array(kinds, np.uint8)))], shape, patch, python)
    starts = [_below(side - wanted, python) for side, wanted in zip(shape, patch, strict=True)]
    return _box(slice(start, start + wanted) for start, wanted in zip(starts, patch, strict=True))


def _around(boxes: Sequence[Box], shape: Sequence[int], patch: Sequence[int], python: random.Random) -> Box:
    chosen = boxes[python.randrange(len(boxes))]
    return _box(_stretch(side, n, wanted, python) for side, n, wanted in zip(chosen, shape, patch, strict=True))


def _stretch(side: slice, size: int, wanted: int, python: random.Random) -> slice:
    """One axis of a foreground box, grown or cut to ``wanted`` voxels with the surplus dealt out by chance."""
    surplus = wanted - (side.stop - side.start)
    sign = -1 if surplus < 0 else 1
    surplus = abs(surplus)
    before = _below(surplus, python)
    low = max(0, side.start - sign * before)
    high = min(size, side.stop + sign * (surplus - before))
    missing = wanted - (high - low)
    if missing > 0 and low == 0:
        high += missing
    elif missing > 0:
        low -= missing
    return slice(low, high)


def augment(
    image: NDArray[np.float32], label: NDArray[np.uint8], python: random.Random, numeric: np.random.RandomState
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Flips, brightness and noise of (1, D, H, W) arrays; returns new contiguous ones.

    Brightness multiplies by 1 + a factor of 0.7 to 1.3, so by 1.7 to 2.3: surely not meant, but networks trained by this
    recipe have seen it.
    """
    for axis in (1, 2, 3):
        if python.random() < FLIP:
            image, label = np.flip(image, axis), np.flip(label, axis)
    image, label = np.ascontiguousarray(image, np.float32), np.ascontiguousarray(label, np.uint8)
    if python.random() < BRIGHTEN:
        factor = numeric.uniform(*BRIGHTNESS, size=1)
        image = (image * (1 + factor)).astype(np.float32)
    if python.random() < NOISE:
        scale = numeric.uniform(0.0, LARGEST_NOISE)
        image = image + numeric.normal(0.0, scale, size=image.shape).astype(np.float32)
    return image, label


def make_item(
    image: NDArray[Any],
    label: NDArray[Any],
    boxes: Boxes,
    *,
    patch: Sequence[int],
    oversampling: float,
    python: random.Random,
    numeric: np.random.RandomState,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image float32 and label uint8 (1, *patch) of a case (1, D, H, W), which may be mapped from the disk."""
    part = (slice(None), *crop_box(image.shape[1:], boxes, patch, oversampling, python, numeric))
    return augment(np.array(image[part], np.float32), np.array(label[part], np.uint8), python, numeric)


def _below(end: int, python: random.Random) -> int:
    return python.randrange(end) if end else 0


def _box(sides: Any) -> Box:
    z, y, x = sides
    return z, y, x


def _times(shape: Sequence[int]) -> str:
    return "×".join(str(side) for side in shape)
