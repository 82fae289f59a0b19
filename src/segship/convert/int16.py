"""int16: 16-bit Quantize and Dequantize nodes around convolutions, ONNX opset 21.

Activations are rounded symmetrically per tensor, with room above the largest magnitude that calibration saw; weights
are stored as int16 with one scale an output channel, biases as int32; everything that is no convolution stays float32. No engine of
today has 16-bit integer convolutions: the arithmetic between the roundings is float32. What this gives are the
numerics of 16-bit fixed point (``qint16_mixed_float32`` of Cambricon/magicmind_cloud) and half the file.

NNCF has no 16-bit mode, and a pass of our own puts the nodes exactly where the definition has them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segship.convert import onnx_graph, rounding
from segship.convert.layers import check_layers
from segship.engines import SessionOptions, open_session
from segship.errors import SourceError, UsageError

OPSET = 21
"""the first that knows 16-bit QuantizeLinear"""
LARGEST = 32767
BIAS_LARGEST = 2**30
HEADROOM = 2.0
"""Activation ranges reach to this many times the largest magnitude seen. A value beyond the range is cut off, which
costs far more than the one bit of sixteen that this gives away: on photos that calibration had not seen, U²-NetP's
output moved by up to 0.08 without it and by 0.003 with it."""
MEANING = "numerics of 16-bit fixed point and half the file, not speed"
"""what a user gets by it, as the command line prints it"""

_ZERO = "int16.zero"
_LAYERS = ("Conv", "ConvTranspose")


def activation_ranges(model: onnx.ModelProto, inputs: np.ndarray, engine: str) -> dict[str, float]:
    """Largest magnitude of every convolution's input over ``inputs`` (N, C, H, W) float32, by tensor name.

    The fp32 graph runs on ``engine``, a picture at a time. Raises UsageError where a value is not finite.
    """
    watched = list(dict.fromkeys(node.input[0] for node in _layers(model)))
    observer = _with_magnitudes(model, watched)
    fixed = observer.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    largest = np.zeros(len(watched))
    with TemporaryDirectory(prefix="segship-") as folder:
        session = open_session(engine, onnx_graph.save(observer, Path(folder) / "graph.onnx"), SessionOptions())
        try:
            for x in inputs:
                found = session.run(np.repeat(x[None], fixed, axis=0))
                largest = np.maximum(largest, [float(value.max()) for value in found])  # NaN stays
        finally:
            session.close()
    if not np.isfinite(largest).all():
        raise UsageError("the network gives NaN or infinite values on a calibration picture; leave that picture out")
    return dict(zip(watched, (float(value) for value in largest), strict=True))


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, float], keep_in_float: Collection[str] = ()
) -> onnx.ModelProto:
    """A copy whose convolutions, but for ``keep_in_float``, read 16-bit inputs and weights.

    ``ranges`` are those of ``activation_ranges``. A weight that is computed in the graph stays as it is. Raises
    UsageError for a layer that is not there, SourceError where the graph cannot be brought to opset 21.
    """
    copy = _at_opset(model)
    check_layers(copy, keep_in_float)
    constants = {i.name: i for i in copy.graph.initializer}
    rounded: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    added: list[onnx.TensorProto] = []
    count = 0
    for node in copy.graph.node:
        if node.op_type in _LAYERS and node.name not in keep_in_float and node.input[1] in constants:
            data, weight = node.input[0], node.input[1]
            if data not in rounded:
                rounded[data] = f"{data}.16"
                made, extra = _rounding(data, rounded[data], HEADROOM * ranges[data])
                nodes += made
                added += extra
            if weight not in rounded:
                rounded[weight] = f"{weight}.16"
                axis = 0 if node.op_type == "Conv" else 1  # where the output channels stand
                made, extra = _stored(constants[weight], rounded[weight], axis)
                nodes += made
                added += extra
            bias = node.input[2] if len(node.input) > 2 else ""
            if bias in constants and bias not in rounded:
                rounded[bias] = f"{bias}.32"
                made, extra = _stored_bias(constants[bias], rounded[bias])
                nodes += made
                added += extra
            node.input[:] = [rounded.get(name, name) for name in node.input]
            count += 1
        nodes.append(node)
    if not count:
        raise UsageError("nothing is left to quantise: the network has no convolution outside --keep-in-float")
    added.append(numpy_helper.from_array(np.array(0, np.int16), _ZERO))
    _replace(copy.graph, nodes, [*constants.values(), *added])
    onnx.checker.check_model(copy)
    return copy


def _replace(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto]) -> None:
    """Put ``nodes`` in the place of the graph's own, and those constants that they or the outputs read."""
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    # copies: what stands in the graph ceases to exist with it
    fresh = helper.make_graph(nodes, "", [], [], [i for i in constants if i.name in used])
    del graph.node[:], graph.initializer[:]
    graph.node.extend(fresh.node)
    graph.initializer.extend(fresh.initializer)


def _layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in _LAYERS]


def _at_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy at opset 21, or at its own where that is later."""
    copy = type(model)()
    copy.CopyFrom(model)
    if all(entry.version >= OPSET for entry in copy.opset_import if entry.domain in ("", "ai.onnx")):
        return copy
    try:
        converted: onnx.ModelProto = onnx.version_converter.convert_version(copy, OPSET)
    except Exception as error:  # the converter is C++: its errors have no class of their own
        raise SourceError(
            f"the graph cannot be brought to opset {OPSET}, which int16 needs ({str(error).splitlines()[0]}); "
            "export the package from its checkpoint, or choose fp16 or int8"
        ) from None
    converted.graph.ClearField("value_info")
    return converted


def _with_magnitudes(model: onnx.ModelProto, tensors: Collection[str]) -> onnx.ModelProto:
    """A copy whose only outputs are max|t| of each tensor, in order."""
    copy = _at_opset(model)
    graph = copy.graph
    del graph.output[:]
    for number, name in enumerate(tensors):
        inner, outer = f"magnitude.{number}.abs", f"magnitude.{number}"
        graph.node.append(helper.make_node("Abs", [name], [inner], name=inner))
        graph.node.append(helper.make_node("ReduceMax", [inner], [outer], name=outer, keepdims=1))
        graph.output.append(helper.make_tensor_value_info(outer, TensorProto.FLOAT, None))
    return copy


def _scale(largest: np.ndarray | float) -> np.ndarray:
    """float32 scale(s) that bring ``largest`` to 32767; of zeros, any: 1 / 32767."""
    values = np.asarray(largest, np.float64)
    return np.asarray(np.where(values > 0, values, 1.0) / LARGEST, np.float32)


def _rounding(name: str, output: str, largest: float) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes that round a tensor to 16 bits and give it back as float32."""
    scale, inner = f"{output}.scale", f"{output}.int16"
    return [
        helper.make_node("QuantizeLinear", [name, scale, _ZERO], [inner], name=f"{output}.quantize"),
        helper.make_node("DequantizeLinear", [inner, scale, _ZERO], [output], name=f"{output}.dequantize"),
    ], [numpy_helper.from_array(_scale(largest), scale)]


def _stored(weight: onnx.TensorProto, output: str, axis: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """A weight as int16, one scale a slice along ``axis``, and the node that gives it back as float32."""
    values = numpy_helper.to_array(weight).astype(np.float64)
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = _scale(np.abs(values).max(axis=others, initial=0.0))
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    whole = rounding.to_integers(values / scale.reshape(shape), LARGEST, axis).astype(np.int16)
    zeros = np.zeros(len(scale), np.int16)
    names = [f"{output}.int16", f"{output}.scale", f"{output}.zero"]
    node = helper.make_node("DequantizeLinear", names, [output], name=f"{output}.dequantize", axis=axis)
    arrays = zip((whole, scale, zeros), names, strict=True)
    return [node], [numpy_helper.from_array(array, name) for array, name in arrays]


def _stored_bias(bias: onnx.TensorProto, output: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """A bias as int32, finer than float32 itself, and the node that gives it back.

    A bias that is left in float32 ONNX Runtime quantises by itself, in steps of the input's scale times the weight's;
    with 16 bits for both, 32 bits of that hold no more than a few units, and larger biases are cut off (1.31).
    """
    values = numpy_helper.to_array(bias).astype(np.float64)
    largest = float(np.abs(values).max(initial=0.0))
    scale = np.float32((largest or 1.0) / BIAS_LARGEST)
    whole = np.rint(values / float(scale)).astype(np.int32)
    names = [f"{output}.int32", f"{output}.scale"]
    node = helper.make_node("DequantizeLinear", names, [output], name=f"{output}.dequantize")
    return [node], [numpy_helper.from_array(whole, names[0]), numpy_helper.from_array(np.array(scale), names[1])]
