"""gzip on all threads: pieces packed side by side, joined to one ordinary gzip file (as madler/pigz does).

The pieces are of a fixed size, so equal data gives equal bytes whatever the machine. Each piece continues the stream
of the one before it (RFC 1951: a flushed block ends at a byte) and knows its last 32 kB, so the file is hardly larger
than from one thread.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

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
        pack = _packer(data, level)
        pieces: list[Future[bytes]] = [executor.submit(pack, start) for start in range(0, len(data), _PIECE)]
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


def _packer(data: memoryview, level: int) -> Callable[[int], bytes]:
    """What packs the piece that begins somewhere. Empty space behind empty space is packed once and used again."""
    zeros = bytes(_PIECE)
    empty = _packed(zeros, bytes(_WINDOW), level)

    def pack(start: int) -> bytes:
        piece, before = data[start : start + _PIECE], data[max(0, start - _WINDOW) : start]
        if len(piece) == _PIECE and len(before) == _WINDOW and not _any(piece) and not _any(before):
            return empty
        return _packed(piece, before, level)

    return pack


def _any(data: memoryview) -> bool:
    return bool(np.frombuffer(data, np.uint8).any())
