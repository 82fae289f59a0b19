"""Plain changes to ONNX graphs: from torch, to half the size, with the normalisation inside.

Everything here takes and returns ``onnx.ModelProto`` and knows nothing of images, packages or families.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segship.convert.rounding import to_float16
from segship.errors import SourceError

if TYPE_CHECKING:
    from torch import nn

OPSET = 18
FP16_MAX = 65504.0
NORMALISE = "normalise"
"""names of the nodes that hold a folded normalisation begin with it"""


_LEAST_SIDE = 8
"""Strided layers rule out sides of a few pixels. torch traces a network again, a fifth of the export, where it was not
told so; the graph is the same."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the converters' own progress and warnings off the user's terminal; errors still come as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def from_torch(
    network: nn.Module,
    input_shape: Sequence[int],
    *,
    input_name: str,
    output_names: Sequence[str],
    batch: int | None = None,
    size_multiple: Sequence[int] | None = None,
) -> onnx.ModelProto:
    """The network as ONNX, batch norms folded in float32.

    ``input_shape`` is (C, H, W). ``batch`` None leaves the batch free; ``size_multiple`` leaves height and
    width free as multiples of it. Raises SourceError when torch cannot export the network.
    """
    import torch

    network = network.eval()
    # An example batch of 1 would be taken for a constant.
    example = torch.zeros((batch or 2, *input_shape), dtype=torch.float32)
    axes: dict[int, Any] = {}
    if batch is None:
        axes[0] = torch.export.Dim("batch")
    if size_multiple is not None:
        for axis, (name, step) in enumerate(zip(("h", "w"), size_multiple, strict=True), start=2):
            axes[axis] = step * torch.export.Dim(name) if step > 1 else torch.export.Dim(name, min=_LEAST_SIDE)
    try:
        with quiet(), torch.inference_mode():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[input_name],
                output_names=list(output_names),
                dynamic_shapes=(axes,) if axes else None,
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
    except Exception as error:  # torch raises many kinds here
        raise SourceError(f"torch cannot export this network to ONNX ({str(error).splitlines()[0]})") from error
    # Where a network computes with such a side in Python, torch may fix it to the example's without a word.
    sides = model.graph.input[0].type.tensor_type.shape.dim
    fixed = [("batch", "channels", "height", "width")[axis] for axis in axes if not sides[axis].HasField("dim_param")]
    if fixed:
        raise SourceError(f"torch cannot export this network to ONNX with its {' and '.join(fixed)} free")
    return cleaned(model)


def cleaned(model: onnx.ModelProto, advice: str = "this torch version is not supported") -> onnx.ModelProto:
    """Without the exporter's notes (they hold stack traces and paths of this machine), convolutions named by layer.

    Raises SourceError, ending in ``advice``, where operators are left that only training needs.
    """
    model.ClearField("metadata_props")
    model.doc_string = ""
    model.domain = ""
    graph = model.graph
    graph.name = "network"
    graph.doc_string = ""
    graph.ClearField("metadata_props")
    graph.ClearField("value_info")
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.ClearField("metadata_props")
        value.doc_string = ""
    times: Counter[str] = Counter()
    for node in graph.node:
        node.ClearField("metadata_props")
        node.doc_string = ""
        if node.op_type == "Conv" and node.input[1].endswith(".weight"):
            name = node.input[1].removesuffix(".weight")
            times[name] += 1  # a layer may run more than once, and engines want names that differ
            node.name = name if times[name] == 1 else f"{name}.{times[name]}"
    # A batch norm that follows no convolution (a pooling, a sum) cannot be folded and stays, with its stored statistics.
    leftover = {node.op_type for node in graph.node if node.op_type == "Dropout" or _in_training(node)}
    if leftover:
        raise SourceError(f"the exported graph still holds {', '.join(sorted(leftover))}; {advice}")
    onnx.checker.check_model(model)
    return model


def _in_training(node: onnx.NodeProto) -> bool:
    return node.op_type == "BatchNormalization" and any(a.name == "training_mode" and a.i for a in node.attribute)


def operators(model: onnx.ModelProto) -> Counter[str]:
    """How often each operator occurs."""
    return Counter(node.op_type for node in model.graph.node)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(serialise(model))
    return path


def serialise(model: onnx.ModelProto) -> bytes:
    """The same bytes for the same graph."""
    return bytes(model.SerializeToString(deterministic=True))


def to_fp16_storage(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convolution weights stored as float16 behind a Cast: half the file, the same graph in float32 otherwise.

    Batch norms are folded already, in float32; biases stay float32. A weight beyond float16's range keeps
    float32. Engines fold the casts when they open the graph. See ``rounding`` for how convolutions' are rounded.
    """
    copy = copy_of(model)
    graph = copy.graph
    channels = {node.input[1]: int(node.op_type != "Conv") for node in graph.node if node.op_type.startswith("Conv")}
    nodes = []
    for initializer in graph.initializer:
        if initializer.data_type != TensorProto.FLOAT or len(initializer.dims) < 2:
            continue
        values = numpy_helper.to_array(initializer)
        if np.abs(values).max(initial=0.0) > FP16_MAX:
            continue
        name = initializer.name
        half = to_float16(values, channels[name]) if name in channels else values.astype(np.float16)
        initializer.CopyFrom(numpy_helper.from_array(half, f"{name}.fp16"))
        nodes.append(helper.make_node("Cast", [f"{name}.fp16"], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    _prepend(graph, nodes)
    onnx.checker.check_model(copy)
    return copy


def with_normalisation(
    model: onnx.ModelProto, steps: Sequence[tuple[str, Sequence[float]]], prefix: str = NORMALISE
) -> onnx.ModelProto:
    """A copy whose input takes the values before ``steps``: ('Sub' | 'Mul' | 'Div', one constant a channel or one).

    The steps become nodes in front of the network, in float32 and in the given order, so each rounds as the
    preprocessing did. They are not multiplied into the first convolution: its zero padding means the mean
    colour after the subtraction, and black before it, so the borders would differ.
    """
    copy = copy_of(model)
    graph = copy.graph
    name = graph.input[0].name
    inner = f"{prefix}.output"
    for node in graph.node:
        for index, used in enumerate(node.input):
            if used == name:
                node.input[index] = inner
    nodes, current = [], name
    for number, (operator, values) in enumerate(steps):
        constant = f"{prefix}.{number}.{operator.lower()}"
        array = np.asarray(values, np.float32).reshape(1, -1, 1, 1)
        graph.initializer.append(numpy_helper.from_array(array, constant))
        output = inner if number == len(steps) - 1 else f"{prefix}.{number}"
        nodes.append(helper.make_node(operator, [current, constant], [output], name=f"{prefix}.{number}"))
        current = output
    _prepend(graph, nodes)
    onnx.checker.check_model(copy)
    return copy


def apply_normalisation(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """What the nodes of ``with_normalisation`` make of x (N, C, H, W) float32; x itself where there are none."""
    constants = {i.name: i for i in model.graph.initializer}
    compute = {"Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
    for node in model.graph.node:
        if node.name.startswith(f"{NORMALISE}."):
            x = compute[node.op_type](x, numpy_helper.to_array(constants[node.input[1]]))
    return x


def input_range(model: onnx.ModelProto) -> tuple[float, float] | None:
    """The range that the quantiser on the graph's input covers; None when the input is not quantised."""
    found = _input_quantiser(model)
    if found is None:
        return None
    scale, zero, low, high = found[2:]
    return float(scale * (low - zero)), float(scale * (high - zero))


def set_input_range(model: onnx.ModelProto, low: float, high: float) -> onnx.ModelProto:
    """A copy whose input quantiser covers [low, high] instead of the calibrated range; zero stays exact.

    Raises ValueError when the input is not quantised.
    """
    copy = copy_of(model)
    found = _input_quantiser(copy)
    if found is None:
        raise ValueError("the graph's input is not quantised")
    scale_name, zero_name, _, _, least, most = found
    low, high = min(low, 0.0), max(high, 0.0)
    symmetric = any(
        i.name == zero_name and i.data_type == TensorProto.INT8 and not numpy_helper.to_array(i).any()
        for i in copy.graph.initializer
    )
    if symmetric:
        scale, zero = max(-low / -least, high / most), 0
    else:
        scale = (high - low) / (most - least)
        zero = round(least - low / scale)
    for initializer in copy.graph.initializer:
        if initializer.name in (scale_name, zero_name):
            value: float = scale if initializer.name == scale_name else zero
            array = np.full_like(numpy_helper.to_array(initializer), value)
            initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
    return copy


def _input_quantiser(model: onnx.ModelProto) -> tuple[str, str, float, int, int, int] | None:
    names = (model.graph.input[0].name, f"{NORMALISE}.output")
    constants = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in names:
            scale = float(numpy_helper.to_array(constants[node.input[1]]).ravel()[0])
            zero = numpy_helper.to_array(constants[node.input[2]])
            limits = np.iinfo(zero.dtype)
            return node.input[1], node.input[2], scale, int(zero.ravel()[0]), int(limits.min), int(limits.max)
    return None


def convolution_names(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions in graph order."""
    return [node.name for node in model.graph.node if node.op_type == "Conv"]


def _prepend(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def restore_float(quantised: onnx.ModelProto, original: onnx.ModelProto, layers: Collection[str]) -> onnx.ModelProto:
    """A copy of a QDQ graph in which the named convolutions compute in float32 again, with their original weights.

    Their data input bypasses the Quantize/Dequantize pairs before it, also through pooling, resizing and
    concatenation, which are doubled where a quantised layer needs them too. Restoring all layers gives the
    original graph's arithmetic back.
    """
    copy = copy_of(quantised)
    graph = copy.graph
    producers = {output: node for node in graph.node for output in node.output}
    weights = {i.name: i for i in original.graph.initializer}
    sources = {node.name: node for node in original.graph.node if node.op_type in ("Conv", "ConvTranspose")}
    present = {i.name for i in graph.initializer}
    doubled: dict[str, str] = {}
    added: list[onnx.NodeProto] = []

    def in_float(tensor: str) -> str:
        """Name of the tensor's value before any rounding."""
        if tensor in doubled:
            return doubled[tensor]
        node = producers.get(tensor)
        name = tensor
        if node is not None and node.op_type == "DequantizeLinear":
            quantiser = producers.get(node.input[0])
            if quantiser is not None and quantiser.op_type == "QuantizeLinear":
                name = in_float(quantiser.input[0])
        elif node is not None and node.op_type in ("Concat", "MaxPool", "Resize"):
            inputs = [
                in_float(i) if number == 0 or node.op_type == "Concat" else i for number, i in enumerate(node.input)
            ]
            if inputs != list(node.input):
                twin = onnx.NodeProto()
                twin.CopyFrom(node)
                twin.name = f"{node.name}.float"
                del twin.input[:], twin.output[:]
                twin.input.extend(inputs)
                name = f"{tensor}.float"
                twin.output.append(name)
                added.append(twin)
        doubled[tensor] = name
        return name

    for node in graph.node:
        if node.name not in sources or node.name not in layers:
            continue
        node.input[0] = in_float(node.input[0])
        for position, name in enumerate(sources[node.name].input[1:], start=1):
            new = f"{name}.float"
            if new not in present:
                present.add(new)
                initializer = onnx.TensorProto()
                initializer.CopyFrom(weights[name])
                initializer.name = new
                graph.initializer.append(initializer)
            node.input[position] = new
    graph.node.extend(added)
    sort_and_prune(graph)
    onnx.checker.check_model(copy)
    return copy


def sort_and_prune(graph: onnx.GraphProto) -> None:
    """Nodes after what they use; without nodes and constants that nothing needs."""
    producers = {output: node for node in graph.node for output in node.output}
    ordered: list[onnx.NodeProto] = []
    seen: set[int] = set()
    # Walked with a stack of our own: deep networks outgrow Python's recursion limit.
    stack = [(producers[value.name], False) for value in reversed(graph.output)]
    while stack:
        node, finished = stack.pop()
        if finished:
            ordered.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [
                (producers[i], False) for i in reversed(node.input) if i in producers and id(producers[i]) not in seen
            ]
    ordered = [_node_copy(node) for node in ordered]
    used = {name for node in ordered for name in node.input}
    constants = [i for i in graph.initializer if i.name in used]
    kept = [onnx.TensorProto.FromString(i.SerializeToString()) for i in constants]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(ordered)
    graph.initializer.extend(kept)


def _node_copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
