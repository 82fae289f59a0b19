"""What a server takes and refuses. Imports nothing of the web libraries, so that the command line can show it quickly."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from segship.errors import UsageError

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """What every server has; its defaults are those for pictures. Checked when built: raises UsageError."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one"""
    queue: int = 64
    """requests that may wait (or upload) beside those at work; one more is answered 429"""
    upload_timeout: float = 30.0
    """seconds for a request's whole body; 408 after that"""
    max_bytes: int = 32 * MIB
    """of one encoded file; 413 beyond, said before the rest is read"""
    max_pixels: int = 50_000_000
    """height × width (× slices) in the file's header, checked before decoding; 413 beyond"""
    max_held_bytes: int = 256 * MIB
    """of all bodies together, uploading and waiting; 429 beyond"""
    allow_hosts: tuple[str, ...] = ()
    """further names in the Host header; a server on loopback answers to no others (DNS rebinding)"""
    allow_origins: tuple[str, ...] = ()
    """web pages elsewhere that may call this server (CORS); none by default"""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port is 0 to 65535, not {self.port}")
        if self.queue < 0:
            raise UsageError(f"--queue is 0 or more, not {self.queue}")
        for name in self._above_zero():
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} is above 0, not {getattr(self, name)}")
        if self.max_held_bytes < self.max_bytes:
            raise UsageError("--max-held-bytes is smaller than --max-bytes: no file of the allowed size would fit")
        for origin in self.allow_origins:
            if origin != "*" and "://" not in origin:
                raise UsageError(f"--allow-origin takes an origin such as https://example.org, not '{origin}'")

    def _above_zero(self) -> tuple[str, ...]:
        return "upload_timeout", "max_bytes", "max_pixels", "max_held_bytes"

    @property
    def loopback(self) -> bool:
        """True where only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ListenOptions):
    """Limits of one server of a package that takes pictures."""

    timeout: float = 60.0
    """seconds from the picture's arrival to its answer; 503 after that"""
    max_matting_pixels: int = 4_000_000
    """matting solves one equation a pixel: minutes and gigabytes on a large photo"""

    def _above_zero(self) -> tuple[str, ...]:
        return (*super()._above_zero(), "timeout", "max_matting_pixels")

    @property
    def grace(self) -> float:
        """Seconds that requests which were begun have to end once the server is told to stop."""
        return self.timeout + self.upload_timeout

    def limits(self) -> dict[str, int | float]:
        """What clients may know."""
        return {
            "queue": self.queue,
            "timeout_seconds": self.timeout,
            "upload_timeout_seconds": self.upload_timeout,
            "max_bytes": self.max_bytes,
            "max_pixels": self.max_pixels,
            "max_matting_pixels": self.max_matting_pixels,
            "max_held_bytes": self.max_held_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class VolumeServeOptions(ListenOptions):
    """Limits of one server of a package that takes volumes, which are worked on as jobs."""

    queue: int = 16
    """jobs that may wait (or upload) beside the one at work; one more is answered 429"""
    upload_timeout: float = 600.0
    max_bytes: int = GIB
    """of one file; a case may have one a channel"""
    max_pixels: int = 1 << 29
    """voxels a file, by its header"""
    max_held_bytes: int = 16 * GIB
    """on disk: uploads, and the results of finished jobs; 507 beyond"""
    memory: int | None = None
    """bytes that the process may need at the peak; a case that needs more is refused with 413. None: what the machine
    had free when the server started"""
    keep: int = 32
    """finished jobs; the oldest goes when there are more"""
    keep_seconds: float = 3600.0
    """of a finished job"""

    def _above_zero(self) -> tuple[str, ...]:
        return (*super()._above_zero(), "keep", "keep_seconds", *(("memory",) if self.memory is not None else ()))

    @property
    def grace(self) -> float:
        """Seconds that downloads under way have to end once the server is told to stop; jobs are not finished then."""
        return 10.0

    def limits(self) -> dict[str, int | float | None]:
        """What clients may know."""
        return {
            "queue": self.queue,
            "upload_timeout_seconds": self.upload_timeout,
            "max_bytes": self.max_bytes,
            "max_voxels": self.max_pixels,
            "max_held_bytes": self.max_held_bytes,
            "keep": self.keep,
            "keep_seconds": self.keep_seconds,
        }
