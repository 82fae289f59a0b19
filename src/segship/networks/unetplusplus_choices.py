"""What can be chosen of UNet++ and its U-Net. No torch: options are shown and checked without it."""

from __future__ import annotations

from typing import Literal

FILTERS = (32, 64, 128, 256, 512)
DEPTH = len(FILTERS) - 1
SIZE_MULTIPLE = 2**DEPTH

Upsampling = Literal["bilinear", "nearest"]
