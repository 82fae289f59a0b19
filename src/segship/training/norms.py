"""Batch norm over all processes of a run, so that several processes train what one with the whole batch would.

torch's SyncBatchNorm does the same on accelerators only and refuses a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segship.training import distributed


class _SumOfAll(torch.autograd.Function):
    """The sum of a tensor over all processes; the gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        out = values.clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        out = gradients[0].contiguous()
        dist.all_reduce(out)
        return out


def _normalised(norm: nn.BatchNorm2d | nn.BatchNorm3d, x: Tensor) -> Tensor:
    """``x`` (N, C, …) by mean and variance over all processes, each with as many values; running statistics follow."""
    axes = (0, *range(2, x.ndim))
    shape = (1, -1, *(1 for _ in range(2, x.ndim)))
    values = x if x.dtype == torch.float64 else x.float()
    count = values.numel() // values.shape[1] * distributed.world()
    mean = _SumOfAll.apply(values.sum(axes)) / count
    centred = values - mean.view(shape)
    # around the mean: the inputs may be tiny beside it, and float32 squares would lose them
    variance = _SumOfAll.apply(centred.square().sum(axes)) / count
    with torch.no_grad():
        state = norm.state_dict(keep_vars=True)
        state["num_batches_tracked"].add_(1)
        share = norm.momentum if norm.momentum is not None else 1 / float(state["num_batches_tracked"])
        state["running_mean"].lerp_(mean.detach(), share)
        state["running_var"].lerp_(variance.detach() * count / (count - 1), share)
    scaled = centred * torch.rsqrt(variance + norm.eps).view(shape)
    return (scaled * norm.weight.view(shape) + norm.bias.view(shape)).to(x.dtype)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _normalised(self, input) if self.training else super().forward(input)


class SyncedBatchNorm3d(nn.BatchNorm3d):
    def forward(self, input: Tensor) -> Tensor:
        return _normalised(self, input) if self.training else super().forward(input)


_SYNCED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: SyncedBatchNorm2d,
    nn.BatchNorm3d: SyncedBatchNorm3d,
}


def synchronise(network: nn.Module) -> None:
    """Make every batch norm of ``network`` one over all processes; nothing in a run of one. Same tensors, same keys."""
    if distributed.world() > 1:
        _swap(network, _SYNCED)


def separate(network: nn.Module) -> None:
    """Take ``synchronise`` back."""
    _swap(network, {synced: own for own, synced in _SYNCED.items()})


def _swap(network: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    for module in network.modules():
        module.__class__ = classes.get(type(module), type(module))
