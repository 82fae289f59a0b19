"""A saliency package whose network is one convolution and a sigmoid: bright is salient. And photos to score it on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from tiny_package import cell_picture
from tiny_parts import convolution, picture_input, picture_network, variants, write_tiny

from segship.manifest import Decode, Divide, Label, Manifest, Metric, Output, Resize, Saliency
from segship.package import Package


def graph(threshold: float, slope: float = 12.0, noise: float = 0.0) -> bytes:
    """ONNX bytes: sigmoid(slope · (mean over a 3×3 window and channels − threshold)) of an input on 0..1."""
    weights = np.full((1, 3, 3, 3), slope / 27, np.float32)
    weights *= 1 + noise * np.random.default_rng(0).normal(size=weights.shape).astype(np.float32)
    return convolution(weights, [-slope * threshold], output="d0", sigmoid=True)


def sod_package(path: Path, *, size: int = 64, to_uint8: str = "truncate") -> Package:
    """Written to ``path``: fp32, and a slightly wrong 'int8' that other tests compare with it."""
    graphs = {"fp32": graph(0.2), "int8": graph(0.22, noise=0.02)}
    manifest = Manifest(
        name="bright",
        family="test",
        input=picture_input("pillow:rgb", "rgb", "ignore"),
        preprocess=(Resize(height=size, width=size, method="pillow:bilinear"), Divide(by=255)),
        network=picture_network(Output(name="d0", channels=1, values="probabilities")),
        decode=Decode(
            activation="none",
            decision=Saliency(min_max=True, polarity="as-is", to_uint8=to_uint8),  # type: ignore[arg-type]
            restore_what="decision",
            restore_method="pillow:bilinear",
        ),
        labels=(Label(id=1, name="object", color=(11, 107, 115)),),
        metric=Metric(name="MAE", scorer="sod", higher_is_better=False, grid="input"),
        variants=variants(graphs),
    )
    return write_tiny(path, manifest, graphs, sample=("cell.png", cell_picture(0)[0]), source={"file": "bright"})


def photo_folder(root: Path, count: int, images: str = "Image", masks: str = "Mask") -> Path:
    """``root/Image/*.jpg`` and ``root/Mask/*.png``, masks with soft edges; equal names put both side by side."""
    for kind in (images, masks):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for seed in range(1, count + 1):
        picture, mask = cell_picture(seed, 60 + 10 * (seed % 4), 80 + 12 * (seed % 3))
        cv2.imwrite(str(root / images / f"photo{seed:02}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
        cv2.imwrite(str(root / masks / f"photo{seed:02}.png"), cv2.GaussianBlur(mask, (3, 3), 0))
    return root
