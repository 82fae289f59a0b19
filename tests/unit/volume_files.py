"""NIfTI files of every kind for tests, and the named readers as their own libraries give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from segship.manifest import Channel, VolumeInput


def rotation(z: float = 0.3, x: float = -0.2) -> np.ndarray:
    cz, sz, cx, sx = np.cos(z), np.sin(z), np.cos(x), np.sin(x)
    return np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])


def affine(kind: str) -> np.ndarray:
    """A 4 × 4 affine: oblique, flipped (with axes exchanged), anisotropic, plain."""
    out = np.eye(4)
    if kind == "oblique":
        out[:3, :3] = rotation() * [1.3, 0.9, 3.1]
    elif kind == "flipped":
        out[:3, :3] = np.array([[0, 0, -1.5], [-0.8, 0, 0], [0, -0.8, 0]])
    elif kind == "anisotropic":
        out[:3, :3] = np.diag([0.8, 0.8, 5.0])
    out[:3, 3] = (-12.5, 40.25, 7.0)
    return out


AFFINES = ("plain", "oblique", "flipped", "anisotropic")


def write_nifti(
    path: Path,
    kind: str = "plain",
    shape: tuple[int, ...] = (6, 5, 4),
    dtype: str = "i2",
    slope: tuple[float, float] | None = None,
    seed: int = 0,
    version: int = 1,
    **fields: Any,
) -> Path:
    """A file of random numbers; ``fields`` are set in the header."""
    values = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    image = (nib.Nifti1Image if version == 1 else nib.Nifti2Image)(values, affine(kind), dtype=values.dtype)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"made for a test"
    if slope is not None:
        image.header.set_slope_inter(*slope)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def volume_input(reader: str = "nibabel", channels: int = 1, **changes: Any) -> VolumeInput:
    settings: dict[str, Any] = {
        "reader": reader,
        "channels": tuple(Channel(name=f"c{k}") for k in range(channels)),
        "file_ending": ".nii.gz",
        "channel_files": "suffix-0000",
    }
    return VolumeInput(**{**settings, **changes})


def by_nibabel(path: Path) -> tuple[np.ndarray, list[float]]:
    image = nib.load(path)
    return np.asarray(image.get_fdata().T, np.float32)[None], [float(z) for z in image.header.get_zooms()[::-1]]


def by_nibabel_reoriented(path: Path) -> tuple[np.ndarray, list[float]]:
    image = nib.load(path)
    turned = image.as_reoriented(nib.io_orientation(image.affine))
    return np.asarray(turned.get_fdata().T, np.float32)[None], [float(z) for z in turned.header.get_zooms()[::-1]]


def by_simpleitk(path: Path, orientation: str | None = None) -> tuple[np.ndarray, list[float]]:
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    if orientation:
        image = SimpleITK.DICOMOrient(image, orientation)
    array = SimpleITK.GetArrayFromImage(image).astype(np.float32)
    spacing = [abs(s) for s in image.GetSpacing()[::-1]]
    if array.ndim == 2:
        return array[None, None], [max(spacing) * 999, *spacing]
    return (array, spacing[1:]) if array.ndim == 4 else (array[None], spacing)
