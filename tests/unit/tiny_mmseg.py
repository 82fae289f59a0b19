"""A package that looks at streets with one convolution, a toy Cityscapes tree, and an mmseg config's text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tiny_parts import convolution, picture_input, picture_network, variants, write_tiny

from segship.manifest import Argmax, Augmentation, Decode, Label, Manifest, Metric, Normalize, Output, Tiling
from segship.package import Package

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
CLASSES = 19
STRIDE = 2


def graph(classes: int = CLASSES) -> bytes:
    """ONNX bytes: a seeded 5×5 convolution of stride 2 from normalised RGB to logits."""
    random = np.random.default_rng(5)
    weights = random.normal(0, 0.3, (classes, 3, 5, 5)).astype(np.float32)
    bias = random.normal(0, 0.2, classes).astype(np.float32)
    return convolution(weights, bias, stride=STRIDE)


def street_manifest(data: bytes, classes: int = CLASSES, **more: Any) -> Manifest:
    """``more`` replaces fields of the manifest."""
    fields: dict[str, Any] = {
        "name": "street",
        "family": "mmseg",
        "input": picture_input("opencv:color", "rgb", "apply"),
        "preprocess": (Normalize(subtract=MEAN, multiply=tuple(1 / s for s in STD)),),
        "network": picture_network(
            Output(name="y", channels=classes, values="logits", stride=STRIDE), parameters=classes * 76
        ),
        "decode": Decode(
            activation="softmax", decision=Argmax(), restore_what="logits", restore_method="torch:bilinear",
            restore_path="by-input-size",
        ),
        "augmentation": Augmentation(ratios=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), mirror=True),
        "labels": tuple(Label(id=i, name=f"class{i}", color=(i * 13, 255 - i * 13, 40)) for i in range(classes)),
        "metric": Metric(name="mIoU", scorer="mmseg", higher_is_better=True, grid="input"),
        "variants": variants({"fp32": data}),
    }  # fmt: skip
    return Manifest(**(fields | more))


def slide(window: tuple[int, int] = (32, 48), step: tuple[int, int] = (20, 30)) -> Tiling:
    return Tiling(
        window=window, step=step, positions="flush-last", weighting="uniform", gaussian_sigma_scale=None,
        pad_mode="none", average="logits",
    )  # fmt: skip


def street_package(path: Path, classes: int = CLASSES, **more: Any) -> Package:
    data = graph(classes)
    return write_tiny(path, street_manifest(data, classes, **more), {"fp32": data})


def cityscapes_tree(root: Path, count: int = 2, size: tuple[int, int] = (64, 128)) -> Path:
    """``root`` in Cityscapes' layout with ``count`` frames of the split val, trainIds beside them; 255 at the borders."""
    random = np.random.default_rng(7)
    for number in range(count):
        images = root / "leftImg8bit" / "val" / "town"
        labels = root / "gtFine" / "val" / "town"
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        blocks = random.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
        truth = random.integers(0, CLASSES, (size[0] // 16, size[1] // 16), dtype=np.uint8)
        picture = cv2.resize(blocks, size[::-1], interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(truth, size[::-1], interpolation=cv2.INTER_NEAREST)
        label[:3] = 255
        stem = f"town_{number:06d}_000019"
        cv2.imwrite(str(images / f"{stem}_leftImg8bit.png"), picture)
        cv2.imwrite(str(labels / f"{stem}_gtFine_labelTrainIds.png"), label)
    return root


CONFIG = """
classes = 19
data_preprocessor = dict(type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
                         bgr_to_rgb=True, pad_val=0, seg_pad_val=255)
model = dict(type='EncoderDecoder', data_preprocessor=data_preprocessor, decode_head=dict(type='FCNHead', num_classes=19))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
test_dataloader = dict(batch_size=1, dataset=dict(type='CityscapesDataset', pipeline=test_pipeline))
"""
