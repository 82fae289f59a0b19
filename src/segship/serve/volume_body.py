"""A request's files, written to disk while they arrive: counted by bytes and by seconds, never held in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from segship.serve.arriving import FORM_BYTES, MAX_FIELDS, Arriving, LimitedForm, query_words
from segship.serve.options import VolumeServeOptions
from segship.serve.refused import Gone, Refused, shutting_down
from segship.serve.volume_orders import Sent, shown_name
from segship.serve.volume_space import Space

_RAW_KINDS = ("", "application/octet-stream", "application/gzip", "application/x-gzip")


class _Form(LimitedForm):
    """Files on disk from the first byte, in a folder that only this user can read."""

    folder = Path()
    most = 1
    hint = ""
    paths: list[Path]

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        upload = self._current_part.file
        if upload is None:
            return
        if len(self.paths) == self.most:
            files = "1 file" if self.most == 1 else f"{self.most} files"
            raise Refused(400, f"a case of this package has {files}, and the form has more", self.hint)
        self.paths.append(self.folder / f"part_{len(self.paths)}")
        upload.file.close()
        upload.file = self.paths[-1].open("w+b")
        self._files_to_close_on_error.append(upload.file)  # type: ignore[arg-type]


class FileIntake(Arriving):
    """Reads one request's body into a folder."""

    whole, sooner = "files", "pack them (.nii.gz)"

    def __init__(
        self, request: Request, options: VolumeServeOptions, space: Space, folder: Path, *, files: int, hint: str,
        stopping: Callable[[], bool],
    ) -> None:  # fmt: skip
        super().__init__(request, options, space)
        self._folder = folder
        self._files = files
        self._hint = hint
        self._stopping = stopping

    async def read(self) -> tuple[list[Sent], dict[str, str]]:
        """The files and the form's and address' words. Raises Refused and Gone."""
        kind = self._kind
        form = kind == "multipart/form-data"
        if form:
            self._allowed = self._files * self._options.max_bytes + FORM_BYTES
        elif kind not in _RAW_KINDS and not kind.startswith("image/"):
            raise Refused(415, f"a body of type '{kind[:40]}' is not read here", self._hint)
        elif self._files > 1:
            raise Refused(415, f"a case of this package has {self._files} files, which need a form", self._hint)
        request = self._open()
        try:
            return await self._form(request) if form else await self._raw(request)
        except ClientDisconnect:
            raise Gone from None
        except OSError as error:
            raise Refused(
                507, f"the server's disk cannot take the upload ({error.strerror or error})", "try again later",
                retry_after=60,
            ) from None  # fmt: skip

    async def _receive(self) -> Message:
        if self._stopping():
            raise shutting_down()
        return await super()._receive()

    async def _raw(self, request: Request) -> tuple[list[Sent], dict[str, str]]:
        words = query_words(self._request)
        path = self._folder / "part_0"
        with path.open("wb") as file:
            async for chunk in request.stream():
                await asyncio.to_thread(file.write, chunk)
        return [_not_empty(Sent(name=shown_name(words.get("name")), path=path))], words

    async def _form(self, request: Request) -> tuple[list[Sent], dict[str, str]]:
        parser = _Form(
            request.headers, request.stream(), max_files=self._files + 1, max_fields=MAX_FIELDS,
            max_part_size=FORM_BYTES,
        )  # fmt: skip
        parser.folder, parser.paths, parser.most, parser.hint = self._folder, [], self._files, self._hint
        parser.max_file_bytes = self._options.max_bytes
        try:
            items = (await parser.parse()).multi_items()
        except MultiPartException as error:
            raise Refused(400, f"the form cannot be read: {error.message}", self._hint) from None
        words = query_words(self._request)
        sent = []
        paths = iter(parser.paths)
        for name, value in items:
            if not isinstance(value, UploadFile):
                words[name] = value
                continue
            await value.close()
            if name != "file":
                raise Refused(400, f"there is no file field '{name[:40]}'", self._hint)
            sent.append(_not_empty(Sent(name=shown_name(value.filename), path=next(paths))))
        if "file" in words:
            raise Refused(400, "the part 'file' is text: it has no file name", self._hint)
        if not sent:
            raise Refused(400, "the form has no part 'file'", self._hint)
        return sent, words


def _not_empty(sent: Sent) -> Sent:
    if not sent.path.stat().st_size:
        raise Refused(400, f"{sent.name} is empty: 0 bytes arrived", "check the path after '@' in the curl command")
    return sent
