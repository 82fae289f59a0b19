"""What a configuration adds to a network that the weights describe, and whether the two speak of the same network.

Strides, dilations, which maps a head takes and align_corners come from the configuration alone; widths and counts stand in
both and must agree. Settings under which the same keys mean another network (stride in the first convolution, another
activation …) are `NotNative`: there the generic route is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from segship.errors import SourceError
from segship.families.mmseg_config import Config
from segship.families.mmseg_keys import NotNative
from segship.networks.mmseg_hrnet import HRNetShape
from segship.networks.mmseg_resnet import BASIC, BOTTLENECK, ResNetShape
from segship.networks.mmseg_segmentor import Backbone, HeadShape, NetworkShape
from segship.networks.mmseg_unet import EnlargeShape, Shrink, UNetShape

BACKBONES = {"HRNet": HRNetShape, "ResNet": ResNetShape, "ResNetV1c": ResNetShape, "UNet": UNetShape}
HEADS = {"FCNHead": "fcn", "ASPPHead": "aspp", "OCRHead": "ocr"}
SEGMENTORS = ("EncoderDecoder", "CascadeEncoderDecoder")
Values = Mapping[str, Any]


def complete(shape: NetworkShape, config: Config) -> NetworkShape:
    """The network with all that the configuration knows of it.

    Raises SourceError where it describes another network than the weights, `NotNative` where it cannot be built here.
    """
    model = config.get("model")
    if not isinstance(model, Mapping):
        raise SourceError(f"{config.origin} has no 'model'; give the whole configuration of the network")
    if plain_name(model.get("type")) not in SEGMENTORS:
        raise NotNative(f"its segmentor is {model.get('type')}")
    heads = model.get("decode_head")
    listed = list(heads) if isinstance(heads, list | tuple) else [heads]
    given = [head for head in listed if isinstance(head, Mapping)]
    if len(given) != len(shape.heads) or len(given) != len(listed):
        raise _another(config, f"{len(given)} decode head(s)", f"{len(shape.heads)}")
    check_classes(shape.classes, given[-1], config)
    about = model.get("backbone")
    backbone = _backbone(shape.backbone, about, config)
    maps = _given_maps(backbone, about)
    pairs = zip(shape.heads, given, strict=True)
    heads = tuple(_head(head, values, backbone, maps, config) for head, values in pairs)
    return replace(shape, backbone=backbone, heads=heads, eps=_eps(about, "its backbone"))


def described(shape: NetworkShape) -> dict[str, str | bool]:
    """What the configuration alone told of the network, as words for the manifest's record."""
    found: dict[str, str | bool] = {"align_corners": shape.heads[-1].align_corners}
    if isinstance(shape.backbone, ResNetShape):
        each = [shape.backbone.block_dilations(stage) for stage in range(shape.backbone.stages)]
        found["backbone_strides"] = ",".join(map(str, shape.backbone.strides))
        found["backbone_dilations"] = " ".join(",".join(map(str, sorted(set(stage)))) for stage in each)
    if shape.heads[-1].kind == "aspp":
        found["head_dilations"] = ",".join(map(str, shape.heads[-1].dilations))
    return found


def check_classes(classes: int, head: Values, config: Config) -> None:
    """SourceError where the configuration's head has another number of output channels than the weights."""
    said = head.get("out_channels") or head.get("num_classes")
    if said is not None and int(said) != classes:
        raise SourceError(
            f"{config.origin} says {said} classes and the weights have {classes}; give the configuration that this "
            "checkpoint was trained with"
        )


# ---------------------------------------------------------------------------------------------- backbones


def _backbone(shape: Backbone, values: Any, config: Config) -> Backbone:
    if not isinstance(values, Mapping) or not isinstance(values.get("type"), str):
        raise SourceError(f"{config.origin} does not name its backbone; give the whole configuration of the network")
    kind = plain_name(values["type"])
    if BACKBONES.get(kind) is not type(shape):
        raise _another(config, f"a {kind}", f"a {type(shape).__name__.removesuffix('Shape')}")
    _only_plain(values, f"its {kind}")
    if isinstance(shape, ResNetShape):
        return _resnet(shape, values, config)
    if isinstance(shape, HRNetShape):
        _check_hrnet(shape, values, config)
        return shape
    return _unet(shape, values, config)


def _given_maps(shape: Backbone, values: Any) -> tuple[int, ...]:
    """The backbone's maps that it gives to the heads, counted as it makes them: `out_indices` of a ResNet."""
    count = len(shape.channels)
    said = values.get("out_indices") if isinstance(shape, ResNetShape) else None
    given = tuple(range(count)) if said is None else tuple(said)
    if not given or not all(isinstance(one, int) and 0 <= one < count for one in given):
        raise NotNative(f"its ResNet gives the maps {said}")
    return tuple(sorted(set(given)))


def _resnet(shape: ResNetShape, values: Values, config: Config) -> ResNetShape:
    about = "its ResNet"
    depth, stages = values.get("depth", shape.depth), shape.stages
    if depth not in BASIC | BOTTLENECK or replace(shape, depth=depth).layout != shape.layout:
        raise _another(config, f"a ResNet of depth {depth}", f"one of {shape.depth}")
    if values.get("num_stages", 4) != stages:
        raise _another(config, f"a ResNet of {values.get('num_stages', 4)} stages", f"one of {stages}")
    deep = plain_name(values["type"]) == "ResNetV1c" or bool(values.get("deep_stem"))
    if deep != (shape.stem == "v1c"):
        raise _another(config, f"a {'deep' if deep else 'plain'} stem", f"a {'plain' if deep else 'deep'} one")
    if values.get("style", "pytorch") != "pytorch" and shape.depth >= 50:
        raise NotNative(f"{about} has its strides in the 1×1 convolutions (style {values['style']})")
    for name in ("avg_down", "dcn", "plugins"):
        if values.get(name):
            raise NotNative(f"{about} has {name}")
    grid = values.get("multi_grid")
    return replace(
        shape,
        depth=depth,
        strides=integers(values.get("strides", (1, 2, 2, 2)), stages, "backbone.strides", config),
        dilations=integers(values.get("dilations", (1, 1, 1, 1)), stages, "backbone.dilations", config),
        multi_grid=None if grid is None else integers(grid, None, "backbone.multi_grid", config),
        contract_dilation=bool(values.get("contract_dilation", False)),
    )


def _check_hrnet(shape: HRNetShape, values: Values, config: Config) -> None:
    extra = values.get("extra")
    if not isinstance(extra, Mapping):
        return
    for number, stage in enumerate(("stage2", "stage3", "stage4"), start=2):
        said = extra.get(stage)
        if not isinstance(said, Mapping):
            continue
        widths = tuple(said.get("num_channels", shape.channels[:number]))
        if widths != shape.channels[:number]:
            raise _another(config, f"branches of {widths} channels", f"of {shape.channels[:number]}")
        modules = said.get("num_modules", shape.modules[number - 2])
        if modules != shape.modules[number - 2]:
            raise _another(config, f"{modules} modules in {stage}", f"{shape.modules[number - 2]}")
    if not values.get("multiscale_output", True):
        raise NotNative("its HRNet gives its finest map alone")


def _unet(shape: UNetShape, values: Values, config: Config) -> UNetShape:
    if values.get("base_channels", shape.base) != shape.base:
        raise _another(config, f"{values['base_channels']} base channels", str(shape.base))
    count = len(shape.encoder)
    if values.get("num_stages", count) != count:
        raise _another(config, f"{values['num_stages']} stages", str(count))
    strides = integers(values.get("strides", (1,) * count), count, "backbone.strides", config)
    shrinks = _shrinks(strides, values.get("downsamples", (True,) * (count - 1)), count, config)
    weights = tuple(shape.shrink(stage) for stage in range(1, count))
    if shrinks[1:] != weights:
        raise _another(config, f"stages that halve by {', '.join(shrinks[1:])}", ", ".join(weights))
    chosen = {}
    for name, stages in (("encoder", count), ("decoder", count - 1)):
        said = values.get(f"{name[:3]}_dilations", (1,) * stages)
        found = integers(said, stages, f"backbone.{name[:3]}_dilations", config)
        chosen[name] = () if set(found) == {1} else found
    return replace(
        shape,
        shrinks=shrinks if "stride" in shrinks or "none" in shrinks[1:] else (),
        encoder_dilations=chosen["encoder"],
        decoder_dilations=chosen["decoder"],
        enlarge=_enlarge(shape.enlarge, values.get("upsample_cfg") or {}, config),
    )


def _shrinks(strides: Sequence[int], pools: Any, count: int, config: Config) -> tuple[Shrink, ...]:
    """How each stage halves: a stride in its first convolution goes before a maximum."""
    if not isinstance(pools, list | tuple) or len(pools) != count - 1:
        raise SourceError(f"{config.origin}: backbone.downsamples should be {count - 1} of True or False; correct it")
    if not set(strides) <= {1, 2}:
        raise NotNative(f"its UNet has strides {tuple(strides)}")
    flags = (False, *pools)
    return tuple("stride" if s == 2 else "pool" if pool else "none" for s, pool in zip(strides, flags, strict=True))


def _enlarge(shape: EnlargeShape, values: Values, config: Config) -> EnlargeShape:
    """How its maps become twice as large. `NotNative` where they become something else."""
    kind = plain_name(values.get("type", "InterpConv"))
    ours = {"interpolate": "InterpConv", "deconvolve": "DeconvModule"}[shape.kind]
    if kind != ours:
        raise _another(config, f"a UNet that enlarges by {kind}", f"one by {ours}")
    if shape.kind == "deconvolve":
        if values.get("kernel_size", 4) != shape.kernel:
            raise _another(config, f"transposed convolutions of {values.get('kernel_size', 4)}", str(shape.kernel))
        if values.get("scale_factor", 2) != 2 or shape.kernel % 2:
            raise NotNative("its UNet enlarges by another factor than 2")
        return shape
    about = values.get("upsample_cfg") or {"scale_factor": 2, "mode": "bilinear", "align_corners": False}
    mode, aligned = about.get("mode", "nearest"), bool(about.get("align_corners"))
    same_size = values.get("stride", 1) == 1 and 2 * values.get("padding", 0) == shape.kernel - 1
    if about.get("scale_factor") != 2 or about.get("size") or mode not in ("bilinear", "nearest") or not same_size:
        raise NotNative("its UNet enlarges in another way than bilinearly or by repeating, by 2")
    if values.get("conv_cfg"):
        raise NotNative("its UNet enlarges with other convolutions")
    if bool(values.get("conv_first", False)) != shape.convolve_first:
        raise _another(config, "convolutions on the other side of the enlargement", "them elsewhere")
    return replace(shape, mode=mode, align_corners=aligned)


# -------------------------------------------------------------------------------------------------- heads


def _head(shape: HeadShape, values: Values, backbone: Backbone, given: tuple[int, ...], config: Config) -> HeadShape:
    kind = plain_name(values.get("type"))
    if HEADS.get(kind) != shape.kind:
        raise _another(config, f"a {kind}", f"a head of kind {shape.kind}")
    _only_plain(values, f"its {kind}")
    for name, ours in (("channels", shape.channels), ("ocr_channels", shape.inner), ("kernel_size", shape.kernel)):
        if values.get(name) not in (None, ours) and ours:
            raise _another(config, f"{name} {values[name]}", str(ours))
    if values.get("scale", 1) != 1 and shape.kind == "ocr":
        raise NotNative("its OCRHead weighs pixels with another scale than 1")
    maps = _maps(shape, values, backbone, given, config)
    dilations = values.get("dilations" if shape.kind == "aspp" else "dilation")
    chosen = shape.dilations
    if dilations is not None:
        listed = dilations if isinstance(dilations, list | tuple) else (dilations,)
        chosen = integers(listed, len(shape.dilations), "decode_head.dilations", config)
    elif shape.kind == "aspp":
        chosen = (1, 6, 12, 18)  # MMSegmentation's own default
    kernels = [one == 1 for one in shape.dilations]
    if shape.kind == "aspp" and [one == 1 for one in chosen] != kernels:
        raise _another(config, f"branches of dilation {chosen}", f"1×1 convolutions in other places {shape.dilations}")
    aligned = bool(values.get("align_corners", False))
    return replace(shape, maps=maps, dilations=chosen, align_corners=aligned, eps=_eps(values, f"its {kind}"))


def _maps(
    shape: HeadShape, values: Values, backbone: Backbone, given: tuple[int, ...], config: Config
) -> tuple[int, ...]:
    """Which of the backbone's maps the head takes; ``given`` are those that heads can name."""
    count = len(given)
    index = values.get("in_index", -1)
    transform = values.get("input_transform")
    if transform not in (None, "resize_concat"):
        raise NotNative(f"its decode head takes maps by {transform}")
    listed = index if isinstance(index, list | tuple) else (index,)
    chosen = integers(listed, None, "decode_head.in_index", config, low=-count, high=count - 1)
    maps = tuple(given[one % count] for one in chosen)
    channels = sum(backbone.channels[one] for one in maps)
    if channels != shape.inputs:
        raise _another(config, f"a head on {channels} channels (in_index {index})", f"one on {shape.inputs}")
    return maps


# ---------------------------------------------------------------------------------------------------- parts


def integers(
    value: Any, count: int | None, name: str, config: Config, *, low: int = 1, high: int = 1 << 16
) -> tuple[int, ...]:
    """Whole numbers of a configuration. SourceError naming the entry."""
    fits = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not fits or (count is not None and len(value) != count):
        raise SourceError(
            f"{config.origin}: {name} should be {count or 'some'} whole numbers, not {value!r}; correct it"
        )
    if not all(isinstance(one, int) and not isinstance(one, bool) and low <= one <= high for one in value):
        raise SourceError(f"{config.origin}: {name} holds {value!r}, which is no sensible number here; correct it")
    return tuple(value)


def plain_name(kind: Any) -> str:
    """A registered name without the scope in front of it: 'mmseg.FCNHead' is FCNHead."""
    return str(kind).rsplit(".", 1)[-1]


def _only_plain(values: Values, about: str) -> None:
    """`NotNative` for another activation, convolution or norm than ReLU, Conv2d and batch norm."""
    activation = values.get("act_cfg", {"type": "ReLU"}) or {"type": "no"}
    if plain_name(activation.get("type")) != "ReLU":
        raise NotNative(f"{about} has {activation.get('type')} activations")
    convolution = values.get("conv_cfg") or {"type": "Conv2d"}
    if plain_name(convolution.get("type")) not in ("Conv2d", "Conv"):
        raise NotNative(f"{about} has {convolution.get('type')} convolutions")
    norm = values.get("norm_cfg") or {"type": "BN"}
    if plain_name(norm.get("type")) not in ("BN", "BN2d", "SyncBN", "MMSyncBN"):
        raise NotNative(f"{about} has {norm.get('type')} in the place of batch norm")


def _eps(values: Any, about: str) -> float:
    """What the batch norms of a part add to variances. `NotNative` for no number above 0."""
    norm = values.get("norm_cfg") if isinstance(values, Mapping) else None
    found = norm.get("eps", 1e-5) if isinstance(norm, Mapping) else 1e-5
    if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
        raise NotNative(f"{about} has batch norms of eps {found!r}")
    return float(found)


def _another(config: Config, said: str, found: str) -> SourceError:
    return SourceError(
        f"{config.origin} describes another network than the weights hold: {said} where the weights have {found}; give "
        "the configuration that this checkpoint was trained with"
    )
