"""Volumes: from files to arrays and back, by the reading rules that the manifest names.

Arrays are (C, z, y, x), spacings (z, y, x) in millimetres, whatever the file's own order is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Spacing = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """One case as read: every channel on one grid."""

    channels: np.ndarray
    """(C, z, y, x) float32"""
    spacing: Spacing
    name: str
    geometry: Any = None
    """what a writer needs to put labels into the input's own space: affine, origin, direction, file header"""
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels.shape[1], self.channels.shape[2], self.channels.shape[3]
