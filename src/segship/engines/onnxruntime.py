"""ONNX Runtime: the same portable graphs on processors, NVIDIA, AMD, Apple, Windows and Ascend devices.

The provider that `--device` names must really be there. ONNX Runtime itself warns and runs on the processor
instead; here that is DeviceMissing.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from segship.engines import Availability, Device, SessionOptions, common
from segship.engines.processor import processor
from segship.errors import DeviceMissing, EngineError, EngineMissing, PrecisionMissing
from segship.manifest import Executed

NAME = "onnxruntime"
INSTALL = "pip install onnxruntime"
PRECISIONS = ("fp32", "fp16", "int8", "int16")
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.25, "int16": 1e-2}


@dataclass(frozen=True, kw_only=True)
class _Provider:
    name: str
    install: str
    options: dict[str, dict[str, str]]
    """precision -> options that make the provider compute in it; '' holds for all"""


def _provider(name: str, install: str, options: dict[str, dict[str, str]] | None = None) -> _Provider:
    return _Provider(name=f"{name}ExecutionProvider", install=install, options=options or {})


_GPU_WHEEL = "pip uninstall onnxruntime, then pip install onnxruntime-gpu, with NVIDIA's driver, CUDA and cuDNN"
_PROVIDERS = {
    "cpu": _provider("CPU", INSTALL),
    # TF32 keeps 10 bits of the mantissa: fast, and not float32
    "cuda": _provider("CUDA", _GPU_WHEEL, {"": {"use_tf32": "0"}}),
    "tensorrt": _provider(
        "Tensorrt",
        f"{_GPU_WHEEL} and TensorRT",
        {"fp16": {"trt_fp16_enable": "1"}, "int8": {"trt_int8_enable": "1"}},
    ),
    "migraphx": _provider("MIGraphX", "pip uninstall onnxruntime, then pip install onnxruntime-migraphx, with ROCm"),
    "directml": _provider("Dml", "pip uninstall onnxruntime, then pip install onnxruntime-directml (Windows)"),
    "coreml": _provider("CoreML", "pip install onnxruntime on macOS"),
    # left alone, CANN turns float32 into float16 wherever it can
    "cann": _provider(
        "CANN",
        "pip uninstall onnxruntime, then pip install onnxruntime-cann, with Ascend's CANN toolkit",
        {"fp32": {"precision_mode": "must_keep_origin_dtype"}, "fp16": {"precision_mode": "force_fp16"}},
    ),
}
_WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-cann", "onnxruntime-openvino")
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


def wheel_conflict() -> str:
    """What is wrong and what to type when two ONNX Runtime wheels share this environment, else ''.

    They install into the same folder, so whichever came last wins, mostly unnoticed.
    """
    found = []
    for wheel in _WHEELS:
        try:
            found.append(f"{wheel} {metadata.version(wheel)}")
        except metadata.PackageNotFoundError:
            continue
    if len(found) < 2:
        return ""
    names = " ".join(entry.split()[0] for entry in found)
    return (
        f"two ONNX Runtime wheels in one environment ({', '.join(found)}) overwrite each other: "
        f"pip uninstall {names}, then install the one you want"
    )


def availability() -> Availability:
    """Version and devices. Never raises."""
    try:
        runtime = _import()
        present = runtime.get_available_providers()
        devices = tuple(_describe(device) for device, provider in _PROVIDERS.items() if provider.name in present)
        return Availability(
            engine=NAME,
            version=str(runtime.__version__),
            devices=devices,
            install=INSTALL,
            note=wheel_conflict(),
            missing={name: p.install for name, p in _PROVIDERS.items() if p.name not in present},
        )
    except EngineMissing as error:
        return Availability(engine=NAME, version=None, install=INSTALL, note=str(error))
    except Exception as error:  # a half-installed wheel must not take `segship doctor` down
        return Availability(engine=NAME, version=None, install=INSTALL, note=common.last_line(error))


def _describe(device: str) -> Device:
    if device != "cpu":
        return Device(name=device, description=_PROVIDERS[device].name, precisions=("fp32",))
    int8 = ("int8",) if processor().computes("int8") is not False else ()
    return Device(name="cpu", description=processor().name, precisions=("fp32", *int8))


def _find_provider(runtime: Any, name: str, precision: str) -> tuple[str, _Provider, dict[str, str]]:
    """Device name, provider and its options. Raises DeviceMissing."""
    device, _, number = name.lower().partition(":")
    present = runtime.get_available_providers()
    if device == "auto":
        device = "cuda" if _PROVIDERS["cuda"].name in present else "cpu"
    if device not in _PROVIDERS or (number and (device == "cpu" or not number.isdecimal())):
        raise DeviceMissing(f"onnxruntime has no device '{name}'; it takes auto, {', '.join(_PROVIDERS)}, and cuda:1 …")
    provider = _PROVIDERS[device]
    if provider.name not in present:
        conflict = wheel_conflict()
        raise DeviceMissing(
            f"this onnxruntime cannot run on '{name}' ({provider.name} is not in it); {conflict or provider.install}"
        )
    if device == "tensorrt":
        # TensorRT has no option for it; read once, when the first session of the process is built
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    options = {**provider.options.get("", {}), **provider.options.get(precision, {})}
    return device, provider, {**options, **({"device_id": number} if number else {})}


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
        self._device, self._provider, self._provider_options = _find_provider(
            self._runtime, options.device, options.precision
        )
        self._session: Any = self._create()
        self.device = self._session.get_providers()[0]
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
        providers: list[Any] = [(self._provider.name, self._provider_options)]
        if self._device != "cpu":
            providers.append("CPUExecutionProvider")  # for the few integer nodes that compute shapes
        try:
            session = self._runtime.InferenceSession(str(self._graph), settings, providers=providers)
        except Exception as error:
            raise self._refused(error) from None
        if session.get_providers()[0] != self._provider.name:
            raise DeviceMissing(
                f"onnxruntime could not start {self._provider.name} and would run on the processor; "
                f"{self._provider.install}"
            )
        return session

    def _refused(self, error: Exception) -> EngineError:
        if type(error).__name__ in ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "NoModel"):
            return common.unreadable(NAME, self._graph, error)
        return EngineError(
            f"{self._graph}: onnxruntime cannot open it on {self._provider.name} ({common.last_line(error)}); "
            "try `--device cpu` or `--engine openvino`"
        )

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
            raise common.run_failed(NAME, x, error) from None
        return [np.asarray(array, dtype=np.float32) for array in results]

    def executed(self, x: np.ndarray) -> Executed:
        """Share of convolution time by number type, from ONNX Runtime's profile of one run after a warm-up run.

        Profiling writes a file and cannot be switched off again, so a session of its own is opened for it.
        """
        if self._session is None:
            raise common.closed(NAME)
        with tempfile.TemporaryDirectory(prefix="segship-profile-") as folder:
            session = self._create(profile_prefix=str(Path(folder) / "profile"))
            for _ in range(2):
                self._infer(session, x)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        measured = convolution_times(events)
        if not measured:
            # A provider that takes the whole graph (TensorRT, CANN) shows no layers: nothing to claim.
            return common.executed_record(self, {"unknown": 1.0}, "settings")
        rounds = any(event.get("args", {}).get("op_name") == "QuantizeLinear" for event in events)
        return common.executed_record(self, common.convolution_share(measured), "profile", rounds_activations=rounds)

    def close(self) -> None:
        self._session = None


def _shape(dimensions: Any) -> common.Shape:
    return tuple(size if isinstance(size, int) and size > 0 else None for size in dimensions)


def convolution_times(events: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """(number type, seconds) of every convolution in the last run of a profile.

    The type is that of the first input: QLinearConv takes uint8, a Conv between Quantize and Dequantize nodes
    that could not be fused takes float.
    """
    runs = [event for event in events if event.get("name") == "model_run"]
    start = runs[-1]["ts"] if runs else 0
    rows = []
    for event in events:
        arguments = event.get("args", {})
        if not event.get("name", "").endswith("_kernel_time") or event["ts"] < start:
            continue
        if "Conv" in arguments.get("op_name", "") and arguments.get("input_type_shape"):
            kind = next(iter(arguments["input_type_shape"][0]))
            rows.append((_KINDS.get(kind, kind), event["dur"] * 1e-6))
    return rows
