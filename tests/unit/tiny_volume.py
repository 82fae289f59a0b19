"""A package for volumes whose network looks at one voxel: 60 is liver, 120 a tumour, as `nnunet_data` paints them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tiny_parts import onnx_bytes, variants, write_tiny
from volume_recipes import volume_recipe

from segship.manifest import Argmax, Decode, Label, Manifest, Network, Output, Regions, VolumeInput
from segship.manifest import Channel as InputChannel
from segship.package import Package

STEP = 60.0
LABELS = (
    Label(id=0, name="background", color=(0, 0, 0), ids=(0,)),
    Label(id=1, name="liver", color=(0, 200, 0), ids=(1,)),
    Label(id=2, name="tumour", color=(220, 0, 0), ids=(2,)),
)
REGIONS = (
    Label(id=0, name="background", color=(0, 0, 0), ids=(0,)),
    Label(id=1, name="whole", color=(0, 200, 0), ids=(1, 2)),
    Label(id=2, name="tumour", color=(220, 0, 0), ids=(2,)),
)


def graph(kind: str, shift: float = 0.0) -> bytes:
    """ONNX bytes. labels: the nearest of 0, 60, 120 wins; regions: above 30, above 90. ``shift`` moves the borders."""
    from onnx import helper

    if kind == "labels":
        weights = np.array([2 * STEP * k for k in range(3)]) / 1000
        bias = np.array([-((STEP * k) ** 2) for k in range(3)]) / 1000 - weights * shift
    else:
        weights = np.array([0.2, 0.2])
        bias = -weights * (np.array([0.5, 1.5]) * STEP + shift)
    return onnx_bytes(
        [helper.make_node("Conv", ["input", "w", "b"], ["logits"])],
        {"input": ["n", 1, 4, 4, 4]},
        {"logits": ["n", len(weights), 4, 4, 4]},
        {"w": weights.reshape(-1, 1, 1, 1, 1), "b": bias},
    )


def volume_package(
    path: Path, kind: str = "labels", *, shift: float = 25.0, reader: str = "simpleitk", **changes: Any
) -> Package:
    """Written to ``path``: fp32, and an 'int8' whose borders lie ``shift`` grey levels higher."""
    graphs = {"fp32": graph(kind), "int8": graph(kind, shift)}
    outputs = 3 if kind == "labels" else 2
    recipe = volume_recipe(
        name="Dataset003_Liver_3d",
        input=VolumeInput(
            reader=reader,  # type: ignore[arg-type]
            channels=(InputChannel(name="CT"),), file_ending=".nii.gz", channel_files="suffix-0000",
        ),
        network=Network(
            architecture="one voxel", parameters=6, input_name="input", layout="NCDHW", input_channels=1, size=(4, 4, 4),
            size_multiple=(1, 1, 1), outputs=(Output(name="logits", channels=outputs, values="logits"),),
            members=("model",),
        ),
        decode=Decode(
            activation="softmax" if kind == "labels" else "sigmoid",
            decision=Argmax() if kind == "labels" else Regions(threshold=0.5, order=(1, 2)),
            restore_what="logits", restore_method="skimage:edge",
        ),
        labels=LABELS if kind == "labels" else REGIONS,
        options={"version": 2, "folds": "0"},
        **changes,
    )  # fmt: skip
    return write_tiny(path, Manifest(**recipe.model_dump(), variants=variants(graphs)), graphs)
