"""Numbers that other tools print for salient objects, with their arithmetic, to compare with what they published.

``magicmind``  "average mae" and "max fmeasure" of the vendor sample (Cambricon/magicmind_cloud:
               buildin/cv/segmentation/u2net_pytorch/infer_python/infer.py): maps and labels stay on 0..255, while the
               100 thresholds run over 0..1 and precision sums label values, so that it is up to 255 times too large
``author``     MAE, max F and mean F of the author's tool (xuebinqin/Binary-Segmentation-Evaluation-Tool: measures.py)

Arrays: maps (H, W) uint8 0..255 or float 0..1, labels (H, W) uint8 0..255, of one size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segship.errors import UsageError
from segship.metrics.scores import CaseScore
from segship.metrics.sod import BETA2, Bytes, Floats, Map, mean_curves

NAMES = ("magicmind", "author")
_THRESHOLDS = np.linspace(0, 1, 100, dtype=np.float32)


def check(name: str | None) -> None:
    """UsageError for a tool that is not known here."""
    if name is not None and name not in NAMES:
        raise UsageError(f"--compat takes {' or '.join(NAMES)}, not '{name}'")


def score_case(name: str, case_id: str, found: Map, label: Bytes) -> CaseScore:
    """What the tool ``name`` sums up of one image."""
    check(name)
    if name == "author":
        return CaseScore(id=case_id, values={"author_MAE": author_mae(found, label)})
    scale = found.astype(np.float32) if found.dtype == np.uint8 else found * np.float32(255)
    precision, recall = _wrong_scale_curves(scale, label)
    error = float(np.mean(np.abs(scale - label.astype(np.float32)), dtype=np.float64))
    curves = {"magicmind_precision": precision, "magicmind_recall": recall}
    return CaseScore(id=case_id, values={"magicmind_mae_255": error}, curves=curves)


def summarise(name: str, scores: Sequence[CaseScore], own: Sequence[CaseScore]) -> dict[str, float]:
    """The tool's own numbers over all images; ``own`` are the same images as sod.score_arrays gives them."""
    errors = {key: float(np.mean([score.values[key] for score in scores])) for key in scores[0].values}
    if name == "author":
        curve = mean_curves(own)["F_own_max"]
        return errors | {"author_maxF": float(curve.max()), "author_meanF": float(curve.mean())}
    precision, recall = (
        np.mean([score.curves[f"magicmind_{key}"] for score in scores], axis=0) for key in ("precision", "recall")
    )
    with np.errstate(invalid="ignore"):
        f = (1 + BETA2) * precision * recall / (BETA2 * precision + recall)
    return errors | {"magicmind_maxf": float(np.nan_to_num(f, nan=0.0).max())}


def author_mae(found: Map, label: Bytes) -> float:
    """Mean absolute difference after both were divided by their own maximum."""
    p, wanted = (array / (float(array.max()) + 1e-8) for array in (found, label))
    return float(np.abs(p - wanted).mean())


def _wrong_scale_curves(p: NDArray[np.float32], label: Bytes) -> tuple[Floats, Floats]:
    """(precision, recall), each (100,), of a map on 0..255 at thresholds in 0..1. Recall of an empty label is NaN,
    which makes the F of the whole set 0, there as here."""
    passed = np.searchsorted(_THRESHOLDS, p.ravel(), side="right")  # thresholds at or below each value
    counts, weights = (
        np.bincount(passed, weights=w, minlength=len(_THRESHOLDS) + 1)[::-1].cumsum()[::-1][1:]
        for w in (None, label.ravel().astype(np.float64))
    )
    total = float(label.sum(dtype=np.float64))
    return weights / (counts + 1e-20), weights / total if total else np.full(len(weights), np.nan)
