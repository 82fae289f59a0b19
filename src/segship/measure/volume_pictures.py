"""Panels of volumes: one slice of each case, drawn while the case is in memory.

A case is minutes of work, so nothing is predicted a second time for its picture. Kept are encoded panels, up to a
number of bytes; cases beyond it are not shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.datasets import Case
from segship.inference.volume_prediction import VolumePrediction
from segship.inference.writers import encode_png, write_bytes
from segship.manifest import Label
from segship.measure import pictures
from segship.measure.gallery import PICTURES, Chosen
from segship.package import dump_json

Bytes = NDArray[np.uint8]
Panels = dict[str, bytes]
MEMORY_BYTES = 256 << 20
_SAMPLE = 200_000


@dataclass
class VolumeGallery:
    """Collects panels during an evaluation; `write` keeps those of the chosen cases."""

    held: int = 0
    against_truth: dict[tuple[str, str], Panels] = field(default_factory=dict)
    """(precision, case) -> panels"""
    against_fp32: dict[tuple[str, str], Panels] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, precision: str, case: Case, found: VolumePrediction, fp32: NDArray[np.generic] | None) -> None:
        """Draw one case; ``fp32``: that precision's labels of it, to show what differs."""
        if self.held >= MEMORY_BYTES:
            return
        assert found.recipe.input.kind == "volume"
        truth = case.labels_for(found.recipe.input)
        if truth.shape != found.labels.shape:  # said where the case is scored
            return
        self.sizes[case.id] = (truth.shape[1], truth.shape[2])
        self._keep(self.against_truth, (precision, case.id), truth_panels(found, truth))
        if fp32 is not None and not np.array_equal(fp32, found.labels):
            self._keep(self.against_fp32, (precision, case.id), difference_panels(found, fp32))

    def _keep(self, where: dict[tuple[str, str], Panels], key: tuple[str, str], panels: dict[str, Bytes]) -> None:
        where[key] = {name: encode_png(pixels) for name, pixels in panels.items()}
        self.held += sum(len(data) for data in where[key].values())

    def write(self, output: Path, chosen: Chosen) -> dict[str, Any]:
        """``pictures/*.png`` and ``pictures.json`` of the chosen cases, as gallery.write_pictures leaves them."""
        folder = output / "pictures"
        about: dict[str, Any] = {"metric": chosen.metric, "precision": chosen.precision, "kind": "labels"}
        for kind, entries in (("examples", chosen.examples), ("worst", chosen.worst)):
            about[kind] = [
                self._entry(
                    folder, f"{kind}-{n + 1}", case, self.against_truth[chosen.precision, case], {"score": score}
                )
                for n, (case, score) in enumerate(entries)
                if (chosen.precision, case) in self.against_truth
            ]
        about["disagreements"] = [
            self._entry(
                folder, f"disagreement-{n + 1}", case, self.against_fp32[precision, case],
                {"precision": precision, "agreement": share},
            )
            for n, (case, precision, share) in enumerate(chosen.disagreements)
            if (precision, case) in self.against_fp32
        ]  # fmt: skip
        write_bytes(output / PICTURES, dump_json(about))
        return about

    def _entry(self, folder: Path, stem: str, case: str, panels: Panels, more: Mapping[str, Any]) -> dict[str, Any]:
        names = {}
        for name, data in panels.items():
            names[name] = write_bytes(folder / f"{stem}-{name}.png", data).name
        return {"case": case, "size_hw": list(self.sizes[case]), "panels": names, **more}


def truth_panels(found: VolumePrediction, truth: NDArray[np.generic]) -> dict[str, Bytes]:
    """Input, prediction, truth and their difference in the slice that shows most of the truth, else of the answer."""
    z = busiest_slice(truth if truth.any() else found.labels)
    rgb, labels = slice_rgb(found, z), foreground(found)
    predicted, wanted = (masks_of(array[z], labels, found, rgb) for array in (found.labels, truth))
    return {
        "input": pictures.input_panel(rgb),
        "prediction": pictures.overlay_panel(rgb, predicted, labels),
        "truth": pictures.overlay_panel(rgb, wanted, labels),
        "difference": pictures.difference_panel(rgb, wanted, predicted),
    }


def difference_panels(found: VolumePrediction, fp32: NDArray[np.generic]) -> dict[str, Bytes]:
    """fp32's answer, this precision's and their difference in the slice where they differ most."""
    z = busiest_slice(found.labels != fp32)
    rgb, labels = slice_rgb(found, z), foreground(found)
    before, after = (masks_of(array[z], labels, found, rgb) for array in (fp32, found.labels))
    return {
        "input": pictures.input_panel(rgb),
        "reference": pictures.overlay_panel(rgb, before, labels),
        "variant": pictures.overlay_panel(rgb, after, labels),
        "difference": pictures.difference_panel(rgb, before, after),
    }


def foreground(found: VolumePrediction) -> list[Label]:
    return [label for label in found.classes if label.id != 0]


def busiest_slice(labels: NDArray[np.generic]) -> int:
    """The slice (of the first axis) with most voxels that are not 0; the middle one where there are none."""
    counts = np.count_nonzero(labels.reshape(len(labels), -1), axis=1)
    return int(counts.argmax()) if counts.any() else len(labels) // 2


def masks_of(plane: NDArray[np.generic], labels: list[Label], found: VolumePrediction, rgb: Bytes) -> NDArray[np.bool_]:
    """(K, H, W) of a slice of labels, one a class or region, as large as ``rgb``."""
    masks = np.stack([np.isin(plane, label.ids or (label.id,)) for label in labels])
    height, width = rgb.shape[:2]
    if masks.shape[1:] == (height, width):
        return masks
    sized = [cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) for mask in masks]
    return np.stack(sized).astype(bool)


def slice_rgb(found: VolumePrediction, z: int) -> Bytes:
    """uint8 (H, W, 3) of one slice, its pixels as tall as wide; brightness between the 1st and 99th percentile."""
    channels = found.volume.channels
    if len(channels) == 3 and found.volume.shape[0] == 1 and channels.min() >= 0 and channels.max() <= 255:
        rgb = np.ascontiguousarray(channels[:, z].transpose(1, 2, 0)).astype(np.uint8)
    else:
        sample = channels[0].reshape(-1)[:: max(1, channels[0].size // _SAMPLE)]
        inside = sample[sample > sample.min()]
        low, high = np.percentile(inside if inside.size else sample, (1, 99))
        grey = np.clip((channels[0, z] - low) / max(float(high - low), 1e-6), 0, 1) * 255
        rgb = grey.astype(np.uint8)[..., None].repeat(3, axis=2)
    _, y, x = found.spacing
    height, width = rgb.shape[:2]
    if abs(y / x - 1) < 0.01:
        return np.asarray(rgb, np.uint8)
    size = (width, max(1, round(height * y / x))) if y > x else (max(1, round(width * x / y)), height)
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR), np.uint8)
