"""A small recipe for volumes, for tests that need one."""

from __future__ import annotations

from typing import Any

from segship.manifest import (
    Argmax,
    Channel,
    Decode,
    Label,
    Metric,
    Network,
    Output,
    Recipe,
    Tiling,
    VolumeInput,
)


def volume_recipe(**changes: Any) -> Recipe:
    """One channel in, two classes out, windows of 4 × 4 × 4."""
    settings: dict[str, Any] = {
        "name": "volumes",
        "family": "test",
        "input": VolumeInput(
            reader="nibabel", channels=(Channel(name="CT"),), file_ending=".nii.gz", channel_files="suffix-0000"
        ),
        "preprocess": (),
        "network": Network(
            architecture="pointwise",
            parameters=1,
            input_name="input",
            layout="NCDHW",
            input_channels=1,
            size=(4, 4, 4),
            size_multiple=(1, 1, 1),
            outputs=(Output(name="logits", channels=2, values="logits"),),
            members=("model",),
        ),
        "tiling": Tiling(
            window=(4, 4, 4),
            step=(2.0, 2.0, 2.0),
            positions="even-spread",
            weighting="gaussian",
            gaussian_sigma_scale=1 / 8,
            pad_mode="constant",
            average="logits",
        ),
        "decode": Decode(activation="softmax", decision=Argmax(), restore_what="logits", restore_method="skimage:edge"),
        "labels": (
            Label(id=0, name="background", color=(0, 0, 0)),
            Label(id=1, name="organ", color=(0, 200, 0)),
        ),
        "metric": Metric(name="Dice", scorer="nnunet", higher_is_better=True, grid="input"),
    }
    return Recipe(**{**settings, **changes})
