"""An engine for tests whose network is any Python function, so that each test says what the network answers."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from packages import manifest_data

from segship import engines
from segship.engines import Availability, Device, SessionOptions
from segship.errors import EngineError
from segship.inference.predictor import Predictor
from segship.manifest import Executed, Manifest
from segship.package import Package, sha256_bytes, write_package

Function = Callable[[np.ndarray], list[np.ndarray]]
NAME = "stub"


def first_channel(x: np.ndarray) -> list[np.ndarray]:
    """One logit a pixel: the first prepared channel."""
    return [x[:, :1].copy()]


class Gate:
    """A network that waits until it is let go on, then does what ``function`` does."""

    def __init__(self, function: Function = first_channel) -> None:
        self.function = function
        self.open = threading.Event()
        self.calls = 0

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        self.calls += 1
        assert self.open.wait(20)
        return self.function(x)


class StubSession:
    engine = NAME
    version = "1"
    device = "CPU"

    def __init__(self, function: Function, options: SessionOptions) -> None:
        self.function = function
        self.options = options
        self.shapes: list[tuple[int, ...]] = []
        self.closed = False
        self.in_flight = 0
        self.most_in_flight = 0
        self._lock = threading.Lock()

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        if self.options.static_shape is not None:
            assert x.shape == self.options.static_shape
        with self._lock:
            self.shapes.append(x.shape)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return self.function(x)
        finally:
            with self._lock:
                self.in_flight -= 1

    def executed(self, x: np.ndarray) -> Executed:
        raise EngineError("the stub engine keeps no times")

    def close(self) -> None:
        self.closed = True


def install(
    monkeypatch: Any,
    function: Function | dict[str, Function] = first_channel,
    *,
    precisions: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8", "int16"),
    native: tuple[str, ...] = ("fp32", "int8"),
) -> list[StubSession]:
    """Make an engine called 'stub'; returns the list of the sessions that will be opened.

    ``function`` may differ by graph: a dict from the graph's content (text) to its function.
    """
    opened: list[StubSession] = []
    module = ModuleType(f"segship.engines.{NAME}")

    def open_session(graph: Path, options: SessionOptions) -> StubSession:
        chosen = function[graph.read_text()] if isinstance(function, dict) else function
        opened.append(StubSession(chosen, options))
        return opened[-1]

    device = Device(name="cpu", description="test", precisions=native)
    module.__dict__.update(
        NAME=NAME,
        INSTALL="nothing to install",
        PRECISIONS=precisions,
        TOLERANCE=dict.fromkeys(precisions, 1e-6),
        availability=lambda: Availability(engine=NAME, version="1", devices=(device,)),
        open_session=open_session,
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(engines, "BUILT_IN", (*engines.BUILT_IN, NAME))
    return opened


def stub_package(path: Path, **changes: Any) -> Package:
    """The tiny package of `packages`, changed; each graph's content is its own name, e.g. 'graphs/fp32.onnx'."""
    data = manifest_data(**changes)
    files: dict[str, bytes | Path] = {}
    for variant in data["variants"]:
        for member, name in variant["graphs"].items():
            files[name] = name.encode()
            variant["sha256"][member] = sha256_bytes(name.encode())
    return write_package(path, Manifest.model_validate(data), files, {}, folder=True)


def open_stub(path: Path, *, changes: dict[str, Any] | None = None, **options: Any) -> Predictor:
    return Predictor.open(stub_package(path, **(changes or {})), engine=NAME, **options)
