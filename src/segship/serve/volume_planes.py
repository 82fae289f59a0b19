"""Axial, coronal and sagittal planes of a case and its labels, as a page shows them.

Both are kept as uint8 or uint16 files (z, y, x) turned so that x runs to the patient's left, y to the back and z to the
head; a plane is then cut out of the mapped file. Planes lie as radiologists look at them: the patient's right side on
the left, in axial planes the front above, in the others the head above, sagittal planes with the front on the left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segship.inference.volume_prediction import VolumePrediction
from segship.inference.volumes import Geometry, Volume
from segship.inference.writers import encode_png

PlaneName = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[PlaneName, ...] = ("axial", "coronal", "sagittal")
_EDGES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
"""what lies at the left, right, upper and lower edge"""
_SAMPLE = 200_000
"""voxels that are looked at to choose the brightness"""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One direction to cut in."""

    name: PlaneName
    slices: int
    width: int
    height: int
    pixel_mm: tuple[float, float]
    """from one pixel to the next: across, down"""
    slice_mm: float
    start: int
    """the slice that shows most of the answer; the middle where there is none"""
    edges: str
    """four letters: what lies left, right, above, below; empty where the file does not say"""

    def about(self) -> dict[str, Any]:
        return {
            "slices": self.slices, "width": self.width, "height": self.height, "pixel_mm": list(self.pixel_mm),
            "slice_mm": self.slice_mm, "start": self.start, "edges": self.edges,
        }  # fmt: skip


def write_planes(found: VolumePrediction, folder: Path) -> tuple[Plane, ...]:
    """Keep what `cut` needs in ``folder``; the planes that the case has (a single slice has one)."""
    volume = found.volume
    turn, spacing, known = _turn(volume)
    labels = np.ascontiguousarray(turn(found.labels))
    np.save(folder / "labels.npy", labels)
    for number, channel in enumerate(volume.channels):
        np.save(folder / f"channel_{number}.npy", np.ascontiguousarray(turn(_in_8_bits(channel))))
    z, y, x = labels.shape
    shape = {"axial": (z, y, x), "coronal": (y, z, x), "sagittal": (x, z, y)}
    axes = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
    counts = _foreground(labels)
    planes = []
    for name in PLANES if z > 1 else PLANES[:1]:
        slices, height, width = shape[name]
        through, down, across = axes[name]
        best = counts[through]
        planes.append(
            Plane(
                name=name,
                slices=slices,
                width=width,
                height=height,
                pixel_mm=(spacing[across], spacing[down]),
                slice_mm=spacing[through],
                start=int(best.argmax()) if best.any() else slices // 2,
                edges=_EDGES[name] if known else "",
            )
        )
    return tuple(planes)


def disk_bytes(channels: int, voxels: int) -> int:
    """What `write_planes` will write, at most."""
    return (channels + 2) * voxels + 4096


def cut(folder: Path, plane: PlaneName, index: int, channel: int = 0) -> bytes:
    """One plane as a PNG: red is the brightness, green and blue are the label's low and high byte."""
    shown = _slice(folder / f"channel_{channel}.npy", plane, index)
    labels = _slice(folder / "labels.npy", plane, index)
    rgb = np.stack([shown, (labels & 255).astype(np.uint8), (labels >> 8).astype(np.uint8)], axis=2)
    return encode_png(rgb)


def _slice(path: Path, plane: PlaneName, index: int) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if plane == "axial":
        return np.array(array[index])
    return np.array(array[::-1, index] if plane == "coronal" else array[::-1, :, index])


def _turn(volume: Volume) -> tuple[Any, tuple[float, float, float], bool]:
    """How an array on the case's grid comes to lie, its spacing then, and whether the file says where it lies."""
    geometry = volume.geometry
    ways = None if geometry is None or len(geometry.shape) != 3 else _to_patient(geometry)
    if geometry is None or ways is None:
        return (lambda array: array), volume.spacing, False
    from nibabel.orientations import apply_orientation

    there, back, reverse = ways, geometry.turned, geometry.reverse

    def turn(array: np.ndarray) -> np.ndarray:
        stored = array.transpose(2, 1, 0) if reverse else array
        stored = stored if back is None else apply_orientation(stored, back)
        return np.asarray(apply_orientation(stored, there)).transpose(2, 1, 0)

    spacing = [0.0, 0.0, 0.0]
    for axis, (new, _) in enumerate(there):
        spacing[2 - int(new)] = float(geometry.spacing[axis])
    return turn, (spacing[0], spacing[1], spacing[2]), True


def _to_patient(geometry: Geometry) -> np.ndarray | None:
    """nibabel's orientation from the file's axes to left, back, head; None where its affine names no directions."""
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    try:
        have = io_orientation(geometry.affine)
    except (ValueError, np.linalg.LinAlgError):
        return None
    return None if np.isnan(have).any() else np.asarray(ornt_transform(have, axcodes2ornt(("L", "P", "S"))))


def _in_8_bits(channel: np.ndarray) -> np.ndarray:
    """uint8 (z, y, x) between the 1st and 99th percentile of a sample of what is not the lowest value."""
    sample = channel.reshape(-1)[:: max(1, channel.size // _SAMPLE)]
    sample = sample[np.isfinite(sample)]
    inside = sample[sample > sample.min()] if sample.size else sample
    low, high = (float(v) for v in np.percentile(inside, (1, 99))) if inside.size else (0.0, 1.0)
    scale = 255 / (high - low) if high > low and math.isfinite(255 / (high - low)) else 1.0
    out = np.empty(channel.shape, np.uint8)
    for target, slice_ in zip(out, channel, strict=True):  # slice by slice: float32 never stands there twice
        target[...] = np.clip(np.nan_to_num((slice_ - np.float32(low)) * np.float32(scale)), 0, 255)
    return out


def _foreground(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many voxels of each slice are labelled, along z, y and x."""
    z, y, x = labels.shape
    sums = np.zeros(z, np.int64), np.zeros(y, np.int64), np.zeros(x, np.int64)
    for index, slice_ in enumerate(labels):
        there = slice_ != 0
        sums[0][index] = np.count_nonzero(there)
        if sums[0][index]:
            sums[1][:] += np.count_nonzero(there, axis=1)
            sums[2][:] += np.count_nonzero(there, axis=0)
    return sums


def count_labels(labels: np.ndarray, ids: Sequence[int]) -> dict[int, int]:
    """Voxels of each id."""
    total = np.zeros(max((*ids, 0)) + 1, np.int64)
    for slice_ in labels:
        found = np.bincount(slice_.reshape(-1), minlength=len(total))
        total += found[: len(total)]
    return {number: int(total[number]) for number in ids}
