"""Packages of whole networks without the proof that `segship export` adds: that is tested elsewhere and takes its time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpp_cases import METRIC, labels, tiling, variant, volume_input

from segship.convert import onnx_graph
from segship.convert.export_volume import graph_name, graphs
from segship.convert.source_graph import FP32, first_manifest, to_onnx
from segship.families import Source
from segship.manifest import Argmax, Decode, Manifest, Network, Output
from segship.package import Package, sha256_bytes, write_package


def picture_source(source: Source, path: Path, graph: bytes | None = None, **changes: Any) -> Package:
    """A source for pictures; ``changes`` replace fields of its recipe, ``graph`` spares a second conversion."""
    data = graph or onnx_graph.serialise(to_onnx(source))
    recipe = source.recipe.model_copy(update=changes)
    return write_package(path, first_manifest(recipe, data, None, ["openvino"], ()), {FP32: data}, {})


def volume_source(source: Source, path: Path, **changes: Any) -> Package:
    """A source for volumes, every member in fp32."""
    made = graphs(source, None)
    files = {graph_name(member, len(made)): data for member, data in made.items()}
    named = variant(made).model_copy(
        update={
            "graphs": {member: graph_name(member, len(made)) for member in made},
            "sha256": {member: sha256_bytes(data) for member, data in made.items()},
        }
    )
    recipe = source.recipe.model_copy(update=changes)
    return write_package(path, Manifest(**recipe.model_dump(), variants=(named,)), files, {})


def bare_network(network: torch.nn.Module, x: np.ndarray, path: Path) -> tuple[Package, np.ndarray]:
    """A network for pictures or volumes as a package that takes prepared arrays, and ``x`` (N, C, …) as such a case.

    The batch of a network for pictures becomes the slices of one case. The first output is the answer.
    """
    axes, sides = x.ndim - 2, tuple(x.shape[2:])
    with torch.inference_mode():
        outputs = network.eval()(torch.from_numpy(x[:1]))
    several = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    names = [f"y{k}" for k in range(len(several))]
    graph = onnx_graph.serialise(
        onnx_graph.from_torch(network, x.shape[1:], input_name="x", output_names=names, batch=None, size_multiple=None)
    )
    classes = int(several[0].shape[1])
    recipe = {
        "name": "bare", "family": "test", "preprocess": (), "metric": METRIC, "labels": labels(max(2, classes)),
        "input": volume_input("nibabel-stored", channels=x.shape[1], channel_files="one-file"),
        "network": Network(
            architecture="bare", parameters=1, input_name="x", layout="NCHW" if axes == 2 else "NCDHW",
            input_channels=x.shape[1], size=sides, size_multiple=(1,) * axes, members=("model",),
            outputs=tuple(
                Output(name=name, channels=int(y.shape[1]), values="logits") for name, y in zip(names, several, strict=True)
            ),
        ),
        "tiling": tiling(sides, step=sides, weighting="uniform", gaussian_sigma_scale=None),
        "decode": Decode(
            activation="softmax", decision=Argmax(), restore_what="logits", restore_method="skimage:edge"
        ),
    }  # fmt: skip
    manifest = Manifest(**recipe, variants=(variant({"model": graph}),))  # type: ignore[arg-type]
    package = write_package(path, manifest, {"graphs/fp32.model.onnx": graph}, {})
    case = x.transpose(1, 0, 2, 3) if axes == 2 else x[0]
    return package, np.ascontiguousarray(case)
