"""A convolution over joined channels as the sum of one convolution over each part.

A U-Net's decoder joins what comes from below with the skip beside it, and convolves. To join channels an engine copies
both parts, in a 3D network the two largest tensors there are: it then holds a third more than it needs, and takes
longer. The sum is equal to it up to float32's rounding.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
from onnx import helper, numpy_helper


def split_joined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with every convolution of plain weights over a concatenation of channels split; changed in place.

    Left as they are: grouped convolutions, and concatenations that something else reads too.
    """
    graph = model.graph
    weights = {one.name: one for one in graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    joins = {node.output[0]: node for node in graph.node if node.op_type == "Concat" and _axis(node) == 1}
    out: list[onnx.NodeProto] = []
    gone: set[str] = set()
    for node in graph.node:
        join = joins.get(node.input[0]) if node.op_type == "Conv" else None
        if join is None or readers[join.output[0]] != 1 or node.input[1] not in weights or _groups(node) != 1:
            out.append(node)
            continue
        pieces = _pieces(join, weights[node.input[1]], out, weights)
        if pieces is None:
            out.append(node)
            continue
        gone.add(join.output[0])
        for piece in pieces:
            weights[piece.name] = piece
            graph.initializer.append(piece)
        out += _sum(node, join, [piece.name for piece in pieces])
    kept = [node for node in out if not (node.op_type == "Concat" and node.output[0] in gone)]
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    unused = [one for one in graph.initializer if one.name not in used]
    for one in unused:
        graph.initializer.remove(one)
    onnx.checker.check_model(model)
    return model


def sums(model: onnx.ModelProto) -> list[str]:
    """Names of the additions that `split_joined` made: parts of one convolution, with nothing to round between them."""
    names = {node.name for node in model.graph.node}
    pattern = re.compile(r"(.+)\.sum\d+")
    added = [node.name for node in model.graph.node if node.op_type == "Add"]
    return [name for name in added if (found := pattern.fullmatch(name)) and f"{found[1]}.0" in names]


def _axis(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)


def _groups(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _pieces(
    join: onnx.NodeProto,
    weight: onnx.TensorProto,
    before: list[onnx.NodeProto],
    weights: dict[str, onnx.TensorProto],
) -> list[onnx.TensorProto] | None:
    """The weights over each joined input; None where their channels are not known."""
    counts = [_channels(name, before, weights) for name in join.input]
    array = numpy_helper.to_array(weight)
    missing = [place for place, count in enumerate(counts) if count is None]
    if len(missing) == 1:
        counts[missing[0]] = array.shape[1] - sum(count for count in counts if count is not None)
    known = [count for count in counts if count is not None]
    if len(known) != len(counts) or sum(known) != array.shape[1] or min(known) < 1:
        return None
    stem = weight.name.removesuffix(".weight")
    parts = np.split(array, np.cumsum(known)[:-1], axis=1)
    return [
        numpy_helper.from_array(np.ascontiguousarray(part), f"{stem}.{number}.weight")
        for number, part in enumerate(parts)
    ]


def _channels(name: str, before: list[onnx.NodeProto], weights: dict[str, onnx.TensorProto]) -> int | None:
    """Channels of a tensor, from the convolution that it comes from; through operators that keep them."""
    made = {output: node for node in before for output in node.output}
    while (node := made.get(name)) is not None:
        weight = weights.get(node.input[1]) if node.op_type in ("Conv", "ConvTranspose") else None
        if weight is not None:
            return int(weight.dims[0] if node.op_type == "Conv" else weight.dims[1] * _groups(node))
        if node.op_type not in ("LeakyRelu", "Relu", "InstanceNormalization", "BatchNormalization"):
            return None
        name = node.input[0]
    return None


def _sum(conv: onnx.NodeProto, join: onnx.NodeProto, names: list[str]) -> list[onnx.NodeProto]:
    out, total, stem = [], "", names[0].removesuffix(".0.weight")
    for number, (part, weight) in enumerate(zip(join.input, names, strict=True)):
        last = number == len(names) - 1
        node = onnx.NodeProto()
        node.CopyFrom(conv)
        del node.input[:], node.output[:]
        node.name = weight.removesuffix(".weight")
        node.input.extend([part, weight, *conv.input[2:]] if number == 0 else [part, weight])  # the bias once
        node.output.append(f"{conv.output[0]}.{number}")
        out.append(node)
        if number:
            result = conv.output[0] if last else f"{conv.output[0]}.sum{number}"
            out.append(helper.make_node("Add", [total, node.output[0]], [result], name=f"{stem}.sum{number}"))
            total = result
        else:
            total = node.output[0]
    return out
