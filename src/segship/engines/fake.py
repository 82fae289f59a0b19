"""A runtime without a runtime: fixed answers at once, for tests of everything around a network.

Every output has the input's batch and spatial axes; each of its channels is the mean over the input's channels. How
many channels and outputs there are is read from the graph where the `onnx` package can read it, else it is one of one.

The environment variable ``SEGSHIP_FAKE`` tells it otherwise, e.g. ``channels=3,outputs=2,delay_s=0.05,fail_on=4``:
``fail_on`` raises EngineError in that call of `run` (counted from 1), ``fail_open=1`` when a session is opened.
The attributes of an open session may be changed too.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from segship import __version__
from segship.engines import Availability, Device, SessionOptions, common
from segship.errors import DeviceMissing, EngineError, UsageError
from segship.manifest import Executed

NAME = "fake"
INSTALL = "nothing: it is part of segship"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int16")
TOLERANCE = dict.fromkeys(PRECISIONS, float("inf"))
SETTINGS = {"channels": int, "outputs": int, "delay_s": float, "fail_on": int, "fail_open": int}

sessions: deque[FakeSession] = deque(maxlen=8)
"""The sessions opened last, newest at the end, for a test that does not hold its session itself."""

_KINDS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "i8", "int16": "i16"}


def availability() -> Availability:
    device = Device(name="cpu", description="no arithmetic at all", precisions=PRECISIONS)
    note = "answers with the mean of its input; for tests"
    return Availability(engine=NAME, version=__version__, devices=(device,), install=INSTALL, note=note)


def open_session(graph: Path, options: SessionOptions) -> FakeSession:
    """Raises DeviceMissing for anything but a processor, PrecisionMissing, EngineError when there is no graph."""
    common.check_options(NAME, PRECISIONS, options)
    common.check_graph(graph)
    if options.device.lower() not in ("cpu", "auto"):
        raise DeviceMissing(f"fake has no device '{options.device}'; it takes cpu")
    session = FakeSession(graph, options)
    sessions.append(session)
    return session


def _settings() -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for part in filter(None, os.environ.get("SEGSHIP_FAKE", "").split(",")):
        key, _, value = part.partition("=")
        try:
            settings[key.strip()] = SETTINGS[key.strip()](value)
        except (KeyError, ValueError):
            raise UsageError(f"SEGSHIP_FAKE: '{part}' is none of {', '.join(f'{k}=…' for k in SETTINGS)}") from None
    return settings


def _read(graph: Path) -> tuple[common.Shape, int, int]:
    """Input shape, channels and outputs of a graph; four open axes, one and one where it cannot be read."""
    try:
        import onnx

        model = onnx.load(str(graph), load_external_data=False).graph
        constants = {value.name for value in model.initializer}
        source = next(value for value in model.input if value.name not in constants)
        shape = tuple(d.dim_value or None for d in source.type.tensor_type.shape.dim)
        channels = model.output[0].type.tensor_type.shape.dim[1].dim_value or 1
        return shape, channels, len(model.output)
    except Exception:  # any graph will do for a test, a text file too
        return (), 1, 1


class FakeSession:
    """Counts its calls; `delay_s`, `fail_on` and `channels` may be set while it is open."""

    engine = NAME
    version = __version__
    device = "CPU"

    def __init__(self, graph: Path, options: SessionOptions) -> None:
        settings = _settings()
        if settings.get("fail_open"):
            raise EngineError(f"{graph}: the fake engine was told to fail; unset SEGSHIP_FAKE")
        shape, channels, outputs = _read(graph)
        self.options = options
        self.channels: int = settings.get("channels", channels)
        self.outputs: int = settings.get("outputs", outputs)
        self.delay_s: float = settings.get("delay_s", 0.0)
        self.fail_on: int | None = settings.get("fail_on")
        self.shapes: list[tuple[int, ...]] = []
        """of every input, in order of arrival"""
        self._counter = itertools.count(1)  # one step is atomic, also between threads
        self._input_shape = common.input_shape(NAME, graph, [shape], options) if shape else options.static_shape
        self._open = True

    @property
    def calls(self) -> int:
        return len(self.shapes)

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """(N, C, …) float32 in, ``outputs`` arrays (N, channels, …) out."""
        if not self._open:
            raise common.closed(NAME)
        x = common.check_input(NAME, x, self._input_shape or (None,) * max(3, getattr(x, "ndim", 3)))
        self.shapes.append(x.shape)
        call = next(self._counter)
        if self.delay_s:
            time.sleep(self.delay_s)
        if call == self.fail_on:
            raise EngineError(f"fake: told to fail in call {call}; unset SEGSHIP_FAKE")
        mean = x.mean(axis=1, keepdims=True, dtype=np.float32)
        return [np.repeat(mean, self.channels, axis=1) for _ in range(self.outputs)]

    def executed(self, x: np.ndarray) -> Executed:
        """What was asked for, on the evidence of the settings alone."""
        self.run(x)
        return common.executed_record(self, {_KINDS[self.options.precision]: 1.0}, "settings")

    def close(self) -> None:
        self._open = False
