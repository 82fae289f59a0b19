"""A graph's convolutions by name: which stand at its edges, and which belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from segship.errors import UsageError

MOST_GROUPS = 48
"""blocks that the search for layers to put back tries one by one"""
HEADS = "heads"
FEW = 4
"""a network of so few convolutions has no edges to spare"""
_LAYERS = ("Conv", "ConvTranspose")
_LINEAR = frozenset({"Concat", "Resize", "Identity", "Reshape", "Transpose", "Slice", "Pad"})
"""operators behind which a convolution's numbers are still its own"""
_LAST = frozenset({"Sigmoid", "Softmax"})


def names(model: onnx.ModelProto) -> list[str]:
    """Names of all convolutions in graph order."""
    return [node.name for node in model.graph.node if node.op_type in _LAYERS]


def check_layers(model: onnx.ModelProto, layers: Iterable[str]) -> None:
    """Raise UsageError for a name that is none of the network's convolutions."""
    known = names(model)
    unknown = sorted(set(layers) - set(known))
    if unknown:
        raise UsageError(f"the network has no convolution '{unknown[0]}'; it has {', '.join(known[:6])} …")


def layer_groups(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Convolutions grouped by block, in graph order: 'conv0_0' holds 'conv0_0.conv1' and 'conv0_0.conv2'.

    A block is what the longest prefix of the names gives that leaves at most ``MOST_GROUPS`` of them (U²-Net's 112
    blocks are then its stages); where no prefix does, as many convolutions in a row as it takes.
    """
    found = names(model)
    deepest = max((name.count(".") for name in found), default=0)
    for depth in range(max(deepest, 1), 0, -1):
        groups: dict[str, list[str]] = {}
        for name in found:
            parts = name.split(".")
            groups.setdefault(".".join(parts[: min(depth, max(len(parts) - 1, 1))]), []).append(name)
        if len(groups) <= MOST_GROUPS:
            return {group: tuple(layers) for group, layers in groups.items()}
    step = -(-len(found) // MOST_GROUPS)
    rows = [tuple(found[i : i + step]) for i in range(0, len(found), step)]
    return {f"{row[0]} … {row[-1]}" if len(row) > 1 else row[0]: row for row in rows}


def edge_layers(graphs: Mapping[str, onnx.ModelProto]) -> tuple[str, ...]:
    """The convolutions that int8 leaves in float32 unless told otherwise: the first and the last of the graph.

    Together they are well under 1 % of a network's arithmetic, and their rounding is the one that shows most: the
    first sees inputs whose grey levels are hardly further apart than int8's steps, the last writes the logits.
    """
    found: dict[str, None] = {}
    for graph in graphs.values():
        layers = names(graph)
        if len(layers) > FEW:
            found |= dict.fromkeys((layers[0], layers[-1]))
    return tuple(found)


def search_groups(model: onnx.ModelProto, kept: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
    """What the accuracy search puts back to float32, group by group: ``layer_groups`` without what is kept anyway.

    The heads come first and together. They are little arithmetic (of U²-Net 0.4 %, the six side convolutions) and
    the first that others leave in float; but as their inputs and outputs are as large as the picture, an engine is
    slower by half with them in float32, so they are quantised until accuracy asks for them.
    """
    always = set(kept)
    ends = _heads(model) - always
    heads = tuple(name for name in names(model) if name in ends)
    found = {HEADS: heads} if heads else {}
    for group, layers in layer_groups(model).items():
        left = tuple(layer for layer in layers if layer not in heads)
        if not set(left) <= always:
            found[group] = left
    return found


def _heads(model: onnx.ModelProto) -> set[str]:
    """Convolutions that reach an output through nothing but linear operators and each other, and a final activation."""
    makers = {output: node for node in model.graph.node for output in node.output}
    found: set[str] = set()
    open_ends = [(value.name, True) for value in model.graph.output]
    while open_ends:
        tensor, last = open_ends.pop()
        node = makers.get(tensor)
        if node is None:
            continue
        if node.op_type in _LAYERS and node.name not in found:
            found.add(node.name)
            open_ends.append((node.input[0], False))
        elif node.op_type in _LINEAR or (last and node.op_type in _LAST):
            data = node.input if node.op_type == "Concat" else node.input[:1]
            open_ends += [(name, last and node.op_type not in _LAST) for name in data]
    return found
