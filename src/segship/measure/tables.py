"""Plain aligned tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns with a rule below the header; columns of numbers stand to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def text(line: Sequence[str]) -> str:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([text(lines[0]), text(["-" * w for w in widths]), *(text(line) for line in lines[1:])])


def batch_lines(variants: Sequence[Any], names: Sequence[str]) -> list[str]:
    """The table precision × batch of ``names``, where several batches were scored; no lines otherwise."""
    rows = [
        [v.precision, str(batch), *(f"{values[name]:.4f}" for name in names)]
        for v in variants
        for batch, values in v.by_batch.items()
        if names
    ]
    return ["", columns(["precision", "batch", *names], rows)] if len(rows) > len(variants) else []


def metric_lines(scorer: Any, variants: Sequence[Any], form: str | None = None) -> list[str]:
    """The world's own table of one precision; of several, one line a number and a column for each precision."""
    first = variants[0].evaluation.metrics
    if len(variants) == 1:
        return [scorer.table(first, **({"form": form} if form and hasattr(scorer, "compare") else {}))]
    if hasattr(scorer, "compare"):
        return [columns(*scorer.compare({v.precision: v.evaluation.metrics for v in variants}))]
    rows = [[name, *(f"{v.evaluation.metrics[name]:.4f}" for v in variants), scorer.explain(name)] for name in first]
    return [columns(["", *(v.precision for v in variants), ""], rows)]


def _is_number(cell: str) -> bool:
    if cell in ("-", ""):
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True
