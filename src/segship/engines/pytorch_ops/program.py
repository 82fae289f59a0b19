"""An ONNX graph as a list of torch calls, built once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from segship.engines.pytorch_ops.arithmetic import ARITHMETIC
from segship.engines.pytorch_ops.common import Attributes, Builder, Function, Unsupported
from segship.engines.pytorch_ops.layers import LAYERS

OPERATORS: dict[str, Builder] = {**LAYERS, **ARITHMETIC}
Observer = Callable[[str, torch.dtype, float], None]
"""Told of each convolution: operator, type of the arithmetic, seconds."""

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
# whose further inputs are read as numbers: they stay with the processor
_READING = ("Resize", "Pad")
# what makes a tensor of its own, so that an activation may overwrite it
_FRESH = (
    "Conv",
    "ConvTranspose",
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "Gemm",
    "MatMul",
)


@dataclass(frozen=True, kw_only=True)
class _Node:
    op: str
    name: str
    inputs: tuple[str, ...]
    """'' where one is left out"""
    outputs: tuple[str, ...]
    attributes: Attributes


@dataclass(frozen=True, kw_only=True)
class _Step:
    op: str
    function: Function
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    forget: tuple[int, ...]
    """slots that no later step reads"""


class Program:
    """`run` keeps its values in a list of its own, so that several threads may run it at once."""

    def __init__(self, model: onnx.ModelProto, device: torch.device, weight_type: torch.dtype) -> None:
        constants = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in model.graph.initializer}
        nodes = [_read_node(node) for node in model.graph.node]
        missing = sorted({node.op for node in nodes if node.op not in OPERATORS and node.op != "Constant"})
        if missing:
            raise Unsupported(f"operator {', '.join(missing)}")
        inputs = [value for value in model.graph.input if value.name not in constants]
        self.input_shapes = [_shape(value) for value in inputs]
        self._device = device
        self._weight_type = weight_type
        self._output_names = [value.name for value in model.graph.output]
        nodes = _fold_constants(nodes, constants)
        self._slots: dict[str, int] = {}
        self._initial: list[Tensor | None] = []
        self._input = self._slot(inputs[0].name) if inputs else 0
        self._outputs: list[int] = []
        self._steps = self._link(nodes, constants)

    def _slot(self, name: str, value: Tensor | None = None) -> int:
        if name not in self._slots:
            self._slots[name] = len(self._initial)
            self._initial.append(value)
        return self._slots[name]

    def _link(self, nodes: list[_Node], constants: dict[str, Tensor]) -> list[_Step]:
        uses = Counter(name for node in nodes for name in node.inputs)
        uses.update(self._output_names)
        maker = {name: node.op for node in nodes for name in node.outputs}
        last = {name: i for i, node in enumerate(nodes) for name in node.inputs}
        kept = {*constants, *self._output_names, ""}
        steps = []
        for i, node in enumerate(nodes):
            first = node.inputs[0] if node.inputs else ""
            in_place = maker.get(first) in _FRESH and uses[first] == 1
            sources = tuple(self._source(node, k, constants) for k in range(len(node.inputs)))
            steps.append(
                _Step(
                    op=node.op,
                    function=OPERATORS[node.op]({**node.attributes, "in_place": in_place}),
                    inputs=sources,
                    outputs=tuple(self._slot(name) if name else None for name in node.outputs),
                    forget=tuple(self._slot(name) for name in set(node.inputs) - kept if last[name] == i),
                )
            )
        self._outputs = [self._slot(name, self._to_device(constants.get(name))) for name in self._output_names]
        return steps

    def _source(self, node: _Node, position: int, constants: dict[str, Tensor]) -> int | None:
        name = node.inputs[position]
        if name not in constants:
            return self._slot(name) if name else None
        value = constants[name]
        if position > 0 and node.op in _WEIGHTED and value.is_floating_point():
            return self._slot(f"{name}, as a weight", self._as_weight(node.op, value))
        if position > 0 and node.op in _READING:
            return self._slot(f"{name}, as numbers", value)
        return self._slot(name, self._to_device(value))

    def _as_weight(self, op: str, value: Tensor) -> Tensor:
        value = value.to(self._device, self._weight_type)
        if op in _CONVOLUTIONS and value.dim() == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value

    def _to_device(self, value: Tensor | None) -> Tensor | None:
        # whole numbers are shapes and indices: they stay with the processor, which reads them
        return value if value is None or not value.is_floating_point() else value.to(self._device)

    @property
    def operators(self) -> set[str]:
        """What a run executes; what depends on constants alone was computed before."""
        return {step.op for step in self._steps}

    @torch.inference_mode()
    def run(self, x: Tensor, observe: Observer | None = None) -> list[Tensor]:
        """One tensor per graph output, in whatever type it was computed."""
        values = list(self._initial)
        x = x.to(self._device)
        values[self._input] = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        for step in self._steps:
            arguments = [None if slot is None else values[slot] for slot in step.inputs]
            if self._device.type != "cpu" and step.op not in _READING:
                arguments = self._together(arguments)
            if observe is not None and step.op in _CONVOLUTIONS:
                result = self._observed(step, arguments, observe)
            else:
                result = step.function(*arguments)
            results = result if isinstance(result, tuple) else (result,)
            for slot, value in zip(step.outputs, results, strict=False):
                if slot is not None:
                    values[slot] = value
            for slot in step.forget:
                values[slot] = None
        return [value for slot in self._outputs if (value := values[slot]) is not None]

    def _together(self, arguments: list[Tensor | None]) -> list[Tensor | None]:
        """What was computed from shapes alone lies with the processor; beside a tensor of the device it goes there."""
        if all(value is None or value.device.type == "cpu" for value in arguments):
            return arguments
        whole = (torch.int32, torch.int64)
        return [v if v is None or v.dtype in whole or not v.dim() else v.to(self._device) for v in arguments]

    def _observed(self, step: _Step, arguments: list[Any], observe: Observer) -> Any:
        self._wait()
        start = time.perf_counter()
        result = step.function(*arguments)
        self._wait()
        observe(step.op, arguments[1].dtype, time.perf_counter() - start)
        return result

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _shape(value: Any) -> tuple[int | None, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)


def _read_node(node: Any) -> _Node:
    op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"
    attributes = {a.name: _attribute(a.name, onnx.helper.get_attribute_value(a)) for a in node.attribute}
    if op == "Split":
        attributes["outputs"] = len(node.output)
    if op == "ConstantOfShape":
        attributes.setdefault("value", torch.zeros(1))
    return _Node(op=op, name=node.name, inputs=tuple(node.input), outputs=tuple(node.output), attributes=attributes)


def _attribute(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return torch.from_numpy(numpy_helper.to_array(value).copy())
    if name == "to":
        return _torch_type(value)
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _torch_type(number: int) -> torch.dtype:
    if number == onnx.TensorProto.BFLOAT16:
        return torch.bfloat16
    kind: torch.dtype = getattr(torch, onnx.helper.tensor_dtype_to_np_dtype(number).name)
    return kind


def _constant(node: _Node) -> Tensor:
    for name, kind in (("value", None), ("value_float", torch.float32), ("value_floats", torch.float32)):
        if name in node.attributes:
            value = node.attributes[name]
            return value if kind is None else torch.tensor(value, dtype=kind)
    for name in ("value_int", "value_ints"):
        if name in node.attributes:
            return torch.tensor(node.attributes[name], dtype=torch.int64)
    raise Unsupported(f"Constant of {', '.join(node.attributes)}")


@torch.inference_mode()
def _fold_constants(nodes: list[_Node], constants: dict[str, Tensor]) -> list[_Node]:
    """Run what depends on nothing but constants now, and add it to them: weights that are stored in 16 or 8 bits."""
    left = []
    for node in nodes:
        if node.op == "Constant":
            constants[node.outputs[0]] = _constant(node)
        elif node.inputs and all(name in constants for name in node.inputs if name):
            result = OPERATORS[node.op](node.attributes)(*(constants.get(name) for name in node.inputs))
            results = result if isinstance(result, tuple) else (result,)
            constants.update(zip(node.outputs, results, strict=False))
        else:
            left.append(node)
    return left
