"""The classes of Cityscapes: train ids, label ids, names and colours.

Source of the table: mcordts/cityscapesScripts: cityscapesscripts/helpers/labels.py. A label file holds either label ids
(``_labelIds.png``, 0 to 33) or train ids (``_labelTrainIds.png``, 0 to 18, void 255).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segship.manifest import Label

Color = tuple[int, int, int]
IGNORE = 255
"""the train id of pixels that are not scored"""

CLASSES: tuple[tuple[int, str, Color], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
"""(label id, name, RGB) by train id"""
NAMES = tuple(name for _, name, _ in CLASSES)
LABEL_IDS = tuple(number for number, _, _ in CLASSES)
HIGHEST_ID = 33


def cityscapes_labels() -> tuple[Label, ...]:
    """The 19 classes as a manifest holds them: train ids, with label ids as the files' own numbers."""
    return tuple(
        Label(id=train_id, name=name, color=color, file_value=number)
        for train_id, (number, name, color) in enumerate(CLASSES)
    )


def to_train_ids() -> NDArray[np.uint8]:
    """(256,) label id -> train id; every void class, and every number that is no label id, is 255."""
    table = np.full(256, IGNORE, np.uint8)
    table[list(LABEL_IDS)] = np.arange(len(CLASSES))
    return table
