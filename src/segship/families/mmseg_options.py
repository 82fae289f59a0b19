"""What a checkpoint of MMSegmentation does not say (see `mmseg`)."""

from __future__ import annotations

from segship.families.options import CLASS_NAMES, INPUT_SIZE, Option

OPTIONS = (
    Option(
        name="config", kind="text",
        help="MMSegmentation: the configuration (.py) that the checkpoint was trained with [the text inside the checkpoint]",
    ),
    Option(
        name="arch", kind="text",
        help="MMSegmentation, without configuration: a released network by its name, such as deeplabv3_r101-d8_512x1024",
    ),
    Option(
        name="generic", kind="flag",
        help="MMSegmentation: let the installed mmseg build the network, also where segship defines it itself",
    ),
    Option(
        name="trust_config", kind="flag",
        help="MMSegmentation: let mmengine run the configuration instead of reading it; it is a program",
    ),
    Option(
        name="scale", kind="text",
        help="MMSegmentation: picture size WxH to fit into before the network, or none [the configuration's test size]",
    ),
    INPUT_SIZE,
    CLASS_NAMES,
)  # fmt: skip
