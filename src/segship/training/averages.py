"""Averaged weights, and batch-norm statistics measured anew for weights that no step ever had."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


@dataclass(frozen=True)
class _Decay:
    """Exponential average whose decay grows to its value, so that the first steps do not linger."""

    decay: float

    def __call__(self, averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        if not averaged.is_floating_point():
            return current
        steps = int(count)
        return torch.lerp(current, averaged, min(self.decay, (1 + steps) / (10 + steps)))


def average_of(network: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential average of all weights and buffers of ``network``; None for a decay of 0."""
    return AveragedModel(network, avg_fn=_Decay(decay), use_buffers=True) if decay else None


def recalibrate(network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Replace batch norm's running statistics by their mean over the batches ``inputs``, each (N, C, H, W).

    Running averages lag behind weights that still move, and an average of weights has statistics that no
    step ever had; with inputs of ±0.01 either can cost most of the IoU. Weights, the count of training steps,
    momentum and mode stay as they are.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    steps = [norm.state_dict()["num_batches_tracked"].clone() for norm in norms]
    training = network.training
    network.train()
    with torch.no_grad():
        for count, batch in enumerate(inputs):
            for norm in norms:
                norm.momentum = 1 / (count + 1)  # the plain mean over all batches
            network(batch)
    network.train(training)
    for norm, momentum, before in zip(norms, momenta, steps, strict=True):
        norm.momentum = momentum
        norm.state_dict()["num_batches_tracked"].copy_(before)
