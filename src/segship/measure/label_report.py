"""What the report shows of a package that gives one class a pixel: each class's numbers, what is taken for what, and
published numbers beside the measured ones. All of it is read from the files of the evaluation."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segship.errors import InputError
from segship.measure.label_maps import CLASSES_CSV, CONFUSION_CSV
from segship.package import Package

MOST_CONFUSED = 10
LEAST_SHARE = 0.01
"""of a class's pixels that are taken for another; smaller shares are not listed"""
MOST_CLASSES = 40
"""rows of the heat map; of more classes those that are least often right"""
DENSE = 24
OTHERS = "others"


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
    names, counts = _confusion(folder / precision / CONFUSION_CSV)
    totals = counts.sum(axis=1)
    found: list[dict[str, Any]] = [
        {"label": label, "taken": name, "share": int(counts[i, j]) / int(totals[i]), "pixels": int(counts[i, j])}
        for i, label in enumerate(names)
        for j, name in enumerate(names)
        if i != j and totals[i] and counts[i, j] / totals[i] >= LEAST_SHARE
    ]
    return sorted(found, key=lambda one: (-float(one["share"]), one["label"], one["taken"]))[:MOST_CONFUSED]


def heat_map(folder: Path, precision: str) -> dict[str, Any] | None:
    """Each class's pixels by what they were taken for, in shares of the class: a row for each class, a column for each
    prediction, in the classes' order. None where nothing is labelled.

    Of more than `MOST_CLASSES` classes the ones that are least often right, with a last column for all others.
    """
    names, counts = _confusion(folder / precision / CONFUSION_CSV)
    totals = counts.sum(axis=1)
    if not totals.any():
        return None
    chosen = np.arange(len(names))
    if len(names) > MOST_CLASSES:
        labelled = np.flatnonzero(totals)
        right = counts[labelled, labelled] / totals[labelled]
        chosen = np.sort(labelled[np.argsort(right, kind="stable")[:MOST_CLASSES]])
    table, columns = counts[np.ix_(chosen, chosen)], [names[i] for i in chosen]
    if len(chosen) < len(names):
        table = np.column_stack([table, totals[chosen] - table.sum(axis=1)])
        columns = [*columns, OTHERS]
    rows = [
        {"name": names[i], "cells": [_cell(names[i], columns[k], k == place, int(count), int(totals[i])) for k, count in enumerate(line)]}
        for place, (i, line) in enumerate(zip(chosen.tolist(), table, strict=True))
    ]  # fmt: skip
    return {"columns": columns, "rows": rows, "left_out": len(names) - len(chosen), "dense": len(columns) > DENSE}


def _cell(label: str, taken: str, same: bool, count: int, total: int) -> dict[str, Any]:
    """One share: as text (percent, nothing below half a percent), as a colour's strength, and in words."""
    if not total:
        return {"same": same, "text": "–" if same else "", "strength": 0.0, "about": f"no pixel is {label}"}
    share = count / total
    text = f"{100 * share:.0f}" if share >= 0.005 else ""
    about = f"{label} taken for {taken}: {100 * share:.2f} %, {count} pixels"
    return {"same": same, "text": text, "strength": share**0.5, "about": about}


def _confusion(path: Path) -> tuple[list[str], np.ndarray]:
    """(names, int64 (K, K) pixels by label and prediction); (0, 0) where there is no such file. Names may occur twice."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
        names = lines[0][1:]
        counts = np.array([[int(value) for value in line[1:]] for line in lines[1:]], np.int64)
        return names, counts.reshape(len(names), len(names))
    except FileNotFoundError:
        return [], np.zeros((0, 0), np.int64)
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate again") from None


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
