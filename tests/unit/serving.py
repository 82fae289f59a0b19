"""A server's application to call without a network, and a package of three classes to call it on."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import cv2
import httpx
import numpy as np
from tiny_package import cell_picture, graph, tiny_package

from segship.inference.predictor import Predictor
from segship.manifest import Argmax, Decode, Label, Output
from segship.package import Package, write_package
from segship.serve.app import build_app
from segship.serve.options import ServeOptions
from segship.serve.service import Service

T = TypeVar("T")
ADDRESS = "http://127.0.0.1:8000"


def png(seed: int, height: int = 80, width: int = 100) -> bytes:
    """An encoded picture of bright discs; another one for each seed."""
    return cv2.imencode(".png", cell_picture(seed, height, width)[0])[1].tobytes()


def argmax_package(path: Path) -> Package:
    """`tiny_package` with a class a pixel: background where the one convolution is below 0, two classes above it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    tiny = tiny_package(path.with_suffix(".tiny"), int8=False)
    model = onnx.load_from_string(graph(40.0))
    more = [
        numpy_helper.from_array(np.float32([-1, 1, 2]).reshape(3, 1, 1, 1), "k"),
        numpy_helper.from_array(np.float32([0, 0, -3]), "c"),
    ]
    model.graph.initializer.extend(more)
    model.graph.node.append(helper.make_node("Conv", ["y", "k", "c"], ["z"]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3, "h", "w_"]))
    data = bytes(model.SerializeToString())
    manifest = tiny.manifest.model_copy(
        update={
            "name": "three",
            "network": tiny.manifest.network.model_copy(
                update={"outputs": (Output(name="z", channels=3, values="logits"),)}
            ),
            "decode": Decode(
                activation="softmax", decision=Argmax(), restore_what="logits", restore_method="opencv:linear"
            ),
            "labels": (*tiny.manifest.labels, Label(id=2, name="bright", color=(30, 90, 220))),
            "variants": (
                tiny.manifest.variants[0].model_copy(update={"sha256": {"model": hashlib.sha256(data).hexdigest()}}),
            ),
        }
    )
    return write_package(path, manifest, {"graphs/fp32.onnx": data}, {"source": {"file": "three"}})


class Asked:
    """A service with its application on an event loop of its own. A context manager."""

    def __init__(self, predictor: Predictor, service: Any, app: Any) -> None:
        self.predictor = predictor
        self.service = service
        self.app = app
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
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


class Server(Asked):
    def __init__(self, predictor: Predictor, **options: Any) -> None:
        service = Service(predictor, ServeOptions(**options))
        super().__init__(predictor, service, build_app(service))
