"""How a UNet++ or U-Net checkpoint is used, as a manifest says it: reading, normalisation, decoding, labels, metric.

Two oddities of the training code belong to every checkpoint and are reproduced (4uiiurz1/pytorch-nested-unet:
dataset.py, train.py; albumentations 0.5.2: Normalize): the ImageNet RGB constants are applied to B, G, R, and the
result is divided by 255 a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from segship.errors import SourceError, UsageError
from segship.families import OptionValue
from segship.families.common import IMAGENET_MEAN, IMAGENET_STD, channel_constants, class_labels, opencv_input
from segship.families.unetplusplus_options import BGR_IMAGENET, RGB
from segship.manifest import (
    Decode,
    Divide,
    ImageInput,
    Label,
    Metric,
    Network,
    Normalize,
    Output,
    Recipe,
    Resize,
    Step,
    Threshold,
)
from segship.networks.unetplusplus_choices import DEPTH, Upsampling

DEFAULT_SIZE = (96, 96)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the tensors themselves say."""

    architecture: str
    deep_supervision: bool
    channels: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What they do not say, each with where it was found."""

    upsample: Upsampling
    input: str
    size: tuple[int, int]
    found_in: dict[str, str]
    config: dict[str, Any]
    warnings: tuple[str, ...]


def build_recipe(
    name: str,
    shape: Shape,
    choices: Choices,
    head: int | None,
    options: Mapping[str, OptionValue],
    parameters: int,
) -> Recipe:
    """Everything that a manifest says of such a network but its variants.

    ``head`` 1..4, or None for every head (with deep supervision) or the only one (without). Raises UsageError
    for a size or constants that do not fit, SourceError for a channel count that no picture has.
    """
    depth = DEPTH if head is None else head
    multiple = 2**depth
    height, width = choices.size
    if height % multiple or width % multiple:
        up = tuple(-(-side // multiple) * multiple for side in choices.size)
        raise UsageError(
            f"input size {height}x{width}: both sides must be multiples of {multiple}; use {up[0]}x{up[1]}"
        )
    image, steps = _input_and_steps(shape.channels, choices, options)
    outputs = [Output(name="output_1", channels=shape.classes, values="logits")]
    if shape.deep_supervision and head is None:
        outputs += [Output(name=f"output_head{k}", channels=shape.classes, values="logits") for k in range(1, DEPTH)]
    return Recipe(
        name=name,
        family="unetplusplus",
        description=f"{shape.architecture} with {choices.upsample} upsampling; independent classes (sigmoid)",
        options=_record_options(shape, choices, head, steps),
        input=image,
        preprocess=steps,
        network=Network(
            architecture=shape.architecture,
            parameters=parameters,
            input_name="actual_input_1",
            layout="NCHW",
            input_channels=shape.channels,
            size=choices.size,
            size_multiple=(multiple, multiple),
            outputs=tuple(outputs),
            members=("model",),
        ),
        decode=Decode(
            activation="sigmoid",
            decision=Threshold(threshold=0.5),
            restore_what="probabilities",
            restore_method="opencv:linear",
        ),
        labels=_labels(shape.classes, choices.config, options.get("class_names")),
        metric=Metric(name="iou", scorer="nuclei", higher_is_better=True, grid="network"),
    )


def _input_and_steps(
    channels: int, choices: Choices, options: Mapping[str, OptionValue]
) -> tuple[ImageInput, tuple[Step, ...]]:
    height, width = choices.size
    resize = Resize(height=height, width=width, method="opencv:linear")
    if channels not in (1, 3):
        raise SourceError(
            f"the network takes {channels} channels; pictures are read with 1 (grey) or 3 (colour), so it cannot be used here"
        )
    image = opencv_input(channels, rgb=choices.input != BGR_IMAGENET)
    if choices.input == RGB:
        if options.get("mean") is not None or options.get("std") is not None:
            raise UsageError("--mean and --std belong to --input bgr-imagenet-div255; rgb-div255 only divides by 255")
        return image, (resize, Divide(by=255.0))
    mean = channel_constants(options.get("mean"), IMAGENET_MEAN, channels, "--mean")
    std = channel_constants(options.get("std"), IMAGENET_STD, channels, "--std", positive=True)
    # Computed in float32, in albumentations' order, so that the stored constants are the very ones of training.
    subtract = np.asarray(mean, np.float32) * np.float32(255)
    multiply = np.reciprocal(np.asarray(std, np.float32) * np.float32(255))
    normalize = Normalize(subtract=tuple(subtract.tolist()), multiply=tuple(multiply.tolist()))
    return image, (resize, normalize, Divide(by=255.0))


def _record_options(
    shape: Shape, choices: Choices, head: int | None, steps: tuple[Step, ...]
) -> dict[str, str | int | float | bool | None]:
    record: dict[str, str | int | float | bool | None] = {
        "upsample": choices.upsample,
        "input": choices.input,
        "input_size": f"{choices.size[0]}x{choices.size[1]}",
        "deep_supervision": shape.deep_supervision,
        **{f"{name}_from": where for name, where in choices.found_in.items()},
    }
    if shape.deep_supervision:
        record["head"] = "all" if head is None else head
    if shape.channels not in (3,):
        record["channels_note"] = "upstream reads 3 channels only; this reading of other counts is segship's"
    return record


def _labels(classes: int, config: Mapping[str, Any], names: OptionValue) -> tuple[Label, ...]:
    nuclei = str(config.get("dataset", "dsb2018")).startswith("dsb2018")
    one = ["nucleus" if nuclei else "foreground"]
    default = one if classes == 1 else [f"class{index}" for index in range(classes)]
    return class_labels(classes, None if names is None else str(names), default)
