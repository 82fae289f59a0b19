"""How sure a difference between two precisions is: a paired bootstrap over cases.

Both sides scored the same cases, so what is resampled is the per-case difference; the spread between images,
which is far larger than the effect of a precision, drops out. Source: Efron and Tibshirani, An Introduction to
the Bootstrap (1993), chapters 12 and 13 (percentile interval).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segship.errors import UsageError

RESAMPLES = 10_000
SEED = 20180101
_CHUNK_VALUES = 4_000_000  # random indices held at once; bounds memory for data sets of any size


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Mean of ``a - b`` over cases with its 95 % bounds."""

    mean: float
    low: float
    high: float
    cases: int

    @property
    def bounds(self) -> tuple[float, float]:
        return (self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """The case that lost most; ``drop`` is reference minus value, positive where it is worse."""

    id: str
    reference: float
    value: float
    drop: float


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = SEED
) -> Interval:
    """Interval of mean(a - b), a and b the same cases' scores in the same order. Same seed, same interval.

    With one case the interval has no width: that is what the data says, and nothing about other images.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise UsageError(f"a paired comparison needs the same cases on both sides, got {first.size} and {second.size}")
    differences = first - second
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _CHUNK_VALUES // differences.size)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        picks = random.integers(0, differences.size, (count, differences.size))
        means[start : start + count] = differences[picks].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean=float(differences.mean()), low=float(low), high=float(high), cases=differences.size)


def pooled_bootstrap(
    a: NDArray[np.generic],
    b: NDArray[np.generic],
    value: Callable[[NDArray[np.generic]], NDArray[np.float64]],
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = SEED,
) -> Interval:
    """Interval of value(sum of a) - value(sum of b), where a number is made of counts summed over cases.

    ``a`` and ``b`` (n, …) are the same cases' counts in one order; cases are drawn again, the counts of each draw summed
    and the two numbers of that draw subtracted. ``value`` takes sums (…) or (draws, …). ``mean`` is the difference over
    all cases as they are. Draws without a number (NaN) are left out.
    """
    if a.shape != b.shape or not len(a):
        raise UsageError(f"a paired comparison needs the same cases on both sides, got {len(a)} and {len(b)}")
    # counts are whole numbers far below 2**53, so float64 sums are exact and BLAS adds them
    first, second = (side.reshape(len(side), -1).astype(np.float64) for side in (a, b))
    random = np.random.default_rng(seed)
    differences = np.empty(resamples)
    step = max(1, _CHUNK_VALUES // max(len(a), first.shape[1]))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        often = random.multinomial(len(a), np.full(len(a), 1 / len(a)), count).astype(np.float64)
        sums = ((often @ side).reshape(count, *a.shape[1:]) for side in (first, second))
        before, after = (value(side) for side in sums)
        differences[start : start + count] = before - after
    tail = (1 - level) / 2
    known = differences[~np.isnan(differences)]
    low, high = np.quantile(known, [tail, 1 - tail]) if known.size else (float("nan"), float("nan"))
    whole = float(value(a.sum(axis=0)) - value(b.sum(axis=0)))
    return Interval(mean=whole, low=float(low), high=float(high), cases=len(a))


def worst_case(reference: Mapping[str, float], values: Mapping[str, float], higher_is_better: bool = True) -> WorstCase:
    """The case with the largest loss against ``reference`` (both: case id -> score)."""
    if not reference or set(reference) != set(values):
        raise UsageError("the worst case needs the same cases on both sides; score both again on one data set")
    sign = 1 if higher_is_better else -1
    # ties go to the first id, so that a repeated run names the same case
    case = min(reference, key=lambda i: (-sign * (reference[i] - values[i]), i))
    drop = sign * (reference[case] - values[case])
    return WorstCase(id=case, reference=reference[case], value=values[case], drop=drop)
