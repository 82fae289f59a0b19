"""Arithmetic, quantised numbers and shapes of the ONNX specification, as torch calls."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segship.engines.pytorch_ops.common import Attributes, Builder, Function, axes_of, integers, require, torch_pads

# ----------------------------------------------------------------------------------------- arithmetic


def _divide(x: Tensor, y: Tensor) -> Tensor:
    if x.is_floating_point() or y.is_floating_point():
        return x / y
    return torch.div(x, y, rounding_mode="trunc")


def _matmul(x: Tensor, y: Tensor) -> Tensor:
    kind = torch.promote_types(x.dtype, y.dtype)
    return torch.matmul(x.to(kind), y.to(kind))


def _gemm(a: Attributes) -> Function:
    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x.t() if a.get("transA", 0) else x
        weight = weight.t() if a.get("transB", 0) else weight
        y = a.get("alpha", 1.0) * (x.to(weight.dtype) @ weight)
        return y if bias is None else y + a.get("beta", 1.0) * bias

    return run


def _fold(function: Function) -> Function:
    """An operator of any number of inputs from one of two."""

    def run(first: Tensor, *rest: Tensor) -> Tensor:
        for other in rest:
            first = function(first, other)
        return first

    return run


def _reduce(function: Function) -> Builder:
    def build(a: Attributes) -> Function:
        def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
            chosen = axes_of(a, axes)
            if chosen is None and a.get("noop_with_empty_axes", 0):
                return x
            return function(x, tuple(chosen if chosen is not None else range(x.dim())), bool(a.get("keepdims", 1)))

        return run

    return build


def _clip(a: Attributes) -> Function:
    def run(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        low = torch.tensor(a["min"]) if low is None and "min" in a else low
        high = torch.tensor(a["max"]) if high is None and "max" in a else high
        return torch.clamp(x, None if low is None else low.to(x), None if high is None else high.to(x))

    return run


# ---------------------------------------------------------------------------------- quantised numbers

_RANGES = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 65535),
    torch.int16: (-32768, 32767),
    torch.int32: (-(2**31), 2**31 - 1),
}


def _per_axis(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


def _quantize(a: Attributes) -> Function:
    """Quantised values stay float32 holding whole numbers: exact up to 24 bits, and no cast back and forth."""

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        low, high = _RANGES[zero.dtype if zero is not None else torch.uint8]
        y = (x.float() / _per_axis(scale, x, a.get("axis", 1))).round_()
        if zero is not None:
            y += _per_axis(zero, x, a.get("axis", 1)).to(y)
        return y.clamp_(low, high)

    return run


def _dequantize(a: Attributes) -> Function:
    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        y = x.float()
        if zero is not None:
            y = y - _per_axis(zero, x, a.get("axis", 1)).to(y)
        return y * _per_axis(scale, x, a.get("axis", 1))

    return run


# ---------------------------------------------------------------------------------------------- shape


def _reshape(a: Attributes) -> Function:
    def run(x: Tensor, shape: Tensor) -> Tensor:
        sizes = integers(shape)
        if not a.get("allowzero", 0):
            sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
        return x.reshape(sizes)

    return run


def _flatten(a: Attributes) -> Function:
    axis = a.get("axis", 1)
    return lambda x: x.reshape(math.prod(x.shape[:axis]), -1)


def _slice(a: Attributes) -> Function:
    def run(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
        first, last = integers(starts), integers(ends)
        chosen = integers(axes) if axes is not None else list(range(len(first)))
        strides = integers(steps) if steps is not None else [1] * len(first)
        require(all(step > 0 for step in strides), "Slice with a negative step")
        index: list[slice] = [slice(None)] * x.dim()
        for begin, end, axis, step in zip(first, last, chosen, strides, strict=True):
            index[axis] = slice(begin, end, step)
        return x[tuple(index)]

    return run


def _gather(a: Attributes) -> Function:
    axis = a.get("axis", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        dim = axis % x.dim()
        index = index.to(x.device)
        index = torch.where(index < 0, index + x.shape[dim], index)
        taken = x.index_select(dim, index.reshape(-1))
        return taken.reshape([*x.shape[:dim], *index.shape, *x.shape[dim + 1 :]])

    return run


def _gather_nd(a: Attributes) -> Function:
    require(not a.get("batch_dims", 0), "GatherND with batch_dims")
    return lambda x, index: x[tuple(index.to(x.device).unbind(-1))]


def _unsqueeze(a: Attributes) -> Function:
    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = axes_of(a, axes) or []
        for axis in sorted(axis % (x.dim() + len(chosen)) for axis in chosen):
            x = x.unsqueeze(axis)
        return x

    return run


def _squeeze(a: Attributes) -> Function:
    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = axes_of(a, axes)
        return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))

    return run


def _split(a: Attributes) -> Function:
    def run(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        axis = a.get("axis", 0)
        if sizes is not None:
            return torch.split(x, integers(sizes), axis)
        if "split" in a:
            return torch.split(x, list(a["split"]), axis)
        return torch.split(x, math.ceil(x.shape[axis] / a["outputs"]), axis)

    return run


def _pad(a: Attributes) -> Function:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(a.get("mode", "constant"))
    require(mode is not None, f"Pad {a.get('mode')}")

    def run(x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        given = integers(pads) if pads is not None else list(a["pads"])
        chosen = integers(axes) if axes is not None else list(range(len(given) // 2))
        full = [0] * (2 * x.dim())
        for i, axis in enumerate(chosen):
            full[axis % x.dim()], full[axis % x.dim() + x.dim()] = given[i], given[i + len(chosen)]
        if mode == "constant":
            return F.pad(x, torch_pads(full), value=0.0 if value is None else float(value))
        require(not any(full[:2] + full[x.dim() : x.dim() + 2]), f"Pad {mode} of channels")
        return F.pad(x, torch_pads(full)[:-4], mode=mode or "constant")

    return run


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, integers(shape)))


def _cast(a: Attributes) -> Function:
    kind = a["to"]  # already a torch type

    def run(x: Tensor) -> Tensor:
        # A cast of 16-bit weights to float32 must not undo the low precision that the session runs in.
        return x if kind == torch.float32 and x.dtype == torch.bfloat16 else x.to(kind)

    return run


def _softmax(a: Attributes) -> Function:
    return lambda x: torch.softmax(x.float(), a.get("axis", -1)).to(x.dtype)


def _arg_max(a: Attributes) -> Function:
    return lambda x: torch.argmax(x, a.get("axis", 0), bool(a.get("keepdims", 1)))


def _simple(function: Function) -> Builder:
    return lambda _: function


def _with(function: Function, **names: tuple[str, Any]) -> Builder:
    """A torch function whose keyword comes from an attribute with a default."""
    return lambda a: partial(function, **{key: a.get(name, default) for key, (name, default) in names.items()})


ARITHMETIC: dict[str, Builder] = {
    "Gemm": _gemm,
    "Clip": _clip,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Split": _split,
    "Pad": _pad,
    "Cast": _cast,
    "Softmax": _softmax,
    "ArgMax": _arg_max,
    "Relu": lambda a: F.relu_ if a.get("in_place") else F.relu,
    "LeakyRelu": lambda a: partial(F.leaky_relu, negative_slope=a.get("alpha", 0.01), inplace=a.get("in_place", False)),
    "Elu": _with(F.elu, alpha=("alpha", 1.0)),
    "Gelu": _with(F.gelu, approximate=("approximate", "none")),
    "Concat": lambda a: lambda *x: torch.cat(x, a["axis"]),
    "Transpose": lambda a: lambda x: x.permute(a.get("perm") or list(reversed(range(x.dim())))),
    "Shape": lambda a: lambda x: torch.tensor(x.shape[a.get("start", 0) : a.get("end")], dtype=torch.int64),
    "ConstantOfShape": lambda a: lambda shape: a["value"].expand(integers(shape)),
    "PRelu": _simple(lambda x, slope: torch.where(x < 0, x * slope, x)),
    "HardSigmoid": lambda a: lambda x: torch.clamp(x * a.get("alpha", 0.2) + a.get("beta", 0.5), 0, 1),
    "HardSwish": _simple(F.hardswish),
    "Add": _simple(torch.add),
    "Sub": _simple(torch.sub),
    "Mul": _simple(torch.mul),
    "Div": _simple(_divide),
    "Pow": _simple(torch.pow),
    "Mod": _simple(torch.remainder),
    "Max": _simple(_fold(torch.maximum)),
    "Min": _simple(_fold(torch.minimum)),
    "Sum": _simple(_fold(torch.add)),
    "MatMul": _simple(_matmul),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "Expand": _simple(_expand),
    "Range": _simple(lambda start, end, step: torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)),
    "Where": _simple(torch.where),
    "Equal": _simple(torch.eq),
    "Greater": _simple(torch.gt),
    "GreaterOrEqual": _simple(torch.ge),
    "Less": _simple(torch.lt),
    "LessOrEqual": _simple(torch.le),
    "And": _simple(torch.logical_and),
    "Or": _simple(torch.logical_or),
    "Not": _simple(torch.logical_not),
    "Identity": _simple(lambda x: x),
    "Dropout": _simple(lambda x, *_: x),
    "Sigmoid": _simple(lambda x: torch.sigmoid(x.float())),  # near 1 a half has 11 bits left, a bfloat16 8
    "Tanh": _simple(torch.tanh),
    "Erf": _simple(torch.erf),
    "Exp": _simple(torch.exp),
    "Log": _simple(torch.log),
    "Sqrt": _simple(torch.sqrt),
    "Reciprocal": _simple(torch.reciprocal),
    "Abs": _simple(torch.abs),
    "Neg": _simple(torch.neg),
    "Floor": _simple(torch.floor),
    "Ceil": _simple(torch.ceil),
    "Round": _simple(torch.round),
}
