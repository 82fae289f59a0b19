"""What `segship evaluate` does besides where a package gives one class a pixel: a limited number of cases, label maps
kept as they are predicted, numbers by class, and the published ones beside them."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segship.datasets import Case, Dataset, FolderOptions, is_mmseg_like, open_dataset
from segship.datasets.label_rules import rules_in
from segship.errors import UsageError
from segship.inference.prediction import Prediction
from segship.inference.writers import write_bytes, write_label_png
from segship.manifest import Manifest
from segship.measure import mmseg_table
from segship.metrics import mmseg

if TYPE_CHECKING:
    from segship.measure.evaluate import EvaluateResult, VariantScore

CLASSES_CSV = "classes.csv"
CONFUSION_CSV = "confusion.csv"


def open_labels(
    path: Path | str,
    layout: str | None,
    split: str | Path | None,
    exclude: tuple[str, ...],
    folders: FolderOptions | None,
    manifest: Manifest,
) -> Dataset:
    """The data set of a package that is scored as mmseg scores."""
    root = Path(path)
    if layout is None and is_mmseg_like(root):
        layout = "mmseg"
    options = folders or FolderOptions()
    packages = rules_in(manifest.metric.options)
    if options.rules and packages:
        # the scorer applies the package's own rules itself: a label map that is given takes their place
        options = replace(options, rules=options.rules.before(packages))
    count = len(manifest.labels)
    return open_dataset(root, layout, split, exclude, num_classes=count, folders=options)


def limited(data: Dataset, limit: int | None) -> Dataset:
    """The first ``limit`` cases, said in the notes."""
    if limit is None or limit >= len(data.cases):
        return data
    if limit < 1:
        raise UsageError(f"--limit takes a number of cases from 1 on, not {limit}")
    note = f"limited to the first {limit} of {len(data.cases)} cases"
    return replace(data.select(data.ids[:limit]), notes=(*data.notes, note))


def write_prediction(folder: Path, case: Case, found: Any) -> None:
    """``<image stem>.png``: the class numbers of one case, as mmseg's ``--out`` writes them."""
    if not isinstance(found, Prediction):
        raise UsageError("--out keeps label maps of pictures; volumes are written by `segship predict`")
    source = case.read_image()
    name = source.stem if isinstance(source, Path) else case.id
    write_label_png(folder / f"{name}.png", found.on_grid("input").labels)


# ------------------------------------------------------------------------------------------------- numbers


def reference(result: EvaluateResult) -> list[dict[str, str]]:
    """Published numbers beside the measured ones; empty where the data are not Cityscapes val."""
    recipe = result.package.manifest
    if not mmseg_table.applies(recipe, result.dataset):
        return []
    return mmseg_table.columns_of(mmseg_table.rows(recipe, _measured(result)))


def reference_text(result: EvaluateResult) -> str | None:
    return mmseg_table.beside(result.package.manifest, result.dataset, _measured(result))


def _measured(result: EvaluateResult) -> dict[str, dict[str, float]]:
    return {variant.precision: variant.evaluation.metrics for variant in result.variants}


# --------------------------------------------------------------------------------------------------- files


def write_classes(folder: Path, variant: VariantScore) -> None:
    """classes.csv: every class's numbers and areas; confusion.csv: pixels by label (lines) and prediction (columns)."""
    found = variant.evaluation
    sums, settings = mmseg.total(found.scores)
    numbers = mmseg.numbers(sums, settings.kinds, settings.beta, settings.nan_to_num)
    lines: list[list[Any]] = [["class", *settings.kinds, "intersection", "union", "predicted", "label"]]
    for place, name in enumerate(settings.names):
        row = [numbers[kind][place] for kind in settings.kinds]
        lines.append(
            [name, *("" if np.isnan(value) else f"{value:.6f}" for value in row), *map(int, sums[:, place])]
        )  # fmt: skip
    write_bytes(folder / CLASSES_CSV, _csv(lines))
    if found.confusion is not None:
        table = [["label", *settings.names]]
        table += [[name, *map(str, row)] for name, row in zip(settings.names, found.confusion.tolist(), strict=True)]
        write_bytes(folder / CONFUSION_CSV, _csv(table))


def _csv(lines: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()
