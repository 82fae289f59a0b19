"""Pictures and data sets for the command line to read."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np


def picture(number: int, height: int = 70, width: int = 90) -> np.ndarray:
    """(H, W, 3) uint8: a few bright discs on a dark, slightly noisy ground; another picture for each number."""
    random = np.random.default_rng(number)
    image = random.integers(0, 12, (height, width, 3), dtype=np.uint8)
    for _ in range(6):
        centre = (int(random.integers(8, width - 8)), int(random.integers(8, height - 8)))
        cv2.circle(image, centre, int(random.integers(4, 9)), (200, 200, 200), -1)
    return image


def write_pictures(folder: Path, count: int, first: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"cell_{number:03d}.png" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        cv2.imwrite(str(path), picture(number))
    return paths


def write_dataset(folder: Path, count: int, first: int = 0) -> Path:
    """``folder/images`` and ``folder/masks``: what is bright is the truth."""
    for path in write_pictures(folder / "images", count, first):
        (folder / "masks").mkdir(exist_ok=True)
        truth = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 100).astype(np.uint8) * 255
        cv2.imwrite(str(folder / "masks" / path.name), truth)
    return folder


def huge_png(path: Path, side: int = 40_000) -> Path:
    """A PNG whose header says side x side pixels, in a few hundred bytes."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    buffer = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    buffer.seek(0, io.SEEK_END)
    buffer.write(chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)))
    buffer.write(chunk(b"IDAT", zlib.compress(bytes(1000))))
    buffer.write(chunk(b"IEND", b""))
    path.write_bytes(buffer.getvalue())
    return path
