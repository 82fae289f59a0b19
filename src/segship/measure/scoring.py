"""`segship score` for one folder of predictions or several of one ground truth, as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segship.errors import UsageError
from segship.measure.tables import columns
from segship.metrics import get_scorer
from segship.metrics.files import FileScores, score_files

LISTED_CASES = 24
"""up to this many cases the text names each"""


def score_sets(world: str, gt: Path | str, preds: Sequence[Path | str], **options: Any) -> tuple[FileScores, ...]:
    """`score_files` for each folder, in their order; folders of one name are told apart by the folder above."""
    if not preds:
        raise UsageError("name at least one folder of predictions")
    if len(preds) > 1 and options.get("output") is not None:
        raise UsageError("--output takes the summary of one folder of predictions; score them one by one")
    found = [score_files(world, gt, pred, **options) for pred in preds]
    if len({one.name for one in found}) < len(found):
        found = [replace(one, name=str(pred)) for one, pred in zip(found, preds, strict=True)]
    return tuple(found)


def as_dict(sets: Sequence[FileScores]) -> dict[str, object]:
    """One set as it is; several by name."""
    return sets[0].as_dict() if len(sets) == 1 else {"sets": {found.name: found.as_dict() for found in sets}}


def as_text(sets: Sequence[FileScores]) -> str:
    """Case by case where they are few, then every metric; several sets stand side by side."""
    if len(sets) == 1:
        return "\n\n".join([*_one_by_case(sets[0]), sets[0].as_text()])
    names = [found.name for found in sets]
    scorer = get_scorer(sets[0].scorer)
    notes = [f"{found.name}: {len(found.scores)} cases; {'; '.join(found.notes)}".rstrip("; ") for found in sets]
    if hasattr(scorer, "compare"):
        table = columns(*scorer.compare({found.name: found.metrics for found in sets}))
        return "\n\n".join([*_several_by_case(sets, names), table, "\n".join(notes)])
    rows = [
        [metric, *(_number((found.metrics | found.compat).get(metric)) for found in sets)]
        for metric in dict.fromkeys(name for found in sets for name in (*found.metrics, *found.compat))
    ]
    return "\n\n".join([*_several_by_case(sets, names), columns(["all cases", *names], rows), "\n".join(notes)])


def as_csv(sets: Sequence[FileScores]) -> str:
    """One line a case (and set, where there are several) with every per-case metric."""
    names = list(dict.fromkeys(name for found in sets for score in found.scores for name in score.values))
    several = len(sets) > 1
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(["predictions"] if several else []), "case", *names])
    for found in sets:
        for score in found.scores:
            held = (score.values.get(name, math.nan) for name in names)
            values = ("" if math.isnan(value) else f"{value:.6f}" for value in held)
            writer.writerow([*([found.name] if several else []), score.id, *values])
    return text.getvalue()


def _one_by_case(found: FileScores) -> list[str]:
    if not found.listed or len(found.scores) > LISTED_CASES:
        return []
    rows = [[score.id, *(_number(score.values[name]) for name in found.listed)] for score in found.scores]
    return [columns(["case", *found.listed], rows)]


def _several_by_case(sets: Sequence[FileScores], names: Sequence[str]) -> list[str]:
    ids = list(dict.fromkeys(score.id for found in sets for score in found.scores))
    if len(ids) > LISTED_CASES:
        return []
    tables = []
    for metric in dict.fromkeys(name for found in sets for name in found.listed):
        values = [{score.id: score.values[metric] for score in found.scores} for found in sets]
        tables.append(columns([metric, *names], [[i, *(_number(v.get(i)) for v in values)] for i in ids]))
    return tables


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
