"""Volumes in other files than NIfTI: what SimpleITK reads (.nrrd, .mha …), single pictures, 3D TIFF.

Each reader gives an array and where it lies; each writer gives bytes. Sizes are judged by the header first.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segship.errors import InputError, OutputError, UsageError
from segship.inference.containers import inspect_container, open_with_pillow
from segship.inference.images import Limits
from segship.inference.writers import encode_png

ITK_SUFFIXES = (".nrrd", ".mha", ".gipl")
PICTURE_SPACING = (999.0, 1.0, 1.0)
"""of a single picture, as nnU-Net's reader has it: so far apart that nothing joins slices"""
_TIFF = (".tif", ".tiff")
_COPY_AGAIN = "it is damaged or cut short, copy or download that file again"


# ------------------------------------------------------------------------------------------- SimpleITK


def _itk(name: str) -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise UsageError(f"{name}: files of this kind need SimpleITK; type: pip install 'segship[itk]'") from None
    return SimpleITK


def read_itk(path: Path, limits: Limits, name: str) -> tuple[np.ndarray, tuple[float, ...], np.ndarray]:
    """Array (z, y, x) or (channels, z, y, x) or (y, x), spacing in the array's order, and affine (4, 4) as NIfTI's.

    Raises InputError for a file that SimpleITK does not read or that is larger than ``limits``, UsageError without
    SimpleITK.
    """
    itk = _itk(name)
    try:
        reader = itk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        voxels = math.prod(reader.GetSize())
        if voxels > limits.max_pixels:
            raise InputError(
                f"{name} has {voxels:,} voxels, the limit is {limits.max_pixels:,}; "
                "crop it, or raise the limit with --max-pixels (Limits.max_pixels)"
            )
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{name} cannot be read ({_last_line(error)}); {_COPY_AGAIN}") from None
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{name} holds {image.GetNumberOfComponentsPerPixel()} numbers a voxel; give one file a channel"
        )
    dimension = image.GetDimension()
    if dimension not in (2, 3, 4):
        raise InputError(f"{name} has {dimension} axes; give two to four")
    spacing = tuple(abs(float(s)) for s in image.GetSpacing())
    array = itk.GetArrayFromImage(image)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{name} holds {array.dtype}; this package reads one number a voxel")
    affine = affine_from_lps(image.GetOrigin(), image.GetDirection(), image.GetSpacing())
    return array, tuple(reversed(spacing)), affine


def affine_from_lps(origin: Any, direction: Any, spacing: Any) -> np.ndarray:
    """ITK's origin, direction and spacing (x to the left, y to the back) as NIfTI's affine, for the first 3 axes."""
    count = len(origin)
    axes = min(3, count)
    matrix = np.asarray(direction, np.float64).reshape(count, count)[:axes, :axes]
    affine = np.eye(4)
    affine[:axes, :axes] = matrix * np.asarray(spacing, np.float64)[:axes]
    affine[:axes, 3] = np.asarray(origin, np.float64)[:axes]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def encode_itk(labels: np.ndarray, affine: np.ndarray, spacing: tuple[float, ...], suffix: str) -> bytes:
    """Labels in the file's own axes, first fastest, as .nrrd, .mha … with its geometry, compressed."""
    itk = _itk(f"labels as {suffix}")
    axes = labels.ndim
    lps = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)[:axes]
    directions = lps[:, :axes] / np.linalg.norm(lps[:, :axes], axis=0)
    with tempfile.TemporaryDirectory(prefix="segship-") as folder:
        path = Path(folder) / f"labels{suffix}"
        try:
            image = itk.GetImageFromArray(np.ascontiguousarray(labels.T))
            image.SetSpacing([float(length) for length in spacing[:axes]])
            image.SetOrigin(lps[:, 3].tolist())
            image.SetDirection(directions.ravel().tolist())
            itk.WriteImage(image, str(path), suffix != ".gipl")
            return path.read_bytes()
        except RuntimeError as error:
            raise OutputError(f"SimpleITK cannot write labels as {suffix} ({_last_line(error)})") from None


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].removeprefix("ITK ERROR: ")[:200]


# ------------------------------------------------------------------------------------------- pictures


def read_picture(data: bytes, limits: Limits, name: str) -> np.ndarray:
    """(C, 1, H, W): one channel for grey, three for colour, four with alpha; bit depth kept, EXIF ignored.

    As nnU-Net reads .png, .bmp and .tif through scikit-image. Raises InputError.
    """
    container = inspect_container(data, name)
    pixels = container.height * container.width
    if pixels > limits.max_pixels:
        raise InputError(
            f"{name} has {pixels:,} pixels, the limit is {limits.max_pixels:,}; cut it, or raise --max-pixels"
        )
    if container.format == "TIFF":
        array = _read_tiff(data, limits.max_pixels * 4, name)  # up to four channels
    else:
        try:
            with open_with_pillow(data, container.format) as picture:
                if picture.mode == "P":
                    picture = picture.convert(picture.palette.mode)
                array = np.asarray(picture)
        except Exception as error:  # Pillow's decoders raise nearly anything on hostile bytes
            raise InputError(f"{name} cannot be decoded ({error}); {_COPY_AGAIN}") from error
    if array.ndim == 2:
        return array[None, None]
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        raise InputError(f"{name} has the shape {array.shape}; give a grey picture, RGB or RGBA")
    return array.transpose(2, 0, 1)[:, None]


def encode_picture(labels: np.ndarray, suffix: str) -> bytes:
    """uint8 or uint16 labels (H, W) as .png, .bmp or .tif."""
    if suffix == ".png":
        return encode_png(labels, flat=True)
    if suffix in _TIFF:
        return encode_tiff(labels)
    if labels.dtype != np.uint8:
        raise OutputError("a .bmp holds labels up to 255; write .png or .tif")
    done, data = cv2.imencode(suffix, labels)
    if not done:
        raise OutputError(f"labels cannot be written as {suffix}; write .png")
    return data.tobytes()


# ------------------------------------------------------------------------------------------------ TIFF


def _tifffile(name: str) -> Any:
    try:
        import tifffile
    except ImportError:
        raise UsageError(f"{name}: TIFF files need tifffile; type: pip install 'segship[tiff]'") from None
    return tifffile


def _read_tiff(data: bytes, most: int, name: str) -> np.ndarray:
    tifffile = _tifffile(name)
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            voxels = math.prod(file.series[0].shape)
            if voxels > most:
                raise InputError(f"{name} has {voxels:,} voxels, the limit is {most:,}; crop it, or raise --max-pixels")
            array: np.ndarray = file.asarray()
    except InputError:
        raise
    except Exception as error:  # tifffile raises many kinds on hostile bytes
        raise InputError(f"{name} cannot be read as TIFF ({error}); {_COPY_AGAIN}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} holds {array.dtype}; this package reads one number a voxel")
    return array


def read_tiff3d(data: bytes, limits: Limits, name: str) -> np.ndarray:
    """(z, y, x) as stored. Raises InputError for another number of axes."""
    array = _read_tiff(data, limits.max_pixels, name)
    if array.ndim != 3:
        raise InputError(f"{name} has {array.ndim} axes; this package reads TIFF files of three (z, y, x)")
    return array


def encode_tiff(labels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    _tifffile("labels as .tif").imwrite(buffer, labels, photometric="minisblack", compression="zlib")
    return buffer.getvalue()


def spacing_beside(path: Path) -> Path:
    """The file that gives a TIFF's spacing: ``case.json`` beside ``case_0000.tif`` and beside labels ``case.tif``."""
    stem = path.name[: -len(path.suffix)]
    channel = stem[-5:]
    return path.with_name((stem[:-5] if channel[:1] == "_" and channel[1:].isdigit() else stem) + ".json")


def read_spacing(path: Path) -> tuple[float, float, float] | None:
    """(z, y, x) from a TIFF's json; None without one. Raises InputError for one that holds something else."""
    file = spacing_beside(path)
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))["spacing"]
        z, y, x = (float(value) for value in values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{file} does not hold {{"spacing": [z, y, x]}} in millimetres ({error})') from None
    return z, y, x


def encode_spacing(spacing: tuple[float, float, float]) -> bytes:
    return (json.dumps({"spacing": list(spacing)}) + "\n").encode()
