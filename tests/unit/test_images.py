"""Reading: every kind of picture by the reader's own rules, and every fault by name."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pil

from segship.errors import InputError, UsageError
from segship.inference.images import Limits, find_inputs, pixel_sha256, read_image
from segship.manifest import Channel, ImageInput

RNG = np.random.default_rng(7)
NOISE = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)  # RGB


def spec(reader: str = "opencv:color", order: str = "bgr", exif: str = "apply") -> ImageInput:
    names = "K" if order == "grey" else order.upper()
    return ImageInput(
        reader=reader,  # type: ignore[arg-type]
        channels=tuple(Channel(name=name) for name in names),
        channel_order=order,  # type: ignore[arg-type]
        exif_rotation=exif,  # type: ignore[arg-type]
    )


BGR, RGB, GREY = spec(), spec(order="rgb"), spec("opencv:grey", "grey")
PILLOW, SKIMAGE = spec("pillow:rgb", "rgb"), spec("skimage", "rgb", "ignore")


def encode(array: np.ndarray, format: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture = Pil.fromarray(array)
    if mode is not None and picture.mode != mode:
        picture = picture.convert(mode)
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def png16(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


# ------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WebP"])
def test_lossless_formats_give_the_same_pixels(format: str) -> None:
    data = encode(NOISE, format, **({"lossless": True} if format == "WebP" else {}))
    assert (read_image(data, BGR).pixels == NOISE[..., ::-1]).all()
    assert (read_image(data, RGB).pixels == NOISE).all()
    assert (read_image(data, PILLOW).pixels == NOISE).all()
    assert (read_image(data, SKIMAGE).pixels == NOISE).all()


def test_jpeg_is_opencvs_jpeg() -> None:
    data = encode(NOISE, "JPEG", quality=90)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert (read_image(data, BGR).pixels == expected).all()
    assert (read_image(data, RGB).pixels == expected[..., ::-1]).all()


def test_alpha_is_dropped_never_blended() -> None:
    rgba = np.dstack([NOISE, np.full(NOISE.shape[:2], 3, np.uint8)])
    for reader in (BGR, PILLOW, SKIMAGE):
        for source in (encode(rgba), Pil.fromarray(rgba), rgba):
            pixels = read_image(source, reader).pixels
            assert (pixels == (NOISE[..., ::-1] if reader is BGR else NOISE)).all()


def test_grey_alpha_drops_the_alpha() -> None:
    grey = NOISE[..., 0]
    data = encode(np.dstack([grey, np.zeros_like(grey)]))
    for reader in (BGR, PILLOW, SKIMAGE):
        pixels = read_image(data, reader).pixels
        assert all((pixels[..., c] == grey).all() for c in range(3))


def test_palette_is_expanded() -> None:
    picture = Pil.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=1)
    expected = np.array([[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]], np.uint8)
    for reader in (RGB, PILLOW, SKIMAGE):
        assert (read_image(buffer.getvalue(), reader).pixels == expected).all()


def test_sixteen_bits_keep_the_high_byte_or_stay() -> None:
    wide = RNG.integers(0, 65536, (9, 11), dtype=np.uint16)
    for data in (png16(wide), cv2.imencode(".tiff", wide)[1].tobytes(), wide):
        assert (read_image(data, BGR).pixels[..., 0] == wide >> 8).all()
        assert (read_image(data, PILLOW).pixels[..., 0] == wide >> 8).all()
        kept = read_image(data, SKIMAGE).pixels
        assert kept.dtype == np.uint16
        assert (kept[..., 2] == wide).all()


def test_one_bit_and_bool_become_0_and_255() -> None:
    bits = RNG.random((9, 11)) > 0.5
    for source in (encode(bits.astype(np.uint8) * 255, mode="1"), Pil.fromarray(bits), bits):
        for reader in (BGR, GREY, PILLOW):
            assert (read_image(source, reader).pixels[..., 0] == bits * 255).all()
        assert read_image(source, SKIMAGE).pixels.dtype == np.bool_


def test_cmyk_becomes_rgb() -> None:
    inks = np.full((16, 16, 4), (10, 20, 30, 40), np.uint8)
    buffer = io.BytesIO()
    Pil.fromarray(inks, "CMYK").save(buffer, "JPEG", quality=100)
    expected = (207, 198, 190)
    for reader in (RGB, PILLOW, SKIMAGE):
        pixels = read_image(buffer.getvalue(), reader).pixels
        assert np.abs(pixels.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_exif_rotation(format: str) -> None:
    exif = Pil.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = encode(NOISE, format, exif=exif)
    assert read_image(data, BGR).size_hw == (53, 37)
    assert read_image(data, PILLOW).size_hw == (53, 37)
    assert read_image(data, SKIMAGE).size_hw == (37, 53)
    if format != "PNG":
        assert read_image(Pil.open(io.BytesIO(data)), BGR).size_hw == (53, 37)
    if format != "TIFF":  # OpenCV turns TIFF whatever it is told
        assert read_image(data, spec(exif="ignore")).size_hw == (37, 53)


def test_grey_reader_and_single_channels() -> None:
    data = encode(NOISE)
    grey = read_image(data, GREY)
    assert grey.pixels.shape == (37, 53, 1)
    assert (grey.pixels[..., 0] == cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)).all()
    from_array = read_image(NOISE, GREY).pixels[..., 0]
    assert np.abs(from_array.astype(int) - grey.pixels[..., 0]).max() <= 1
    assert (read_image(NOISE[..., 0], BGR).pixels == NOISE[..., :1]).all()
    assert (read_image(NOISE[..., :1], GREY).pixels == NOISE[..., :1]).all()


def test_array_order_is_rgb_unless_said() -> None:
    assert (read_image(NOISE, BGR).pixels == NOISE[..., ::-1]).all()
    assert (read_image(NOISE, BGR, array_order="bgr").pixels == NOISE).all()
    assert read_image(NOISE, BGR).pixels.flags.c_contiguous
    with pytest.raises(UsageError, match="array_order"):
        read_image(NOISE, BGR, array_order="gbr")  # type: ignore[arg-type]


def test_small_whole_numbers_are_taken() -> None:
    assert (read_image(NOISE.astype(np.int64), BGR).pixels == NOISE[..., ::-1]).all()


def test_sources_path_bytes_pil_agree(tmp_path: Path) -> None:
    path = tmp_path / "cell.png"
    path.write_bytes(encode(NOISE))
    image = read_image(str(path), BGR)
    assert image.name == "cell.png"
    assert pixel_sha256(image.pixels) == pixel_sha256(read_image(path.read_bytes(), BGR).pixels)
    assert pixel_sha256(image.pixels) == pixel_sha256(read_image(Pil.open(path), BGR).pixels)
    assert read_image(image, BGR) is image


def test_pixel_hash_sees_shape_and_type() -> None:
    hashes = {pixel_sha256(a) for a in (NOISE, NOISE.reshape(53, 37, 3), NOISE.view(np.int8), NOISE[..., ::-1])}
    assert len(hashes) == 4


def test_first_frame_is_used_and_noted() -> None:
    frames = [Pil.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    for format, options in (("PNG", {}), ("TIFF", {}), ("WebP", {"lossless": True}), ("GIF", {})):
        buffer = io.BytesIO()
        frames[0].save(buffer, format, save_all=True, append_images=frames[1:], **options)
        image = read_image(buffer.getvalue(), BGR)
        assert (image.pixels == 10).all()
        assert read_image(encode(NOISE, format), BGR).notes == ()
        assert image.notes == ("more than one frame; the first is used",)


def test_rgb8_is_for_looking_at() -> None:
    assert (read_image(NOISE, BGR).rgb8() == NOISE).all()
    assert (read_image(NOISE[..., 0], GREY).rgb8() == NOISE[..., :1]).all()
    floats = read_image(NOISE.astype(np.float32) / 255, SKIMAGE).rgb8()
    assert floats.dtype == np.uint8
    assert (floats == NOISE).all()
    bright = read_image(NOISE.astype(np.float32) * 40, SKIMAGE).rgb8()
    assert bright.max() == 255


# ---------------------------------------------------------------------------------------------- faults


def progressive() -> bytes:
    return encode(NOISE, "JPEG", progressive=True)


WHOLE = {
    "png": encode(NOISE),
    "jpg": encode(NOISE, "JPEG"),
    "progressive": progressive(),
    "bmp": encode(NOISE, "BMP"),
    "tiff": encode(NOISE, "TIFF"),
    "tiff-lzw": encode(NOISE, "TIFF", compression="tiff_lzw"),
    "webp": encode(NOISE, "WebP"),
    "gif": encode(NOISE, "GIF"),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("reader", [BGR, PILLOW, SKIMAGE], ids=lambda s: s.reader)
def test_a_file_cut_short_is_refused_wherever_it_is_cut(kind: str, reader: ImageInput) -> None:
    data = WHOLE[kind]
    read_image(data, reader)
    for length in sorted(
        {1, 2, 3, 5, 8, 12, 20, 33, len(data) // 4, len(data) // 2, len(data) * 9 // 10, len(data) - 30}
    ):
        with pytest.raises(InputError, match="cell"):
            read_image(data[:length], reader, name="cell")


def test_a_thumbnails_end_is_not_the_pictures_end() -> None:
    thumbnail = encode(NOISE[:8, :8], "JPEG")
    whole = encode(NOISE, "JPEG")
    application = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    data = whole[:2] + application + whole[2:]
    read_image(data, BGR)
    with pytest.raises(InputError, match="cut short"):
        read_image(data[:-40], BGR)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not an image.*PNG, JPEG"),
        (b"GIF89a" + bytes(40), "damaged GIF"),
        (b"GIF89a" + b"\x10\0\x10\0\0\0\0" + b";", "damaged GIF.*no frame"),
        (b"\0\0\0\x18ftypmp42" + bytes(40), "not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged PNG|cut short"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "damaged JPEG|cut short"),
        (b"II*\0" + bytes(100), "damaged TIFF"),
        (b"BM" + bytes(100), "damaged BMP"),
        (b"RIFF\0\0\0\0WEBP" + bytes(40), "damaged WebP"),
    ],
)
def test_what_is_not_a_picture_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_image(data, BGR)


def test_gif_is_read_by_every_reader() -> None:
    picture = Pil.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colors = np.array([[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]], np.uint8)
    buffer = io.BytesIO()
    picture.save(buffer, "GIF")
    for reader in (RGB, PILLOW, SKIMAGE):
        assert (read_image(buffer.getvalue(), reader).pixels == colors).all()
    assert (read_image(buffer.getvalue(), BGR).pixels == colors[..., ::-1]).all()
    grey = read_image(buffer.getvalue(), GREY)
    assert grey.pixels.shape == (2, 2, 1)
    assert (grey.rgb8() == colors).all()


def heic(array: np.ndarray, frames: int = 1) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    file = heif.from_pillow(Pil.fromarray(array))
    for _ in range(frames - 1):
        file.add_from_pillow(Pil.fromarray(array))
    buffer = io.BytesIO()
    file.save(buffer, quality=-1, chroma=444)
    return buffer.getvalue()


def test_heic_is_read_where_pillow_heif_is_installed() -> None:
    smooth = cv2.GaussianBlur(NOISE, (0, 0), 8)
    data = heic(smooth)
    for reader in (RGB, PILLOW, SKIMAGE):
        image = read_image(data, reader)
        assert image.notes == ()
        assert np.abs(image.pixels.astype(int) - smooth).max() <= 3
    assert "more than one frame" in read_image(heic(smooth, 2), RGB).notes[0]
    for length in (12, 100, len(data) // 2, len(data) - 20):
        with pytest.raises(InputError, match="cell"):
            read_image(data[:length], RGB, name="cell")
    with pytest.raises(InputError, match="max-pixels"):
        read_image(data, RGB, Limits(max_pixels=100))


def test_heic_without_its_reader_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    header = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    for reader in (BGR, PILLOW, SKIMAGE):
        with pytest.raises(InputError, match=r"holiday.*HEIC.*segship\[heic\].*JPEG or PNG"):
            read_image(header, reader, name="holiday.heic")


def test_avif(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import features

    if features.check("avif"):
        smooth = cv2.GaussianBlur(NOISE, (0, 0), 8)
        data = encode(smooth, "AVIF", quality=100)
        assert np.abs(read_image(data, RGB).pixels.astype(int) - smooth).max() <= 5
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(InputError, match=r"AVIF.*JPEG or PNG"):
        read_image(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(40), RGB)


def test_a_changed_byte_in_a_png_is_found() -> None:
    data = bytearray(WHOLE["png"])
    data[len(data) // 2] ^= 0x10
    for reader in (BGR, PILLOW, SKIMAGE):
        with pytest.raises(InputError, match="a checksum of its pixels is wrong"):
            read_image(bytes(data), reader)


@pytest.mark.parametrize("number", range(1, 9))
def test_a_turned_grey_tiff_is_read_as_it_is_stored(number: int) -> None:
    """Pillow gives the size that it would be shown in also where its rotation is forgotten."""
    exif = Pil.Exif()
    exif[0x0112] = number
    stored = SKIMAGE.model_copy(update={"exif_rotation": "ignore", "grey": "keep"})
    grey = np.ascontiguousarray(NOISE[..., 0])
    assert (read_image(encode(grey, "TIFF", exif=exif), stored).pixels[..., 0] == grey).all()


def test_a_palette_with_alpha_is_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    buffer = io.BytesIO()
    Pil.fromarray(NOISE).quantize(20).save(buffer, "PNG", transparency=bytes(range(20)))
    assert read_image(buffer.getvalue(), PILLOW).pixels.shape == NOISE.shape
    assert not recwarn.list


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_damage_gives_a_picture_or_an_input_error(kind: str, position: int, change: bytes) -> None:
    data = bytearray(WHOLE[kind])
    data[position : position + len(change)] = change
    for reader in (BGR, PILLOW):
        try:
            pixels = read_image(bytes(data), reader, Limits(max_pixels=1_000_000)).pixels
        except InputError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb_png(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    side = 40_000
    jpeg = bytearray(WHOLE["jpg"])
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", side, side)
    bmp = bytearray(WHOLE["bmp"])
    bmp[18:26] = struct.pack("<ii", side, side)
    for data in (bomb_png(side, side), bytes(jpeg), bytes(bmp)):
        with pytest.raises(InputError, match=r"40,000 x 40,000 pixels.*250,000,000.*--max-pixels"):
            read_image(data, BGR)
    with pytest.raises(InputError, match="max-pixels"):
        read_image(NOISE, BGR, Limits(max_pixels=100))
    with pytest.raises(InputError, match="max-pixels"):
        read_image(Pil.fromarray(NOISE), BGR, Limits(max_pixels=100))


def test_opencvs_own_limit_is_named() -> None:
    with pytest.raises(InputError, match="OPENCV_IO_MAX_IMAGE"):
        read_image(bomb_png(40_000, 40_000), BGR, Limits(max_pixels=1 << 40))


def test_byte_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(WHOLE["png"])
    for source in (path, WHOLE["png"]):
        with pytest.raises(InputError, match="--max-bytes"):
            read_image(source, BGR, Limits(max_bytes=100))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / "no.png", BGR)
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path, BGR)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"\(H, W, 3\)"),
        (np.zeros((3, 40, 40), np.uint8), "transpose"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "no pixel"),
        (np.zeros((4, 4, 3), np.float32), "round"),
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.full((4, 4), np.inf, np.float32), "NaN or infinite"),
        (np.full((4, 4), 300), "0..255"),
        (np.full((4, 4), -1), "0..255"),
        (np.zeros((4, 4), complex), "complex"),
        (np.full((4, 4), "a"), "uint8"),
    ],
)
def test_arrays_that_do_not_fit(array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_image(array, BGR)


def test_other_types_are_refused() -> None:
    with pytest.raises(InputError, match="path, bytes"):
        read_image(3.5, BGR)


# --------------------------------------------------------------------------------------------- find_inputs


def test_find_inputs(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "note.txt", ".hidden.png", "deep/c.tif", "deep/.git/d.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = find_inputs([tmp_path])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.JPG", "b.png", "deep/c.tif"]
    assert find_inputs([tmp_path / "b.png", tmp_path, tmp_path / "note.txt"]) == [
        tmp_path / "b.png",
        tmp_path / "a.JPG",
        tmp_path / "deep/c.tif",
        tmp_path / "note.txt",
    ]
    assert find_inputs([str(tmp_path / "*.png")]) == [tmp_path / "b.png"]
    assert find_inputs([str(tmp_path / "**/*.tif")]) == [tmp_path / "deep/c.tif"]
    (tmp_path / "empty").mkdir()
    for missing, message in (
        (tmp_path / "no.png", "no file"),
        (tmp_path / "*.webp", "matches"),
        (tmp_path / "empty", "holds no"),
    ):
        with pytest.raises(UsageError, match=message):
            find_inputs([str(missing)])


# ----------------------------------------------------------------------------------------------- real data


def test_photos_are_read_as_opencv_reads_them(shared: Path) -> None:
    for path in sorted((shared / "data/photos").iterdir()):
        assert (read_image(path, BGR).pixels == cv2.imread(str(path))).all()


def test_every_size_of_the_nuclei_archive(shared: Path) -> None:
    sizes: dict[tuple[int, int], bytes] = {}
    with zipfile.ZipFile(shared / "data/dsb2018/stage1_train.zip") as archive:
        for name in archive.namelist():
            if "/images/" not in name or not name.endswith(".png"):
                continue
            with archive.open(name) as stream:
                header = stream.read(24)
            width, height = struct.unpack(">II", header[16:])
            if (height, width) not in sizes:
                sizes[height, width] = archive.read(name)
    assert len(sizes) == 9
    for size, data in sizes.items():
        image = read_image(data, BGR)
        assert image.size_hw == size
        assert (image.pixels == cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)).all()
