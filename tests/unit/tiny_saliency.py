"""A salient-object package whose network is one convolution: what is bright stands out. Real enough to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tiny_parts import convolution, picture_network, variants, write_tiny

from segship.manifest import (
    Channel,
    Channels,
    Decode,
    DivideByMaximum,
    ImageInput,
    Label,
    Manifest,
    Metric,
    Normalize,
    Output,
    Resize,
    Saliency,
)
from segship.package import Package

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def saliency_package(path: Path, *, recipe: str = "rembg", size: int = 320, slope: float = 12.0) -> Package:
    """fp32 only. ``recipe``: 'rembg' (Pillow's Lanczos) or 'upstream' (scikit-image's reader and resize).

    ``slope`` 0 makes a network that gives one constant, whatever it sees.
    """
    upstream = recipe == "upstream"
    reading: dict[str, Any] = {"reader": "pillow:rgb", "exif_rotation": "apply"}
    if upstream:
        reading = {"reader": "skimage", "exif_rotation": "ignore", "grey": "keep"}
    graphs = {"fp32": _graph(slope)}
    manifest = Manifest(
        name="bright-object",
        family="test",
        input=ImageInput(channels=tuple(Channel(name=name) for name in "RGB"), channel_order="rgb", **reading),
        preprocess=(
            Resize(height=size, width=size, method="skimage:linear-antialias" if upstream else "pillow:lanczos"),
            DivideByMaximum(floor=1e-6, dtype="float64"),
            Normalize(subtract=MEAN, multiply=tuple(1 / s for s in STD)),
            Channels(count=3),
        ),
        network=picture_network(Output(name="d0", channels=1, values="probabilities"), size=size),
        decode=Decode(
            activation="none",
            decision=Saliency(min_max=True, polarity="as-is", to_uint8="truncate", threshold=0.5),
            restore_what="decision",
            restore_method="pillow:bilinear" if upstream else "pillow:lanczos",
        ),
        labels=(Label(id=1, name="object", color=(230, 80, 20)),),
        metric=Metric(name="MAE", scorer="sod", higher_is_better=False, grid="input"),
        variants=variants(graphs),
    )
    return write_tiny(path, manifest, graphs, sample=("scene.png", scene(0)[..., ::-1]), source={"file": "bright"})


def _graph(slope: float) -> bytes:
    """ONNX bytes: d0 = sigmoid(slope · (mean over a 3×3 window of the denormalised channels - 0.5))."""
    weights = np.empty((1, 3, 3, 3), np.float32)
    for channel, std in enumerate(STD):
        weights[0, channel] = slope * std / 27
    bias = np.float32([slope * (np.mean(MEAN) - 0.5)])
    return convolution(weights, bias, output="d0", sigmoid=True)


def scene(seed: int, height: int = 90, width: int = 120) -> np.ndarray:
    """(H, W, 3) uint8 RGB: one bright, coloured disc on a dark, noisy ground."""
    random = np.random.default_rng(seed)
    photo = random.integers(0, 40, (height, width, 3), dtype=np.uint8)
    centre = (int(random.integers(width // 3, 2 * width // 3)), int(random.integers(height // 3, 2 * height // 3)))
    cv2.circle(photo, centre, min(height, width) // 5, (250, 220, 180), -1)
    return np.asarray(cv2.GaussianBlur(photo, (0, 0), 1.0), np.uint8)


def is_object(photo: np.ndarray) -> np.ndarray:
    """(H, W) bool: the disc of `scene`."""
    bright: np.ndarray = photo.mean(axis=2) > 120
    return bright
