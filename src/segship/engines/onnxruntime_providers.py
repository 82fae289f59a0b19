"""ONNX Runtime's execution providers: how `--device` calls them, and whether they really start on this machine.

A wheel lists every provider that it was built with, whatever the machine has. Where a driver or a library is missing,
ONNX Runtime warns and computes on the processor. So a provider is there when a session of one node starts on it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segship.engines import common
from segship.engines.onnxruntime_wheels import wheel_conflict
from segship.errors import DeviceMissing

NAME = "onnxruntime"
CPU = "CPUExecutionProvider"
NODE = (
    b'\x08\x08:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
"""an ONNX graph of one Relu on one float"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Provider:
    device: str
    """how `--device` calls it"""
    name: str
    install: str
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """precision -> options that make the provider compute in it; '' holds for all that are not named"""
    computes: tuple[str, ...] = ("fp32",)
    """precisions that the provider can compute in; others run in float32"""
    then: tuple[str, ...] = ()
    """devices whose providers take, on the same hardware, what this one leaves"""
    libraries: bool = False
    """needs CUDA's libraries, which ONNX Runtime can load from NVIDIA's own wheels"""


_GPU_WHEEL = (
    "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'; it needs an NVIDIA GPU and its driver"
)
_KEPT = {"precision_mode": "must_keep_origin_dtype"}
_LIST = (
    Provider(device="cpu", name=CPU, install="pip install onnxruntime"),
    # TF32 keeps 10 bits of the mantissa: fast, and not float32
    Provider(
        device="cuda",
        name="CUDAExecutionProvider",
        install=_GPU_WHEEL,
        options={"": {"use_tf32": "0"}},
        libraries=True,
    ),
    Provider(
        device="tensorrt",
        name="TensorrtExecutionProvider",
        install=f"{_GPU_WHEEL}, and TensorRT's libraries (libnvinfer) on the library path",
        options={"fp16": {"trt_fp16_enable": "1"}, "int8": {"trt_int8_enable": "1"}},
        computes=("fp32", "fp16", "int8"),
        then=("cuda",),
        libraries=True,
    ),
    # left alone, CANN turns float32 into float16 wherever it can
    Provider(
        device="cann",
        name="CANNExecutionProvider",
        install="pip uninstall onnxruntime, then pip install onnxruntime-cann; it needs an Ascend device, its driver "
        "and the CANN toolkit of that wheel's version (source its set_env.sh)",
        options={"": _KEPT, "fp16": {"precision_mode": "force_fp16"}},
        computes=("fp32", "fp16"),
    ),
    Provider(
        device="migraphx",
        name="MIGraphXExecutionProvider",
        install="pip uninstall onnxruntime, then pip install onnxruntime-migraphx; it needs an AMD GPU with ROCm",
    ),
    Provider(
        device="directml",
        name="DmlExecutionProvider",
        install="pip uninstall onnxruntime, then pip install onnxruntime-directml (Windows)",
    ),
    Provider(device="coreml", name="CoreMLExecutionProvider", install="pip install onnxruntime on macOS"),
)
PROVIDERS = {provider.device: provider for provider in _LIST}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    provider: Provider
    options: dict[str, str]

    @property
    def label(self) -> str:
        """What a record calls it: the provider, with the number of the device where that is not the first."""
        number = self.options.get("device_id", "0")
        return self.provider.name if number == "0" else f"{self.provider.name}:{number}"


def present(runtime: Any) -> list[Provider]:
    """Those that this ONNX Runtime was built with; whether they start, `refusal` tells."""
    built = runtime.get_available_providers()
    return [provider for provider in _LIST if provider.name in built]


def choose(runtime: Any, asked: str, precision: str) -> Chosen:
    """The provider that `--device` names, and its options. Raises DeviceMissing."""
    device, _, number = asked.lower().partition(":")
    built = present(runtime)
    if device == "auto":
        cuda = PROVIDERS["cuda"]
        device = "cuda" if cuda in built and not refusal(runtime, cuda) else "cpu"
    there = [provider.device for provider in built]
    if device not in PROVIDERS or (number and (device == "cpu" or not number.isdecimal())):
        raise common.no_device(NAME, asked, there)
    provider = PROVIDERS[device]
    if provider not in built:
        remedy = wheel_conflict() or provider.install
        raise common.no_device(NAME, asked, there, f"{provider.name} is not in this ONNX Runtime: {remedy}")
    if device == "tensorrt":
        # TensorRT has no option for it; read once, when the first session of the process is built
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    options = dict(provider.options.get(precision, provider.options.get("", {})))
    return Chosen(provider=provider, options={**options, **({"device_id": number} if number else {})})


def in_order(runtime: Any, chosen: Chosen) -> list[Any]:
    """What a session is given: the provider, those that take what it leaves on its device, the processor."""
    provider, order = chosen.provider, [(chosen.provider.name, chosen.options)]
    built = present(runtime)
    for device in provider.then:
        if PROVIDERS[device] in built:
            number = {k: v for k, v in chosen.options.items() if k == "device_id"}
            order.append((PROVIDERS[device].name, {**PROVIDERS[device].options.get("", {}), **number}))
    if provider.name == CPU:
        return order
    return [*order, CPU]  # for the few integer nodes that compute shapes


def load_libraries(runtime: Any, provider: Provider) -> None:
    """CUDA's and cuDNN's libraries out of NVIDIA's own wheels, where those are installed.

    ONNX Runtime finds them by itself only on the system's library path. What it prints of libraries that it did not
    find goes to the log: standard output is for results.
    """
    load = getattr(runtime, "preload_dlls", None)
    if not provider.libraries or load is None:
        return
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            load()
    except Exception as error:  # the session itself says what is missing
        told.write(common.last_line(error))
    if told.getvalue().strip():
        _log.info("loading CUDA's libraries: %s", " ".join(told.getvalue().split()))


def refusal(runtime: Any, provider: Provider, options: Mapping[str, str] | None = None) -> str:
    """Why a session of one node does not start on this provider; '' when it does."""
    load_libraries(runtime, provider)
    settled = tuple(sorted((options if options is not None else provider.options.get("", {})).items()))
    return _refusal(runtime.InferenceSession, runtime.SessionOptions, provider.name, settled)


@functools.cache
def _refusal(open_session: Any, make_settings: Any, name: str, options: tuple[tuple[str, str], ...]) -> str:
    settings = make_settings()
    settings.log_severity_level = 4
    order = [(name, dict(options))] + ([] if name == CPU else [CPU])
    try:
        session = open_session(NODE, settings, providers=order, enable_fallback=0)
    except Exception as error:
        return common.last_line(error)
    return "" if session.get_providers()[0] == name else "a library or a driver is missing, or there is no device"


def not_started(chosen: Chosen, why: str) -> DeviceMissing:
    """ONNX Runtime has the provider, and would run on the processor all the same."""
    asked = chosen.provider.device + (f":{chosen.options['device_id']}" if "device_id" in chosen.options else "")
    return DeviceMissing(
        f"onnxruntime could not start {chosen.provider.name} for '{asked}' ({why}) and would run on the processor; "
        f"{wheel_conflict() or chosen.provider.install}"
    )


# ----------------------------------------------------------------------------------- what went where


def placed(session: Any) -> Counter[str] | None:
    """Convolutions of the graph by provider, those within parts that a provider compiled too.

    None where this ONNX Runtime does not tell (before 1.24) or was not asked to keep it.
    """
    try:
        parts = session.get_provider_graph_assignment_info()
        return Counter(part.ep_name for part in parts for node in part.get_nodes() if "Conv" in node.op_type)
    except Exception:  # not recorded, or a version that has no such function
        return None


def elsewhere(counts: Mapping[str, int], provider: str) -> str | None:
    """In words, which convolutions another provider has than the one that was asked for."""
    others = {name: count for name, count in counts.items() if name != provider and count}
    if not others:
        return None
    total = sum(counts.values())
    return f"{sum(others.values())} of {total} convolutions on {' and '.join(sorted(others))}"
