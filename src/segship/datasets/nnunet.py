"""nnU-Net's raw data: a label file a case, and one image file a channel.

    imagesTr/liver_0000.nii.gz liver_0001.nii.gz …    labelsTr/liver.nii.gz    dataset.json
    imagesTs/…                                         labelsTs/…               the split 'test'
    images/liver_0000.png or images/liver.nii.gz       labels/liver.png         without dataset.json

Where dataset.json lists the files itself (``dataset``), its list counts. The split ``fold_0`` takes what fold 0 was
validated on, by splits_final.json or .pkl beside the data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from segship.datasets.cases import Bool, Bytes, Case, Dataset
from segship.datasets.dsb2018_splits import some
from segship.datasets.label_files import VOLUME_ENDINGS, LabelVolume, ending_of, read_label_file, stem_of
from segship.datasets.nnunet_json import DatasetJson, find_dataset_json, read_dataset_json
from segship.datasets.nnunet_splits import find_splits, fold_number, read_splits
from segship.errors import DatasetError

FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))
TEST = ("imagesTs", "labelsTs")
HINT = "expected imagesTr/<case>_0000.nii.gz (one file a channel) and labelsTr/<case>.nii.gz"
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def is_nnunet(root: Path) -> bool:
    """Whether numbered channels, or volumes, lie beside labels of the same names."""
    for images, labels in FOLDERS:
        if not (root / labels).is_dir():
            continue
        if (root / images).is_dir():
            stems = {stem_of(path.name) for path in _files(root / labels)}
            names = [path.name for path in _files(root / images)]
            if any((m := _CHANNEL.fullmatch(stem_of(name))) and m[1] in stems for name in names):
                return True
            if any(ending_of(name) in VOLUME_ENDINGS and stem_of(name) in stems for name in names):
                return True
        about = find_dataset_json(root)
        if about is not None and read_dataset_json(about).listed:
            return True
    return False


def open_nnunet(root: Path, split: str | Path | None = None) -> tuple[Dataset, str | Path | None]:
    """(the data set, a split that is still to be taken). DatasetError names files that are missing or stand alone."""
    about = find_dataset_json(root)
    described = read_dataset_json(about) if about is not None else None
    if described is not None and described.listed and split != "test":
        files = {
            case: (_existing(root, label), [_existing(root, image) for image in images])
            for case, images, label in described.listed
        }
    else:
        files = _matched(root, TEST if split == "test" else None, described)
    dataset = dataset_of(root, "nnunet", files, described)
    if split == "test":
        return dataset.select(dataset.ids, "test"), None
    return take_fold(dataset, root, split)


def take_fold(dataset: Dataset, root: Path, split: str | Path | None) -> tuple[Dataset, str | Path | None]:
    """The validation cases of a fold, where ``split`` names one; else everything, and the split as it is."""
    number = fold_number(split)
    if number is None:
        return dataset, split
    file = find_splits(root)
    if file is None:
        raise DatasetError(f"split {split} needs splits_final.json or .pkl beside the data in {root}; copy it there")
    folds = read_splits(file)
    if number >= len(folds):
        raise DatasetError(f"{file} has {len(folds)} folds, so there is no {split}; they count from fold_0")
    return dataset.select(folds[number].validation, str(split)), None


def dataset_of(
    root: Path, layout: str, files: Mapping[str, tuple[Path, Sequence[Path]]], described: DatasetJson | None
) -> Dataset:
    """A data set of case -> (label file, image files)."""
    if not files:
        raise DatasetError(f"{root} holds no case; {HINT}")
    counts = {len(images) for _, images in files.values()}
    if len(counts) > 1:
        most = max(counts)
        short = [case for case, (_, images) in files.items() if len(images) < most]
        raise DatasetError(f"{root}: {some(short)} lack a channel that others have ({most} files a case); add it")
    cases = tuple(_case(case, *files[case], described) for case in sorted(files))
    return Dataset(name=root.resolve().name, layout=layout, cases=cases)


def _case(case: str, label: Path, images: Sequence[Path], described: DatasetJson | None) -> Case:
    def labels(reorient: bool) -> LabelVolume:
        return read_label_file(label, reorient=reorient)

    def source() -> Path | list[Path]:
        return images[0] if len(images) == 1 else list(images)

    def full() -> Bool:
        found = labels(False).labels
        keys = list(described.labels) if described is not None else range(1, int(found.max(initial=1)) + 1)
        masks = np.stack([np.isin(found, [key] if isinstance(key, int) else list(key)) for key in keys])
        return masks[:, 0] if found.shape[0] == 1 else masks

    def network(height: int, width: int) -> Bytes:
        raise DatasetError(f"case {case}: labels of nnU-Net's layout are scored on their own grid only")

    return Case(id=case, source=source, full_target=full, network_target=network, label_volume=labels, label_file=label)


# -------------------------------------------------------------------------------------------- finding files


def _matched(
    root: Path, where: tuple[str, str] | None, described: DatasetJson | None
) -> dict[str, tuple[Path, list[Path]]]:
    """case -> (label, images); every label needs its images and every image its label."""
    places = [where] if where else [pair for pair in FOLDERS if all((root / name).is_dir() for name in pair)]
    if not places or not all((root / name).is_dir() for name in places[0]):
        raise DatasetError(f"{root} has no {' + '.join(where or FOLDERS[0])}; {HINT}")
    images, labels = (root / name for name in places[0])
    truth = _by_stem(labels)
    found: dict[str, dict[int, Path]] = {}
    alone = []
    for path in _files(images):
        if described is not None and described.file_ending and not path.name.lower().endswith(described.file_ending):
            continue  # a TIFF's spacing beside it, for one
        stem = stem_of(path.name)
        numbered = _CHANNEL.fullmatch(stem)
        case, channel = (stem, 0) if stem in truth or not numbered else (numbered[1], int(numbered[2]))
        if case not in truth:
            alone.append(path.name)
        elif channel in found.setdefault(case, {}):
            raise DatasetError(f"{found[case][channel]} and {path.name} are both channel {channel} of {case}")
        else:
            found[case][channel] = path
    if alone:
        raise DatasetError(f"images without a label in {labels}: {len(alone)} ({some(alone)}); add or remove them")
    lacking = [case for case in truth if case not in found]
    if lacking:
        raise DatasetError(f"labels without an image in {images}: {len(lacking)} ({some(lacking)}); {HINT}")
    for case, channels in found.items():
        absent = [number for number in range(len(channels)) if number not in channels]
        if absent:
            raise DatasetError(f"{images}: {case} has no channel file _{absent[0]:04d}; channels count from _0000")
    return {case: (truth[case], [channels[n] for n in sorted(channels)]) for case, channels in found.items()}


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if ending_of(path.name) and path.is_file()]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _files(folder):
        stem = stem_of(path.name)
        if stem in found:
            raise DatasetError(f"{found[stem]} and {path.name} are labels of one case; keep one of them")
        found[stem] = path
    return found


def _existing(root: Path, name: str) -> Path:
    path = root / name
    if not path.is_file():
        raise DatasetError(f"dataset.json of {root} lists {name}, which is not there; copy it or correct the list")
    return path
