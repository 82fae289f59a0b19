"""The Medical Segmentation Decathlon's layout: imagesTr/la_003.nii.gz, labelsTr/la_003.nii.gz, listed in dataset.json.

A case is one file; where it has several channels (BraTS, prostate) that file has four axes. imagesTs has no labels.
Source: medicaldecathlon.com, Antonelli et al. 2022.
"""

from __future__ import annotations

from pathlib import Path

from segship.datasets.cases import Dataset
from segship.datasets.label_files import stem_of
from segship.datasets.nnunet import dataset_of, take_fold
from segship.datasets.nnunet_json import find_dataset_json, read_dataset_json
from segship.errors import DatasetError


def is_msd(root: Path) -> bool:
    """Whether a dataset.json lists an image that is there under that very name."""
    about = find_dataset_json(root)
    if about is None or not (root / "imagesTr").is_dir():
        return False
    listed = read_dataset_json(about).training
    return bool(listed) and (root / listed[0][0]).is_file()


def open_msd(root: Path, split: str | Path | None = None) -> tuple[Dataset, str | Path | None]:
    """(the training cases, a split that is still to be taken). DatasetError names what dataset.json lists in vain."""
    about = find_dataset_json(root)
    if about is None:
        raise DatasetError(f"{root} has no dataset.json, which lists the cases of this layout")
    if split == "test":
        raise DatasetError(f"{root}: the decathlon's test cases have no labels; they cannot be scored here")
    described = read_dataset_json(about)
    files: dict[str, tuple[Path, list[Path]]] = {}
    for image, label in described.training:
        for name in (image, label):
            if not (root / name).is_file():
                raise DatasetError(f"{about} lists {name}, which is not in {root}; unpack the archive again")
        case = stem_of(Path(label).name)
        if case in files:
            raise DatasetError(f"{about} lists {case} twice; correct the list")
        files[case] = (root / label, [root / image])
    return take_fold(dataset_of(root, "msd", files, described), root, split)
