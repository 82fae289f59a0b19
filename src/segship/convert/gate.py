"""The accuracy gate: a variant is kept only when the world's own metric drops by no more than it may.

Fail-closed: where the bar is missed, the blocks whose quantisation disturbs the logits most are put back to
float32, one at a time, until the drop is small enough; where even that does not help, ``BarMissed`` carries the
table of what was tried and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from segship.errors import BarMissed
from segship.manifest import Drop

Progress = Callable[[int, int, str], None]
Measure = Callable[[tuple[str, ...]], Drop]
"""layers kept in float32 -> the drop that such a variant has"""
Logits = Callable[[tuple[str, ...]], np.ndarray]
"""layers kept in float32 -> logits on a few inputs"""
FALLBACK_SHARE = 0.5
"""with more than this share of all layers back in float32 the variant is int8 in name only"""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate: which layers were float32, and what it lost."""

    kept_in_float: tuple[str, ...]
    drop: Drop
    passed: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "kept_in_float": list(self.kept_in_float),
            "drop": self.drop.model_dump(mode="json"),
            "passed": self.passed,
        }


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """The accepted candidate, and all that was tried on the way. ``max_drop`` None: measured, nothing required."""

    drop: Drop
    kept_in_float: tuple[str, ...]
    max_drop: float | None
    trials: tuple[Trial, ...]
    sensitivity: dict[str, float] = field(default_factory=dict)
    """group -> share of the logits' quantisation error that putting this group back to float32 takes away"""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "drop": self.drop.model_dump(mode="json"), "trials": [t.as_dict() for t in self.trials]}


def rank_groups(
    groups: Mapping[str, tuple[str, ...]],
    logits: Logits,
    reference: np.ndarray,
    kept: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> dict[str, float]:
    """Groups by how much of the logits' squared error goes away when one alone is put back, largest first."""
    reference = reference.astype(np.float64)

    def error(layers: tuple[str, ...]) -> float:
        return float(np.mean(np.square(logits(layers) - reference)))

    whole = error(kept) or 1e-30
    gains = {}
    open_groups = {name: layers for name, layers in groups.items() if not set(layers) <= set(kept)}
    for done, (name, layers) in enumerate(open_groups.items()):
        if progress is not None:
            progress(done, len(open_groups), f"how much int8 in {name} disturbs")
        gains[name] = 1 - error(_union(kept, layers)) / whole
    return dict(sorted(gains.items(), key=lambda item: (-item[1], item[0])))


def search(
    measure: Measure,
    max_drop: float | None,
    *,
    groups: Mapping[str, tuple[str, ...]] | None = None,
    rank: Callable[[tuple[str, ...]], Mapping[str, float]] | None = None,
    kept: tuple[str, ...] = (),
    what: str = "the variant",
    progress: Progress | None = None,
) -> GateResult:
    """Measure the variant; while it drops by more than ``max_drop`` put the next group back to float32.

    ``rank`` orders the groups (see ``rank_groups``) and is asked only when it is needed. Without ``groups``
    there is nothing to put back. Raises BarMissed with the table of what was tried.
    """
    trials = [_trial(measure, kept, max_drop)]
    if trials[0].passed:
        return _result(trials, max_drop, {})
    sensitivity: Mapping[str, float] = rank(kept) if groups and rank is not None else {}
    total = len({layer for layers in (groups or {}).values() for layer in layers})
    for number, group in enumerate(sensitivity):
        assert groups is not None
        kept = _union(kept, groups[group])
        if len(kept) > FALLBACK_SHARE * total:
            break
        if progress is not None:
            progress(number, len(sensitivity), f"{group} back to float32")
        trials.append(_trial(measure, kept, max_drop))
        if trials[-1].passed:
            return _result(trials, max_drop, dict(sensitivity))
    raise BarMissed(
        f"{what} loses more than the allowed {max_drop:g}; nothing was written. Tried:\n{table(trials)}\n"
        "Give more calibration images like those of the evaluation, try --activations or --weights otherwise, or "
        "allow a larger --max-drop"
    )


def table(trials: Sequence[Trial]) -> str:
    """What was tried, one line a candidate."""
    lines = []
    for trial in trials:
        drop = trial.drop
        low, high = drop.interval95
        kept = ", ".join(trial.kept_in_float) or "nothing"
        lines.append(
            f"  drop {drop.drop:+.5f} [{low:+.5f}, {high:+.5f}] {drop.metric} {drop.value:.5f} (fp32 {drop.fp32:.5f}), "
            f"worst case {drop.worst_drop:+.4f}; in float32: {kept}"
        )
    return "\n".join(lines)


def _trial(measure: Measure, kept: tuple[str, ...], max_drop: float | None) -> Trial:
    drop = measure(kept)
    # NaN compares false, as it must
    return Trial(kept_in_float=kept, drop=drop, passed=max_drop is None or drop.drop <= max_drop)


def _result(trials: Sequence[Trial], max_drop: float | None, sensitivity: dict[str, float]) -> GateResult:
    last = trials[-1]
    return GateResult(
        drop=last.drop,
        kept_in_float=last.kept_in_float,
        max_drop=max_drop,
        trials=tuple(trials),
        sensitivity=sensitivity,
    )


def _union(first: tuple[str, ...], second: Sequence[str]) -> tuple[str, ...]:
    return (*first, *(layer for layer in second if layer not in first))
