"""MLPerf's way from a CT to kidneys and tumours, as a package's recipe.

Sources: mlcommons/training: retired_benchmarks/unet3d/pytorch/{preprocess_dataset,runtime/inference}.py. Upstream stops at
the resampled grid; here the scores go back onto the case's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from segship.datasets import kits19_steps
from segship.families.common import COLORS
from segship.families.unet3d_mlperf_options import Borders
from segship.inference.tiling import compat_crop
from segship.manifest import Argmax, Decode, Label, Metric, Network, Output, Recipe, Tiling
from segship.networks.unet3d_mlperf_choices import SIZE_MULTIPLE

Shape3 = tuple[int, int, int]
ARCHITECTURE = "Unet3D"
SIGMA_SCALE = 0.125 * math.sqrt(3)
"""upstream takes the cube root of a Gaussian of 0.125 window sides, which is a Gaussian of √3 times that"""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the weights do not say."""

    window: Shape3
    overlap: float
    pad_to: Shape3 | None
    """what every side of a case is padded to at least, by its edge"""
    as_stored: bool
    crop: bool
    """MLPerf's cropping of short remainders"""
    borders: Borders = "pad"
    """windows lie on a grid that pads the case, or within the case, the last flush with its border"""


def build_recipe(
    *,
    name: str,
    parameters: int,
    channels: tuple[str, ...],
    classes: tuple[str, ...],
    choices: Choices,
    options: dict[str, str | int | float | bool | None],
    spacing: tuple[float, float, float] = kits19_steps.SPACING,
    description: str = "MLPerf Training 3D U-Net, kidneys and kidney tumours in CT (KiTS19)",
) -> Recipe:
    """The whole chain; ``classes`` name the foreground labels 1, 2 …"""
    return Recipe(
        name=name,
        family="unet3d_mlperf",
        description=description,
        options=options,
        input=kits19_steps.reading(channels, reorient=not choices.as_stored),
        preprocess=kits19_steps.steps(choices.pad_to, spacing, len(channels)),
        network=Network(
            architecture=ARCHITECTURE,
            parameters=parameters,
            input_name="input",
            layout="NCDHW",
            input_channels=len(channels),
            size=choices.window,
            size_multiple=(SIZE_MULTIPLE,) * 3,
            outputs=(Output(name="logits", channels=len(classes) + 1, values="logits"),),
            members=("model",),
        ),
        tiling=tiling(choices),
        decode=Decode(
            activation="softmax",
            decision=Argmax(),
            restore_what="logits",
            restore_method="torch:trilinear-align-corners",
            restore_order=1,
            restore_order_z=1,
            restore_separate_z="never",
        ),
        labels=(
            Label(id=0, name="background", color=(0, 0, 0)),
            *(Label(id=i + 1, name=text, color=COLORS[i % len(COLORS)]) for i, text in enumerate(classes)),
        ),
        metric=Metric(name="mean Dice", scorer="kits19", higher_is_better=True, grid="network"),
    )


def tiling(choices: Choices) -> Tiling:
    """Windows over the whole grid, padded to the next multiple of the stride."""
    found = Tiling(
        window=choices.window,
        step=tuple(float(max(1, int(side * (1 - choices.overlap)))) for side in choices.window),
        positions="stride-multiple" if choices.borders == "pad" else "flush-last",
        weighting="gaussian-centred",
        gaussian_sigma_scale=SIGMA_SCALE,
        pad_mode="constant",
        pad_value=kits19_steps.PAD_VALUE,
        average="logits",
    )
    return compat_crop(found) if choices.crop else found
