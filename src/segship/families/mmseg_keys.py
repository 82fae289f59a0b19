"""What the names and shapes of an MMSegmentation checkpoint's tensors tell of its network, and what they leave open.

Strides, dilations, which maps a head takes and align_corners change no shape: `NetworkShape` gets the usual values for
them here, and the configuration's afterwards. (open-mmlab/mmsegmentation: models/, versions 0.5 to 1.2)
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segship.networks.mmseg_hrnet import HRNetShape
from segship.networks.mmseg_resnet import BASIC, BOTTLENECK, ResNetShape
from segship.networks.mmseg_segmentor import Backbone, HeadShape, NetworkShape, Segmentor
from segship.networks.mmseg_unet import EnlargeShape, Shrink, UNetShape

State = Mapping[str, Tensor]
AUXILIARY = "auxiliary_head"
UNUSED = re.compile(r"^(ema_|auxiliary_head\.|data_preprocessor\.)|\.num_batches_tracked$|\.loss_")
"""keys that a network in use has no need of"""


class NotNative(Exception):
    """The tensors are those of a network that is not defined here; the text says by what."""


@dataclass(frozen=True, kw_only=True)
class Recognised:
    shape: NetworkShape
    architecture: str
    """'OCRNet-HRNet', 'OCRNet-ResNet', 'DeepLabV3', 'FCN-UNet' …"""
    auxiliary: int
    """parameters of auxiliary heads, which are checked and left out"""


def is_mmseg(state: State) -> bool:
    """Whether these are the tensors of one of MMSegmentation's segmentors, known here or not."""
    return any(key.startswith("backbone.") for key in state) and any(key.startswith("decode_head.") for key in state)


def recognise(state: State) -> Recognised:
    """The network that the tensors belong to. Raises `NotNative`."""
    backbone, inputs = _backbone(state)
    cascade = any(key.startswith("decode_head.0.") for key in state)
    names = ("decode_head.0", "decode_head.1") if cascade else ("decode_head",)
    heads = tuple(read_head(state, name, backbone) for name in names)
    if cascade and [head.kind for head in heads] != ["fcn", "ocr"]:
        raise NotNative("its cascade of decode heads is not an FCN head followed by an OCR head")
    shape = NetworkShape(backbone=backbone, heads=heads, inputs=inputs)
    _same_keys(state, shape)
    return Recognised(shape=shape, architecture=_architecture(shape), auxiliary=_check_auxiliary(state, shape.classes))


def _architecture(shape: NetworkShape) -> str:
    backbone = {HRNetShape: "HRNet", ResNetShape: "ResNet", UNetShape: "UNet"}[type(shape.backbone)]
    head = {"ocr": "OCRNet", "aspp": "DeepLabV3", "fcn": "FCN"}[shape.heads[-1].kind]
    return head if (head, backbone) == ("DeepLabV3", "ResNet") else f"{head}-{backbone}"


# ---------------------------------------------------------------------------------------------- backbones


def _backbone(state: State) -> tuple[Backbone, int]:
    """The backbone and its input channels."""
    if "backbone.stage4.0.branches.0.0.conv1.weight" in state:
        return _hrnet(state)
    if "backbone.encoder.0.0.convs.0.conv.weight" in state:
        return _unet(state)
    if "backbone.layer1.0.conv1.weight" in state:
        return _resnet(state)
    raise NotNative("its backbone is none of HRNet, ResNet and UNet")


def _hrnet(state: State) -> tuple[HRNetShape, int]:
    stages = ("stage2", "stage3", "stage4")
    widths = tuple(_outputs(state, f"backbone.stage4.0.branches.{k}.0.conv1.weight") for k in range(4))
    doubling = widths == tuple(widths[0] * 2**k for k in range(4))
    shape = HRNetShape(
        width=widths[0],
        widths=() if doubling else widths,
        first_planes=_outputs(state, "backbone.layer1.0.conv1.weight"),
        first_basic="backbone.layer1.0.conv3.weight" not in state,
        first_blocks=_count(state, "backbone.layer1."),
        modules=tuple(_count(state, f"backbone.{stage}.") for stage in stages),  # type: ignore[arg-type]
        blocks=tuple(_count(state, f"backbone.{stage}.0.branches.0.") for stage in stages),  # type: ignore[arg-type]
    )
    return shape, _inputs(state, "backbone.conv1.weight")


def _unet(state: State) -> tuple[UNetShape, int]:
    count = _count(state, "backbone.encoder.")
    first = "backbone.encoder.0.0.convs.0.conv.weight"
    shrinks = tuple(_shrink(state, stage) for stage in range(count))
    encoder = [
        _count(state, f"backbone.encoder.{stage}.{1 if shrink == 'pool' else 0}.convs.")
        for stage, shrink in enumerate(shrinks)
    ]
    decoder = [_count(state, f"backbone.decoder.{stage}.conv_block.convs.") for stage in range(count - 1)]
    if 0 in encoder or 0 in decoder:
        raise NotNative("its UNet has stages without convolutions")
    usual = shrinks == ("none", *["pool"] * (count - 1))
    shape = UNetShape(
        base=_outputs(state, first), encoder=tuple(encoder), decoder=tuple(decoder),
        shrinks=() if usual else shrinks, enlarge=_enlarge(state),
    )  # fmt: skip
    return shape, _inputs(state, first)


def _shrink(state: State, stage: int) -> Shrink:
    """A maximum in front moves a stage's convolutions by one; on the way up a stage that did not halve has no enlargement.

    Whether the first stage's own convolution has a stride, no key tells.
    """
    if stage == 0 or f"backbone.decoder.{stage - 1}.upsample.conv.weight" in state:
        return "none"
    return "pool" if f"backbone.encoder.{stage}.1.convs.0.conv.weight" in state else "stride"


def _enlarge(state: State) -> EnlargeShape:
    for key, value in state.items():
        if value.ndim == 4 and ".upsample.deconv_upsamping.0." in key:
            return EnlargeShape(kind="deconvolve", kernel=int(value.shape[-1]))
        if value.ndim == 4 and ".upsample.interp_upsample." in key:
            return EnlargeShape(kernel=int(value.shape[-1]), convolve_first=".interp_upsample.0." in key)
    return EnlargeShape()


def _resnet(state: State) -> tuple[ResNetShape, int]:
    counted = (_count(state, f"backbone.layer{stage}.") for stage in range(1, 5))
    blocks = tuple(count for count in counted if count)
    table = BOTTLENECK if "backbone.layer1.0.conv3.weight" in state else BASIC
    # Without the third stage 50, 101 and 152 are one network; the configuration may call it any of them.
    depth = next((depth for depth, known in table.items() if known[: len(blocks)] == blocks), None)
    if depth is None:
        raise NotNative(f"its ResNet has {'-'.join(map(str, blocks))} blocks")
    deep = "backbone.stem.0.weight" in state
    first = "backbone.stem.0.weight" if deep else "backbone.conv1.weight"
    last = "backbone.stem.6.weight" if deep else "backbone.conv1.weight"
    shape = ResNetShape(
        depth=depth, stem="v1c" if deep else "plain", stem_channels=_outputs(state, last),
        base=_outputs(state, "backbone.layer1.0.conv1.weight"), stages=len(blocks),
    )  # fmt: skip
    return shape, _inputs(state, first)


# -------------------------------------------------------------------------------------------------- heads


def read_head(state: State, name: str, backbone: Backbone) -> HeadShape:
    """The decode head under that name, with the usual values for what the tensors do not tell. Raises `NotNative`."""
    classes = _outputs(state, f"{name}.conv_seg.weight")
    have = {key.removeprefix(f"{name}.").split(".")[0] for key in state if key.startswith(f"{name}.")}
    if "object_context_block" in have:
        bottleneck = f"{name}.bottleneck.conv.weight"
        inner = _outputs(state, f"{name}.object_context_block.query_project.0.conv.weight")
        inputs = _inputs(state, bottleneck)
        return HeadShape(
            kind="ocr", inputs=inputs, channels=_outputs(state, bottleneck), classes=classes,
            maps=_maps(backbone, inputs), inner=inner, norm=f"{name}.bottleneck.conv.bias" not in state,
        )  # fmt: skip
    if "aspp_modules" in have and "c1_bottleneck" in have:
        raise NotNative("its decode head is DeepLabV3+")
    if "aspp_modules" in have:
        return _aspp(state, name, classes, backbone)
    if have <= {"convs", "conv_cat", "conv_seg"}:
        channels = _inputs(state, f"{name}.conv_seg.weight")
        first = next((key for part in ("convs.0", "conv_cat") if (key := f"{name}.{part}.conv.weight") in state), None)
        inputs = _inputs(state, f"{name}.convs.0.conv.weight") if "convs" in have else channels
        return HeadShape(
            kind="fcn", inputs=inputs, channels=channels, classes=classes, maps=_maps(backbone, inputs),
            convs=_count(state, f"{name}.convs."), kernel=0 if first is None else int(_tensor(state, first).shape[-1]),
            concat_input="conv_cat" in have, norm=f"{name}.{'convs.0' if 'convs' in have else 'conv_cat'}.conv.bias" not in state,
        )  # fmt: skip
    about = "PSP (pyramid pooling)" if "psp_modules" in have else f"of {', '.join(sorted(have)[:4])}"
    raise NotNative(f"its decode head is {about}")


def _aspp(state: State, name: str, classes: int, backbone: Backbone) -> HeadShape:
    branches = [
        _tensor(state, f"{name}.aspp_modules.{k}.conv.weight") for k in range(_count(state, f"{name}.aspp_modules."))
    ]
    if not branches:
        raise NotNative("its atrous branches are not plain convolutions")
    inputs = int(branches[0].shape[1])
    # A branch of 1×1 is the one of dilation 1; how far the others reach only the configuration says.
    dilations = tuple(1 if branch.shape[-1] == 1 else 12 * k for k, branch in enumerate(branches))
    return HeadShape(
        kind="aspp", inputs=inputs, channels=int(branches[0].shape[0]), classes=classes,
        maps=_maps(backbone, inputs), dilations=dilations, norm=f"{name}.bottleneck.conv.bias" not in state,
    )  # fmt: skip


def _maps(backbone: Backbone, inputs: int) -> tuple[int, ...]:
    """Which maps a head of so many input channels takes: one, else all, else some. Raises `NotNative` where none has them."""
    channels = backbone.channels
    if inputs in channels:
        return (channels.index(inputs),)
    several = (range(len(channels)), *(c for n in (2, 3) for c in itertools.combinations(range(len(channels)), n)))
    found = next((maps for maps in several if sum(channels[k] for k in maps) == inputs), None)
    if found is not None:
        return tuple(found)
    raise NotNative(
        f"its decode head takes {inputs} channels, the backbone's maps have {', '.join(map(str, channels))}"
    )


def _check_auxiliary(state: State, classes: int) -> int:
    """Parameters of the auxiliary heads, whose tensors must be finite and of as many classes. Raises `NotNative`."""
    found = {key: value for key, value in state.items() if key.startswith(f"{AUXILIARY}.")}
    for key, value in found.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NotNative(f"{key} holds NaN or infinity")
        # Two classes told apart by a threshold may be two channels to an auxiliary head.
        if key.endswith("conv_seg.weight") and value.shape[0] not in (classes, 2 if classes == 1 else classes):
            raise NotNative(f"{key} has {value.shape[0]} classes, the decode head {classes}")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(value.numel() for key, value in found.items() if not key.endswith(buffers))


# ------------------------------------------------------------------------------------------------ tensors


def _same_keys(state: State, shape: NetworkShape) -> None:
    with torch.device("meta"):
        expected = Segmentor(shape).state_dict()
    needed = {key: tuple(value.shape) for key, value in expected.items() if not UNUSED.search(key)}
    there = {key: tuple(value.shape) for key, value in state.items() if not UNUSED.search(key)}
    for key in needed:
        if key not in there:
            raise NotNative(f"{key} is missing")
        if there[key] != needed[key]:
            raise NotNative(f"{key} is {there[key]} where {needed[key]} was expected")
    further = sorted(there.keys() - needed.keys())
    if further:
        raise NotNative(f"it also holds {further[0]}")


def _tensor(state: State, key: str) -> Tensor:
    if key not in state or state[key].ndim != 4:
        raise NotNative(f"{key} is missing")
    return state[key]


def _outputs(state: State, key: str) -> int:
    return int(_tensor(state, key).shape[0])


def _inputs(state: State, key: str) -> int:
    return int(_tensor(state, key).shape[1])


def _count(state: State, prefix: str) -> int:
    """How many numbered things lie right below a prefix."""
    found: set[Any] = {
        rest for key in state if key.startswith(prefix) and (rest := key[len(prefix) :].split(".")[0]).isdigit()
    }
    return len(found)
