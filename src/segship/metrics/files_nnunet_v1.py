"""`segship score nnunet-v1 GT PRED -l 1 2`: nnU-Net v1's thirteen numbers of two folders of label files.

The files are paired and read as for ``score nnunet``; ``-o`` writes the summary.json in v1's structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from segship.metrics import files_nnunet, nnunet, nnunet_v1
from segship.metrics.confusion import Key
from segship.metrics.files import FileScores, Progress
from segship.metrics.surfaces import TOLERANCE_MM


def score_files(
    gt: Path | str,
    pred: Path | str,
    *,
    labels: Sequence[Key] = (),
    dataset: Path | str | None = None,
    allow_missing: bool = False,
    output: Path | str | None = None,
    surface: bool = False,
    tolerance: float = TOLERANCE_MM,
    progress: Progress | None = None,
) -> FileScores:
    """As files_nnunet.score_files, v1 knowing no ignore label. ``compat`` holds each label's thirteen means."""
    found = files_nnunet.score_files(
        gt, pred, labels=labels, dataset=dataset, allow_missing=allow_missing, output=output, surface=surface,
        tolerance=tolerance, version="v1", progress=progress,
    )  # fmt: skip
    rows = [{key: nnunet_v1.values(c) for key, c in nnunet.counts_of(score).items()} for score in found.scores]
    means = {
        f"{key} {name}": nnunet_v1.nanmean([row[key][name] for row in rows])
        for key in rows[0]
        for name in nnunet_v1.NAMES
    }
    return replace(found, compat=means)
