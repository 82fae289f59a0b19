"""A label map along the way that its image took: onto the network's grid, where training and some scores are at home."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segship.errors import InputError
from segship.inference.resample import nearest_floor_index
from segship.inference.volume_chain import VolumeFrame


def labels_on_network_grid(labels: NDArray[np.integer], frame: VolumeFrame) -> NDArray[np.integer]:
    """Labels (z, y, x) of the case's own grid on the network's; their type stays.

    Resampling takes the nearest voxel as torch's mode 'nearest' does; padding repeats the edge where the image's did and
    is background else. Raises InputError for labels of another shape than the case.
    """
    if labels.shape != frame.shape:
        raise InputError(
            f"{frame.name}: the labels have {_text(labels.shape)} voxels, the image {_text(frame.shape)}; they are not of "
            "one case"
        )
    for step in frame.moved:
        if step.kind == "transpose":
            labels = labels.transpose(step.axes)
        elif step.kind == "crop":
            labels = labels[tuple(slice(a, a + n) for a, n in zip(step.start, step.after, strict=True))]
        elif step.kind == "resample":
            for axis, (before, after) in enumerate(zip(step.before, step.after, strict=True)):
                if before != after:
                    labels = labels.take(nearest_floor_index(before, after), axis)
        else:
            sides = zip(step.start, step.before, step.after, strict=True)
            widths = [(first, after - before - first) for first, before, after in sides]
            labels = np.pad(labels, widths) if step.mode == "constant" else np.pad(labels, widths, mode=step.mode)
    return np.ascontiguousarray(labels)


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(str(side) for side in shape)
