"""A backbone and its decode heads as one network that gives logits, named as MMSegmentation names them.

Source: open-mmlab/mmsegmentation: models/segmentors/{encoder_decoder,cascade_encoder_decoder}.py,
models/decode_heads/decode_head.py (input_transform). Auxiliary heads serve training alone and are not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from segship.networks.mmseg import ASPPHead, FCNHead, OCRHead, resize_as
from segship.networks.mmseg_hrnet import HRNet, HRNetShape
from segship.networks.mmseg_resnet import ResNet, ResNetShape
from segship.networks.mmseg_unet import UNet, UNetShape

Backbone = HRNetShape | ResNetShape | UNetShape


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """A decode head. ``dilations`` and ``maps`` change no weight's shape."""

    kind: Literal["fcn", "aspp", "ocr"]
    inputs: int
    channels: int
    classes: int
    """output channels: the number of classes, or 1 where there are two told apart by a threshold"""
    maps: tuple[int, ...]
    """which of the backbone's maps it takes; several are brought to the first one's size and joined"""
    convs: int = 1
    kernel: int = 3
    concat_input: bool = False
    inner: int = 0
    """OCR: channels of queries, keys and values"""
    dilations: tuple[int, ...] = (1,)
    """ASPP: of each branch; FCN: of all its convolutions"""
    align_corners: bool = False
    norm: bool = True
    """False: convolutions with a bias in the place of batch norm"""
    eps: float = 1e-5
    """what its batch norms add to variances"""


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    backbone: Backbone
    heads: tuple[HeadShape, ...]
    """one, or two where the second refines the first (OCRNet)"""
    inputs: int = 3
    eps: float = 1e-5
    """what the backbone's batch norms add to variances"""

    @property
    def classes(self) -> int:
        return self.heads[-1].classes

    @property
    def stride(self) -> int:
        """Input size / size of the logits."""
        first = self.heads[-1].maps[0]
        if isinstance(self.backbone, UNetShape):
            count = len(self.backbone.encoder)
            return self.backbone.stride(count - 1 - first % count)
        if isinstance(self.backbone, HRNetShape):
            return 4 * 2 ** (first % 4)
        product = 4
        for stride in self.backbone.strides[: first % self.backbone.stages + 1]:
            product *= stride
        return product

    @property
    def multiple(self) -> int:
        """Every side of an input must be a multiple of this."""
        return self.backbone.multiple if isinstance(self.backbone, UNetShape) else 1


class Segmentor(nn.Module):
    """(N, C, H, W) normalised float32 -> (N, classes, ⌈H/stride⌉, ⌈W/stride⌉) logits."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        self.backbone = build_backbone(shape.backbone, shape.inputs)
        heads = [build_head(head) for head in shape.heads]
        self.decode_head = heads[0] if len(heads) == 1 else nn.ModuleList(heads)
        for part, eps in ((self.backbone, shape.eps), *zip(heads, (head.eps for head in shape.heads), strict=True)):
            for module in part.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)
        if len(self.shape.heads) == 1:
            return self.decode_head(joined(maps, self.shape.heads[0]))  # type: ignore[no-any-return]
        assert isinstance(self.decode_head, nn.ModuleList)
        first = self.decode_head[0](joined(maps, self.shape.heads[0]))
        return self.decode_head[1](joined(maps, self.shape.heads[1]), first)  # type: ignore[no-any-return]


def joined(maps: Sequence[Tensor], head: HeadShape) -> Tensor:
    chosen = [maps[index] for index in head.maps]
    first = chosen[0]
    if len(chosen) == 1:
        return first
    return torch.cat([first, *(resize_as(one, first, head.align_corners) for one in chosen[1:])], dim=1)


def build_backbone(shape: Backbone, inputs: int) -> nn.Module:
    if isinstance(shape, HRNetShape):
        return HRNet(shape, inputs)
    return UNet(shape, inputs) if isinstance(shape, UNetShape) else ResNet(shape, inputs)


def build_head(shape: HeadShape) -> nn.Module:
    if shape.kind == "ocr":
        return OCRHead(shape.inputs, shape.channels, shape.inner, shape.classes, norm=shape.norm)
    if shape.kind == "aspp":
        return ASPPHead(shape.inputs, shape.channels, shape.classes, shape.dilations, norm=shape.norm)
    return FCNHead(
        shape.inputs, shape.channels, shape.classes, convs=shape.convs, kernel=shape.kernel,
        dilation=shape.dilations[0], concat_input=shape.concat_input, norm=shape.norm,
    )  # fmt: skip
