"""bf16 training: which parts stay float32, and whether it would pay on this machine."""

from __future__ import annotations

import contextlib
import logging
import time

import torch
from torch import Tensor, nn

WORTH_A_HINT = 1.5


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in float32 inside autocast as well."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def keep_ends_float32(network: nn.Module) -> None:
    """Make the first convolution and the heads of UNet++ or U-Net compute in float32 always.

    The inputs of this world are ±0.01 and the first bias is tens of times larger: bf16's 8 bits would round the
    image away before batch norm takes the bias out again. Both ends cost nothing next to the rest.
    """
    for name, module in network.named_modules():
        if name == "conv0_0.conv1" or name.startswith("final"):
            # Same tensors, same keys: only the forward differs, so no weight needs to move.
            module.__class__ = Float32Conv2d


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context of a forward pass in ``precision`` (fp32 or bf16)."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def bf16_gain(device: torch.device) -> float:
    """How many times faster one typical convolution step (forward and backward) is in bf16 than in fp32."""
    layer = nn.Conv2d(64, 64, 3, padding=1).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.zeros(4, 64, 48, 48, device=device).contiguous(memory_format=torch.channels_last)
    seconds: dict[str, float] = {}
    for precision in ("fp32", "bf16"):
        for _ in range(3):
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            with autocast(precision, device):
                out = layer(image)
            out.float().sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[precision] = min(seconds.get(precision, 1e9), time.perf_counter() - started)
    return seconds["fp32"] / seconds["bf16"]


def bf16_advice(precision: str, device: torch.device, log: logging.Logger) -> None:
    """Say it when this processor would train much faster in bf16."""
    if precision == "fp32":
        state = torch.get_rng_state()
        gain = bf16_gain(device)
        torch.set_rng_state(state)  # the timing drew weights
        if gain > WORTH_A_HINT:
            log.info("this device runs convolutions %.1f times faster in bf16: consider --precision bf16", gain)
