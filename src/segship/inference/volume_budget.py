"""Seconds a case may take: the settings of the sliding window priced on this machine, and the best one that fits.

One pass of the network over one window is timed here, with this package, precision and engine; what reading,
preprocessing, decoding and encoding take is timed on the costliest case. Windows × mirrorings × members × that is what a
setting costs. The best setting is the first that fits in this order, in which each thing is given up only where what
stands above it does not suffice:

    1. mirroring, axis by axis, the first axis first
    2. ensemble members, the last first
    3. the windows' overlap: steps of 0.75 and of a whole window

What the user fixed (step, members, no mirroring) is not touched.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segship.errors import SegshipError, UsageError
from segship.inference.volume_cases import Case
from segship.inference.volume_cost import Cost, cost_of, cost_of_extent
from segship.inference.volume_memory import Extent
from segship.inference.volume_network import TileOptions, batch_of, count_passes
from segship.inference.writers import write_bytes
from segship.manifest import Recipe, Tiling

if TYPE_CHECKING:
    from segship.inference.volume_predictor import VolumePredictor

FILE = "time-budget.json"
WIDER_STEPS = (0.75, 1.0)
TURNS = 3
ENOUGH_SECONDS = 4.0
"""so long a window is timed at most, after one turn to warm up"""


class NothingFits(UsageError):
    """Even the cheapest setting takes longer; ``table`` says what each would take."""

    def __init__(self, message: str, table: str) -> None:
        super().__init__(message)
        self.table = table


@dataclass(frozen=True, kw_only=True)
class Price:
    """One setting and what the case that takes longest costs with it."""

    step: float
    """as a part of the window"""
    mirror_axes: tuple[int, ...]
    members: tuple[str, ...]
    case: str
    windows: int
    passes: int
    network_seconds: float
    case_seconds: float
    total_seconds: float
    """all cases, one after the other"""
    gives_up: tuple[str, ...]

    @property
    def mirrorings(self) -> int:
        return 2 ** len(self.mirror_axes)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What was measured, what settings cost, and which one runs."""

    seconds: float
    """that a case may take"""
    window_seconds: float
    """one pass of one member over one window"""
    rest_seconds: float
    """reading, preprocessing, decoding and encoding of the case that they were timed on"""
    rest_case: str
    cases: int
    rows: tuple[Price, ...]
    """the package's own setting, each thing given up alone, the chosen one, the cheapest"""
    chosen: Price
    kept: bool = False
    """taken from an earlier run into the same folder"""

    def applied(self, tiles: TileOptions, recipe: Recipe) -> TileOptions:
        """``tiles`` with the chosen setting."""
        return _options(tiles, recipe, self.chosen.step, self.chosen.mirror_axes, self.chosen.members)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as the output folder keeps it."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @property
    def line(self) -> str:
        """What was chosen and what that gives up."""
        given = f"gives up {'; '.join(self.chosen.gives_up)}" if self.chosen.gives_up else "gives up nothing"
        before = " (as chosen before)" if self.kept else ""
        return (
            f"time budget of {self.seconds:g} s a case{before}: {given}; about {_seconds(self.chosen.case_seconds)} for "
            f"{self.chosen.case}, {_seconds(self.chosen.total_seconds)} for {self.cases} case(s)"
        )

    def __str__(self) -> str:
        about = (
            f"one pass over one window {_seconds(self.window_seconds)}, reading to writing without the network "
            f"{_seconds(self.rest_seconds)} ({self.rest_case}), measured here"
        )
        return "\n".join([about, table(self.rows, self.chosen, self.seconds), self.line])


def choose_setting(
    predictor: VolumePredictor,
    cases: Sequence[Case],
    tiles: TileOptions,
    seconds: float,
    output: Path,
    previous: Path | None = None,
) -> Budget | None:
    """The best setting with which no case takes longer than ``seconds``; None where no case can be read.

    A choice that an earlier run left in ``output`` for the same package, engine, cases and budget stands, so that a
    resumed run and another part of a run give like answers. ``previous`` is a folder of the first stage's labels.
    Raises UsageError for a budget that is none, NothingFits where even the cheapest setting takes longer.
    """
    if not seconds > 0:
        raise UsageError(f"--time-budget takes seconds above 0, not {seconds:g}")
    manifest = predictor.manifest
    costs = _costs(predictor, cases, tiles)
    if not costs:
        return None
    key = _key(predictor, costs, tiles, seconds)
    earlier = _read(output / FILE, key)
    if earlier is not None:
        return earlier
    timed = _timed_rest(predictor, cases, costs, previous)
    if timed is None:
        return None
    name, rest, voxels = timed
    window = window_seconds(predictor, tiles)
    settings = candidates(manifest.recipe, tiles)
    prices = [_price(manifest.recipe, one, costs, window, rest / voxels) for one in settings]
    chosen = next((price for price in prices if price.case_seconds <= seconds), None)
    cheapest = min(prices, key=lambda price: price.case_seconds)
    if chosen is None:
        without = f" without {', '.join(cheapest.gives_up)}" if cheapest.gives_up else ""
        raise NothingFits(
            f"no setting keeps to {seconds:g} s a case: {cheapest.case} takes about {_seconds(prices[0].case_seconds)}, and"
            f"{without} still {_seconds(cheapest.case_seconds)} ({_seconds(rest)} of it beside the network); raise "
            "--time-budget, or run another precision or machine",
            table(_shown(prices, cheapest, cheapest), None, seconds),
        )
    found = Budget(
        seconds=seconds, window_seconds=window, rest_seconds=rest, rest_case=name, cases=len(costs),
        rows=_shown(prices, chosen, cheapest), chosen=chosen,
    )  # fmt: skip
    write_bytes(output / FILE, _dumped(found, key))
    return found


# ---------------------------------------------------------------------------------------------- settings


def candidates(recipe: Recipe, tiles: TileOptions) -> list[TileOptions]:
    """Every setting that may be tried, the best first; the first is the package's own with ``tiles``."""
    assert recipe.tiling is not None
    tiling = tiles.applied(recipe.tiling)
    own = _step(tiling)
    steps = [own, *(step for step in WIDER_STEPS if tiles.step_size is None and step > own + 1e-9)]
    names = tiles.members or recipe.network.members
    fewest = len(names) if tiles.members else 1
    axes = tiling.mirror_axes
    subsets = [axes] if tiles.mirror_axes is not None else [axes[first:] for first in range(len(axes) + 1)]
    return [
        _options(tiles, recipe, step, subset, names[:count])
        for step in steps
        for count in range(len(names), fewest - 1, -1)
        for subset in subsets
    ]


def _options(
    tiles: TileOptions, recipe: Recipe, step: float, axes: Sequence[int], members: Sequence[str]
) -> TileOptions:
    """``tiles`` so changed; what stays as the package says is left unsaid."""
    assert recipe.tiling is not None
    own = tiles.applied(recipe.tiling)
    return replace(
        tiles,
        step_size=tiles.step_size if abs(step - _step(own)) < 1e-9 else step,
        mirror=tiles.mirror and bool(axes or not own.mirror_axes),
        mirror_axes=tiles.mirror_axes if tuple(axes) in ((), own.mirror_axes) else tuple(axes),
        members=tiles.members if tuple(members) == (tiles.members or recipe.network.members) else tuple(members),
    )


def _step(tiling: Tiling) -> float:
    return max(step / side for step, side in zip(tiling.step, tiling.window, strict=True))


def _given_up(recipe: Recipe, tiles: TileOptions) -> tuple[str, ...]:
    """Against the package's own setting, in words."""
    assert recipe.tiling is not None
    own, now = recipe.tiling, tiles.applied(recipe.tiling)
    found = []
    if len(now.mirror_axes) < len(own.mirror_axes):
        what = "mirroring" if not now.mirror_axes else "some mirroring"
        found.append(f"{what} ({2 ** len(now.mirror_axes)} of {2 ** len(own.mirror_axes)} passes)")
    used, there = len(tiles.members or recipe.network.members), len(recipe.network.members)
    if used < there:
        found.append(f"{there - used} of {there} folds")
    if _step(now) > _step(own) + 1e-9:
        found.append(f"overlap (step {_step(now):g} of the window instead of {_step(own):g})")
    return tuple(found)


# ---------------------------------------------------------------------------------------------- measuring


def window_seconds(predictor: VolumePredictor, tiles: TileOptions) -> float:
    """Seconds of one pass of one member over one window, in as large a batch as `scores` forms; the median of turns."""
    tiling = predictor.manifest.tiling
    assert tiling is not None
    batch = batch_of(tiles, tiling)
    shape = (batch, predictor.manifest.network.input_channels, *tiling.window)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    run = predictor.passes(tiles)[0]
    run(x)
    taken: list[float] = []
    while not taken or (len(taken) < TURNS and sum(taken) < ENOUGH_SECONDS):
        start = time.perf_counter()
        run(x)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken)) / batch


def _timed_rest(
    predictor: VolumePredictor, cases: Sequence[Case], costs: Sequence[tuple[str, Cost]], previous: Path | None
) -> tuple[str, float, int] | None:
    """(case, seconds, its voxels): everything but this package's network, on the costliest case that can be read."""
    by_name = {case.name: case for case in cases}
    for name, cost in sorted(costs, key=lambda item: -item[1].passes):
        before = (
            None if previous is None else previous / f"{name}{getattr(predictor.manifest.input, 'file_ending', '')}"
        )
        start = time.perf_counter()
        try:
            volume = predictor.read(by_name[name])
            prepared = predictor.prepare(volume, before)
            empty = np.zeros((predictor.manifest.network.outputs[0].channels, *prepared.x.shape[1:]), np.float32)
            predictor.predicted(volume, prepared, empty).encode()
        except (SegshipError, MemoryError):  # the run will say why
            continue
        return name, time.perf_counter() - start, int(np.prod(cost.shape))
    return None


def _costs(predictor: VolumePredictor, cases: Sequence[Case], tiles: TileOptions) -> list[tuple[str, Cost]]:
    """Each case's cost from its header, or from reading it where the header does not tell; broken ones are left out."""
    found = []
    for case in cases:
        cost = cost_of(case.files, predictor.manifest, tiles)
        if cost is None:
            try:
                volume = predictor.read(case)
                grid = Extent(shape=volume.shape, spacing=volume.spacing)
                cost = cost_of_extent(grid, predictor.manifest, tiles)
            except (SegshipError, MemoryError, ValueError, ArithmeticError):
                continue
        found.append((case.name, cost))
    return found


def _price(
    recipe: Recipe, tiles: TileOptions, costs: Sequence[tuple[str, Cost]], window: float, rest_per_voxel: float
) -> Price:
    assert recipe.tiling is not None
    tiling = tiles.applied(recipe.tiling)
    members = tiles.members or recipe.network.members
    taken = []
    for name, cost in costs:
        passes = count_passes(cost.grid, tiling, len(members))
        rest = rest_per_voxel * float(np.prod(cost.shape))
        taken.append((passes * window + rest, passes, name))
    seconds, passes, name = max(taken)
    return Price(
        step=_step(tiling),
        mirror_axes=tiling.mirror_axes,
        members=tuple(members),
        case=name,
        windows=passes // (2 ** len(tiling.mirror_axes) * len(members)),
        passes=passes,
        network_seconds=passes * window,
        case_seconds=seconds,
        total_seconds=sum(one for one, _, _ in taken),
        gives_up=_given_up(recipe, tiles),
    )


# ------------------------------------------------------------------------------------------ telling, keeping


def _shown(prices: Sequence[Price], chosen: Price, cheapest: Price) -> tuple[Price, ...]:
    """The first, each thing given up alone, the chosen and the cheapest; each once, in the order of preference."""
    own = prices[0]
    alone = [
        price
        for price in prices
        if (price.step != own.step) + (price.mirror_axes != own.mirror_axes) + (price.members != own.members) == 1
    ]
    least = [price for price in alone if price.step != own.step or not price.mirror_axes or len(price.members) == 1]
    shown = [own, *(price for price in least if price.mirror_axes in (own.mirror_axes, ())), chosen, cheapest]
    return tuple(price for price in prices if any(price is one for one in shown))


def table(rows: Sequence[Price], chosen: Price | None, seconds: float) -> str:
    """One line a setting: what it is, how many passes, and what the costliest case takes."""
    header = ["mirrorings", "step", "folds", "windows", "passes", "network", "a case", "gives up"]
    lines = [header]
    for row in rows:
        mark = "  <- runs" if row == chosen else "" if row.case_seconds <= seconds else "  (too long)"
        lines.append(
            [
                str(row.mirrorings), f"{row.step:g}", str(len(row.members)), str(row.windows), f"{row.passes:,}",
                _seconds(row.network_seconds), _seconds(row.case_seconds), ("; ".join(row.gives_up) or "nothing") + mark,
            ]
        )  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    last = len(header) - 1
    return "\n".join(
        "  ".join(cell.ljust(w) if i == last else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )  # fmt: skip


def _seconds(value: float) -> str:
    if value >= 120:
        return f"{value / 60:.0f} min"
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"


def _key(predictor: VolumePredictor, costs: Sequence[tuple[str, Cost]], tiles: TileOptions, seconds: float) -> str:
    """Of all that decides the choice but the machine's mood."""
    parts = [
        predictor.package.sha256, predictor.precision, predictor.engine, predictor.options.device,
        predictor.options.threads, seconds, asdict(tiles), [(name, cost.shape, cost.grid) for name, cost in costs],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _dumped(found: Budget, key: str) -> bytes:
    return (json.dumps({"made_for": key, **found.as_dict()}, indent=2, sort_keys=True) + "\n").encode()


def _read(path: Path, key: str) -> Budget | None:
    """An earlier choice for exactly this; None where there is none, or the file is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("made_for") != key:
            return None
        prices = [_price_of(row) for row in (*data.pop("rows"), data.pop("chosen"))]
        return Budget(**{**data, "rows": tuple(prices[:-1]), "chosen": prices[-1], "kept": True})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _price_of(row: dict[str, Any]) -> Price:
    lists = ("mirror_axes", "members", "gives_up")
    values: dict[str, Any] = {name: tuple(value) if name in lists else value for name, value in row.items()}
    return Price(**values)
