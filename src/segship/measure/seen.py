"""Were the evaluated cases in the network's own training? Said beside the numbers, as it changes what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segship.datasets import SPLITS, Dataset, open_dataset
from segship.datasets.dsb2018_splits import facts, some
from segship.datasets.dsb2018_splits import split as divide
from segship.datasets.nnunet_splits import find_splits, read_splits, seen_in_training
from segship.errors import DatasetError

TRAINING_LAYOUTS = ("nnunet", "msd")


def training_note(
    options: Mapping[str, Any],
    dataset: Dataset,
    root: Path | None,
    splits: Path | str | None = None,
    validation: Mapping[str, Sequence[str]] | None = None,
) -> str | None:
    """A warning where a case was in the training part of a fold that the package holds; None where none was, or where
    the package says nothing of folds.

    ``options`` are the manifest's. ``splits`` is the splits file; None looks beside the data set. Without one, the cases
    that the model folder was validated on (``validation``: fold -> ids) tell: where some of them are in the data set, a
    fold was trained on the others. Raises DatasetError for a splits file that cannot be understood.
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
    others = _not_validated_on(str(folds), dataset, root, validation or {})
    if others:
        return (
            f"warning: {len(others)} of {len(dataset.cases)} cases were trained on (by folds {folds}, whose validation cases "
            f"the model folder names; {some(others)}): the numbers do not say how good the network is on new ones"
        )
    if others is not None:
        return None
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


def _not_validated_on(
    folds: str, dataset: Dataset, root: Path | None, validation: Mapping[str, Sequence[str]]
) -> list[str] | None:
    """Cases that a fold was not validated on, and so trained on; None where nothing tells that it knows the data set."""
    known = {fold: set(validation[fold]) for fold in folds.split() if fold in validation and fold != "all"}
    if not known or dataset.layout not in TRAINING_LAYOUTS or dataset.split == "test":
        return None
    if not set().union(*known.values()) & set(_all_ids(dataset, root)):
        return None
    return [case for case in dataset.ids if any(case not in cases for cases in known.values())]


DSB2018 = "DSB2018 stage1_train"


def picture_note(provenance: Mapping[str, Any], dataset: Dataset, root: Path | None) -> str | None:
    """As `training_note`, for networks of `segship train` and of its upstream, by what their run folders say.

    None where nothing tells that the data set is the one that the network was trained on.
    """
    source = provenance.get("source") or {}
    config, training = source.get("config") or {}, source.get("training") or {}
    named = str(config.get("dataset", ""))
    if not named or dataset.layout not in ("dsb2018", "prepared", "folders"):
        return None
    everything = _all_ids(dataset, root)
    published = set(facts()["ascend"]["validation"])
    is_dsb2018 = dataset.name == DSB2018 or bool(published & set(everything))
    same = is_dsb2018 if named.startswith("dsb2018") else root is not None and root.name == named
    if not same:
        return None
    split = training.get("split")
    if split not in SPLITS or training.get("own_list"):
        which = f"split {split}" if split else "its run folder names no split"
        return (
            f"whether these images were trained on is not known ({which}): a network trained on this data set has seen most "
            "of it; --split takes a list of ids that it has not"
        )
    left_out = set(training.get("exclude") or ())
    try:
        trained = set(divide(everything, split).training) - left_out
    except DatasetError:  # so few images, or others, that the split says nothing about them
        return None
    seen = [case for case in dataset.ids if case in trained]
    if not seen:
        return None
    return (
        f"warning: {len(seen)} of {len(dataset.cases)} images were trained on (split {split}, as the network's run folder "
        f"says; {some(seen)}): the numbers do not say how good the network is on new ones; score the rest with --split {split}"
    )


def _all_ids(dataset: Dataset, root: Path | None) -> list[str]:
    """Of the data set before a split was taken or cases were left out, where that can be opened again."""
    try:
        return dataset.ids if root is None else open_dataset(root, dataset.layout).ids
    except DatasetError:
        return dataset.ids
