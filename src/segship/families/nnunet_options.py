"""What a model folder of nnU-Net leaves open (see `nnunet`)."""

from __future__ import annotations

from segship.families.options import Option

COMPATS = ("fp16-accumulators", "v1-cascade")
OPTIONS = (
    Option(name="configuration", kind="text", help="2d, 3d_fullres, 3d_lowres … where a folder or zip holds several"),
    Option(name="folds", kind="text", help="which folds become ensemble members: '0 1 2', 'all', or 'auto' (default)"),
    Option(name="checkpoint", kind="text", help="final (default), best, latest, or a file name"),
    Option(name="step_size", kind="floats", help="window step as a part of the patch [0.5]"),
    Option(name="mirror_axes", kind="text", help="v1 does not store them: '0,1,2', or 'none' for no mirroring"),
    Option(name="regions_order", kind="text", help="v1 trainers with overlapping regions: the labels, e.g. 1,2,3"),
    Option(
        name="postprocessing", kind="text",
        help="auto: what the folder holds; none; or a file (v1 default auto, v2 default none, as its own predict does)",
    ),
    Option(
        name="previous_stage", kind="text",
        help="cascade: the package of its first stage, which predict then runs [the one beside the output, if any]",
    ),
    Option(name="compat", kind="text", help=f"reproduce a quirk to the last voxel: {', '.join(COMPATS)}"),
    Option(
        name="assume_default_architecture", kind="flag",
        help="v1: export a custom trainer's network as Generic_UNet although its name says otherwise",
    ),
)  # fmt: skip
