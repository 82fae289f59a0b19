"""U²-Net and U²-NetP: salient objects, people, portraits, background removal (xuebinqin/U-2-Net).

The weights say which of the two networks it is; how it is used (``u2net_recipe``) is an option, recorded in the
manifest, because the mask moves by several percent of full scale between the ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from segship.errors import SourceError
from segship.families import OptionValue, Source
from segship.families.checkpoint import Checkpoint
from segship.families.common import fill_network, package_name, parameter_count, seed_weights
from segship.families.u2net_onnx import LOOKS_FOR_ONNX, load_onnx, recognise_onnx
from segship.families.u2net_options import OPTIONS
from segship.families.u2net_recipe import (
    build_chain,
    build_recipe,
    choose_recipe,
    label_name,
    readings,
    unable,
    usage_warnings,
)
from segship.manifest import Recipe
from segship.networks.u2net import SIDES, U2NET, U2NETP, uniform

__all__ = ["LOOKS_FOR", "LOOKS_FOR_ONNX", "NAME", "OPTIONS", "load", "load_onnx", "recognise", "recognise_onnx", "tiny"]

NAME = "u2net"
TITLE = "xuebinqin/U-2-Net (U2NET or U2NETP)"
LOOKS_FOR = "stage1.rebnconvin.conv_s1.weight and outconv.weight (U2NET or U2NETP)"

FIRST, INNER, LAST = "stage1.rebnconvin.conv_s1.weight", "stage1.rebnconv1.conv_s1.weight", "outconv.weight"


def recognise(checkpoint: Checkpoint) -> bool:
    """By the first convolution's and the fusing convolution's names; derived networks lack the second."""
    return {FIRST, LAST} <= checkpoint.state_dict.keys()


def load(checkpoint: Checkpoint, options: Mapping[str, OptionValue], *, force: bool = False) -> Source:
    """Network and recipe of a checkpoint. Raises SourceError for other tensors, UsageError for options that do not fit."""
    kind, classes = _read_shape(checkpoint)
    network = kind(3, classes, all_outputs=bool(options.get("all_outputs")))
    warnings = fill_network(network, checkpoint, set(network.state_dict()), TITLE)
    recipe_name, found_in = choose_recipe(options, checkpoint.path.stem, "upstream")
    parameters = parameter_count(network)
    names = options.get("class_names")

    def make(name: str) -> Recipe:
        return build_recipe(
            package_name(checkpoint, None),
            build_chain(name, options, classes),
            architecture=kind.__name__,
            parameters=parameters,
            classes=classes,
            outputs=SIDES + 1 if network.all_outputs else 1,
            record={"recipe_from": found_in},
            label=label_name(checkpoint.path.stem),
            class_names=None if names is None else str(names),
        )

    recipe = make(recipe_name)
    size = recipe.network.size
    assert size is not None
    source = Source(
        network=network.eval(),
        recipe=recipe,
        input_example_shape=(3, *size),
        provenance={
            "framework": "PyTorch, xuebinqin/U-2-Net",
            "checkpoint": checkpoint.record(),
            "recipe": recipe_name,
        },
        warnings=(*warnings, *usage_warnings(recipe_name, found_in, size, classes)),
        unable=unable(size),
    )
    return replace(source, alternatives=readings(source, make))


def tiny() -> Source:
    """A narrow network of the same shape (112 blocks) with seeded weights at 64×64, for tests that run every engine."""
    network = U2NET(3, 1, all_outputs=False, widths=uniform(8, 16))
    seed_weights(network, 29, gain=1.6, scales="bn_s1.weight")
    chain = build_chain("upstream", {"input_size": (64, 64)}, 1)
    recipe = build_recipe(
        "tiny-u2net", chain, architecture="U2NET", classes=1, outputs=1, record={},
        parameters=parameter_count(network),
    )  # fmt: skip
    return Source(
        network=network.eval(), recipe=recipe, input_example_shape=(3, 64, 64),
        provenance={"framework": "seeded weights, not trained"},
    )  # fmt: skip


def _read_shape(checkpoint: Checkpoint) -> tuple[type[U2NET], int]:
    tensors: Mapping[str, Any] = checkpoint.state_dict
    first, inner, last = tensors.get(FIRST), tensors.get(INNER), tensors.get(LAST)
    if first is None or last is None or inner is None or not first.ndim == inner.ndim == last.ndim == 4:
        raise SourceError(f"{checkpoint.path} looks like U²-Net but lacks {INNER}; save the whole state_dict")
    kinds = {32: U2NET, 16: U2NETP}
    if inner.shape[0] not in kinds:
        raise SourceError(
            f"{checkpoint.path}: {INNER} is {tuple(inner.shape)}, where U²-Net has (32, 64, 3, 3) and U²-NetP "
            "(16, 64, 3, 3); a network of other widths is not known"
        )
    if first.shape[1] != 3:
        raise SourceError(
            f"{checkpoint.path}: the network takes {first.shape[1]} channels; colour pictures have 3, and Lab inputs "
            "(ToTensorLab flag 1 or 2) are not run here"
        )
    classes = int(last.shape[0])
    if not 1 <= classes <= 64:
        raise SourceError(f"{checkpoint.path}: {classes} output channels are no real network's")
    return kinds[int(inner.shape[0])], classes
