"""PyTorch: the package's graph on torch, for comparison and for NVIDIA devices. Needs no training code.

Threads are PyTorch's own setting for the whole process; so is TF32, which is switched off when a session opens on a
CUDA device, because it is not float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segship.engines import Availability, Device, SessionOptions, common
from segship.engines.processor import processor
from segship.errors import DeviceMissing, EngineError, EngineMissing
from segship.manifest import Executed

if TYPE_CHECKING:
    from segship.engines.pytorch_ops.program import Program

NAME = "pytorch"
INSTALL = "pip install 'segship[convert]'"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int16")
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.25, "int16": 1e-2}

_CUDA = "NVIDIA's driver and a CUDA build of torch"
_KINDS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}


def _import() -> Any:
    try:
        import onnx  # noqa: F401  # reads the graph
        import torch
    except ImportError as error:
        raise EngineMissing(f"engine 'pytorch' is not installed ({common.last_line(error)}); type: {INSTALL}") from None
    return torch


def availability() -> Availability:
    """Version and devices. Never raises."""
    try:
        torch = _import()
        devices = [Device(name="cpu", description=processor().name, precisions=_native(torch, "cpu"))]
        for i in range(torch.cuda.device_count()):
            name = torch.cuda.get_device_name(i)
            devices.append(Device(name=f"cuda:{i}", description=name, precisions=_native(torch, "cuda")))
        return Availability(
            engine=NAME,
            version=str(torch.__version__),
            devices=tuple(devices),
            install=INSTALL,
            missing={} if torch.cuda.is_available() else {"cuda": _CUDA},
        )
    except EngineMissing as error:
        return Availability(engine=NAME, version=None, install=INSTALL, note=str(error))
    except Exception as error:  # a driver that fails while it is asked must not take `segship doctor` down
        return Availability(engine=NAME, version=None, install=INSTALL, note=common.last_line(error))


def _native(torch: Any, kind: str) -> tuple[str, ...]:
    """Precisions that a device computes in, natively. Quantised graphs are computed in float32 between roundings."""
    if kind == "cuda":
        return ("fp32", "fp16", "bf16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp32", "fp16")
    return ("fp32", "bf16") if processor().computes("bf16") else ("fp32",)


def _find_device(torch: Any, name: str) -> Any:
    """The torch device. Raises DeviceMissing."""
    kind, _, number = name.lower().partition(":")
    if kind == "auto":
        kind, number = ("cuda", "0") if torch.cuda.is_available() else ("cpu", "")
    if kind == "cpu" and not number:
        return torch.device("cpu")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise DeviceMissing(f"pytorch has no device '{name}'; it takes cpu, cuda, cuda:1 or auto")
    if not torch.cuda.is_available():
        raise DeviceMissing(
            f"pytorch finds no device '{name}': this build is {torch.__version__}, CUDA "
            f"{torch.version.cuda or 'is not in it'}; install {_CUDA}"
        )
    if int(number or 0) >= torch.cuda.device_count():
        raise DeviceMissing(f"pytorch finds no device '{name}', only {torch.cuda.device_count()} CUDA device(s)")
    return torch.device("cuda", int(number or 0))


def open_session(graph: Path, options: SessionOptions) -> PyTorchSession:
    """Build the graph's torch calls. Raises EngineMissing, DeviceMissing, PrecisionMissing, EngineError."""
    common.check_options(NAME, PRECISIONS, options)
    common.check_graph(graph)
    return PyTorchSession(graph, options)


class PyTorchSession:
    """A graph as torch calls, without gradients, images in channels-last order."""

    engine = NAME

    def __init__(self, graph: Path, options: SessionOptions) -> None:
        torch = _import()
        self.options = options
        self._graph = graph
        self.version = str(torch.__version__)
        device = _find_device(torch, options.device)
        self.device = str(device)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        self._program: Program | None = _build(torch, graph, device, options.precision)
        self._input_shape = common.input_shape(NAME, graph, self._program.input_shapes, options)

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """One float32 array per graph output, owned by the caller. May be called from ``streams`` threads at once."""
        return self._infer(x, None)

    def _infer(self, x: np.ndarray, observe: Any) -> list[np.ndarray]:
        import torch

        from segship.engines.pytorch_ops.common import Unsupported

        if self._program is None:
            raise common.closed(NAME)
        x = common.check_input(NAME, x, self._input_shape)
        # torch warns of arrays that it may not write to, and writes to none here
        source = x if x.flags.writeable else x.copy()
        try:
            results = self._program.run(torch.from_numpy(source), observe)
            # copies: a graph may hand a constant through, or its own input
            return [np.array(result.float().cpu().numpy(), order="C") for result in results]
        except Unsupported as error:
            raise _unknown(self._graph, error) from None
        except Exception as error:
            raise common.run_failed(NAME, x, error) from None

    def executed(self, x: np.ndarray) -> Executed:
        """Share of convolution time by the type of the arithmetic, timed in one run after a warm-up run."""
        measured: list[tuple[str, float]] = []

        def observe(_: str, kind: Any, seconds: float) -> None:
            name = str(kind).removeprefix("torch.")
            measured.append((_KINDS.get(name, name), seconds))

        self._infer(x, None)
        self._infer(x, observe)
        if not measured:
            return common.executed_record(self, {"unknown": 1.0}, "settings")  # no convolution in it
        assert self._program is not None  # it has just run
        rounds = "QuantizeLinear" in self._program.operators
        return common.executed_record(self, common.convolution_share(measured), "profile", rounds_activations=rounds)

    def close(self) -> None:
        self._program = None


def _build(torch: Any, graph: Path, device: Any, precision: str) -> Program:
    import onnx

    from segship.engines.pytorch_ops.common import Unsupported
    from segship.engines.pytorch_ops.program import Program

    low = {"bf16": torch.bfloat16, "fp16": torch.float16}
    # where the device has no such arithmetic the weights stay rounded to it and float32 computes
    kind = low[precision] if precision in low and precision in _native(torch, device.type) else torch.float32
    try:
        model = onnx.load(str(graph))
    except Exception as error:
        raise common.unreadable(NAME, graph, error) from None
    if not model.graph.node or not model.graph.output:
        raise common.unreadable(NAME, graph, ValueError("it holds no nodes"))
    try:
        return Program(model, device, kind)
    except Unsupported as error:
        raise _unknown(graph, error) from None
    except Exception as error:
        raise common.unreadable(NAME, graph, error) from None


def _unknown(graph: Path, error: Exception) -> EngineError:
    return EngineError(f"{graph}: engine 'pytorch' does not know {error}; choose --engine openvino or onnxruntime")
