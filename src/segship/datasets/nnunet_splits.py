"""Which cases a fold was trained on: splits_final.json (nnU-Net v2) and splits_final.pkl (v1)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segship.errors import DatasetError, InputError
from segship.inference.plain_pickle import read_plain_pickle

NAMES = ("splits_final.json", "splits_final.pkl")


@dataclass(frozen=True, kw_only=True)
class Fold:
    training: tuple[str, ...]
    validation: tuple[str, ...]


def find_splits(root: Path) -> Path | None:
    """Beside the data set, or in the folder of that name under nnUNet_preprocessed, as nnU-Net keeps it."""
    root = root.resolve()
    places = [root, *(parent / "nnUNet_preprocessed" / root.name for parent in list(root.parents)[:4])]
    return next((place / name for place in places for name in NAMES if (place / name).is_file()), None)


def read_splits(path: Path) -> tuple[Fold, ...]:
    """One entry a fold. DatasetError, naming the file, for another structure; UnsafePickle for more than plain data."""
    if path.is_dir():
        found = find_splits(path)
        if found is None:
            raise DatasetError(f"{path} holds neither {' nor '.join(NAMES)}")
        path = found
    try:
        content: Any = (
            read_plain_pickle(path) if path.suffix == ".pkl" else json.loads(path.read_text(encoding="utf-8"))
        )
        return tuple(
            Fold(training=tuple(map(str, entry["train"])), validation=tuple(map(str, entry["val"])))
            for entry in content
        )
    except (OSError, ValueError, TypeError, KeyError, IndexError, InputError) as error:
        raise DatasetError(f"{path} is no list of folds with 'train' and 'val' ({error}); copy it again") from None


def fold_number(split: object) -> int | None:
    """0 of 'fold_0' and 'fold0'; None for other names."""
    match = re.fullmatch(r"fold_?(\d+)", str(split))
    return int(match[1]) if match else None


def seen_in_training(ids: Iterable[str], splits: Sequence[Fold], folds: str) -> list[str]:
    """Those of ``ids`` that at least one of the folds ('0 2', 'all') was trained on."""
    numbers = [int(name) for name in re.findall(r"\d+", folds)]
    known: set[str] = set()
    if "all" in folds.split():
        known = {case for fold in splits for case in (*fold.training, *fold.validation)}
    for number in numbers:
        if number < len(splits):
            known.update(splits[number].training)
    return [case for case in ids if case in known]
