"""U²-Net and its small sister U²-NetP, as torch modules.

The module names are those of xuebinqin/U-2-Net (model/u2net.py, model/u2net_refactor.py), so a released ``.pth``
loads with ``load_state_dict(strict=True)``. Paper: Qin et al., "U²-Net: Going Deeper with Nested U-Structure for
Salient Object Detection" (Pattern Recognition 2020).

Shapes: input ``(N, C, H, W)`` float32 of any size, 1×1 upwards; outputs ``(N, K, H, W)`` probabilities, the fused
map d0 first, then the side maps d1 … d6. Pooling rounds sizes up and every upsampling aims at the size of the
tensor it will be joined with, so odd sizes need no padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDES = 6
POOLINGS = 5
"""poolings on the longest way down: sides that are multiples of 2**5 are even before each of them"""


class Width(NamedTuple):
    """Channels of one stage: in, inside its nested U, out."""

    taken: int
    middle: int
    given: int


LARGE = {
    "stage1": Width(3, 32, 64),
    "stage2": Width(64, 32, 128),
    "stage3": Width(128, 64, 256),
    "stage4": Width(256, 128, 512),
    "stage5": Width(512, 256, 512),
    "stage6": Width(512, 256, 512),
    "stage5d": Width(1024, 256, 512),
    "stage4d": Width(1024, 128, 256),
    "stage3d": Width(512, 64, 128),
    "stage2d": Width(256, 32, 64),
    "stage1d": Width(128, 16, 64),
}


def uniform(middle: int, given: int) -> dict[str, Width]:
    """Every stage ``middle`` wide inside and giving ``given`` channels; the decoder's stages take two such maps."""
    taken = {name: 2 * given if name.endswith("d") else given for name in LARGE} | {"stage1": 3}
    return {name: Width(taken[name], middle, given) for name in LARGE}


SMALL = uniform(16, 64)

DEPTH = {"stage1": 7, "stage2": 6, "stage3": 5, "stage4": 4, "stage4d": 4, "stage3d": 5, "stage2d": 6, "stage1d": 7}
"""layers of a stage's nested U; the three at the bottom are dilated instead of pooled"""


class REBNCONV(nn.Module):
    """3×3 convolution with bias (padded to keep the size), batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(out_channels)
        self.relu_s1 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu_s1(self.bn_s1(self.conv_s1(x)))


def _up(source: Tensor, target: Tensor) -> Tensor:
    return functional.interpolate(source, size=target.shape[2:], mode="bilinear", align_corners=False)


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(2, stride=2, ceil_mode=True)


class RSU(nn.Module):
    """A residual U-block of ``depth`` layers: ``depth - 2`` poolings on its way down, one dilated layer at its end."""

    def __init__(self, depth: int, width: Width) -> None:
        super().__init__()
        self.depth = depth
        taken, middle, given = width
        self.rebnconvin = REBNCONV(taken, given)
        self.pool = _pool()
        for k in range(1, depth + 1):
            channels = given if k == 1 else middle
            self.add_module(f"rebnconv{k}", REBNCONV(channels, middle, dilation=2 if k == depth else 1))
        for k in range(depth - 1, 0, -1):
            self.add_module(f"rebnconv{k}d", REBNCONV(2 * middle, given if k == 1 else middle))

    def forward(self, x: Tensor) -> Tensor:
        entry = self.rebnconvin(x)
        down = [self.get_submodule("rebnconv1")(entry)]
        for k in range(2, self.depth):
            down.append(self.get_submodule(f"rebnconv{k}")(self.pool(down[-1])))
        x = self.get_submodule(f"rebnconv{self.depth}")(down[-1])
        for k in range(self.depth - 1, 0, -1):
            skip = down[k - 1]
            # the innermost pair has one size already
            joined = torch.cat([x if k == self.depth - 1 else _up(x, skip), skip], 1)
            x = self.get_submodule(f"rebnconv{k}d")(joined)
        return x + entry


class RSU4F(nn.Module):
    """The residual U-block of the bottom stages: dilations 1, 2, 4, 8 in place of pooling, one size throughout."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        taken, middle, given = width
        self.rebnconvin = REBNCONV(taken, given)
        self.rebnconv1 = REBNCONV(given, middle)
        self.rebnconv2 = REBNCONV(middle, middle, dilation=2)
        self.rebnconv3 = REBNCONV(middle, middle, dilation=4)
        self.rebnconv4 = REBNCONV(middle, middle, dilation=8)
        self.rebnconv3d = REBNCONV(2 * middle, middle, dilation=4)
        self.rebnconv2d = REBNCONV(2 * middle, middle, dilation=2)
        self.rebnconv1d = REBNCONV(2 * middle, given)

    def forward(self, x: Tensor) -> Tensor:
        entry = self.rebnconvin(x)
        first = self.rebnconv1(entry)
        second = self.rebnconv2(first)
        third = self.rebnconv3(second)
        x = self.rebnconv3d(torch.cat([self.rebnconv4(third), third], 1))
        x = self.rebnconv2d(torch.cat([x, second], 1))
        return self.rebnconv1d(torch.cat([x, first], 1)) + entry


class U2NET(nn.Module):
    """U²-Net, 44 million parameters. ``all_outputs`` gives (d0, … d6), without it d0 alone.

    ``widths`` other than LARGE or SMALL make a network of the same shape that nobody has published, for tests.
    """

    WIDTHS: Mapping[str, Width] = LARGE

    def __init__(
        self, in_ch: int = 3, out_ch: int = 1, *, all_outputs: bool = True, widths: Mapping[str, Width] | None = None
    ) -> None:
        super().__init__()
        self.all_outputs = all_outputs
        widths = widths or self.WIDTHS
        self.pool = _pool()
        for name, width in widths.items():
            taken = width._replace(taken=in_ch) if name == "stage1" else width
            self.add_module(name, RSU(DEPTH[name], taken) if name in DEPTH else RSU4F(taken))
        for k in range(1, SIDES + 1):
            given = widths[_side_stage(k)].given
            self.add_module(f"side{k}", nn.Conv2d(given, out_ch, 3, padding=1))
        self.outconv = nn.Conv2d(SIDES * out_ch, out_ch, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        down: list[Tensor] = []
        for k in range(1, SIDES + 1):
            down.append(self.get_submodule(f"stage{k}")(x if k == 1 else self.pool(down[-1])))
        up = {SIDES: down[-1]}
        for k in range(SIDES - 1, 0, -1):
            skip = down[k - 1]
            up[k] = self.get_submodule(f"stage{k}d")(torch.cat([_up(up[k + 1], skip), skip], 1))
        sides = [self.get_submodule(f"side{k}")(up[k]) for k in range(1, SIDES + 1)]
        sides = [sides[0], *(_up(side, sides[0]) for side in sides[1:])]
        fused = torch.sigmoid(self.outconv(torch.cat(sides, 1)))
        return (fused, *(torch.sigmoid(side) for side in sides)) if self.all_outputs else fused


class U2NETP(U2NET):
    """U²-NetP, 1.1 million parameters."""

    WIDTHS = SMALL


def _side_stage(k: int) -> str:
    return "stage6" if k == SIDES else f"stage{k}d"
