"""Ready-made ONNX files of U²-Net, as rembg's users have them: recognised by their graph, used as they are.

Published files: danielgatis/rembg, sessions/u2net.py, u2netp.py, u2net_human_seg.py, u2net_cloth_seg.py, silueta.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import onnx
import torch
from torch import nn

from segship.errors import SourceError, UsageError
from segship.families import OptionValue, Source
from segship.families.common import manifest_name
from segship.families.onnx_source import HALF_PIXEL_OPSET, OnnxFile, OnnxNetwork, is_finite
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
from segship.networks.u2net import SIDES, U2NET, U2NETP

LOOKS_FOR_ONNX = (
    "3 channels in and seven maps of one size out, the fused one first, or the 119 convolutions of U2NET or U2NETP"
)
PUBLISHED = {
    "60024c5c889badc19c04ad937298a77b": "u2net.onnx",
    "8e83ca70e441ab06c318d82300c84806": "u2netp.onnx",
    "c09ddc2e0104f800e3e1bb4652583d1f": "u2net_human_seg.onnx",
    "2434d1f3cb744e0e49386c906e5a08bb": "u2net_cloth_seg.onnx",
    "55e59e0d8062d2f5d013f4725ee84782": "silueta.onnx",
}
"""md5 -> file that rembg downloads (its source gives them by md5)"""
CLOTHES = "background,upper body,lower body,full body"
_OPERATORS = {"Conv", "MaxPool", "Concat"}
_OUTPUTS = SIDES + 1


def recognise_onnx(file: OnnxFile) -> bool:
    """By its convolutions, or by seven maps of one shape out of a graph that pools and joins."""
    if file.input.shape[1] not in (3, None) or not file.operators().keys() >= _OPERATORS:
        return False
    shapes = {port.shape for port in file.outputs}
    seven = len(file.outputs) == _OUTPUTS and len(shapes) == 1 and len(next(iter(shapes))) in (0, 4)
    return seven or _architecture(file) is not None


def load_onnx(file: OnnxFile, options: Mapping[str, OptionValue], *, force: bool = False) -> Source:
    """The graph as it is, with a recipe. Raises SourceError for another graph, UsageError for options that do not fit."""
    classes = _classes(file)
    values = _values(file, classes)
    name = PUBLISHED.get(file.md5, file.path.name)
    stem = name.removesuffix(".onnx")
    recipe_name, found_in = choose_recipe(options, stem, "rembg")
    options = {**options, **_fixed_size(file, options)}
    names = options.get("class_names")
    outputs = tuple(range(len(file.outputs))) if options.get("all_outputs") else (0,)
    found = _architecture(file)
    architecture, layers = found if found is not None else ("U2NET, other widths", ())

    def make(name: str) -> Recipe:
        return build_recipe(
            manifest_name(file.path.stem),
            build_chain(name, options, classes),
            architecture=architecture,
            parameters=file.parameters(),
            classes=classes,
            outputs=len(outputs),
            record={"recipe_from": found_in},
            label=label_name(stem),
            class_names=str(names)
            if names is not None
            else CLOTHES
            if "cloth" in stem.lower() and classes == 4
            else None,
            values=values,
        )

    recipe = make(recipe_name)
    size = recipe.network.size
    assert size is not None
    source = Source(
        network=OnnxNetwork(file, outputs, layers),
        recipe=recipe,
        input_example_shape=(3, *size),
        provenance={
            "framework": "ONNX",
            "checkpoint": file.record(),
            "recipe": recipe_name,
            "published_as": PUBLISHED.get(file.md5),
        },
        warnings=(*_warnings(file), *usage_warnings(recipe_name, found_in, size, classes)),
        notes=_notes(file),
        unable=unable(size),
    )
    return replace(source, alternatives=readings(source, make))


def _notes(file: OnnxFile) -> tuple[str, ...]:
    if file.md5 in PUBLISHED:
        return (f"{file.path.name} is rembg's {PUBLISHED[file.md5]}: its md5 {file.md5} is the published one",)
    return ()


def _warnings(file: OnnxFile) -> list[str]:
    found = []
    if file.opset < HALF_PIXEL_OPSET:
        found.append(
            f"the file is ONNX opset {file.opset}, in which enlarging follows another rule than in training: the package "
            "gives this file's masks, not quite those of the checkpoint it was made from"
        )
    published = {name: md5 for md5, name in PUBLISHED.items()}.get(file.path.name)
    if published not in (None, file.md5):
        found.append(
            f"{file.path.name} has the name of a file that rembg publishes but not its md5 ({file.md5}, published "
            f"{published}): it is another version, or was changed"
        )
    return found


@cache
def _layers(kind: type[U2NET], classes: int) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Names and kernel shapes of a network's convolutions, in the order in which they run."""
    with torch.device("meta"):
        network = kind(3, classes)
    found = [(name, tuple(m.weight.shape)) for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    return tuple(name for name, _ in found), tuple(shape for _, shape in found)


def _architecture(file: OnnxFile) -> tuple[str, tuple[str, ...]] | None:
    """(architecture, names of its convolutions in graph order); None for a graph of other widths."""
    kernels = tuple(file.kernels())
    if not kernels or len(kernels[-1]) != 4:
        return None
    for kind in (U2NET, U2NETP):
        names, shapes = _layers(kind, kernels[-1][0])
        if kernels == shapes:
            return kind.__name__, names
    return None


def _classes(file: OnnxFile) -> int:
    """Channels of the fused map. SourceError where the outputs are no maps."""
    port = file.outputs[0]
    shape = port.shape
    if (len(shape) == 4 and shape[1] is None) or not shape:
        inferred = onnx.shape_inference.infer_shapes(file.model).graph.output[0].type.tensor_type.shape.dim
        shape = tuple(dim.dim_value or None for dim in inferred)
    if len(shape) != 4 or shape[1] is None or port.type != "float32" or not 1 <= shape[1] <= 64:
        raise SourceError(
            f"{file.path}: its first output is {port}, not a float32 map (N, classes, H, W); this is no U²-Net as exported"
        )
    if any(
        known is not None and known != wanted for known, wanted in zip(shape[2:], file.input.shape[2:], strict=True)
    ):
        raise SourceError(f"{file.path}: its first output {port} has another size than its input {file.input}")
    if not is_finite(file.model):
        raise SourceError(f"{file.path} holds NaN or infinite weights; take another copy or an earlier checkpoint")
    return shape[1]


def _values(file: OnnxFile, classes: int) -> str:
    """'probabilities' after a Sigmoid. Several classes may come raw, since only the largest counts."""
    producers = {output: node for node in file.model.graph.node for output in node.output}
    node = producers.get(file.outputs[0].name)
    while node is not None and node.op_type in ("Identity", "Cast", "Clip"):
        node = producers.get(node.input[0])
    if node is not None and node.op_type == "Sigmoid":
        return "probabilities"
    if classes > 1:
        return "logits"
    last = "nothing" if node is None else node.op_type
    raise SourceError(
        f"{file.path}: its first output comes from {last}, not from a Sigmoid, so it is no map of 0..1; the fused map must "
        "be the first output"
    )


def _fixed_size(file: OnnxFile, options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
    """The size that the graph insists on, as an option; nothing where it is free."""
    height, width = file.input.shape[2:]
    if height is None or width is None:
        return {}
    if options.get("input_size") not in (None, (height, width)):
        raise UsageError(
            f"{file.path} takes {height}x{width} pixels only; leave --input-size out or export from the .pth"
        )
    return {"input_size": (height, width)}
