"""Results of evaluations that nobody ran, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segship.metrics.evaluation import Evaluation
from segship.metrics.scores import CaseScore


def evaluation(metric: str, metrics: dict[str, float], scores: Sequence[CaseScore], **more: Any) -> Evaluation:
    """Of fp32 and a higher-is-better metric, unless ``more`` (fields of Evaluation) says otherwise."""
    fields: dict[str, Any] = {
        "higher_is_better": True,
        "failures": (),
        "dataset_sha256": "0" * 64,
        "pixel_sha256": {},
        "precision": "fp32",
        "engine": "openvino",
        "seconds": 1.0,
    }
    return Evaluation(metric=metric, metrics=metrics, scores=tuple(scores), **(fields | more))


def case_scores(metric: str, values: Mapping[str, float]) -> list[CaseScore]:
    """One score a case."""
    return [CaseScore(id=case, values={metric: value}) for case, value in values.items()]
