"""nnU-Net v1's thirteen numbers of a label, and the summary.json that it keeps them in.

Source: MIC-DKFZ/nnUNet at v1.7.1: nnunet/evaluation/metrics.py (formulas, when a number does not exist) and
evaluator.py (structure of the file).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from segship.metrics.confusion import Counts

NAN = float("nan")
NAMES = (
    "Accuracy", "Dice", "False Discovery Rate", "False Negative Rate", "False Omission Rate", "False Positive Rate",
    "Jaccard", "Negative Predictive Value", "Precision", "Recall", "Total Positives Reference", "Total Positives Test",
    "True Negative Rate",
)  # fmt: skip


def values(found: Counts) -> dict[str, float]:
    """The thirteen, in alphabetic order. NaN where the question has no answer: see each line's condition."""
    precision = _share(found.tp, found.tp + found.fp)  # nothing predicted
    recall = _share(found.tp, found.tp + found.fn)  # nothing there
    specificity = _share(found.tn, found.tn + found.fp)  # the reference is all of it
    omission = _share(found.fn, found.fn + found.tn)  # the prediction is all of it
    either = found.tp + found.fp + found.fn
    out: dict[str, float] = {
        "Accuracy": _share(found.tp + found.tn, found.all),
        "Dice": _share(2 * found.tp, either + found.tp),
        "False Discovery Rate": 1 - precision,
        "False Negative Rate": 1 - recall,
        "False Omission Rate": omission,
        "False Positive Rate": 1 - specificity,
        "Jaccard": _share(found.tp, either),
        "Negative Predictive Value": 1 - omission,
        "Precision": precision,
        "Recall": recall,
        "Total Positives Reference": found.reference,
        "Total Positives Test": found.predicted,
        "True Negative Rate": specificity,
    }
    return out


def summary(
    cases: Sequence[Mapping[str, Counts]],
    files: Sequence[tuple[str, str]],
    *,
    task: str = "",
    now: datetime | None = None,
) -> dict[str, Any]:
    """The whole file as v1 writes it (keys are sorted when it is dumped).

    ``cases``: label -> counts of each case; ``files``: (prediction, reference) of each. The id is a hash of the rest.
    """
    rows: list[dict[str, Any]] = []
    for found, (predicted, reference) in zip(cases, files, strict=True):
        rows.append({**{label: values(c) for label, c in found.items()}, "test": predicted, "reference": reference})
    means = {
        label: {name: nanmean([row[label][name] for row in rows]) for name in NAMES}
        for label in (cases[0] if cases else ())
    }
    content: dict[str, Any] = {
        "name": "",
        "description": "",
        "timestamp": str(now or datetime.today()),
        "task": task,
        "author": "Fabian",
        "results": {"all": rows, "mean": means},
    }
    content["id"] = hashlib.md5(json.dumps(content).encode(), usedforsecurity=False).hexdigest()[:12]
    return content


def dump(content: Mapping[str, Any]) -> bytes:
    """As both versions of nnU-Net write JSON: sorted keys, indented by four, NaN as a bare word."""
    return json.dumps(content, sort_keys=True, indent=4).encode()


def nanmean(found: Sequence[float]) -> float:
    """The mean of the numbers among ``found``; NaN where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(np.nanmean(np.asarray(found, np.float64))) if len(found) else NAN


def _share(part: int, whole: int) -> float:
    return part / whole if whole else NAN
