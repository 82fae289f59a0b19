"""HRNet: four branches of different resolution that exchange what they found after every module.

Ke Sun et al. 2019, "Deep High-Resolution Representation Learning"; names as in open-mmlab/mmsegmentation:
models/backbones/hrnet.py. Branches have strides 4, 8, 16, 32 and widths w, 2w, 4w, 8w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from segship.networks.mmseg import resize_as
from segship.networks.mmseg_resnet import BasicBlock, Bottleneck, residual_layer

STEM = 64


@dataclass(frozen=True, kw_only=True)
class HRNetShape:
    """Widths and counts, all of which the weights tell."""

    width: int
    """channels of the finest branch; the next have twice, four and eight times as many"""
    first_blocks: int
    """bottlenecks before the branches part"""
    modules: tuple[int, int, int]
    """of stages 2, 3, 4"""
    blocks: tuple[int, int, int]
    """basic blocks a branch in each module of these stages"""
    first_planes: int = 64
    first_basic: bool = False
    """basic blocks before the branches part, in the place of bottlenecks"""
    widths: tuple[int, ...] = ()
    """channels of the branches where they do not double; () where they do"""

    @property
    def channels(self) -> tuple[int, ...]:
        return self.widths or tuple(self.width * 2**k for k in range(4))


class HRModule(nn.Module):
    """Basic blocks on every branch, then each branch becomes the sum of all, brought to its size."""

    def __init__(self, channels: Sequence[int], blocks: int) -> None:
        super().__init__()
        count = len(channels)
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width, width) for _ in range(blocks))) for width in channels
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_path(channels, i, j) for j in range(count))  # type: ignore[misc]
            for i in range(count)
        )

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        branches = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
        fused = []
        for i, paths in enumerate(self.fuse_layers):
            total = None
            for j, x in enumerate(branches):
                part = x if j == i else paths[j](x)  # type: ignore[index]
                if j > i:  # a second resize: a side that 32 does not divide was rounded up on its way down
                    part = resize_as(part, branches[i], align_corners=False)
                total = part if total is None else total + part
            assert total is not None
            fused.append(functional.relu(total))
        return fused


def _path(channels: Sequence[int], target: int, source: int) -> nn.Module | None:
    """What brings branch ``source`` to the width and about the size of branch ``target``."""
    if source == target:
        return None
    if source > target:
        # A factor, not a size: see the note on exporting in `networks.mmseg`.
        upsample = nn.Upsample(scale_factor=float(2 ** (source - target)), mode="bilinear", align_corners=False)
        convolution = nn.Conv2d(channels[source], channels[target], 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(channels[target]), upsample)
    steps = []
    for k in range(target - source):
        last = k == target - source - 1
        outputs = channels[target] if last else channels[source]
        layers: list[nn.Module] = [_halve(channels[source], outputs), nn.BatchNorm2d(outputs)]
        steps.append(nn.Sequential(*layers, *([] if last else [nn.ReLU()])))
    return nn.Sequential(*steps)


class HRNet(nn.Module):
    """(N, 3, H, W) -> four maps, finest first."""

    def __init__(self, shape: HRNetShape, inputs: int = 3) -> None:
        super().__init__()
        widths = shape.channels
        self.conv1, self.bn1 = _halve(inputs, STEM), nn.BatchNorm2d(STEM)
        self.conv2, self.bn2 = _halve(STEM, STEM), nn.BatchNorm2d(STEM)
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock if shape.first_basic else Bottleneck
        self.layer1 = residual_layer(block, STEM, shape.first_planes, shape.first_blocks)
        before: tuple[int, ...] = (shape.first_planes * block.expansion,)
        for number, (modules, blocks) in enumerate(zip(shape.modules, shape.blocks, strict=True), start=2):
            now = widths[:number]
            self.add_module(f"transition{number - 1}", _transition(before, now))
            stage = nn.Sequential(*(HRModule(now, blocks) for _ in range(modules)))
            self.add_module(f"stage{number}", stage)
            before = now

    def forward(self, x: Tensor) -> list[Tensor]:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        branches = [self.layer1(x)]
        for number in (2, 3, 4):
            transition = self.get_submodule(f"transition{number - 1}")
            assert isinstance(transition, nn.ModuleList)
            entering = []
            for k, step in enumerate(transition):
                source = branches[k] if k < len(branches) else branches[-1]
                entering.append(source if step is None else step(source))
            branches = entering
            stage = self.get_submodule(f"stage{number}")
            assert isinstance(stage, nn.Sequential)
            for module in stage:
                branches = module(branches)
        return branches


def _halve(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)


def _transition(before: Sequence[int], now: Sequence[int]) -> nn.ModuleList:
    """New branches from the last one there was; a branch whose width changes gets a convolution of its own."""
    steps: list[nn.Module | None] = []
    for k, width in enumerate(now):
        if k < len(before):
            same = before[k] == width
            convolution = nn.Conv2d(before[k], width, 3, padding=1, bias=False)
            steps.append(None if same else nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU()))
        else:
            # k - len(before) + 1 halvings; in HRNet one branch is added at a time, so always one
            steps.append(nn.Sequential(nn.Sequential(_halve(before[-1], width), nn.BatchNorm2d(width), nn.ReLU())))
    return nn.ModuleList(steps)  # type: ignore[arg-type]
