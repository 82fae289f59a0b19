"""From a source to the graph that a package holds, and the manifest that describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from segship.convert import onnx_graph, onnx_import
from segship.convert.onnx_join import split_joined
from segship.convert.onnx_sizes import settle_sizes
from segship.engines import SessionOptions, open_session
from segship.errors import EngineError, SourceError, UsageError
from segship.families import Source, onnx_source
from segship.families.onnx_source import OnnxNetwork
from segship.manifest import Executed, Manifest, Recipe, Variant
from segship.package import sha256_bytes

FP32 = "graphs/fp32.onnx"
BATCHES = (1, 3)
"""sizes that a dynamic batch is tried at"""
BATCH_TOLERANCE = 1e-3
"""far above rounding, far below what a wrong batch does"""


def to_onnx(source: Source, batch: int | None = None) -> Any:
    """The source's network as an ``onnx.ModelProto`` with the manifest's names; free where the recipe says so."""
    network = source.recipe.network
    names = [output.name for output in network.outputs]
    if isinstance(source.network, OnnxNetwork):
        return onnx_import.import_graph(
            source.network.model,
            input_name=network.input_name,
            outputs=source.network.outputs,
            output_names=names,
            layer_names=source.network.layer_names,
            size=network.size,
            batch=batch,
        )
    graph = onnx_graph.from_torch(
        source.network,
        source.input_example_shape,
        input_name=network.input_name,
        output_names=names,
        batch=batch,
        size_multiple=network.size_multiple if network.size is None else None,
    )
    graph = settle_sizes(graph)
    return split_joined(graph) if source.sum_joins else graph


def convert(source: Source, batch: int | None) -> tuple[Any, int | None, tuple[str, ...]]:
    """The graph, its fixed batch (None: free) and what is to be said about it.

    A ready-made graph may have its batch of one written into its inside; then it keeps it. UsageError where the user
    asked for another. A network in torch may compute with its batch in a way that fixes it; then its graph is made for one.
    """
    if not isinstance(source.network, OnnxNetwork):
        return _of_torch(source, batch)
    graph = to_onnx(source, batch)
    if takes_batch(source, graph, batch or 2):
        return graph, batch, ()
    fixed = source.network.file.input.shape[0] or 1
    if batch not in (None, fixed):
        raise UsageError(
            f"the graph is made for a batch of {fixed} and does not work with --batch {batch}; leave it out"
        )
    return to_onnx(source, fixed), fixed, (_about_batch(fixed),)


def _of_torch(source: Source, batch: int | None) -> tuple[Any, int | None, tuple[str, ...]]:
    """With its batch free where torch can leave it free, else for one input."""
    try:
        return to_onnx(source, batch), batch, ()
    except SourceError:
        if batch is not None:
            raise
    return to_onnx(source, 1), 1, (_about_batch(1),)


def _about_batch(fixed: int) -> str:
    return f"the graph is made for a batch of {fixed}, and other batches are run piece by piece"


def takes_batch(source: Source, graph: Any, batch: int) -> bool:
    """Whether a graph with its batch changed answers for each input as the original does."""
    network = source.network
    assert isinstance(network, OnnxNetwork)
    x = np.random.default_rng(0).uniform(-2, 2, (batch, *source.input_example_shape)).astype(np.float32)
    with TemporaryDirectory(prefix="segship-") as folder:
        path = onnx_graph.save(graph, Path(folder) / "graph.onnx")
        try:
            session = open_session(onnx_source.ENGINE, path, SessionOptions(precision="fp32"))
            found = session.run(x)
        except EngineError:
            return False
    pairs = list(zip(network(x), found, strict=True))
    return all(a.shape == b.shape and float(np.abs(a - b).max()) <= BATCH_TOLERANCE for a, b in pairs)


def free_size(source: Source) -> Source:
    network = source.network
    if isinstance(network, OnnxNetwork) and None not in network.size:
        raise UsageError(
            f"the graph is made for {network.size[0]}x{network.size[1]} alone; leave --shape dynamic out, or export from "
            "the checkpoint"
        )
    recipe = source.recipe
    free = recipe.model_copy(update={"network": recipe.network.model_copy(update={"size": None})})
    return replace(source, recipe=free)


def able(source: Source, names: list[str], wanted: Sequence[str] | None) -> tuple[list[str], tuple[str, ...]]:
    """The engines that can run this network, and a warning for each other. UsageError where one was asked for."""
    refused = [name for name in names if name in source.unable]
    if wanted and refused:
        raise UsageError(f"{source.unable[refused[0]]}; choose another --engine or --input-size")
    able = [name for name in names if name not in refused]
    if not able:
        raise UsageError(f"{source.unable[refused[0]]}, and no other engine is installed: pip install onnxruntime")
    return able, tuple(f"{source.unable[name]}; left out, run it with --engine {able[0]}" for name in refused)


def first_manifest(
    recipe: Recipe, graph: bytes, batch: int | None, engines: Sequence[str], executed: Sequence[Executed]
) -> Manifest:
    variant = Variant(
        precision="fp32",
        graphs={"model": FP32},
        sha256={"model": sha256_bytes(graph)},
        shapes="dynamic" if batch is None else "static",
        batches=BATCHES if batch is None else (batch,),
        engines=tuple(engines),
        executed=tuple(executed),
    )
    return Manifest(**recipe.model_dump(), variants=(variant,))
