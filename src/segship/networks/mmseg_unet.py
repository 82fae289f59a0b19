"""U-Net as MMSegmentation has it (open-mmlab/mmsegmentation: models/backbones/unet.py, utils/up_conv_block.py).

Ronneberger et al. 2015, with padded convolutions, batch norm, and bilinear enlargement followed by a 1×1 convolution.
Both sides must be multiples of 2^(stages − 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segship.networks.mmseg import ConvModule


@dataclass(frozen=True, kw_only=True)
class UNetShape:
    """All of which the weights tell."""

    base: int
    """channels of the first stage; each next has twice as many"""
    encoder: tuple[int, ...]
    """convolutions of each stage, the finest first"""
    decoder: tuple[int, ...]
    """the same on the way up, the finest first; one fewer"""

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the maps that `UNet` gives, the coarsest first."""
        return tuple(self.base * 2**k for k in reversed(range(len(self.encoder))))

    @property
    def multiple(self) -> int:
        """Every side must be a multiple of this."""
        return int(2 ** (len(self.encoder) - 1))


class Block(nn.Module):
    """A few 3×3 convolutions in a row."""

    def __init__(self, inputs: int, outputs: int, count: int) -> None:
        super().__init__()
        layers = [ConvModule(inputs if k == 0 else outputs, outputs, 3) for k in range(count)]
        self.convs = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)  # type: ignore[no-any-return]


class Enlarge(nn.Module):
    """Twice the size, then a 1×1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # A factor, not a size: see the note on exporting in `networks.mmseg`.
        upsample = nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False)
        self.interp_upsample = nn.Sequential(upsample, ConvModule(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.interp_upsample(x)  # type: ignore[no-any-return]


class UpBlock(nn.Module):
    """What comes from below, enlarged, behind the skip connection."""

    def __init__(self, inputs: int, skip: int, outputs: int, count: int) -> None:
        super().__init__()
        self.conv_block = Block(2 * skip, outputs, count)
        self.upsample = Enlarge(inputs, skip)

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
            wide = shape.base * 2**stage
            block = Block(before, wide, count)
            if stage:
                self.decoder.append(UpBlock(wide, wide // 2, wide // 2, shape.decoder[stage - 1]))
            self.encoder.append(nn.Sequential(nn.MaxPool2d(2), block) if stage else nn.Sequential(block))
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
