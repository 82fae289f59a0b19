"""A request's body, counted while it arrives: by bytes, by seconds, and against what all requests hold together."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from segship.serve.options import ServeOptions
from segship.serve.refused import Gone, Refused

FORM_BYTES = 64 * 1024
"""what a form may hold beside its pictures: boundaries, headers, fields"""
MAX_FIELDS = 32
MAX_FILES = 2
"""the picture, and a background"""
FILE_FIELDS = ("file", "background")


class _Form(MultiPartParser):
    """Starlette's parser, in memory (the bodies' total is bounded) and with a limit for each picture."""

    spool_max_size = 0
    max_file_bytes = 0
    _file_bytes = 0

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._file_bytes = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is not None:
            self._file_bytes += end - start
            if self._file_bytes > self.max_file_bytes:
                raise _too_large(self.max_file_bytes)
        super().on_part_data(data, start, end)


class Held:
    """Bytes of all bodies in memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0

    def add(self, count: int) -> None:
        if self.total + count > self.limit:
            raise Refused(
                429, f"the pictures being uploaded and waiting fill the {self.limit:,} bytes kept for them",
                "try again in a moment", retry_after=1,
            )  # fmt: skip
        self.total += count

    def remove(self, count: int) -> None:
        self.total -= count


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What a request brought. ``files`` are encoded pictures by field name, ``fields`` the form's and query's words."""

    files: dict[str, bytes]
    fields: dict[str, str] = field(default_factory=dict)


class Intake:
    """Reads one request's body; `release` when its bytes are no longer held. Raises Refused and Gone."""

    def __init__(self, request: Request, options: ServeOptions, held: Held) -> None:
        self._request = request
        self._options = options
        self._held = held
        self._bytes = 0
        self._allowed = options.max_bytes
        self._deadline = time.monotonic() + options.upload_timeout

    def release(self) -> None:
        self._held.remove(self._bytes)
        self._bytes = 0

    async def read(self, *, raw: bool) -> Upload:
        """A multipart form with the part ``file``; where ``raw``, also a body that is the picture itself."""
        kind = self._request.headers.get("content-type", "").split(";")[0].strip().lower()
        form = kind == "multipart/form-data"
        if form:
            self._allowed = MAX_FILES * self._options.max_bytes + FORM_BYTES
        elif not raw or not (kind.startswith("image/") or kind in ("", "application/octet-stream")):
            raise _unsupported(kind, raw)
        if announced(self._request) > self._allowed:
            raise _too_large(self._options.max_bytes)
        request = Request(self._request.scope, _guarded(self, self._request.receive))
        try:
            return await self._form(request) if form else await self._raw(request)
        except ClientDisconnect:
            raise Gone from None

    async def receive(self, receive: Receive) -> Message:
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await receive()
        except TimeoutError:
            raise Refused(
                408, f"the body did not arrive within {self._options.upload_timeout:g} seconds",
                "send a smaller picture, or start the server with a larger --upload-timeout",
            ) from None  # fmt: skip
        count = len(message.get("body", b""))
        if self._bytes + count > self._allowed:
            raise _too_large(self._options.max_bytes)
        self._held.add(count)
        self._bytes += count
        return message

    async def _raw(self, request: Request) -> Upload:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
        return Upload(files={"file": _not_empty(bytes(data))}, fields=query_words(self._request))

    async def _form(self, request: Request) -> Upload:
        parser = _Form(
            request.headers, request.stream(), max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=FORM_BYTES
        )
        parser.max_file_bytes = self._options.max_bytes
        try:
            items = (await parser.parse()).multi_items()
        except MultiPartException as error:
            raise Refused(400, f"the form cannot be read: {error.message}", _FORM_HINT) from None
        files: dict[str, bytes] = {}
        fields = query_words(self._request)
        for name, value in items:
            if name in files:
                raise Refused(400, f"the form has two parts called '{name}'", "send one picture a request")
            if isinstance(value, UploadFile):
                if name not in FILE_FIELDS:
                    raise Refused(400, f"there is no picture field '{_short(name)}'", _FORM_HINT)
                data = await value.read()
                await value.close()
                files[name] = data
            else:
                fields[name] = value
        if "file" not in files:
            if "file" in fields:
                raise Refused(400, "the part 'file' is text: it has no file name", _FORM_HINT)
            raise Refused(400, "the form has no part 'file'", _FORM_HINT)
        _not_empty(files["file"])
        return Upload(files=files, fields=fields)


_FORM_HINT = "send the picture as a multipart part named 'file': curl -F file=@picture.png …"


def _guarded(intake: Intake, receive: Receive) -> Receive:
    async def next_message() -> Message:
        return await intake.receive(receive)

    return next_message


def _too_large(limit: int) -> Refused:
    hint = "send a smaller one, or start the server with a larger --max-bytes"
    return Refused(413, f"the picture is larger than {limit:,} bytes", hint)


def _unsupported(kind: str, raw: bool) -> Refused:
    wrong = f"a body of type '{_short(kind) or 'unknown'}' is not read here"
    plain = ", or the bytes alone: curl -H 'Content-Type: image/png' --data-binary @picture.png …" if raw else ""
    return Refused(415, wrong, _FORM_HINT + plain)


def _not_empty(data: bytes) -> bytes:
    if not data:
        raise Refused(400, "the picture is empty: 0 bytes arrived", "check the path after '@' in the curl command")
    return data


def announced(request: Request) -> int:
    """The body's length in bytes as the request's header tells it; 0 where it tells none."""
    length = request.headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0


def query_words(request: Request) -> dict[str, str]:
    """The fields in the address. Raises Refused where there are too many."""
    if len(request.query_params.multi_items()) > MAX_FIELDS:
        raise Refused(400, f"more than {MAX_FIELDS} fields in the address", "leave out what is not needed")
    return dict(request.query_params)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"
