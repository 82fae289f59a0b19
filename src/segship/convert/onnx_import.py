"""A foreign ONNX graph brought into the form that packages hold: our names, the outputs wanted, a free batch.

The arithmetic is left as it is; what the file's exporter left behind is tidied, and each change that could matter is
tried against the original before it is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from segship.convert.onnx_graph import OPSET, cleaned, copy_of, sort_and_prune
from segship.convert.onnx_sizes import known_shapes, settle_sizes
from segship.families.onnx_source import HALF_PIXEL_OPSET


def import_graph(
    model: onnx.ModelProto,
    *,
    input_name: str,
    outputs: Sequence[int],
    output_names: Sequence[str],
    layer_names: Sequence[str] = (),
    size: Sequence[int] | None = None,
    batch: int | None = None,
) -> onnx.ModelProto:
    """A copy with the chosen outputs under our names, in opset 18 where the file is older and can be brought there.

    ``layer_names`` are for the convolutions in graph order, where they are known. ``size`` (height, width) fixes what
    the file leaves free. ``batch`` None frees the batch (whether the graph then works is for the caller to try), a
    number fixes it. Raises SourceError for a graph that cannot be tidied.
    """
    copy = _upgraded(model)
    graph = copy.graph
    del graph.value_info[:]
    _inline_constants(graph)
    _drop_identities(graph)
    _fold_batch_norms(graph)
    if size is not None:
        _set_size(graph, size)
    shapes = known_shapes(copy)
    kept = [graph.output[index].name for index in outputs]
    _choose_outputs(graph, outputs)
    _rename(graph, {_input(graph).name: input_name, **dict(zip(kept, output_names, strict=True))})
    shapes[input_name] = shapes[_input(model.graph).name]
    _name_convolutions(graph, layer_names)
    _set_batch(graph, batch)
    sort_and_prune(graph)
    return cleaned(settle_sizes(copy, shapes), "export the network in eval mode")


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OPSET:
        try:
            upgraded = version_converter.convert_version(model, OPSET)
        except Exception:  # operators that the converter does not know: the graph stays as it is
            return copy_of(model)
        if opset < HALF_PIXEL_OPSET:
            _keep_old_resizes(upgraded.graph)
        return upgraded
    return copy_of(model)


def _keep_old_resizes(graph: onnx.GraphProto) -> None:
    """Upsample and the first Resize had one rule for positions, which is no longer the default; the converter says none."""
    for node in graph.node:
        if node.op_type == "Resize":
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            node.attribute.append(helper.make_attribute("nearest_mode", "floor"))


def _input(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    stored = {tensor.name for tensor in graph.initializer}
    return next(value for value in graph.input if value.name not in stored)


def _inline_constants(graph: onnx.GraphProto) -> None:
    """Constant nodes as initializers; initializers no longer listed as inputs, as old exporters did."""
    rest = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            rest.append(node)
        else:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
    rest = [_copied(node) for node in rest]
    del graph.node[:]
    graph.node.extend(rest)
    inputs = onnx.ValueInfoProto()
    inputs.CopyFrom(_input(graph))
    del graph.input[:]
    graph.input.append(inputs)


def _drop_identities(graph: onnx.GraphProto) -> None:
    """Identity nodes of stored tensors (exporters share equal weights so): the tensor under each of its names."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    rest = []
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in stored:
            tensor = graph.initializer.add()
            tensor.CopyFrom(stored[node.input[0]])
            tensor.name = node.output[0]
            stored[tensor.name] = tensor
        else:
            rest.append(_copied(node))
    del graph.node[:]
    graph.node.extend(rest)


def _fold_batch_norms(graph: onnx.GraphProto) -> None:
    """Batch norms that follow a convolution of their own, multiplied into its weights in float32."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    users: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    producers = {output: node for node in graph.node for output in node.output}
    removed = []
    for number, node in enumerate(graph.node):
        before = producers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if before is None or before.op_type != "Conv" or users[node.input[0]] != 1:
            continue
        if not all(name in stored for name in (*node.input[1:], *before.input[1:])):
            continue
        scale, shift, mean, variance = (numpy_helper.to_array(stored[name]) for name in node.input[1:5])
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = (scale / np.sqrt(variance + np.float32(epsilon))).astype(np.float32)
        weight = numpy_helper.to_array(stored[before.input[1]]) * factor[:, None, None, None]
        bias = numpy_helper.to_array(stored[before.input[2]]) if len(before.input) > 2 else np.float32(0)
        values = {"weight": weight, "bias": ((bias - mean) * factor + shift).astype(np.float32)}
        names = [f"folded.{number}.{name}" for name in values]
        graph.initializer.extend(numpy_helper.from_array(v, n) for v, n in zip(values.values(), names, strict=True))
        del before.input[1:]
        before.input.extend(names)
        before.output[0] = node.output[0]
        removed.append(number)
    rest = [_copied(node) for number, node in enumerate(graph.node) if number not in set(removed)]
    del graph.node[:]
    graph.node.extend(rest)


def _choose_outputs(graph: onnx.GraphProto, indices: Sequence[int]) -> None:
    chosen = []
    for index in indices:
        value = onnx.ValueInfoProto()
        value.CopyFrom(graph.output[index])
        chosen.append(value)
    del graph.output[:]
    graph.output.extend(chosen)


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """New names for some tensors; another tensor that has such a name already makes way."""
    taken = set(names.values())
    present = {name for node in graph.node for name in (*node.input, *node.output)}
    present |= {tensor.name for tensor in graph.initializer}
    mapping = {name: f"{name}.inner" for name in present & taken if name not in names} | names
    for node in graph.node:
        for field in (node.input, node.output):
            renamed = [mapping.get(name, name) for name in field]
            del field[:]
            field.extend(renamed)
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = mapping.get(value.name, value.name)


def _name_convolutions(graph: onnx.GraphProto, layer_names: Sequence[str]) -> None:
    """Each convolution under its layer's name, or a number: precision searches speak of layers by name."""
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    fits = len(layer_names) == len(convolutions)
    for number, node in enumerate(convolutions):
        node.name = layer_names[number] if fits else f"conv{number:03d}"


def _set_batch(graph: onnx.GraphProto, batch: int | None) -> None:
    """The same batch at the graph's two ends; what the file said in between is left to inference."""
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim[:1]:
            if batch is None:
                dim.dim_param = "batch"
            else:
                dim.dim_value = batch


def _set_size(graph: onnx.GraphProto, size: Sequence[int]) -> None:
    """A fixed height and width at the input; outputs follow from it by inference."""
    for dim, side in zip(graph.input[0].type.tensor_type.shape.dim[2:], size, strict=True):
        dim.dim_value = side
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim[2:]:
            if not dim.dim_value:
                dim.Clear()


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
