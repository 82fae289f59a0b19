"""The answer for one volume: labels, masks, probabilities on the case's own grid, computed when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from segship.errors import OutputError, UsageError
from segship.inference import volume_decode, writers
from segship.inference.decode import class_labels
from segship.inference.volume_chain import VolumeFrame
from segship.inference.volumes import Volume, label_bytes, write_labels
from segship.manifest import Argmax, Label, Recipe, Regions, Threshold

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumePrediction:
    """What the network says about one case. Arrays are (z, y, x) on the case's own grid."""

    scores: np.ndarray
    """(K, z, y, x) logits or probabilities on the network's grid"""
    frame: VolumeFrame
    recipe: Recipe
    volume: Volume
    """the case as read: spacing and geometry for writing, channels for pictures unless they were not kept"""
    activated: bool = False
    clean: bool = True
    """apply the package's postprocessing rules"""

    @property
    def name(self) -> str:
        return self.frame.name

    @property
    def notes(self) -> tuple[str, ...]:
        return self.frame.notes

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(z, y, x) in millimetres"""
        return self.frame.spacing

    @property
    def classes(self) -> tuple[Label, ...]:
        """The label of each channel of `masks` and `probabilities`."""
        return class_labels(self.recipe)

    @cached_property
    def labels(self) -> np.ndarray:
        """(z, y, x) uint8, uint16 where ids go beyond 255."""
        if isinstance(self.recipe.decode.decision, Threshold):
            labels = np.zeros(self.frame.shape, np.uint16 if max(c.id for c in self.classes) > 255 else np.uint8)
            for mask, label in zip(self.masks, self.classes, strict=True):
                labels[mask] = label.id
            return labels
        found = volume_decode.decide(self.scores, self.frame, self.recipe, activated=self.activated)
        return volume_decode.clean(found, self.frame, self.recipe) if self.clean else found

    @cached_property
    def masks(self) -> np.ndarray:
        """(K, z, y, x) bool, one a class or region; regions and independent classes may overlap."""
        decision = self.recipe.decode.decision
        if isinstance(decision, Threshold):
            return volume_decode.decide(self.scores, self.frame, self.recipe, activated=self.activated)
        if isinstance(decision, Regions):
            return np.stack([np.isin(self.labels, label.ids or (label.id,)) for label in self.classes])
        return np.stack([self.labels == label.id for label in self.classes])

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(K, z, y, x) float32. As large as K times the case: asked for, not computed along the way."""
        return volume_decode.probabilities(self.scores, self.frame, self.recipe, activated=self.activated)

    @property
    def constant_output(self) -> bool:
        return bool(self.scores.min() == self.scores.max())

    def encode(self, suffix: str | None = None) -> bytes:
        """The label file as bytes, in the case's own geometry; ``suffix`` None: the package's own file ending."""
        ending = suffix or getattr(self.recipe.input, "file_ending", ".nii.gz")
        if ending not in VOLUME_SUFFIXES:
            raise UsageError(f"labels are written as {', '.join(VOLUME_SUFFIXES)}, not '{ending}'")
        return label_bytes(self.labels, self.volume, ending)

    def save(self, path: str | Path, *, probabilities: bool = False) -> list[Path]:
        """Write the labels; the suffix chooses the form. Spacing, origin and direction are the case's own; a TIFF of three
        axes gets its spacing in a json beside it.

        ``.npz`` holds labels, spacing and class names, with ``probabilities`` also those. Raises OutputError for
        another suffix or a place that cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".npz":
            arrays = {
                "labels": self.labels,
                "spacing": np.array(self.spacing),
                "classes": np.array([label.name for label in self.classes]),
            }
            if probabilities:
                arrays["probabilities"] = self.probabilities
            return [writers.write_npz(path, arrays)]
        suffix = next((ending for ending in VOLUME_SUFFIXES if path.name.lower().endswith(ending)), None)
        if suffix is None:
            raise OutputError(f"{path.name}: labels of a volume are kept as {', '.join(VOLUME_SUFFIXES)} or .npz")
        return write_labels(path, self.labels, self.volume)

    def preview(self, side: int = 320) -> np.ndarray:
        """Three planes through the largest part of the answer, tinted: uint8 (side, 3 · side, 3) RGB.

        Raises UsageError where the case's values were not kept.
        """
        if self.volume.emptied:
            raise UsageError(
                f"{self.name}: its image was not kept, so there is nothing to draw; ask for the preview first"
            )
        return draw_preview(self, side)

    @property
    def decoded(self) -> np.ndarray:
        """The decision in its own form: labels, or masks for independent classes."""
        return self.masks if isinstance(self.recipe.decode.decision, Threshold) else self.labels

    @property
    def foreground(self) -> np.ndarray:
        """(z, y, x) bool: where anything but background is."""
        if isinstance(self.recipe.decode.decision, Argmax | Regions):
            return self.labels != 0
        return np.asarray(self.masks.any(axis=0))


def draw_preview(found: VolumePrediction, side: int) -> np.ndarray:
    """Axial, coronal and sagittal plane side by side, each of one scale in millimetres, overlay included."""
    import cv2

    channel = found.volume.channels[0]
    low, high = _window(channel)
    centre = _centre(found.foreground)
    colors = np.zeros((int(found.labels.max(initial=0)) + 1, 3), np.uint8)
    for label in found.classes:
        if 0 < label.id < len(colors):
            colors[label.id] = label.color
    tiles = []
    head_first = (getattr(found.recipe.input, "orientation", None) or "").startswith("I")
    extent = max(n * s for n, s in zip(found.frame.shape, found.spacing, strict=True))
    for axis in range(3):
        plane, labels = channel.take(centre[axis], axis), found.labels.take(centre[axis], axis)
        plane = (np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
        sizes = [found.spacing[a] for a in range(3) if a != axis]
        height, width = (max(1, round(n * s / extent * side)) for n, s in zip(plane.shape, sizes, strict=True))
        picture = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
        shown = cv2.resize(labels.astype(np.uint16), (width, height), interpolation=cv2.INTER_NEAREST)
        rgb = np.repeat(np.asarray(picture)[..., None], 3, axis=2).astype(np.float32)
        tint = np.asarray(shown)[..., None] > 0
        rgb = np.where(tint, rgb * 0.55 + colors[np.asarray(shown)] * 0.45, rgb).astype(np.uint8)
        if axis and not head_first:  # feet below, head above
            rgb = rgb[::-1]
        tile = np.zeros((side, side, 3), np.uint8)
        top, left = (side - rgb.shape[0]) // 2, (side - rgb.shape[1]) // 2
        tile[top : top + rgb.shape[0], left : left + rgb.shape[1]] = rgb[:side, :side]
        tiles.append(tile)
    return np.concatenate(tiles, axis=1)


def _window(channel: np.ndarray) -> tuple[float, float]:
    """What is shown as black and as white: the 1st and 99th percentile of a sample of what is not the lowest value."""
    sample = channel.reshape(-1)[:: max(1, channel.size // 200_000)]
    inside = sample[sample > sample.min()]
    low, high = np.percentile(inside if inside.size else sample, (1, 99))
    return low, high


def _centre(foreground: np.ndarray) -> tuple[int, int, int]:
    """The plane of each axis that shows most of the foreground; the middle where there is none."""
    if not foreground.any():
        return foreground.shape[0] // 2, foreground.shape[1] // 2, foreground.shape[2] // 2
    best = [int(foreground.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3)]
    return best[0], best[1], best[2]
