"""Cases whose truth is one label map a picture: Cityscapes, and the folders that mmseg's users keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segship.datasets.cases import Bool, Bytes, Case
from segship.datasets.label_files import LabelVolume
from segship.datasets.label_rules import LabelRules
from segship.errors import DatasetError

Numbers = NDArray[np.unsignedinteger]
PICTURE_SPACING = (999.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """Where pictures and label maps are, and how labels are read, where the layout does not say it."""

    img_dir: str | None = None
    """folder of the pictures below the root, without the split: ``images`` of ``images/val``"""
    ann_dir: str | None = None
    img_suffix: str | None = None
    """the end of a picture's file name after its stem; None: any picture type"""
    seg_map_suffix: str | None = None
    rules: LabelRules = field(default_factory=LabelRules)


def label_case(case_id: str, image: Path, classes: int | None, read: Callable[[], Numbers]) -> Case:
    """A picture and its label map. ``classes`` None: as many as the map holds."""

    def labels(reorient: bool) -> LabelVolume:
        return LabelVolume(labels=read()[None], spacing=PICTURE_SPACING)

    def full() -> Bool:
        found = read()
        count = classes or int(found[found != 255].max(initial=0)) + 1
        return np.stack([found == number for number in range(count)])

    def network(height: int, width: int) -> Bytes:
        raise DatasetError(
            f"case {case_id} has a label map, which is scored on its own grid; this package is scored on masks at its "
            "network's size, so give it images and masks"
        )

    return Case(id=case_id, source=lambda: image, full_target=full, network_target=network, label_volume=labels)
