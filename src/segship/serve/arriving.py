"""A request's body while it arrives, counted by bytes, by seconds, and against what all requests hold together."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from starlette.formparsers import MultiPartParser
from starlette.requests import Request
from starlette.types import Message

from segship.serve.options import ListenOptions
from segship.serve.refused import Refused

FORM_BYTES = 64 * 1024
"""what a form may hold beside its files: boundaries, headers, fields"""
MAX_FIELDS = 32


class Counted(Protocol):
    def add(self, count: int) -> None:
        """Raises Refused where so many bytes more have no room."""


class Arriving:
    """One request's body. ``bytes`` stay counted until the caller takes them off."""

    what = "file"
    whole = "body"
    sooner = "send a smaller file"
    """what to do where it comes too slowly"""

    def __init__(self, request: Request, options: ListenOptions, held: Counted) -> None:
        self.bytes = 0
        self._request = request
        self._options = options
        self._held = held
        self._allowed = options.max_bytes
        self._deadline = time.monotonic() + options.upload_timeout

    @property
    def _kind(self) -> str:
        return self._request.headers.get("content-type", "").split(";")[0].strip().lower()

    def _open(self) -> Request:
        """The request, whose body is counted. Raises Refused 413 where its header tells too many bytes."""
        if announced(self._request) > self._allowed:
            raise too_large(self.what, self._options.max_bytes)
        return Request(self._request.scope, self._receive)

    async def _receive(self) -> Message:
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._request.receive()
        except TimeoutError:
            raise Refused(
                408, f"the {self.whole} did not arrive within {self._options.upload_timeout:g} seconds",
                f"{self.sooner}, or start the server with a larger --upload-timeout",
            ) from None  # fmt: skip
        count = len(message.get("body", b""))
        if self.bytes + count > self._allowed:
            raise too_large(self.what, self._options.max_bytes)
        self._held.add(count)
        self.bytes += count
        return message


class LimitedForm(MultiPartParser):
    """Starlette's parser with a limit for each file."""

    what = "file"
    max_file_bytes = 0
    _file_bytes = 0

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._file_bytes = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is not None:
            self._file_bytes += end - start
            if self._file_bytes > self.max_file_bytes:
                raise too_large(self.what, self.max_file_bytes)
        super().on_part_data(data, start, end)


def too_large(what: str, limit: int) -> Refused:
    hint = "send a smaller one, or start the server with a larger --max-bytes"
    return Refused(413, f"the {what} is larger than {limit:,} bytes", hint)


def announced(request: Request) -> int:
    """The body's length in bytes as the request's header tells it; 0 where it tells none."""
    length = request.headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0


def query_words(request: Request) -> dict[str, str]:
    """The fields in the address. Raises Refused where there are too many."""
    if len(request.query_params.multi_items()) > MAX_FIELDS:
        raise Refused(400, f"more than {MAX_FIELDS} fields in the address", "leave out what is not needed")
    return dict(request.query_params)
