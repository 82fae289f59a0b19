"""How near two surfaces are, in millimetres: surface Dice (NSD) and the 95 % Hausdorff distance (HD95).

Computed by DeepMind's surface-distance (PyPI: surface-distance-based-measures, extra `metrics`): marching-cubes
surface elements weighted by their area, distances by a Euclidean transform with the voxel's spacing. Paper: Nikolov et
al. 2018, Deep learning to achieve clinically applicable segmentation of head and neck anatomy for radiotherapy.

    NSD    share of both surfaces' area that lies within the tolerance of the other surface
    HD95   95 % of each surface's area lies within this distance of the other; the larger of the two directions.
           (medpy's, which nnU-Net v1's advanced metrics print, takes one percentile over both directions together)

Where a mask is empty there is no surface: both empty gives NaN, left out of means as Dice is; one empty gives NSD 0 and
as HD95 the length of the image's diagonal, the largest distance that it allows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.errors import UsageError

Bool = NDArray[np.bool_]
TOLERANCE_MM = 1.0


def surface_scores(
    reference: Bool, predicted: Bool, spacing: Sequence[float], tolerance_mm: float = TOLERANCE_MM
) -> dict[str, float]:
    """NSD and HD95 of two masks (z, y, x) with ``spacing`` (z, y, x) in millimetres; a single slice is a picture."""
    if reference.shape != predicted.shape or len(spacing) != reference.ndim:
        raise ValueError(f"shapes {reference.shape} and {predicted.shape} with {len(spacing)} spacings")
    if not reference.any() or not predicted.any():
        both = not reference.any() and not predicted.any()
        diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(reference.shape, spacing, strict=True)))
        return {"NSD": math.nan if both else 0.0, "HD95": math.nan if both else diagonal}
    if reference.ndim == 3 and reference.shape[0] == 1:
        reference, predicted, spacing = reference[0], predicted[0], spacing[1:]
    library = _library()
    try:
        return _computed(library, reference, predicted, spacing, tolerance_mm)
    except AttributeError as error:
        raise UsageError(
            f"surface-distance does not run with the installed numpy or scipy ({error}); install the versions of "
            "constraints.txt, or leave --surface out"
        ) from error


def _computed(
    library: Any, reference: Bool, predicted: Bool, spacing: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    with warnings.catch_warnings():  # it calls scipy by its old names
        warnings.simplefilter("ignore", DeprecationWarning)
        found = library.compute_surface_distances(reference, predicted, tuple(spacing))
        return {
            "NSD": float(library.compute_surface_dice_at_tolerance(found, tolerance_mm)),
            "HD95": float(library.compute_robust_hausdorff(found, 95)),
        }


def check_library() -> None:
    """UsageError where the extra is not installed, before any case is read."""
    _library()


def _library() -> Any:
    try:
        import surface_distance
    except ImportError:
        raise UsageError(
            "surface Dice and HD95 need the library surface-distance; type: pip install 'segship[metrics]'"
        ) from None
    return surface_distance
