"""What the weights of UNet++ and its U-Net do not say (see `unetplusplus`)."""

from __future__ import annotations

from typing import get_args

from segship.families.options import ALL_OUTPUTS, CLASS_NAMES, INPUT_SIZE, MEAN, STD, Option
from segship.networks.unetplusplus_choices import Upsampling

UPSAMPLINGS: tuple[str, ...] = get_args(Upsampling)
BGR_IMAGENET = "bgr-imagenet-div255"
RGB = "rgb-div255"
INPUTS = (BGR_IMAGENET, RGB)
OPTIONS = (
    Option(
        name="upsample", kind="choice", choices=UPSAMPLINGS,
        help="upsampling the network was trained with: bilinear (upstream, default) or nearest (the Ascend port's weights)",
    ),
    Option(
        name="input", kind="choice", choices=INPUTS,
        help="normalisation it was trained with: bgr-imagenet-div255 (upstream since 2020, default) or rgb-div255 (2019)",
    ),
    Option(
        name="head", kind="choice", choices=("1", "2", "3", "4", "all"),
        help="deep supervision only: keep the nodes of one head (default 4), or all heads with the fourth first",
    ),
    INPUT_SIZE,
    MEAN,
    STD,
    CLASS_NAMES,
    ALL_OUTPUTS,
)  # fmt: skip
