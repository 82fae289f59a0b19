"""From a file, bytes, a PIL picture or an array to pixels, by the reading rules that the manifest names.

What each reader does (all limits and damage are checked before a pixel is decoded):

    opencv:color   cv2.imdecode(IMREAD_COLOR): 8 bits (16-bit files keep their high byte), three channels, palette
                   and grey expanded, alpha dropped (TIFF: premultiplied, as OpenCV does), EXIF rotation applied
                   (in a TIFF always, whatever the manifest says: OpenCV offers no other way)
    opencv:grey    the same with IMREAD_GRAYSCALE, one channel
    pillow:rgb     Pillow's ``convert("RGB")``: 8 bits, alpha dropped; 16-bit files keep their high byte
    skimage        as scikit-image reads: bit depth kept (bool, uint8, uint16, float32); alpha dropped, grey is one
                   channel or repeated to three, CMYK converted to RGB

Only the first frame of an animation or multi-page file is used; ``Image.notes`` says so.
"""

from __future__ import annotations

import glob
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from segship.errors import InputError, UsageError
from segship.inference.containers import SUFFIXES, Container, inspect_container, open_with_pillow
from segship.manifest import ImageInput

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

ArrayOrder = Literal["rgb", "bgr"]
Source = Any
"""str | Path (a file), bytes (an encoded file), PIL.Image.Image, or a numpy array (H, W) or (H, W, 1|3|4)"""

_EXIF_ORIENTATION = 0x0112
_EIGHT_BIT = ("opencv:color", "opencv:grey", "pillow:rgb")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a single input may cost; both are checked before decoding."""

    max_pixels: int = 250_000_000
    """height × width in the file's header; 250 megapixels are 750 MB once decoded"""
    max_bytes: int = 1 << 30
    """of the encoded file"""


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """Decoded pixels (H, W, C), in the channel order that the manifest asks for; dtype as the reader gives it."""

    pixels: np.ndarray
    name: str
    channel_order: Literal["bgr", "rgb", "grey"]
    notes: tuple[str, ...] = ()

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def rgb8(self) -> np.ndarray:
        """uint8 (H, W, 3) RGB for display; wider types are scaled by their range, floats by their maximum."""
        return _rgb8(self.pixels, self.channel_order)


def read_image(
    source: Source,
    spec: ImageInput,
    limits: Limits = DEFAULT_LIMITS,
    array_order: ArrayOrder = "rgb",
    name: str | None = None,
) -> Image:
    """Decode one input by the rules of ``spec.reader``.

    Arrays and PIL pictures are taken as RGB (RGBA: alpha dropped) unless ``array_order`` says "bgr"; arrays are
    never rotated. Raises InputError, with the input's name, for anything that cannot be read or exceeds ``limits``.
    """
    if isinstance(source, Image):
        return source
    order: str = array_order
    notes: tuple[str, ...] = ()
    if isinstance(source, np.ndarray):
        label = name or "array"
        pixels = _from_array(source, spec, limits, array_order, label)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        label = name or "bytes"
        pixels, order, notes = _decode(bytes(source), spec, limits, label)
    elif isinstance(source, (str, os.PathLike)):
        label = name or Path(source).name
        pixels, order, notes = _decode(_read_bytes(Path(source), limits), spec, limits, label)
    elif hasattr(source, "convert") and hasattr(source, "getbands"):
        label = name or Path(getattr(source, "filename", "") or "picture").name
        _check_pixels(source.height, source.width, limits, label)
        pixels, order = _from_pillow(source, spec, label), "rgb"
    else:
        raise InputError(
            f"cannot read an input of type {type(source).__name__}; give a path, bytes, a PIL image or an array"
        )
    pixels = _to_order(pixels, order, spec.channel_order, len(spec.channels), label)
    return Image(pixels=pixels, name=label, channel_order=spec.channel_order, notes=notes)


def pixel_sha256(pixels: np.ndarray) -> str:
    """Identity of decoded pixels: sha256 of dtype, shape and bytes. Two files with the same picture share it."""
    digest = hashlib.sha256(f"{pixels.dtype.str}{pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def find_inputs(inputs: Iterable[str | Path]) -> list[Path]:
    """Files named by paths, glob patterns and folders: in the order given, folders walked recursively and sorted.

    Folders and patterns give only files with an image's suffix; a file named outright is always taken. Each file
    comes once. Raises UsageError for a path that does not exist or a folder without images.
    """
    found: dict[Path, None] = {}
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            files = _images_below(path)
            if not files:
                raise UsageError(f"the folder {path} holds no image; files are taken by suffix: {', '.join(SUFFIXES)}")
        elif path.exists():
            files = [path]
        elif glob.has_magic(str(item)):
            matches = sorted(Path(match) for match in glob.glob(str(item), recursive=True))
            files = [match for match in matches if match.is_file() and match.suffix.lower() in SUFFIXES]
            if not files:
                raise UsageError(f"no image matches {item}; check the pattern")
        else:
            raise UsageError(f"there is no file or folder {path}; check the path")
        found.update(dict.fromkeys(files))
    return list(found)


def _images_below(folder: Path) -> list[Path]:
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root, name) for name in names if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
    return sorted(files)


# ------------------------------------------------------------------------------------------------ files


def _read_bytes(path: Path, limits: Limits) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):  # a pipe: its size is not known beforehand
                data = file.read(limits.max_bytes + 1)
                _check_bytes(len(data), limits, path.name)
                return data
            _check_bytes(status.st_size, limits, path.name)
            return file.read()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}; check the path and its permissions"
        ) from error


def _check_bytes(size: int, limits: Limits, name: str) -> None:
    if size > limits.max_bytes:
        raise InputError(
            f"{name} has {size:,} bytes, the limit is {limits.max_bytes:,}; raise it with --max-bytes (Limits.max_bytes)"
        )


def _check_pixels(height: int, width: int, limits: Limits, name: str) -> None:
    if height * width > limits.max_pixels:
        raise InputError(
            f"{name} has {height:,} x {width:,} pixels, the limit is {limits.max_pixels:,}; "
            "cut it into tiles, or raise the limit with --max-pixels (Limits.max_pixels)"
        )


def _decode(data: bytes, spec: ImageInput, limits: Limits, name: str) -> tuple[np.ndarray, str, tuple[str, ...]]:
    _check_bytes(len(data), limits, name)
    container = inspect_container(data, name)
    _check_pixels(container.height, container.width, limits, name)
    notes = ("more than one frame; the first is used",) if container.several else ()
    if spec.reader.startswith("opencv:"):
        return _decode_opencv(data, spec, container, name), _opencv_order(spec), notes
    try:
        with open_with_pillow(data, container.format) as picture:
            if spec.exif_rotation == "ignore":
                picture.getexif().pop(_EXIF_ORIENTATION, None)  # else Pillow turns a TIFF while loading it
            return _from_pillow(picture, spec, name), "rgb", notes
    except InputError:
        raise
    # Pillow's decoders raise nearly anything on hostile bytes.
    except Exception as error:
        raise InputError(
            f"{name} cannot be decoded as {container.format} ({error}); it is damaged or cut short, copy that file again"
        ) from error


def _opencv_order(spec: ImageInput) -> str:
    if spec.reader == "opencv:grey":
        return "grey"
    return "rgb" if spec.channel_order == "rgb" and hasattr(cv2, "IMREAD_COLOR_RGB") else "bgr"


def _decode_opencv(data: bytes, spec: ImageInput, container: Container, name: str) -> np.ndarray:
    flags = cv2.IMREAD_GRAYSCALE if spec.reader == "opencv:grey" else cv2.IMREAD_COLOR
    if _opencv_order(spec) == "rgb":
        flags = cv2.IMREAD_COLOR_RGB
    if spec.exif_rotation == "ignore":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        reason = str(error.err if hasattr(error, "err") else error).strip()
        raise InputError(
            f"{name}: OpenCV refuses this {container.format} ({reason}); its own limits are raised with the environment "
            "variables OPENCV_IO_MAX_IMAGE_PIXELS, _WIDTH and _HEIGHT"
        ) from error
    if pixels is None:
        raise InputError(
            f"{name}: OpenCV cannot decode this {container.format}: it is damaged, cut short, or of a kind that OpenCV "
            "does not know (32-bit samples, a rare compression); copy that file again or save it as 8-bit PNG"
        )
    return pixels if pixels.ndim == 3 else pixels[..., None]


# --------------------------------------------------------------------------------- PIL pictures and arrays


def _from_pillow(picture: PilImage, spec: ImageInput, name: str) -> np.ndarray:
    """RGB (H, W, 3) or grey (H, W, 1)."""
    if spec.exif_rotation == "apply":
        from PIL import ImageOps

        try:
            picture = ImageOps.exif_transpose(picture)
        except OSError as error:
            raise InputError(
                f"{name} cannot be decoded ({error}); it is damaged or cut short, copy that file again"
            ) from error
    wide = picture.mode in ("I", "F") or picture.mode.startswith("I;16")
    if not wide and not (spec.reader == "skimage" and picture.mode in ("1", "L", "LA", "La")):
        picture = picture.convert("RGB")
    elif picture.mode in ("LA", "La"):
        picture = picture.convert("L")
    try:
        pixels = np.asarray(picture)
    except OSError as error:
        raise InputError(
            f"{name} cannot be decoded ({error}); it is damaged or cut short, copy that file again"
        ) from error
    if picture.mode == "I" and pixels.size and pixels.min() >= 0 and pixels.max() <= 65535:
        pixels = pixels.astype(np.uint16)
    if spec.reader in _EIGHT_BIT:
        pixels = _to_8_bit(pixels, name)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _from_array(array: np.ndarray, spec: ImageInput, limits: Limits, order: str, name: str) -> np.ndarray:
    """(H, W, 1) or (H, W, 3) of the same order; alpha dropped."""
    if order not in ("rgb", "bgr"):
        raise UsageError(f"array_order is 'rgb' or 'bgr', not {order!r}")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        hint = "; channels come last: x.transpose(1, 2, 0)" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise InputError(f"{name} has shape {array.shape}; give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4){hint}")
    if array.size == 0:
        raise InputError(f"{name} has shape {array.shape}: it holds no pixel")
    _check_pixels(array.shape[0], array.shape[1], limits, name)
    if array.dtype.kind not in "buif":
        raise InputError(f"{name} holds {array.dtype}; give uint8, uint16, bool or float32 pixels")
    if array.shape[2] == 4:
        array = array[..., :3]
    return _to_8_bit(array, name) if spec.reader in _EIGHT_BIT else array


def _to_8_bit(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint16:  # as OpenCV and libpng: the high byte, no rounding
        return (pixels >> 8).astype(np.uint8)
    if pixels.dtype.kind in "iu":
        if pixels.min() >= 0 and pixels.max() <= 255:
            return pixels.astype(np.uint8)
        raise InputError(
            f"{name} holds {pixels.dtype} values outside 0..255; give uint8, or uint16 for 16-bit pictures"
        )
    if not np.isfinite(pixels).all():
        raise InputError(f"{name} holds NaN or infinite values; replace them first")
    raise InputError(
        f"{name} holds {pixels.dtype} pixels but this network reads 8-bit pictures; give uint8 0..255, "
        "for values of 0..1: (x * 255).round().astype(numpy.uint8)"
    )


def _to_order(pixels: np.ndarray, have: str, want: str, count: int, name: str) -> np.ndarray:
    channels = pixels.shape[2]
    if want == "grey":
        if channels == 3 and count == 1:
            pixels = _grey(pixels, have, name)
    elif channels == 1 and count == 3:
        pixels = np.repeat(pixels, 3, axis=2)
    elif channels == 3 and have != want:
        pixels = pixels[..., ::-1]
    if pixels.shape[2] != count:
        raise InputError(f"{name} has {pixels.shape[2]} channel(s), the network takes {count}; convert it first")
    return np.ascontiguousarray(pixels)


def _grey(pixels: np.ndarray, order: str, name: str) -> np.ndarray:
    if pixels.dtype not in (np.uint8, np.uint16, np.float32):
        raise InputError(f"{name} holds {pixels.dtype} colours; give a grey array, or uint8, uint16 or float32 colours")
    code = cv2.COLOR_BGR2GRAY if order == "bgr" else cv2.COLOR_RGB2GRAY
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), code))[..., None]


def _rgb8(pixels: np.ndarray, order: str) -> np.ndarray:
    if pixels.dtype == np.bool_ or pixels.dtype == np.uint16:
        pixels = _to_8_bit(pixels, "image")
    elif pixels.dtype != np.uint8:
        top = max(float(pixels.max()), 1e-12)
        pixels = (np.clip(pixels / top, 0, 1) * 255).astype(np.uint8)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3][..., ::-1] if order == "bgr" else pixels[..., :3])
