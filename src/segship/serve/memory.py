"""Memory that C libraries freed but the system's allocator kept."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

WORTH_PIXELS = 4_000_000
"""below this a picture leaves a few megabytes, and looking for them costs more than they are"""


def give_back() -> None:
    """Return freed memory to the system where the allocator (glibc's) can be asked to; elsewhere nothing happens.

    Pillow takes a large picture's rows from the thread's own heap, which glibc does not shrink by itself: after one
    picture of 50 megapixels a server would stay a gigabyte larger for good.
    """
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _: None
    return trim
