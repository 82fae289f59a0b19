"""What can be chosen of MLPerf's 3D U-Net. No torch: options are shown and checked without it."""

from __future__ import annotations

from typing import Literal

FILTERS = (32, 64, 128, 256, 320)
SIZE_MULTIPLE = 32

Normalization = Literal["instancenorm", "batchnorm"]
Activation = Literal["relu", "leaky_relu"]
