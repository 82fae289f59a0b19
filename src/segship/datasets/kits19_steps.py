"""MLPerf's way with a KiTS19 case, as manifest steps: one definition for preparing data sets and for packages.

Source: mlcommons/training: retired_benchmarks/unet3d/pytorch/preprocess_dataset.py. The values and shapes are its own,
to the last bit where torch's arithmetic is repeated (see inference/resample.py).
"""

from __future__ import annotations

from segship.manifest import Channel, Clip, Pad, Resample, Step, VolumeInput, ZScore

SPACING = (1.6, 1.2, 1.2)
"""millimetres (slice, row, column)"""
LOW, HIGH = -79.0, 304.0
MEAN, STD = 101.0, 76.9
MINIMUM = 128
ORIENTATION = "IPL"
"""how all published files are stored: slices from the head down, rows to the back, columns to the left"""
PAD_VALUE = -2.2
"""what a window sees beyond the case, after normalisation"""


def steps(
    minimum: tuple[int, int, int] | None = (MINIMUM,) * 3,
    spacing: tuple[float, float, float] = SPACING,
    channels: int = 1,
) -> tuple[Step, ...]:
    """Resample, clip, normalise, pad with the edge's values to at least ``minimum`` voxels (None: no padding)."""
    found: list[Step] = [
        Resample(
            spacing_mm_zyx=spacing,
            shape_rule="truncate",
            method="torch:trilinear-align-corners",
            order=1,
            order_z=1,
            separate_z="never",
            anisotropy_threshold=3.0,
        ),
        Clip(low=LOW, high=HIGH),
    ]
    found += [
        ZScore(channel=index, mean=MEAN, std=STD, epsilon=0.0, epsilon_rule="maximum", mask="none")
        for index in range(channels)
    ]
    if minimum is not None:
        found.append(Pad(minimum=minimum, where="both", mode="edge"))
    return tuple(found)


def reading(channels: tuple[str, ...] = ("CT",), *, reorient: bool = True) -> VolumeInput:
    """How a case is read: the file's own order of axes, turned to that of KiTS19's files first where asked for."""
    return VolumeInput(
        reader="nibabel-stored",
        channels=tuple(Channel(name=name) for name in channels),
        file_ending=".nii.gz",
        channel_files="suffix-0000",
        orientation=ORIENTATION if reorient else None,
        folder_file="imaging.nii.gz",
    )
