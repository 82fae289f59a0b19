"""Data sets: an image and a mask per case, whatever the layout on disk.

dsb2018    <id>/images/<id>.png + <id>/masks/*.png, a folder or the zip as downloaded
prepared   images/<id>.png + masks/0/<id>.png, as `segship prepare dsb2018` writes it
folders    images/ and masks/ whose files share their stems: a user's own data
sod        Image/ + Mask/, DUTS-TE-Image/ + DUTS-TE-Mask/, .jpg beside .png …: salient objects, grey masks
nnunet     imagesTr/case_0000.nii.gz + labelsTr/case.nii.gz (+ dataset.json), also images/ + labels/: volumes or pictures
msd        imagesTr/la_003.nii.gz + labelsTr/la_003.nii.gz, as dataset.json lists them
cityscapes leftImg8bit/<split>/<city>/… + gtFine/<split>/<city>/…: train ids, or label ids that are mapped
kits19     case_00000/imaging.nii.gz + segmentation.nii.gz; kits19-prepared: case_00000_x.npy + case_00000_y.npy
mmseg      img_dir/<split> + ann_dir/<split>, images + annotations …: one class number a pixel
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from segship.datasets import dsb2018, kits19
from segship.datasets.cases import Bool, Bytes, Case, Dataset, MaskCache, divide_by_pixels
from segship.datasets.cityscapes import DEFAULT_SPLIT as CITYSCAPES_DEFAULT
from segship.datasets.cityscapes import SPLITS as CITYSCAPES_SPLITS
from segship.datasets.cityscapes import has_training, is_cityscapes, open_cityscapes
from segship.datasets.dsb2018_splits import SPLITS, facts, ids_hash, some
from segship.datasets.dsb2018_splits import split as divide
from segship.datasets.folders import IMAGE_SUFFIXES, MaskKind, is_paired, open_folders
from segship.datasets.label_cases import FolderOptions
from segship.datasets.mmseg import is_mmseg, is_mmseg_like, open_mmseg, training_split, validation_split
from segship.datasets.msd import is_msd, open_msd
from segship.datasets.nnunet import is_nnunet, open_nnunet
from segship.datasets.sod import is_sod, open_sod
from segship.errors import DatasetError, DatasetMissing, UsageError

LAYOUTS = ("dsb2018", "prepared", "folders", "sod", "nnunet", "msd", "cityscapes", "mmseg", *kits19.LAYOUTS)
Part = Literal["validation", "training"]

__all__ = [
    "IMAGE_SUFFIXES",
    "LAYOUTS",
    "SPLITS",
    "Case",
    "Dataset",
    "FolderOptions",
    "default_split",
    "divide_by_pixels",
    "is_mmseg_like",
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
    folders: FolderOptions | None = None,
) -> Dataset:
    """Find the cases under ``path``; images and masks are read later, one at a time.

    ``layout`` None recognises it. ``split`` is ``default``, ``ascend`` or a text file of validation ids; ``part``
    says which side of it is taken; nnunet and msd also know ``fold_0`` … and nnunet ``test``; cityscapes and mmseg have
    splits of their own, of which val is taken where none is named. Without a split all other layouts'
    cases are taken, sorted. ``exclude`` leaves ids out. ``folders`` says how label maps of cityscapes and mmseg are read.
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
    elif chosen in ("cityscapes", "mmseg"):
        dataset, split = _with_own_splits(root, chosen, split, part, folders, num_classes)
    elif chosen in kits19.LAYOUTS:
        dataset, split = kits19.open_kits19(root, chosen, split, part), None
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
        raise DatasetMissing(f"there is no data set at {root}; check the path")
    if root.is_file():
        return "dsb2018"
    if (root / "masks" / "0").is_dir() and (root / "images").is_dir():
        return "prepared"
    if is_cityscapes(root):
        return "cityscapes"
    if is_mmseg(root):
        return "mmseg"
    if (found := kits19.layout_of(root)) is not None:
        return found
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
        "imagesTr/ + labelsTr/ (nnU-Net, MSD), leftImg8bit/ + gtFine/ (Cityscapes), img_dir/ + ann_dir/ (mmseg), "
        "case_00000/imaging.nii.gz or case_00000_x.npy (KiTS19); "
        "name the layout with --layout if it is one of these"
    )


def default_split(root: Path, layout: str | None = None) -> str | None:
    """The split whose evaluation part is scored where nobody names one, its training part being there to calibrate on;
    None: every case is."""
    found = layout or kits19.layout_of(root)
    if found == "cityscapes":
        return CITYSCAPES_DEFAULT if has_training(root) else None
    if found == "mmseg":
        return validation_split(root) if training_split(root) is not None else None
    return kits19.SPLIT if found in kits19.LAYOUTS else None


def _with_own_splits(
    root: Path,
    layout: str,
    split: str | Path | None,
    part: Part,
    folders: FolderOptions | None,
    num_classes: int | None,
) -> tuple[Dataset, str | Path | None]:
    """(the data set, a split that is still to be taken). The training part of any split is the folder of that name."""
    if layout == "mmseg":
        if part == "training" and (split is None or not Path(split).is_file()):
            split = training_split(root, folders) or split
        return open_mmseg(root, split, folders, num_classes), None
    rules = None if folders is None else folders.rules
    if split is None or str(split) in CITYSCAPES_SPLITS or not Path(split).is_file():
        named = "train" if part == "training" else None if split is None else str(split)
        return open_cityscapes(root, named, rules), None
    return replace(open_cityscapes(root, "trainval", rules), split=None), split  # a list of ids


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
