"""Picture files of every kind: the same pixels as Python's readers give, or a clear refusal."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cpp_cases import COLOR, GREY, PILLOW, SKIMAGE, picture, picture_package, write_pictures
from cpp_compare import Runner, check_stages, same
from PIL import Image

from segship.inference.predictor import Predictor
from segship.manifest import Channels, Divide, DivideByMaximum, ImageInput
from segship.package import Package

HEIGHT, WIDTH = 41, 58
RGB = picture(HEIGHT, WIDTH, 3)
ALPHA = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, 0)
WIDE = RGB.astype(np.uint16) * 257 + np.arange(WIDTH, dtype=np.uint16)[None, :, None]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opencv(suffix: str, pixels: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(RGB), kind, exif=exif.tobytes(), **({"quality": 92} if kind == "JPEG" else {}))


def with_transparent_colour() -> bytes:
    """A grey PNG whose tRNS chunk makes one level transparent."""
    whole = saved(Image.fromarray(RGB[..., 0]), "PNG")
    body = struct.pack(">H", 10)
    chunk = struct.pack(">I", 2) + b"tRNS" + body + struct.pack(">I", zlib.crc32(b"tRNS" + body))
    return whole[:33] + chunk + whole[33:]


PNG: dict[str, Callable[[], bytes]] = {
    "rgb.png": lambda: saved(Image.fromarray(RGB), "PNG"),
    "grey.png": lambda: saved(Image.fromarray(RGB[..., 0]), "PNG"),
    "rgba.png": lambda: saved(Image.fromarray(np.dstack([RGB, ALPHA])), "PNG"),
    "grey_alpha.png": lambda: saved(Image.fromarray(np.dstack([RGB[..., 0], ALPHA]), "LA"), "PNG"),
    "palette.png": lambda: saved(Image.fromarray(RGB).quantize(50), "PNG"),
    "palette_alpha.png": lambda: saved(Image.fromarray(RGB).quantize(50), "PNG", transparency=3),
    "transparent.png": with_transparent_colour,
    "one_bit.png": lambda: saved(Image.fromarray(RGB[..., 0] > 120), "PNG"),
    "two_bits.png": lambda: saved(Image.fromarray(RGB[..., 0]).quantize(4), "PNG", bits=2),
    "wide.png": lambda: opencv(".png", WIDE[..., ::-1]),
    "wide_grey.png": lambda: opencv(".png", WIDE[..., 0]),
    "wide_rgba.png": lambda: opencv(".png", np.dstack([WIDE[..., ::-1], WIDE[..., :1]])),
    "wide_grey_alpha.png": lambda: grey_alpha_16(),
    "interlaced.png": lambda: interlaced(),
    "moving.png": lambda: saved(
        Image.fromarray(RGB), "PNG", save_all=True, append_images=[Image.fromarray(RGB[::-1].copy())]
    ),
    "gamma.png": lambda: with_chunk(b"gAMA", struct.pack(">I", 100000)),
}
JPEG: dict[str, Callable[[], bytes]] = {
    "rgb.jpg": lambda: saved(Image.fromarray(RGB), "JPEG", quality=92),
    "full.jpg": lambda: saved(Image.fromarray(RGB), "JPEG", quality=75, subsampling=0),
    "half.jpg": lambda: saved(Image.fromarray(RGB), "JPEG", quality=60, subsampling=1),
    "grey.jpg": lambda: saved(Image.fromarray(RGB[..., 0]), "JPEG"),
    "progressive.jpg": lambda: saved(Image.fromarray(RGB), "JPEG", progressive=True),
    "cmyk.jpg": lambda: saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    **{f"exif{n}.jpg": lambda n=n: turned(n) for n in range(1, 9)},
}
OTHERS: dict[str, Callable[[], bytes]] = {
    "rgb.bmp": lambda: saved(Image.fromarray(RGB), "BMP"),
    "grey.bmp": lambda: saved(Image.fromarray(RGB[..., 0]), "BMP"),
    "rgb.tif": lambda: saved(Image.fromarray(RGB), "TIFF"),
    "lzw.tif": lambda: saved(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"),
    "grey.tif": lambda: saved(Image.fromarray(RGB[..., 0]), "TIFF"),
    "wide.tif": lambda: saved(Image.fromarray(WIDE[..., 0]), "TIFF"),
    "rgba.tif": lambda: saved(Image.fromarray(np.dstack([RGB, ALPHA])), "TIFF"),
    "wide_rgba.tif": lambda: opencv(".tif", np.dstack([WIDE[..., ::-1], WIDE[..., :1]])),
    "cmyk.tif": lambda: saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"),
    "spare.tif": lambda: saved(Image.fromarray(RGB).convert("RGBX"), "TIFF"),
    "lab.tif": lambda: saved(Image.fromarray(RGB).convert("LAB"), "TIFF"),
    "video.tif": lambda: saved(Image.fromarray(RGB).convert("YCbCr"), "TIFF"),
    "jpeg.tif": lambda: saved(Image.fromarray(RGB), "TIFF", compression="jpeg"),
    "one_bit.tif": lambda: saved(Image.fromarray(RGB[..., 0] > 120), "TIFF", compression="group4"),
    "palette.bmp": lambda: saved(Image.fromarray(RGB).quantize(20), "BMP"),
    **{f"exif{n}.tif": lambda n=n: turned(n, "TIFF") for n in range(2, 9)},
    "moving.webp": lambda: saved(
        Image.fromarray(RGB), "WEBP", save_all=True, append_images=[Image.fromarray(RGB[::-1].copy())], lossless=True
    ),
    "lossless.webp": lambda: saved(Image.fromarray(RGB), "WEBP", lossless=True),
    "lossy.webp": lambda: saved(Image.fromarray(RGB), "WEBP", quality=80),
    "rgb.gif": lambda: saved(Image.fromarray(RGB).quantize(64), "GIF"),
}
KINDS = PNG | JPEG | OTHERS
SPECS: dict[str, ImageInput] = {
    "opencv rgb": COLOR,
    "opencv bgr": COLOR.model_copy(update={"channel_order": "bgr"}),
    "opencv stored": COLOR.model_copy(update={"exif_rotation": "ignore"}),
    "opencv grey": GREY,
    "pillow": PILLOW,
    "pillow stored": PILLOW.model_copy(update={"exif_rotation": "ignore"}),
    "skimage": SKIMAGE,
    "skimage expanded": SKIMAGE.model_copy(update={"grey": "expand"}),
    "skimage with alpha": SKIMAGE.model_copy(update={"alpha": "keep"}),
}


def with_chunk(kind: bytes, body: bytes) -> bytes:
    whole = saved(Image.fromarray(RGB), "PNG")
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return whole[:33] + chunk + whole[33:]


def png(header: bytes, rows: bytes) -> bytes:
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def grey_alpha_16() -> bytes:
    rows = np.dstack([WIDE[..., 0], WIDE[..., 1]]).astype(">u2")
    return png(struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 4, 0, 0, 0), b"".join(b"\0" + row.tobytes() for row in rows))


def interlaced() -> bytes:
    """Adam7: the same pixels in seven passes."""
    rows = b""
    for y, x, dy, dx in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        part = RGB[y::dy, x::dx]
        if part.size:
            rows += b"".join(b"\0" + row.tobytes() for row in part)
    return png(struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 1), rows)


def package_for(path: Path, spec: ImageInput) -> Package:
    if spec.reader == "skimage":  # bit depths are kept: by the picture's own maximum, as U²-Net does
        return picture_package(path, DivideByMaximum(floor=1e-6, dtype="float64"), Channels(count=3), spec=spec)
    return picture_package(path, Divide(by=255), spec=spec)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for name, content in KINDS.items():
        made[name] = folder / f"{Path(name).stem}-{Path(name).suffix[1:]}{Path(name).suffix}"
        made[name].write_bytes(content())
    return made


@pytest.mark.parametrize("reader", SPECS)
def test_every_kind_of_file(reader: str, files: dict[str, Path], run_cpp: Runner, tmp_path: Path) -> None:
    """PNG and JPEG must be read; another kind must be read alike or be refused by name."""
    package = package_for(tmp_path / "net.segship", SPECS[reader])
    found = run_cpp(package, *files.values())
    assert found.code in (0, 1), found.err
    refused = []
    with Predictor.open(package) as predictor:
        for name, path in files.items():
            if path.stem in found.stages:
                try:
                    check_stages(found.stages[path.stem], predictor.trace(path))
                except AssertionError as error:
                    raise AssertionError(f"{name}: {error}") from None
            else:
                refused.append(name)
                assert path.name in found.failure(path.name)
    assert not set(refused) & (PNG.keys() | JPEG.keys()), found.err


def test_what_is_not_read_is_named(run_cpp: Runner, tmp_path: Path) -> None:
    kinds = {
        "GIF": OTHERS["rgb.gif"](),
        "HEIC": b"\0\0\0\x18ftypheic" + bytes(40),
        "AVIF": b"\0\0\0\x18ftypavif" + bytes(40),
    }
    for kind, data in kinds.items():
        (tmp_path / f"a.{kind.lower()}").write_bytes(data)
    ran = run_cpp(picture_package(tmp_path / "net.segship"), *sorted(tmp_path.glob("a.*")))
    assert ran.code == 1
    for kind in kinds:
        wanted = f"is a {kind} picture, which the C++ runner does not read; save it as PNG or JPEG"
        assert wanted in ran.failure(f"a.{kind.lower()}")


def test_grey_tiffs_that_were_turned(run_cpp: Runner, tmp_path: Path) -> None:
    """Their size stands in the file as it is, and as it is to be seen."""
    paths = []
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        paths.append(tmp_path / f"g{number}.tif")
        paths[-1].write_bytes(saved(Image.fromarray(RGB[..., 0]), "TIFF", exif=exif))
    for rotation in ("apply", "ignore"):
        package = package_for(tmp_path / "net.segship", SKIMAGE.model_copy(update={"exif_rotation": rotation}))
        found = run_cpp(package, *paths)
        with Predictor.open(package) as predictor:
            for path in paths:
                check_stages(found.of(path.stem), predictor.trace(path))


@pytest.mark.parametrize("reader", SPECS)
def test_keeping_a_pictures_colours_changes_no_answer(
    reader: str, files: dict[str, Path], run_cpp: Runner, tmp_path: Path
) -> None:
    """Overlays keep the picture as it is seen, the network gets it as it was."""
    package = package_for(tmp_path / "net.segship", SPECS[reader])
    pngs = [path for name, path in files.items() if name in PNG]
    plain, drawn = run_cpp(package, *pngs), run_cpp(package, *pngs, overlay=True)
    for path in pngs:
        for stage in ("read", "decoded"):
            assert np.array_equal(plain.of(path.stem)[stage], drawn.of(path.stem)[stage]), f"{path.name}: {stage}"


@pytest.mark.parametrize("reader", ["opencv rgb", "pillow", "skimage"])
def test_real_photos(reader: str, shared: Path, run_cpp: Runner, tmp_path: Path) -> None:
    photos = sorted((shared / "data" / "photos").iterdir())
    small = [path for path in photos if path.stat().st_size < 400_000]
    assert len(small) >= 4
    package = package_for(tmp_path / "net.segship", SPECS[reader])
    found = run_cpp(package, *small)
    assert found.code == 0, found.err
    with Predictor.open(package) as predictor:
        for path in small:
            check_stages(found.of(path.stem), predictor.trace(path))


def test_folders_and_equal_names(run_cpp: Runner, tmp_path: Path) -> None:
    """Folders are walked, files that are no pictures left out, and two of one name get their folders' names."""
    for name in ("a/one.png", "b/one.png", "b/deep/two.jpg"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(opencv(path.suffix, RGB))
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    package = picture_package(tmp_path / "net.segship")
    found = run_cpp(package, tmp_path / "in")
    assert found.code == 0, found.err
    names = sorted(path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*.png"))
    assert names == ["a/one.png", "b/deep/two.png", "b/one.png"]


PATTERNS = (
    "in/*.png",
    "in/**/*.png",
    "in/**",
    "**/two*",
    "in/b/**/[ot]*.jp*g",
    "in/**/deep/**/*.jpg",
    "in/?/*.png",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str, run_cpp: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files as Python finds; ** stands for any number of folders."""
    from segship.inference.images import find_inputs

    for name in (
        "one.png",
        "a/two.png",
        "b/deep [1]/deep/three.jpg",
        "b/four.jpeg",
        "b/.hidden/five.png",
        "b/notes.txt",
    ):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if path.suffix == ".txt" else opencv(path.suffix, RGB))
    package = picture_package(tmp_path / "net.segship").path
    monkeypatch.chdir(tmp_path)
    wanted = {str(path) for path in find_inputs([pattern])}
    ran = run_cpp.words(str(package), pattern, "-o", "out", "-q")
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert ran.code == 0, ran.err
    assert {json.loads(line)["input"] for line in lines} == wanted


def test_a_pattern_that_nothing_matches(run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    package = picture_package(tmp_path / "net.segship").path
    pattern = tmp_path / "**" / "none*.png"
    same(run_cpp(package, pattern), python(package, pattern), f"no image matches {pattern}; check the pattern")


def test_results_below_the_inputs_are_no_inputs(run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    """A second run, of either runner, does the same pictures again and not the masks that the first one wrote."""
    package = picture_package(tmp_path / "net.segship").path
    folder = tmp_path / "in"
    write_pictures(folder / "a b", ((20, 30), (31, 17)))
    arguments = [
        str(package),
        str(folder),
        "-o",
        str(folder / "masks"),
        "--overlay",
        "--instances",
        "--probability-images",
    ]
    for _ in range(3):
        ran = run_cpp.words(*arguments, "--json")
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["done"] == 2
    lines = [json.loads(line) for line in (folder / "masks" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert {name for line in lines for name in line["outputs"]} == {
        path.relative_to(folder / "masks").as_posix() for path in (folder / "masks").rglob("*.png")
    }
    with (folder / "masks" / "predictions.jsonl").open("a") as journal:
        journal.write('{"input": "cut o')  # a run that was killed
    assert python(package, folder, "-o", folder / "masks")[0] == 0
    assert json.loads(run_cpp.words(*arguments, "--json").out)["done"] == 2
