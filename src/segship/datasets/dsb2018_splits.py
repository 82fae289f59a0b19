"""Who trains and who validates on DSB2018: named splits, lists of ids, their hashes.

Upstream divides a directory listing in file-system order, which nobody can repeat; these splits can be repeated,
and a hash of the validation ids stands beside every number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from segship.errors import DatasetError, UsageError

SPLITS = ("default", "ascend")
SPLIT_SEED = 41


@dataclass(frozen=True, kw_only=True)
class Split:
    """Training and validation ids of one named split. ``absent`` are listed ids that the data set lacks."""

    name: str
    training: tuple[str, ...]
    validation: tuple[str, ...]
    absent: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of the validation ids, to be recorded with every accuracy claim."""
        return ids_hash(self.validation)


def split(ids: Sequence[str], name: str | Path = "default") -> Split:
    """Divide ``ids`` by a named split (``default``, ``ascend``) or a text file of validation ids.

    ``default``: sorted ids permuted by numpy's RandomState(41), the first ⌈n/5⌉ are validation; training keeps
    the permuted order. The other kinds train on every id that is not listed, sorted.
    """
    if len(set(ids)) != len(ids):
        raise DatasetError("an id occurs twice in the data set; every case needs an id of its own")
    ordered = sorted(ids)
    if str(name) == "default":
        if len(ordered) < 2:
            raise DatasetError("a data set of fewer than 2 cases cannot be divided; give --split FILE")
        held_out = -(-len(ordered) // 5)
        permuted = [ordered[i] for i in np.random.RandomState(SPLIT_SEED).permutation(len(ordered))]
        return Split(name="default", training=tuple(permuted[held_out:]), validation=tuple(permuted[:held_out]))
    listed = facts()["ascend"]["validation"] if str(name) == "ascend" else read_ids(Path(name))
    known = set(ordered)
    validation = tuple(i for i in listed if i in known)
    if not validation:
        raise DatasetError(f"none of the {len(listed)} ids of split {name} is in the data set; choose another split")
    return Split(
        name=str(name) if str(name) == "ascend" else "file",
        training=tuple(i for i in ordered if i not in set(validation)),
        validation=validation,
        absent=tuple(i for i in listed if i not in known),
    )


def read_ids(path: Path) -> list[str]:
    """Ids of a text file, one per line; blank lines are ignored."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(SPLITS)
        raise UsageError(f"no split named {path} ({known}) and no readable list of ids at that place") from error
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise UsageError(f"{path} lists no ids; write one id a line")
    if len(set(ids)) != len(ids):
        raise UsageError(f"{path} lists an id twice; remove the repetition")
    return ids


def ids_hash(ids: Iterable[str]) -> str:
    """sha256 over the sorted ids, each followed by a newline."""
    return hashlib.sha256("".join(f"{i}\n" for i in sorted(ids)).encode()).hexdigest()


def refuse_overlap(used: Iterable[str], evaluation: Iterable[str], purpose: str) -> None:
    """Raise DatasetError where ids used for ``purpose`` (training, calibration) are evaluation ids."""
    both = sorted(set(used) & set(evaluation))
    if both:
        raise DatasetError(
            f"{len(both)} ids are used for {purpose} and for evaluation ({some(both)}): the score would not count; "
            f"take them out of one of the two lists"
        )


@cache
def facts() -> dict[str, Any]:
    """Published ids and hashes (splits_dsb2018.json)."""
    text = resources.files("segship.datasets").joinpath("splits_dsb2018.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def some(ids: Sequence[str]) -> str:
    """'a, b, c and 4 more'."""
    return ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
