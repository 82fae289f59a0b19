"""A command line to call, a package to call it on, and pictures to feed it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_package import tiny_package

from segship.cli import run as run_command


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that an error is. Fails when it is a traceback or more than one line."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.strip().splitlines() if line.startswith(("error:", "Error:"))]
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def segship(capsys, tmp_path, monkeypatch) -> Callable[..., Outcome]:
    """``segship("predict", package, …)`` runs the command line in this process."""
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run_command([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code=code, out=captured.out, err=captured.err)

    return call


@pytest.fixture(scope="session")
def package(tmp_path_factory) -> Path:
    """A real package whose network is one convolution: bright is nucleus."""
    return tiny_package(tmp_path_factory.mktemp("package") / "bright.segship", size=64).path


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
