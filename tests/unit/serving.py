"""A server's application to call without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import cv2
import httpx
from tiny_package import cell_picture

from segship.inference.predictor import Predictor
from segship.serve.app import build_app
from segship.serve.options import ServeOptions
from segship.serve.service import Service

T = TypeVar("T")
ADDRESS = "http://127.0.0.1:8000"


def png(seed: int, height: int = 80, width: int = 100) -> bytes:
    """An encoded picture of bright discs; another one for each seed."""
    return cv2.imencode(".png", cell_picture(seed, height, width)[0])[1].tobytes()


class Server:
    """A service with its application on an event loop of its own. A context manager."""

    def __init__(self, predictor: Predictor, **options: Any) -> None:
        self.predictor = predictor
        self.service = Service(predictor, ServeOptions(**options))
        self.app = build_app(self.service)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.service.close()
        self._runner.close()

    def run(self, conversation: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        """Hold a conversation with the application."""

        async def held() -> T:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=ADDRESS, timeout=30) as client:
                return await conversation(client)

        return self._runner.run(held())

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """One request and its answer."""
        return self.run(lambda client: client.request(method, path, **request))
