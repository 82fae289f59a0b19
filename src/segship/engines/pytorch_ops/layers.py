"""Convolution, pooling, resizing and normalisation of the ONNX specification, as torch calls."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from segship.engines.pytorch_ops.common import (
    Attributes,
    Builder,
    Function,
    Unsupported,
    integers,
    require,
    symmetric,
    torch_pads,
    window,
)

# --------------------------------------------------------------------------- convolution and pooling


def _conv(a: Attributes) -> Function:
    calls = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        strides, dilations, pads = window(a, weight.dim() - 2)
        padding = symmetric(pads)
        if padding is None:
            x, padding = F.pad(x, torch_pads(pads)), [0] * len(strides)
        # low-precision weights decide the type of the arithmetic
        x = x.to(weight.dtype)
        return calls[weight.dim() - 2](x, weight, bias, strides, padding, dilations, a.get("group", 1))

    return run


def _conv_transpose(a: Attributes) -> Function:
    calls = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
    require("output_shape" not in a, "ConvTranspose with output_shape")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        strides, dilations, pads = window(a, weight.dim() - 2)
        padding = symmetric(pads)
        if padding is None:
            raise Unsupported("ConvTranspose with unequal pads")
        extra = a.get("output_padding", [0] * len(strides))
        call = calls[weight.dim() - 2]
        return call(x.to(weight.dtype), weight, bias, strides, padding, extra, a.get("group", 1), dilations)

    return run


def _max_pool(a: Attributes) -> Function:
    kernel = a["kernel_shape"]
    strides, dilations, pads = window(a, len(kernel))
    call = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
    padding = symmetric(pads)

    def run(x: Tensor) -> Tensor:
        if padding is None:
            x = F.pad(x, torch_pads(pads), value=-math.inf)
        return call(x, kernel, strides, padding or 0, dilations, bool(a.get("ceil_mode", 0)))

    return run


def _average_pool(a: Attributes) -> Function:
    kernel = a["kernel_shape"]
    strides, dilations, pads = window(a, len(kernel))
    padding = symmetric(pads)
    if padding is None or set(dilations) != {1}:
        raise Unsupported("AveragePool with unequal pads or dilations")
    call = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    ceil, count = bool(a.get("ceil_mode", 0)), bool(a.get("count_include_pad", 0))
    return lambda x: call(x, kernel, strides, padding, ceil, count)


def _global_average_pool(_: Attributes) -> Function:
    return lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True)


# --------------------------------------------------------------------------------------------- resize

_COORDINATES: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {
    "asymmetric": lambda i, scale, size, out: i / scale,
    "half_pixel": lambda i, scale, size, out: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, scale, size, out: (i + 0.5) / scale - 0.5 if out > 1 else i * 0,
    "align_corners": lambda i, scale, size, out: i * (size - 1) / (out - 1) if out > 1 else i * 0,
}
_ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round_prefer_floor": lambda i: torch.ceil(i - 0.5),
    "round_prefer_ceil": lambda i: torch.floor(i + 0.5),
}


def _resize(a: Attributes) -> Function:
    mode, where = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    rounding = a.get("nearest_mode", "round_prefer_floor")
    require(not a.get("antialias", 0), "Resize with antialias")
    require(a.get("keep_aspect_ratio_policy", "stretch") == "stretch", "Resize that keeps the aspect ratio")
    require(mode in ("nearest", "linear") or where != "asymmetric", f"Resize {mode} {where}")
    require(where in _COORDINATES and rounding in _ROUNDING, f"Resize {where} {rounding}")

    def run(x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:
        axes = [axis % x.dim() for axis in a.get("axes", range(x.dim()))]
        before = [x.shape[axis] for axis in axes]
        if sizes is not None and sizes.numel():
            after = integers(sizes)
            factors = [new / old for new, old in zip(after, before, strict=True)]
        else:
            assert scales is not None
            factors = [float(s) for s in scales.tolist()]
            after = [math.floor(old * s) for old, s in zip(before, factors, strict=True)]
        plan = {axis: (new, factor) for axis, new, factor in zip(axes, after, factors, strict=True)}
        require(all(plan.get(axis, (x.shape[axis],))[0] == x.shape[axis] for axis in (0, 1)), "Resize of channels")
        if mode == "nearest":
            return _nearest(x, plan, where, rounding)
        if where == "asymmetric":
            return _linear(x, plan, where)
        size = [plan.get(axis, (x.shape[axis],))[0] for axis in range(2, x.dim())]
        name = {"linear": ("linear", "bilinear", "trilinear"), "cubic": ("", "bicubic", "")}[mode][x.dim() - 3]
        require(bool(name), f"Resize {mode} of {x.dim() - 2} axes")
        if where == "align_corners" or sizes is not None:
            return F.interpolate(x, size=size, mode=name, align_corners=where == "align_corners")
        # coordinates follow the factor given, which differs from new / old where that was rounded down
        each = [plan.get(axis, (0, 1.0))[1] for axis in range(2, x.dim())]
        return F.interpolate(x, scale_factor=each, mode=name, align_corners=False, recompute_scale_factor=False)

    return run


def _nearest(x: Tensor, plan: dict[int, tuple[int, float]], where: str, rounding: str) -> Tensor:
    sizes = [plan.get(axis, (x.shape[axis], 1.0)) for axis in range(2, x.dim())]
    whole = all(new == old * int(f) == old * f for (new, f), old in zip(sizes, x.shape[2:], strict=True))
    if whole and (where, rounding) == ("asymmetric", "floor"):
        return F.interpolate(x, size=[new for new, _ in sizes], mode="nearest")
    for axis, (new, factor) in plan.items():
        if new == x.shape[axis] and factor == 1:
            continue
        # in float32 like the other engines: in between two pixels, the last bit decides which one is taken
        i, scale = torch.arange(new, dtype=torch.float32), torch.tensor(factor, dtype=torch.float32)
        source = _ROUNDING[rounding](_COORDINATES[where](i, scale, x.shape[axis], new))
        x = x.index_select(axis, source.clamp(0, x.shape[axis] - 1).long().to(x.device))
    return x


def _linear(x: Tensor, plan: dict[int, tuple[int, float]], where: str) -> Tensor:
    """Between two pixels an axis, for position rules that F.interpolate does not have."""
    for axis, (new, factor) in plan.items():
        before = x.shape[axis]
        if new == before and factor == 1:
            continue
        i, scale = torch.arange(new, dtype=torch.float32), torch.tensor(factor, dtype=torch.float32)
        position = _COORDINATES[where](i, scale, before, new).clamp(0, before - 1)
        low = position.floor()
        share = (position - low).reshape([-1 if a == axis else 1 for a in range(x.dim())]).to(x)
        first = low.long().to(x.device)
        second = (first + 1).clamp(max=before - 1)
        x = x.index_select(axis, first) * (1 - share) + x.index_select(axis, second) * share
    return x


# -------------------------------------------------------------------------------------- normalisation


def _batch_norm(a: Attributes) -> Function:
    require(not a.get("training_mode", 0), "BatchNormalization in training mode")

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x.float(), mean, var, scale, bias, eps=a.get("epsilon", 1e-5)).to(x.dtype)

    return run


def _instance_norm(a: Attributes) -> Function:
    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return F.instance_norm(x.float(), weight=scale, bias=bias, eps=a.get("epsilon", 1e-5)).to(x.dtype)

    return run


def _group_norm(a: Attributes) -> Function:
    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        require(scale.numel() == x.shape[1], "GroupNormalization with one scale a group (opset 18)")
        return F.group_norm(x.float(), a["num_groups"], scale, bias, a.get("epsilon", 1e-5)).to(x.dtype)

    return run


def _layer_norm(a: Attributes) -> Function:
    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        axis = a.get("axis", -1) % x.dim()
        shape = x.shape[axis:]
        bias = None if bias is None else bias.expand(shape)
        return F.layer_norm(x.float(), shape, scale.expand(shape), bias, a.get("epsilon", 1e-5)).to(x.dtype)

    return run


LAYERS: dict[str, Builder] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "Resize": _resize,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
}
