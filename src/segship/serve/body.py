"""A request with a picture, taken into memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from segship.serve.arriving import FORM_BYTES, MAX_FIELDS, Arriving, LimitedForm, query_words
from segship.serve.refused import Gone, Refused

MAX_FILES = 2
"""the picture, and a background"""
FILE_FIELDS = ("file", "background")


class _Form(LimitedForm):
    """Pictures in memory: the bodies' total is bounded."""

    what = "picture"
    spool_max_size = 0


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


class Intake(Arriving):
    """Reads one request's body into memory."""

    what, sooner = "picture", "send a smaller picture"

    async def read(self, *, raw: bool) -> Upload:
        """A multipart form with the part ``file``; where ``raw``, also a body that is the picture itself.

        Raises Refused and Gone.
        """
        kind = self._kind
        form = kind == "multipart/form-data"
        if form:
            self._allowed = MAX_FILES * self._options.max_bytes + FORM_BYTES
        elif not raw or not (kind.startswith("image/") or kind in ("", "application/octet-stream")):
            raise _unsupported(kind, raw)
        request = self._open()
        try:
            return await self._form(request) if form else await self._raw(request)
        except ClientDisconnect:
            raise Gone from None

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


def _unsupported(kind: str, raw: bool) -> Refused:
    wrong = f"a body of type '{_short(kind) or 'unknown'}' is not read here"
    plain = ", or the bytes alone: curl -H 'Content-Type: image/png' --data-binary @picture.png …" if raw else ""
    return Refused(415, wrong, _FORM_HINT + plain)


def _not_empty(data: bytes) -> bytes:
    if not data:
        raise Refused(400, "the picture is empty: 0 bytes arrived", "check the path after '@' in the curl command")
    return data


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"
