"""A small valid manifest and package for unit tests, without any engine or network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segship.manifest import Manifest
from segship.package import Package, golden_files, sha256_bytes, write_package

GRAPH = b"not a real graph, only bytes with a hash"


def manifest_data(**changes: Any) -> dict[str, Any]:
    """Manifest content as plain data: one class, BGR, 32x32, fp32 only."""
    data: dict[str, Any] = {
        "manifest_version": 1,
        "name": "tiny",
        "family": "unetplusplus",
        "input": {
            "kind": "image",
            "reader": "opencv:color",
            "channels": [{"name": "B"}, {"name": "G"}, {"name": "R"}],
            "channel_order": "bgr",
            "exif_rotation": "apply",
        },
        "preprocess": [
            {"step": "resize", "height": 32, "width": 32, "method": "opencv:linear"},
            {"step": "normalize", "subtract": [123.675, 116.28, 103.53], "multiply": [0.017, 0.0175, 0.0174]},
            {"step": "divide", "by": 255.0},
        ],
        "network": {
            "architecture": "test",
            "parameters": 1,
            "input_name": "x",
            "layout": "NCHW",
            "input_channels": 3,
            "size": [32, 32],
            "size_multiple": [16, 16],
            "outputs": [{"name": "y", "channels": 1, "values": "logits"}],
            "members": ["model"],
        },
        "decode": {
            "activation": "sigmoid",
            "decision": {"rule": "threshold", "threshold": 0.5},
            "restore_what": "probabilities",
            "restore_method": "opencv:linear",
        },
        "labels": [{"id": 1, "name": "nucleus", "color": [255, 170, 0]}],
        "metric": {"name": "iou", "scorer": "nuclei", "higher_is_better": True, "grid": "network"},
        "variants": [
            {
                "precision": "fp32",
                "graphs": {"model": "graphs/fp32.onnx"},
                "sha256": {"model": sha256_bytes(GRAPH)},
                "shapes": "dynamic",
                "batches": [1],
                "engines": ["fake"],
            }
        ],
    }
    data.update(changes)
    return data


def tiny_package(path: Path, *, folder: bool = False, golden: bool = True) -> Package:
    files: dict[str, bytes | Path] = {"graphs/fp32.onnx": GRAPH}
    if golden:
        import numpy as np

        files.update(golden_files("cell.png", b"png bytes", True, {"read": (np.zeros((4, 4, 3)), 0.0)}))
    manifest = Manifest.model_validate(manifest_data())
    return write_package(path, manifest, files, {"source": {"sha256": "0" * 64}}, folder=folder)
