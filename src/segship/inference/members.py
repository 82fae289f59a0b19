"""The network of a package as one function on arrays: its ensemble members on their engine, static batches filled up."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np

from segship.engines import Session, SessionOptions, open_session
from segship.errors import PackageError
from segship.inference.decode import activate
from segship.inference.views import affordable_batch, usual_size
from segship.manifest import Manifest, Variant
from segship.package import Package

SHAPES_KEPT = 8
"""opened graphs of a static variant, one a batch and size"""
LONE_OPENED = 3
"""graphs opened for one large size each, at most; beyond that a size without one runs on the graph of any size"""


class Members:
    """All members of one variant. Callable from any number of threads; at most ``options.streams`` are in the engine."""

    def __init__(self, package: Package, variant: Variant, engine: str, options: SessionOptions) -> None:
        self.package = package
        self.manifest: Manifest = package.manifest
        self.variant = variant
        self.engine = engine
        self.options = options
        self._opened: dict[tuple[int, ...] | None, list[Session]] = {}
        self._lone_shapes: list[tuple[int, ...]] = []
        self._opening = threading.Lock()
        self._running = threading.BoundedSemaphore(options.streams)

    def close(self) -> None:
        with self._opening:
            for sessions in self._opened.values():
                for session in sessions:
                    session.close()
            self._opened.clear()

    def fixed_batch(self, count: int) -> int | None:
        """Batch size of the compiled graph for ``count`` inputs: the smallest that holds them, or the largest there is.

        None where the batch is dynamic.
        """
        if self.options.static_shape is not None:
            return self.options.static_shape[0]
        if self.variant.shapes == "dynamic":
            return None
        fitting = [size for size in self.variant.batches if size >= count]
        return min(fitting) if fitting else max(self.variant.batches)

    def sessions(self, count: int, sides: tuple[int, ...] | None = None) -> list[Session]:
        """One session a member, for ``count`` inputs at once; opened on first use.

        A static variant of a network that takes several sizes is opened anew for each of them (``sides``; by default
        the one that the manifest resizes to); the last `SHAPES_KEPT` stay open.
        """
        with self._opening:
            shape = self._shape(count, sides)
            if shape not in self._opened:
                options = self.options if shape is None else replace(self.options, static_shape=shape)
                while len(self._opened) >= SHAPES_KEPT:  # not closed: another thread may still be using it
                    del self._opened[next(iter(self._opened))]
                self._opened[shape] = [self._open(member, options) for member in self.manifest.network.members]
            return self._opened[shape]

    def _shape(self, count: int, sides: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """The one input shape that the graph for ``count`` inputs is opened for; None: any shape."""
        if self.options.static_shape is not None:
            return self.options.static_shape
        size = self.fixed_batch(count)
        if size is not None:
            return (size, self.manifest.network.input_channels, *(sides or self._input_size()))
        return self._lone_shape(count, sides)

    def _lone_shape(self, count: int, sides: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """(1, C, h, w) of a picture so large that it shares no batch; None for others, and after `LONE_OPENED` of them.

        An engine that is told the one shape it will see plans its memory ahead: a street scene then takes a third to
        a half less of it. Opening a graph costs seconds, so a folder whose large pictures all differ soon runs on the
        graph of any size; of the others only the last is kept.
        """
        if self.manifest.network.size is not None or self.manifest.input.kind != "image":
            return None
        if sides is not None and count > 1:  # somebody's own batch; without sides it is what a stream would like
            return None
        sides = sides or usual_size(self.manifest)
        if sides is None or affordable_batch(2, math.prod(sides)) > 1:
            return None
        shape = (1, self.manifest.network.input_channels, *sides)
        if shape not in self._opened:
            if len(self._lone_shapes) == LONE_OPENED:
                return None
            for earlier in self._lone_shapes:
                self._opened.pop(earlier, None)
            self._lone_shapes.append(shape)
        return shape

    def _open(self, member: str, options: SessionOptions) -> Session:
        graph = self.package.graph_path(self.variant.precision, member)
        return open_session(self.engine, graph, replace(options, graph_sha256=self.variant.sha256[member]))

    def _input_size(self) -> tuple[int, ...]:
        if self.manifest.network.size is not None:
            return self.manifest.network.size
        size = usual_size(self.manifest) or self.manifest.network.check_size
        if size is None:
            raise PackageError(
                f"package '{self.manifest.name}' has static variants but no fixed input size; compile it again"
            )
        return size

    @property
    def averages_probabilities(self) -> bool:
        """True where outputs leave here after the activation: an ensemble that averages probabilities."""
        network = self.manifest.network
        return len(network.members) > 1 and network.member_average == "probabilities"

    def __call__(self, x: np.ndarray, batch: int | None = None) -> list[np.ndarray]:
        """(N, C, h, w) to all outputs (N, K, h', w'), members averaged by the manifest's rule.

        N is cut or filled up to a static batch, that for ``batch`` inputs (default N), so that the tail of a stream
        opens no graph of its own; what the filling gives is dropped. Raises EngineError, and
        PackageError where the graph's outputs are not those that the manifest names.
        """
        return self._filled(x, batch or len(x), self.sessions(batch or len(x), x.shape[2:]))

    def run_member(self, index: int, x: np.ndarray) -> list[np.ndarray]:
        """All raw outputs of one member, before any activation; N as in `__call__`."""
        return self._filled(x, len(x), self.sessions(len(x), x.shape[2:])[index : index + 1])

    def _filled(self, x: np.ndarray, batch: int, sessions: list[Session]) -> list[np.ndarray]:
        size = self.fixed_batch(batch)
        if size is None or len(x) == size:
            return self._average(sessions, x)
        parts = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            missing = size - len(part)
            filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
            parts.append([array[: len(part)] for array in self._average(sessions, filled)])
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _average(self, sessions: list[Session], x: np.ndarray) -> list[np.ndarray]:
        total: list[np.ndarray] = []
        for session in sessions:
            with self._running:
                outputs = session.run(x)
            self._check_outputs(outputs, x)
            if len(sessions) == 1:
                return outputs
            if self.averages_probabilities:
                activation = self.manifest.decode.activation
                outputs = [np.stack([activate(case, activation) for case in array]) for array in outputs]
            total = [a + b for a, b in zip(total, outputs, strict=True)] if total else outputs
        return [array / np.float32(len(sessions)) for array in total]

    def _check_outputs(self, outputs: list[np.ndarray], x: np.ndarray) -> None:
        named = self.manifest.network.outputs
        if len(outputs) != len(named):
            raise PackageError(
                f"the graph gives {len(outputs)} outputs, the manifest names {len(named)}; export the package again"
            )
        for array, about in zip(outputs, named, strict=True):
            expected = (len(x), about.channels, *(-(-side // about.stride) for side in x.shape[2:]))
            if array.shape != expected:
                raise PackageError(
                    f"the graph's output '{about.name}' has shape {array.shape} where the manifest says {expected}; "
                    "export the package again"
                )
