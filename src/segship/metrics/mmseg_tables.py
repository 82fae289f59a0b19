"""Scores as MMSegmentation prints them, character for character: its tables come from the package prettytable.

Values are 0..1 here and percent of two decimals in the text. 1.x prints the class table and then one line of the
summary (its logger's); 0.x prints both as tables. Source: open-mmlab/mmsegmentation:
mmseg/evaluation/metrics/iou_metric.py, its 0.x mmseg/datasets/custom.py, and mmengine's log processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def percent(value: float) -> float:
    """Rounded half to even, two decimals, as numpy rounds; NaN stays."""
    return float(np.round(np.float64(value) * 100, 2))


def class_table(by_class: Mapping[str, Mapping[str, float]]) -> str:
    """Class | IoU | Acc …; ``by_class``: number -> class -> value."""
    classes = list(next(iter(by_class.values())))
    columns = [[str(percent(found[name])) for name in classes] for found in by_class.values()]
    return boxed([["Class", *classes], *([kind, *column] for kind, column in zip(by_class, columns, strict=True))])


def summary_table(values: Mapping[str, float]) -> str:
    """aAcc | mIoU | mAcc … over one row: 0.x."""
    return boxed([[name, str(percent(value))] for name, value in values.items()])


def summary_line(values: Mapping[str, float]) -> str:
    """``aAcc: 71.9200  mIoU: 52.6300``: 1.x."""
    return "  ".join(f"{name}: {percent(value):.4f}" for name, value in values.items())


def boxed(columns: Sequence[Sequence[str]]) -> str:
    """Columns with their header first, centred between rules; of an odd rest the wider side is the right one for odd
    texts and the left one for even texts, as prettytable has it."""
    widths = [max(len(cell) for cell in column) for column in columns]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    rows = [
        "|" + "|".join(f" {_centred(cell, width)} " for cell, width in zip(row, widths, strict=True)) + "|"
        for row in zip(*columns, strict=True)
    ]
    return "\n".join([rule, rows[0], rule, *rows[1:], rule])


def _centred(text: str, width: int) -> str:
    rest = width - len(text)
    left = rest // 2 + (rest % 2 if len(text) % 2 == 0 else 0)
    return " " * left + text + " " * (rest - left)
