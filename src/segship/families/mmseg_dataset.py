"""Which data set a configuration tests on: its classes, their colours, and what 0 stands for in its label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segship.errors import SourceError
from segship.families.mmseg_config import Config
from segship.families.mmseg_known import DATASETS, Classes
from segship.families.mmseg_native import plain_name

ZERO_IS_NOTHING = ("ADE20KDataset", "PascalContextDataset59")
"""data sets of mmseg without names here whose label maps begin at 1"""
Values = Mapping[str, Any]


def unwrapped(dataset: Any) -> Values:
    """A data set inside ConcatDataset, RepeatDataset … ; {} for none."""
    for _ in range(5):
        if isinstance(dataset, list | tuple) and dataset:
            dataset = dataset[0]
        elif (
            isinstance(dataset, Mapping)
            and "pipeline" not in dataset
            and ("dataset" in dataset or "datasets" in dataset)
        ):
            dataset = dataset.get("dataset", dataset.get("datasets"))
        else:
            break
    return dataset if isinstance(dataset, Mapping) else {}


def dataset_type(config: Config) -> str | None:
    """The name of the data set's class in mmseg, 'ADE20KDataset'; None where the configuration names none."""
    kind = dataset_of(config).get("type")
    return plain_name(kind) if isinstance(kind, str) else None


def dataset_of(config: Config) -> Values:
    """The data set under test, else one beside it that names its type; {} for none."""
    for path in (
        "test_dataloader.dataset",
        "data.test",
        "val_dataloader.dataset",
        "train_dataloader.dataset",
        "data.train",
    ):
        found = unwrapped(config.get(path))
        if found.get("type"):
            return found
    kind = config.get("dataset_type")
    return {"type": kind} if kind else {}


def reduces_zero(dataset: Values, pipeline: Sequence[Values]) -> bool:
    """Whether 0 in label maps stands for nothing: by the data set's own words, its loader's, or its type's."""
    if dataset.get("reduce_zero_label") is not None:
        return bool(dataset["reduce_zero_label"])
    if any(step.get("reduce_zero_label") for step in pipeline if plain_name(step["type"]) == "LoadAnnotations"):
        return True
    return known_classes(dataset).reduce_zero_label or plain_name(dataset.get("type")) in ZERO_IS_NOTHING


def known_classes(dataset: Values) -> Classes:
    """Those of the data set's type; no names where it is not written down here."""
    return DATASETS.get(plain_name(dataset.get("type")), Classes(names=(), palette=()))


def classes_of(dataset: Values, config: Config) -> Classes | None:
    """Class names and colours of the data set: its own words, else its type's. None where neither is there."""
    given = dataset.get("metainfo")
    info: Values = given if isinstance(given, Mapping) else {}
    named = known_classes(dataset)
    names = dataset.get("classes") or info.get("classes") or config.get("metainfo.classes") or named.names
    palette = dataset.get("palette") or info.get("palette") or config.get("metainfo.palette")
    if not palette and set(names) <= set(named.names):  # a part of the data set's classes keeps their colours
        palette = [named.palette[named.names.index(name)] for name in names] if named.palette else ()
    return make_classes(names, palette, config.origin)


def make_classes(names: Any, palette: Any, origin: str) -> Classes | None:
    """From a configuration's or checkpoint's words. SourceError for a palette that does not fit; None without names."""
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        return None
    colors: list[tuple[int, int, int]] = []
    for one in palette if isinstance(palette, list | tuple) else []:
        fits = isinstance(one, list | tuple) and len(one) == 3
        if not fits or not all(isinstance(part, int) and 0 <= part <= 255 for part in one):
            raise SourceError(f"{origin}: its palette holds {one!r}, which is no colour of three bytes; correct it")
        colors.append((one[0], one[1], one[2]))
    if colors and len(colors) < len(names):
        raise SourceError(
            f"{origin}: its palette has {len(colors)} colours for {len(names)} classes; give one for each"
        )
    return Classes(names=tuple(names), palette=tuple(colors[: len(names)]))
