"""Timing of calls side by side: warm-up, then rounds in which every variant has its turn (A B C A B C …).

A machine's speed drifts over minutes (clock, heat, neighbours). Interleaving lets each variant meet the same drift,
so that their ratio holds even where their times do not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from segship.errors import UsageError

K = TypeVar("K")
Progress = Callable[[int, int, str], None]
SETTLE_SECONDS = 0.05
"""pause before a turn: worker threads of the variant before it stop spinning"""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What is timed: one call does ``items`` pieces of work; ``streams`` calls may run at once."""

    run: Callable[[], Any]
    items: int
    streams: int = 1
    warm: Callable[[], Any] | None = None
    """less of the same work, which warms up as well; None: the whole"""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Latencies of all timed calls, and the rate of each round."""

    latencies_ms: tuple[float, ...]
    rates_per_second: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Median over rounds of items per second."""
        return float(np.median(self.rates_per_second))

    def percentiles_ms(self) -> dict[str, float]:
        """p50, p90, p99, least and mean of one call, in milliseconds."""
        values = np.asarray(self.latencies_ms)
        named = {f"p{q}": float(np.percentile(values, q)) for q in (50, 90, 99)}
        return named | {"min": float(values.min()), "mean": float(values.mean())}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to time. A turn is ``iterations`` calls, or as many as fit into ``duration_s`` (at least one); with
    ``at_most_s`` it ends early, but not before one call, when it has taken so long."""

    warmup: int = 2
    """untimed calls before a call's first turn; before each later turn it is one"""
    iterations: int = 10
    duration_s: float | None = None
    repeat: int = 3
    """turns of each call"""
    at_most_s: float | None = None
    """seconds; slower calls than that are not warmed up twice either"""

    def __post_init__(self) -> None:
        if min(self.iterations, self.repeat) < 1 or self.warmup < 0 or (self.duration_s or 1) <= 0:
            raise UsageError("iterations, repeat and duration must be positive, and warm-up not negative")


def measure(calls: Mapping[K, Call], plan: Plan, progress: Progress | None = None) -> dict[K, Timing]:
    """Time every call in ``plan.repeat`` rounds, each round giving each call its turn."""
    latencies: dict[K, list[float]] = {name: [] for name in calls}
    rates: dict[K, list[float]] = {name: [] for name in calls}
    turns = plan.repeat * len(calls)
    for turn in range(turns):
        name = list(calls)[turn % len(calls)]
        call = calls[name]
        time.sleep(SETTLE_SECONDS)
        _warm_up(call, plan, latencies[name])
        found, seconds = _turn(call, plan)
        latencies[name] += found
        rates[name].append(len(found) * call.items / seconds)
        if progress is not None:
            progress(turn + 1, turns, getattr(name, "label", str(name)))
    return {name: Timing(latencies_ms=tuple(latencies[name]), rates_per_second=tuple(rates[name])) for name in calls}


def _warm_up(call: Call, plan: Plan, latencies: list[float]) -> None:
    """Untimed calls, fewer where one is known or found to take longer than a turn may."""
    patience = plan.at_most_s or float("inf")
    if latencies and latencies[-1] / 1e3 > patience:
        return
    start = time.perf_counter()
    for _ in range(min(plan.warmup, 1) if latencies else plan.warmup):
        (call.warm or call.run)()
        if time.perf_counter() - start > patience:
            return


def _turn(call: Call, plan: Plan) -> tuple[list[float], float]:
    """Latencies in ms of one turn, and its wall time in s."""
    taken: list[float] = []
    errors: list[BaseException] = []
    lock = threading.Lock()
    started = 0
    start = time.perf_counter()

    def next_one() -> bool:
        nonlocal started
        with lock:
            elapsed = time.perf_counter() - start
            enough = started >= plan.iterations if plan.duration_s is None else elapsed >= plan.duration_s
            over = started > 0 and (enough or elapsed >= (plan.at_most_s or float("inf")))
            if over or errors:
                return False
            started += 1
            return True

    def work() -> None:
        try:
            while next_one():
                before = time.perf_counter()
                call.run()
                taken.append((time.perf_counter() - before) * 1e3)
        except BaseException as error:  # handed to the caller's thread below
            errors.append(error)

    if call.streams == 1:
        work()
    else:
        threads = [threading.Thread(target=work, daemon=True) for _ in range(call.streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return taken, time.perf_counter() - start
