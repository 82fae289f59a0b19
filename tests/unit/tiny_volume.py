"""A package for volumes whose network looks at one voxel: 60 is liver, 120 a tumour, as `nnunet_data` paints them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from volume_recipes import volume_recipe

from segship.manifest import Argmax, Decode, Label, Manifest, Network, Output, Regions, Variant, VolumeInput
from segship.manifest import Channel as InputChannel
from segship.package import Package, write_package

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
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if kind == "labels":
        weights = np.array([2 * STEP * k for k in range(3)]) / 1000
        bias = np.array([-((STEP * k) ** 2) for k in range(3)]) / 1000 - weights * shift
    else:
        weights = np.array([0.2, 0.2])
        bias = -weights * (np.array([0.5, 1.5]) * STEP + shift)
    made = helper.make_graph(
        [helper.make_node("Conv", ["input", "w", "b"], ["logits"])],
        "voxels",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1, 4, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(weights), 4, 4, 4])],
        [
            numpy_helper.from_array(weights.reshape(-1, 1, 1, 1, 1).astype(np.float32), "w"),
            numpy_helper.from_array(bias.astype(np.float32), "b"),
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


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
    variants = tuple(
        Variant(
            precision=precision,  # type: ignore[arg-type]
            graphs={"model": f"graphs/{precision}.onnx"},
            sha256={"model": hashlib.sha256(data).hexdigest()},
            shapes="dynamic", batches=(1,), engines=("openvino",),
        )
        for precision, data in graphs.items()
    )  # fmt: skip
    manifest = Manifest(**recipe.model_dump(), variants=variants)
    files = {f"graphs/{precision}.onnx": data for precision, data in graphs.items()}
    return write_package(path, manifest, files, {"source": {}})
