"""UNet++ (nested U-Net) and the plain U-Net it is compared with, as torch modules.

The module names are those of 4uiiurz1/pytorch-nested-unet (archs.py), so a checkpoint of that project
loads with ``load_state_dict(strict=True)``. Paper: Zhou et al., "UNet++: A Nested U-Net Architecture
for Medical Image Segmentation" (2018).

Shapes: input ``(N, C, H, W)`` float32, H and W multiples of 16; output logits ``(N, K, H, W)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segship.networks.unetplusplus_choices import DEPTH, FILTERS, SIZE_MULTIPLE, Upsampling


class VGGBlock(nn.Module):
    """Two 3×3 convolutions (with bias), each followed by batch norm and ReLU."""

    def __init__(self, in_channels: int, middle_channels: int, out_channels: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, middle_channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(middle_channels)
        self.conv2 = nn.Conv2d(middle_channels, out_channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


def _upsample(mode: Upsampling) -> nn.Upsample:
    # Every upstream commit uses align_corners=True for bilinear; half-pixel centres give other masks.
    if mode == "bilinear":
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    return nn.Upsample(scale_factor=2, mode="nearest")


def check_size(height: int, width: int) -> None:
    """Raise ``ValueError`` unless both sides are multiples of 16 (four 2×2 poolings)."""
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE or min(height, width) < SIZE_MULTIPLE:
        up = tuple(max(SIZE_MULTIPLE, -(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE) for side in (height, width))
        raise ValueError(
            f"UNet++ needs height and width that are multiples of {SIZE_MULTIPLE}, got {height}x{width}; use {up[0]}x{up[1]}"
        )


class NestedUNet(nn.Module):
    """UNet++. With ``deep_supervision`` it returns the logits of its four heads as a list, shallow first.

    ``head`` (1..4) keeps only the nodes that head needs (i + j ≤ head): the pruning that the paper
    describes. The result is then always one tensor.
    """

    def __init__(
        self,
        num_classes: int,
        input_channels: int = 3,
        deep_supervision: bool = False,
        *,
        upsample: Upsampling = "bilinear",
        head: int | None = None,
    ) -> None:
        super().__init__()
        if head is not None and not 1 <= head <= DEPTH:
            raise ValueError(f"head must be 1..{DEPTH}, got {head}")
        if head not in (None, DEPTH) and not deep_supervision:
            raise ValueError("only a network trained with deep supervision has heads 1 to 3")
        self.deep_supervision = deep_supervision
        self.head = head
        self.depth = DEPTH if head is None else head
        self.pool = nn.MaxPool2d(2, 2)
        self.up = _upsample(upsample)

        for i in range(self.depth + 1):
            in_channels = input_channels if i == 0 else FILTERS[i - 1]
            self.add_module(f"conv{i}_0", VGGBlock(in_channels, FILTERS[i], FILTERS[i]))
        for j in range(1, self.depth + 1):
            for i in range(self.depth - j + 1):
                in_channels = j * FILTERS[i] + FILTERS[i + 1]
                self.add_module(f"conv{i}_{j}", VGGBlock(in_channels, FILTERS[i], FILTERS[i]))
        for name in self._head_names():
            self.add_module(name, nn.Conv2d(FILTERS[0], num_classes, kernel_size=1))

    def _head_names(self) -> list[str]:
        if not self.deep_supervision:
            return ["final"]
        return [f"final{j}" for j in range(1, DEPTH + 1)] if self.head is None else [f"final{self.head}"]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        rows: list[list[Tensor]] = []  # rows[i][j] is node x{i}_{j}
        for i in range(self.depth + 1):
            x = self.get_submodule(f"conv{i}_0")(x if i == 0 else self.pool(x))
            rows.append([x])
            # the anti-diagonal that this new row makes computable
            for j in range(1, i + 1):
                row = i - j
                up = self.up(rows[row + 1][j - 1])
                rows[row].append(self.get_submodule(f"conv{row}_{j}")(torch.cat([*rows[row], up], 1)))
        if not self.deep_supervision:
            return self.get_submodule("final")(rows[0][self.depth])
        if self.head is not None:
            return self.get_submodule(f"final{self.head}")(rows[0][self.head])
        return [self.get_submodule(f"final{j}")(rows[0][j]) for j in range(1, DEPTH + 1)]


class UNet(nn.Module):
    """The plain U-Net of the same project: same blocks, same filters, one decoder path."""

    def __init__(self, num_classes: int, input_channels: int = 3, *, upsample: Upsampling = "bilinear") -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, 2)
        self.up = _upsample(upsample)
        for i in range(DEPTH + 1):
            in_channels = input_channels if i == 0 else FILTERS[i - 1]
            self.add_module(f"conv{i}_0", VGGBlock(in_channels, FILTERS[i], FILTERS[i]))
        for i in reversed(range(DEPTH)):
            self.add_module(f"conv{i}_{DEPTH - i}", VGGBlock(FILTERS[i] + FILTERS[i + 1], FILTERS[i], FILTERS[i]))
        self.final = nn.Conv2d(FILTERS[0], num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for i in range(DEPTH + 1):
            x = self.get_submodule(f"conv{i}_0")(x if i == 0 else self.pool(x))
            skips.append(x)
        for i in reversed(range(DEPTH)):
            x = self.get_submodule(f"conv{i}_{DEPTH - i}")(torch.cat([skips[i], self.up(x)], 1))
        return self.final(x)
