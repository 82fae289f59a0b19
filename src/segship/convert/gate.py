"""The accuracy gate: a variant is kept only when it loses no more than it may.

What it loses is the drop of the world's own metric where there is ground truth, and of a saliency package also how
far its maps are from fp32's. Fail-closed: where a bar is missed, the blocks whose quantisation disturbs the
network's output most are put back to float32, one at a time, until it holds; where even that does not help,
``BarMissed`` carries the table of what was tried and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segship.errors import BarMissed
from segship.manifest import Drop, Fidelity

Progress = Callable[[int, int, str], None]
FALLBACK_SHARE = 0.5
"""with more than this share of all layers back in float32 the variant is quantised in name only"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one candidate lost; None where it was not measured."""

    drop: Drop | None = None
    fidelity: Fidelity | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "drop": self.drop.model_dump(mode="json") if self.drop else None,
            "fidelity": self.fidelity.model_dump(mode="json") if self.fidelity else None,
        }


Measure = Callable[[tuple[str, ...]], Measured]
"""layers kept in float32 -> what such a variant loses"""
Logits = Callable[[tuple[str, ...]], np.ndarray]
"""layers kept in float32 -> the network's output on a few inputs"""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """What a candidate may lose; None asks for nothing."""

    max_drop: float | None = None
    max_mask_mae: float | None = None

    def passed(self, found: Measured) -> bool:
        """NaN compares false, as it must; so does a bar on something that was not measured."""
        drop = found.drop.drop if found.drop else float("nan")
        mae = found.fidelity.value if found.fidelity else float("nan")
        return (self.max_drop is None or drop <= self.max_drop) and (
            self.max_mask_mae is None or mae <= self.max_mask_mae
        )

    def missed(self, found: Measured) -> str:
        """Which bar the candidate missed, in words."""
        if self.max_drop is not None and not Bars(max_drop=self.max_drop).passed(found):
            return f"loses more than the allowed {self.max_drop:g}"
        return f"gives masks that differ from fp32's by more than the allowed {self.max_mask_mae:g} of full scale"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate: which layers were float32, and what it lost."""

    kept_in_float: tuple[str, ...]
    measured: Measured
    passed: bool

    def as_dict(self) -> dict[str, Any]:
        return {"kept_in_float": list(self.kept_in_float), **self.measured.as_dict(), "passed": self.passed}


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """The accepted candidate, and all that was tried on the way. Without bars: measured, nothing required."""

    measured: Measured
    kept_in_float: tuple[str, ...]
    bars: Bars
    trials: tuple[Trial, ...]
    sensitivity: dict[str, float] = field(default_factory=dict)
    """group -> share of the output's quantisation error that putting this group back to float32 takes away"""

    @property
    def drop(self) -> Drop | None:
        return self.measured.drop

    @property
    def fidelity(self) -> Fidelity | None:
        return self.measured.fidelity

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.measured.as_dict(),
            "kept_in_float": list(self.kept_in_float),
            "max_drop": self.bars.max_drop,
            "max_mask_mae": self.bars.max_mask_mae,
            "trials": [trial.as_dict() for trial in self.trials],
            "sensitivity": self.sensitivity,
        }


def rank_groups(
    groups: Mapping[str, tuple[str, ...]],
    logits: Logits,
    reference: np.ndarray,
    kept: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> dict[str, float]:
    """Groups by how much of the output's squared error goes away when one alone is put back, largest first."""
    reference = reference.astype(np.float64)

    def error(layers: tuple[str, ...]) -> float:
        return float(np.mean(np.square(logits(layers) - reference)))

    whole = error(kept) or 1e-30
    gains = {}
    open_groups = {name: layers for name, layers in groups.items() if not set(layers) <= set(kept)}
    for done, (name, layers) in enumerate(open_groups.items()):
        if progress is not None:
            progress(done, len(open_groups), f"how much rounding in {name} disturbs")
        gains[name] = 1 - error(_union(kept, layers)) / whole
    return dict(sorted(gains.items(), key=lambda item: (-item[1], item[0])))


def search(
    measure: Measure,
    bars: Bars,
    *,
    groups: Mapping[str, tuple[str, ...]] | None = None,
    rank: Callable[[tuple[str, ...]], Mapping[str, float]] | None = None,
    kept: tuple[str, ...] = (),
    what: str = "the variant",
    progress: Progress | None = None,
) -> GateResult:
    """Measure the variant; while it misses a bar put the next group back to float32.

    ``rank`` orders the groups (see ``rank_groups``) and is asked only when it is needed. Without ``groups``
    there is nothing to put back. Raises BarMissed with the table of what was tried.
    """
    trials = [_trial(measure, kept, bars)]
    if trials[0].passed:
        return _result(trials, bars, {})
    sensitivity: Mapping[str, float] = rank(kept) if groups and rank is not None else {}
    total = len({layer for layers in (groups or {}).values() for layer in layers})
    for number, group in enumerate(sensitivity):
        assert groups is not None
        kept = _union(kept, groups[group])
        if len(kept) > FALLBACK_SHARE * total:
            break
        if progress is not None:
            progress(number, len(sensitivity), f"{group} back to float32")
        trials.append(_trial(measure, kept, bars))
        if trials[-1].passed:
            return _result(trials, bars, dict(sensitivity))
    raise BarMissed(
        f"{what} {bars.missed(trials[-1].measured)}; nothing was written. Tried:\n{table(trials)}\n{_advice(bars)}"
    )


def _advice(bars: Bars) -> str:
    first = "Give more calibration images like those of the evaluation, try --activations or --weights otherwise"
    if bars.max_drop is None:
        return f"{first}; --force writes it all the same, and records that"
    return f"{first}, or allow a larger --max-drop"


def table(trials: Sequence[Trial]) -> str:
    """What was tried, one line a candidate."""
    return "\n".join(_line(trial) for trial in trials)


def _line(trial: Trial) -> str:
    parts = []
    drop, fidelity = trial.measured.drop, trial.measured.fidelity
    if drop is not None:
        low, high = drop.interval95
        parts.append(
            f"drop {drop.drop:+.5f} [{low:+.5f}, {high:+.5f}] {drop.metric} {drop.value:.5f} (fp32 {drop.fp32:.5f}), "
            f"worst case {drop.worst_drop:+.4f}"
        )
    if fidelity is not None:
        parts.append(fidelity.text)
    return f"  {'; '.join([*parts, f'in float32: {_shorten(trial.kept_in_float)}'])}"


def _shorten(layers: tuple[str, ...], most: int = 16) -> str:
    if not layers:
        return "nothing"
    more = f" and {len(layers) - most} more" if len(layers) > most else ""
    return ", ".join(layers[:most]) + more


def _trial(measure: Measure, kept: tuple[str, ...], bars: Bars) -> Trial:
    measured = measure(kept)
    return Trial(kept_in_float=kept, measured=measured, passed=bars.passed(measured))


def _result(trials: Sequence[Trial], bars: Bars, sensitivity: dict[str, float]) -> GateResult:
    last = trials[-1]
    return GateResult(
        measured=last.measured,
        kept_in_float=last.kept_in_float,
        bars=bars,
        trials=tuple(trials),
        sensitivity=sensitivity,
    )


def _union(first: tuple[str, ...], second: Sequence[str]) -> tuple[str, ...]:
    return (*first, *(layer for layer in second if layer not in first))
