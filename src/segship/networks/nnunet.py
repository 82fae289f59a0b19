"""The U-Nets that nnU-Net plans: PlainConvUNet and ResidualEncoderUNet (v2), and v1's Generic_UNet in the same names.

Source of the definitions: MIC-DKFZ/dynamic-network-architectures: architectures/unet.py, building_blocks/; MIC-DKFZ/nnUNet
tag v1.7.1: network_architecture/generic_UNet.py. The state dict has v2's canonical names (v2 files repeat each tensor
under other names, and v1 has names of its own: families/ maps both to these).

Input (N, C, y, x) or (N, C, z, y, x) float32, every side a multiple of the product of its strides; output logits
(N, K, …) on the input's grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Axes = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """All that decides the network's shape. Per-stage tuples begin at full resolution; decoder tuples at the deepest step."""

    kind: Literal["plain", "residual"]
    axes: Literal[2, 3]
    input_channels: int
    output_channels: int
    features: tuple[int, ...]
    kernels: tuple[Axes, ...]
    strides: tuple[Axes, ...]
    encoder_convs: tuple[int, ...]
    """convolutions (plain) or residual blocks (residual) of each stage"""
    decoder_convs: tuple[int, ...]
    decoder_kernels: tuple[Axes, ...]
    """v2: the kernel of the skip's stage; v1: counted from the bottleneck"""
    conv_bias: bool = True
    transposed_bias: bool = True
    head_bias: bool = True
    norm: Literal["instance", "batch", "none"] = "instance"
    norm_epsilon: float = 1e-5
    norm_affine: bool = True
    slope: float = 0.01
    """of LeakyReLU; 0 is ReLU"""
    nonlin_first: bool = False
    stem_channels: int | None = None
    bottleneck_channels: tuple[int, ...] | None = None
    """widths of BottleneckD blocks; None: BasicBlockD"""

    def __post_init__(self) -> None:
        stages = len(self.features)
        per_stage = (self.kernels, self.strides, self.encoder_convs)
        per_step = (self.decoder_convs, self.decoder_kernels)
        if any(len(x) != stages for x in per_stage) or any(len(x) != stages - 1 for x in per_step):
            raise ValueError(f"{stages} stages need {stages} kernels, strides and convs and {stages - 1} decoder steps")
        if any(len(x) != self.axes for x in (*self.kernels, *self.strides, *self.decoder_kernels)):
            raise ValueError(f"kernels and strides need {self.axes} entries each")

    @property
    def size_multiple(self) -> Axes:
        """What every side of the input must be a multiple of."""
        return tuple(math.prod(stride[axis] for stride in self.strides) for axis in range(self.axes))


def _conv(arch: Architecture) -> type[nn.Conv2d] | type[nn.Conv3d]:
    return nn.Conv2d if arch.axes == 2 else nn.Conv3d


def _norm(arch: Architecture, channels: int) -> nn.Module:
    if arch.norm == "batch":
        batch = nn.BatchNorm2d if arch.axes == 2 else nn.BatchNorm3d
        return batch(channels, eps=arch.norm_epsilon, affine=arch.norm_affine)
    instance = nn.InstanceNorm2d if arch.axes == 2 else nn.InstanceNorm3d
    return instance(channels, eps=arch.norm_epsilon, affine=arch.norm_affine)


class Unit(nn.Module):
    """Convolution → normalisation → LeakyReLU (or LeakyReLU first, or none)."""

    def __init__(
        self,
        arch: Architecture,
        given: int,
        made: int,
        kernel: Axes,
        stride: Axes | None = None,
        *,
        bias: bool | None = None,
        activate: bool = True,
    ) -> None:
        super().__init__()
        padding = tuple((k - 1) // 2 for k in kernel)
        stride = stride or (1,) * arch.axes
        use_bias = arch.conv_bias if bias is None else bias
        self.conv = _conv(arch)(given, made, kernel, stride=stride, padding=padding, bias=use_bias)  # type: ignore[arg-type]
        if arch.norm != "none":
            self.norm = _norm(arch, made)
        self.nonlin = nn.LeakyReLU(arch.slope) if activate else None
        self.nonlin_first = arch.nonlin_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.nonlin is not None and self.nonlin_first:
            x = self.nonlin(x)
        if hasattr(self, "norm"):
            x = self.norm(x)
        if self.nonlin is not None and not self.nonlin_first:
            x = self.nonlin(x)
        return x


class Units(nn.Module):
    """Units in a row; the first has the stride."""

    def __init__(
        self, arch: Architecture, count: int, given: int, made: int, kernel: Axes, stride: Axes | None
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            Unit(arch, given, made, kernel, stride), *(Unit(arch, made, made, kernel) for _ in range(count - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convs(x)
        return out


class ResidualBlock(nn.Module):
    """BasicBlockD, or BottleneckD where a bottleneck width is given: the skip is pooled before its 1×1 convolution."""

    def __init__(
        self, arch: Architecture, given: int, made: int, kernel: Axes, stride: Axes, bottleneck: int | None
    ) -> None:
        super().__init__()
        one = (1,) * arch.axes
        if bottleneck is None:
            self.conv1 = Unit(arch, given, made, kernel, stride)
            self.conv2 = Unit(arch, made, made, kernel, activate=False)
        else:
            self.conv1 = Unit(arch, given, bottleneck, one)
            self.conv2 = Unit(arch, bottleneck, bottleneck, kernel, stride)
            self.conv3 = Unit(arch, bottleneck, made, one, activate=False)
        self.nonlin = nn.LeakyReLU(arch.slope)
        steps: list[nn.Module] = []
        if any(s != 1 for s in stride):
            pool = nn.AvgPool2d if arch.axes == 2 else nn.AvgPool3d
            steps.append(pool(stride, stride))  # type: ignore[arg-type]
        if given != made:
            steps.append(Unit(arch, given, made, one, bias=False, activate=False))
        self.skip = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.skip(x)
        out = self.conv2(self.conv1(x))
        if hasattr(self, "conv3"):
            out = self.conv3(out)
        activated: Tensor = self.nonlin(out + residual)
        return activated


class ResidualBlocks(nn.Module):
    def __init__(
        self, arch: Architecture, count: int, given: int, made: int, kernel: Axes, stride: Axes, bottleneck: int | None
    ) -> None:
        super().__init__()
        one = (1,) * arch.axes
        first = ResidualBlock(arch, given, made, kernel, stride, bottleneck)
        rest = (ResidualBlock(arch, made, made, kernel, one, bottleneck) for _ in range(count - 1))
        self.blocks = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x)
        return out


class Encoder(nn.Module):
    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        given = arch.input_channels
        if arch.kind == "residual":
            stem = arch.stem_channels or arch.features[0]
            self.stem = Units(arch, 1, given, stem, arch.kernels[0], None)
            given = stem
        for s, made in enumerate(arch.features):
            kernel, stride, count = arch.kernels[s], arch.strides[s], arch.encoder_convs[s]
            if arch.kind == "residual":
                width = arch.bottleneck_channels[s] if arch.bottleneck_channels else None
                stages.append(ResidualBlocks(arch, count, given, made, kernel, stride, width))
            else:
                stages.append(nn.Sequential(Units(arch, count, given, made, kernel, stride)))
            given = made
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        if hasattr(self, "stem"):
            x = self.stem(x)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class Decoder(nn.Module):
    """Step u (0 is the deepest): transposed convolution, the skip behind it, units; a head at every step."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        transposed = nn.ConvTranspose2d if arch.axes == 2 else nn.ConvTranspose3d
        ups, stages, heads = [], [], []
        for u in range(len(arch.features) - 1):
            below, beside = arch.features[-1 - u], arch.features[-2 - u]
            stride = arch.strides[-1 - u]
            ups.append(transposed(below, beside, stride, stride, bias=arch.transposed_bias))  # type: ignore[arg-type]
            stages.append(Units(arch, arch.decoder_convs[u], 2 * beside, beside, arch.decoder_kernels[u], None))
            heads.append(_conv(arch)(beside, arch.output_channels, 1, bias=arch.head_bias))
        self.transpconvs = nn.ModuleList(ups)
        self.stages = nn.ModuleList(stages)
        self.seg_layers = nn.ModuleList(heads)

    def forward(self, skips: Sequence[Tensor]) -> list[Tensor]:
        """Features after each step, deepest first."""
        x = skips[-1]
        features = []
        for u, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            x = stage(torch.cat((up(x), skips[-2 - u]), dim=1))
            features.append(x)
        return features


class PlannedUNet(nn.Module):
    """Logits (N, K, …) of the last head; ``all_heads`` gives every head's, highest resolution first."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.encoder = Encoder(arch)
        self.decoder = Decoder(arch)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.decoder.seg_layers[-1](self.decoder(self.encoder(x))[-1])
        return logits

    def all_heads(self, x: Tensor) -> list[Tensor]:
        """Deep supervision's outputs, highest resolution first."""
        features = self.decoder(self.encoder(x))
        return [head(one) for head, one in zip(self.decoder.seg_layers, features, strict=True)][::-1]
