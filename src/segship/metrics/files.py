"""Scores from two folders of files: `segship score WORLD GT PRED`. No package and no engine is needed.

A world is a module ``files_<world>`` with ``score_files(gt, pred, **options) -> FileScores``; what a prediction
file is, and which options there are, stands there.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from segship.datasets import Case, Dataset
from segship.datasets.dsb2018_splits import some
from segship.errors import DatasetError, UsageError
from segship.metrics import get_scorer
from segship.metrics.scores import CaseScore, without_nan

WORLDS = ("dsb2018", "sod", "nnunet", "nnunet-v1", "mmseg", "kits19")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class FileScores:
    """The numbers, and what they were taken from."""

    scorer: str
    name: str
    """of the folder of predictions"""
    metrics: dict[str, float]
    scores: tuple[CaseScore, ...]
    notes: tuple[str, ...]
    dataset: Dataset
    compat: dict[str, float] = field(default_factory=dict)
    """numbers of another tool, under its own names"""
    listed: tuple[str, ...] = ()
    """per-case metrics to show case by case"""
    form: str | None = None
    """of the world's own table, where it has several"""

    def as_dict(self) -> dict[str, object]:
        """As `score --json` prints it."""
        return {
            "metrics": without_nan(self.metrics),
            "compat": without_nan(self.compat),
            "cases": len(self.scores),
            "split": self.dataset.split,
            "split_sha256": self.dataset.split_sha256,
            "notes": list(self.notes),
            "per_case": {score.id: without_nan(score.values) for score in self.scores},
            **own_numbers(get_scorer(self.scorer), self.metrics),
        }

    def as_text(self) -> str:
        """The table for the terminal, each number with its metric's name."""
        scorer = get_scorer(self.scorer)
        lines = [scorer.table(self.metrics, **({"form": self.form} if self.form else {}))]
        if self.compat:
            lines += ["", *(f"{name}  {value:.4f}" for name, value in self.compat.items())]
            lines += getattr(scorer, "REMARKS", ())
        return "\n".join([*lines, f"{len(self.scores)} cases" + _split_text(self.dataset), *self.notes])


def own_numbers(scorer: ModuleType, metrics: dict[str, float]) -> dict[str, object]:
    """The numbers in the world's own units, where it has some; they replace ``metrics`` of a result's JSON."""
    return dict(scorer.as_upstream(metrics)) if hasattr(scorer, "as_upstream") else {}


def score_files(world: str, gt: Path | str, pred: Path | str, **options: Any) -> FileScores:
    """Score the predictions under ``pred`` against the ground truth ``gt`` in that world's terms.

    ``options`` are those of the world's own ``score_files``. Raises UsageError for a world or an option that there is
    not, DatasetError for files that are missing or faulty.
    """
    if world not in WORLDS:
        raise UsageError(f"no world is called '{world}'; there are: {', '.join(WORLDS)}")
    score = importlib.import_module(f"segship.metrics.files_{world.replace('-', '_')}").score_files
    known = inspect.signature(score).parameters
    foreign = sorted(name for name in options if name not in known)
    if foreign:
        option = foreign[0].removesuffix("_hw").replace("_", "-")
        raise UsageError(f"'score {world}' has no option --{option}; leave it out")
    found: FileScores = score(gt, pred, **options)
    return found


def pair(truth: Dataset, files: Collection[str], pred: Path, allow_missing: bool = False) -> Dataset:
    """The cases of ``truth`` that ``files`` (ids of the predictions found in ``pred``) hold, notes on what was left out.

    Raises DatasetError for predictions without ground truth (unless a split limits it), for ground truth without a
    prediction (unless ``allow_missing``), and when nothing matches.
    """
    known = set(truth.ids)
    matched = [i for i in truth.ids if i in files]
    unknown = sorted(set(files) - known)
    if not matched:
        raise DatasetError(
            f"no prediction in {pred} has the name of a ground truth case: predictions {some(sorted(files))}, "
            f"ground truth {some(truth.ids)}; the files must share their stems"
        )
    notes = list(truth.notes)
    if unknown:
        if truth.split is None:
            raise DatasetError(
                f"predictions without ground truth: {len(unknown)} ({some(unknown)}); remove them from {pred}"
            )
        notes.append(f"predictions outside split {truth.split}, left out: {len(unknown)}")
    absent = [i for i in truth.ids if i not in files]
    if absent and not allow_missing:
        raise DatasetError(
            f"no prediction in {pred} for {len(absent)} of {len(truth.cases)} ground truth cases ({some(absent)}); "
            "predict them too, name the split that was predicted (--split default|ascend|FILE), "
            "or score only what is there with --allow-missing"
        )
    if absent:
        notes.append(f"ground truth cases without a prediction, left out: {len(absent)} of {len(truth.cases)}")
    return replace(truth.select(matched), notes=tuple(notes))


def each(truth: Dataset, progress: Progress | None) -> Iterator[Case]:
    """The cases one after another; ``progress`` is told of each once the next one is asked for."""
    for done, case in enumerate(truth.cases, start=1):
        yield case
        if progress is not None:
            progress(done, len(truth.cases), case.id)


def _split_text(dataset: Dataset) -> str:
    return f" of split {dataset.split} (ids sha256 {dataset.split_sha256[:16]}…)" if dataset.split else ""
