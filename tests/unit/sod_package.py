"""A saliency package whose network is one convolution and a sigmoid: bright is salient. And photos to score it on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
from tiny_package import cell_picture

from segship.manifest import (
    Channel,
    Decode,
    Divide,
    ImageInput,
    Label,
    Manifest,
    Metric,
    Network,
    Output,
    Resize,
    Saliency,
    Variant,
)
from segship.package import Package, golden_files, write_package


def graph(threshold: float, slope: float = 12.0, noise: float = 0.0) -> bytes:
    """ONNX bytes: sigmoid(slope · (mean over a 3×3 window and channels − threshold)) of an input on 0..1."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.full((1, 3, 3, 3), slope / 27, np.float32)
    weights *= 1 + noise * np.random.default_rng(0).normal(size=weights.shape).astype(np.float32)
    made = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["s"], pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", ["s"], ["d0"]),
        ],
        "bright",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w_"])],
        [helper.make_tensor_value_info("d0", TensorProto.FLOAT, ["n", 1, "h", "w_"])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.float32([-slope * threshold]), "b")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def sod_package(path: Path, *, size: int = 64, to_uint8: str = "truncate") -> Package:
    """Written to ``path``: fp32, and a slightly wrong 'int8' that other tests compare with it."""
    graphs = {"fp32": graph(0.2), "int8": graph(0.22, noise=0.02)}
    manifest = Manifest(
        name="bright",
        family="test",
        input=ImageInput(
            reader="pillow:rgb",
            channels=tuple(Channel(name=name) for name in "RGB"),
            channel_order="rgb",
            exif_rotation="ignore",
        ),
        preprocess=(Resize(height=size, width=size, method="pillow:bilinear"), Divide(by=255)),
        network=Network(
            architecture="one convolution",
            parameters=28,
            input_name="x",
            layout="NCHW",
            input_channels=3,
            size=None,
            size_multiple=(1, 1),
            outputs=(Output(name="d0", channels=1, values="probabilities"),),
            members=("model",),
        ),
        decode=Decode(
            activation="none",
            decision=Saliency(min_max=True, polarity="as-is", to_uint8=to_uint8),  # type: ignore[arg-type]
            restore_what="decision",
            restore_method="pillow:bilinear",
        ),
        labels=(Label(id=1, name="object", color=(11, 107, 115)),),
        metric=Metric(name="MAE", scorer="sod", higher_is_better=False, grid="input"),
        variants=tuple(
            Variant(
                precision=name,  # type: ignore[arg-type]
                graphs={"model": f"graphs/{name}.onnx"},
                sha256={"model": hashlib.sha256(data).hexdigest()},
                shapes="dynamic",
                batches=(1,),
                engines=("openvino",),
            )
            for name, data in graphs.items()
        ),
    )
    sample = cv2.imencode(".png", cell_picture(0)[0])[1].tobytes()
    files = {f"graphs/{name}.onnx": data for name, data in graphs.items()}
    golden = golden_files("cell.png", sample, True, {"read": (cell_picture(0)[0][..., ::-1], 0.0)})
    return write_package(path, manifest, files | golden, {"source": {"file": "bright"}})


def photo_folder(root: Path, count: int, images: str = "Image", masks: str = "Mask") -> Path:
    """``root/Image/*.jpg`` and ``root/Mask/*.png``, masks with soft edges; equal names put both side by side."""
    for kind in (images, masks):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for seed in range(1, count + 1):
        picture, mask = cell_picture(seed, 60 + 10 * (seed % 4), 80 + 12 * (seed % 3))
        cv2.imwrite(str(root / images / f"photo{seed:02}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
        cv2.imwrite(str(root / masks / f"photo{seed:02}.png"), cv2.GaussianBlur(mask, (3, 3), 0))
    return root
