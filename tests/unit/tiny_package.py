"""A package whose network is one convolution: bright is nucleus. Small enough to build in a test, real enough to run."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from tiny_parts import convolution, picture_input, picture_network, variants, write_tiny

from segship.manifest import Decode, Divide, Label, Manifest, Metric, Normalize, Output, Resize, Threshold
from segship.package import Package

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def graph(threshold: float, noise: float = 0.0) -> bytes:
    """ONNX bytes: logit = mean over a 3×3 window of the normalised channels, above a threshold in 0..255 grey."""
    weights = np.zeros((1, 3, 3, 3), np.float32)
    bias = 0.0
    for channel in range(3):
        # the input is ((v - mean) / std) / 255; undo it, average, and give 1 grey level a slope of 0.05
        weights[0, channel] = 0.05 * 255 * STD[channel] / 27
        bias += 0.05 * MEAN[channel] / 3
    weights *= 1 + noise * np.random.default_rng(0).normal(size=weights.shape).astype(np.float32)
    bias -= 0.05 * threshold
    return convolution(weights, [bias])


def tiny_package(path: Path, *, threshold: float = 40.0, int8: bool = True, size: int = 96) -> Package:
    """Written to ``path``: fp32, and a slightly wrong 'int8' that other tests compare with it."""
    graphs = {"fp32": graph(threshold)} | ({"int8": graph(threshold + 4, noise=0.03)} if int8 else {})
    manifest = Manifest(
        name="bright",
        family="test",
        input=picture_input("opencv:color", "bgr", "apply"),
        preprocess=(
            Resize(height=size, width=size, method="opencv:linear"),
            Normalize(subtract=MEAN, multiply=tuple(1 / s for s in STD)),
            Divide(by=255),
        ),
        network=picture_network(Output(name="y", channels=1, values="logits")),
        decode=Decode(
            activation="sigmoid",
            decision=Threshold(threshold=0.5),
            restore_what="probabilities",
            restore_method="opencv:linear",
        ),
        labels=(Label(id=0, name="background", color=(0, 0, 0)), Label(id=1, name="nucleus", color=(213, 44, 90))),
        metric=Metric(name="iou", scorer="nuclei", higher_is_better=True, grid="network"),
        variants=variants(graphs),
    )
    return write_tiny(path, manifest, graphs, sample=("cell.png", cell_picture(0)[0]), source={"file": "bright"})


def cell_picture(seed: int, height: int = 80, width: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """(BGR uint8 (H, W, 3), mask uint8 (H, W) 0/255): blurred discs of random brightness on a dark ground."""
    random = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    picture = np.full((height, width), 12, np.float32)
    for _ in range(int(random.integers(3, 9))):
        centre = (int(random.integers(0, width)), int(random.integers(0, height)))
        radius = int(random.integers(5, 14))
        cv2.circle(mask, centre, radius, 255, -1)
        disc = np.zeros_like(picture)
        cv2.circle(disc, centre, radius, 1.0, -1)
        picture = np.maximum(picture, disc * float(random.uniform(45, 160)))
    picture = cv2.GaussianBlur(picture, (0, 0), 1.5) + random.normal(0, 4, mask.shape)
    grey = picture.clip(0, 255).astype(np.uint8)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), mask


def cell_folder(root: Path, count: int, first: int = 1) -> Path:
    """``root/images`` and ``root/masks`` with that many cases."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        picture, mask = cell_picture(seed, 60 + 10 * (seed % 4), 80 + 12 * (seed % 3))
        cv2.imwrite(str(root / "images" / f"cell{seed:02}.png"), picture)
        cv2.imwrite(str(root / "masks" / f"cell{seed:02}.png"), mask)
    return root
