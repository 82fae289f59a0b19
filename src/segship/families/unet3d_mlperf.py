"""The MLPerf 3D U-Net: checkpoints of mlcommons/training's retired unet3d benchmark and of its ports, and TorchScript files.

Widths, channels, classes and the kind of normalisation are read from the tensors. What they do not say (the activation,
the window that was trained with) is an option here, recorded in the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from segship.errors import SourceError, UsageError
from segship.families import OptionValue, Source
from segship.families.checkpoint import Checkpoint, take_other
from segship.families.common import fill_network, listed, package_name, parameter_count, read_yaml
from segship.families.unet3d_mlperf_options import ACTIVATIONS, BORDERS, SAVED
from segship.families.unet3d_mlperf_options import OPTIONS as OPTIONS
from segship.families.unet3d_mlperf_recipe import Choices, Shape3, build_recipe
from segship.networks.unet3d_mlperf import Unet3D
from segship.networks.unet3d_mlperf_choices import FILTERS, SIZE_MULTIPLE, Activation, Normalization

NAME = "unet3d_mlperf"
TITLE = "mlcommons/training's unet3d"
LOOKS_FOR = "input_block.conv1.0.weight and bottleneck.conv2.0.weight of five axes (Unet3D of MLPerf Training)"
CROP = "crop"
WINDOW = (128, 128, 128)
OVERLAP = 0.5
KITS_CLASSES = ("kidney", "tumour")
ENGINE_TOLERANCE = 2e-3
"""Instance normalisation sums a window of 128³ values in float32. Measured on seeded weights: OpenVINO up to 1e-4 off
PyTorch's logits (5e-3 with its own sums, see engines/openvino_norms.py), ONNX Runtime 6e-4 to 1.1e-3"""


def recognise(checkpoint: Checkpoint) -> bool:
    """By the first and the deepest convolution, whatever the widths."""
    tensors = [checkpoint.state_dict.get(f"{key}.0.weight") for key in ("input_block.conv1", "bottleneck.conv2")]
    return all(tensor is not None and tensor.ndim == 5 and tensor.shape[2:] == (3, 3, 3) for tensor in tensors)


def load(checkpoint: Checkpoint, options: Mapping[str, OptionValue], *, force: bool = False) -> Source:
    """Network and recipe of a checkpoint. Raises SourceError for tensors of another network, UsageError for options
    that do not fit it; ``force`` turns a contradiction between file and options into a warning."""
    checkpoint, notes = _chosen(checkpoint, options)
    checkpoint = _one_spelling(checkpoint)
    found = _shape(checkpoint)
    activation, warnings = _activation(checkpoint, options, force)
    network = Unet3D(found.channels, found.classes, found.normalization, activation, found.filters).eval()
    warnings += fill_network(network, checkpoint, set(network.state_dict()), TITLE)
    choices = _choices(checkpoint, options)
    parameters = parameter_count(network)
    recipe = build_recipe(
        name=package_name(checkpoint, None, ("model", "checkpoint", "model_final")),
        parameters=parameters,
        channels=("CT",) if found.channels == 1 else tuple(f"channel {i}" for i in range(found.channels)),
        classes=_classes(found.classes - 1, options),
        choices=choices,
        options={
            "weights": checkpoint.wrapper or "state dict",
            "activation": activation,
            "normalization": found.normalization,
            "filters": " ".join(map(str, found.filters)),
            "window": "x".join(map(str, choices.window)),
            "overlap": choices.overlap,
            "borders": choices.borders,
            "as_stored": choices.as_stored,
            "compat": CROP if choices.crop else None,
        },
    )
    return Source(
        network=network,
        recipe=recipe,
        input_example_shape=(found.channels, *choices.window),
        engine_tolerance=ENGINE_TOLERANCE,
        provenance={
            "framework": "PyTorch, mlcommons/training unet3d",
            "checkpoint": checkpoint.record(),
            "saved_with_it": dict(checkpoint.about),
        },
        warnings=tuple(warnings),
        notes=(f"MLPerf 3D U-Net, {parameters:,} parameters, {found.normalization}, {activation}", *notes),
    )


# ------------------------------------------------------------------------------------------ the checkpoint


def _chosen(checkpoint: Checkpoint, options: Mapping[str, OptionValue]) -> tuple[Checkpoint, list[str]]:
    """The state dict that is asked for, and where it comes from."""
    wanted = options.get("weights")
    if wanted is not None:
        key = SAVED[str(wanted)]
        if checkpoint.wrapper != key and key not in checkpoint.others:
            there = ", ".join(k for k in (checkpoint.wrapper, *checkpoint.others) if k) or "a bare state dict"
            raise UsageError(f"{checkpoint.path} has no {key}; it holds {there}, so leave --weights {wanted} out")
        if checkpoint.wrapper != key:
            checkpoint = take_other(checkpoint, key)
    if checkpoint.wrapper not in SAVED.values():
        return checkpoint, []
    about = checkpoint.about
    scores = [f"{name} {about[name]:.4f}" for name in ("mean_dice", "L1 dice", "L2 dice") if name in about]
    best = checkpoint.wrapper == SAVED["best"]
    at = f"epoch {about['epoch']:g}" if isinstance(about.get("epoch"), int | float) else ""
    said = f" ({', '.join(filter(None, [at, *scores]))} in training)" if best and (at or scores) else ""
    return checkpoint, [f"weights: {checkpoint.wrapper}{said}"]


def _one_spelling(checkpoint: Checkpoint) -> Checkpoint:
    """The first published version called the last layer output.conv.0."""
    renamed = {
        f"output.conv.{key.removeprefix('output.conv.0.')}" if key.startswith("output.conv.0.") else key: value
        for key, value in checkpoint.state_dict.items()
    }
    return replace(checkpoint, state_dict=renamed)


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What the tensors say of the network."""

    channels: int
    classes: int
    filters: tuple[int, ...]
    normalization: Normalization


def _shape(checkpoint: Checkpoint) -> _Shape:
    first = _convolution(checkpoint, "input_block.conv1.0.weight")
    last = _convolution(checkpoint, "output.conv.weight")
    widths = [int(first.shape[0])]
    for level in range(len(FILTERS) - 1):
        widths.append(int(_convolution(checkpoint, f"downsample.{level}.conv1.0.weight").shape[0]))
    if f"downsample.{len(FILTERS) - 1}.conv1.0.weight" in checkpoint.state_dict:
        raise SourceError(
            f"{checkpoint.path} goes deeper than the {len(FILTERS)} levels of {TITLE}; it is another network"
        )
    channels, classes = int(first.shape[1]), int(last.shape[0])
    if not (1 <= channels <= 64 and 2 <= classes <= 256 and max(widths) <= 4096):
        raise SourceError(
            f"{checkpoint.path}: {channels} channels, {classes} classes, widths {widths} are no real network's"
        )
    batch = "input_block.conv1.1.running_mean" in checkpoint.state_dict
    return _Shape(
        channels=channels,
        classes=classes,
        filters=tuple(widths),
        normalization="batchnorm" if batch else "instancenorm",
    )


def _convolution(checkpoint: Checkpoint, key: str) -> Tensor:
    value = checkpoint.state_dict.get(key)
    if value is None or value.ndim != 5:
        found = "it is missing" if value is None else f"found {tuple(value.shape)}"
        raise SourceError(
            f"{checkpoint.path}: {key} should be a three-dimensional convolution, {found}; this is not the network of "
            f"{TITLE}, or the file is incomplete"
        )
    return value


# -------------------------------------------------------------------------------------- what is not there


def _side(checkpoint: Checkpoint) -> dict[str, Any]:
    """What our own training wrote beside the weights, if it did."""
    return read_yaml(checkpoint.side_files["segship.yml"]) if "segship.yml" in checkpoint.side_files else {}


def _activation(
    checkpoint: Checkpoint, options: Mapping[str, OptionValue], force: bool
) -> tuple[Activation, list[str]]:
    """Option, else what stands beside the weights or in a TorchScript program, else ReLU."""
    told = _side(checkpoint).get("activation") or checkpoint.about.get("activation")
    if "leaky_relu" in checkpoint.code:
        told = "leaky_relu"
    elif "relu" in checkpoint.code:
        told = "relu"
    if told is not None and told not in ACTIVATIONS:
        raise SourceError(f"{checkpoint.path} names an activation '{told}'; known are {', '.join(ACTIVATIONS)}")
    given = options.get("activation")
    chosen: Any = given or told or "relu"
    if given is None or told in (None, given):
        return chosen, []
    text = f"--activation {given} contradicts what the file says ({told})"
    if not force:
        raise SourceError(f"{checkpoint.path}: {text}; leave it out, or --force to keep yours")
    return chosen, [f"forced: {text}"]


def _choices(checkpoint: Checkpoint, options: Mapping[str, OptionValue]) -> Choices:
    side = _side(checkpoint)
    window = _sides(options.get("window") or side.get("window"), "--window", WINDOW)
    if any(n % SIZE_MULTIPLE for n in window) or window == (SIZE_MULTIPLE,) * 3:
        raise UsageError(
            f"--window {'x'.join(map(str, window))}: every side is a multiple of {SIZE_MULTIPLE}, and {SIZE_MULTIPLE} on "
            "all three leaves a single voxel at the bottom, which instance normalisation cannot take"
        )
    overlap = options.get("overlap", side.get("overlap", OVERLAP))
    values = overlap if isinstance(overlap, tuple) else (overlap,)
    if len(values) != 1 or not 0 <= float(values[0]) < 1:
        raise UsageError(f"--overlap is a part of the window, 0 up to below 1, not {overlap}")
    pad_to = _sides(options.get("pad_to") or side.get("pad_to"), "--pad-to", WINDOW, least=0)
    compat = listed(str(options.get("compat") or ""))
    if set(compat) - {CROP}:
        raise UsageError(f"--compat of a 3D U-Net knows '{CROP}', not '{', '.join(compat)}'")
    borders = options.get("borders") or side.get("borders") or "pad"
    if borders not in BORDERS:
        raise UsageError(f"--borders must be one of {', '.join(BORDERS)}, not '{borders}'")
    return Choices(
        window=window,
        borders=borders,  # type: ignore[arg-type]
        overlap=float(values[0]),
        pad_to=None if 0 in pad_to else pad_to,
        as_stored=bool(options.get("as_stored")),
        crop=CROP in compat,
    )


def _sides(value: Any, flag: str, default: Shape3, least: int = 1) -> Shape3:
    """Three sides from '128', '128x96x96', '128 96 96' or a list."""
    if value is None:
        return default
    try:
        parts = (
            str(value).lower().replace("x", " ").replace(",", " ").split() if isinstance(value, str | int) else value
        )
        sides = [int(part) for part in parts]
    except (TypeError, ValueError):
        sides = []
    sides = sides * 3 if len(sides) == 1 else sides
    if len(sides) != 3 or min(sides) < least or max(sides) > 4096:
        raise UsageError(f"{flag} takes a side or three, such as 128 or 128x96x96, not '{value}'")
    return sides[0], sides[1], sides[2]


def _classes(count: int, options: Mapping[str, OptionValue]) -> tuple[str, ...]:
    given = options.get("class_names")
    if given is None:
        return KITS_CLASSES if count == len(KITS_CLASSES) else tuple(f"class {i + 1}" for i in range(count))
    names = tuple(listed(str(given)))
    if len(names) != count or len(set(names)) != count:
        raise UsageError(f"--class-names needs {count} different names (background apart), got {len(names)}")
    return names


def tiny() -> Source:
    """A small network of seeded weights at 32×64×64 with the whole chain, for the contract suite."""
    torch.manual_seed(7)
    network = Unet3D(1, 3, "instancenorm", "relu", (4, 6, 8, 8, 8)).eval()
    generator = torch.Generator().manual_seed(11)
    state = network.state_dict()
    for key, value in state.items():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim == 5:
            # What comes from below counts for less: 22 layers of a few channels each would add their roundings up.
            share = 0.3 if "upsample_conv" in key else 1.0
            state[key] = share * noise * (2.0 / value[0].numel()) ** 0.5
        elif value.ndim == 1:
            state[key] = (1.0 if key.endswith("weight") else 0.0) + 0.1 * noise
        # Four voxels are left at the bottom, whose statistics carry every rounding up: let them count for less.
        if key.startswith(("bottleneck", "downsample.3", "upsample.0")) and value.ndim == 1:
            state[key] = 0.1 * state[key]
    # Most voxels are background then, and few of them close calls.
    state["output.conv.bias"] = torch.tensor([1.3, 0.0, 0.0])
    network.load_state_dict(state)
    window = (32, 64, 64)
    choices = Choices(window=window, overlap=OVERLAP, pad_to=window, as_stored=False, crop=False)
    recipe = build_recipe(
        name="tiny-unet3d", parameters=parameter_count(network), channels=("CT",),
        classes=KITS_CLASSES, choices=choices, options={"activation": "relu"}, spacing=(0.7, 0.55, 0.55),
    )  # fmt: skip
    return Source(
        network=network, recipe=recipe, input_example_shape=(1, *window), engine_tolerance=ENGINE_TOLERANCE,
        provenance={"framework": "seeded weights, not trained"},
    )  # fmt: skip
