"""Memory: what C libraries freed but the system's allocator kept, and what this machine has left."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

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


def usable() -> int | None:
    """Bytes that this process may come to hold: what it has now, and what the machine or its container has left.

    None where the system does not tell.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    free = int(kilobytes) * 1024
    for limit, used in _CONTAINERS:
        try:
            free = min(free, max(0, int(limit.read_text()) - int(used.read_text())))
        except (OSError, ValueError):  # no such container, or no limit ("max")
            continue
    return free + pages * os.sysconf("SC_PAGE_SIZE")


_CGROUPS = Path("/sys/fs/cgroup")
_CONTAINERS = (
    (_CGROUPS / "memory.max", _CGROUPS / "memory.current"),
    (_CGROUPS / "memory" / "memory.limit_in_bytes", _CGROUPS / "memory" / "memory.usage_in_bytes"),
)
