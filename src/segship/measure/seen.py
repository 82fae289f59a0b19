"""Were the evaluated cases in the network's own training? Said beside the numbers, as it changes what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segship.datasets import Dataset
from segship.datasets.dsb2018_splits import some
from segship.datasets.nnunet_splits import find_splits, read_splits, seen_in_training

TRAINING_LAYOUTS = ("nnunet", "msd")


def training_note(
    options: Mapping[str, Any], dataset: Dataset, root: Path | None, splits: Path | str | None = None
) -> str | None:
    """A warning where a case was in the training part of a fold that the package holds; None where none was, or where
    the package says nothing of folds.

    ``options`` are the manifest's. ``splits`` is the splits file; None looks beside the data set. Raises DatasetError
    for a splits file that cannot be understood.
    """
    folds = options.get("folds")
    if not folds:
        return None
    file = Path(splits) if splits is not None else find_splits(root) if root is not None else None
    if file is not None:
        seen = seen_in_training(dataset.ids, read_splits(file), str(folds))
        if not seen:
            return None
        which = "this network was trained on all cases" if "all" in str(folds).split() else f"by folds {folds}"
        return (
            f"warning: {len(seen)} of {len(dataset.cases)} cases were trained on ({which}; {some(seen)}; {file.name}): "
            "the numbers do not say how good the network is on new ones"
        )
    if (
        dataset.layout in TRAINING_LAYOUTS
        and dataset.split is None
        and root is not None
        and (root / "labelsTr").is_dir()
    ):
        return (
            f"whether these cases of labelsTr were trained on by folds {folds} is not known: no splits_final.json or "
            ".pkl lies beside them (--splits names one)"
        )
    return None
