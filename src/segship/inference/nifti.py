"""NIfTI files (.nii, .nii.gz): bytes to an array with its geometry, and labels back under the same header.

nibabel reads the header; the bytes themselves are handled here, so that a file is judged before it is unpacked:
how large its header says it is, whether it holds that much, whether its check sum is right.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from segship.errors import InputError
from segship.inference.deflate import gzip_bytes
from segship.inference.images import Limits

_GZIP = b"\x1f\x8b"
_HEADER = {348: 352, 540: 544}
"""sizeof_hdr -> where data may begin: the header and the four bytes that announce extensions"""
_MOST_OF_HEADER = 544
_SLACK = 64 << 20
"""bytes that may follow the voxels in an unpacked file; beyond, it is a bomb rather than a mistake"""
_CHUNK = 1 << 20
_COPY_AGAIN = "it is damaged or cut short, copy or download that file again"


@dataclass(frozen=True, kw_only=True, eq=False)
class NiftiHeader:
    """What the file says of itself. Axes are the file's own: the first runs fastest."""

    block: bytes
    """as it stands in the file"""
    shape: tuple[int, ...]
    """trailing axes of one voxel beyond the third are left out"""
    zooms: tuple[float, ...]
    """pixdim as it stands, float32 values, of the axes in ``shape``"""
    affine: np.ndarray
    """(4, 4) float64: voxel to millimetres, x to the right, y to the front, z to the head"""
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    unit_mm: float
    """length of the header's unit in millimetres; only SimpleITK looks at it"""
    orthonormal: bool
    """are the axes at right angles? SimpleITK reads no others"""

    @property
    def payload(self) -> int:
        """Bytes of all voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_nifti(data: bytes, limits: Limits, name: str) -> tuple[NiftiHeader, np.ndarray]:
    """Header and unscaled voxels, first axis fastest (Fortran order), of a .nii or .nii.gz.

    Raises InputError for what is no NIfTI, holds less than its header says, fails its check sum, holds colours or
    complex numbers, or exceeds ``limits`` (judged by the header, before anything is unpacked).
    """
    stream: Any = io.BytesIO(data)
    packed = data[:2] == _GZIP
    if packed:
        stream = gzip.GzipFile(fileobj=stream)
    try:
        first = stream.read(_MOST_OF_HEADER)
        header = parse_header(first, name)
        _check_size(header, limits, name)
        if not packed and len(data) < header.offset + header.payload:
            raise EOFError(f"its header declares {header.offset + header.payload:,} bytes, it has {len(data):,}")
        voxels = _unpack(stream, first, header) if packed else data
        if packed:
            _read_to_the_end(stream, name)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{name} cannot be unpacked ({error}); {_COPY_AGAIN}") from None
    start = 0 if packed else header.offset
    array = np.frombuffer(voxels, header.dtype, math.prod(header.shape), start).reshape(header.shape, order="F")
    return header, array


def _unpack(stream: Any, first: bytes, header: NiftiHeader) -> bytearray:
    out = bytearray(header.payload)
    view = memoryview(out)
    done = min(max(0, len(first) - header.offset), header.payload)
    view[:done] = first[header.offset : header.offset + done]
    skip = max(0, header.offset - len(first))  # extensions between header and voxels
    while skip:
        part = len(stream.read(min(skip, _CHUNK)))
        if not part:
            raise EOFError("it ends before its first voxel")
        skip -= part
    while done < header.payload:
        part = stream.readinto(view[done : done + _CHUNK])
        if not part:
            raise EOFError(f"its header declares {header.payload:,} bytes of voxels, it holds {done:,}")
        done += part
    return out


def _read_to_the_end(stream: Any, name: str) -> None:
    """The check sum stands at the end of what was packed."""
    extra = 0
    while part := stream.read(_CHUNK):
        extra += len(part)
        if extra > _SLACK:
            raise InputError(f"{name} unpacks to far more than its header declares; do not use this file")


def parse_header(block: bytes, name: str) -> NiftiHeader:
    """The header from a file's first bytes (544 of them, or all). Raises InputError."""
    from nibabel.imageglobals import LoggingOutputSuppressor
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    sizes = {int.from_bytes(block[:4], order): order for order in ("little", "big")}
    size = next((size for size in _HEADER if size in sizes), None)
    if size is None or len(block) < size:
        raise InputError(f"{name} is no NIfTI file: {'empty' if not block else 'its first bytes are no header'}")
    kind: Any = Nifti1Header if size == 348 else Nifti2Header
    try:
        with LoggingOutputSuppressor():  # what it mends (a negative voxel size …) is not the user's to read here
            header = kind(binaryblock=block[:size], check=True)
            written = kind(binaryblock=block[:size], check=False)["pixdim"][1:4]
        shape = tuple(int(side) for side in header.get_data_shape())
        slope, intercept = header.get_slope_inter()
        dtype, zooms, affine = header.get_data_dtype(), header.get_zooms(), header.get_best_affine()
        unit = header.get_xyzt_units()[0]
        offset = max(int(header["vox_offset"]), _HEADER[size])
        magic = bytes(np.asarray(header["magic"]).tobytes())[:3]
    except Exception as error:  # nibabel raises many kinds on hostile bytes
        raise InputError(f"{name} has a damaged NIfTI header ({error}); {_COPY_AGAIN}") from None
    if magic not in (b"n+1", b"n+2"):
        raise InputError(f"{name} keeps its voxels in another file (.img); convert the pair to one .nii.gz")
    if dtype.kind not in "iuf":
        what = "complex numbers" if dtype.kind == "c" else "colours"
        raise InputError(f"{name} holds {what}; this package reads one number a voxel")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 2 or min(shape) < 1 or not np.isfinite(affine).all():
        raise InputError(f"{name} declares a grid of {shape} voxels; {_COPY_AGAIN}")
    if any(zoom == 0 and side > 1 for zoom, side in zip(written, shape, strict=False)):  # nibabel would make it 1
        sizes_mm = " x ".join(f"{zoom:g}" for zoom in written)
        raise InputError(f"{name} has voxels of {sizes_mm} mm; the spacing must be positive, correct the file's header")
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0).clip(1e-12)
    return NiftiHeader(
        block=block[:size],
        shape=shape,
        zooms=tuple(float(zoom) for zoom in zooms[: len(shape)]),
        affine=np.asarray(affine, np.float64),
        dtype=dtype,
        offset=offset,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        unit_mm={"meter": 1000.0, "micron": 0.001}.get(unit, 1.0),
        orthonormal=bool(np.abs(directions.T @ directions - np.eye(3)).max() < 1e-3),
    )


def _check_size(header: NiftiHeader, limits: Limits, name: str) -> None:
    voxels = math.prod(header.shape)
    if voxels > limits.max_pixels:
        raise InputError(
            f"{name} has {voxels:,} voxels, the limit is {limits.max_pixels:,}; "
            "crop it, or raise the limit with --max-pixels (Limits.max_pixels)"
        )


def scaled(array: np.ndarray, header: NiftiHeader) -> np.ndarray:
    """float32 values, last axis first (C order): slope and intercept applied in float64, then rounded once.

    As nibabel's ``get_fdata`` and as SimpleITK give them after a cast to float32.
    """
    turned = array.T
    plain = header.slope == 1 and header.intercept == 0
    if plain and header.dtype.itemsize <= 4:
        return np.ascontiguousarray(turned, np.float32)
    out = np.empty(turned.shape, np.float32)
    for target, part in zip(out, turned, strict=True):  # plane by plane: float64 never stands there as a whole
        wide = part.astype(np.float64)
        target[...] = wide if plain else wide * header.slope + header.intercept
    return out


def labels_header(block: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """A header block for labels on the grid of another file.

    Position, spacing, units and texts stay as they are, byte for byte; only what describes the numbers is new.
    """
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    kind: Any = Nifti1Header if len(block) == 348 else Nifti2Header
    header = kind(binaryblock=block, check=False)
    fields = header.structarr
    fields["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    fields["datatype"] = 2 if dtype.itemsize == 1 else 512
    fields["bitpix"] = dtype.itemsize * 8
    fields["vox_offset"] = _HEADER[len(block)]
    fields["scl_slope"], fields["scl_inter"] = 1, 0
    fields["cal_min"], fields["cal_max"] = 0, 0  # how to show the brightness of the image
    return bytes(header.binaryblock)


def new_header(affine: np.ndarray, zooms: tuple[float, ...]) -> bytes:
    """A header block for a grid that did not come from a NIfTI file."""
    from nibabel.nifti1 import Nifti1Header

    header = Nifti1Header()
    header.set_data_shape((1,) * len(zooms))
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_zooms(zooms)
    header.set_xyzt_units("mm")
    return bytes(header.binaryblock)


def encode_nifti(labels: np.ndarray, block: bytes, *, packed: bool) -> bytes:
    """A whole .nii or .nii.gz of uint8 or uint16 labels in the file's own axes; equal input gives equal bytes."""
    order = "<" if int.from_bytes(block[:4], "little") in _HEADER else ">"
    dtype = np.dtype(f"{order}u{labels.dtype.itemsize}")
    head = labels_header(block, labels.shape, dtype) + bytes(4)
    planes = np.ascontiguousarray(labels.T, dtype)
    if not packed:
        return head + planes.tobytes()
    return gzip_bytes(head, planes)
