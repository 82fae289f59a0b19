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

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segship.inference.writers import write_bytes
from segship.measure.environment import environment
from segship.measure.evaluate import EvaluateResult
from segship.measure.rows import BenchmarkResult
from segship.package import Package, dump_json, sha256_file

PACKAGE = "net.segship"
SUMMARY = "summary.json"
REPORT = "report.html"
EVALUATION = "evaluation"
BENCHMARK = "benchmark.json"
PREDICTIONS = "predictions"
STEPS = "steps.json"

Data = Mapping[str, Any]
_SPEED = ("latency_ms", "latency_percentiles_ms", "images_per_second", "files_per_second", "threads", "streams")
_VOLUME_SPEED = ("windows_per_second", "case_network_seconds", "case_seconds")


def run_summary(
    package: Package,
    *,
    evaluation: EvaluateResult | Data | None = None,
    benchmark: BenchmarkResult | Data | None = None,
    parity: Sequence[Data] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """One row a variant with its accuracy and its speed; what was not measured is null, never a guess.

    ``evaluation`` and ``benchmark`` are results or their ``as_dict()``, as an interrupted run finds them in its folder.
    ``parity`` rows have stage, max_abs, mean_abs, label_agreement (and tolerance, shared_code where known).
    """
    metric = package.manifest.metric
    scores, times = _plain(evaluation), _plain(benchmark)
    scored = {(row["precision"], row["engine"]): row for row in scores.get("variants", [])}
    timed: dict[tuple[str, str], Data] = {}
    for row in times.get("variants", []):
        # with several thread or stream counts the first stands here; all are in benchmark.json
        timed.setdefault((row["precision"], row["engine"]), row)
    about = ("dataset", "dataset_sha256", "layout", "split", "split_sha256", "cases")
    return {
        "metric": {"name": metric.name, "higher_is_better": metric.higher_is_better},
        "scorer": metric.scorer,
        "parity": [dict(row) for row in parity],
        "variants": [_row(scored.get(key), timed.get(key)) for key in dict.fromkeys([*scored, *timed])],
        "dataset": {key: scores[key] for key in about} if scores else None,
        "package": {"name": package.manifest.name, "file": package.path.name, "sha256": package.sha256},
        "benchmark": {**times["options"], "inputs": times["inputs"]} if times else None,
        "unit": times.get("unit", "image"),
        "environment": times.get("environment") or scores.get("environment") or environment(),
        **({"reference": scores["reference"]} if scores.get("reference") else {}),
        "notes": list(dict.fromkeys([*notes, *scores.get("notes", ()), *times.get("notes", ())])),
    }


def write_run_summary(
    run_dir: Path | str,
    package: Package,
    *,
    evaluation: EvaluateResult | Data | None = None,
    benchmark: BenchmarkResult | Data | None = None,
    parity: Sequence[Data] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write ``summary.json`` and ``benchmark.json`` into the run folder; returns the summary."""
    folder = Path(run_dir)
    summary = run_summary(package, evaluation=evaluation, benchmark=benchmark, parity=parity, notes=notes)
    if benchmark is not None:
        write_bytes(folder / BENCHMARK, dump_json(_plain(benchmark)))
    write_bytes(folder / SUMMARY, dump_json(summary))
    return summary


def _plain(result: EvaluateResult | BenchmarkResult | Data | None) -> dict[str, Any]:
    if result is None:
        return {}
    return dict(result) if isinstance(result, Mapping) else result.as_dict()


def _row(scored: Data | None, timed: Data | None) -> dict[str, Any]:
    row: dict[str, Any] = {"value": None, "drop": None, "latency_ms": {}, "images_per_second": {}}
    if timed is not None:
        row |= {
            key: timed[key]
            for key in ("precision", "engine", "device", "executed", "max_abs", "label_agreement", *_SPEED)
        }
        row |= {key: timed[key] for key in _VOLUME_SPEED if key in timed}
    if scored is not None:
        row |= {**scored, "label_agreement": scored.get("label_agreement") or row.get("label_agreement")}
    return row


def variant_line(row: dict[str, Any], metric: str, cases: int | None, timed: str) -> str:
    """One variant in a line of text; ``timed`` is what a volume's seconds were measured on."""
    parts = [f"{row['precision']:<5} on {row['engine']}"]
    if row["value"] is not None:
        drop = f" (drop {row['drop']:+.4f})" if row["precision"] != "fp32" and row["drop"] is not None else ""
        parts.append(f"{metric} {row['value']:.4f}{drop} over {cases} {'cases' if 'case_seconds' in row else 'images'}")
    if row.get("case_seconds"):
        batch, seconds = min(row["case_seconds"].items(), key=lambda item: int(item[0]))
        parts.append(f"{seconds:.3g} s for {timed} at batch {batch}, files to label file")
    elif row.get("files_per_second"):
        batch, rate = max(row["files_per_second"].items(), key=lambda item: int(item[0]))
        parts.append(f"{rate:.1f} images/s files to masks at batch {batch}")
    return ", ".join(parts)


def identity(source: Path) -> list[str]:
    """The content of a source: a file's hash, or those of a folder's files; of files below it, size and time."""
    if source.is_dir():
        deeper = [(p, p.stat()) for p in sorted(source.glob("*/**/*")) if p.is_file()]
        return [
            *(f"{p.name} {sha256_file(p)}" for p in sorted(source.iterdir()) if p.is_file()),
            *(f"{p.relative_to(source)} {about.st_size} {about.st_mtime_ns}" for p, about in deeper),
        ]
    return [sha256_file(source)] if source.is_file() else [str(source)]


class StepsFolder:
    """The run folder and its memory of which step was made from what."""

    def __init__(self, path: Path, again: bool) -> None:
        self.path = path
        self._file = path / STEPS
        self._steps: dict[str, str] = {} if again else self._read()

    def _read(self) -> dict[str, str]:
        try:
            data = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def has(self, step: str, key: str, *results: Path) -> bool:
        """Whether the step was finished from exactly this and its results are still there."""
        return self._steps.get(step) == key and all(path.exists() for path in results)

    def finished(self, step: str, key: str) -> None:
        self._steps[step] = key
        write_bytes(self._file, dump_json(self._steps))
