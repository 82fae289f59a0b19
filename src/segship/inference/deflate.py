"""gzip on all threads: pieces packed side by side, joined to one ordinary gzip file (as madler/pigz does).

The pieces are of a fixed size, so equal data gives equal bytes whatever the machine. Each piece continues the stream
of the one before it (RFC 1951: a flushed block ends at a byte) and knows its last 32 kB, so the file is hardly larger
than from one thread.
"""

from __future__ import annotations

import struct
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import numpy as np

from segship.inference.pipeline import helper_threads

LEVEL = 6
_PIECE = 1 << 20
_WINDOW = 1 << 15
_HEADER = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3])
"""RFC 1952: deflate, no name, no time (so that bytes do not depend on the clock), Unix"""


def gzip_bytes(head: bytes, body: np.ndarray, level: int = LEVEL) -> bytes:
    """``head`` and the bytes of a C-contiguous array as one gzip file."""
    data = memoryview(body.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    with ThreadPoolExecutor(helper_threads(), thread_name_prefix="segship-gzip") as executor:
        check = executor.submit(zlib.crc32, data, zlib.crc32(head))
        pieces: list[Future[bytes]] = [
            executor.submit(_piece, data, start, level) for start in range(0, len(data), _PIECE)
        ]
        parts = [_HEADER, _packed(head, b"", level), *(piece.result() for piece in pieces), _END]
        sizes = struct.pack("<II", check.result(), (len(head) + len(data)) & 0xFFFFFFFF)
    return b"".join([*parts, sizes])


_END = zlib.compressobj(1, zlib.DEFLATED, -15).flush()
"""an empty last block"""


def _packed(data: bytes | memoryview, before: bytes | memoryview, level: int) -> bytes:
    if before:
        packer = zlib.compressobj(level, zlib.DEFLATED, -15, zdict=before)
    else:
        packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)


def _piece(data: memoryview, start: int, level: int) -> bytes:
    """The packed piece that begins at ``start``."""
    piece, before = data[start : start + _PIECE], data[max(0, start - _WINDOW) : start]
    if len(piece) == _PIECE and len(before) == _WINDOW and not _any(piece) and not _any(before):
        return _empty(_PIECE, level)
    return _packed(piece, before, level)


@cache
def _empty(size: int, level: int) -> bytes:
    """A piece of empty space behind empty space, packed once and used again."""
    return _packed(bytes(size), bytes(_WINDOW), level)


def _any(data: memoryview) -> bool:
    return bool(np.frombuffer(data, np.uint8).any())
