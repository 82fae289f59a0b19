"""What the tests' small packages have in common: their graphs' bytes, what a manifest says of them, their files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from segship.manifest import Channel, ImageInput, Manifest, Network, Output, Variant
from segship.package import Package, golden_files, write_package

Shape = Sequence[int | str]


def onnx_bytes(nodes: Sequence[Any], x: dict[str, Shape], y: dict[str, Shape], constants: Mapping[str, Any]) -> bytes:
    """A checked model of opset 17 from the float inputs ``x`` to the float outputs ``y``; ``constants`` by their names."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    values = [
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, shape) for k, shape in side.items()] for side in (x, y)
    ]
    arrays = {name: np.asarray(array) for name, array in constants.items()}
    stored = [
        numpy_helper.from_array(array.astype(np.float32) if array.dtype.kind == "f" else array, name)
        for name, array in arrays.items()
    ]
    made = helper.make_graph(nodes, "tiny", *values, stored)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def convolution(
    weight: np.ndarray, bias: Any, *, name: str = "", output: str = "y", sigmoid: bool = False, stride: int = 1
) -> bytes:
    """``x`` (n, C, h, w_) through one convolution that keeps its size but for ``stride``, and a sigmoid where asked for."""
    from onnx import helper

    given, taken, kernel, _ = weight.shape
    first = "logits" if sigmoid else output
    layer = helper.make_node(
        "Conv", ["x", "w", "b"], [first], name=name, pads=[kernel // 2] * 4, strides=[stride, stride]
    )
    nodes = [layer, helper.make_node("Sigmoid", [first], [output])] if sigmoid else [layer]
    sides = ["h", "w_"] if stride == 1 else ["i", "j"]
    return onnx_bytes(nodes, {"x": ["n", taken, "h", "w_"]}, {output: ["n", given, *sides]}, {"w": weight, "b": bias})


def picture_input(reader: str, order: Literal["rgb", "bgr"], exif: Literal["apply", "ignore"]) -> ImageInput:
    channels = tuple(Channel(name=name) for name in order.upper())
    return ImageInput(reader=reader, channels=channels, channel_order=order, exif_rotation=exif)  # type: ignore[arg-type]


def picture_network(
    output: Output, *, size: int | None = None, architecture: str = "one convolution", parameters: int = 28
) -> Network:
    """Three channels in, ``output`` out, of any size or of ``size`` × ``size``."""
    return Network(
        architecture=architecture,
        parameters=parameters,
        input_name="x",
        layout="NCHW",
        input_channels=3,
        size=None if size is None else (size, size),
        size_multiple=(1, 1),
        outputs=(output,),
        members=("model",),
    )


def variants(graphs: Mapping[str, bytes]) -> tuple[Variant, ...]:
    """One for each precision's graph, which `write_tiny` stores."""
    return tuple(
        Variant(
            precision=precision,  # type: ignore[arg-type]
            graphs={"model": _file(precision)},
            sha256={"model": hashlib.sha256(data).hexdigest()},
            shapes="dynamic",
            batches=(1,),
            engines=("openvino",),
        )
        for precision, data in graphs.items()
    )


def write_tiny(
    path: Path,
    manifest: Manifest,
    graphs: Mapping[str, bytes],
    *,
    sample: tuple[str, np.ndarray] | None = None,
    source: Mapping[str, str] | None = None,
) -> Package:
    """``sample``: the golden picture's file name, and the picture as BGR; as its stage 'read' in the manifest's order."""
    files = {_file(precision): data for precision, data in graphs.items()}
    if sample is not None:
        name, picture = sample
        encoded = cv2.imencode(".png", picture)[1].tobytes()
        assert isinstance(manifest.input, ImageInput)
        read = picture if manifest.input.channel_order == "bgr" else picture[..., ::-1]
        files |= golden_files(name, encoded, True, {"read": (read, 0.0)})
    return write_package(path, manifest, files, {"source": dict(source or {})})


def _file(precision: str) -> str:
    return f"graphs/{precision}.onnx"
