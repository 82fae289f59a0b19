"""What every request passes before and after its route: who may ask, what an answer's headers are, errors, counts."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segship.serve.metrics import RequestMetrics
from segship.serve.options import ListenOptions
from segship.serve.refused import Refused

_log = logging.getLogger(__name__)

MAX_HEADERS = 100
LINGER_SECONDS = 5.0
"""how long a refused request's body is still read and thrown away, so that its client sees the answer"""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": CONTENT_POLICY,
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_SAME_ORIGIN_ONLY = (b"cross-origin-resource-policy", b"same-origin")
CLIENT_GONE = 499


class Queue(Protocol):
    @property
    def stopping(self) -> bool: ...


class Guard:
    """The outermost layer of the application."""

    def __init__(
        self, app: ASGIApp, options: ListenOptions, jobs: Queue, metrics: RequestMetrics, routes: Iterable[str]
    ) -> None:
        self._app = app
        self._options = options
        self._jobs = jobs
        self._metrics = metrics
        self._routes = frozenset(route for route in routes if "{" not in route)
        self._patterns = {route: _pattern(route) for route in routes if "{" in route}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        exchange = _Exchange(scope, receive, send, self._options, self._jobs)
        try:
            _check_request(scope, self._options)
            await self._app(scope, exchange.receive, exchange.send)
        except Refused as refused:
            answer = JSONResponse(refused.body(), refused.status, refused.headers())
            await answer(scope, exchange.receive, exchange.send)
        except Exception as error:  # answered by the application's handler for it, which passes it on
            _log.error("internal error in %s: %s", scope["path"], type(error).__name__, exc_info=error)
        finally:
            route = self._route(scope["path"])
            self._metrics.answered(route, scope["method"], exchange.status, time.perf_counter() - began)

    def _route(self, path: str) -> str:
        """A route as it is counted: ids are left out, and what is no route is one."""
        if path in self._routes:
            return path
        return next((route for route, pattern in self._patterns.items() if pattern.fullmatch(path)), "other")


def _pattern(route: str) -> re.Pattern[str]:
    """Of '/v1/jobs/{job}': what fills its places."""
    return re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(route)))


def _check_request(scope: Scope, options: ListenOptions) -> None:
    if len(scope["headers"]) > MAX_HEADERS:
        raise Refused(431, f"more than {MAX_HEADERS} header lines", "send fewer")
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    host = headers.get(b"host", "")
    name = _host_name(host)
    if options.loopback and name not in (*LOOPBACK_NAMES, *map(str.lower, options.allow_hosts)):
        # A page elsewhere whose name was made to point here (DNS rebinding) shows itself by this header.
        raise Refused(
            421, f"this server does not answer to the name '{name[:80]}'",
            "use http://127.0.0.1, or start the server with --allow-host NAME",
        )  # fmt: skip
    origin = headers.get(b"origin")
    if origin and not _same_origin(origin, host) and not {"*", origin} & set(options.allow_origins):
        raise Refused(
            403, f"web pages of {origin[:80]} may not call this server",
            "start it with --allow-origin ORIGIN to allow them",
        )  # fmt: skip


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _same_origin(origin: str, host: str) -> bool:
    try:
        return "://" in origin and urlsplit(origin).netloc == host
    except ValueError:
        return False


class _Exchange:
    """One request and its answer, watched."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, options: ListenOptions, jobs: Queue) -> None:
        self.status = 500
        self._receive = receive
        self._send = send
        self._shared = bool(options.allow_origins)
        self._linger_bytes = 2 * options.max_bytes
        self._jobs = jobs
        names = {name for name, _ in scope["headers"]}
        self._unread = bool(names & {b"content-length", b"transfer-encoding"})
        self._asked = b"expect" not in names  # with `Expect: 100-continue` the body comes only when it is asked for

    async def receive(self) -> Message:
        self._asked = True
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            have = {name.lower() for name, _ in message.get("headers", [])}
            added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in have]
            if not self._shared:
                added.append(_SAME_ORIGIN_ONLY)
            if self._jobs.stopping:
                added.append((b"connection", b"close"))
            message = {**message, "headers": [*message.get("headers", []), *added]}
        elif self._unread and self._asked and not message.get("more_body", False):
            # Closing a connection with unread data resets it, and the client would never see the answer.
            await self._send({**message, "more_body": True})
            await self._throw_away_body()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _throw_away_body(self) -> None:
        left = self._linger_bytes
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while self._unread and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass
