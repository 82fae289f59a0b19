"""What every family does in the same way: side files, filling a network, names and labels of a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from segship.errors import SourceError, UsageError
from segship.families.checkpoint import Checkpoint
from segship.families.options import ALL_OUTPUTS as ALL_OUTPUTS  # other packages' families take them from here
from segship.families.options import CLASS_NAMES as CLASS_NAMES
from segship.families.options import INPUT_SIZE as INPUT_SIZE
from segship.families.options import MEAN as MEAN
from segship.families.options import STD as STD
from segship.families.options import Option as Option
from segship.manifest import Channel, ImageInput, Label

MAX_YAML_BYTES = 1 << 20
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""per channel R, G, B in 0..1"""
COLORS = ((0, 200, 0), (220, 40, 40), (50, 90, 240), (240, 200, 0), (200, 0, 200), (0, 200, 220), (255, 128, 0))


def read_yaml(path: Path) -> dict[str, Any]:
    """A small YAML mapping, safely. Raises SourceError for anything else."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise SourceError(f"{path} is larger than any real one; remove it or give the options by hand")
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise SourceError(
            f"{path} cannot be read as YAML ({line}); correct it, or move it away and give options"
        ) from error
    if not isinstance(loaded, dict):
        raise SourceError(f"{path} is not a mapping of options; move it away if it belongs to something else")
    return {str(key): value for key, value in loaded.items()}


def fill_network(network: nn.Module, checkpoint: Checkpoint, known: set[str], title: str) -> list[str]:
    """Load the checkpoint's tensors, as float32, into a network; returns warnings.

    ``known`` are all keys that may be there without being needed (those of branches left out). Raises
    SourceError naming the first key that is missing, has another shape, or is not finite.
    """
    state, halved = {}, []
    for key, expected in network.state_dict().items():
        value = checkpoint.state_dict.get(key)
        if value is None and key.endswith("num_batches_tracked"):
            value = expected  # written since PyTorch 0.4.1 only, and not used in evaluation
        if value is None or value.shape != expected.shape:
            found = "it is missing" if value is None else f"found {tuple(value.shape)}"
            raise SourceError(
                f"{checkpoint.path}: {key} should be {tuple(expected.shape)}, {found}; "
                f"this is not the network of {title}, or the file is incomplete"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise SourceError(
                f"{checkpoint.path}: {key} holds NaN or infinity; training diverged, take an earlier checkpoint"
            )
        if _is_norm(key, network) and value.dtype in (torch.float16, torch.bfloat16):
            halved.append(key)
        state[key] = value.to(expected.dtype)
    network.load_state_dict(state)
    warnings = []
    if halved:
        warnings.append(
            f"{len(halved)} batch-norm tensors are stored in half precision; variances near its eps are rounded, which "
            "costs accuracy that no export brings back: store batch norm as float32 (convolutions may stay fp16)"
        )
    extra = sorted(set(checkpoint.state_dict) - known)
    if extra:
        warnings.append(f"ignored {len(extra)} tensors that the network does not have: {', '.join(extra[:3])}")
    return warnings


def seed_weights(network: nn.Module, seed: int, *, gain: float, scales: str) -> None:
    """Seeded weights whose activations neither die out nor blow up, for the tiny networks of the contract suite.

    ``gain`` is that of the convolutions' variance over their inputs; keys that end in ``scales`` lie around 1, other
    vectors around 0.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in network.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if key.endswith("running_var"):
            state[key] = 1 + 0.2 * noise.abs()
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1000)
        elif value.ndim == 4:
            state[key] = noise * (gain / value[0].numel()) ** 0.5
        else:
            state[key] = (1.0 if key.endswith(scales) else 0.0) + 0.1 * noise
    network.load_state_dict(state)


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _is_norm(key: str, network: nn.Module) -> bool:
    module = network.get_submodule(key.rsplit(".", 1)[0]) if "." in key else network
    return isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)


def listed(text: str) -> list[str]:
    """'a, b' -> ['a', 'b']"""
    return [part.strip() for part in text.split(",") if part.strip()]


def package_name(checkpoint: Checkpoint, said: str | None, generic: Sequence[str] = ("model",)) -> str:
    """A manifest name: what a side file said, else the file's stem, or its folder's name where the stem is generic."""
    stem = checkpoint.path.stem
    return manifest_name(said or (checkpoint.path.resolve().parent.name if stem in generic else stem))


def manifest_name(name: str) -> str:
    """A name that a manifest takes: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:100] or "network"


def class_labels(classes: int, names: str | None, default: Sequence[str]) -> tuple[Label, ...]:
    """Labels 1, 2 … of independent classes; ``names`` comma-separated. UsageError for a wrong number of names."""
    given = listed(names) if names is not None else list(default)
    if len(given) != classes or len(set(given)) != classes:
        raise UsageError(f"--class-names needs {classes} different names, got {len(given)}")
    return tuple(Label(id=i + 1, name=name, color=COLORS[i % len(COLORS)]) for i, name in enumerate(given))


def channel_constants(
    given: Any, default: tuple[float, ...], channels: int, flag: str, *, positive: bool = False
) -> tuple[float, ...]:
    """One number a channel from an option, or the first of the defaults. UsageError naming the flag."""
    values = default[:channels] if given is None else tuple(float(v) for v in given)
    finite = all(abs(v) < float("inf") and v == v and (v > 0 or not positive) for v in values)
    if len(values) != channels or not finite:
        kind = "positive" if positive else "finite"
        raise UsageError(f"{flag} needs {channels} {kind} numbers, one per channel, not {', '.join(map(str, values))}")
    return values


def opencv_input(channels: int, *, rgb: bool) -> ImageInput:
    """Pictures as OpenCV reads them, turned by their EXIF rotation: grey for one channel, else R, G, B or B, G, R."""
    if channels == 1:
        return ImageInput(
            reader="opencv:grey", channels=(Channel(name="grey"),), channel_order="grey", exif_rotation="apply"
        )
    return ImageInput(
        reader="opencv:color",
        channels=tuple(Channel(name=letter) for letter in ("RGB" if rgb else "BGR")),
        channel_order="rgb" if rgb else "bgr",
        exif_rotation="apply",
    )


def contradictions(config: Mapping[str, Any], said_by_weights: Mapping[str, Any], file: str) -> list[str]:
    """Warnings for entries of a side file that the tensors contradict; the tensors win."""
    return [
        f"{file} says {key}: {config[key]}, the weights say {value}; the weights are believed"
        for key, value in said_by_weights.items()
        if key in config and config[key] != value
    ]
