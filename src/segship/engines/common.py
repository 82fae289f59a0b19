"""What every engine checks in the same words: options, graph file, input array; and the record of what executed.

Engines of other packages use it too: its names stay.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segship.engines import Availability, Device, Session, SessionOptions
from segship.engines.processor import processor
from segship.errors import DeviceMissing, EngineError, EngineMissing, PrecisionMissing, UsageError, last_line
from segship.manifest import Executed

Shape = tuple[int | None, ...]
"""None stands for an axis that the graph leaves open."""
Times = list[tuple[str, float]]
"""(number type of the arithmetic, seconds) of each convolution that ran, in the order they ran."""

_DEVICE_OF = {
    "cuda": ("onnxruntime", "pytorch"),
    **dict.fromkeys(("tensorrt", "cann", "migraphx", "directml", "coreml"), ("onnxruntime",)),
    **dict.fromkeys(("gpu", "npu"), ("openvino",)),
}
_PROFILE_RUNS, _PROFILE_SECONDS = 5, 0.5
_NO_MEMORY = re.compile(
    r"out of memory|OutOfMemory|failed to allocate|bad_alloc|CL_OUT_OF_|CL_MEM_OBJECT_ALLOCATION_FAILURE", re.IGNORECASE
)


def needs(engine: str, install: str, *libraries: str) -> list[Any]:
    """An engine's libraries, imported when they are needed and not before. Raises EngineMissing."""
    try:
        return [importlib.import_module(name) for name in libraries]
    except ImportError as error:
        raise EngineMissing(f"engine '{engine}' is not installed ({last_line(error)}); type: {install}") from None


def available(engine: str, install: str, look: Callable[[], tuple[str, Iterable[Device]]]) -> Availability:
    """What ``look`` finds: version and devices. Whatever it raises becomes the note: a driver that fails while it is
    asked must not take `segship doctor` down.
    """
    try:
        version, devices = look()
        return Availability(engine=engine, version=version, devices=tuple(devices), install=install)
    except EngineMissing as error:
        return Availability(engine=engine, version=None, install=install, note=str(error))
    except Exception as error:
        return Availability(engine=engine, version=None, install=install, note=last_line(error))


def check_options(engine: str, precisions: Sequence[str], options: SessionOptions) -> None:
    """Refuse what an engine cannot be asked. Raises PrecisionMissing or UsageError."""
    if options.precision not in precisions:
        raise PrecisionMissing(
            f"engine '{engine}' has no precision '{options.precision}'; it has {', '.join(precisions)}, "
            "or choose another engine with --engine"
        )
    if options.streams < 1:
        raise UsageError(f"streams must be 1 or more, got {options.streams}")
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"threads must be 1 or more, got {options.threads}; leave it out for the engine's own choice")


def no_device(engine: str, asked: str, there: Iterable[str], remedy: str = "") -> DeviceMissing:
    """The refusal of a device in one line: what was asked for, what is there, what to install or to choose instead."""
    present = list(there)
    remedy = remedy or _another_engine(engine, asked.lower().partition(":")[0])
    remedy = remedy or (f"choose --device {present[0].lower()}" if present else "see `segship doctor`")
    return DeviceMissing(f"{engine} has no device '{asked}' here, only {', '.join(present) or 'none at all'}; {remedy}")


def _another_engine(engine: str, kind: str) -> str:
    """Which other engine has a device of this kind, in words; '' where none is known."""
    if kind in _DEVICE_OF:
        return "" if engine in _DEVICE_OF[kind] else f"'{kind}' is a device of --engine {' or '.join(_DEVICE_OF[kind])}"
    if kind == "cpu":
        return ""
    from segship.engines import outside

    others = [name for name in outside.names() if name != engine]
    return f"'{kind}' may be a device of --engine {' or '.join(others)}" if others else ""


def check_graph(graph: Path) -> None:
    """Raise EngineError when there is no graph file to open."""
    try:
        size = graph.stat().st_size
    except OSError as error:
        raise EngineError(
            f"{graph}: no graph there ({error.strerror}); check the package with `segship verify`"
        ) from None
    if size == 0:
        raise EngineError(f"{graph}: the graph is empty; copy the package again, or check it with `segship verify`")


def unreadable(engine: str, graph: Path, error: Exception) -> EngineError:
    return EngineError(
        f"{graph}: {engine} cannot read it as an ONNX graph ({last_line(error)}); it holds what this engine does "
        "not know, or is damaged: choose another --engine, check the package with `segship verify`, or export it again"
    )


def input_shape(engine: str, graph: Path, shapes: Sequence[Shape | None], options: SessionOptions) -> Shape:
    """The shape that `run` must be given: that of the graph's only input, narrowed by ``static_shape``."""
    if len(shapes) != 1:
        raise EngineError(f"{graph}: segship runs graphs of one input, this one has {len(shapes)}")
    shape = shapes[0]
    static = options.static_shape
    if static is None:
        if shape is None:
            raise EngineError(f"{graph}: {engine} needs to know how many axes the input has; export it with them")
        return shape
    if shape is not None and not _fits(static, shape):
        raise EngineError(
            f"{graph}: cannot be compiled for the shape {show_shape(static)}, its input is {show_shape(shape)}"
        )
    return static


def _fits(actual: Sequence[int], expected: Shape) -> bool:
    return len(actual) == len(expected) and all(e is None or a == e for a, e in zip(actual, expected, strict=True))


def show_shape(shape: Sequence[int | None]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


def check_input(engine: str, x: np.ndarray, expected: Shape) -> np.ndarray:
    """x itself, made contiguous. Raises EngineError naming what was expected and what was given."""
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        given = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise EngineError(f"{engine}: expected a float32 array of shape {show_shape(expected)}, got {given}")
    if not _fits(x.shape, expected) or 0 in x.shape:
        raise EngineError(
            f"{engine}: expected input of shape {show_shape(expected)}, got {show_shape(x.shape)}; "
            "resize or pad the input, or export for this size"
        )
    return np.ascontiguousarray(x)


def run_failed(engine: str, x: np.ndarray, error: Exception, device: str = "cpu") -> EngineError:
    where = "" if device.lower() == "cpu" else f" on {device}"
    if no_memory(error):
        return EngineError(
            f"{engine}: no memory left{where} for an input of shape {show_shape(x.shape)} ({last_line(error)}); "
            "run smaller batches or sizes, fewer streams, or another device"
        )
    other = ", or try `--device cpu`" if where else ""
    return EngineError(
        f"{engine}: failed{where} on an input of shape {show_shape(x.shape)} ({last_line(error)}); if other sizes work, "
        f"this one does not fit the network: resize or pad it{other}"
    )


def no_memory(error: Exception) -> bool:
    """Did a library fail because its device's memory, or the machine's, is full?"""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(f"{type(error).__name__}: {error}"))


def closed(engine: str) -> EngineError:
    return EngineError(f"{engine}: the session is closed; open it again")


def profile_runs() -> Iterator[None]:
    """As many turns as a profile needs to tell a network's own time from another program's: one, or what half a
    second holds of five."""
    began = time.monotonic()
    for turn in range(_PROFILE_RUNS):
        if turn and time.monotonic() - began > _PROFILE_SECONDS:
            return
        yield


def undisturbed(runs: Sequence[Times]) -> Times:
    """The convolutions of several runs of one graph -> each with the shortest time that it took.

    One run will not do: a convolution that the system interrupts may take longer than all others together. Where an
    engine runs other layers each time, the shortest run stands for all.
    """
    if len({tuple(kind for kind, _ in run) for run in runs}) > 1:
        return min(runs, key=lambda run: sum(seconds for _, seconds in run))
    return [(layer[0][0], min(seconds for _, seconds in layer)) for layer in zip(*runs, strict=True)]


def convolution_share(measured: Iterable[tuple[str, float]]) -> dict[str, float]:
    """(number type, seconds) of each convolution -> share of the time by type, largest first, adding up to 1.

    Where the clock is too coarse to see any of them, each convolution counts the same.
    """
    rows = list(measured)
    if not any(seconds > 0 for _, seconds in rows):
        rows = [(kind, 1.0) for kind, _ in rows]
    total = sum(seconds for _, seconds in rows)
    sums: dict[str, float] = {}
    for kind, seconds in rows:
        sums[kind] = sums.get(kind, 0.0) + seconds / total
    return {kind: round(share, 6) for kind, share in sorted(sums.items(), key=lambda item: -item[1])}


def executed_record(
    session: Session,
    share: Mapping[str, float],
    evidence: Literal["profile", "settings"],
    *,
    rounds_activations: bool = False,
    elsewhere: str | None = None,
) -> Executed:
    """``rounds_activations``: of int16, whether the engine's own graph still rounds what flows between layers.

    The weights of an int16 graph are whole numbers of 16 bits in its file, so every engine has them rounded.
    ``elsewhere``: which convolutions did not run on the session's device, in words; None where all did.
    """
    rounding: Literal["activations and weights", "weights"] | None = None
    if session.options.precision == "int16":
        rounding = "activations and weights" if rounds_activations else "weights"
    return Executed(
        engine=session.engine,
        version=session.version,
        device=session.device,
        processor=processor().label,
        convolution_share=dict(share),
        evidence=evidence,
        rounding=rounding,
        elsewhere=elsewhere,
    )
