"""Data sets: an image and a mask per case, whatever the layout on disk.

dsb2018    <id>/images/<id>.png + <id>/masks/*.png, a folder or the zip as downloaded
prepared   images/<id>.png + masks/0/<id>.png, as `segship prepare dsb2018` writes it
folders    images/ and masks/ whose files share their stems: a user's own data
sod        Image/ + Mask/, DUTS-TE-Image/ + DUTS-TE-Mask/, .jpg beside .png …: salient objects, grey masks
nnunet     imagesTr/case_0000.nii.gz + labelsTr/case.nii.gz (+ dataset.json), also images/ + labels/: volumes or pictures
msd        imagesTr/la_003.nii.gz + labelsTr/la_003.nii.gz, as dataset.json lists them
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from segship.datasets import dsb2018
from segship.datasets.cases import Bool, Bytes, Case, Dataset, MaskCache, divide_by_pixels
from segship.datasets.dsb2018_splits import SPLITS, facts, ids_hash, some
from segship.datasets.dsb2018_splits import split as divide
from segship.datasets.folders import IMAGE_SUFFIXES, MaskKind, is_paired, open_folders
from segship.datasets.msd import is_msd, open_msd
from segship.datasets.nnunet import is_nnunet, open_nnunet
from segship.datasets.sod import is_sod, open_sod
from segship.errors import DatasetError, UsageError

LAYOUTS = ("dsb2018", "prepared", "folders", "sod", "nnunet", "msd")
Part = Literal["validation", "training"]

__all__ = [
    "IMAGE_SUFFIXES",
    "LAYOUTS",
    "SPLITS",
    "Case",
    "Dataset",
    "divide_by_pixels",
    "is_sod",
    "open_dataset",
    "recognise_layout",
]


def open_dataset(
    path: str | Path,
    layout: str | None = None,
    split: str | Path | None = None,
    exclude: Iterable[str] = (),
    *,
    part: Part = "validation",
    num_classes: int | None = None,
    masks: MaskKind | None = None,
) -> Dataset:
    """Find the cases under ``path``; images and masks are read later, one at a time.

    ``layout`` None recognises it. ``split`` is ``default``, ``ascend`` or a text file of validation ids; ``part``
    says which side of it is taken; nnunet and msd also know ``fold_0`` … and nnunet ``test``. Without a split all cases
    are taken, sorted. ``exclude`` leaves ids out.
    ``masks`` and ``num_classes`` matter for ``folders`` (see folders.open_folders) and prepared masks.
    Raises DatasetError where files are missing or contradict each other, UsageError for unknown names.
    """
    root = Path(path)
    chosen = layout or recognise_layout(root)
    if chosen not in LAYOUTS:
        raise UsageError(f"no layout is called '{chosen}'; there are: {', '.join(LAYOUTS)}")
    if chosen == "folders":
        dataset = open_folders(root, num_classes, masks)
    elif chosen == "sod":
        dataset = open_sod(root)
    elif chosen in ("nnunet", "msd"):
        dataset, split = open_nnunet(root, split) if chosen == "nnunet" else open_msd(root, split)
    else:
        dataset = _from_dsb2018(root, chosen, num_classes)
    if split is not None:
        dataset = _take_part(dataset, split, part)
    return _without(dataset, exclude)


def recognise_layout(root: Path) -> str:
    """Which layout lies at ``root``, from its folders alone. DatasetError says what was looked for."""
    if not root.exists():
        raise DatasetError(f"there is no data set at {root}; check the path")
    if root.is_file():
        return "dsb2018"
    if (root / "masks" / "0").is_dir() and (root / "images").is_dir():
        return "prepared"
    if is_msd(root):
        return "msd"
    if is_nnunet(root):
        return "nnunet"
    if is_paired(root):
        return "folders"
    if any(root.glob("*/images")) or any(root.glob("stage1_train/*/images")):
        return "dsb2018"
    if is_sod(root):
        return "sod"
    raise DatasetError(
        f"{root} is no data set that segship reads: looked for <id>/images + <id>/masks (DSB2018), images/ + masks/0 "
        "(prepared), images/ + masks/ (paired folders), Image/ + Mask/ or a.jpg beside a.png (salient objects), "
        "imagesTr/ + labelsTr/ (nnU-Net, MSD); "
        "name the layout with --layout if it is one of these"
    )


def _from_dsb2018(root: Path, layout: str, num_classes: int | None) -> Dataset:
    opened = dsb2018.open_dataset(root, num_classes=num_classes)
    found = "dsb2018" if opened.layout == "raw" else "prepared"
    if found != layout:
        raise DatasetError(f"{root} has the layout '{found}', not '{layout}'; leave --layout out or name that one")
    cache = MaskCache()
    name = root.resolve().stem if root.is_file() else root.resolve().name
    if ids_hash(opened.ids) == facts()["stage1_train"]["sha256_ids"]:
        name = "DSB2018 stage1_train"
    return Dataset(name=name, layout=found, cases=tuple(_adapt(case, cache) for case in opened.cases))


def _adapt(case: dsb2018.Case, cache: MaskCache) -> Case:
    def full() -> Bool:
        return cache.get(case.id, lambda: dsb2018.read_masks(case) >= 128)

    def network(height: int, width: int) -> Bytes:
        if case.layout == "prepared":  # soft masks: the grey values themselves are needed
            return dsb2018.prepared_masks(case, (height, width))
        return dsb2018.resize_masks(full().astype(np.uint8) * np.uint8(255), "raw", (height, width))

    def source() -> bytes | Path:
        return case.image_path or case.image_bytes()

    return Case(id=case.id, source=source, full_target=full, network_target=network)


def _take_part(dataset: Dataset, split: str | Path, part: Part) -> Dataset:
    divided = divide(dataset.ids, split)
    if part not in ("validation", "training"):
        raise UsageError(f"a split has a 'validation' and a 'training' part, not '{part}'")
    ids = divided.validation if part == "validation" else divided.training
    if not ids:
        raise DatasetError(f"the {part} part of split {split} is empty; choose another split")
    name = divided.name if divided.name in SPLITS else Path(split).name
    taken = dataset.select(ids, name if part == "validation" else f"{name}, {part}")
    if not divided.absent:
        return taken
    note = f"absent from the data set: {len(divided.absent)} of the ids of split {name} ({some(divided.absent)})"
    return replace(taken, notes=(*taken.notes, note))


def _without(dataset: Dataset, exclude: Iterable[str]) -> Dataset:
    left_out = set(exclude)
    if not left_out:
        return dataset
    kept = [i for i in dataset.ids if i not in left_out]
    if not kept:
        raise DatasetError(f"no case of data set {dataset.name} is left after leaving {len(left_out)} ids out")
    return dataset.select(kept)
