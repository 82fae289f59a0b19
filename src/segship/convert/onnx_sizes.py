"""Sizes inside a graph whose height and width are fixed: written down instead of computed, rounding made explicit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from segship.convert.onnx_graph import copy_of, sort_and_prune

AXES_OPSET = 18
"""from here on Resize may name the axes that its sizes are for"""
Shapes = Mapping[str, tuple[int | None, ...]]


def settle_sizes(model: onnx.ModelProto, shapes: Shapes | None = None) -> onnx.ModelProto:
    """A copy in which sizes that are known are constants. The same graph where height and width are free.

    Every Resize to a computed size gets its height and width as constants, for these two axes alone, so that the
    batch stays out of it and the arithmetic on shapes falls away. ``ceil_mode`` is removed from a pooling whose input
    it divides evenly, where rounding up and down are one, and only there: not every engine and vendor tool knows it.
    ``shapes`` are those of `known_shapes`, where they come from a graph with more of them.
    """
    copy = copy_of(model)
    graph = copy.graph
    known = known_shapes(copy) if shapes is None else shapes
    opset = next((entry.version for entry in copy.opset_import if entry.domain in ("", "ai.onnx")), 0)
    for number, node in enumerate(graph.node):
        if node.op_type == "MaxPool" and _divides(node, known.get(node.input[0], ())):
            kept = [attribute for attribute in node.attribute if attribute.name != "ceil_mode"]
            del node.attribute[:]
            node.attribute.extend(kept)
        if node.op_type == "Resize" and opset >= AXES_OPSET:
            _settle_resize(graph, node, number, known)
    sort_and_prune(graph)
    onnx.checker.check_model(copy)
    return copy


def known_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Shapes of all tensors as far as they can be inferred; a side that is not known is None."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    return {
        value.name: tuple(dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


def _divides(node: onnx.NodeProto, shape: tuple[int | None, ...]) -> bool:
    """Whether a pooling with ``ceil_mode`` would give the same size without."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if not attributes.get("ceil_mode") or len(shape) != 4 or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        return False
    kernel, strides = attributes["kernel_shape"], attributes.get("strides", [1, 1])
    pads, dilations = attributes.get("pads", [0, 0, 0, 0]), attributes.get("dilations", [1, 1])
    for axis, side in enumerate(shape[2:]):
        if side is None:
            return False
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        if (side + pads[axis] + pads[axis + 2] - reach) % strides[axis]:
            return False
    return True


def _settle_resize(graph: onnx.GraphProto, node: onnx.NodeProto, number: int, known: Shapes) -> None:
    """Constant height and width for a Resize that is told a size (not a factor) of a picture."""
    computed = len(node.input) > 3 and bool(node.input[3])
    before, after = known.get(node.input[0], ()), known.get(node.output[0], ())
    if not computed or any(a.name == "axes" for a in node.attribute) or len(before) != 4 or len(after) != 4:
        return
    if None in after[1:] or after[1] != before[1]:
        return
    name = f"size.{number}.{after[2]}x{after[3]}"
    graph.initializer.append(numpy_helper.from_array(np.array(after[2:], np.int64), name))
    x = node.input[0]
    del node.input[:]
    node.input.extend([x, "", "", name])
    node.attribute.append(helper.make_attribute("axes", [2, 3]))
