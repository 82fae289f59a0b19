"""A convolution over joined channels as the sum of one convolution over each part.

A U-Net's decoder joins what comes from below with the skip beside it, and convolves. To join channels an engine copies
both parts, in a 3D network the two largest tensors there are: it then holds a third more than it needs, and takes
longer. The sum is equal to it up to float32's rounding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from segship.convert.onnx_graph import copy_of, sort_and_prune
from segship.convert.onnx_sizes import known_shapes


def split_joined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the convolutions of plain weights over a concatenation of channels split; changed in place.

    A concatenation goes where all that read it are such convolutions and splitting pays for each: the sum writes its
    result once more for every part after the first, the concatenation copies all parts. Left as they are: grouped
    convolutions, concatenations that anything else reads, and many narrow parts of a convolution with a wide result.
    """
    graph = model.graph
    weights = {one.name: one for one in graph.initializer}
    counts = _channels(model)
    joins = {node.output[0]: node for node in graph.node if node.op_type == "Concat" and _axis(node) == 1}
    kept = {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type != "Conv" or not _pays(node, joins.get(node.input[0]), weights, counts):
            kept.update(node.input)
        kept.update(node.input[1:])
    out: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.output[0] in joins and node.output[0] not in kept:
            continue
        join = joins.get(node.input[0]) if node.op_type == "Conv" and node.input[0] not in kept else None
        if join is None:
            out.append(node)
            continue
        pieces = _pieces(node, weights[node.input[1]], [counts[name] for name in join.input])
        graph.initializer.extend(pieces)
        out += _sum(node, join, [piece.name for piece in pieces])
    fresh = helper.make_graph(out, "", [], [])
    del graph.node[:]
    graph.node.extend(fresh.node)
    used = {name for node in graph.node for name in node.input}
    for one in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(one)
    onnx.checker.check_model(model)
    return model


def sums(model: onnx.ModelProto) -> list[str]:
    """Names of the additions that `split_joined` made: parts of one convolution, with nothing to round between them."""
    names = {node.name for node in model.graph.node}
    pattern = re.compile(r"(.+)\.sum\d+")
    added = [node.name for node in model.graph.node if node.op_type == "Add"]
    return [name for name in added if (found := pattern.fullmatch(name)) and f"{found[1]}.0" in names]


def join_again(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the sums that `split_joined` made are convolutions over joined channels again; as it is without."""
    stems = [name.removesuffix(".sum1") for name in sums(model) if name.endswith(".sum1")]
    if not stems:
        return model
    copy = copy_of(model)
    graph = copy.graph
    by_name = {node.name: node for node in graph.node}
    weights = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    joins: dict[tuple[str, ...], str] = {}
    for stem in stems:
        parts = [by_name[f"{stem}.0"]]
        while f"{stem}.sum{len(parts)}" in by_name:
            parts.append(by_name[f"{stem}.{len(parts)}"])
        last = by_name[f"{stem}.sum{len(parts) - 1}"]
        inputs = tuple(part.input[0] for part in parts)
        if inputs not in joins:
            joins[inputs] = f"{stem}.joined"
            graph.node.append(helper.make_node("Concat", inputs, [joins[inputs]], name=joins[inputs], axis=1))
        whole = np.concatenate([weights[part.input[1]] for part in parts], axis=1)
        graph.initializer.append(numpy_helper.from_array(whole, f"{stem}.weight"))
        conv = onnx.NodeProto()
        conv.CopyFrom(parts[0])
        conv.name = stem
        conv.input[0], conv.input[1] = joins[inputs], f"{stem}.weight"
        conv.output[0], last.output[0] = last.output[0], f"{stem}.gone"
        graph.node.append(conv)
    sort_and_prune(graph)
    onnx.checker.check_model(copy)
    return copy


def _axis(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)


def _groups(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _channels(model: onnx.ModelProto) -> dict[str, int]:
    """Channels of every tensor that has some, where they are known."""
    shapes = known_shapes(model).items()
    return {name: shape[1] for name, shape in shapes if len(shape) > 2 and shape[1] is not None}


def _pays(
    conv: onnx.NodeProto,
    join: onnx.NodeProto | None,
    weights: Mapping[str, onnx.TensorProto],
    counts: Mapping[str, int],
) -> bool:
    """Whether a convolution over ``join`` can be split, and its sum moves no more numbers than the concatenation."""
    weight = weights.get(conv.input[1])
    if join is None or weight is None or _groups(conv) != 1 or any(name not in counts for name in join.input):
        return False
    whole = sum(counts[name] for name in join.input)
    return whole == weight.dims[1] and (len(join.input) - 1) * weight.dims[0] <= whole


def _pieces(conv: onnx.NodeProto, weight: onnx.TensorProto, counts: Sequence[int]) -> list[onnx.TensorProto]:
    """The weights over each joined input."""
    parts = np.split(numpy_helper.to_array(weight), np.cumsum(counts)[:-1], axis=1)
    return [
        numpy_helper.from_array(np.ascontiguousarray(part), f"{conv.name}.{number}.weight")
        for number, part in enumerate(parts)
    ]


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
