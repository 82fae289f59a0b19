"""Volumes: from files to arrays and back, by the reading rules that the manifest names.

Arrays are (C, z, y, x), spacings (z, y, x) in millimetres, whatever the file's own order is. What each reader does,
with the nnU-Net class whose rules it follows (MIC-DKFZ/nnUNet: nnunetv2/imageio):

    simpleitk           SimpleITKIO. NIfTI here without SimpleITK, other files with it. A file's position in space is
                        ignored; 2D files get a slice distance of 999 times the larger pixel; 4D files hold channels
    simpleitk-reorient  the same after turning the axes to RAS
    nibabel             NibabelIO. NIfTI of three axes; the spacing is the header's, float32
    nibabel-reorient    the same after turning the axes to RAS as nibabel does
    nibabel-stored      the axes in the file's own order, the slowest of them last (mlcommons/training: unet3d)
    image-2d            NaturalImage2DIO. One picture is one slice; colours are channels
    tiff-3d             Tiff3DIO. The array as stored, the spacing from a json beside it

nibabel-stored also takes arrays (.npy): cases that were prepared before and stand on the network's grid.
``VolumeInput.orientation`` turns the file's axes to other directions than RAS, named in the file's order.
Labels go back onto the file's own axes, under its own header.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segship.errors import InputError, OutputError, UsageError
from segship.inference import nifti, volume_formats
from segship.inference.images import DEFAULT_LIMITS, Limits
from segship.inference.volume_cases import case_name
from segship.inference.writers import write_bytes
from segship.manifest import VolumeInput

Spacing = tuple[float, float, float]
VOLUME_LIMITS = Limits(max_pixels=1 << 30, max_bytes=8 << 30)
"""voxels a file (4 GB once they are float32) and bytes a file"""
_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """Where a case lies in space, and how its array came out of the file: all that writing labels back needs."""

    shape: tuple[int, ...]
    """of the file, in its own axes"""
    spacing: tuple[float, ...]
    """of the file's axes"""
    affine: np.ndarray
    """(4, 4): the file's voxels to millimetres, as in a NIfTI header"""
    header: bytes | None = None
    """of a NIfTI file, as it stands there"""
    turned: np.ndarray | None = None
    """nibabel's orientation that leads from the array's axes back to the file's; None: they were not turned"""
    reverse: bool = True
    """is the array's first axis the file's last?"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """One case as read: every channel on one grid."""

    channels: np.ndarray
    """(C, z, y, x) float32"""
    spacing: Spacing
    name: str
    geometry: Geometry | None = None
    """None for arrays that came from no file"""
    notes: tuple[str, ...] = ()
    prepared: bool = False
    """the values stand on the network's grid already, and no step is run on them"""
    emptied: bool = False
    """the values are gone (`without_values`)"""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels.shape[1], self.channels.shape[2], self.channels.shape[3]

    def without_values(self) -> Volume:
        """The same grid and geometry, which are all that writing labels needs; every voxel is a 0 that takes no memory."""
        return replace(self, channels=np.broadcast_to(np.float32(0), self.channels.shape), emptied=True)


# -------------------------------------------------------------------------------------------------- reading


def read_volume(source: Any, spec: VolumeInput, limits: Limits = VOLUME_LIMITS, *, name: str | None = None) -> Volume:
    """One case by the rules of ``spec.reader``.

    ``source`` is a file, a sequence of files (one a channel, in order), or ``(array, spacing)`` with an array
    (C, z, y, x) or (z, y, x) and a spacing (z, y, x) in millimetres. Raises InputError, with the file's name, for
    what cannot be read, exceeds ``limits``, or lies on another grid than the case's first channel.
    """
    if isinstance(source, Volume):
        return source
    limits = VOLUME_LIMITS if limits is DEFAULT_LIMITS else limits  # those are for pictures
    if isinstance(source, str | os.PathLike):
        source = [source]
    if _is_array(source):
        return volume_from_array(source[0], source[1], name or "array")
    if not isinstance(source, Sequence) or not source or not all(isinstance(f, str | os.PathLike) for f in source):
        raise InputError(
            f"cannot read a case of type {type(source).__name__}; give a file, a list of files (one a channel), or "
            "(array, spacing)"
        )
    files = [Path(os.fspath(file)) for file in source]
    parts = [_read_file(file, spec, limits) for file in files]
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    notes += _check_grids(parts)
    channels = parts[0].channels if len(parts) == 1 else np.concatenate([part.channels for part in parts])
    name = name or case_name(files[0], spec.file_ending, spec.folder_file)
    return replace(parts[0], channels=channels, name=name, notes=notes)


def _is_array(source: Any) -> bool:
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], np.ndarray)


def volume_from_array(array: np.ndarray, spacing: Sequence[float], name: str = "array") -> Volume:
    """A case from numbers: (C, z, y, x) or (z, y, x), with the spacing (z, y, x) in millimetres."""
    array = np.asarray(array)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.dtype.kind not in "biuf":
        raise InputError(f"{name} has shape {array.shape} of {array.dtype}; give numbers as (C, z, y, x) or (z, y, x)")
    try:
        z, y, x = (float(value) for value in spacing)
    except (TypeError, ValueError):
        raise InputError(f"{name}: the spacing is three lengths (z, y, x) in millimetres, not {spacing!r}") from None
    return Volume(channels=np.ascontiguousarray(array, np.float32), spacing=(z, y, x), name=name)


def _check_grids(parts: Sequence[Volume]) -> tuple[str, ...]:
    first = parts[0]
    for part in parts[1:]:
        if part.shape != first.shape or not np.allclose(part.spacing, first.spacing):
            raise InputError(
                f"{part.name} has {part.shape} voxels of {_round(part.spacing)} mm, {first.name} has {first.shape} of "
                f"{_round(first.spacing)} mm; the channels of a case lie on one grid"
            )
    here = [part.geometry.affine for part in parts if part.geometry is not None]
    if any(not np.allclose(affine, here[0], atol=1e-3) for affine in here[1:]):
        return ("the channels' files disagree about where the case lies in space; the first one's place is kept",)
    return ()


def _round(spacing: Spacing) -> tuple[float, ...]:
    return tuple(round(s, 4) for s in spacing)


def _read_file(path: Path, spec: VolumeInput, limits: Limits) -> Volume:
    lower = path.name.lower()
    reader = spec.reader
    if reader in ("image-2d", "tiff-3d"):
        return _read_tiff3d(path, limits) if reader == "tiff-3d" else _read_picture(path, limits)
    if lower.endswith(".npy") and reader == "nibabel-stored":
        return _read_prepared(path, limits)
    if lower.endswith(_NIFTI):
        return _read_nifti(path, spec, limits)
    if reader.startswith("simpleitk") and lower.endswith(volume_formats.ITK_SUFFIXES):
        return _read_itk(path, spec, limits)
    endings = (*_NIFTI, *volume_formats.ITK_SUFFIXES) if reader.startswith("simpleitk") else _NIFTI
    raise InputError(f"{path.name} does not end in {', '.join(endings)}, which this package reads")


def _check_file(path: Path, limits: Limits) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from None
    if size > limits.max_bytes:
        raise InputError(
            f"{path.name} has {size:,} bytes, the limit is {limits.max_bytes:,}; raise it with --max-bytes"
        )


def _bytes(path: Path, limits: Limits) -> bytes:
    _check_file(path, limits)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be read: {error.strerror or error}; check the path and its permissions")


def _read_prepared(path: Path, limits: Limits) -> Volume:
    """An array (C, z, y, x) that went through the package's steps before, as `segship prepare` leaves them."""
    _check_file(path, limits)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path.name} is no array that numpy reads ({error}); prepare the case again") from None
    if array.ndim not in (3, 4) or array.dtype.kind not in "biuf" or 0 in array.shape:
        raise InputError(f"{path.name} holds {array.dtype} of shape {array.shape}; a case is numbers (C, z, y, x)")
    if array.size > limits.max_pixels:
        raise InputError(f"{path.name} has {array.size:,} values, the limit is {limits.max_pixels:,} (--max-pixels)")
    volume = volume_from_array(np.array(array), (1.0, 1.0, 1.0), path.name)
    return replace(volume, prepared=True)


def _read_nifti(path: Path, spec: VolumeInput, limits: Limits) -> Volume:
    name = path.name
    header, raw = nifti.read_nifti(_bytes(path, limits), limits, name)
    notes: tuple[str, ...] = ()
    itk = spec.reader.startswith("simpleitk")
    zooms, affine, axes = header.zooms, header.affine, len(header.shape)
    if itk:
        zooms = tuple(zoom * header.unit_mm for zoom in zooms)
        affine = np.diag([header.unit_mm] * 3 + [1.0]) @ affine
        if not header.orthonormal:
            notes = ("the axes are not at right angles; SimpleITK refuses such files",)
    if axes > (4 if itk else 3) or (axes == 2 and not itk):
        raise InputError(
            f"{name} has {axes} axes; this package reads NIfTI files of three" + (" or four" if itk else "")
        )
    geometry = Geometry(
        shape=header.shape[:3], spacing=zooms[:3], affine=affine, header=header.block,
        reverse=spec.reader != "nibabel-stored",
    )  # fmt: skip
    values = nifti.scaled(raw, header)  # last axis first: (z, y, x), (channel, z, y, x) or (y, x)
    del raw
    if axes == 2:
        return _flat(values, zooms, geometry, spec, name, notes)
    channels = values if axes == 4 else values[None]
    return _turned(channels, geometry, spec, name, notes)


def _flat(
    values: np.ndarray,
    zooms: tuple[float, ...],
    geometry: Geometry,
    spec: VolumeInput,
    name: str,
    notes: tuple[str, ...],
) -> Volume:
    """A 2D file as one slice, so far from the next that no resampling joins them."""
    if _target(spec) is not None:
        raise InputError(f"{name} has two axes; it cannot be turned to {_target(spec)}, give a volume")
    spacing = (max(zooms) * 999, zooms[1], zooms[0])
    return Volume(channels=values[None, None], spacing=spacing, name=name, geometry=geometry, notes=notes)


def _read_itk(path: Path, spec: VolumeInput, limits: Limits) -> Volume:
    _check_file(path, limits)
    array, spacing, affine = volume_formats.read_itk(path, limits, path.name)
    zooms = tuple(reversed(spacing))
    geometry = Geometry(shape=tuple(reversed(array.shape[-3:])), spacing=zooms[:3], affine=affine)
    values = np.ascontiguousarray(array, np.float32)
    if values.ndim == 2:
        return _flat(values, zooms, geometry, spec, path.name, ())
    return _turned(values if values.ndim == 4 else values[None], geometry, spec, path.name, ())


def _target(spec: VolumeInput) -> str | None:
    return spec.orientation or ("RAS" if spec.reader.endswith("-reorient") else None)


def _turned(channels: np.ndarray, geometry: Geometry, spec: VolumeInput, name: str, notes: tuple[str, ...]) -> Volume:
    """(C, z, y, x) in the file's directions to those the manifest asks for, and to the reader's order of axes."""
    zooms = geometry.spacing
    target = _target(spec)
    there, back = _ways(geometry.affine, target, name) if target is not None else (_AS_IT_IS, _AS_IT_IS)
    if not np.array_equal(there, _AS_IT_IS):
        channels = np.stack([_apply(channel.T, there).T for channel in channels])
        zooms = _turned_zooms(geometry, there, spec)
        geometry = replace(geometry, turned=back)
    if geometry.reverse:
        zooms = (zooms[2], zooms[1], zooms[0])
    else:
        channels = channels.transpose(0, 3, 2, 1)
    spacing = (zooms[0], zooms[1], zooms[2])
    channels = np.ascontiguousarray(channels)
    return Volume(channels=channels, spacing=spacing, name=name, geometry=geometry, notes=notes)


_AS_IT_IS = np.array([[0, 1], [1, 1], [2, 1]])


def _ways(affine: np.ndarray, target: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """nibabel's orientation transforms from a file's axes to ``target`` and back."""
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    have, wanted = io_orientation(affine), axcodes2ornt(tuple(target))
    if np.isnan(have).any():
        raise InputError(f"{name}: the header does not say where its axes point; correct its affine")
    return ornt_transform(have, wanted), ornt_transform(wanted, have)


def _apply(array: np.ndarray, ornt: np.ndarray) -> np.ndarray:
    from nibabel.orientations import apply_orientation

    return np.asarray(apply_orientation(array, ornt))


def _turned_zooms(geometry: Geometry, there: np.ndarray, spec: VolumeInput) -> tuple[float, ...]:
    if spec.reader == "nibabel-reorient":
        # nibabel writes a new header then, whose voxel sizes come from the affine
        from nibabel.affines import voxel_sizes
        from nibabel.orientations import inv_ornt_aff

        affine = geometry.affine @ inv_ornt_aff(there, geometry.shape)
        return tuple(float(np.float32(size)) for size in voxel_sizes(affine))
    zooms = [0.0, 0.0, 0.0]
    for axis, (new, _) in enumerate(there):
        zooms[int(new)] = geometry.spacing[axis]
    return tuple(zooms)


def _read_picture(path: Path, limits: Limits) -> Volume:
    array = volume_formats.read_picture(_bytes(path, limits), limits, path.name)
    z, y, x = volume_formats.PICTURE_SPACING
    geometry = Geometry(shape=(array.shape[3], array.shape[2]), spacing=(x, y, z), affine=_affine((x, y, z)))
    return Volume(
        channels=np.ascontiguousarray(array, np.float32), spacing=(z, y, x), name=path.name, geometry=geometry
    )


def _read_tiff3d(path: Path, limits: Limits) -> Volume:
    array = volume_formats.read_tiff3d(_bytes(path, limits), limits, path.name)
    found = volume_formats.read_spacing(path)
    notes = () if found else (f"no {volume_formats.spacing_beside(path).name} with its spacing; 1 mm is assumed",)
    z, y, x = found or (1.0, 1.0, 1.0)
    geometry = Geometry(shape=array.shape[::-1], spacing=(x, y, z), affine=_affine((x, y, z)))
    channels = np.ascontiguousarray(array[None], np.float32)
    return Volume(channels=channels, spacing=(z, y, x), name=path.name, geometry=geometry, notes=notes)


def _affine(zooms: Sequence[float]) -> np.ndarray:
    """Of a grid that came without directions: ITK's identity, x to the left and y to the back."""
    return np.diag([-zooms[0], -zooms[1], zooms[2], 1.0])


def read_labels(path: Path | str, spec: VolumeInput, limits: Limits = VOLUME_LIMITS) -> np.ndarray:
    """(z, y, x) integer labels of a case, read by the same rules as its channels. Raises InputError."""
    volume = read_volume([path], spec, limits)
    values = volume.channels[0]
    labels = values.astype(np.int32)
    if len(volume.channels) != 1 or not np.array_equal(labels, values):
        raise InputError(f"{Path(path).name} does not hold whole numbers, one a voxel; give a label file")
    return labels


def sample_volume(sample: bytes) -> tuple[Volume, np.ndarray | None]:
    """A package's golden sample: the case, and the labels of its previous stage where it has one."""
    try:
        with np.load(io.BytesIO(sample), allow_pickle=False) as arrays:
            volume = volume_from_array(arrays["channels"], arrays["spacing"], "sample")
            return volume, arrays.get("previous")
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"the package's sample cannot be read ({error}); export the package again") from None


# -------------------------------------------------------------------------------------------------- writing


def label_bytes(labels: np.ndarray, volume: Volume, ending: str) -> bytes:
    """A label file as bytes: ``labels`` (z, y, x) of uint8 or uint16 on the grid of ``volume``, on the file's own axes.

    A case that came as NIfTI keeps its header: affine, quaternion, spacing, units, texts. Raises OutputError for
    another shape or type, or a form that cannot hold them.
    """
    if labels.shape != volume.shape:
        raise OutputError(f"{volume.name}: the labels have shape {labels.shape}, the case {volume.shape}")
    if labels.dtype not in (np.uint8, np.uint16):
        raise OutputError(f"{volume.name}: labels are written as uint8 or uint16, not {labels.dtype}")
    ending = ending.lower()
    if ending in (".png", ".bmp") or (ending in (".tif", ".tiff") and labels.shape[0] == 1 and _is_picture(volume)):
        if labels.shape[0] != 1:
            raise OutputError(f"{volume.name} has {labels.shape[0]} slices; a {ending} holds one, write .nii.gz")
        return volume_formats.encode_picture(np.ascontiguousarray(labels[0]), ending)
    if ending in (".tif", ".tiff"):
        return volume_formats.encode_tiff(np.ascontiguousarray(labels))
    array, geometry = _in_file_axes(labels, volume)
    if ending in _NIFTI:
        header = geometry.header or nifti.new_header(geometry.affine, geometry.spacing)
        return nifti.encode_nifti(array, header, packed=ending == ".nii.gz")
    if ending in volume_formats.ITK_SUFFIXES:
        return volume_formats.encode_itk(array, geometry.affine, geometry.spacing, ending)
    raise UsageError(f"labels of a volume are not written as '{ending}'; use .nii.gz")


def _is_picture(volume: Volume) -> bool:
    return volume.geometry is not None and len(volume.geometry.shape) == 2


def _in_file_axes(labels: np.ndarray, volume: Volume) -> tuple[np.ndarray, Geometry]:
    geometry = volume.geometry
    if geometry is None:
        zooms = tuple(reversed(volume.spacing))
        geometry = Geometry(shape=labels.shape[::-1], spacing=zooms, affine=_affine(zooms))
    array = labels.transpose(2, 1, 0) if geometry.reverse else labels
    if geometry.turned is not None:
        array = _apply(array, geometry.turned)
    return (array[..., 0] if len(geometry.shape) == 2 else array), geometry


def write_labels(path: Path, labels: np.ndarray, volume: Volume) -> list[Path]:
    """Write a label file; the suffix chooses the form. A 3D TIFF gets its spacing in a json beside it.

    Each file is there whole or not at all. Raises OutputError.
    """
    ending = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()
    written = [write_bytes(path, label_bytes(labels, volume, ending))]
    if ending in (".tif", ".tiff") and not _is_picture(volume):
        written.append(write_bytes(volume_formats.spacing_beside(path), volume_formats.encode_spacing(volume.spacing)))
    return written
