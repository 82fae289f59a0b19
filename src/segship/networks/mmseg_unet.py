"""U-Net as MMSegmentation has it (open-mmlab/mmsegmentation: models/backbones/unet.py, utils/up_conv_block.py).

Ronneberger et al. 2015, with padded convolutions, batch norm, and bilinear enlargement followed by a 1×1 convolution,
unless the configuration says otherwise. Both sides must be multiples of 2^(stages − 1) where every stage halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from segship.networks.mmseg import ConvModule

Shrink = Literal["pool", "stride", "none"]
"""how a stage's maps become half as large as those of the stage before: a maximum, its first convolution's stride, or not"""


@dataclass(frozen=True, kw_only=True)
class EnlargeShape:
    """How maps become twice as large on the way up."""

    kind: Literal["interpolate", "deconvolve"] = "interpolate"
    kernel: int = 1
    """of the convolution beside the interpolation, or of the transposed one"""
    convolve_first: bool = False
    mode: Literal["bilinear", "nearest"] = "bilinear"
    align_corners: bool = False


@dataclass(frozen=True, kw_only=True)
class UNetShape:
    """What the weights tell (counts, widths, kinds) and what only the configuration does (dilations, interpolation)."""

    base: int
    """channels of the first stage; each next has twice as many"""
    encoder: tuple[int, ...]
    """convolutions of each stage, the finest first"""
    decoder: tuple[int, ...]
    """the same on the way up, the finest first; one fewer"""
    shrinks: tuple[Shrink, ...] = ()
    """of each stage, the finest first; () for none in the first and a maximum in the others"""
    encoder_dilations: tuple[int, ...] = ()
    """of each stage's convolutions but the first; () for 1"""
    decoder_dilations: tuple[int, ...] = ()
    enlarge: EnlargeShape = EnlargeShape()

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the maps that `UNet` gives, the coarsest first."""
        return tuple(self.base * 2**k for k in reversed(range(len(self.encoder))))

    def shrink(self, stage: int) -> Shrink:
        return self.shrinks[stage] if self.shrinks else ("pool" if stage else "none")

    def stride(self, stage: int) -> int:
        """Input size / size of an encoder stage's maps, which are those of the decoder at its height."""
        return prod(1 if self.shrink(k) == "none" else 2 for k in range(stage + 1))

    @property
    def multiple(self) -> int:
        """Every side must be a multiple of this."""
        whole = self.stride(len(self.encoder) - 1)
        # Only sizes that are made again on the way up must be even; the first stage's own halving rounds up.
        return 1 if whole == self.stride(0) else whole


class Block(nn.Module):
    """A few 3×3 convolutions in a row; the first has the stride, the others the dilation."""

    def __init__(self, inputs: int, outputs: int, count: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        layers = [ConvModule(inputs, outputs, 3, stride=stride)]
        layers += [ConvModule(outputs, outputs, 3, dilation=dilation) for _ in range(count - 1)]
        self.convs = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)  # type: ignore[no-any-return]


class Enlarge(nn.Module):
    """Twice the size and a convolution, usually 1×1 and after it."""

    def __init__(self, inputs: int, outputs: int, shape: EnlargeShape) -> None:
        super().__init__()
        # A factor, not a size: see the note on exporting in `networks.mmseg`.
        aligned = shape.align_corners if shape.mode == "bilinear" else None
        upsample = nn.Upsample(scale_factor=2.0, mode=shape.mode, align_corners=aligned)
        convolution = ConvModule(inputs, outputs, shape.kernel)
        parts = (convolution, upsample) if shape.convolve_first else (upsample, convolution)
        self.interp_upsample = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.interp_upsample(x)  # type: ignore[no-any-return]


class Deconvolve(nn.Module):
    """A transposed convolution of stride 2 (with bias), batch norm, ReLU. The attribute is spelt as upstream spells it."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        deconvolution = nn.ConvTranspose2d(inputs, outputs, kernel, stride=2, padding=(kernel - 2) // 2)
        self.deconv_upsamping = nn.Sequential(deconvolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.deconv_upsamping(x))


def _enlarge(inputs: int, outputs: int, shape: EnlargeShape, shrink: Shrink) -> nn.Module:
    """What brings maps to the size and width of the stage above; of the same size already, a 1×1 convolution."""
    if shrink == "none":
        return ConvModule(inputs, outputs)
    if shape.kind == "deconvolve":
        return Deconvolve(inputs, outputs, shape.kernel)
    return Enlarge(inputs, outputs, shape)


class UpBlock(nn.Module):
    """What comes from below, enlarged, behind the skip connection."""

    def __init__(
        self, inputs: int, skip: int, count: int, *, shrink: Shrink, enlarge: EnlargeShape, dilation: int = 1
    ) -> None:
        super().__init__()
        self.conv_block = Block(2 * skip, skip, count, dilation=dilation)
        self.upsample = _enlarge(inputs, skip, enlarge, shrink)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        return self.conv_block(torch.cat([skip, self.upsample(x)], dim=1))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """(N, C, H, W) -> maps from the coarsest to one of full size."""

    def __init__(self, shape: UNetShape, inputs: int = 3) -> None:
        super().__init__()
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        before = inputs
        for stage, count in enumerate(shape.encoder):
            wide, shrink = shape.base * 2**stage, shape.shrink(stage)
            dilation = shape.encoder_dilations[stage] if shape.encoder_dilations else 1
            block = Block(before, wide, count, stride=2 if shrink == "stride" else 1, dilation=dilation)
            if stage:
                back = shape.decoder_dilations[stage - 1] if shape.decoder_dilations else 1
                self.decoder.append(
                    UpBlock(
                        wide, wide // 2, shape.decoder[stage - 1], shrink=shrink, enlarge=shape.enlarge, dilation=back
                    )
                )
            self.encoder.append(nn.Sequential(nn.MaxPool2d(2), block) if shrink == "pool" else nn.Sequential(block))
            before = wide

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        found = [x]
        for k in range(len(self.decoder) - 1, -1, -1):
            x = self.decoder[k](skips[k], x)
            found.append(x)
        return found
