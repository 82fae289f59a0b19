"""ResNet with dilated stages, as DeepLabV3 and OCRNet use it in MMSegmentation (open-mmlab/mmsegmentation:
models/backbones/resnet.py, utils/res_layer.py).

He et al. 2015; V1c replaces the 7×7 stem by three 3×3 convolutions. Strides and dilations change no weight's shape, so a
checkpoint does not tell them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(
        self, inputs: int, planes: int, stride: int = 1, dilation: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        found = functional.relu(self.bn1(self.conv1(x)))
        found = self.bn2(self.conv2(found))
        return functional.relu(found + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1×1, 3×3 (stride and dilation lie here: PyTorch's style), 1×1 to four times the planes."""

    expansion = 4

    def __init__(
        self, inputs: int, planes: int, stride: int = 1, dilation: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        found = functional.relu(self.bn1(self.conv1(x)))
        found = functional.relu(self.bn2(self.conv2(found)))
        found = self.bn3(self.conv3(found))
        return functional.relu(found + (x if self.downsample is None else self.downsample(x)))


def residual_layer(
    block: type[BasicBlock] | type[Bottleneck],
    inputs: int,
    planes: int,
    blocks: int,
    *,
    stride: int = 1,
    dilations: Sequence[int] | None = None,
) -> nn.Sequential:
    """One stage: the first block has the stride, and a 1×1 beside it where the shape changes. ``dilations`` a block each."""
    outputs = planes * block.expansion
    down = None
    if stride != 1 or inputs != outputs:
        down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
    chosen = list(dilations or [1] * blocks)
    layers = [block(inputs, planes, stride, chosen[0], down)]
    layers += [block(outputs, planes, 1, dilation) for dilation in chosen[1:]]
    return nn.Sequential(*layers)


@dataclass(frozen=True, kw_only=True)
class ResNetShape:
    """What the weights tell (depth, stem) and what only the configuration does (strides, dilations)."""

    depth: int
    stem: str
    """'v1c': three 3×3 convolutions; 'plain': one 7×7"""
    strides: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 1, 1)
    multi_grid: tuple[int, ...] | None = None
    """dilations of the last stage's blocks; they replace that stage's own"""
    contract_dilation: bool = False
    """a stage's first block is dilated half as much, where the stage is dilated and has no multi-grid"""
    base: int = 64
    """channels of the first stage's inner convolutions"""
    stem_channels: int = 64
    stages: int = 4

    @property
    def blocks(self) -> tuple[int, ...]:
        return (BASIC | BOTTLENECK)[self.depth][: self.stages]

    @property
    def block(self) -> type[BasicBlock] | type[Bottleneck]:
        return BASIC_OR_BOTTLENECK[self.depth in BOTTLENECK]

    @property
    def layout(self) -> tuple[object, ...]:
        """What of depth and stages the weights' names tell."""
        return self.blocks, self.block

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the stages' outputs."""
        return tuple(self.base * 2**k * self.block.expansion for k in range(self.stages))

    def block_dilations(self, stage: int) -> tuple[int, ...]:
        """Of each block of a stage, counted from 0."""
        count, dilation = self.blocks[stage], self.dilations[stage]
        if stage == self.stages - 1 and self.multi_grid is not None:
            return tuple(self.multi_grid[k % len(self.multi_grid)] for k in range(count))
        first = dilation // 2 if dilation > 1 and self.contract_dilation else dilation
        return (first, *([dilation] * (count - 1)))


BASIC_OR_BOTTLENECK: tuple[type[BasicBlock], type[Bottleneck]] = (BasicBlock, Bottleneck)


class ResNet(nn.Module):
    """(N, 3, H, W) -> the stages' maps."""

    def __init__(self, shape: ResNetShape, inputs: int = 3) -> None:
        super().__init__()
        wide = shape.stem_channels
        if shape.stem == "v1c":
            half = wide // 2
            self.stem: nn.Module | None = nn.Sequential(
                nn.Conv2d(inputs, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
                nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
                nn.Conv2d(half, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            )  # fmt: skip
        else:
            self.stem = None
            self.conv1 = nn.Conv2d(inputs, wide, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(wide)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = wide
        for stage in range(shape.stages):
            planes = shape.base * 2**stage
            layer = residual_layer(
                shape.block, before, planes, shape.blocks[stage],
                stride=shape.strides[stage], dilations=shape.block_dilations(stage),
            )  # fmt: skip
            self.add_module(f"layer{stage + 1}", layer)
            before = planes * shape.block.expansion
        self.stages = shape.stages

    def forward(self, x: Tensor) -> list[Tensor]:
        x = functional.relu(self.bn1(self.conv1(x))) if self.stem is None else self.stem(x)
        x = self.maxpool(x)
        found = []
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
            found.append(x)
        return found
