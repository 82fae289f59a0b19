"""nnU-Net v2's probability files, read one class at a time: all classes of a large case need not fit into memory."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from segship.errors import InputError
from segship.inference.volumes import VOLUME_LIMITS

KEY = "probabilities"


@dataclass(frozen=True, kw_only=True)
class ChannelFile:
    """An opened file; `channels` may be walked through once."""

    path: Path
    shape: tuple[int, int, int, int]
    """(classes, z, y, x)"""
    dtype: np.dtype[np.generic]
    stream: IO[bytes]

    def channels(self) -> Iterator[NDArray[np.generic]]:
        """(z, y, x) of each class in turn, as stored. Raises InputError for a file that ends too soon."""
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        for _ in range(self.shape[0]):
            try:
                data = self.stream.read(size)
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
                raise InputError(f"{self.path} is damaged ({error}); predict that case again") from error
            if len(data) != size:
                raise InputError(f"{self.path} is cut short; predict that case again")
            yield np.frombuffer(data, self.dtype).reshape(self.shape[1:])


@contextmanager
def open_probabilities(path: Path) -> Iterator[ChannelFile]:
    """Raises InputError, naming the file, for what holds no float array (classes, z, y, x) under ``probabilities``."""
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{KEY}.npy" not in archive.namelist():
                held = ", ".join(Path(name).stem for name in archive.namelist()[:4])
                older = "; v1's softmax files cannot be averaged here" if "softmax.npy" in archive.namelist() else ""
                raise InputError(f"{path} has no '{KEY}' (it holds: {held or 'nothing'}){older}")
            with archive.open(f"{KEY}.npy") as stream:
                shape, dtype = _header(stream, path)
                yield ChannelFile(path=path, shape=shape, dtype=dtype, stream=stream)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path} is no complete npz file ({error}); predict that case again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check the path") from error


def _header(stream: IO[bytes], path: Path) -> tuple[tuple[int, int, int, int], np.dtype[np.generic]]:
    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except ValueError as error:
        raise InputError(f"{path}: '{KEY}' cannot be understood ({error}); predict that case again") from None
    if dtype.kind != "f" or len(shape) != 4 or fortran or 0 in shape:
        raise InputError(f"{path}: '{KEY}' is {dtype} of shape {shape}; expected floats (classes, z, y, x)")
    if math.prod(shape[1:]) > VOLUME_LIMITS.max_pixels:
        raise InputError(f"{path} has {math.prod(shape[1:]):,} voxels, the limit is {VOLUME_LIMITS.max_pixels:,}")
    return (shape[0], shape[1], shape[2], shape[3]), dtype
