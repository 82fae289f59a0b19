"""A salient-object package whose network is one convolution: what is bright stands out. Real enough to run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segship.manifest import (
    Channel,
    Channels,
    Decode,
    DivideByMaximum,
    ImageInput,
    Label,
    Manifest,
    Metric,
    Network,
    Normalize,
    Output,
    Resize,
    Saliency,
    Variant,
)
from segship.package import Package, golden_files, write_package

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def saliency_package(path: Path, *, recipe: str = "rembg", size: int = 320, slope: float = 12.0) -> Package:
    """fp32 only. ``recipe``: 'rembg' (Pillow's Lanczos) or 'upstream' (scikit-image's reader and resize).

    ``slope`` 0 makes a network that gives one constant, whatever it sees.
    """
    upstream = recipe == "upstream"
    reading: dict[str, Any] = {"reader": "pillow:rgb", "exif_rotation": "apply"}
    if upstream:
        reading = {"reader": "skimage", "exif_rotation": "ignore", "grey": "keep"}
    data = _graph(slope)
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
        network=Network(
            architecture="one convolution",
            parameters=28,
            input_name="x",
            layout="NCHW",
            input_channels=3,
            size=(size, size),
            size_multiple=(1, 1),
            outputs=(Output(name="d0", channels=1, values="probabilities"),),
            members=("model",),
        ),
        decode=Decode(
            activation="none",
            decision=Saliency(min_max=True, polarity="as-is", to_uint8="truncate", threshold=0.5),
            restore_what="decision",
            restore_method="pillow:bilinear" if upstream else "pillow:lanczos",
        ),
        labels=(Label(id=1, name="object", color=(230, 80, 20)),),
        metric=Metric(name="MAE", scorer="sod", higher_is_better=False, grid="input"),
        variants=(
            Variant(
                precision="fp32",
                graphs={"model": "graphs/fp32.onnx"},
                sha256={"model": hashlib.sha256(data).hexdigest()},
                shapes="dynamic",
                batches=(1,),
                engines=("openvino",),
            ),
        ),
    )
    photo = scene(0)
    sample = cv2.imencode(".png", photo[..., ::-1])[1].tobytes()
    golden = golden_files("scene.png", sample, True, {"read": (photo, 0.0)})
    return write_package(path, manifest, {"graphs/fp32.onnx": data} | golden, {"source": {"file": "bright"}})


def _graph(slope: float) -> bytes:
    """ONNX bytes: d0 = sigmoid(slope · (mean over a 3×3 window of the denormalised channels - 0.5))."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.empty((1, 3, 3, 3), np.float32)
    for channel, std in enumerate(STD):
        weights[0, channel] = slope * std / 27
    bias = np.float32([slope * (np.mean(MEAN) - 0.5)])
    made = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["logits"], pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", ["logits"], ["d0"]),
        ],
        "bright",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w_"])],
        [helper.make_tensor_value_info("d0", TensorProto.FLOAT, ["n", 1, "h", "w_"])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


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
