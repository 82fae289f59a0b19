"""Scores of predictions, one file a field. A scorer module provides

    METRICS: dict[str, str]                       metric name -> what it is, in one line
    DEFAULT: str                                  the field's own number
    score_case(prediction, case) -> CaseScore     one case: inference.prediction.Prediction, datasets.Case
    summarise(scores) -> dict[str, float]         the numbers over all cases
    explain(name) -> str                          what a number is; also of numbers beyond METRICS (one a class)
    table(values, names=None) -> str              those numbers as lines for the terminal
    mean_curves(scores) -> dict[str, array]       optional: curves over all cases
    summed(scores) -> Pooled                      optional: numbers made of areas summed over cases (CaseScore.areas)
    compare(by_name) -> (header, rows)            optional: the table of several precisions side by side
    as_upstream(values) -> dict                   optional: what --json prints in the place of ``metrics``, and more
    FORMATS: tuple[str, ...]                      optional: whose forms ``table(…, form=…)`` or summary_file can write
    notes(scores) -> tuple[str, ...]              optional: what was done to answers before they were scored
    UNDEFINED: dict[str, float]                   optional: what a missing number counts as beside one that is there
    TABLE: tuple[str, ...]                        optional: the numbers of the report's table precision × batch
    REMARKS: tuple[str, ...]                      optional: what a reader of the numbers has to know

and is found by the name that stands in a manifest's ``metric.scorer``.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from segship.errors import UsageError

SCORERS = ("nuclei", "sod", "nnunet", "mmseg", "kits19")


def get_scorer(name: str) -> ModuleType:
    """The scorer's module. UsageError for a name that this version does not score."""
    if name not in SCORERS:
        raise UsageError(f"no scorer is called '{name}'; this segship has: {', '.join(SCORERS)}")
    return importlib.import_module(f"segship.metrics.{name}")
