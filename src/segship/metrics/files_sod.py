"""`segship score sod GT PRED`: saliency maps in a folder against grey masks, as the field scores them.

Predictions: ``<id>.png`` (or another picture type), 8 bits, one grey plane or three equal ones as upstream writes them.
Ground truth: a salient-object data set (see datasets/sod.py), any other layout, or just a folder of masks; it may also be
another program's maps, for which ``MAE_raw`` says how near the two are.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np

from segship.datasets import Dataset, is_sod, open_dataset
from segship.datasets.folders import IMAGE_SUFFIXES, by_stem, read_mask
from segship.datasets.sod import open_sod_masks
from segship.errors import DatasetError, UsageError
from segship.manifest import ImageResize
from segship.metrics import sod, sod_compat
from segship.metrics.files import FileScores, Progress, each, pair
from segship.metrics.scores import CaseScore

RESIZE = "pillow:bilinear"
"""the resize that u2net_test.py brings its maps to the photo's size with"""


def score_files(
    gt: Path | str,
    pred: Path | str,
    *,
    layout: str | None = None,
    split: str | Path | None = None,
    allow_missing: bool = False,
    compat: str | None = None,
    resize: str = RESIZE,
    progress: Progress | None = None,
) -> FileScores:
    """Score the maps under ``pred`` against the masks of ``gt``.

    Files are paired by stem. A map of another size than its mask is brought to it with ``resize`` (a method of the
    manifest), and the notes say so. ``compat`` adds the numbers of another tool (see sod_compat). Raises DatasetError
    for missing pairs and files that are no 8-bit grey pictures, UsageError for unknown names.
    """
    sod_compat.check(compat)
    if resize not in get_args(ImageResize):
        raise UsageError(f"--resize takes one of {', '.join(get_args(ImageResize))}, not '{resize}'")
    root = Path(pred)
    files = by_stem(root) if root.is_dir() else {}
    if not files:
        raise DatasetError(f"there are no predictions in {root}; expected a folder of <id>.png maps")
    truth = pair(_open_truth(Path(gt), layout, split), files, root, allow_missing)
    scores: list[CaseScore] = []
    theirs: list[CaseScore] = []
    grey = 0
    for case in each(truth, progress):
        label = case.target_grey()
        if len(label) != 1:
            raise DatasetError(f"case {case.id} has {len(label)} masks; salient objects have one")
        found, note = sod.fit(case.id, read_map(files[case.id]), label[0].shape, resize)
        scores.append(sod.score_arrays(case.id, found, label[0], (note,) if note else ()))
        if compat is not None:
            theirs.append(sod_compat.score_case(compat, case.id, found, label[0]))
        grey += bool(((label > 0) & (label < 255)).any())
    return FileScores(
        scorer="sod",
        name=root.resolve().name,
        metrics=sod.summarise(scores),
        scores=tuple(scores),
        notes=(*truth.notes, *sod.notes(scores), *_about_grey(grey, len(scores))),
        dataset=truth,
        compat=sod_compat.summarise(compat, theirs, scores) if compat is not None else {},
        listed=("MAE", "MAE_raw") if grey else ("MAE",),
    )


def read_map(path: Path) -> np.ndarray:
    """(H, W) uint8. DatasetError for colour, for more than 8 bits and for 0/1."""
    values = read_mask(path)
    if values.dtype != np.uint8:
        raise DatasetError(
            f"prediction {path} has {8 * values.itemsize} bits a pixel; store it as an 8-bit grey PNG, 0..255"
        )
    if values.max(initial=0) == 1:
        raise DatasetError(f"prediction {path} holds only 0 and 1, but maps are 0..255 here; multiply it by 255")
    return values


def _open_truth(root: Path, layout: str | None, split: str | Path | None) -> Dataset:
    if layout is None and root.is_dir():
        if is_sod(root):
            return open_dataset(root, "sod", split)
        if any(path.suffix.lower() in IMAGE_SUFFIXES for path in root.iterdir()):
            return open_sod_masks(root, split)
        if not any(root.iterdir()):
            raise DatasetError(f"{root} is empty; expected masks <id>.png, or a data set")
    return open_dataset(root, layout, split)


def _about_grey(grey: int, cases: int) -> tuple[str, ...]:
    if not grey:
        return ()
    return (
        f"{grey} of {cases} labels hold greys: above {sod.OBJECT_ABOVE} counts as object everywhere but in MAE_raw, "
        "which compares the greys",
    )
