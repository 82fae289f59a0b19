"""What the weights of U²-Net do not say (see `u2net_recipe`)."""

from __future__ import annotations

from typing import get_args

from segship.families.options import ALL_OUTPUTS, CLASS_NAMES, INPUT_SIZE, MEAN, STD, Option
from segship.manifest import ImageResize

RECIPES = ("upstream", "upstream-0.14", "rembg", "portrait", "custom")
METHODS: tuple[str, ...] = get_args(ImageResize)
RESTORES = tuple(method for method in METHODS if not method.startswith("skimage:"))
"""what enlarges a finished mask; scikit-image's rules darken its border"""
NORMALIZATIONS = ("rgb", "portrait-demo")
OPTIONS = (
    Option(
        name="recipe", kind="choice", choices=RECIPES,
        help="U²-Net: whose program the masks shall equal: upstream (default for .pth), upstream-0.14 (its pinned "
        "scikit-image), rembg (default for .onnx), portrait (default where the file's name says so), custom",
    ),
    INPUT_SIZE,
    Option(
        name="exif", kind="choice", choices=("apply", "ignore"),
        help="U²-Net: EXIF rotation of photos (default: rembg applies it, upstream ignores it)",
    ),
    Option(
        name="alpha", kind="choice", choices=("drop", "in-max"),
        help="U²-Net: drop alpha (default), or let it take part in the division by the maximum as upstream's reader did",
    ),
    Option(
        name="normalization", kind="choice", choices=NORMALIZATIONS,
        help="U²-Net: rgb (default), or portrait-demo: that script's swapped constants of red and blue",
    ),
    Option(
        name="min_max", kind="choice", choices=("yes", "no"),
        help="U²-Net: stretch each picture's map to 0..1 (default yes, as all originals do)",
    ),
    Option(name="resize", kind="choice", choices=METHODS, help="U²-Net, recipe custom: resize before the network"),
    Option(name="restore", kind="choice", choices=RESTORES, help="U²-Net, recipe custom: resize of the mask"),
    Option(
        name="polarity", kind="choice", choices=("as-is", "inverted"),
        help="U²-Net, recipe custom: the map, or 1 minus it",
    ),
    MEAN,
    STD,
    CLASS_NAMES,
    ALL_OUTPUTS,
)  # fmt: skip
