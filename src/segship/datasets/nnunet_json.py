"""dataset.json, as nnU-Net v2 and v1 and the Medical Segmentation Decathlon write it.

labels    {"background": 0, "tumour": 2}, regions {"whole": [1, 2]}, "ignore"; MSD and v1: {"0": "background"}
dataset   v2: case -> {"images": […], "label": …}; training: v1 and MSD: [{"image": …, "label": …}]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segship.errors import DatasetError

Key = int | tuple[int, ...]
NAME = "dataset.json"


@dataclass(frozen=True, kw_only=True)
class DatasetJson:
    """What a dataset.json says."""

    path: Path
    labels: dict[Key, str]
    """foreground labels, or regions where it has any, with their names in the file's order"""
    ignore: int | None
    file_ending: str | None
    reorient: bool
    """its reader turns images to RAS"""
    regions_order: tuple[int, ...] | None
    training: tuple[tuple[str, str], ...]
    """MSD and v1: (image, label) paths as they stand there"""
    listed: tuple[tuple[str, tuple[str, ...], str], ...]
    """v2 with an own file list: (case, images, label)"""

    @property
    def has_regions(self) -> bool:
        return any(isinstance(key, tuple) for key in self.labels)


def find_dataset_json(*folders: Path) -> Path | None:
    """The first of these folders' dataset.json."""
    return next((folder / NAME for folder in folders if (folder / NAME).is_file()), None)


def read_dataset_json(path: Path) -> DatasetJson:
    """Raises DatasetError, naming the file and the entry, for one that does not say what it should."""
    if path.is_dir():
        path = path / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error}); check the path") from error
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON ({error}); copy it again") from None
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise DatasetError(f'{path} has no "labels"; it is no dataset.json of nnU-Net or MSD')
    try:
        keys, ignore = _labels(content["labels"])
        order = content.get("regions_class_order")
        return DatasetJson(
            path=path,
            labels=keys,
            ignore=ignore,
            file_ending=content.get("file_ending"),
            reorient=str(content.get("overwrite_image_reader_writer") or "").endswith("WithReorient"),
            regions_order=None if order is None else tuple(int(value) for value in order),
            training=_training(content.get("training")),
            listed=_listed(content.get("dataset")),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DatasetError(
            f"{path}: an entry cannot be understood ({error}); compare it with nnU-Net's format"
        ) from None


def _labels(given: Mapping[str, Any]) -> tuple[dict[Key, str], int | None]:
    if all(str(name).isdecimal() and isinstance(value, str) for name, value in given.items()):
        given = {name: int(value) for value, name in given.items()}  # MSD and v1: number -> name
    ignore = None
    keys: dict[Key, str] = {}
    regions = any(isinstance(value, list) and len(value) > 1 for value in given.values())
    for name, value in given.items():
        if name == "ignore":
            ignore = int(value[0] if isinstance(value, list) else value)
            continue
        ids = tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)
        if any(ids):
            keys[ids if regions and isinstance(value, list) else ids[0]] = str(name)
    if not keys:
        raise ValueError("no foreground label")
    return keys, ignore


def _training(given: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(given, list):
        return ()
    return tuple((str(entry["image"]), str(entry["label"])) for entry in given if isinstance(entry, dict))


def _listed(given: Any) -> tuple[tuple[str, tuple[str, ...], str], ...]:
    if not isinstance(given, dict):
        return ()
    return tuple(
        (str(case), tuple(str(image) for image in entry["images"]), str(entry["label"]))
        for case, entry in given.items()
    )
