"""Small nnU-Net data sets on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np

AFFINE = np.diag([-1.5, -1.0, 2.0, 1.0])


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """An array (z, y, x) as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array.T), affine), path)  # type: ignore[no-untyped-call]
    return path


def write_png(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def blob(seed: int, shape: tuple[int, ...] = (5, 12, 14)) -> np.ndarray:
    """Labels 0, 1 and 2: a box of 2 inside a box of 1."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    start = random.integers(0, 3, 3)
    labels[1:4, start[1] : start[1] + 8, start[2] : start[2] + 9] = 1
    labels[2:3, start[1] + 2 : start[1] + 5, start[2] + 3 : start[2] + 6] = 2
    return labels


def raw_data(root: Path, cases: Sequence[str] = ("liver_1", "liver_2", "liver_3"), channels: int = 1) -> Path:
    """imagesTr, labelsTr and dataset.json as v2 keeps them; an image is its labels and some noise."""
    for seed, case in enumerate(cases):
        labels = blob(seed)
        for channel in range(channels):
            noise = np.random.default_rng([seed, channel]).normal(0, 5, labels.shape)
            write_nifti(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz", (labels * 60 + noise).astype(np.int16))
        write_nifti(root / "labelsTr" / f"{case}.nii.gz", labels)
    write_json(
        root / "dataset.json",
        {
            "channel_names": {str(n): f"channel {n}" for n in range(channels)},
            "labels": {"background": 0, "liver": 1, "tumour": 2},
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
        },
    )
    return root


def decathlon(root: Path, cases: Sequence[str] = ("la_003", "la_004")) -> Path:
    for seed, case in enumerate(cases):
        labels = (blob(seed) > 0).astype(np.uint8)
        write_nifti(root / "imagesTr" / f"{case}.nii.gz", labels.astype(np.float32) * 100)
        write_nifti(root / "labelsTr" / f"{case}.nii.gz", labels)
        (root / "imagesTr" / f"._{case}.nii.gz").write_bytes(b"what a Mac leaves in an archive")
    listed = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases]
    write_json(
        root / "dataset.json",
        {
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "left atrium"},
            "training": listed,
            "test": ["./imagesTs/la_001.nii.gz"],
        },
    )
    return root
