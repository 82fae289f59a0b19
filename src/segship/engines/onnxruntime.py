"""ONNX Runtime: the same portable graphs on processors, NVIDIA, AMD, Apple, Windows and Ascend devices.

The provider that `--device` names must really run the network. ONNX Runtime itself warns and runs on the processor
instead, when a session is opened, when a run fails, or layer by layer; here the first two are DeviceMissing, and the
record of what executed tells of the third (a network of which the provider takes no convolution at all is refused).
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from segship.engines import Availability, Device, SessionOptions, common
from segship.engines import onnxruntime_providers as providers
from segship.engines.onnxruntime_wheels import wheel_conflict
from segship.engines.processor import processor
from segship.errors import EngineError, EngineMissing, PrecisionMissing
from segship.manifest import Executed

NAME = "onnxruntime"
INSTALL = "pip install onnxruntime"
PRECISIONS = ("fp32", "fp16", "int8", "int16")
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.25, "int16": 1e-2}

_log = logging.getLogger(__name__)
_KINDS = {"float": "f32", "float16": "f16", "bfloat16": "bf16", "uint8": "i8", "int8": "i8", "double": "f64"}


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineMissing(
            f"engine 'onnxruntime' is not installed ({common.last_line(error)}); type: {INSTALL}"
        ) from None
    if not hasattr(onnxruntime, "InferenceSession"):
        raise EngineMissing(
            f"the onnxruntime package is broken (no InferenceSession in it); {wheel_conflict() or INSTALL}"
        )
    return onnxruntime


def availability() -> Availability:
    """Version and devices. Never raises. A provider of another device is tried: a session of one node."""
    try:
        runtime = _import()
        built = providers.present(runtime)
        refusals = {p.device: providers.refusal(runtime, p) for p in built if p.name != providers.CPU}
        missing = {p.device: p.install for p in providers.PROVIDERS.values() if p not in built}
        missing |= {
            device: f"{providers.PROVIDERS[device].name} is there and does not start ({why}); "
            f"{providers.PROVIDERS[device].install}"
            for device, why in refusals.items()
            if why
        }
        return Availability(
            engine=NAME,
            version=str(runtime.__version__),
            devices=tuple(_describe(p) for p in built if not refusals.get(p.device)),
            install=INSTALL,
            note=wheel_conflict(),
            missing=missing,
        )
    except EngineMissing as error:
        return Availability(engine=NAME, version=None, install=INSTALL, note=str(error))
    except Exception as error:  # a half-installed wheel must not take `segship doctor` down
        return Availability(engine=NAME, version=None, install=INSTALL, note=common.last_line(error))


def _describe(provider: providers.Provider) -> Device:
    if provider.name != providers.CPU:
        return Device(name=provider.device, description=provider.name, precisions=provider.computes)
    int8 = ("int8",) if processor().computes("int8") is not False else ()
    return Device(name="cpu", description=processor().name, precisions=("fp32", *int8))


def open_session(graph: Path, options: SessionOptions) -> OnnxRuntimeSession:
    """Open a graph. Raises EngineMissing, DeviceMissing, PrecisionMissing, EngineError."""
    if options.precision == "bf16":
        raise PrecisionMissing(
            "onnxruntime computes a float32 graph in float32 and has no bf16 of its own; "
            "choose --engine openvino or pytorch for bf16"
        )
    common.check_options(NAME, PRECISIONS, options)
    common.check_graph(graph)
    return OnnxRuntimeSession(graph, options)


class OnnxRuntimeSession:
    """An inference session; ONNX Runtime lets several threads run it at once."""

    engine = NAME

    def __init__(self, graph: Path, options: SessionOptions) -> None:
        self._runtime = _import()
        self.options = options
        self.version = str(self._runtime.__version__)
        self._graph = graph
        self._chosen = providers.choose(self._runtime, options.device, options.precision)
        providers.load_libraries(self._runtime, self._chosen.provider)
        self._session: Any = self._create()
        self.device = self._chosen.label
        self._check_placement()
        shapes = [_shape(node.shape) for node in self._session.get_inputs()]
        self._input_shape = common.input_shape(NAME, graph, shapes, options)
        self._input_name = self._session.get_inputs()[0].name

    def _create(self, profile_prefix: str | None = None) -> Any:
        settings = self._runtime.SessionOptions()
        settings.log_severity_level = 3  # errors only: they come back as exceptions too
        settings.intra_op_num_threads = self.options.threads or 0
        if self.options.streams > 1:
            # Threads that spin while they wait take the cores that the other runs need.
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if profile_prefix is not None:
            settings.enable_profiling = True
            settings.profile_file_prefix = profile_prefix
        if not self._on_processor:
            settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        order = providers.in_order(self._runtime, self._chosen)
        try:
            # Its own fallback would print on standard output and go on with the processor.
            session = self._runtime.InferenceSession(str(self._graph), settings, providers=order, enable_fallback=0)
        except Exception as error:
            raise self._refused(error) from None
        if session.get_providers()[0] != self._chosen.provider.name:
            raise providers.not_started(self._chosen, "it warns and goes on without")
        session.disable_fallback()
        return session

    @property
    def _on_processor(self) -> bool:
        return self._chosen.provider.name == providers.CPU

    def _refused(self, error: Exception) -> EngineError:
        if type(error).__name__ in ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "NoModel"):
            return common.unreadable(NAME, self._graph, error)
        if not self._on_processor:
            why = providers.refusal(self._runtime, self._chosen.provider, self._chosen.options)
            if why:
                return providers.not_started(self._chosen, why)
        return EngineError(
            f"{self._graph}: onnxruntime cannot open it on {self._chosen.label} ({common.last_line(error)}); "
            "try `--device cpu` or `--engine openvino`"
        )

    def _check_placement(self) -> None:
        """Raise EngineError when none of the convolutions is where it was asked for; tell of some in the log."""
        counts = None if self._on_processor else providers.placed(self._session)
        if not counts:
            return
        name = self._chosen.provider.name
        told = providers.elsewhere(counts, name)
        if not counts[name]:
            raise EngineError(
                f"{self._graph}: {name} takes no part of this network, onnxruntime would run {told}; "
                "choose another precision, device or engine"
            )
        if told:
            _log.warning("%s: %s, not on %s", self._graph, told, self.device)

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """One float32 array per graph output, owned by the caller. May be called from ``streams`` threads at once."""
        return self._infer(self._session, x)

    def _infer(self, session: Any, x: np.ndarray) -> list[np.ndarray]:
        if session is None:
            raise common.closed(NAME)
        x = common.check_input(NAME, x, self._input_shape)
        try:
            results = session.run(None, {self._input_name: x})
        except Exception as error:
            raise common.run_failed(NAME, x, error, "cpu" if self._on_processor else self.device) from None
        if not self._on_processor and session.get_providers()[0] != self._chosen.provider.name:
            raise providers.not_started(self._chosen, "it failed while it ran")
        return [np.asarray(array, dtype=np.float32) for array in results]

    def executed(self, x: np.ndarray) -> Executed:
        """Share of convolution time by number type, from ONNX Runtime's profile of a few runs after a warm-up run.

        Profiling writes a file and cannot be switched off again, so a session of its own is opened for it.
        """
        if self._session is None:
            raise common.closed(NAME)
        with tempfile.TemporaryDirectory(prefix="segship-profile-") as folder:
            session = self._create(profile_prefix=str(Path(folder) / "profile"))
            self._infer(session, x)
            for _ in common.profile_runs():
                self._infer(session, x)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        counts = None if self._on_processor else providers.placed(session) or _ran(events)
        told = providers.elsewhere(counts, self._chosen.provider.name) if counts else None
        measured = convolution_times(events)
        if all(kind == "unknown" for kind, _ in measured):
            # A provider that takes the whole graph (TensorRT, CANN) shows no layers: nothing to claim.
            return common.executed_record(self, {"unknown": 1.0}, "settings", elsewhere=told)
        rounds = any(event.get("args", {}).get("op_name") == "QuantizeLinear" for event in events)
        share = common.convolution_share(measured)
        return common.executed_record(self, share, "profile", rounds_activations=rounds, elsewhere=told)

    def close(self) -> None:
        self._session = None


def _shape(dimensions: Any) -> common.Shape:
    return tuple(size if isinstance(size, int) and size > 0 else None for size in dimensions)


def convolution_times(events: list[dict[str, Any]]) -> common.Times:
    """(number type, seconds) of every convolution of a profile's runs, the first of them, a warm-up run, aside.

    The type is that of the first input: QLinearConv takes uint8, a Conv between Quantize and Dequantize nodes
    that could not be fused takes float. A part that a provider compiled as a whole (TensorRT, CANN, CoreML) does not
    show its layers; its time is of type 'unknown'.
    """
    runs = []
    for kernels in _kernels(events):
        rows = []
        for event in kernels:
            arguments = event["args"]
            if _compiled(arguments):
                rows.append(("unknown", event["dur"] * 1e-6))
            elif "Conv" in arguments.get("op_name", "") and arguments.get("input_type_shape"):
                kind = next(iter(arguments["input_type_shape"][0]))
                rows.append((_KINDS.get(kind, kind), event["dur"] * 1e-6))
        runs.append(rows)
    return common.undisturbed(runs)


def _kernels(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The layers of each run but the first; of the only one, or of all events, where no more are told apart."""
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    kernels = [event for event in events if event.get("name", "").endswith("_kernel_time") and "args" in event]
    bounds = [*(starts[1:] or starts or [0]), math.inf]
    return [[event for event in kernels if low <= event["ts"] < high] for low, high in pairwise(bounds)]


def _compiled(arguments: dict[str, Any]) -> bool:
    """Parts are named like 'TRTKernel_graph_main_1_0'; no operator of ONNX has an underscore in its name."""
    return arguments.get("provider", providers.CPU) != providers.CPU and "_" in arguments.get("op_name", "")


def _ran(events: list[dict[str, Any]]) -> Counter[str]:
    """Convolutions by provider, as far as a profile shows them."""
    shown = [event["args"] for event in _kernels(events)[-1] if "Conv" in event["args"].get("op_name", "")]
    return Counter(arguments.get("provider", "") for arguments in shown if not _compiled(arguments))
