"""A package that looks at streets with one convolution, a toy Cityscapes tree, and an mmseg config's text."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segship.manifest import (
    Argmax,
    Augmentation,
    Channel,
    Decode,
    ImageInput,
    Label,
    Manifest,
    Metric,
    Network,
    Normalize,
    Output,
    Tiling,
    Variant,
)
from segship.package import Package, write_package

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
CLASSES = 19
STRIDE = 2


def graph(classes: int = CLASSES) -> bytes:
    """ONNX bytes: a seeded 5×5 convolution of stride 2 from normalised RGB to logits."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(5)
    weights = random.normal(0, 0.3, (classes, 3, 5, 5)).astype(np.float32)
    bias = random.normal(0, 0.2, classes).astype(np.float32)
    made = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[2, 2, 2, 2], strides=[STRIDE, STRIDE])],
        "street",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "v"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes, "i", "j"])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def street_manifest(data: bytes, classes: int = CLASSES, **more: Any) -> Manifest:
    """``more`` replaces fields of the manifest."""
    fields: dict[str, Any] = {
        "name": "street",
        "family": "mmseg",
        "input": ImageInput(
            reader="opencv:color", channels=tuple(Channel(name=n) for n in "RGB"), channel_order="rgb",
            exif_rotation="apply",
        ),
        "preprocess": (Normalize(subtract=MEAN, multiply=tuple(1 / s for s in STD)),),
        "network": Network(
            architecture="one convolution", parameters=classes * 76, input_name="x", layout="NCHW", input_channels=3,
            size=None, size_multiple=(1, 1), members=("model",),
            outputs=(Output(name="y", channels=classes, values="logits", stride=STRIDE),),
        ),
        "decode": Decode(
            activation="softmax", decision=Argmax(), restore_what="logits", restore_method="torch:bilinear",
            restore_path="by-input-size",
        ),
        "augmentation": Augmentation(ratios=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), mirror=True),
        "labels": tuple(Label(id=i, name=f"class{i}", color=(i * 13, 255 - i * 13, 40)) for i in range(classes)),
        "metric": Metric(name="mIoU", scorer="mmseg", higher_is_better=True, grid="input"),
        "variants": (
            Variant(
                precision="fp32", graphs={"model": "graphs/fp32.onnx"},
                sha256={"model": hashlib.sha256(data).hexdigest()}, shapes="dynamic", batches=(1,),
                engines=("openvino",),
            ),
        ),
    }  # fmt: skip
    return Manifest(**(fields | more))


def slide(window: tuple[int, int] = (32, 48), step: tuple[int, int] = (20, 30)) -> Tiling:
    return Tiling(
        window=window, step=step, positions="flush-last", weighting="uniform", gaussian_sigma_scale=None,
        pad_mode="none", average="logits",
    )  # fmt: skip


def street_package(path: Path, classes: int = CLASSES, **more: Any) -> Package:
    data = graph(classes)
    return write_package(path, street_manifest(data, classes, **more), {"graphs/fp32.onnx": data}, {})


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
