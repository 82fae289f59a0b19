"""What the operator files share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Attributes = dict[str, Any]
Function = Callable[..., Any]
Builder = Callable[[Attributes], Function]
"""From a node's attributes to a function of its inputs; raises Unsupported for a setting it does not know."""


class Unsupported(Exception):
    """An operator, or a setting of one, that is not here."""


def integers(value: Tensor | Sequence[int]) -> list[int]:
    return [int(v) for v in (value.tolist() if isinstance(value, Tensor) else value)]


def axes_of(attributes: Attributes, tensor: Tensor | None) -> list[int] | None:
    """Axes from the input (newer opsets) or the attribute (older ones)."""
    if tensor is not None and tensor.numel():
        return integers(tensor)
    return list(attributes["axes"]) if "axes" in attributes else None


def symmetric(pads: Sequence[int]) -> list[int] | None:
    """ONNX pads (all begins, then all ends) as torch's one number an axis, or None where the two sides differ."""
    half = len(pads) // 2
    return list(pads[:half]) if list(pads[:half]) == list(pads[half:]) else None


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX pads as `F.pad` takes them: last axis first, begin and end together."""
    half = len(pads) // 2
    return [p for axis in reversed(range(half)) for p in (pads[axis], pads[axis + half])]


def require(condition: bool, what: str) -> None:
    if not condition:
        raise Unsupported(what)


def window(a: Attributes, dimensions: int) -> tuple[list[int], list[int], list[int]]:
    """strides, dilations and pads of a convolution or pooling, with their defaults."""
    require(a.get("auto_pad", "NOTSET") in ("NOTSET", "VALID"), f"auto_pad {a.get('auto_pad')}")
    ones = [1] * dimensions
    return a.get("strides", ones), a.get("dilations", ones), a.get("pads", [0] * 2 * dimensions)
