"""What worlds that are scored from folders of label files alone share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segship.datasets import Dataset
from segship.datasets.cases import Case
from segship.datasets.label_files import LabelVolume
from segship.errors import DatasetError

AFFINE_TOLERANCE = 1e-3  # millimetres, and of unit vectors: what headers lose to float32
Read = Callable[[Path, bool], LabelVolume]
"""(file, whether its axes are turned to RAS) to its labels"""


def labels_only(folder: Path, files: Mapping[str, Path], read: Read) -> Dataset:
    """A data set of case -> label file, in order of the cases, that knows no images. Nothing is read yet."""
    cases = tuple(_case(name, path, read) for name, path in sorted(files.items()))
    return Dataset(name=folder.resolve().name, layout="labels", cases=cases)


def _case(name: str, path: Path, read: Read) -> Case:
    def absent(*_: int) -> NDArray[np.uint8]:
        raise DatasetError(f"{name} has labels only; give the folder that holds its image too")

    return Case(
        id=name,
        source=lambda: path,
        full_target=lambda: read(path, False).labels != 0,
        network_target=absent,
        label_volume=lambda reorient: read(path, reorient),
        label_file=path,
    )


def same_place(first: LabelVolume, second: LabelVolume) -> bool:
    """Whether two files' voxels lie at the same millimetres; True where one of them does not say where it lies."""
    if first.affine is None or second.affine is None:
        return True
    return bool(np.allclose(first.affine, second.affine, atol=AFFINE_TOLERANCE, rtol=1e-4))
