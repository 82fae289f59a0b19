"""What `segship benchmark` found, as data, JSON and text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from segship.manifest import Executed
from segship.measure.tables import columns
from segship.measure.timing import Timing


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way of running the package."""

    engine: str
    precision: str
    device: str = "cpu"
    threads: int | None = None
    streams: int = 1

    @property
    def label(self) -> str:
        parts = [self.engine, self.precision]
        parts += [self.device] if self.device != "cpu" else []
        parts += [f"{self.threads}t"] if self.threads is not None else []
        parts += [f"{self.streams}s"] if self.streams > 1 else []
        return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a setting's answer to the compared inputs differs from the first fp32 setting's, and what ran."""

    executed: Executed
    max_abs: float
    likeness: float
    """share of equal labels, or 1 − mean |difference| of saliency maps"""


Unit = Literal["image", "window"]
"""what one item of a batch is: a picture, or a window of a volume"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one setting; times by batch size."""

    setting: Setting
    executed: Executed
    metric: str
    value: float | None
    """recorded in the package, with what it lost against fp32; None where it was never measured"""
    drop: float | None
    max_abs: float
    label_agreement: float | None
    """share of equal labels; None for a saliency package, which has ``map_difference`` (mean, of full scale) instead"""
    network: dict[int, Timing]
    files: dict[int, Timing]
    """files to mask files; of volumes one case from its files to its label file"""
    map_difference: float | None = None
    cases: dict[int, Timing] = field(default_factory=dict)
    """volumes: one prepared case through all its windows"""
    unit: Unit = "image"

    def as_dict(self) -> dict[str, Any]:
        setting = self.setting
        digits = 3 if self.unit == "image" else 6  # a case of a large volume takes minutes
        return {
            "precision": setting.precision,
            "engine": setting.engine,
            "device": setting.device,
            "threads": setting.threads,
            "streams": setting.streams,
            "executed": self.executed.model_dump(mode="json"),
            "metric": self.metric,
            "value": self.value,
            "drop": self.drop,
            "max_abs": self.max_abs,
            "label_agreement": self.label_agreement,
            "map_difference": self.map_difference,
            "latency_ms": {str(b): round(t.percentiles_ms()["p50"], 4) for b, t in self.network.items()},
            "latency_percentiles_ms": {
                str(b): {k: round(v, 4) for k, v in t.percentiles_ms().items()} for b, t in self.network.items()
            },
            "images_per_second": {str(b): round(t.rate, digits) for b, t in self.network.items()},
            "files_per_second": {str(b): round(t.rate, digits) for b, t in self.files.items()},
            **self._of_volumes(),
        }

    def _of_volumes(self) -> dict[str, Any]:
        if self.unit == "image":
            return {}
        return {
            "windows_per_second": {str(b): round(t.rate, 6) for b, t in self.network.items()},
            "case_network_seconds": {str(b): round(t.percentiles_ms()["p50"] / 1e3, 6) for b, t in self.cases.items()},
            "case_seconds": {str(b): round(t.percentiles_ms()["p50"] / 1e3, 6) for b, t in self.files.items()},
        }


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    rows: tuple[Row, ...]
    environment: dict[str, Any]
    options: dict[str, Any]
    inputs: str
    """what was run: a folder's files, or the package's golden sample"""
    notes: tuple[str, ...] = ()
    architecture: str = ""
    unit: Unit = "image"

    def as_dict(self) -> dict[str, Any]:
        """As `benchmark --json` prints it. Of volumes, ``images_per_second`` counts windows and a file is a case."""
        return {
            "unit": self.unit,
            "architecture": self.architecture,
            "variants": [row.as_dict() for row in self.rows],
            "environment": self.environment,
            "options": self.options,
            "inputs": self.inputs,
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        """Agreement first, then one line a setting and batch size, then network × precision × batch."""
        maps = any(row.map_difference is not None for row in self.rows)
        agree = columns(
            ["setting", "executed", "max |Δ|", "mean |Δ| of maps" if maps else "labels equal"],
            [[r.setting.label, executed_text(r.executed), f"{r.max_abs:.2e}", _likeness(r)] for r in self.rows],
        )
        times = [line for row in self.rows for line in _time_lines(row)]
        header = ["setting", "batch", "p50 ms", "p90 ms", "p99 ms", "network img/s", "files→masks img/s"]
        if self.unit == "window":
            header = [*header[:5], "network windows/s", "case, network s", "case, files→labels s"]
        about = self.environment
        machine = f"{about['processor']}, {about['cores']} cores, load {about['load_average']}; {self.inputs}"
        tables = [agree, "", columns(header, times), "", self.rate_table(), "", machine]
        return "\n".join([*tables, *(f"note: {note}" for note in self.notes)])

    def rate_table(self) -> str:
        """Images (of volumes windows) per second of the bare network: network × precision × batch, and what executed."""
        batches = sorted({batch for row in self.rows for batch in row.network})
        header = [
            "network img/s" if self.unit == "image" else "windows/s",
            "setting",
            *(f"batch {batch}" for batch in batches),
            "executed",
        ]
        lines = [
            [
                self.architecture,
                row.setting.label,
                *(f"{row.network[batch].rate:.2f}" if batch in row.network else "-" for batch in batches),
                executed_text(row.executed),
            ]
            for row in self.rows
        ]
        return columns(header, lines)


def _likeness(row: Row) -> str:
    if row.map_difference is not None:
        return f"{row.map_difference:.2e}"
    return "-" if row.label_agreement is None else f"{row.label_agreement:.5f}"


def executed_text(executed: Executed | None) -> str:
    """'i8 97% f32 3%' of convolution time; of int16 also what was rounded."""
    return "not measured" if executed is None else executed.text


def _time_lines(row: Row) -> list[list[str]]:
    lines = []
    for batch, timing in row.network.items():
        at = timing.percentiles_ms()
        line = [row.setting.label, str(batch), *(f"{at[p]:.2f}" for p in ("p50", "p90", "p99"))]
        if row.unit == "window":
            lines.append(
                [*line, f"{timing.rate:.4g}", _case_seconds(row.cases, batch), _case_seconds(row.files, batch)]
            )
            continue
        lines.append([*line, f"{timing.rate:.1f}", f"{row.files[batch].rate:.1f}" if batch in row.files else "-"])
    return lines


def _case_seconds(found: dict[int, Timing], batch: int) -> str:
    return f"{found[batch].percentiles_ms()['p50'] / 1e3:.3g}" if batch in found else "-"
