"""Curves over thresholds: kept as CSV, drawn as a picture for whoever does not open the report."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segship.errors import InputError
from segship.inference.writers import write_bytes

CSV = "curves.csv"
PICTURE = "curves.png"
Curves = Mapping[str, NDArray[np.float64]]
"""name -> values by threshold; entry i is for ``floor(255·map) >= i``"""


def write_csv(path: Path, curves: Curves) -> Path:
    """One line a threshold, one column a curve; a shorter curve ends in empty fields."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["threshold", *curves])
    for place in range(max(len(values) for values in curves.values())):
        row = (f"{values[place]:.6f}" if place < len(values) else "" for values in curves.values())
        writer.writerow([place, *row])
    return write_bytes(path, text.getvalue().encode())


def read_csv(path: Path) -> dict[str, NDArray[np.float64]]:
    """What `write_csv` wrote; empty where there is no such file. InputError for a damaged one."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in rows[0] if name != "threshold"] if rows else []
        return {name: np.array([float(row[name]) for row in rows if row[name]]) for name in names}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate again") from None


def has_curves(curves: Curves) -> bool:
    """Whether precision, recall and F can be drawn."""
    return all(name in curves and len(curves[name]) > 1 for name in ("precision", "recall", "F"))


def write_picture(path: Path, by_precision: Mapping[str, Curves]) -> Path | None:
    """Precision over recall, and F over thresholds, of each precision as one PNG. None without curves or matplotlib."""
    shown = {name: curves for name, curves in by_precision.items() if has_curves(curves)}
    if not shown:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:  # the numbers stand in the CSV files
        return None
    figure = Figure(figsize=(9, 4), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name, found in shown.items():
        left.plot(found["recall"], found["precision"], lw=1.4, label=name)
        right.plot(np.arange(len(found["F"])), found["F"], lw=1.4, label=f"{name}, max {found['F'].max():.4f}")
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    right.set(xlabel="threshold (0 to 255)", ylabel="F (β² = 0.3)", xlim=(0, 255), ylim=(0, 1.01))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return write_bytes(path, data.getvalue())
