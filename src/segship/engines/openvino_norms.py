"""Instance normalisation over many values, summed so that float32 suffices.

OpenVINO's own kernel adds all values of a channel one after the other. Where much of a window is one value (padding, air)
every addition is rounded to the same side, and the error grows with the number of values: up to 3e-8 of the sum for each.
Over a window of 128³ voxels the variance is then wrong in its third digit (measured: answers of a normalisation off by
6e-3, a 3D U-Net's logits by 5e-3). Here means are taken axis by axis: the same normalisation with errors below 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LEAST_VALUES = 1 << 11
"""of one channel; below, the kernel's own sums are good to 1e-4 at worst and stay"""
_NODES_STAND_BEFORE = 1 << 20
"""bytes of an ONNX file in which its nodes are named; the weights come after them"""


def has_instance_norm(graph: Path) -> bool:
    """Whether an ONNX file names such a node; looks at its beginning alone."""
    with graph.open("rb") as stream:
        return b"InstanceNormalization" in stream.read(_NODES_STAND_BEFORE)


def split_means(model: Any) -> int:
    """Replace the normalisations over at least LEAST_VALUES values a channel in an OpenVINO model; returns how many."""
    found = [op for op in model.get_ordered_ops() if op.get_type_name() == "MVN" and _is_large(op)]
    for op in found:
        _replace(op)
    if found:
        model.validate_nodes_and_infer_types()
    return len(found)


def _is_large(op: Any) -> bool:
    """Over all axes behind the channel, of known sizes, with the epsilon inside the root."""
    shape, attributes = op.input(0).get_partial_shape(), op.get_attributes()
    if shape.rank.is_dynamic or not attributes.get("normalize_variance"):
        return False
    rank = shape.rank.get_length()
    axes = op.input_value(1).get_node()
    if axes.get_type_name() != "Constant" or str(attributes.get("eps_mode")).lower() != "inside_sqrt":
        return False
    over = sorted(int(axis) % rank for axis in np.asarray(axes.get_data()).reshape(-1))
    sides = [shape[axis] for axis in over]
    if rank < 4 or over != list(range(2, rank)) or any(side.is_dynamic for side in sides):
        return False
    return math.prod(side.get_length() for side in sides) >= LEAST_VALUES


def _replace(op: Any) -> None:
    from openvino import opset13 as ops

    x = op.input_value(0)
    sides = [side.get_length() for side in list(x.get_partial_shape())[2:]]
    last = ops.constant(np.array([len(sides) + 1], np.int64))
    centred = ops.subtract(x, _mean(ops, ops.reduce_mean(x, last, keep_dims=True), sides))
    length = ops.reduce_l2(
        centred, last, keep_dims=True
    )  # of each row; squares of the whole map are never written down
    squares = ops.multiply(length, length)
    variance = ops.divide(_mean(ops, squares, sides), ops.constant(np.array(sides[-1], np.float32)))
    epsilon = np.array(op.get_attributes()["eps"], np.float32)
    out = ops.divide(centred, ops.sqrt(ops.add(variance, ops.constant(epsilon))))
    out.set_friendly_name(op.get_friendly_name())
    for target in op.output(0).get_target_inputs():
        target.replace_source_output(out.output(0))


def _mean(ops: Any, rows: Any, sides: Sequence[int]) -> Any:
    """Of one value for each row, over all axes between the channel and the last, which is 1: axis by axis, so that no sum
    has more terms than a side. The reshapes keep OpenVINO from joining the steps; what they move is small."""
    last = ops.constant(np.array([len(sides) + 1], np.int64))
    for kept in range(len(sides) - 1, 0, -1):
        shape = [0, 0, *[1] * (len(sides) - kept), *sides[:kept]]  # the next axis to go stands last
        turned = ops.reshape(rows, ops.constant(np.array(shape, np.int64)), special_zero=True)
        rows = ops.reduce_mean(turned, last, keep_dims=True)
    return rows
