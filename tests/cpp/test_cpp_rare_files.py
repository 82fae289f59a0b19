"""Kinds of TIFF and BMP that OpenCV and Pillow read unlike each other: the same values as in Python, or a refusal by name."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_cases import COLOR, PILLOW, SIGMOID, SKIMAGE, picture, picture_package, resized
from cpp_compare import Runner, check_stages
from PIL import Image

from segship.inference.predictor import Predictor
from segship.manifest import Channels, Divide, DivideByMaximum, ImageInput
from segship.package import Package

HEIGHT, WIDTH = 41, 58
RGB = picture(HEIGHT, WIDTH, 3)
ALPHA = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, 0)
FOUR = np.dstack([RGB, ALPHA])
WIDE = FOUR.astype(np.uint16) * 257
UNDER_ALPHA = (RGB * (ALPHA[..., None] / 255)).astype(np.uint8)


def saved(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def tiff(pixels: np.ndarray, photometric: int, extra: int | None = None, *, separate: bool = False) -> bytes:
    """(H, W, C) uint8 or uint16 without compression, all rows, or those of a plane, in one strip."""
    height, width, planes = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    strips = [pixels[..., k].tobytes() for k in range(planes)] if separate else [pixels.tobytes()]
    content = bytearray(b"II*\0" + bytes(4))

    def kept(code: str, values: list[int]) -> bytes:
        """The four bytes of a tag's value: the numbers, or where they stand."""
        packed = struct.pack(f"<{len(values)}{code}", *values)
        if len(packed) <= 4:
            return packed.ljust(4, b"\0")
        content.extend(packed)
        return struct.pack("<I", len(content) - len(packed))

    offsets = []
    for strip in strips:
        offsets.append(len(content))
        content.extend(strip)
    fields: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]), (257, "I", [height]), (258, "H", [bits] * planes), (259, "H", [1]), (262, "H", [photometric]),
        (273, "I", offsets), (277, "H", [planes]), (278, "I", [height]), (279, "I", [len(strip) for strip in strips]),
        (284, "H", [2 if separate else 1]),
    ]  # fmt: skip
    fields += [] if extra is None else [(338, "H", [extra])]
    tags = [
        struct.pack("<HHI", tag, {"H": 3, "I": 4}[code], len(values)) + kept(code, values)
        for tag, code, values in fields
    ]
    content[4:8] = struct.pack("<I", len(content))
    return bytes(content) + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)


def bmp(levels: list[int], *, bits: int = 8, old: bool = False, steps: tuple[int, int, int] = (1, 1, 1)) -> bytes:
    """Numbers up to ``len(levels)`` with a palette of these levels, times ``steps`` for each colour."""
    numbers = (RGB[..., 0] // (256 // len(levels))).astype(np.uint8)
    rows = np.packbits(numbers, axis=1) if bits == 1 else numbers
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    colours = [bytes(level * step % 256 for step in steps) for level in levels]
    palette = b"".join(colours) if old else b"".join(colour + b"\0" for colour in colours)
    header = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits)
    if not old:
        count = 0 if len(levels) == 1 << bits else len(levels)
        header = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, 0, rows.size, 0, 0, count, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + rows.size, 0, 0, start) + header + palette + rows.tobytes()


def old_colours() -> bytes:
    rows = np.pad(RGB.reshape(HEIGHT, -1), ((0, 0), (0, -WIDTH * 3 % 4)))
    header = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24)
    return b"BM" + struct.pack("<IHHI", 26 + rows.size, 0, 0, 26) + header + rows.tobytes()


READ: dict[str, Callable[[], bytes]] = {
    "plain.tif": lambda: tiff(RGB, 2),
    "separate.tif": lambda: tiff(RGB, 2, separate=True),
    "wide.tif": lambda: tiff(WIDE[..., :3], 2),
    "wide_alpha.tif": lambda: tiff(WIDE, 2, 2),
    "wide_spare.tif": lambda: tiff(WIDE, 2, 0),
    "spare.tif": lambda: tiff(FOUR, 2, 0),
    "grey_alpha.tif": lambda: tiff(FOUR[..., 2:], 1, 2),
    "ramp.bmp": lambda: bmp(list(range(256))),
    "half_ramp.bmp": lambda: bmp(list(range(128))),
    "backwards.bmp": lambda: bmp(list(range(255, -1, -1))),
    "few_greys.bmp": lambda: bmp([0, 80, 160, 255]),
    "coloured.bmp": lambda: bmp(list(range(256)), steps=(1, 3, 7)),
    "black_and_white.bmp": lambda: bmp([0, 255], bits=1),
    "white_and_black.bmp": lambda: bmp([255, 0], bits=1),
    "old_ramp.bmp": lambda: bmp(list(range(256)), old=True),
    "fourth.bmp": lambda: saved(Image.fromarray(FOUR), "BMP"),
}
REFUSED: dict[str, Callable[[], bytes]] = {
    "cmyk.tif": lambda: tiff(FOUR, 5),
    "wide_cmyk.tif": lambda: tiff(WIDE, 5),
    "corel.tif": lambda: tiff(FOUR, 2, 999),
    "under_alpha.tif": lambda: tiff(np.dstack([UNDER_ALPHA, ALPHA]), 2, 1),
    "wide_under_alpha.tif": lambda: tiff(np.dstack([UNDER_ALPHA, ALPHA]).astype(np.uint16) * 257, 2, 1),
    "wide_separate.tif": lambda: tiff(WIDE[..., :3], 2, separate=True),
    "old_colours.bmp": old_colours,
    "old_palette.bmp": lambda: bmp(list(range(256)), old=True, steps=(1, 3, 7)),
}
SPECS: dict[str, ImageInput] = {
    "pillow": PILLOW,
    "skimage": SKIMAGE,
    "skimage expanded": SKIMAGE.model_copy(update={"grey": "expand"}),
    "skimage with alpha": SKIMAGE.model_copy(update={"alpha": "keep"}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for name, content in (READ | REFUSED).items():
        made[name] = folder / f"{Path(name).stem}-{Path(name).suffix[1:]}{Path(name).suffix}"
        made[name].write_bytes(content())
    return made


def package_for(path: Path, spec: ImageInput) -> Package:
    steps: tuple[Any, ...] = (Divide(by=255),)
    if spec.reader == "skimage":
        steps = (DivideByMaximum(floor=1e-6, dtype="float64"), Channels(count=3))
    return picture_package(path, *steps, spec=spec)


@pytest.mark.parametrize("reader", SPECS)
def test_as_pillow_reads_them(reader: str, files: dict[str, Path], run_cpp: Runner, tmp_path: Path) -> None:
    package = package_for(tmp_path / "net.segship", SPECS[reader])
    found = run_cpp(package, *files.values())
    assert found.code == 1, found.err
    with Predictor.open(package) as predictor:
        for name in READ:
            assert files[name].stem in found.stages, found.err
            try:
                check_stages(found.stages[files[name].stem], predictor.trace(files[name]))
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None
        for name in REFUSED:
            predictor.trace(files[name])  # Python reads it
            said = found.failure(f"/{files[name].name}")
            assert f": {files[name].name} is a " in said
            assert "which the C++ runner does not read" in said


CUT = ("spare.tif", "wide_spare.tif", "wide_separate.tif", "cmyk.tif", "fourth.bmp", "old_colours.bmp")


@pytest.mark.parametrize("name", [*CUT, "wide_alpha.tif", "grey_alpha.tif"])
def test_a_cutouts_own_alpha(name: str, files: dict[str, Path], run_cpp: Runner, tmp_path: Path) -> None:
    """rembg's cutouts keep the picture's alpha: no other fourth sample, and not without the one beside grey."""
    package = picture_package(tmp_path / "net.segship", *resized(48, 64), decode=SIGMOID, spec=COLOR)
    ran = run_cpp(package, files[name], trace=False, output="cutout", cutout_style="rembg")
    if name == "grey_alpha.tif":
        assert ran.code == 1
        assert "alpha beside its grey, which the C++ runner does not read" in ran.failure(files[name].name)
        return
    assert ran.code == 0, ran.err
    with Predictor.open(package) as predictor:
        drawn = predictor(files[name]).render(kind="cutout", cutout_style="rembg").pixels
    with Image.open(ran.folder / f"{files[name].stem}.png") as made:
        found = np.asarray(made)
    assert found.shape == drawn.shape
    assert np.mean(found == drawn) >= 0.9999
