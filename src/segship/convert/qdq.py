"""A quantised graph whose roundings stand where ONNX Runtime looks for them.

NNCF quantises what enters a concatenation or a resize, and leaves what comes out without nodes: OpenVINO carries the
integers through, ONNX Runtime does not, and runs every convolution behind one in float32 (96 % of convolution time of
U²-NetP). Written out, the same numbers let it run them as QLinearConv (onnxruntime: core/optimizer/qdq_transformer).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from segship.convert import onnx_graph, onnx_sizes

_THROUGH = ("Concat", "MaxPool", "Resize")
"""operators that hand integers on: of these, all but Resize give nothing but values that they were given"""

Grid = tuple[str, str]
"""names of scale and zero point"""


def round_joined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with a Quantize/Dequantize pair behind each Concat and Resize on the way to a quantised convolution.

    The pair has the scale of what went in, so a Concat is changed by nothing and a Resize is rounded as an engine
    does that resizes integers. Where inputs of a Concat have different scales, and where no quantised convolution
    follows, nothing is added.
    """
    copy = onnx_graph.copy_of(model)
    graph = copy.graph
    _use_factors(graph, onnx_sizes.known_shapes(copy))
    constants = {i.name: i for i in graph.initializer}
    carrying = _carrying(graph)
    quantised = {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    grids: dict[str, Grid] = {}
    renamed: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for number, node in enumerate(graph.node):
        data, output = _data(node), node.output[0]
        given = [grids.get(name) for name in data]
        if number in carrying:
            node.input[: len(data)] = [renamed.get(name, name) for name in data]
        nodes.append(node)
        if node.op_type == "DequantizeLinear" and node.input[0] in quantised and len(node.input) == 3:
            grids[output] = (node.input[1], node.input[2])
        elif _hands_on(node) and given[0] is not None and _same(given, constants):
            grids[output] = given[0]
            if node.op_type != "MaxPool" and number in carrying:
                renamed[output] = f"{output}.rounded"
                nodes += _pair(output, renamed[output], given[0])
    fresh = helper.make_graph(nodes, "", [], [])
    del graph.node[:]
    graph.node.extend(fresh.node)
    onnx_graph.sort_and_prune(graph)
    onnx.checker.check_model(copy)
    return copy


def _data(node: onnx.NodeProto) -> list[str]:
    """The inputs that carry values, not sizes or weights."""
    return list(node.input) if node.op_type == "Concat" else list(node.input[:1])


def _carrying(graph: onnx.GraphProto) -> set[int]:
    """Numbers of the convolutions of quantised weights, and of the nodes of ``_THROUGH`` that lead to one."""
    stored = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    found: set[int] = set()
    wanted: set[str] = set()
    for number, node in reversed(list(enumerate(graph.node))):
        quantised = node.op_type == "Conv" and node.input[1] in stored
        if quantised or (_hands_on(node) and node.output[0] in wanted):
            found.add(number)
            wanted |= set(_data(node))
    return found


def _hands_on(node: onnx.NodeProto) -> bool:
    return node.op_type in _THROUGH and not any(attribute.name == "axes" for attribute in node.attribute)


def _use_factors(graph: onnx.GraphProto, shapes: onnx_sizes.Shapes) -> None:
    """Factors in the place of a Resize's constant height and width: the same pixels, and no attribute ``axes``.

    ONNX Runtime 1.31 moves integers' change to channels-last through a Resize, and then takes sizes that are for two
    axes as sizes for four: such a graph does not open.
    """
    constants = {i.name: i for i in graph.initializer}
    for node in graph.node:
        axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
        before = shapes.get(node.input[0], ())[2:]
        if node.op_type != "Resize" or axes != [2, 3] or len(node.input) < 4 or len(before) != 2:
            continue
        sizes = constants.get(node.input[3])
        if sizes is None or None in before:
            continue
        factors = [_factor(old or 1, int(new)) for old, new in zip(before, numpy_helper.to_array(sizes), strict=True)]
        name = f"factors.{'x'.join(f'{factor:.9g}' for factor in factors)}"
        if name not in constants:
            constants[name] = numpy_helper.from_array(np.array([1, 1, *factors], np.float32), name)
            graph.initializer.append(constants[name])
        del node.input[2:]
        node.input.append(name)
        kept = [attribute for attribute in node.attribute if attribute.name != "axes"]
        del node.attribute[:]
        node.attribute.extend(kept)


def _factor(old: int, new: int) -> np.float32:
    """new / old as float32, rounded up: the result's size is the product rounded down."""
    factor = np.float32(new / old)
    return factor if float(factor) * old >= new else np.nextafter(factor, np.float32(np.inf))


def _same(grids: Sequence[Grid | None], constants: dict[str, onnx.TensorProto]) -> bool:
    values = set()
    for grid in grids:
        if grid is None or not all(name in constants for name in grid):
            return False
        values.add(
            tuple((constants[name].data_type, numpy_helper.to_array(constants[name]).tobytes()) for name in grid)
        )
    return len(values) == 1


def _pair(name: str, output: str, grid: Grid) -> list[onnx.NodeProto]:
    inner = f"{output}.integer"
    return [
        helper.make_node("QuantizeLinear", [name, *grid], [inner], name=f"{output}.quantize"),
        helper.make_node("DequantizeLinear", [inner, *grid], [output], name=f"{output}.dequantize"),
    ]
