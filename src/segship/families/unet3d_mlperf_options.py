"""What a checkpoint of MLPerf's 3D U-Net does not say (see `unet3d_mlperf`)."""

from __future__ import annotations

from typing import Literal, get_args

from segship.families.options import CLASS_NAMES, Option
from segship.networks.unet3d_mlperf_choices import Activation

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
SAVED = {"best": "best_model_state_dict", "last": "last_model_state_dict"}
"""--weights -> the checkpoint's key"""
Borders = Literal["pad", "flush"]
BORDERS: tuple[Borders, ...] = get_args(Borders)
OPTIONS = (
    Option(
        name="weights", kind="choice", choices=tuple(SAVED),
        help="which of a checkpoint's two networks: best (default where it is there) or last",
    ),
    Option(
        name="activation", kind="choice", choices=ACTIVATIONS,
        help="activation the 3D U-Net was trained with: relu (default) or leaky_relu; the weights do not say",
    ),
    Option(name="window", kind="text", help="3D U-Net: the window it was trained and evaluated with [128x128x128]"),
    Option(name="overlap", kind="floats", help="3D U-Net: how far windows overlap, 0 up to below 1 [0.5]"),
    Option(name="pad_to", kind="text", help="3D U-Net: a case's least size, padded by its edge [128x128x128]; 0: none"),
    Option(
        name="borders", kind="choice", choices=BORDERS,
        help="3D U-Net: pad a case to whole strides (default), or lay the last window flush with its border: better where "
        "cases are not much larger than a window",
    ),
    Option(name="as_stored", kind="flag", help="3D U-Net: take a file's axes as they are instead of turning them to I,P,L"),
    Option(
        name="compat", kind="text",
        help="reproduce a quirk: fp16-accumulators, v1-cascade (nnU-Net), crop (MLPerf's: short remainders are cut away)",
    ),
    CLASS_NAMES,
)  # fmt: skip
