"""From a file, bytes, a PIL picture or an array to pixels, by the reading rules that the manifest names.

What each reader does (all limits and damage are checked before a pixel is decoded):

    opencv:color   cv2.imdecode(IMREAD_COLOR): 8 bits (16-bit files keep their high byte), three channels, palette
                   and grey expanded, alpha dropped (TIFF: premultiplied, as OpenCV does), EXIF rotation applied
                   (in a TIFF always, whatever the manifest says: OpenCV offers no other way)
    opencv:grey    the same with IMREAD_GRAYSCALE, one channel
    pillow:rgb     Pillow's ``convert("RGB")``: 8 bits, alpha dropped; 16-bit files keep their high byte
    skimage        as scikit-image reads: bit depth kept (bool, uint8, uint16, float32); alpha dropped or kept and grey
                   repeated or kept as one plane as the manifest says, CMYK converted to RGB

Only the first frame of an animation or multi-page file is used; ``Image.notes`` says so.
"""

from __future__ import annotations

import glob
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from segship.errors import InputError, UsageError
from segship.inference.containers import SUFFIXES, Container, inspect_container, open_with_pillow
from segship.inference.pixels import rgb8, to_8_bit, to_order
from segship.manifest import Channel, ImageInput

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

ArrayOrder = Literal["rgb", "bgr"]
Source = Any
"""str | Path (a file), bytes (an encoded file), PIL.Image.Image, or a numpy array (H, W) or (H, W, 1|3|4)"""

_EXIF_ORIENTATION = 0x0112
_OF_OPENCV = frozenset({"PNG", "JPEG", "TIFF", "BMP", "WebP"})
"""formats that every build of OpenCV reads; Pillow reads the others"""
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
    original: _Original | None = field(default=None, repr=False)
    """for what the reader left out: colours of a picture read as grey, alpha"""

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def rgb8(self) -> np.ndarray:
        """uint8 (H, W, 3) RGB as the file shows it, in colour even where the network takes grey.

        16-bit values keep their high byte; floats stand for 0..1, or are scaled by their maximum if that is larger.
        """
        if self.channel_order == "grey" and self.original is not None:
            return self.original.colors()
        return rgb8(self.pixels, self.channel_order)

    def alpha8(self) -> np.ndarray | None:
        """uint8 (H, W): the file's own alpha, which the network does not see; None where it has none."""
        alpha = None if self.original is None else self.original.alpha()
        return alpha if alpha is not None and alpha.shape == self.size_hw else None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Original:
    """The source once more (encoded bytes, PIL picture or array), to be decoded by other rules."""

    source: Any
    spec: ImageInput
    limits: Limits
    array_order: ArrayOrder
    name: str

    def colors(self) -> np.ndarray:
        spec = self.spec.model_copy(update={"reader": _IN_COLOR[self.spec.reader], "channel_order": "rgb"} | _RGB)
        return read_image(self.source, spec, self.limits, self.array_order, self.name).rgb8()

    def alpha(self) -> np.ndarray | None:
        if isinstance(self.source, np.ndarray):
            has = self.source.ndim == 3 and self.source.shape[2] == 4
            return rgb8(self.source[..., 3:], "rgb")[..., 0] if has else None
        if not isinstance(self.source, bytes):
            return _alpha_of(self.source, self.spec)
        container = inspect_container(self.source, self.name)
        with open_with_pillow(self.source, container.format) as picture:
            _forget_rotation(picture, self.spec)
            return _alpha_of(picture, self.spec)


_IN_COLOR = {"opencv:grey": "opencv:color", "skimage": "pillow:rgb"}
_RGB = {"channels": tuple(Channel(name=name) for name in "RGB"), "grey": "expand", "alpha": "drop"}


def _alpha_of(picture: PilImage, spec: ImageInput) -> np.ndarray | None:
    if picture.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in picture.info:
        return None
    return np.asarray(_upright(picture, spec).convert("RGBA").getchannel("A"))


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
        source = bytes(source)
        pixels, order, notes = _decode(source, spec, limits, label)
    elif isinstance(source, (str, os.PathLike)):
        label = name or Path(source).name
        source = _read_bytes(Path(source), limits)
        pixels, order, notes = _decode(source, spec, limits, label)
    elif hasattr(source, "convert") and hasattr(source, "getbands"):
        label = name or Path(getattr(source, "filename", "") or "picture").name
        _check_pixels(source.height, source.width, limits, label)
        pixels, order = _from_pillow(source, spec, label), "rgb"
    else:
        raise InputError(
            f"cannot read an input of type {type(source).__name__}; give a path, bytes, a PIL image or an array"
        )
    pixels = to_order(pixels, order, spec, label)
    original = _Original(source=source, spec=spec, limits=limits, array_order=array_order, name=label)
    return Image(pixels=pixels, name=label, channel_order=spec.channel_order, notes=notes, original=original)


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
    if spec.reader.startswith("opencv:") and container.format in _OF_OPENCV:
        return _decode_opencv(data, spec, container, name), _opencv_order(spec), notes
    try:
        with open_with_pillow(data, container.format) as picture:
            _forget_rotation(picture, spec)
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
    """RGB (H, W, 3) or grey (H, W, 1); RGBA (H, W, 4) where alpha is kept."""
    try:
        picture = _plain(_upright(picture, spec))
    except OSError as error:
        raise InputError(
            f"{name} cannot be decoded ({error}); it is damaged or cut short, copy that file again"
        ) from error
    wide = picture.mode in ("I", "F") or picture.mode.startswith("I;16")
    as_it_is = ("1", "L", "LA", "La", *(("RGBA",) if spec.alpha == "keep" else ()))
    if not wide and not (spec.reader == "skimage" and picture.mode in as_it_is):
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
        pixels = to_8_bit(pixels, name)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _plain(picture: PilImage) -> PilImage:
    """The loaded picture without what Pillow stumbles over: a size of before, and a warning about what is dropped anyway."""
    picture.load()
    if picture.size != picture.im.size:  # of a TIFF whose rotation was forgotten
        picture = picture.copy()
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        picture = picture.copy()
        del picture.info["transparency"]
    return picture


def _upright(picture: PilImage, spec: ImageInput) -> PilImage:
    if spec.exif_rotation == "apply":
        from PIL import ImageOps

        return ImageOps.exif_transpose(picture)
    return picture


def _forget_rotation(picture: PilImage, spec: ImageInput) -> None:
    if spec.exif_rotation == "ignore":
        picture.getexif().pop(_EXIF_ORIENTATION, None)  # else Pillow turns a TIFF while loading it


def _from_array(array: np.ndarray, spec: ImageInput, limits: Limits, order: str, name: str) -> np.ndarray:
    """(H, W, 1) or (H, W, 3) of the same order; (H, W, 4) where alpha is kept."""
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
    if array.shape[2] == 4 and spec.alpha == "drop":
        array = array[..., :3]
    return to_8_bit(array, name) if spec.reader in _EIGHT_BIT else array
