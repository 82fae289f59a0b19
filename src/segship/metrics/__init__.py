"""Scores of predictions, one file a field. A scorer module provides

    METRICS: dict[str, str]                       metric name -> what it is, in one line
    DEFAULT: str                                  the field's own number
    score_case(logits, masks, case) -> CaseScore  one case; see nuclei.score_case for the arguments
    summarise(scores) -> dict[str, float]         the numbers over all cases

and is found by the name that stands in a manifest's ``metric.scorer``.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from segship.errors import UsageError

SCORERS = ("nuclei",)
WORLDS = {"dsb2018": "nuclei"}
"""the names that ``segship score WORLD`` takes"""


def get_scorer(name: str) -> ModuleType:
    """The scorer's module. UsageError for a name that this version does not score."""
    if name not in SCORERS:
        raise UsageError(f"no scorer is called '{name}'; this segship has: {', '.join(SCORERS)}")
    return importlib.import_module(f"segship.metrics.{name}")
