"""What a scorer says about one case."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Areas:
    """Pixels of each class in one case. Numbers that are no mean of cases are made of their sums, so these few integers
    are all that stays of a case: over any number of cases they can be added, and drawn again for an interval."""

    values: NDArray[np.int64]
    """(4, C): intersection, union, predicted, label"""
    settings: Any
    """what the scorer makes numbers with; one object for all cases"""
    confusion: NDArray[np.int64] | None = None
    """(C, C) pixels by label and prediction; taken off a case once it is added to the others'"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pooled:
    """The numbers of a scorer that are made of areas summed over cases."""

    names: frozenset[str]
    value: Callable[[str, NDArray[np.generic]], NDArray[np.float64]]
    """(name, sums (…, 4, C)) -> (…)"""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseScore:
    """One case's numbers: ``values`` are per-case metrics, the rest is what pooled metrics are made of."""

    id: str
    values: dict[str, float]
    counts: dict[str, float] = field(default_factory=dict)
    """sums of pixels, added up before they are divided"""
    curves: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    """values by threshold, averaged over cases place by place"""
    areas: Areas | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    """what was done to this case's prediction before it was scored"""


def without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON, which has no NaN: a number that does not exist is null."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}
