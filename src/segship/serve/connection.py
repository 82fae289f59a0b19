"""uvicorn's connection with the two things that it leaves open: an end to silent clients, and errors as JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_SECONDS = 10.0
"""a connection that neither completes a request's headers nor takes its answer's bytes for so long is closed"""


class Connection(H11Protocol):
    """Looks at itself every IDLE_SECONDS and gives up where nothing moved since the last look."""

    _look: asyncio.TimerHandle | None = None
    _last: tuple[Any, int] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look = self.loop.call_later(IDLE_SECONDS, self._give_up_if_idle)
        self._last = (None, 0)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _give_up_if_idle(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        state = (self.cycle, unsent)
        answering = self.cycle is not None and not self.cycle.response_complete
        if state == self._last and (unsent or not answering):
            self.transport.abort()
            return
        self._last = state
        self._look = self.loop.call_later(IDLE_SECONDS, self._give_up_if_idle)

    def send_400_response(self, msg: str) -> None:
        body = json.dumps({"error": "this is no HTTP request", "hint": "send HTTP/1.1 with headers below 32 KiB"})
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}x-content-type-options: nosniff\r\nconnection: close\r\n\r\n{body}".encode())
        self.transport.close()
