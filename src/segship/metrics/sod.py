"""Salient objects: MAE, F, S, E and weighted F, as the field's own tool computes them.

The numbers are those of PySODMetrics 1.6.2 (lartpang/PySODMetrics: py_sod_metrics/sod_metrics.py, fmeasurev2.py),
against which every one is tested; the library itself is not imported, as it holds numpy below 2.3.5 and brings
scikit-image and scikit-learn. ``maxF_pr`` is the author's own number and the paper's
(xuebinqin/Binary-Segmentation-Evaluation-Tool: measures.py).

Rules: a label above 128 is object; the map is stretched to 0..1 by its own minimum and maximum unless it is
constant; curves run over the 256 thresholds ``floor(255·map) >= i``; 0/0 is 0. Where a number has a curve, the
curves of all images are averaged first and then the maximum is taken. Papers: F: Achanta et al. 2009 (β² = 0.3);
MAE: Perazzi et al. 2012; weighted F: Margolin et al. 2014; S: Fan et al. 2017; E: Fan et al. 2018.

Arrays: maps (H, W) uint8 0..255 or float 0..1, labels (H, W) uint8 0..255, of one size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from segship.datasets import Case
from segship.errors import DatasetError
from segship.inference.prediction import Prediction
from segship.inference.preprocess import resize
from segship.metrics.scores import CaseScore

Map = NDArray[np.uint8] | NDArray[np.float32]
Bytes = NDArray[np.uint8]
Bool = NDArray[np.bool_]
Floats = NDArray[np.float64]
Counts = NDArray[np.float64] | float

EPS = float(np.spacing(1))
BETA2 = 0.3
LEVELS = 256
OBJECT_ABOVE = 128

DEFAULT = "MAE"
METRICS = {
    "MAE": "mean |map − label| on 0..1, mean over images; lower is better",
    "MAE_255": "the same on the scale 0..255, as some deployments of this network publish it",
    "maxF": "F (β² = 0.3), the maximum over 256 thresholds of the curve averaged over images",
    "meanF": "F (β² = 0.3), the mean over 256 thresholds",
    "adpF": "F (β² = 0.3) at twice each map's mean",
    "maxF_pr": "F of precision and recall averaged over images first, its maximum (the paper's maxF)",
    "wF": "weighted F (β² = 1): errors count by where they are",
    "S": "S-measure (α = 0.5): likeness of structure",
    "maxE": "E-measure, the maximum over 256 thresholds of the curve averaged over images",
    "meanE": "E-measure, the mean over 256 thresholds",
    "adpE": "E-measure at twice each map's mean",
    "maxIoU": "IoU, the maximum over 256 thresholds of the curve averaged over images",
    "F": "F (β² = 0.3) of map > 0.5",
    "IoU": "IoU of map > 0.5",
    "Dice": "Dice of map > 0.5",
    "precision": "precision of map > 0.5",
    "recall": "recall of map > 0.5",
    "MAE_raw": "mean |map − label| / 255 with map and label as stored: nothing stretched, grey labels stay grey",
}
REMARKS = (
    "MAE on 0..255 is 255 times MAE: a published 8.7251 is 0.0342 here.",
    "No F can be above 1. A published “max F” of 4.2 comes from precision taken with labels on 0..255, which is up to "
    "255 times too large and ends near 1.3/0.3 = 4.33; the true max F cannot be had from it.",
)


def score_case(prediction: Prediction, case: Case) -> CaseScore:
    """Score one saliency map against the case's grey label; a map of another size is resized to it first, as the
    package resizes its maps, and the score's notes say so."""
    label = case.target_grey()
    if len(label) != 1:
        raise DatasetError(f"case {case.id} has {len(label)} masks; salient objects have one")
    found, note = fit(case.id, prediction.saliency, label[0].shape, prediction.recipe.decode.restore_method)
    return score_arrays(case.id, found, label[0], (note,) if note else ())


def fit(case_id: str, found: Map, shape: tuple[int, ...], method: str) -> tuple[Map, str]:
    """The map at the label's size, and what was done to it ("" for nothing).

    Raises DatasetError where height and width look swapped: resizing would turn that into a low score.
    """
    if found.shape == shape:
        return found, ""
    have, want = f"{found.shape[0]}×{found.shape[1]}", f"{shape[0]}×{shape[1]}"
    if found.shape == shape[::-1]:
        raise DatasetError(
            f"case {case_id}: the map is {have}, the label {want}: one of them is turned by 90°; "
            "check the image's EXIF rotation, or turn the label"
        )
    return resize(found[..., None], (shape[0], shape[1]), method)[..., 0], f"{have} to {want} by {method}"


def score_arrays(case_id: str, found: Map, label: Bytes, notes: tuple[str, ...] = ()) -> CaseScore:
    """All numbers of one image, and its curves. DatasetError where the two sizes differ."""
    if found.shape != label.shape or label.ndim != 2 or not label.size:
        raise DatasetError(f"case {case_id}: the map is {found.shape}, the label {label.shape}; sizes must be equal")
    truth = label > OBJECT_ABOVE
    p = stretched(found)
    curves = threshold_curves(p, truth) | precision_recall_by_own_maximum(found, label)
    values = {
        "MAE": mae(p, truth),
        "maxF": float(curves["F"].max()),
        "meanF": float(curves["F"].mean()),
        "maxF_pr": float(f_of_mean(curves["precision_own_max"], curves["recall_own_max"]).max()),
        "wF": weighted_f(p, truth),
        "S": s_measure(p, truth),
        "maxE": float(curves["E"].max()),
        "meanE": float(curves["E"].mean()),
        "maxIoU": float(curves["IoU"].max()),
        "MAE_raw": mae_raw(found, label),
    }
    values |= at_adaptive_threshold(p, truth) | at_half(p, truth)
    order = [name for name in METRICS if name in values]
    return CaseScore(id=case_id, values={name: values[name] for name in order}, curves=curves, notes=notes)


def stretched(found: Map) -> Floats:
    """The map as float64 0..1, stretched to its own range unless it is constant."""
    p = found / 255 if found.dtype == np.uint8 else found.astype(np.float64)
    low, high = p.min(), p.max()
    return np.asarray((p - low) / (high - low) if high != low else p, np.float64)


def mae(p: Floats, truth: Bool) -> float:
    return float(np.mean(np.abs(p - truth)))


def mae_raw(found: Map, label: Bytes) -> float:
    """Mean absolute difference on 0..1 of a map and a grey label as they are."""
    p = found / 255 if found.dtype == np.uint8 else found.astype(np.float64)
    return float(np.mean(np.abs(p - label / 255)))


# ------------------------------------------------------------------------------------------------ curves


def threshold_curves(p: Floats, truth: Bool) -> dict[str, Floats]:
    """precision, recall, F, E and IoU, each (256,): entry i is for ``floor(255·p) >= i``."""
    q = (p * 255).astype(np.uint8)
    hits, false = _at_least(q[truth]), _at_least(q[~truth])
    objects = int(np.count_nonzero(truth))
    precision = hits / np.maximum(hits + false, 1)
    recall = hits / max(objects, 1)
    return {
        "precision": precision,
        "recall": recall,
        "F": f_measure(precision, recall),
        "E": e_measure(hits, false, objects, truth.size),
        "IoU": divide(hits, objects + false),
    }


def precision_recall_by_own_maximum(found: Map, label: Bytes) -> dict[str, Floats]:
    """The author's curves, each (255,): map and label divided by their own maximum, bins [0, 1) … [254, 255]."""
    p = found.astype(np.float64) if found.dtype == np.uint8 else found * 255.0
    bins = np.minimum(p / (p.max() + 1e-8) * 255, LEVELS - 2).astype(np.uint8)
    truth = label / (label.max() + 1e-8) * 255 > OBJECT_ABOVE
    hits, false = _at_least(bins[truth])[:-1], _at_least(bins[~truth])[:-1]
    return {
        "precision_own_max": hits / (hits + false + 1e-8),
        "recall_own_max": hits / (np.count_nonzero(truth) + 1e-8),
    }


def f_measure(precision: Counts, recall: Counts) -> Floats:
    """(1 + β²)·P·R / (β²·P + R), 0 where P·R is 0."""
    above = np.asarray((1 + BETA2) * precision * recall)
    return np.asarray(above / np.where(above == 0, 1, BETA2 * precision + recall), np.float64)


def f_of_mean(precision: Floats, recall: Floats) -> Floats:
    """The author's F of averaged precision and recall."""
    return np.asarray((1 + BETA2) * precision * recall / (BETA2 * precision + recall + 1e-8), np.float64)


def e_measure(hits: Counts, false: Counts, objects: int, size: int) -> Floats:
    """E-measure from counts of object and background pixels that the map holds; of one entry or many.

    The sum is divided by pixels − 1, so that E can reach 1 + 1/pixels; a picture of one pixel is divided by 1.
    """
    found = hits + false
    total: Counts
    if objects == 0:
        total = size - found
    elif objects == size:
        total = found
    else:
        a, b = found / size, objects / size
        parts = (
            (hits, 1 - a, 1 - b),
            (false, 1 - a, 0 - b),
            (objects - hits, 0 - a, 1 - b),
            (size - objects - false, 0 - a, 0 - b),
        )
        total = 0.0
        for count, x, y in parts:
            total = total + count * (2 * x * y / (x**2 + y**2 + EPS) + 1) ** 2 / 4
    return np.asarray(total / max(size - 1 + EPS, 1), np.float64)


def at_adaptive_threshold(p: Floats, truth: Bool) -> dict[str, float]:
    """adpF and adpE: the map at and above twice its mean, at most 1."""
    chosen = p >= min(2 * float(p.mean()), 1)
    hits, false, objects = _counts(chosen, truth)
    f = f_measure(divide(hits, hits + false), divide(hits, objects))
    return {"adpF": float(f), "adpE": float(e_measure(hits, false, objects, truth.size))}


def at_half(p: Floats, truth: Bool) -> dict[str, float]:
    """F, IoU, Dice, precision and recall of p > 0.5."""
    hits, false, objects = _counts(p > 0.5, truth)
    precision, recall = divide(hits, hits + false), divide(hits, objects)
    found = {
        "F": f_measure(precision, recall),
        "IoU": divide(hits, objects + false),
        "Dice": divide(2 * hits, hits + false + objects),
        "precision": precision,
        "recall": recall,
    }
    return {name: float(value) for name, value in found.items()}


def divide(above: Counts, below: Counts) -> Floats:
    """above / below, 0 where below is 0."""
    below = np.asarray(below)
    return np.asarray(above / np.where(below == 0, 1, below), np.float64)


def _at_least(q: Bytes) -> Floats:
    """(256,): how many values are at least i."""
    return np.bincount(q, minlength=LEVELS)[::-1].cumsum()[::-1].astype(np.float64)


def _counts(chosen: Bool, truth: Bool) -> tuple[int, int, int]:
    """Pixels of the object that were chosen, other pixels that were, pixels of the object."""
    hits = int(np.count_nonzero(chosen & truth))
    return hits, int(np.count_nonzero(chosen)) - hits, int(np.count_nonzero(truth))


# -------------------------------------------------------------------------------------------- S-measure


def s_measure(p: Floats, truth: Bool) -> float:
    """½ likeness of objects + ½ likeness of the four regions around the object's centre, at least 0."""
    share = float(truth.mean())
    if share == 0:
        return 1 - float(p.mean())
    if share == 1:
        return float(p.mean())
    objects = share * _object_likeness(p[truth]) + (1 - share) * _object_likeness(1 - p[~truth])
    return max(0.0, 0.5 * objects + 0.5 * _region_likeness(p, truth))


def _object_likeness(x: Floats) -> float:
    mean = float(x.mean())
    deviation = float(x.std(ddof=1)) if x.size > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + deviation + EPS)


def _region_likeness(p: Floats, truth: Bool) -> float:
    """SSIM of the four blocks that meet at the object's centre, weighted by area.

    A block without pixels (the object lies on the last row or column) weighs nothing; PySODMetrics gives NaN there.
    """
    height, width = truth.shape
    rows, columns = truth.sum(axis=1), truth.sum(axis=0)
    count = rows.sum()
    y = round(float(rows @ np.arange(height) / count)) + 1
    x = round(float(columns @ np.arange(width) / count)) + 1
    blocks = ((slice(0, y), slice(0, x)), (slice(0, y), slice(x, width)), (slice(y, height), slice(0, x)), (slice(y, height), slice(x, width)))  # fmt: skip
    return sum(_ssim(p[block], truth[block]) * truth[block].size / truth.size for block in blocks if truth[block].size)


def _ssim(p: Floats, truth: Bool) -> float:
    x, y = float(p.mean()), float(truth.mean())
    dx, dy = p - x, truth - y
    below = p.size - 1 + EPS
    variances = float((dx * dx).sum() / below) + float((dy * dy).sum() / below)
    above = 4 * x * y * float((dx * dy).sum() / below)
    spread = (x**2 + y**2) * variances
    if above != 0:
        return above / (spread + EPS)
    return 1.0 if spread == 0 else 0.0


# -------------------------------------------------------------------------------------------- weighted F

_KERNEL = np.exp(-(np.arange(-3.0, 4.0) ** 2) / (2 * 5**2))
_KERNEL /= _KERNEL.sum()


def weighted_f(p: Floats, truth: Bool) -> float:
    """Weighted F (β² = 1): an error beside an object pixel may be explained by it, one far from any object weighs up
    to twice. 0 where the label is empty."""
    if not truth.any():
        return 0.0
    distance, nearest = distance_transform_edt(~truth, return_indices=True)
    error = np.abs(p - truth)
    spread = error[nearest[0], nearest[1]]  # object pixels are their own nearest
    smooth = cv2.sepFilter2D(spread, cv2.CV_64F, _KERNEL, _KERNEL, borderType=cv2.BORDER_CONSTANT)
    inside = np.minimum(error, smooth)[truth]
    outside = (error * (2 - np.exp(np.log(0.5) / 5 * distance)))[~truth]
    hits, false = inside.size - float(inside.sum()), float(outside.sum())
    recall = 1 - float(inside.mean())
    precision = hits / (hits + false + EPS)
    return 2 * recall * precision / (recall + precision + EPS)


# ---------------------------------------------------------------------------------------------- all cases

_POOLED = {"maxF": "F", "maxE": "E", "maxIoU": "IoU"}


def mean_curves(scores: Sequence[CaseScore]) -> dict[str, Floats]:
    """Each curve averaged over the cases, place by place; F_pr is F of the averaged precision and recall."""
    if not scores:
        return {}
    found = {name: np.mean([score.curves[name] for score in scores], axis=0) for name in scores[0].curves}
    return found | {"F_own_max": f_of_mean(found["precision_own_max"], found["recall_own_max"])}


def summarise(scores: Sequence[CaseScore]) -> dict[str, float]:
    """The numbers over all cases, in METRICS' order."""
    if not scores:
        return {}
    curves = mean_curves(scores)
    found = {name: float(np.mean([score.values[name] for score in scores])) for name in scores[0].values}
    found |= {name: float(curves[curve].max()) for name, curve in _POOLED.items()}
    found |= {"maxF_pr": float(curves["F_own_max"].max()), "MAE_255": 255 * found["MAE"]}
    return {name: found[name] for name in METRICS}


def notes(scores: Sequence[CaseScore]) -> tuple[str, ...]:
    """What was done to maps before they were scored, in one line a kind of change."""
    changed = [score for score in scores if score.notes]
    if not changed:
        return ()
    first = changed[0]
    return (
        f"maps resized to the size of their label: {len(changed)} of {len(scores)} (first {first.id}: {first.notes[0]})",
    )


def explain(name: str) -> str:
    """What a number is, in one line; "" for a name that is not known."""
    return METRICS.get(name, "")


def table(values: dict[str, float], names: Iterable[str] | None = None) -> str:
    """Lines ``name  value  what it is`` for the terminal."""
    chosen = list(values if names is None else names)
    width = max((len(name) for name in chosen), default=0)
    return "\n".join(f"{name:<{width}}  {values[name]:7.4f}  {explain(name)}".rstrip() for name in chosen)
