"""MMSegmentation: OCRNet, DeepLabV3, FCN and their like, from checkpoints of its versions 0.x and 1.x.

The weights tell a network's widths and counts. What they do not tell (dilations, align_corners, test mode, classes …) is
taken from the configuration: that of ``--config``, else the text inside the checkpoint, else what follows from the name of
a released file, else from ``--arch``. With none of them nothing is guessed. Networks that are not defined here are built by
mmseg itself, where that is installed (``mmseg_generic``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from segship.errors import SourceError
from segship.families import OptionValue, Source
from segship.families.checkpoint import SUFFIXES, Checkpoint, open_checkpoint
from segship.families.common import (
    fill_network,
    listed,
    package_name,
    parameter_count,
    seed_weights,
)
from segship.families.mmseg_config import MAX_BYTES, Config
from segship.families.mmseg_dataset import dataset_type, make_classes
from segship.families.mmseg_generic import OF_ANY_NETWORK, at_one_size, classes_of
from segship.families.mmseg_keys import NotNative, Recognised, is_mmseg
from segship.families.mmseg_keys import recognise as recognise_keys
from segship.families.mmseg_known import Classes
from segship.families.mmseg_native import check_classes, complete, described
from segship.families.mmseg_options import OPTIONS as OPTIONS
from segship.families.mmseg_recipe import NetworkFacts, build_recipe, fitting_classes
from segship.families.mmseg_settings import Settings, last_head, read_settings
from segship.families.mmseg_sources import FoundConfig, find_config
from segship.networks.mmseg_segmentor import HeadShape, NetworkShape, Segmentor
from segship.networks.mmseg_unet import UNetShape

CONFIGURES = re.compile(rb"^(model|_base_)\s*=", re.MULTILINE)
NAME = "mmseg"
TITLE = "MMSegmentation"
LOOKS_FOR = "backbone.* and decode_head.* (a segmentor of MMSegmentation)"


def recognise(checkpoint: Checkpoint) -> bool:
    """By the names that every segmentor of that world has, known here or not."""
    return is_mmseg(checkpoint.state_dict)


def recognise_path(path: Path) -> bool:
    """A folder of a checkpoint and its configuration; also a configuration alone, to say what is missing."""
    return bool(_configs(path)) if path.is_dir() else _is_config(path)


def load_path(
    path: Path, options: Mapping[str, OptionValue], *, trust_pickle: bool = False, force: bool = False
) -> Source:
    """Network and recipe of a folder that holds a configuration and a checkpoint, such as mmseg's work folder."""
    if path.is_file():
        raise SourceError(
            f"{path} is a configuration without weights; give the checkpoint: CHECKPOINT.pth --config {path}"
        )
    configs = _configs(path)
    weights = _weights(path)
    if options.get("config") is None:
        if len(configs) > 1:
            names = ", ".join(one.name for one in configs[:5])
            raise SourceError(f"{path} holds several configurations ({names}); name one with --config")
        options = {**options, "config": str(configs[0])}
    return load(open_checkpoint(weights, trust_pickle=trust_pickle), options, force=force)


def load(checkpoint: Checkpoint, options: Mapping[str, OptionValue], *, force: bool = False) -> Source:
    """Network and recipe of a checkpoint. Raises SourceError for what cannot be taken or is not known, UsageError for options."""
    found, reason = (None, "--generic") if options.get("generic") else _recognised(checkpoint)
    given = find_config(checkpoint, options, None if found is None else found.shape)
    settings = read_settings(given.config, options.get("scale"))
    built = _build(checkpoint, given, found, reason)
    named, origin = _classes(checkpoint, given, settings, options)
    classes = fitting_classes(named, built.facts.channels, origin)
    if given.config.source in ("name", "flag") or origin == "--class-names":
        # no configuration says that these classes are some of a data set's: label maps are read as they stand
        settings = replace(settings, dataset_names=())
    warnings = [*given.warnings, *built.warnings]
    if named is not None and not named.palette:
        warnings.append(f"{origin} names no colours for its classes; made-up ones are in the package")
    if settings.crop is not None and any(side % built.facts.multiple for side in settings.crop):
        warnings.append(f"windows are filled up to multiples of {built.facts.multiple}, which the network insists on")
    record = {
        "settings_from": given.config.source,
        "classes_from": _source_of(origin, given.config),
        "test_mode": "slide" if settings.crop else "whole",
        **built.described,
    }
    recipe = build_recipe(
        package_name(checkpoint, None, generic=("model", "latest", "best", "last")), built.facts, settings, classes,
        record, options.get("input_size"),
    )  # fmt: skip
    size = recipe.network.size or recipe.network.check_size
    assert size is not None
    source = Source(
        network=built.network.eval(),
        recipe=recipe,
        input_example_shape=(recipe.network.input_channels, *size),
        provenance={
            "framework": "PyTorch, open-mmlab/mmsegmentation",
            "checkpoint": checkpoint.record(),
            "meta": {key: checkpoint.meta[key] for key in ("mmseg_version", "mmengine_version", "epoch", "iter", "time")
                     if isinstance(checkpoint.meta.get(key), str | int | float)},
            "found_in": {"settings": given.config.origin, "classes": origin},
            "config_notes": list(settings.notes),
            "auxiliary_parameters": built.auxiliary,
        },
        warnings=tuple(warnings),
        sum_joins=built.sum_joins,
        notes=(f"{built.facts.architecture}; settings from {given.config.origin}, class names from {origin}",),
    )  # fmt: skip
    if built.generic:
        source = replace(source, relative_tolerance=OF_ANY_NETWORK)
    if built.generic and recipe.network.size is None:
        free = source
        return replace(source, at_one_size=lambda: at_one_size(free))
    return source


# ------------------------------------------------------------------------------------------------ network


@dataclass(frozen=True, kw_only=True)
class _Built:
    network: nn.Module
    facts: NetworkFacts
    warnings: tuple[str, ...] = ()
    auxiliary: int = 0
    described: Mapping[str, str | bool] = field(default_factory=dict)
    """what the configuration told of the network, for the record"""
    generic: bool = False
    """built by mmseg: no test has seen its graph"""
    sum_joins: bool = False


def _recognised(checkpoint: Checkpoint) -> tuple[Recognised | None, str]:
    """What is defined here, or why not."""
    try:
        return recognise_keys(checkpoint.state_dict), ""
    except NotNative as error:
        return None, str(error)


def _build(checkpoint: Checkpoint, given: FoundConfig, found: Recognised | None, reason: str) -> _Built:
    """Our own network, or the one that mmseg builds where ours is not that one."""
    if found is not None:
        try:
            return _native(checkpoint, given.config, found)
        except NotNative as error:
            reason = str(error)
    return _generic(checkpoint, given, reason)


def _native(checkpoint: Checkpoint, config: Config, found: Recognised) -> _Built:
    shape = complete(found.shape, config)
    network = build_network(shape)
    known = {key for key in checkpoint.state_dict if key.startswith(("auxiliary_head.", "ema_"))}
    warnings = fill_network(network, checkpoint, known | set(network.state_dict()), TITLE)
    facts = network_facts(shape, found.architecture, network)
    return _Built(
        network=network, facts=facts, warnings=tuple(warnings), auxiliary=found.auxiliary, described=described(shape),
        sum_joins=shape.heads[-1].kind == "ocr",  # joins a feature that is needed once more; those of others cost nothing
    )  # fmt: skip


def build_network(shape: NetworkShape) -> Segmentor:
    return Segmentor(shape).eval()


def network_facts(shape: NetworkShape, architecture: str, network: nn.Module) -> NetworkFacts:
    return NetworkFacts(
        architecture=architecture,
        parameters=parameter_count(network),
        inputs=shape.inputs,
        channels=shape.classes,
        stride=shape.stride,
        multiple=shape.multiple,
        align_corners=shape.heads[-1].align_corners,
    )


def _generic(checkpoint: Checkpoint, given: FoundConfig, reason: str) -> _Built:
    """The network as mmseg itself builds it. SourceError where that is not possible."""
    from segship.families import mmseg_generic

    model = given.config.get("model")
    absent = mmseg_generic.missing()
    if absent is not None or not isinstance(model, Mapping):
        raise SourceError(
            f"{checkpoint.path} is a segmentor that segship does not define itself ({reason}); with mmseg installed and the "
            f"network's --config it is built by mmseg: {mmseg_generic.INSTALL}"
        )
    classes = next(
        (int(value.shape[0]) for key, value in checkpoint.state_dict.items()
         if key.startswith("decode_head.") and key.endswith("conv_seg.weight")), None,
    )  # fmt: skip
    if classes is not None:
        check_classes(classes, last_head(given.config), given.config)
    built = mmseg_generic.build(model, checkpoint.state_dict, name=checkpoint.path.name)
    facts = NetworkFacts(
        architecture=built.architecture, parameters=built.parameters, inputs=built.in_channels, channels=built.channels,
        stride=built.stride, multiple=built.size_multiple, align_corners=built.align_corners,
    )  # fmt: skip
    return _Built(network=built.network, facts=facts, generic=True)


# ------------------------------------------------------------------------------------------------ classes


def _classes(
    checkpoint: Checkpoint, given: FoundConfig, settings: Settings, options: Mapping[str, OptionValue]
) -> tuple[Classes | None, str]:
    """Names and colours, and where they were found: the option, the checkpoint's own words, the configuration."""
    names = options.get("class_names")
    if names is not None:
        given_names = listed(str(names))
        palette = _palette_of(checkpoint, settings, len(given_names))
        return make_classes(given_names, palette, "--class-names"), "--class-names"
    meta = checkpoint.meta
    given_meta = meta.get("dataset_meta")
    about: Mapping[str, Any] = given_meta if isinstance(given_meta, Mapping) else {}
    for origin, words, colors in (
        ("the checkpoint's dataset_meta", about.get("classes"), about.get("palette")),
        ("the checkpoint's dataset_meta", about.get("CLASSES"), about.get("PALETTE")),  # of the candidates for 1.0
        ("the checkpoint's CLASSES", meta.get("CLASSES"), meta.get("PALETTE")),
    ):
        found = make_classes(words, colors, origin)
        if found is not None:
            same = settings.classes is not None and settings.classes.names == found.names
            if not found.palette and same and settings.classes is not None:
                found = replace(found, palette=settings.classes.palette)
            return found, origin
    dataset = dataset_type(given.config)
    theirs = classes_of(dataset) if settings.classes is None and dataset else None
    if theirs is not None:
        origin = f"mmseg's {dataset}"
        return make_classes(*theirs, origin), origin
    return settings.classes, given.config.origin


def _source_of(origin: str, config: Config) -> str:
    """Where class names were found, as the manifest says it: config, meta, name, flag, or mmseg's own tables."""
    if origin == config.origin:
        return config.source
    return {"--class-names": "flag", "mmseg's": "mmseg"}.get(origin.split(" ")[0], "meta")


def _palette_of(checkpoint: Checkpoint, settings: Settings, count: int) -> Any:
    if settings.classes is not None and len(settings.classes.palette) == count:
        return settings.classes.palette
    return None


def _configs(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.py")) if _is_config(path)]


def _is_config(path: Path) -> bool:
    """Whether a file is a configuration: Python that sets a model, or inherits one."""
    if path.suffix != ".py" or not path.is_file():
        return False
    with path.open("rb") as file:
        return CONFIGURES.search(file.read(MAX_BYTES)) is not None


def _weights(folder: Path) -> Path:
    """The checkpoint of a folder: the only one, the best one, or the last one, which a file there names."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not found:
        raise SourceError(
            f"{folder} holds a configuration and no checkpoint ({'/'.join(SUFFIXES[:3])}); put the weights beside it"
        )
    if len(found) == 1:
        return found[0]
    best = [path for path in found if path.name.startswith("best_")]
    if len(best) == 1:
        return best[0]
    last = folder / "last_checkpoint"
    if last.is_file() and last.stat().st_size < MAX_BYTES:
        named = last.read_text(encoding="utf-8", errors="replace").strip().replace("\\", "/").rsplit("/", 1)[-1]
        if folder / named in found:
            return folder / named
    if folder / "latest.pth" in found:  # 0.x
        return folder / "latest.pth"
    names = ", ".join(path.name for path in found[:5])
    raise SourceError(f"{folder} holds several checkpoints ({names}); name one of them, with --config")


# --------------------------------------------------------------------------------------------------- tiny


def tiny() -> Source:
    """A U-Net of 4 channels with seeded weights at 64×64, for tests that run every engine."""
    backbone = UNetShape(base=8, encoder=(2, 2, 2), decoder=(2, 2))
    head = HeadShape(kind="fcn", inputs=8, channels=8, classes=4, maps=(2,))
    shape = NetworkShape(backbone=backbone, heads=(head,))
    network = build_network(shape)
    seed_weights(network, 17, gain=2.0, scales="bn.weight")
    settings = Settings(
        mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), grey=False, rgb=True, resize=None, pad_value=0.0, pad_multiple=1,
        pad_size=None, crop=None, stride=None, ratios=(0.5, 1.0), classes=None, reduce_zero_label=False,
        threshold=0.3,
    )  # fmt: skip
    names = ("ground", "wall", "tree", "sky")
    classes = fitting_classes(Classes(names=names, palette=()), 4, "tiny")
    facts = network_facts(shape, "FCN-UNet", network)
    return Source(
        network=network,
        recipe=build_recipe("tiny-mmseg", facts, settings, classes, {}, (64, 64)),
        input_example_shape=(3, 64, 64),
        provenance={"framework": "seeded weights, not trained"},
    )
