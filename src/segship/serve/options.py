"""What a server takes and refuses. Imports nothing of the web libraries, so that the command line can show it quickly."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from segship.errors import UsageError

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Limits of one server. Checked when built: raises UsageError."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one"""
    queue: int = 64
    """requests that may wait (or upload) beside those at work; one more is answered 429"""
    timeout: float = 60.0
    """seconds from the picture's arrival to its answer; 503 after that"""
    upload_timeout: float = 30.0
    """seconds for a request's whole body; 408 after that"""
    max_bytes: int = 32 * MIB
    """of one encoded picture; 413 beyond, said before the rest is read"""
    max_pixels: int = 50_000_000
    """height × width in the picture's header, checked before decoding; 413 beyond"""
    max_matting_pixels: int = 4_000_000
    """matting solves one equation a pixel: minutes and gigabytes on a large photo"""
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
        for name in ("timeout", "upload_timeout", "max_bytes", "max_pixels", "max_matting_pixels", "max_held_bytes"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} is above 0, not {getattr(self, name)}")
        if self.max_held_bytes < self.max_bytes:
            raise UsageError("--max-held-bytes is smaller than --max-bytes: no picture of the allowed size would fit")
        for origin in self.allow_origins:
            if origin != "*" and "://" not in origin:
                raise UsageError(f"--allow-origin takes an origin such as https://example.org, not '{origin}'")

    @property
    def loopback(self) -> bool:
        """True where only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

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
