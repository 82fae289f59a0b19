"""Parts that MMSegmentation's networks share, and their decode heads, state-dict compatible.

Heads: FCN (Long et al. 2015), ASPP of DeepLabV3 (Chen et al. 2017), OCR (Yuan et al. 2020). Every size inside a network is
taken from a tensor or written as a factor, never computed to a number: an exporter would bake it in, and the graph would
be silently wrong at other sizes.

Source of names and order: open-mmlab/mmsegmentation: models/decode_heads/{fcn_head,aspp_head,ocr_head}.py,
open-mmlab/mmcv: cnn/bricks/conv_module.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Size = Sequence[int]


class ConvModule(nn.Module):
    """Convolution without bias, batch norm, ReLU: keys ``conv.weight`` and ``bn.*``. Padding keeps the size at stride 1.

    Without ``norm`` the convolution has a bias: keys ``conv.weight`` and ``conv.bias``.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, dilation: int = 1, norm: bool = True
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, bias=not norm
        )  # fmt: skip
        self.bn = nn.BatchNorm2d(outputs) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return functional.relu(x if self.bn is None else self.bn(x))


def resize_as(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    """Bilinear to the height and width of ``like``."""
    return functional.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=align_corners)


class FCNHead(nn.Module):
    """(N, C, h, w) -> (N, classes, h, w): convolutions, the input beside them where ``concat_input``, a 1×1 classifier.

    Without convolutions ``channels`` are the inputs.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        classes: int,
        *,
        convs: int = 1,
        kernel: int = 3,
        dilation: int = 1,
        concat_input: bool = False,
        norm: bool = True,
    ) -> None:
        super().__init__()
        widths = [inputs, *[channels] * convs]
        layers = [ConvModule(widths[i], channels, kernel, dilation=dilation, norm=norm) for i in range(convs)]
        self.convs = nn.Sequential(*layers)
        self.conv_cat = ConvModule(inputs + channels, channels, kernel, norm=norm) if concat_input else None
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.convs(x)
        if self.conv_cat is not None:
            found = self.conv_cat(torch.cat([x, found], dim=1))
        return self.conv_seg(found)  # type: ignore[no-any-return]


class ASPPHead(nn.Module):
    """Atrous spatial pyramid pooling: (N, C, h, w) -> (N, classes, h, w).

    ``dilations`` are those of the branches, 1 standing for a 1×1 convolution; the pooled branch is a broadcast.
    """

    def __init__(
        self, inputs: int, channels: int, classes: int, dilations: Sequence[int], *, norm: bool = True
    ) -> None:
        super().__init__()
        # Upstream's pooled branch is (pooling, convolution); the pooling is written as a mean, which exports at any size.
        self.image_pool = nn.Sequential(nn.Identity(), ConvModule(inputs, channels, norm=norm))
        self.aspp_modules = nn.ModuleList(
            ConvModule(inputs, channels, 1 if d == 1 else 3, dilation=d, norm=norm) for d in dilations
        )
        self.bottleneck = ConvModule((len(dilations) + 1) * channels, channels, 3, norm=norm)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [branch(x) for branch in self.aspp_modules]
        pooled = self.image_pool(x.mean(dim=(2, 3), keepdim=True))
        found = torch.cat([pooled.expand_as(branches[0]), *branches], dim=1)
        return self.conv_seg(self.bottleneck(found))  # type: ignore[no-any-return]


class ObjectAttention(nn.Module):
    """Each pixel looks at the classes' descriptions: (N, C, h, w) and (N, C, classes, 1) -> (N, C, h, w)."""

    def __init__(self, channels: int, inner: int, *, norm: bool = True) -> None:
        super().__init__()
        self.scale = inner**-0.5
        self.key_project = nn.Sequential(ConvModule(channels, inner, norm=norm), ConvModule(inner, inner, norm=norm))
        self.query_project = nn.Sequential(ConvModule(channels, inner, norm=norm), ConvModule(inner, inner, norm=norm))
        self.value_project = ConvModule(channels, inner, norm=norm)
        self.out_project = ConvModule(inner, channels, norm=norm)
        self.bottleneck = ConvModule(2 * channels, channels, norm=norm)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        query = self.query_project(features).flatten(2).transpose(1, 2)  # N, hw, inner
        key = self.key_project(context).flatten(2)  # N, inner, classes
        value = self.value_project(context).flatten(2).transpose(1, 2)  # N, classes, inner
        attention = torch.softmax(self.scale * torch.matmul(query, key), dim=-1)
        found = torch.matmul(attention, value).transpose(1, 2)  # N, inner, hw
        found = self.out_project(found.unflatten(2, features.shape[2:]))
        return self.bottleneck(torch.cat([found, features], dim=1))  # type: ignore[no-any-return]


class OCRHead(nn.Module):
    """Object-contextual representations: features and a first head's logits -> (N, classes, h, w)."""

    def __init__(self, inputs: int, channels: int, inner: int, classes: int, *, norm: bool = True) -> None:
        super().__init__()
        self.object_context_block = ObjectAttention(channels, inner, norm=norm)
        self.bottleneck = ConvModule(inputs, channels, 3, norm=norm)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        features = self.bottleneck(x)
        regions = torch.softmax(first.flatten(2), dim=2)  # over pixels: N, classes, hw
        context = torch.matmul(regions, features.flatten(2).transpose(1, 2))  # N, classes, C
        context = context.transpose(1, 2).unsqueeze(3)  # N, C, classes, 1
        return self.conv_seg(self.object_context_block(features, context))  # type: ignore[no-any-return]
