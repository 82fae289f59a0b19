"""State dicts that look trained, without training."""

from __future__ import annotations

import torch
from torch import nn

State = dict[str, torch.Tensor]


def trained_looking(network: nn.Module, seed: int = 0, kind: str = "bgr-imagenet-div255") -> State:
    """Weights whose first batch norm has the running variance that a network trained on ``kind`` inputs has."""
    generator = torch.Generator().manual_seed(seed)
    state = network.state_dict()
    for key, value in state.items():
        if key.endswith("running_var"):
            state[key] = 1 + 0.2 * torch.rand(value.shape, generator=generator)
        elif key.endswith("running_mean"):
            state[key] = 0.1 * torch.randn(value.shape, generator=generator)
    power = state["conv0_0.conv1.weight"].flatten(1).square().sum(1)
    variance = {"bgr-imagenet-div255": 8e-6, "rgb-div255": 2.5e-2}[kind]
    state["conv0_0.bn1.running_var"] = variance * power
    state["conv0_0.bn1.running_mean"] = torch.zeros(32)
    return state
