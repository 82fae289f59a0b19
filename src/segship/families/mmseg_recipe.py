"""How a segmentor of MMSegmentation is used, as a manifest says it: reading, resizing, padding, test mode, labels."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segship.datasets import cityscapes_labels
from segship.errors import SourceError
from segship.families import OptionValue
from segship.families.common import opencv_input
from segship.families.mmseg_known import Classes
from segship.families.mmseg_settings import Settings
from segship.manifest import (
    Argmax,
    Augmentation,
    Decode,
    Label,
    Metric,
    Network,
    Normalize,
    Output,
    Pad,
    Recipe,
    Resize,
    ResizeKeepRatio,
    Step,
    Threshold,
)

INPUT, OUTPUT = "input", "logits"
IGNORED = 255
CHECK_SIZE = (256, 512)
"""what a package is proved at: 2048 × 1024 pixels take a minute each, in every engine"""
SEED_OF_COLORS = 42


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What there is to know of a network, ours or one that mmseg built."""

    architecture: str
    parameters: int
    inputs: int
    channels: int
    """of the logits: the number of classes, or 1"""
    stride: int
    multiple: int
    align_corners: bool


def build_recipe(
    name: str,
    facts: NetworkFacts,
    settings: Settings,
    classes: Classes,
    record: Mapping[str, Any],
    input_size: OptionValue = None,
) -> Recipe:
    """Everything that a manifest says of such a network but its variants.

    ``input_size`` (height, width) fixes the network's size: pictures are brought to it whatever their ratio. Raises
    SourceError for settings that do not fit together.
    """
    size = (int(input_size[0]), int(input_size[1])) if isinstance(input_size, tuple) else None
    if size is not None and settings.crop is not None:
        raise SourceError(
            f"{name} is used in slide mode with windows of {settings.crop[0]}x{settings.crop[1]}, which set the network's size; "
            "leave --input-size out"
        )
    if facts.inputs not in (1, 3):
        raise SourceError(f"{name} takes {facts.inputs} channels; pictures are read with 1 (grey) or 3 (colour)")
    if settings.grey != (facts.inputs == 1):
        raise SourceError(
            f"{name} takes {facts.inputs} channel(s) and its test pipeline reads pictures in {'grey' if settings.grey else 'colour'}; "
            "give the configuration that this checkpoint was trained with"
        )
    steps = (*_geometry(settings, size), *_normalize(settings, facts, name), *_pad(settings, facts, size))
    slide = "" if settings.crop is None else f", windows of {settings.crop[0]}x{settings.crop[1]}"
    method: Any = "torch:bilinear-align-corners" if facts.align_corners else "torch:bilinear"
    return Recipe(
        name=name,
        family="mmseg",
        description=f"{facts.architecture}, {len(classes.names)} classes{slide}",
        options=dict(record),
        input=opencv_input(facts.inputs, rgb=settings.rgb),
        preprocess=steps,
        network=Network(
            architecture=facts.architecture,
            parameters=facts.parameters,
            input_name=INPUT,
            layout="NCHW",
            input_channels=facts.inputs,
            size=size,
            size_multiple=(facts.multiple, facts.multiple),
            check_size=None if size is not None else check_size(facts.multiple, steps),
            outputs=(Output(name=OUTPUT, channels=facts.channels, values="logits", stride=facts.stride),),
            members=("model",),
        ),
        tiling=settings.tiling,
        augmentation=Augmentation(ratios=settings.ratios, mirror=settings.mirror),
        decode=Decode(
            activation="softmax" if facts.channels > 1 else "sigmoid",
            decision=Argmax() if facts.channels > 1 else Threshold(threshold=settings.threshold),
            restore_what="logits",
            restore_method=method,
            restore_path="by-input-size",
        ),
        labels=_labels(classes, facts.channels, settings.dataset_names),
        metric=Metric(
            name="mIoU", scorer="mmseg", higher_is_better=True, grid="input",
            options={
                "ignore_index": IGNORED, "reduce_zero_label": settings.reduce_zero_label,
                **_replaced(settings.dataset_names, classes.names, facts.channels),
            },
        ),
    )  # fmt: skip


def check_size(multiple: int, steps: tuple[Step, ...]) -> tuple[int, int]:
    """(height, width) for the proof: that of the package where it is small anyway, else `CHECK_SIZE`."""
    resize = next((step for step in steps if isinstance(step, ResizeKeepRatio)), None)
    height, width = CHECK_SIZE
    if resize is not None:
        height, width = min(height, resize.short_side), min(width, resize.long_side)
    return max(multiple, height // multiple * multiple), max(multiple, width // multiple * multiple)


def fitting_classes(classes: Classes | None, channels: int, where: str) -> Classes:
    """The classes, with colours for those that have none. SourceError where their number is not the weights'."""
    if classes is None:
        raise SourceError(
            f"neither {where} nor the checkpoint names the classes; give the names of all {channels} with --class-names"
        )
    count = len(classes.names)
    binary = channels == 1 and count in (1, 2)
    if count != channels and not binary:
        raise SourceError(
            f"{where} names {count} classes and the weights have {channels}; give the configuration that this checkpoint was "
            "trained with, or all names with --class-names"
        )
    if classes.palette:
        return classes
    return Classes(names=classes.names, palette=made_up_colors(count), reduce_zero_label=classes.reduce_zero_label)


def made_up_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours for classes that come without, the same every time."""
    source = random.Random(SEED_OF_COLORS)
    return tuple((source.randrange(256), source.randrange(256), source.randrange(256)) for _ in range(count))


def _replaced(known: tuple[str, ...], names: tuple[str, ...], channels: int) -> dict[str, str]:
    """What becomes of the numbers in label maps where the network has a part of the data set's classes, or all in another
    order: the scorer's ``label_map``. Upstream reads its data sets' label maps so (datasets/basesegdataset.py)."""
    alone = channels == len(names) == 1  # one class, told from nothing by a threshold
    if names == known or not set(names) <= set(known) or alone:
        return {}
    numbers = [names.index(name) if name in names else IGNORED for name in known]
    return {"label_map": ",".join(f"{old}:{new}" for old, new in enumerate(numbers))}


def _labels(classes: Classes, channels: int, known: tuple[str, ...]) -> tuple[Label, ...]:
    pairs = list(zip(classes.names, classes.palette, strict=True))
    if channels == 1 and len(pairs) == 1:  # one class, told from nothing by a threshold
        return (Label(id=1, name=pairs[0][0], color=pairs[0][1]),)
    in_files = _numbers_in_files(classes, known)
    return tuple(
        Label(id=index, name=name, color=color, file_value=in_files.get(index))
        for index, (name, color) in enumerate(pairs)
    )


def _numbers_in_files(classes: Classes, known: tuple[str, ...]) -> dict[int, int]:
    """Class -> its number in the data set's own label files, where that is another: Cityscapes' label ids, and one more
    where 0 is ignored (upstream's ``--out`` adds it again)."""
    streets = cityscapes_labels.NAMES
    if classes.names == streets or (known == streets and set(classes.names) <= set(streets)):
        return {index: cityscapes_labels.LABEL_IDS[streets.index(name)] for index, name in enumerate(classes.names)}
    return {index: index + 1 for index in range(len(classes.names))} if classes.reduce_zero_label else {}


def _geometry(settings: Settings, size: tuple[int, int] | None) -> tuple[Step, ...]:
    if size is not None:
        return (Resize(height=size[0], width=size[1], method="opencv:linear"),)
    return () if settings.resize is None else (settings.resize,)


def _normalize(settings: Settings, facts: NetworkFacts, name: str) -> tuple[Step, ...]:
    if not settings.mean:
        return (Normalize(subtract=(0.0,) * facts.inputs, multiply=(1.0,) * facts.inputs),)
    mean, std = settings.mean, settings.std
    if len(mean) == 1:  # one number for all channels
        mean, std = mean * facts.inputs, std * facts.inputs
    if len(mean) != facts.inputs:
        raise SourceError(
            f"{name} takes {facts.inputs} channels and is normalised by {len(mean)} constants; correct the configuration"
        )
    return (Normalize(subtract=mean, multiply=tuple(1 / one for one in std)),)


def _pad(settings: Settings, facts: NetworkFacts, size: tuple[int, int] | None) -> tuple[Step, ...]:
    """Behind the normalisation, right and below. A network that takes multiples alone gets them by itself in slide mode."""
    multiple = settings.pad_multiple
    if settings.crop is None and multiple % facts.multiple:
        multiple = facts.multiple
    if size is not None:
        if any(side % multiple for side in size):
            up = "x".join(str(-(-side // multiple) * multiple) for side in size)
            raise SourceError(f"input size {size[0]}x{size[1]}: the network takes multiples of {multiple}; use {up}")
        return ()
    if multiple == 1 and settings.pad_size is None:
        return ()
    return (
        Pad(minimum=settings.pad_size, multiple_of=multiple, where="end", mode="constant", value=settings.pad_value),
    )
