"""The folder that `segship run` leaves behind, and the summary that stands for it.

    RUN/net.segship            the package
    RUN/predictions/           masks of the evaluated images
    RUN/summary.json           parity, variants (accuracy and speed in one row each), environment
    RUN/report.html            the page made of all this
    RUN/evaluation/            as `segship evaluate -o` writes it: summary.json, <precision>/cases.csv, pictures.json, pictures/
    RUN/benchmark.json         as `segship benchmark --json` prints it

Everything but the package may be missing: the report shows what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segship.inference.writers import write_bytes
from segship.measure.environment import environment
from segship.measure.evaluate import EvaluateResult
from segship.measure.rows import BenchmarkResult
from segship.package import Package, dump_json

PACKAGE = "net.segship"
SUMMARY = "summary.json"
REPORT = "report.html"
EVALUATION = "evaluation"
BENCHMARK = "benchmark.json"
PREDICTIONS = "predictions"

_SPEED = ("latency_ms", "latency_percentiles_ms", "images_per_second", "files_per_second", "threads", "streams")


def run_summary(
    package: Package,
    *,
    evaluation: EvaluateResult | None = None,
    benchmark: BenchmarkResult | None = None,
    parity: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """One row a variant with its accuracy and its speed; what was not measured is null, never a guess.

    ``parity`` rows have stage, max_abs, mean_abs, label_agreement (and tolerance, shared_code where known).
    """
    metric = package.manifest.metric
    scored = {(v.precision, v.evaluation.engine): v.as_dict() for v in evaluation.variants} if evaluation else {}
    timed: dict[tuple[str, str], dict[str, Any]] = {}
    for row in benchmark.rows if benchmark else ():
        # with several thread or stream counts the first stands here; all are in benchmark.json
        timed.setdefault((row.setting.precision, row.setting.engine), row.as_dict())
    dataset = None
    if evaluation is not None:
        about = evaluation.as_dict()
        dataset = {key: about[key] for key in ("dataset", "dataset_sha256", "layout", "split", "split_sha256", "cases")}
    return {
        "metric": {"name": metric.name, "higher_is_better": metric.higher_is_better},
        "parity": [dict(row) for row in parity],
        "variants": [_row(scored.get(key), timed.get(key)) for key in dict.fromkeys([*scored, *timed])],
        "dataset": dataset,
        "package": {"name": package.manifest.name, "file": package.path.name, "sha256": package.sha256},
        "benchmark": benchmark.options | {"inputs": benchmark.inputs} if benchmark else None,
        "environment": benchmark.environment if benchmark else environment(),
        "notes": list(
            dict.fromkeys([*notes, *(evaluation.notes if evaluation else ()), *(benchmark.notes if benchmark else ())])
        ),
    }


def write_run_summary(
    run_dir: Path | str,
    package: Package,
    *,
    evaluation: EvaluateResult | None = None,
    benchmark: BenchmarkResult | None = None,
    parity: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write ``summary.json`` and ``benchmark.json`` into the run folder; returns the summary."""
    folder = Path(run_dir)
    summary = run_summary(package, evaluation=evaluation, benchmark=benchmark, parity=parity, notes=notes)
    if benchmark is not None:
        write_bytes(folder / BENCHMARK, dump_json(benchmark.as_dict()))
    write_bytes(folder / SUMMARY, dump_json(summary))
    return summary


def _row(scored: dict[str, Any] | None, timed: dict[str, Any] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"value": None, "drop": None, "latency_ms": {}, "images_per_second": {}}
    if timed is not None:
        row |= {
            key: timed[key]
            for key in ("precision", "engine", "device", "executed", "max_abs", "label_agreement", *_SPEED)
        }
    if scored is not None:
        row |= scored | {"label_agreement": scored["label_agreement"] or row.get("label_agreement")}
    return row
