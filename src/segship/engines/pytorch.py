"""PyTorch: the package's graph on torch, for comparison and for NVIDIA devices. Needs no training code.

Threads are PyTorch's own setting for the whole process; so is TF32, which is switched off when a session opens on a
CUDA device, because it is not float32.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segship.engines import Availability, Device, SessionOptions, common
from segship.engines.processor import processor
from segship.errors import EngineError
from segship.manifest import Executed

if TYPE_CHECKING:
    from segship.engines.pytorch_ops.program import Program

NAME = "pytorch"
INSTALL = "pip install 'segship[convert]'"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int16")
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.25, "int16": 1e-2}

_CUDA = "NVIDIA's driver and a CUDA build of torch (pytorch.org tells the index for your CUDA)"
_KINDS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}


def _import() -> Any:
    return common.needs(NAME, INSTALL, "onnx", "torch")[1]  # onnx reads the graph


def availability() -> Availability:
    """Version and devices. Never raises."""
    found = common.available(NAME, INSTALL, _look)
    lacks_cuda = found.version is not None and not any(device.name != "cpu" for device in found.devices)
    return replace(found, missing={"cuda": _CUDA}) if lacks_cuda else found


def _look() -> tuple[str, list[Device]]:
    torch = _import()
    devices = [Device(name="cpu", description=processor().name, precisions=_native(torch, "cpu"))]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name = torch.cuda.get_device_name(i)
        devices.append(Device(name=f"cuda:{i}", description=name, precisions=_native(torch, "cuda")))
    return str(torch.__version__), devices


def _native(torch: Any, kind: str) -> tuple[str, ...]:
    """Precisions that a device computes in, natively. Quantised graphs are computed in float32 between roundings."""
    if kind == "cuda":
        return ("fp32", "fp16", "bf16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp32", "fp16")
    return ("fp32", "bf16") if processor().computes("bf16") else ("fp32",)


def _find_device(torch: Any, name: str) -> Any:
    """The torch device. Raises DeviceMissing."""
    kind, _, number = name.lower().partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        device = torch.device("cuda", 0)
        return device if count and not _refusal(torch, device) else torch.device("cpu")
    if kind == "cpu" and not number:
        return torch.device("cpu")
    there = ["cpu", *(f"cuda:{i}" for i in range(count))]
    if kind != "cuda" or (number and not number.isdecimal()):
        raise common.no_device(NAME, name, there)
    if not count:
        build = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'is not in it'}"
        raise common.no_device(NAME, name, there, f"this is {build}: install {_CUDA}")
    if int(number or 0) >= count:
        raise common.no_device(NAME, name, there)
    device = torch.device("cuda", int(number or 0))
    if why := _refusal(torch, device):
        raise common.no_device(
            NAME, name, ["cpu"], f"torch lists {device} and cannot start it ({why}): install {_CUDA}"
        )
    return device


def _refusal(torch: Any, device: Any) -> str:
    """Why a device that torch lists cannot add two numbers, with a driver that is too old, say; '' when it can."""
    try:
        torch.zeros(1, device=device).add(1).item()
    except Exception as error:
        return common.last_line(error)
    return ""


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
            raise common.run_failed(NAME, x, error, self.device) from None

    def executed(self, x: np.ndarray) -> Executed:
        """Share of convolution time by the type of the arithmetic, timed in a few runs after a warm-up run."""
        runs: list[common.Times] = []

        def observe(_: str, kind: Any, seconds: float) -> None:
            name = str(kind).removeprefix("torch.")
            runs[-1].append((_KINDS.get(name, name), seconds))

        self._infer(x, None)
        for _ in common.profile_runs():
            runs.append([])
            self._infer(x, observe)
        measured = common.undisturbed(runs)
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
        if common.no_memory(error):
            raise EngineError(
                f"{graph}: its weights do not fit into the memory of {device} ({common.last_line(error)}); free some, "
                "or choose another device"
            ) from None
        raise common.unreadable(NAME, graph, error) from None


def _unknown(graph: Path, error: Exception) -> EngineError:
    return EngineError(f"{graph}: engine 'pytorch' does not know {error}; choose --engine openvino or onnxruntime")
