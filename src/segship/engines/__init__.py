"""The seam between segship and whatever runs a graph: one module per engine, the same few names in each.

An engine module provides

    NAME: str                                   'openvino'
    INSTALL: str                                what to type when it is missing
    PRECISIONS: tuple[str, ...]                 what it can be asked for; it refuses the rest
    TOLERANCE: dict[str, float]                 max |difference| from PyTorch fp32, relative to max(1, spread); spread = max - min of the logits
    availability() -> Availability              never raises, imports the runtime lazily
    open_session(graph, options) -> Session     raises EngineMissing, DeviceMissing, PrecisionMissing, EngineError

and knows nothing of images or families. Modules of this folder are found by name; engines of other
packages through the entry point group ``segship.engines`` (entry point name = engine name, value = module),
see `outside` and docs/engines.md. `common` holds what every engine checks in the same words.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from segship.errors import SegshipError, UsageError
from segship.manifest import Executed

MODULE_NAMES = ("NAME", "INSTALL", "PRECISIONS", "TOLERANCE", "availability", "open_session")
BUILT_IN = ("openvino", "onnxruntime", "pytorch", "fake")
DEFAULT_ENGINE = "openvino"


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device as `--device` takes it: 'cpu', 'gpu', 'gpu:1', 'npu', 'cuda:0' …"""

    name: str
    description: str
    precisions: tuple[str, ...]
    """precisions that this device computes in natively; others run in a wider type and say so"""


@dataclass(frozen=True, kw_only=True)
class Availability:
    engine: str
    version: str | None
    """None when the engine's library is not installed"""
    devices: tuple[Device, ...] = ()
    install: str = ""
    note: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    """devices that the engine could use but does not find here -> what to install for them"""
    origin: str = ""
    """name and version of the package that brings the engine; '' for those of segship. Filled in by segship"""


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    precision: str = "fp32"
    device: str = "cpu"
    threads: int | None = None
    """None: the engine's own choice, mostly one a physical core. OpenVINO and ONNX Runtime share them between the
    streams; PyTorch gives each stream as many"""
    streams: int = 1
    """how many `run` calls may be in flight at once; one more waits"""
    cache_dir: Path | None = None
    """where a compiled model may be kept; a folder that cannot be written is no error"""
    static_shape: tuple[int, ...] | None = None
    """compile for exactly this input shape; None keeps batch (and size, where the graph allows) dynamic"""
    profile: bool = False
    """collect per-layer times, so that `executed` rests on a profile"""
    graph_sha256: str | None = None
    """of the graph file, where the caller has just checked it; an engine that needs it then reads the file no more"""


class Session(Protocol):
    """An opened graph. `run` may be called from `options.streams` threads at once."""

    options: SessionOptions
    engine: str
    version: str
    device: str
    """what really runs, read back from the runtime, e.g. 'CPU'"""

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 (N, C, …) in, one float32 array per graph output; raises EngineError naming the shape."""
        ...

    def executed(self, x: np.ndarray) -> Executed:
        """Run x once more and report which share of convolution time ran in which number type."""
        ...

    def close(self) -> None: ...


def engine_names() -> tuple[str, ...]:
    """Built-in engines first, then those that installed packages bring."""
    from segship.engines import outside  # reads every installed package's metadata: only where it is needed

    return (*BUILT_IN, *outside.names())


def get_engine(name: str) -> ModuleType:
    """The engine's module. Raises UsageError for a name that nothing provides, EngineError for a broken package."""
    if name in BUILT_IN:
        return importlib.import_module(f"segship.engines.{name}")
    from segship.engines import outside

    module = outside.load(name)
    if module is None:
        raise UsageError(f"no engine is called '{name}'; there are: {', '.join(engine_names())}")
    return module


def open_session(engine: str, graph: Path, options: SessionOptions) -> Session:
    """Open an ONNX graph on an engine. The engine refuses what it cannot do; nothing is replaced silently."""
    module = get_engine(engine)
    if engine not in BUILT_IN:
        from segship.engines import outside

        return outside.open_session(engine, module, graph, options)
    session: Session = module.open_session(graph, options)
    return session


def availabilities(names: Sequence[str] | None = None) -> list[Availability]:
    """What each engine says of itself. Never raises for an engine that is there but broken."""
    return [_availability(name) for name in (names or engine_names())]


def _availability(name: str) -> Availability:
    if name in BUILT_IN:
        return _told(name)
    from segship.engines import outside

    return replace(_told(name), origin=outside.origin(name))


def _told(name: str) -> Availability:
    try:
        availability = get_engine(name).availability()
        if not isinstance(availability, Availability):
            raise TypeError(f"availability() returned {type(availability).__name__}, not segship's Availability")
        return availability
    except UsageError:
        raise
    except Exception as error:
        note = str(error) if isinstance(error, SegshipError) else f"{type(error).__name__}: {error}"
        return Availability(engine=name, version=None, note=note)
