"""The files of one volume's answer: labels in the case's geometry, probabilities in nnU-Net v2's form, a preview."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from segship.inference import writers
from segship.inference.volume_prediction import VolumePrediction
from segship.inference.volumes import Geometry, write_labels
from segship.manifest import VolumeInput


def write_case(
    found: VolumePrediction, output: Path, name: str, ending: str, *, probabilities: bool = False, preview: bool = False
) -> list[Path]:
    """``<name><ending>``, with ``probabilities`` the npz and pkl, with ``preview`` the PNG. Raises OutputError."""
    files = write_labels(output / f"{name}{ending}", found.labels, found.volume)
    if probabilities:
        files.append(writers.write_npz(output / f"{name}.npz", {"probabilities": found.probabilities}))
        content = pickle.dumps(properties_of(found), protocol=4)
        files.append(writers.write_bytes(output / f"{name}.pkl", content))
    if preview:
        files.append(writers.write_png(output / "previews" / f"{name}.png", found.preview()))
    return files


def file_names(name: str, ending: str, probabilities: bool, preview: bool) -> list[str]:
    """Every file that `write_case` may write, relative to its folder with slashes."""
    spacing = [f"{name}.json"] if ending.lower() in (".tif", ".tiff") else []
    scores = [f"{name}.npz", f"{name}.pkl"] if probabilities else []
    return [f"{name}{ending}", *spacing, *scores, *([f"previews/{name}.png"] if preview else [])]


def properties_of(found: VolumePrediction) -> dict[str, Any]:
    """What nnU-Net v2 pickles beside probabilities: builtin types and numpy arrays only.

    Source: MIC-DKFZ/nnUNet: nnunetv2/imageio and preprocessing/preprocessors/default_preprocessor.py.
    """
    spec = found.recipe.input
    assert isinstance(spec, VolumeInput)
    crop = next((step for step in found.frame.moved if step.kind == "crop"), None)
    turn = next((step for step in found.frame.moved if step.kind == "transpose"), None)
    whole = crop.before if crop else turn.after if turn else found.frame.shape
    inside = crop.after if crop else whole
    start = crop.start if crop else (0, 0, 0)
    out: dict[str, Any] = {
        "spacing": [float(s) for s in found.spacing],
        "shape_before_cropping": tuple(whole),
        "bbox_used_for_cropping": [[int(a), int(a + n)] for a, n in zip(start, inside, strict=True)],
        "shape_after_cropping_and_before_resampling": tuple(inside),
    }
    geometry = found.volume.geometry
    if geometry is None or spec.reader in ("image-2d", "tiff-3d"):
        return out
    turned = _turned_affine(geometry)
    if spec.reader.startswith("nibabel"):
        out["nibabel_stuff"] = {"original_affine": np.array(geometry.affine)}
        if turned is not None:
            out["nibabel_stuff"]["reoriented_affine"] = turned
        return out
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ (geometry.affine if turned is None else turned)
    lengths = [math.sqrt(float(np.square(lps[:3, i]).sum())) or 1.0 for i in range(3)]
    out["sitk_stuff"] = {
        "spacing": tuple(lengths),
        "origin": tuple(float(v) for v in lps[:3, 3]),
        "direction": tuple(float(lps[row, i] / lengths[i]) for row in range(3) for i in range(3)),
    }
    if turned is not None:
        out["sitk_stuff"]["original_orientation"] = _directions(geometry.affine)
    return out


def _turned_affine(geometry: Geometry) -> np.ndarray | None:
    """Of the case as it was read, where its axes were turned; None where they stayed the file's."""
    if geometry.turned is None:
        return None
    from nibabel.orientations import inv_ornt_aff

    sides = [0, 0, 0]
    for axis, (new, _) in enumerate(geometry.turned):
        sides[axis] = geometry.shape[int(new)]
    return np.asarray(geometry.affine @ np.linalg.inv(inv_ornt_aff(geometry.turned, sides)))


def _directions(affine: np.ndarray) -> str:
    """'LPS' and the like: where each axis of a file points."""
    from nibabel.orientations import aff2axcodes

    return "".join(str(code) for code in aff2axcodes(affine))
