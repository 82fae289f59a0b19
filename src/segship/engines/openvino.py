"""OpenVINO: the default engine, on processors, Intel GPUs and NPUs.

Working precision is always set and read back. Left alone, OpenVINO computes an fp32 graph in bf16 on
processors that have it, and an fp16 graph in bf16 on processors that have bf16 but no fp16 (seen with 2026.4
under ``DNNL_MAX_CPU_ISA=AVX512_CORE_BF16``); on processors with neither it emulates both, 4 to 7 times slower
than float32. So here fp32 is float32 everywhere, and bf16 or fp16 on a device that does not compute it runs
in float32, the more accurate of the two, and `executed` says so.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import queue
import re
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from segship.engines import Availability, Device, SessionOptions, common
from segship.engines.openvino_norms import has_instance_norm, split_means
from segship.engines.processor import processor
from segship.errors import EngineError, EngineMissing, PrecisionMissing
from segship.manifest import Executed

NAME = "openvino"
INSTALL = "pip install openvino"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int16")
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.25, "int16": 1e-2}

_log = logging.getLogger(__name__)
_HINT = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32", "int16": "f32"}
_CAPABILITY = {"FP32": "fp32", "FP16": "fp16", "BF16": "bf16", "INT8": "int8"}
_DEVICE_NAME = re.compile(r"(cpu|gpu|npu)(?::(\d+))?")
_DRIVER = {
    "GPU": "Intel's GPU driver with OpenCL (on Debian and Ubuntu: apt-get install intel-opencl-icd ocl-icd-libopencl1)",
    "NPU": "Intel's NPU driver",
}
_NVIDIA = "; an NVIDIA GPU is --device cuda of --engine onnxruntime or pytorch"
_KINDS = {"u8": "i8", "i8": "i8"}
_QUANTIZE = re.compile(r"(?<!de)quantize", re.IGNORECASE)
"""in the names of a graph's QuantizeLinear nodes, which a layer that took one up carries on"""


# What `import openvino` imports inside a `try` and goes on without: its model converter, a third of the time that the
# import takes, and the usage statistics that the converter loads and sends.
_CONVERTER = "openvino.tools.ovc"
_OPTIONAL = (_CONVERTER, "openvino_telemetry")


@functools.cache
def _import() -> Any:
    """The openvino package, without the parts in `_OPTIONAL`. Raises EngineMissing."""
    try:
        return importlib.import_module(NAME) if NAME in sys.modules else _import_lean()
    except ImportError as error:
        raise EngineMissing(
            f"engine 'openvino' cannot be imported ({common.last_line(error)}); type: {INSTALL}"
        ) from None


def _import_lean() -> Any:
    """Import openvino with its optional parts hidden; whoever else uses it in this process still finds them.

    An import of a name that is None in `sys.modules` fails, and openvino goes on as on a machine where that part is
    not installed. Afterwards the names are free again, and ``openvino.convert_model`` is looked up when asked for.
    """
    hidden = [name for name in _OPTIONAL if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        openvino: Any = importlib.import_module(NAME)
    except ImportError:
        openvino = None  # this version does not go on
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
    if openvino is None:
        return importlib.import_module(NAME)
    if not hasattr(openvino, "__getattr__"):
        openvino.__getattr__ = functools.partial(_late, openvino)  # PEP 562
    return openvino


def _late(openvino: Any, name: str) -> Any:
    """What `import openvino` leaves behind because of its converter, found when first asked for."""
    if name in ("tools", "convert_model"):
        with suppress(ImportError):
            openvino.convert_model = importlib.import_module(_CONVERTER).convert_model
            return getattr(openvino, name)
    raise AttributeError(f"module 'openvino' has no attribute '{name}'")


_FIRST = threading.Lock()


def _core() -> Any:
    with _FIRST:
        return _made_core()


@functools.cache
def _made_core() -> Any:
    openvino = _import()
    # What the binding knows of numpy it looks up when first asked for a dtype, behind a C++ guard and without giving
    # up the interpreter's lock: two threads that ask first at the same moment wait for each other for ever. So it is
    # asked here, by one thread.
    openvino.Tensor(np.zeros(1, np.float32)).element_type.to_dtype()
    return openvino.Core()


def _version() -> str:
    return str(_import().__version__).split("-")[0]


def availability() -> Availability:
    """Version and devices. Never raises."""
    try:
        devices = tuple(_describe(name) for name in _core().available_devices)
        found = {device.name.partition(":")[0].upper() for device in devices}
        missing = {kind.lower(): driver for kind, driver in _DRIVER.items() if kind not in found}
        return Availability(engine=NAME, version=_version(), devices=devices, install=INSTALL, missing=missing)
    except EngineMissing as error:
        return Availability(engine=NAME, version=None, install=INSTALL, note=str(error))
    except Exception as error:  # a driver that fails while it is asked must not take `segship doctor` down
        return Availability(engine=NAME, version=_version(), install=INSTALL, note=common.last_line(error))


def _native(device: str) -> tuple[str, ...]:
    """Precisions that the device itself computes in, as it tells."""
    told = {_CAPABILITY[c] for c in _core().get_property(device, "OPTIMIZATION_CAPABILITIES") if c in _CAPABILITY}
    if device == "CPU":
        # It also tells what it emulates: bf16 on AVX-512 without bf16, int8 through 16-bit integers.
        told = {precision for precision in told if processor().computes(precision) is not False}
    return tuple(precision for precision in ("fp32", "fp16", "bf16", "int8") if precision in told)


def _describe(device: str) -> Device:
    kind, _, number = device.partition(".")
    return Device(
        name=kind.lower() + (f":{number}" if number else ""),
        description=str(_core().get_property(device, "FULL_DEVICE_NAME")),
        precisions=_native(device),
    )


def _find_device(name: str) -> str:
    """'cpu', 'gpu:1', 'auto' … as OpenVINO calls it. Raises DeviceMissing."""
    wanted = name.lower()
    if wanted == "cpu":
        return "CPU"  # always there; asking for the list would load every driver
    present = list(_core().available_devices)
    if wanted == "auto":
        # OpenVINO's own AUTO starts on the processor and moves over in mid-run: two numeric results in one job
        return next((d for d in present if d.startswith("GPU")), "CPU")
    match = _DEVICE_NAME.fullmatch(wanted)
    there = [_describe(device).name for device in present]
    if match is None:
        raise common.no_device(NAME, name, there)
    kind, number = match[1].upper(), match[2]
    for candidate in (f"{kind}.{number}",) if number else (kind, f"{kind}.0"):
        if candidate in present or (number == "0" and kind in present):
            return candidate if candidate in present else kind
    remedy = ""
    if kind in _DRIVER and not any(device.partition(".")[0] == kind for device in present):
        remedy = f"install {_DRIVER[kind]}" + (_NVIDIA if kind == "GPU" else "")
    raise common.no_device(NAME, name, there, remedy)


def open_session(graph: Path, options: SessionOptions) -> OpenVinoSession:
    """Compile a graph. Raises EngineMissing, DeviceMissing, PrecisionMissing, EngineError."""
    common.check_options(NAME, PRECISIONS, options)
    common.check_graph(graph)
    return OpenVinoSession(graph, options, _find_device(options.device))


class OpenVinoSession:
    """A compiled graph with one infer request for each stream."""

    engine = NAME

    def __init__(self, graph: Path, options: SessionOptions, device: str) -> None:
        self.options = options
        self.version = _version()
        self._graph = graph
        self._target = device
        self._hint = _hint(options.precision, device)
        self._compiled = self._compile(profile=options.profile, cached=True)
        self._check_working_precision()
        self.device = self._where_it_runs()
        shapes = [_shape(port.partial_shape) for port in self._compiled.inputs]
        self._input_shape = common.input_shape(NAME, graph, shapes, options)
        # Last in, first out: the request used last has its memory in the processor's cache.
        self._requests: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(options.streams):
            self._requests.put(self._compiled.create_infer_request())
        self._open = True

    def _properties(self, *, profile: bool, cache: Path | None) -> dict[str, Any]:
        options = self.options
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "PERFORMANCE_HINT": "LATENCY" if options.streams == 1 else "THROUGHPUT",
            "EXECUTION_MODE_HINT": "ACCURACY" if options.precision == "fp32" else "PERFORMANCE",
            "PERF_COUNT": profile,
        }
        if self._target != "NPU":
            properties["NUM_STREAMS"] = options.streams
        if options.threads is not None and self._target == "CPU":
            properties["INFERENCE_NUM_THREADS"] = options.threads
        if cache is not None:
            properties["CACHE_DIR"] = str(cache)
        return properties

    def _compile(self, *, profile: bool, cached: bool) -> Any:
        cache = _cache_folder(self._graph, self.options, self.version) if cached else None
        properties = self._properties(profile=profile, cache=cache)
        steady = self.options.precision == "fp32" and has_instance_norm(self._graph)
        if cache is not None and self.options.static_shape is None and not steady:
            # Given the path, OpenVINO takes the compiled model without reading the graph at all.
            return self._compile_source(str(self._graph), properties)
        try:
            model = _core().read_model(str(self._graph))
        except Exception as error:
            raise common.unreadable(NAME, self._graph, error) from None
        if self.options.static_shape is not None:
            shapes = [_shape(port.partial_shape) for port in model.inputs]
            shape = common.input_shape(NAME, self._graph, shapes, self.options)
            try:
                model.reshape(list(shape))
            except Exception as error:
                raise EngineError(
                    f"{self._graph}: cannot be compiled for the shape {common.show_shape(shape)} "
                    f"({common.last_line(error)}); choose a size that fits the network"
                ) from None
        if steady:
            split_means(model)
        return self._compile_source(model, properties)

    def _compile_source(self, source: Any, properties: dict[str, Any]) -> Any:
        try:
            return _core().compile_model(source, self._target, properties)
        except Exception as error:
            if isinstance(source, str):
                # Is it the graph, or the device that refuses it? Reading tells.
                try:
                    _core().read_model(source)
                except Exception as reading:
                    raise common.unreadable(NAME, self._graph, reading) from None
            raise EngineError(
                f"{self._graph}: openvino cannot compile it for {self._target} ({common.last_line(error)}); "
                "try `--device cpu`, or a static shape where the device needs one"
            ) from None

    def _check_working_precision(self) -> None:
        working = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if working != self._hint:
            raise PrecisionMissing(
                f"device {self._target} computes in {working} where {self._hint} was asked for; "
                f"choose --precision {'fp16' if working == 'f16' else working} or another device"
            )

    def _where_it_runs(self) -> str:
        """As the compiled graph tells, 'CPU' or 'GPU.1'. DeviceMissing where that is not what was asked for."""
        devices = list(self._compiled.get_property("EXECUTION_DEVICES"))
        same = (self._target, self._target.partition(".")[0])
        if any(device not in same and not device.startswith(f"{self._target}.") for device in devices):
            raise common.no_device(
                NAME, self.options.device, devices, f"openvino moved the graph away from {self._target}; see its driver"
            )
        return ",".join(devices)

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """One float32 array per graph output, owned by the caller. May be called from ``streams`` threads at once."""
        if not self._open:
            raise common.closed(NAME)
        x = common.check_input(NAME, x, self._input_shape)
        requests = self._requests  # `close` may put another queue in its place while somebody waits at this one
        request = requests.get()
        try:
            return _infer(request, x, self.device)
        finally:
            requests.put(request)

    def executed(self, x: np.ndarray) -> Executed:
        """Share of convolution time by number type, from per-layer times of a few runs after a warm-up run.

        A session opened without ``profile`` compiles the graph once more for this, with the same settings.
        """
        if not self._open:
            raise common.closed(NAME)
        x = common.check_input(NAME, x, self._input_shape)
        compiled = self._compiled if self.options.profile else self._compile(profile=True, cached=False)
        request = compiled.create_infer_request()
        _infer(request, x, self.device)
        runs = []
        for _ in common.profile_runs():
            _infer(request, x, self.device)
            runs.append(_convolution_times(request.profiling_info))
        measured = common.undisturbed(runs)
        rounds = _rounds_activations(compiled)
        if not measured:
            return common.executed_record(self, {self._hint: 1.0}, "settings", rounds_activations=rounds)
        return common.executed_record(self, common.convolution_share(measured), "profile", rounds_activations=rounds)

    def close(self) -> None:
        self._open = False
        self._requests = queue.LifoQueue()
        self._compiled = None


def _hint(precision: str, device: str) -> str:
    if precision in ("bf16", "fp16") and precision not in _native(device):
        _log.info("%s has no %s arithmetic; running in float32", device, precision)
        return "f32"
    return _HINT[precision]


def _shape(partial: Any) -> common.Shape | None:
    if partial.rank.is_dynamic:
        return None
    return tuple(None if dimension.is_dynamic else dimension.get_length() for dimension in partial)


def _infer(request: Any, x: np.ndarray, device: str) -> list[np.ndarray]:
    try:
        # The input is only read during the call, so it is shared; outputs live in the request, so they are copied.
        results = request.infer([x], share_inputs=True, share_outputs=False)
    except Exception as error:
        raise common.run_failed(NAME, x, error, device) from None
    return [np.asarray(array, dtype=np.float32) for array in results.values()]


def _convolution_times(profile: Any) -> common.Times:
    """(number type, seconds) of every convolution that ran; the type ends the kernel's name: 'brgconv_avx512_amx_I8'."""
    rows = []
    for layer in profile:
        if "convolution" in layer.node_type.lower() and layer.status == type(layer.status).EXECUTED:
            kind = layer.exec_type.rsplit("_", 1)[-1].lower()
            rows.append((_KINDS.get(kind, kind), layer.real_time.total_seconds()))
    return rows


def _rounds_activations(compiled: Any) -> bool:
    """Is a rounding left in the graph that runs, by itself or within a layer? The CPU drops those of 65536 levels."""
    for layer in compiled.get_runtime_model().get_ops():
        about = layer.get_rt_info()
        names = about["originalLayersNames"].value if "originalLayersNames" in about else ""
        if "FakeQuantize" in about["layerType"].value or _QUANTIZE.search(names):
            return True
    return False


def _cache_folder(graph: Path, options: SessionOptions, version: str) -> Path | None:
    """Where this very graph's compiled form may lie, or None without a usable folder.

    OpenVINO recognises a graph by path, size and time of change only, and would return another graph's compiled
    form when they agree; so the folder is named by content, and by what else the compiled form depends on.
    """
    if options.cache_dir is None:
        return None
    content = options.graph_sha256
    if content is None:
        with graph.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    depends = f"{content}|{version}|{processor().label}|{options.static_shape}"
    folder = Path(options.cache_dir) / hashlib.sha256(depends.encode()).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _log.info("compiled models are not kept: %s (%s)", folder, error.strerror)
        return None
    return folder
