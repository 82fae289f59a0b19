"""Label maps in pictures: one number a pixel, stored grey, with a palette, or as the classes' colours.

A PNG with a palette holds numbers, and colours to look at. They are read as they stand in the file, which OpenCV cannot
(it expands the palette), so Pillow reads them, as mmseg does.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segship.errors import DatasetError
from segship.manifest import Label

Color = tuple[int, int, int]
MAX_PIXELS = 250_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelPicture:
    """What stands in the file."""

    values: NDArray[np.unsignedinteger]
    """(H, W) uint8 or uint16 numbers; of a colour picture (H, W, 3) uint8 RGB"""
    palette: NDArray[np.uint8] | None = None
    """(256, 3) RGB, where the file has one"""

    @property
    def in_colour(self) -> bool:
        return self.values.ndim == 3


def read_label_png(path: Path) -> LabelPicture:
    """The picture as stored. DatasetError, naming it, for what cannot be read or holds no whole numbers."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise DatasetError(
                        f"label map {path} has more than {MAX_PIXELS // 10**6} million pixels; cut it into tiles"
                    )
                return _of(picture, path)
    except FileNotFoundError:
        raise DatasetError(f"there is no label map at {path}; check the path") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"label map {path} cannot be read ({error}); copy that file again") from error


def _of(picture, path: Path) -> LabelPicture:  # type: ignore[no-untyped-def]
    if picture.mode == "P":
        stored = np.asarray(picture.getpalette("RGB") or (), np.uint8)[: 256 * 3].reshape(-1, 3)
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(stored)] = stored
        return LabelPicture(values=np.asarray(picture), palette=palette)
    if picture.mode in ("L", "1"):
        return LabelPicture(values=np.asarray(picture).astype(np.uint8))
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise DatasetError(f"label map {path} holds numbers beyond 0 to 65535; store 8 or 16 bits a pixel")
        return LabelPicture(values=values.astype(np.uint16))
    if picture.mode in ("RGB", "RGBA"):
        values = np.asarray(picture)[..., :3]
        if (values[..., 0] == values[..., 1]).all() and (values[..., 0] == values[..., 2]).all():
            return LabelPicture(values=np.ascontiguousarray(values[..., 0]))  # three equal planes are one
        return LabelPicture(values=np.ascontiguousarray(values))
    if picture.mode == "LA":
        return LabelPicture(values=np.ascontiguousarray(np.asarray(picture)[..., 0]))
    raise DatasetError(f"label map {path} is a picture of mode {picture.mode}; store one number a pixel as grey PNG")


def read_numbers(path: Path) -> NDArray[np.unsignedinteger]:
    """(H, W) numbers of a grey or palette picture. DatasetError for colours, whose numbers mean nothing."""
    found = read_label_png(path)
    if found.in_colour:
        raise DatasetError(
            f"label map {path} holds colours, not numbers; store one number a pixel, grey or with a palette"
        )
    return found.values


def from_colors(rgb: NDArray[np.generic], colors: Mapping[Color, int], path: Path, void: int) -> NDArray[np.uint8]:
    """(H, W) numbers of the colours of (H, W, 3); black is ``void`` where no class is black. DatasetError names a colour
    that is no class's."""
    red, green, blue = np.moveaxis(rgb.astype(np.uint32), -1, 0)
    code = (red << 16) | (green << 8) | blue
    found, place = np.unique(code, return_inverse=True)
    numbers = np.full(len(found), void, np.uint8)
    for index, value in enumerate(found):
        color = (int(value >> 16), int(value >> 8 & 255), int(value & 255))
        if color in colors:
            numbers[index] = colors[color]
        elif color != (0, 0, 0):
            raise DatasetError(
                f"label map {path} holds the colour {color}, which is no class's; it was made with another palette, or "
                "saved with loss (JPEG) or resized"
            )
    return np.asarray(numbers[place.reshape(code.shape)])


def color_table(labels: Sequence[Label]) -> dict[Color, int]:
    """Colour -> place of its class; of classes with one colour the first."""
    found: dict[Color, int] = {}
    for place, label in enumerate(labels):
        found.setdefault(label.color, place)
    return found
