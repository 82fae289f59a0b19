"""What an image file says about itself before a pixel is decoded: format, size, frames, and whether it is whole.

Decoders differ in what they do with a file that was cut short (some OpenCV builds fill the rest with grey and
say nothing), and a header may claim more pixels than the machine can hold. So the container is read first.
PNG, JPEG and GIF are walked here, without any library; TIFF, BMP, WebP and AVIF headers are read by Pillow, HEIC
headers by pillow-heif where it is installed; both decode nothing until they are asked to.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from segship.errors import InputError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WebP", "GIF", "HEIC", "AVIF")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".gif"),
    *(".heic", ".heif", ".hif", ".avif"),
)

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_END = b"\xff\xd9"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA
# ISO 14496-12 files name their brand in the first box; ISO 23008-12 and the AVIF specification list these.
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_GIF_EXTENSION, _GIF_FRAME, _GIF_END = 0x21, 0x2C, 0x3B
_WITHOUT_LENGTH = frozenset([0x01, *range(0xD0, 0xD9)])


@dataclass(frozen=True, kw_only=True)
class Container:
    format: str
    """one of FORMATS"""
    height: int
    width: int
    several: bool = False
    """more than one frame or page"""


class _CutShort(Exception):
    pass


def inspect_container(data: bytes, name: str) -> Container:
    """Read the header of an encoded image; raises InputError for an empty, unknown, damaged or truncated file."""
    if not data:
        raise InputError(f"{name} is empty (0 bytes); copy that file again")
    kind = _kind(data)
    if kind is None:
        raise InputError(f"{name} is not an image that can be read here; give one of {', '.join(FORMATS)}")
    try:
        if kind == "PNG":
            return _walk_png(data)
        if kind == "JPEG":
            return _walk_jpeg(data)
        if kind == "GIF":
            return _walk_gif(data)
        return _ask_pillow(data, kind)
    except _CutShort:
        raise InputError(f"{name} is a {kind} file that was cut short; copy or download that file again") from None
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    # Header parsers raise nearly anything on hostile bytes: struct.error, SyntaxError, KeyError, OverflowError …
    except Exception as error:
        raise InputError(f"{name} is a damaged {kind} file ({error}); copy or download that file again") from error


def _kind(data: bytes) -> str | None:
    if data.startswith(_PNG):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data.startswith(b"BM"):
        return "BMP"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    return _kind_of_boxes(data) if data[4:8] == b"ftyp" else None


def _kind_of_boxes(data: bytes) -> str | None:
    # An AVIF may have the general brand mif1 first and avif among the compatible ones.
    length = min(struct.unpack_from(">I", data)[0], 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, length, 4))]
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    return "HEIC" if any(brand in _HEIC_BRANDS for brand in brands) else None


def _walk_png(data: bytes) -> Container:
    position, several = len(_PNG), False
    height = width = 0
    while True:
        if position + 12 > len(data):
            raise _CutShort
        length, kind = struct.unpack_from(">I4s", data, position)
        body = position + 8
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", data, body)
        elif kind == b"acTL":
            several = struct.unpack_from(">I", data, body)[0] > 1
        elif kind == b"IDAT" and body + length + 4 <= len(data):
            _check_sum(data, position + 4, body + length)
        elif kind == b"IEND":
            break
        position = body + length + 4
    if not height or not width:
        raise ValueError("no size in its header")
    return Container(format="PNG", height=height, width=width, several=several)


def _check_sum(data: bytes, start: int, end: int) -> None:
    """ValueError where a chunk of a PNG is not what was written: Pillow does not look, OpenCV does."""
    if zlib.crc32(memoryview(data)[start:end]) != struct.unpack_from(">I", data, end)[0]:
        raise ValueError("a checksum of its pixels is wrong")


def _walk_jpeg(data: bytes) -> Container:
    position, size = 2, (0, 0)
    while True:
        if position + 4 > len(data):
            raise _CutShort
        if data[position] != 0xFF:
            raise ValueError("no marker where one must be")
        marker = data[position + 1]
        if marker == 0xFF:  # fill bytes before a marker are allowed
            position += 1
            continue
        if marker in _WITHOUT_LENGTH:
            position += 2
            continue
        if marker in _START_OF_FRAME:
            if position + 9 > len(data):
                raise _CutShort
            size = struct.unpack_from(">HH", data, position + 5)
        if marker == _START_OF_SCAN:
            break
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    # Inside a scan 0xFF is always followed by 0x00, so an end marker behind the first scan ends the picture.
    if data.find(_JPEG_END, position) < 0:
        raise _CutShort
    if not size[0] or not size[1]:
        raise ValueError("no size in its header")
    return Container(format="JPEG", height=size[0], width=size[1])


def _walk_gif(data: bytes) -> Container:
    if len(data) < 13:
        raise _CutShort
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position, frames = 13 + _gif_palette(flags), 0
    while position < len(data) and data[position] != _GIF_END:
        kind = data[position]
        if kind == _GIF_EXTENSION:
            position += 2
        elif kind == _GIF_FRAME:
            frames += 1
            if position + 10 > len(data):
                raise _CutShort
            position += 11 + _gif_palette(data[position + 9])
        else:
            raise ValueError("no block where one must be")
        while position < len(data) and data[position]:  # sub-blocks, each behind its length, ended by a zero
            position += 1 + data[position]
        position += 1
    if position >= len(data):
        raise _CutShort
    if not frames or not width or not height:
        raise ValueError("no frame in it")
    return Container(format="GIF", height=height, width=width, several=frames > 1)


def _gif_palette(flags: int) -> int:
    """Bytes of the palette that a GIF's flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _ask_pillow(data: bytes, kind: str) -> Container:
    # The plugin classes are called directly: Image.open would apply Pillow's own, process-wide pixel limit first.
    with open_with_pillow(data, kind) as picture:
        width, height = picture.size
        return Container(format=kind, height=height, width=width, several=_has_second_frame(picture))


def _has_second_frame(picture: Any) -> bool:
    # Not n_frames: that walks through all pages of a TIFF, and a hostile one has millions.
    try:
        picture.seek(1)
    except Exception:  # EOFError; anything else is the second frame's damage, and the first is what counts
        return False
    return True


def open_with_pillow(data: bytes, kind: str) -> Any:
    """A ``PIL.ImageFile`` of one of FORMATS, header read, pixels not; the caller translates exceptions.

    Raises InputError where this installation has no reader for it.
    """
    stream = io.BytesIO(data)
    if kind == "PNG":
        from PIL.PngImagePlugin import PngImageFile

        return PngImageFile(stream)
    if kind == "JPEG":
        from PIL.JpegImagePlugin import JpegImageFile

        return JpegImageFile(stream)
    if kind == "TIFF":
        from PIL.TiffImagePlugin import TiffImageFile

        return TiffImageFile(stream)
    if kind == "BMP":
        from PIL.BmpImagePlugin import BmpImageFile

        return BmpImageFile(stream)
    if kind == "GIF":
        from PIL.GifImagePlugin import GifImageFile

        return GifImageFile(stream)
    if kind == "HEIC":
        return _open_heic(stream)
    if kind == "AVIF":
        return _open_avif(stream)
    from PIL.WebPImagePlugin import WebPImageFile

    return WebPImageFile(stream)


def _open_heic(stream: io.BytesIO) -> Any:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise InputError(
            "this is a HEIC picture, which takes one more library: pip install 'segship[heic]', "
            "or save the picture as JPEG or PNG"
        ) from None
    return HeifImageFile(stream)


def _open_avif(stream: io.BytesIO) -> Any:
    from PIL import features

    if not features.check("avif"):
        raise InputError("this is an AVIF picture, which this Pillow cannot read; save the picture as JPEG or PNG")
    from PIL.AvifImagePlugin import AvifImageFile

    return AvifImageFile(stream)
