"""A small saliency network as a graph and as a package: bright is salient, through eight convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tiny_parts import picture_input, picture_network, variants, write_tiny

from segship.manifest import Decode, Label, Manifest, Metric, Normalize, Output, Resize, Saliency
from segship.package import Package

SIZE = 24


def network(size: int | None = SIZE, *, pooled: int = 12, transposed: bool = False) -> Any:
    """down → pool → bottom → up to the skip's size → joined → head → sigmoid; the names are 'block.layer'."""
    from onnx import TensorProto, checker, helper, numpy_helper

    random = np.random.default_rng(5)
    constants: list[Any] = []
    nodes: list[Any] = []

    def conv(name: str, x: str, taken: int, given: int, kernel: int = 3, relu: bool = True) -> str:
        # output channels of very different size: one scale for all would show
        weight = random.normal(size=(given, taken, kernel, kernel)) * np.geomspace(0.2, 1, given)[:, None, None, None]
        weight *= (1.0 if relu else 3.0) * np.sqrt(5 / (taken * kernel**2))
        constants.append(numpy_helper.from_array(weight.astype(np.float32), f"{name}.weight"))
        constants.append(numpy_helper.from_array(random.normal(size=given).astype(np.float32) * 0.1, f"{name}.bias"))
        inputs, pads = [x, f"{name}.weight", f"{name}.bias"], [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.out"], name=name, pads=pads))
        if relu:
            nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"], name=f"{name}.relu"))
        return f"{name}.{'relu' if relu else 'out'}"

    skip = conv("down.conv2", conv("down.conv1", "x", 3, 8), 8, 8)
    window = [SIZE // pooled] * 2
    nodes.append(helper.make_node("MaxPool", [skip], ["pool"], name="pool", kernel_shape=window, strides=window))
    deep = conv("bottom.conv2", conv("bottom.conv1", "pool", 8, 8), 8, 8)
    if transposed:
        weight = random.normal(size=(8, 8, 2, 2)).astype(np.float32) * 0.3
        constants.append(numpy_helper.from_array(weight, "lift.weight"))
        made = helper.make_node("ConvTranspose", [deep, "lift.weight"], ["up"], name="up.lift", strides=[2, 2])
    else:
        attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        constants.append(numpy_helper.from_array(np.array([SIZE, SIZE], np.int64), "sizes"))
        made = helper.make_node("Resize", [deep, "", "", "sizes"], ["up"], name="resize", axes=[2, 3], **attributes)
    nodes.append(made)
    nodes.append(helper.make_node("Concat", ["up", skip], ["joined"], name="join", axis=1))
    last = conv("up.conv2", conv("up.conv1", "joined", 16, 8), 8, 8)
    conv("side", last, 8, 2, relu=False)
    conv("head", "side.out", 2, 1, kernel=1, relu=False)
    nodes.append(helper.make_node("Sigmoid", ["head.out"], ["y"], name="sigmoid"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "network", [value("x", TensorProto.FLOAT, ["n", 3, size, size])],
        [value("y", TensorProto.FLOAT, ["n", 1, None, None])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    checker.check_model(model)
    return model


def branches_package(path: Path, model: Any | None = None) -> Package:
    """fp32 alone, RGB, 24×24, min-max, written as truncated bytes; metric MAE."""
    graphs = {"fp32": bytes((model or network()).SerializeToString())}
    manifest = Manifest(
        name="salient",
        family="test",
        input=picture_input("pillow:rgb", "rgb", "ignore"),
        preprocess=(
            Resize(height=SIZE, width=SIZE, method="opencv:linear"),
            Normalize(subtract=(123.675, 116.28, 103.53), multiply=(1 / 58.395, 1 / 57.12, 1 / 57.375)),
        ),
        network=picture_network(
            Output(name="y", channels=1, values="probabilities"), size=SIZE, architecture="tiny", parameters=1
        ),
        decode=Decode(
            activation="none",
            decision=Saliency(min_max=True, polarity="as-is", to_uint8="truncate", threshold=0.5),
            restore_what="decision",
            restore_method="pillow:bilinear",
        ),
        labels=(Label(id=1, name="object", color=(255, 170, 0)),),
        metric=Metric(name="MAE", scorer="sod", higher_is_better=False, grid="input"),
        variants=variants(graphs),
    )
    return write_tiny(path, manifest, graphs, sample=("photo.png", photo(99)), source={"file": "salient"})


def photo(seed: int, height: int = 40, width: int = 52) -> np.ndarray:
    """BGR uint8: coloured blurred discs on a coloured ground."""
    random = np.random.default_rng(seed)
    picture = np.full((height, width, 3), random.uniform(0, 90, 3), np.float32)
    for _ in range(3):
        centre = (int(random.integers(0, width)), int(random.integers(0, height)))
        cv2.circle(picture, centre, int(random.integers(6, 14)), random.uniform(60, 255, 3).tolist(), -1)
    return (cv2.GaussianBlur(picture, (0, 0), 1.2) + random.normal(0, 3, picture.shape)).clip(0, 255).astype(np.uint8)


def photo_folder(root: Path, count: int, first: int = 0) -> Path:
    """``count`` pictures without masks."""
    root.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        cv2.imwrite(str(root / f"{seed:02}.png"), photo(seed))
    return root
