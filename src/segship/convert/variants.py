"""Open a finished variant on every installed engine, at every batch, and hold it against fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segship.convert import checks
from segship.convert.base import Base
from segship.convert.calibration import Calibration
from segship.convert.quantize import relative_error
from segship.engines import DEFAULT_ENGINE, SessionOptions, get_engine, open_session
from segship.errors import BarMissed
from segship.inference.images import read_image
from segship.inference.preprocess import prepare
from segship.inference.views import check_recipe
from segship.manifest import Executed, Manifest, Recipe
from segship.package import Golden, Package

Progress = Callable[[int, int, str], None]
INT8_CONVOLUTION_SHARE = 0.8
MEASURED_BATCH = 8
"""what executed is read from a run of at most this many pictures"""


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One variant on one engine at one batch size, against fp32 on the same inputs."""

    engine: str
    batch: int
    max_abs: float
    relative_error: float
    """root mean square difference as a share of the fp32 output's standard deviation (see quantize.relative_error)"""
    allowed: float
    """on ``relative_error``"""
    warning: str = ""

    @property
    def passed(self) -> bool:
        return self.relative_error <= self.allowed  # NaN compares false, as it must

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}

    @staticmethod
    def header() -> str:
        return f"{'engine':<12} {'batch':>5} {'max abs':>10} {'rel. error':>10} {'allowed':>9}"

    def as_text(self) -> str:
        return (
            f"{self.engine:<12} {self.batch:>5} {self.max_abs:>10.3g} {self.relative_error:>10.3g} {self.allowed:>9.3g}"
        )


def check_variant(
    base: Base,
    manifest: Manifest,
    files: dict[str, bytes],
    precision: str,
    engines: Sequence[str],
    calibration: Calibration | None,
    progress: Progress | None = None,
) -> tuple[list[CheckRow], list[Executed]]:
    """Rows for each engine and batch, and what each engine executed. Raises BarMissed, EngineError.

    The bound is the engine's tolerance for the precision, on the root mean square difference relative to the
    standard deviation of fp32's output. An integer variant that equals fp32 is a failure too: nothing was quantised.
    """
    variant = manifest.variant(precision)
    assert variant is not None
    rows: list[CheckRow] = []
    executed: list[Executed] = []
    with checks.temporary_package(manifest, files) as package:
        x = check_inputs(base, manifest, calibration, max(variant.batches))
        expected = _reference(package, manifest, x, base.batches)
        for number, engine in enumerate(engines):
            if progress is not None:
                progress(number, len(engines), f"checking {precision} on {engine}")
            found, record = _on_engine(package, manifest, precision, engine, x, expected)
            rows += found
            executed.append(record)
    failed = [row for row in rows if not row.passed]
    if failed:
        worst = max(failed, key=lambda row: row.relative_error)
        raise BarMissed(
            f"{precision} on {worst.engine}, batch {worst.batch}: the network's output differs from fp32's by {worst.relative_error:.3g} of "
            f"their spread where {worst.allowed:.3g} is allowed; nothing was written"
        )
    if precision in ("int8", "int16") and any(row.max_abs == 0 for row in rows):
        raise BarMissed(f"{precision} gives exactly the answers of fp32, so nothing was quantised; nothing was written")
    return rows, executed


def check_inputs(base: Base, manifest: Manifest, calibration: Calibration | None, count: int) -> np.ndarray:
    """(count, C, h, w) network inputs: the golden sample and its reflections, then calibration pictures in turn."""
    recipe = manifest.recipe
    golden = base.package.golden()
    pool: list[np.ndarray] = []
    if golden is not None:
        pool += golden_inputs(golden, recipe)
    elif calibration is not None and manifest.preprocess == base.manifest.preprocess:
        pool += list(calibration.inputs[:count])
    else:
        height, width = checks.network_size(recipe)
        pool.append(np.random.default_rng(0).random((recipe.network.input_channels, height, width), np.float32))
    return np.stack([pool[i % len(pool)] for i in range(count)])


def golden_inputs(golden: Golden, recipe: Recipe) -> list[np.ndarray]:
    """What the network gets of a package's golden sample, and its reflections."""
    if recipe.input.kind == "volume":
        from segship.convert.calibration_volume import golden_windows

        return golden_windows(golden.input_bytes, recipe)
    small = check_recipe(recipe)
    x = checks.bare_input(prepare(read_image(golden.input_bytes, recipe.input, name=golden.input_name), small).x, small)
    return [x, x[:, ::-1], x[:, :, ::-1], x[:, ::-1, ::-1]]


def _reference(package: Package, manifest: Manifest, x: np.ndarray, fixed: tuple[int, ...]) -> np.ndarray:
    """fp32 logits of the first member on the default engine, a picture (or the graph's own batch) at a time."""
    names = checks.checking_engines(None, "fp32")
    engine = DEFAULT_ENGINE if DEFAULT_ENGINE in names else names[0]
    session = open_session(engine, package.graph_path("fp32", manifest.network.members[0]), SessionOptions())
    size = fixed[0] if fixed else 1
    try:
        return np.concatenate([session.run(x[i : i + size])[0] for i in range(0, len(x), size)])
    finally:
        session.close()


def _on_engine(
    package: Package, manifest: Manifest, precision: str, engine: str, x: np.ndarray, expected: np.ndarray
) -> tuple[list[CheckRow], Executed]:
    variant = manifest.variant(precision)
    assert variant is not None
    graph = package.graph_path(precision, manifest.network.members[0])
    allowed = get_engine(engine).TOLERANCE[precision]
    probabilities = manifest.network.outputs[0].values == "probabilities"
    rows: list[CheckRow] = []
    session = None
    record: Executed | None = None
    measured = max((b for b in variant.batches if b <= MEASURED_BATCH), default=min(variant.batches))
    try:
        for batch in variant.batches:
            if session is None or variant.shapes == "static":
                if session is not None:
                    session.close()
                static = (batch, *x.shape[1:]) if variant.shapes == "static" else None
                session = open_session(
                    engine, graph, SessionOptions(precision=precision, static_shape=static, profile=True)
                )
            got, wanted = session.run(x[:batch])[0], expected[:batch]
            rows.append(
                CheckRow(
                    engine=engine,
                    batch=batch,
                    max_abs=float(np.abs(got - wanted).max()),
                    relative_error=relative_error(got, wanted, probabilities=probabilities),
                    allowed=allowed,
                )
            )
            if batch == measured:
                record = session.executed(x[:batch])
    finally:
        if session is not None:
            session.close()
    assert record is not None
    share = record.convolution_share.get("i8", 0.0)
    if precision == "int8" and engine == DEFAULT_ENGINE and share < INT8_CONVOLUTION_SHARE:
        warning = f"only {share:.0%} of the convolution time runs in int8 on {engine}, the rest in float32"
        rows[0] = CheckRow(**{**asdict(rows[0]), "warning": warning})
    return rows, record
