"""Cityscapes as it is unpacked: leftImg8bit/ and gtFine/ with the same cities below the same splits.

    leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png
    gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelTrainIds.png      or …_gtFine_labelIds.png

Pictures are found below the split by their suffix, sorted by path. Label files hold train ids (0 to 18, 255 ignored), as
createTrainIdLabelImgs or `segship prepare cityscapes` writes them; without them label ids are read and mapped, which gives
the same numbers: both are drawn from the same polygons in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from segship.datasets.cases import Case, Dataset
from segship.datasets.cityscapes_labels import CLASSES, HIGHEST_ID, IGNORE, to_train_ids
from segship.datasets.dsb2018_splits import some
from segship.datasets.label_cases import Numbers, label_case
from segship.datasets.label_png import read_numbers
from segship.datasets.label_rules import LabelRules
from segship.errors import DatasetError, UsageError

IMAGES, LABELS = "leftImg8bit", "gtFine"
IMAGE_SUFFIX = "_leftImg8bit.png"
TRAIN_IDS, LABEL_IDS = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"
COUNTS = {"train": 2975, "val": 500, "test": 1525}
VAL_CITIES = frozenset({"frankfurt", "lindau", "munster"})
SPLITS = (*COUNTS, "trainval")
DEFAULT_SPLIT = "val"
HINT = (
    f"expected {IMAGES}/<split>/<city>/<city>_<6 digits>_<6 digits>{IMAGE_SUFFIX} and "
    f"{LABELS}/<split>/<city>/…{TRAIN_IDS} (or …{LABEL_IDS})"
)


def find_cityscapes(root: Path) -> Path | None:
    """The folder that holds leftImg8bit and gtFine: ``root``, the one above, or one below called cityscapes."""
    places = (root, root / "cityscapes", root.parent if root.name in (IMAGES, LABELS) else root)
    return next((place for place in places if (place / IMAGES).is_dir() and (place / LABELS).is_dir()), None)


def is_cityscapes(root: Path) -> bool:
    return root.is_dir() and find_cityscapes(root) is not None


def has_training(root: Path) -> bool:
    """Whether there are pictures of the training split to calibrate on."""
    found = find_cityscapes(root)
    return found is not None and next((found / IMAGES / "train").rglob(f"*{IMAGE_SUFFIX}"), None) is not None


def open_cityscapes(root: Path, split: str | None = None, rules: LabelRules | None = None) -> Dataset:
    """One split [val], sorted by path; ``trainval`` is both. ``rules`` change train ids, for subsets of classes.

    Raises DatasetError naming pictures without a label file and splits that are not there, UsageError for another name
    of a split.
    """
    chosen = split or DEFAULT_SPLIT
    if chosen not in SPLITS:
        raise UsageError(f"Cityscapes has the splits {', '.join(SPLITS)}, not '{chosen}'")
    found = find_cityscapes(root)
    if found is None:
        raise DatasetError(f"{root} holds no {IMAGES}/ beside {LABELS}/; {HINT}")
    parts = ("train", "val") if chosen == "trainval" else (chosen,)
    cases = [case for part in parts for case in _cases(found, part, rules or LabelRules())]
    if not cases:
        have = [name for name in COUNTS if next((found / IMAGES / name).rglob(f"*{IMAGE_SUFFIX}"), None)]
        raise DatasetError(
            f"{found / IMAGES} has no pictures of split {chosen} (there are: {', '.join(have) or 'none'}); {HINT}"
        )
    _refuse_doubles(found, cases)
    expected = sum(COUNTS[part] for part in parts)
    notes = (
        () if len(cases) == expected else (f"{len(cases)} of the {expected} pictures of Cityscapes {chosen} are here",)
    )
    return Dataset(
        name="Cityscapes" if len(cases) == expected else found.resolve().name,
        layout="cityscapes",
        cases=tuple(cases),
        split=chosen,
        notes=notes,
    )


def base_name(name: str) -> str:
    """``frankfurt_000000_000294`` of a picture's or label file's name."""
    stem = name.rsplit(".", 1)[0]
    for end in ("_leftImg8bit", "_gtFine_labelTrainIds", "_gtFine_labelIds", "_gtFine_color", "_pred_labelIds"):
        stem = stem.removesuffix(end)
    return stem


def is_val(dataset: Dataset) -> bool:
    """Whether these are pictures of Cityscapes' validation split, by their layout, split and cities."""
    cities = {case.id.split("_")[0] for case in dataset.cases}
    return dataset.layout == "cityscapes" and dataset.split == "val" and cities <= VAL_CITIES


def train_ids_of(path: Path) -> Numbers:
    """(H, W) train ids of a file of train ids or, by its name, of label ids. DatasetError where it holds others."""
    values = read_numbers(path)
    if not path.name.endswith(LABEL_IDS):
        return values
    top = int(values.max(initial=0))
    if top > HIGHEST_ID and top != 255:  # 255: the licence plate's −1 in 8 bits
        raise DatasetError(f"{path} holds the label id {top}; Cityscapes' go up to {HIGHEST_ID}, copy that file again")
    return np.asarray(to_train_ids()[values])


def _cases(root: Path, part: str, rules: LabelRules) -> list[Case]:
    folder = root / IMAGES / part
    pictures = sorted(path for path in folder.rglob(f"*{IMAGE_SUFFIX}") if not path.name.startswith("."))
    labels = {path: _label_of(root, part, path) for path in pictures} if part != "test" else {}
    lacking = [base_name(path.name) for path in labels if labels[path] is None]
    if lacking:
        raise DatasetError(
            f"{root / LABELS / part}: {len(lacking)} of {len(pictures)} pictures have no label file ({some(lacking)}); {HINT}"
        )
    return [
        label_case(base_name(path.name), path, len(CLASSES), _reader(path, labels.get(path), rules))
        for path in pictures
    ]


def _reader(picture: Path, label: Path | None, rules: LabelRules) -> Callable[[], Numbers]:
    def read() -> Numbers:
        if label is None:
            raise DatasetError(
                f"{picture.name}: the labels of Cityscapes' test pictures are not published; predict them with "
                "--output cityscapes and hand that in, or evaluate on --split val"
            )
        return rules.apply(train_ids_of(label))

    return read


def _label_of(root: Path, part: str, picture: Path) -> Path | None:
    beside = (root / LABELS / part / picture.relative_to(root / IMAGES / part)).parent
    base = base_name(picture.name)
    return next((path for path in (beside / f"{base}{end}" for end in (TRAIN_IDS, LABEL_IDS)) if path.is_file()), None)


def _refuse_doubles(root: Path, cases: list[Case]) -> None:
    ids = [case.id for case in cases]
    double = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if double:
        raise DatasetError(f"{root / IMAGES} holds {some(double)} twice; keep one picture of each name")


ALL_VALUES = frozenset(range(len(CLASSES))) | {IGNORE}
"""the numbers of a file of train ids"""
