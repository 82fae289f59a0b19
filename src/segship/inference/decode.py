"""From a network's raw output to probabilities, masks and labels, in the order that the manifest names.

    activation → (restore) → decision → (restore)

``restore_what`` says at which of the places the answer travels back to the picture's own grid: the raw logits,
the probabilities, or the finished decision. The order changes outlines, so it is part of the contract. On the
network's own grid (``frame=None``) nothing is restored and the three agree.

Arrays are (K, h, w) float32 in, (K, H, W) or (H, W) out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from segship.errors import EngineError, PackageError
from segship.inference.bands import Band, restored_bands, restored_stream
from segship.inference.preprocess import Frame, restore
from segship.manifest import Argmax, Decode, Label, Recipe, Regions, Saliency, Threshold


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float32, without overflow at either end."""
    x = np.asarray(x, dtype=np.float32)
    small = np.exp(-np.abs(x))  # in (0, 1], whatever the sign
    positive = np.float32(1) / (np.float32(1) + small)
    return np.where(x >= 0, positive, small * positive)


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax over the first axis, float32, shifted by the maximum."""
    shifted = np.exp(x - x.max(axis=0, keepdims=True), dtype=np.float32)
    return np.asarray(shifted / shifted.sum(axis=0, keepdims=True))


def activate(x: np.ndarray, activation: str) -> np.ndarray:
    if activation == "sigmoid":
        return sigmoid(x)
    return softmax(x) if activation == "softmax" else x


def argmax(scores: np.ndarray) -> np.ndarray:
    """Index of the largest of (K, H, W) along the first axis; the first maximum wins. uint8, uint16 above 256 classes.

    A running maximum: numpy's own argmax over a leading axis is many times slower.
    """
    best = scores[0].copy()
    index = np.zeros(best.shape, np.uint8 if len(scores) <= 256 else np.uint16)
    for k in range(1, len(scores)):
        better = scores[k] > best
        index[better] = k
        np.copyto(best, scores[k], where=better)
    return index


def scores_on_grid(raw: np.ndarray, decode: Decode, frame: Frame | None, activated: bool) -> np.ndarray:
    """What `argmax` and thresholds look at: restored logits, or probabilities (restored where the manifest says so)."""
    activation = "none" if activated else decode.activation
    if frame is None:
        return activate(raw, activation)
    if decode.restore_what == "logits":
        return activate(restore(raw, frame, decode.restore_method, decode.restore_path), activation)
    values = activate(raw, activation)
    if isinstance(decode.decision, Saliency) and decode.restore_what == "decision":
        return values
    return restore(values, frame, decode.restore_method, decode.restore_path)


def threshold_masks(raw: np.ndarray, decode: Decode, frame: Frame | None, activated: bool) -> np.ndarray:
    """(K, H, W) bool: probability strictly above the threshold."""
    assert isinstance(decode.decision, Threshold | Regions)
    limit = np.float32(decode.decision.threshold)
    if frame is None or decode.restore_what != "decision":
        return scores_on_grid(raw, decode, frame, activated) > limit
    decided = scores_on_grid(raw, decode, None, activated) > limit
    return restore(decided.astype(np.float32), frame, decode.restore_method) > np.float32(0.5)


def argmax_index(raw: np.ndarray, decode: Decode, frame: Frame | None, activated: bool) -> np.ndarray:
    """(H, W) class index. Softmax keeps the order of its inputs, so it is left out where nothing else needs it."""
    if frame is None:
        return argmax(raw)
    if decode.restore_what == "decision":
        if not decode.restore_method.endswith(":nearest"):
            raise PackageError(
                f"class numbers cannot be enlarged with '{decode.restore_method}'; only nearest keeps them"
            )
        return restore(argmax(raw)[None], frame, decode.restore_method)[0]
    if decode.restore_what == "logits":
        return labels_on_grid(raw, frame, decode)
    return argmax(scores_on_grid(raw, decode, frame, activated))


def labels_on_grid(raw: np.ndarray, frame: Frame, decode: Decode) -> np.ndarray:
    """(H, W) class index of the restored logits, a few rows at a time: they are never held at full size."""
    out: np.ndarray | None = None
    for rows, scores in restored_bands(raw, frame, decode.restore_method, decode.restore_path):
        found = argmax(scores)
        if out is None:
            out = np.empty(frame.original_hw, found.dtype)
        out[rows] = found
    assert out is not None  # a picture has rows
    return out


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelsAlone:
    """The decision about a picture whose scores were not kept: class indices of exclusive classes."""

    on_input: np.ndarray
    """(H, W), on the picture's own grid"""
    on_network: np.ndarray
    """(h, w), on the network's"""
    constant: bool
    """the scores were the same everywhere"""


def decides_in_bands(recipe: Recipe) -> bool:
    """Whether `labels_alone` gives what such a package decides, without ever holding the scores: those put together from
    windows are as large as the picture. Other packages' lie on a small grid."""
    decode = recipe.decode
    return recipe.tiling is not None and isinstance(decode.decision, Argmax) and decode.restore_what == "logits"


def labels_alone(bands: Iterable[Band], grid: tuple[int, int], frame: Frame, decode: Decode) -> LabelsAlone:
    """Decide while the logits on ``grid`` come in bands, from the top down. Raises EngineError for NaN and infinity."""
    looked = _Looking(bands, grid, frame.name)
    out: np.ndarray | None = None
    for rows, scores in restored_stream(looked, grid, frame, decode.restore_method, decode.restore_path):
        if not frame.geometry:  # the two grids are one
            continue
        found = argmax(scores)
        if out is None:
            out = np.empty(frame.original_hw, found.dtype)
        out[rows] = found
    assert looked.index is not None  # a picture has rows
    return LabelsAlone(on_input=looked.index if out is None else out, on_network=looked.index, constant=looked.constant)


class _Looking:
    """Bands that pass by: whether they are finite and all the same, and what they decide on their own grid."""

    def __init__(self, bands: Iterable[Band], grid: tuple[int, int], name: str) -> None:
        self.bands, self.grid, self.name = bands, grid, name
        self.index: np.ndarray | None = None
        self.constant = True

    def __iter__(self) -> Iterator[Band]:
        first: np.ndarray | None = None
        for rows, scores in self.bands:
            require_finite(scores, self.name)
            first = scores[:, :1, :1].copy() if first is None else first
            self.constant = self.constant and bool((scores == first).all())
            found = argmax(scores)
            if self.index is None:
                self.index = np.empty(self.grid, found.dtype)
            self.index[rows] = found
            yield rows, scores


def require_finite(scores: np.ndarray, name: str) -> None:
    """Raise EngineError where one value is NaN or infinite: then their sum is too, the cheapest look at every value."""
    if not np.isfinite(scores.sum(dtype=np.float64)):
        raise EngineError(f"{name}: the network's output holds NaN or infinite values; try --precision fp32")


def stacked_labels(masks: Iterable[np.ndarray], ids: tuple[int, ...], shape: Sequence[int]) -> np.ndarray:
    """Labels of ``shape`` from bool masks of it, one at a time, a later one over the earlier: each mask gets its id."""
    labels = np.zeros(shape, label_dtype(ids))
    for mask, label in zip(masks, ids, strict=True):
        labels[mask] = label
    return labels


def saliency_map(raw: np.ndarray, decode: Decode, frame: Frame | None, activated: bool) -> np.ndarray:
    """(H, W): uint8 0..255 or float32 0..1, by the manifest's polarity, min-max and rounding rules."""
    rule = decode.decision
    assert isinstance(rule, Saliency)
    last = frame is not None and decode.restore_what == "decision"
    p = scores_on_grid(raw, decode, None if last else frame, activated)[0]
    decided = _saliency(p, rule)
    if last:
        assert frame is not None
        decided = restore(decided[None], frame, decode.restore_method)[0]
    return decided


def _saliency(p: np.ndarray, rule: Saliency) -> np.ndarray:
    if rule.polarity == "inverted":
        p = np.float32(1) - p
    if rule.min_max:
        low, high = p.min(), p.max()
        p = (p - low) / (high - low) if high > low else np.zeros_like(p)
    if rule.to_uint8 == "none":
        return p
    scaled = np.clip(p, 0, 1) * np.float32(255)
    return (np.rint(scaled) if rule.to_uint8 == "round" else scaled).astype(np.uint8)


def label_dtype(ids: tuple[int, ...]) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if max(ids, default=0) <= 255 else np.uint16


def class_labels(recipe: Recipe) -> tuple[Label, ...]:
    """The label of each output channel of a threshold, regions or argmax network, in channel order.

    A background label (id 0) stands for no channel where the network has one channel less than there are labels.
    """
    count = recipe.network.outputs[0].channels
    labels = recipe.labels
    if isinstance(recipe.decode.decision, Argmax) or len(labels) == count:
        chosen = labels
    else:
        chosen = tuple(label for label in labels if label.id != 0)
    if len(chosen) != count:
        raise PackageError(f"package '{recipe.name}' names {len(recipe.labels)} labels for {count} output channels")
    return chosen
