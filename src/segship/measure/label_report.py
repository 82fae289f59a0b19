"""What the report shows of a package that gives one class a pixel: each class's numbers, what is taken for what, and
published numbers beside the measured ones. All of it is read from the files of the evaluation."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segship.errors import InputError
from segship.measure.label_maps import CLASSES_CSV, CONFUSION_CSV
from segship.package import Package

MOST_CONFUSED = 10
LEAST_SHARE = 0.01
"""of a class's pixels that are taken for another; smaller shares are not listed"""


def class_table(folder: Path, precisions: Sequence[str], package: Package | None) -> dict[str, Any] | None:
    """One row a class in the classes' order: its share of the pixels, and IoU (or its first number) of each precision.

    None where no class was scored. Numbers are percent; None where a class has none.
    """
    tables = {name: _rows(folder / name / CLASSES_CSV) for name in precisions}
    tables = {name: rows for name, rows in tables.items() if rows}
    if not tables:
        return None
    first = next(iter(tables.values()))
    kinds = [name for name in first[0] if name not in ("class", "intersection", "union", "predicted", "label")]
    kind, beside = kinds[0], kinds[1] if len(kinds) > 1 else None
    pixels = sum(int(row["label"]) for row in first) or 1
    colors = {label.name: label.color for label in package.manifest.labels} if package else {}
    found = []
    for place, row in enumerate(first):
        values = [_percent(rows[place][kind]) for rows in tables.values()]
        found.append(
            {
                "name": row["class"],
                "color": colors.get(row["class"]),
                "share": int(row["label"]) / pixels,
                "values": values,
                "beside": _percent(row[beside]) if beside else None,
            }
        )
    return {"kind": kind, "beside": beside, "names": list(tables), "rows": found}


def confusions(folder: Path, precision: str) -> list[dict[str, Any]]:
    """The largest shares of a class's pixels that were taken for another class, largest first."""
    rows = _rows(folder / precision / CONFUSION_CSV)
    found: list[dict[str, Any]] = []
    for row in rows:
        label = row["label"]
        counts = {name: int(value) for name, value in row.items() if name != "label"}
        total = sum(counts.values())
        found += [
            {"label": label, "taken": name, "share": count / total, "pixels": count}
            for name, count in counts.items()
            if name != label and total and count / total >= LEAST_SHARE
        ]
    return sorted(found, key=lambda one: (-float(one["share"]), one["label"], one["taken"]))[:MOST_CONFUSED]


def _rows(path: Path) -> list[Mapping[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate again") from None


def _percent(text: str) -> float | None:
    return 100 * float(text) if text else None
