"""Alpha as fine as hair, and the object's colours without the old background's: closed-form matting by pymatting.

The trimap's rules are those of danielgatis/rembg (bg.py, alpha_matting_cutout); the method is Levin, Lischinski and
Weiss, "A closed-form solution to natural image matting" (2008), and Germer et al., "Fast multi-level foreground
estimation" (2020), both as pymatting implements them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from segship.errors import UsageError

MAX_PIXELS = 4_000_000
"""above this alpha is solved on a reduced picture: the system of equations takes half a kilobyte a pixel"""
FIRST_USE_SECONDS = 4.0
"""an import that takes longer is pymatting compiling itself, which is worth a word"""

# One at a time: memory, and numba's own threads must not be started from two of ours at once.
_ONE_AT_A_TIME = threading.Lock()


def trimap(mask: np.ndarray, foreground: int = 240, background: int = 10, erode: int = 10) -> np.ndarray:
    """uint8 (H, W): 255 sure object, 0 sure background, 128 to be estimated.

    Sure areas are those of the mask (uint8) strictly above ``foreground`` and strictly below ``background``, each
    eroded by a square of side ``erode`` (0: scipy's cross). Beyond the picture's edge lies background.
    """
    from scipy import ndimage

    shape = np.ones((erode, erode), np.uint8) if erode else None
    inside = ndimage.binary_erosion(mask > foreground, structure=shape)
    outside = ndimage.binary_erosion(mask < background, structure=shape, border_value=1)
    found = np.full(mask.shape, 128, np.uint8)
    found[inside] = 255
    found[outside] = 0
    return found


def estimate_alpha(rgb: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(H, W) float64 alpha of 0..1 for a uint8 picture (H, W, 3) and a trimap. ValueError where it cannot be solved."""
    if not ((known == 255).any() and (known == 0).any()):
        raise ValueError("the mask has no sure object or no sure background")
    with _ONE_AT_A_TIME:
        return _estimate_alpha(rgb, known)


def estimate_cutout(rgb: np.ndarray, known: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4): the object's own colours, estimated too, and its alpha; x 255 truncated. ValueError as above."""
    alpha = estimate_alpha(rgb, known)
    with _ONE_AT_A_TIME:
        colors = _pymatting()[1](rgb / 255.0, alpha)
    return as_levels(np.dstack([colors, alpha]))


def as_levels(values: np.ndarray) -> np.ndarray:
    """0..1 to uint8, truncated."""
    return np.clip(values * 255, 0, 255).astype(np.uint8)


def _estimate_alpha(rgb: np.ndarray, known: np.ndarray) -> np.ndarray:
    height, width = known.shape
    scale = (MAX_PIXELS / known.size) ** 0.5
    if scale >= 1:
        return np.asarray(_pymatting()[0](rgb / 255.0, known / 255.0))
    import cv2

    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    small = cv2.resize(known, size, interpolation=cv2.INTER_NEAREST)
    solved = _pymatting()[0](cv2.resize(rgb, size, interpolation=cv2.INTER_AREA) / 255.0, small / 255.0)
    alpha = cv2.resize(solved, (width, height), interpolation=cv2.INTER_LINEAR)
    alpha[known == 255] = 1
    alpha[known == 0] = 0
    return np.asarray(alpha)


def require() -> None:
    """Load pymatting now. Raises UsageError where it is not installed."""
    with _ONE_AT_A_TIME:
        _pymatting()


@cache
def _pymatting() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(estimate_alpha_cf, estimate_foreground_ml). Raises UsageError without the library."""
    said = threading.Timer(
        FIRST_USE_SECONDS,
        logging.getLogger("segship").warning,
        ["pymatting compiles itself at its first use; that takes about a minute and is kept for the next time"],
    )
    said.daemon = True
    said.start()
    try:
        from pymatting.alpha.estimate_alpha_cf import estimate_alpha_cf
        from pymatting.foreground.estimate_foreground_ml import estimate_foreground_ml
    except ImportError as error:
        raise UsageError(
            f"matting takes pymatting, which cannot be loaded ({error}); install it: pip install 'segship[matting]'"
        ) from error
    finally:
        said.cancel()
    return estimate_alpha_cf, estimate_foreground_ml
