"""Prepared cases that are learnt in a few steps: bright kidneys, brighter tumours, on dark ground with noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def body(shape: Sequence[int], seed: int, noise: float = 0.1) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image and label (D, H, W): an ellipsoid of 1 with a smaller one of 2 in it."""
    draw = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).astype(np.float32)
    sides = np.array(shape, np.float32)
    centre = sides * draw.uniform(0.45, 0.55, 3)
    radii = sides * draw.uniform(0.32, 0.4, 3)
    label = np.zeros(shape, np.uint8)
    label[(((grid - centre) / radii) ** 2).sum(-1) < 1] = 1
    spot = centre + radii * draw.uniform(-0.4, 0.4, 3)
    label[(((grid - spot) / (0.6 * radii)) ** 2).sum(-1) < 1] = 2
    levels = np.array([-1.5, 0.3, 1.8], np.float32)
    image = levels[label] + draw.normal(0, noise, shape).astype(np.float32)
    return image.astype(np.float32), label


def write_case(folder: Path, number: int, image: NDArray[np.float32], label: NDArray[np.uint8]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"case_{number:05d}_x.npy", image[None])
    np.save(folder / f"case_{number:05d}_y.npy", label[None])


def write_cases(folder: Path, numbers: Sequence[int], shape: Sequence[int] = (32, 32, 64), noise: float = 0.1) -> Path:
    """Cases of these numbers; 0, 3, 5 and 6 are evaluation cases, 1, 2, 4 and 7 are not."""
    for number in numbers:
        write_case(folder, number, *body(shape, number, noise))
    return folder
