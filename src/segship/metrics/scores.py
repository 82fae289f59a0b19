"""What a scorer says about one case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseScore:
    """One case's numbers: ``values`` are per-case metrics, the rest is what pooled metrics are made of."""

    id: str
    values: dict[str, float]
    counts: dict[str, float] = field(default_factory=dict)
    """sums of pixels, added up before they are divided"""
    curves: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    """values by threshold, averaged over cases place by place"""
    notes: tuple[str, ...] = ()
    """what was done to this case's prediction before it was scored"""


def without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON, which has no NaN: a number that does not exist is null."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}
