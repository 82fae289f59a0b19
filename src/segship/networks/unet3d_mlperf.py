"""The 3D U-Net of MLPerf Training, state-dict compatible.

Source of the definition: mlcommons/training: retired_benchmarks/unet3d/pytorch/model/{unet3d,layers}.py.

Input (N, C, z, y, x) float32, every side a multiple of 32 and the deepest grid of more than one voxel; output logits
(N, K, z, y, x) on the input's grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segship.networks.unet3d_mlperf_choices import FILTERS, Activation, Normalization


class Block(nn.Module):
    """Two times convolution 3×3×3 without bias → normalisation → activation; the first has the stride."""

    def __init__(
        self, given: int, made: int, stride: int, normalization: Normalization, activation: Activation
    ) -> None:
        super().__init__()
        self.conv1 = _unit(given, made, stride, normalization, activation)
        self.conv2 = _unit(made, made, 1, normalization, activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return out


class UpBlock(nn.Module):
    """Transposed convolution 2×2×2 with bias, then (upsampled, skip) through two convolutions."""

    def __init__(self, given: int, made: int, normalization: Normalization, activation: Activation) -> None:
        super().__init__()
        self.upsample_conv = nn.Sequential(nn.ConvTranspose3d(given, made, 2, 2))
        self.conv1 = _unit(2 * made, made, 1, normalization, activation)
        self.conv2 = _unit(made, made, 1, normalization, activation)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(torch.cat((self.upsample_conv(x), skip), dim=1)))
        return out


class Output(nn.Module):
    """The 1×1×1 convolution that gives the logits."""

    def __init__(self, given: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(given, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


def _unit(given: int, made: int, stride: int, normalization: Normalization, activation: Activation) -> nn.Sequential:
    norm: nn.Module = nn.BatchNorm3d(made) if normalization == "batchnorm" else nn.InstanceNorm3d(made, affine=True)
    act: nn.Module = nn.LeakyReLU(0.01) if activation == "leaky_relu" else nn.ReLU()
    return nn.Sequential(nn.Conv3d(given, made, 3, stride, 1, bias=False), norm, act)


class Unet3D(nn.Module):
    """Logits (N, classes, …). ``filters``: widths at full, half, … resolution, the last is also the bottleneck's.

    Raises ValueError for another number of widths than five: the five levels are the architecture.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 3,
        normalization: Normalization = "instancenorm",
        activation: Activation = "relu",
        filters: Sequence[int] = FILTERS,
    ) -> None:
        super().__init__()
        if len(filters) != len(FILTERS):
            raise ValueError(f"the network has {len(FILTERS)} widths, not {len(filters)}")
        if normalization not in ("instancenorm", "batchnorm") or activation not in ("relu", "leaky_relu"):
            raise ValueError(f"unknown normalization or activation: {normalization}, {activation}")
        self.filters = tuple(filters)
        steps = [*zip(self.filters, self.filters[1:], strict=False)]
        self.input_block = Block(in_channels, self.filters[0], 1, normalization, activation)
        self.downsample = nn.ModuleList(Block(a, b, 2, normalization, activation) for a, b in steps)
        self.bottleneck = Block(self.filters[-1], self.filters[-1], 2, normalization, activation)
        ups = [(self.filters[-1], self.filters[-1]), *((b, a) for a, b in reversed(steps))]
        self.upsample = nn.ModuleList(UpBlock(a, b, normalization, activation) for a, b in ups)
        self.output = Output(self.filters[0], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_block(x)
        skips = [x]
        for down in self.downsample:
            x = down(x)
            skips.append(x)
        x = self.bottleneck(x)
        for up, skip in zip(self.upsample, reversed(skips), strict=True):
            x = up(x, skip)
        logits: Tensor = self.output(x)
        return logits
