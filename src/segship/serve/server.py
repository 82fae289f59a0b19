"""Runs the application until it is told to stop, and stops it so that nothing that was begun is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from segship.errors import UsageError
from segship.inference.predictor import Predictor
from segship.serve.app import build_app
from segship.serve.connection import Connection
from segship.serve.options import ServeOptions, VolumeServeOptions
from segship.serve.service import Service

if TYPE_CHECKING:
    from segship.serve.volume_service import VolumeService

_log = logging.getLogger(__name__)

HEADER_BYTES = 32 * 1024
KEEP_ALIVE_SECONDS = 5
MAX_CONNECTIONS = 500
"""uvicorn's own backstop; the queue answers long before"""

GARBAGE = (700, 10, 10)
"""Python's own: the command line looks for garbage less often, but a server's pictures must not wait for it"""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # ours are installed by `serve`
        yield


def serve(
    predictor: Predictor, options: ServeOptions | VolumeServeOptions, listening: Callable[[str], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was begun and return; jobs end with their current window.

    The kind of options says whether the package is served for pictures or for volumes. ``listening`` is called with the address once requests are taken. Raises UsageError for an address that is not
    free, and what opening the service raises. A second signal ends it without waiting for answers.
    """
    gc.set_threshold(*GARBAGE)
    service = _open(predictor, options)
    try:
        with bind(options.host, options.port) as sock:
            asyncio.run(_until_signal(service, sock, listening))
    finally:
        service.close()


def _open(predictor: Predictor, options: ServeOptions | VolumeServeOptions) -> Service | VolumeService:
    if isinstance(options, ServeOptions):
        return Service(predictor, options)
    from segship.serve.volume_service import VolumeService  # a server for pictures starts without it

    return VolumeService(predictor, options)


def _app_of(service: Service | VolumeService) -> ASGIApp:
    if isinstance(service, Service):
        return build_app(service)
    from segship.serve.volume_app import build_volume_app

    return build_volume_app(service)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError that says what to do."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot listen on {host}:{port} ({reason}); choose another with --host and --port") from None


def address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _until_signal(
    service: Service | VolumeService, sock: socket.socket, listening: Callable[[str], None] | None
) -> None:
    stop = asyncio.Event()
    with _signals(asyncio.get_running_loop(), stop):
        await run(service, sock, listening, stop)


async def run(
    service: Service | VolumeService, sock: socket.socket, listening: Callable[[str], None] | None, stop: asyncio.Event
) -> None:
    """Serve on a listening socket until ``stop`` is set; then new requests get 503, and those that are here are
    finished, for at most the time that one may take. Jobs of volumes are not: they end with their current window."""
    grace = service.options.grace
    server = _Server(_config(service, grace))
    running = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if listening is not None and not running.done():
        listening(address(sock))
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait((waiting, running), return_when=asyncio.FIRST_COMPLETED)
    service.jobs.stop()
    if isinstance(service, Service):
        _log.info("shutting down: %d requests are finished first", service.jobs.taken)
    else:
        _log.info("shutting down: jobs end, their files are deleted")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(service.jobs.drained(), grace)
    server.should_exit = True
    waiting.cancel()
    await running


def _config(service: Service | VolumeService, grace: float) -> uvicorn.Config:
    return uvicorn.Config(
        _app_of(service),
        http=Connection,
        ws="none",
        loop="asyncio",
        log_config=None,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(grace)),
        limit_concurrency=MAX_CONNECTIONS,
        server_header=False,
        proxy_headers=False,
    )


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT sets ``stop``; a second one does what it does without us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        restore()
        loop.call_soon_threadsafe(stop.set)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
