"""Files of labels, one whole number a voxel, whatever they are kept in: NIfTI, .nrrd, .mha, pictures, TIFF.

Arrays are (z, y, x); a picture is one slice. Nothing is rounded: a file of fractions or negative numbers is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segship.errors import DatasetError, InputError
from segship.inference.volumes import Spacing, Volume, read_volume
from segship.manifest import Channel, VolumeInput

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
PICTURE_ENDINGS = (".png", ".bmp")
ENDINGS = (*VOLUME_ENDINGS, *PICTURE_ENDINGS, ".tif", ".tiff")
Reader = Literal["simpleitk", "simpleitk-reorient", "image-2d", "tiff-3d"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelVolume:
    """The labels of one case."""

    labels: NDArray[np.unsignedinteger]
    """(z, y, x) uint8, uint16 or uint32: the smallest that holds them"""
    spacing: Spacing
    """(z, y, x) in millimetres; of a picture in pixels, its slices 999 apart"""
    affine: NDArray[np.float64] | None = None
    """of the file's own voxels, where it says where it lies"""

    @property
    def is_picture(self) -> bool:
        return self.affine is None and self.labels.shape[0] == 1


def ending_of(name: str) -> str | None:
    """'.nii.gz' of 'liver.nii.gz'; None for a file that holds no labels, hidden ones included."""
    lower = name.lower()
    return next((ending for ending in ENDINGS if lower.endswith(ending)), None) if not name.startswith(".") else None


def stem_of(name: str) -> str:
    """'liver' of 'liver.nii.gz'."""
    ending = ending_of(name)
    return name[: -len(ending)] if ending else name


def read_label_file(path: Path, *, reorient: bool = False) -> LabelVolume:
    """The labels of ``path``; ``reorient`` turns the axes to RAS first, as readers do that reorient images.

    Raises DatasetError, naming the file, for what is no label file.
    """
    volume = read_as_volume(path, reorient=reorient)
    if len(volume.channels) != 1:
        raise DatasetError(f"{path} holds {len(volume.channels)} numbers a voxel, not one label; store it as grey")
    labels = whole_numbers(volume.channels[0], str(path))
    picture = path.name.lower().endswith(PICTURE_ENDINGS)
    affine = None if picture or volume.geometry is None else volume.geometry.affine
    return LabelVolume(labels=labels, spacing=volume.spacing, affine=affine)


def whole_numbers(values: NDArray[np.float32], what: str) -> NDArray[np.unsignedinteger]:
    """The same as unsigned numbers. DatasetError for fractions, negative numbers, and beyond 2²⁴, which float32 rounds."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not (low >= 0 and high <= 1 << 24):
        raise DatasetError(f"{what} holds values from {low:g} to {high:g}; labels are whole numbers from 0 on")
    dtype: type[np.unsignedinteger] = np.uint8 if high < 256 else np.uint16 if high < 65536 else np.uint32
    labels: NDArray[np.unsignedinteger] = np.asarray(values).astype(dtype)
    if not np.array_equal(labels, values):
        raise DatasetError(f"{what} holds fractions, so it is no label file; give the labels, not the image")
    return labels


def read_as_volume(path: Path, *, reorient: bool = False) -> Volume:
    """The file of labels with all that writing others in its place needs. DatasetError names the file."""
    ending = ending_of(path.name)
    if ending is None:
        raise DatasetError(f"{path} is no label file; known endings are {', '.join(ENDINGS)}")
    reader: Reader = "simpleitk-reorient" if reorient else "simpleitk"
    if ending in PICTURE_ENDINGS:
        reader = "image-2d"
    elif ending in (".tif", ".tiff"):
        reader = "image-2d"
        try:
            return read_volume(path, _spec(reader, ending))
        except InputError:
            reader = "tiff-3d"  # its message is the better one where neither fits
    try:
        return read_volume(path, _spec(reader, ending))
    except InputError as error:
        raise DatasetError(f"{path.parent}: {error}") from error


def _spec(reader: Reader, ending: str) -> VolumeInput:
    return VolumeInput(reader=reader, channels=(Channel(name="labels"),), file_ending=ending, channel_files="one-file")
