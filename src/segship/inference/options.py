"""What becomes of an answer: the mask itself, the object cut out, or the object on another background.

One frozen `OutputOptions` says it for the command line, Python and the server alike, so that all three write the
same bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from segship.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Kind = Literal["mask", "ids", "color", "cityscapes", "cutout", "composite", "overlay"]
LabelKind = Literal["ids", "color", "cityscapes"]
CutoutStyle = Literal["straight", "rembg"]
RGBA = tuple[int, int, int, int]
KINDS: tuple[Kind, ...] = get_args(Kind)
LABEL_KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
STYLES: tuple[CutoutStyle, ...] = get_args(CutoutStyle)

CLEANING_SIGMA = 2.0
"""of `OutputOptions.clean_mask`, in pixels"""

_NUMBERS = re.compile(r"\s*\d{1,3}\s*(,\s*\d{1,3}\s*){2,3}")


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputOptions:
    """How one prediction becomes one image. Raises UsageError for values that mean nothing."""

    kind: Kind = "mask"
    """'mask': what the network answers, of exclusive classes their numbers (train ids). 'ids': the numbers that the data
    set's own label files hold. 'color': each class in its colour, RGB. 'cityscapes': ids with the colours as palette, as
    Cityscapes' test server and mmseg's --format-only have them. 'cutout': RGBA, the picture's colours with the mask as alpha. 'composite': the
    object over ``background``. 'overlay': the picture with the mask drawn on it, for looking at"""
    threshold: float | None = None
    """decide at this value (0..1, strictly above) instead of keeping a map's grey levels or the package's threshold"""
    clean_mask: bool = False
    """open the mask by a 3x3 cross, smooth it (sigma 2) and cut it at half: lone pixels and ragged edges go"""
    matting: bool = False
    """estimate hair-fine alpha and the object's own colours with pymatting (slow: seconds a megapixel)"""
    foreground_threshold: int = 240
    """matting: mask levels above this are surely the object …"""
    background_threshold: int = 10
    """… below this surely not, and what lies between is estimated"""
    erode: int = 10
    """matting: side of the square by which both sure areas are shrunk first, in pixels"""
    background: Any = None
    """composite: a colour (see `parse_color`), or an image (path or array) that is resized to cover; None: white"""
    cutout_style: CutoutStyle = "straight"
    """'straight': colours as they are, alpha beside them, as PNG means it. 'rembg': colours multiplied by alpha as well,
    which shows as a dark fringe; only for those who must match files made by danielgatis/rembg"""
    rgb_mask: bool = False
    """mask: three equal planes instead of one"""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"the kind of output is one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.cutout_style not in STYLES:
            raise UsageError(f"cutout_style is one of {', '.join(STYLES)}, not {self.cutout_style!r}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold lies in 0..1, got {self.threshold}")
        for name in ("foreground_threshold", "background_threshold"):
            if not 0 <= getattr(self, name) <= 255:
                raise UsageError(f"{name} is a mask level of 0..255, got {getattr(self, name)}")
        if self.erode < 0:
            raise UsageError(f"erode is a number of pixels, 0 or more, got {self.erode}")

    @property
    def needs_picture(self) -> bool:
        return self.kind not in ("mask", *LABEL_KINDS) or self.estimates_alpha

    @property
    def estimates_alpha(self) -> bool:
        """Whether matting runs. rembg ignores it where only the mask is wanted."""
        return (
            self.matting
            and self.kind not in ("overlay", *LABEL_KINDS)
            and not (self.kind == "mask" and self.cutout_style == "rembg")
        )

    @cached_property
    def backdrop(self) -> Backdrop:
        """The background, read once. Raises UsageError for what is neither colour nor image, InputError for a bad image."""
        return Backdrop.of("white" if self.background is None else self.background)

    def content(self) -> dict[str, object]:
        """The options that decide an image's bytes, with the background by its content: plain JSON."""
        if self.kind == "mask" and not (self.threshold is not None or self.clean_mask or self.matting or self.rgb_mask):
            return {"kind": "mask"}
        names = ("kind", "threshold", "clean_mask", "matting", "cutout_style", "rgb_mask")
        told: dict[str, object] = {name: getattr(self, name) for name in names}
        if self.matting:
            told |= {name: getattr(self, name) for name in ("foreground_threshold", "background_threshold", "erode")}
        if self.kind == "composite":
            told["background"] = self.backdrop.identity
        return told


@dataclass(frozen=True, kw_only=True, eq=False)
class Backdrop:
    """A colour, or a picture uint8 (h, w, 3) RGB that covers whatever lies before it."""

    color: RGBA = (0, 0, 0, 255)
    picture: np.ndarray | None = None

    @classmethod
    def of(cls, value: Any) -> Backdrop:
        color = parse_color(value)
        if color is not None:
            return cls(color=color)
        if isinstance(value, str) and not Path(value).is_file():
            raise UsageError(
                f"the background {value!r} is neither a colour (white, #rrggbb, r,g,b or r,g,b,a) nor an image file"
            )
        if not isinstance(value, str | os.PathLike | bytes | np.ndarray) and not hasattr(value, "getbands"):
            raise UsageError(f"a background is a colour, an image file or an array, not {type(value).__name__}")
        return cls(picture=_read_picture(value))

    @property
    def identity(self) -> object:
        if self.picture is None:
            return list(self.color)
        return f"{self.picture.shape} {hashlib.sha256(self.picture.data).hexdigest()}"

    @property
    def opaque(self) -> bool:
        return self.picture is not None or self.color[3] == 255

    def fill(self, size_hw: tuple[int, int]) -> PilImage:
        """RGBA of that (height, width). A picture keeps its ratio: enlarged until it covers, the middle shown."""
        from PIL import Image, ImageOps

        size = (size_hw[1], size_hw[0])
        if self.picture is None:
            return Image.new("RGBA", size, self.color)
        known = self.__dict__.get("_covering")
        if known is None or known.size != size:  # a folder's pictures are often of one size
            known = ImageOps.fit(Image.fromarray(self.picture), size, Image.Resampling.LANCZOS).convert("RGBA")
            self.__dict__["_covering"] = known
        return known.copy()


def changed(options: OutputOptions | None, changes: dict[str, Any]) -> OutputOptions:
    """``options`` (the defaults, without any) with some fields changed. Raises UsageError for a field there is not."""
    names = [field.name for field in fields(OutputOptions)]
    unknown = [name for name in changes if name not in names]
    if unknown:
        raise UsageError(f"there is no output option {unknown[0]!r}; there are {', '.join(names)}")
    if not changes:
        return options or OutputOptions()
    return replace(options, **changes) if options is not None else OutputOptions(**changes)


def parse_color(value: Any) -> RGBA | None:
    """RGBA from 'r,g,b[,a]', a CSS name, '#rgb', '#rrggbb[aa]', 'rgb(…)', 'hsl(…)', 'transparent', or 3 to 4 numbers.

    None for what is no colour. Raises UsageError for numbers beyond 0..255.
    """
    if isinstance(value, str):
        if value.strip().lower() == "transparent":
            return 0, 0, 0, 0
        if _NUMBERS.fullmatch(value):
            return _rgba([int(part) for part in value.split(",")])
        from PIL import ImageColor

        try:
            return _rgba(list(ImageColor.getrgb(value.strip())))
        except ValueError:
            return None
    if isinstance(value, tuple | list) and len(value) in (3, 4) and all(isinstance(v, int) for v in value):
        return _rgba(list(value))
    return None


def _rgba(parts: list[int]) -> RGBA:
    if min(parts) < 0 or max(parts) > 255:
        raise UsageError(f"a colour's parts lie in 0..255, got {','.join(map(str, parts))}")
    red, green, blue, alpha = (*parts, 255)[:4]
    return red, green, blue, alpha


def _read_picture(source: Any) -> np.ndarray:
    from segship.inference.images import read_image
    from segship.manifest import Channel, ImageInput

    spec = ImageInput(
        reader="pillow:rgb",
        channels=tuple(Channel(name=name) for name in "RGB"),
        channel_order="rgb",
        exif_rotation="apply",
    )
    return read_image(source, spec).pixels
