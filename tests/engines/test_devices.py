"""`--device` where the device is absent, and where it seems to be there: refused, or told as it is.

No GPU is needed: ONNX Runtime, OpenVINO and torch are made to believe in devices that compute on the processor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from engine_graphs import Graphs, images

from segship.engines import SessionOptions, common, open_session
from segship.engines import onnxruntime as ort_engine
from segship.engines import onnxruntime_providers as providers
from segship.engines import openvino as ov_engine
from segship.engines import pytorch as torch_engine
from segship.errors import DeviceMissing, EngineError, PrecisionMissing
from segship.inference import precision as chosen
from segship.manifest import Executed

onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

REAL = onnxruntime.InferenceSession
CUDA, TENSORRT, CANN, CPU = (f"{name}ExecutionProvider" for name in ("CUDA", "Tensorrt", "CANN", "CPU"))


class Pretended:
    """ONNX Runtime as it answers with a provider that this machine lacks. Computes on the processor."""

    built: tuple[str, ...] = (TENSORRT, CUDA, CANN, CPU)
    starts: tuple[str, ...] = (TENSORRT, CUDA, CANN, CPU)
    raises: tuple[str, ...] = ()
    """in words, what each session of these providers raises"""
    only_the_graph = False
    """whether sessions of one node start all the same"""
    fails_in_run: str = ""
    falls_back_in_run = False
    left: dict[str, int] = {}  # noqa: RUF012
    """provider -> how many convolutions it is given instead of the first one"""
    compiled = False
    tells_placement = True
    sessions: list[Pretended] = []  # noqa: RUF012

    def __init__(self, graph: Any, settings: Any, *, providers: list[Any], **keywords: Any) -> None:
        self.asked, self.settings, self.keywords = providers, settings, keywords
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
        assert keywords.get("enable_fallback") == 0, "its own fallback prints and goes on with the processor"
        probe = isinstance(graph, bytes)
        if self.raises and not (probe and self.only_the_graph):
            raise RuntimeError("\n".join(self.raises))
        self._names = [name for name in names if name in self.starts]
        self.graph = graph
        self._fallback = True
        self._real = REAL(graph, settings, providers=[CPU])
        if not probe:
            self.sessions.append(self)

    def get_providers(self) -> list[str]:
        return self._names

    def disable_fallback(self) -> None:
        self._fallback = False

    def get_inputs(self) -> Any:
        return self._real.get_inputs()

    def run(self, names: Any, feed: Any) -> Any:
        if self.fails_in_run:
            raise RuntimeError(self.fails_in_run)
        if self.falls_back_in_run:
            self._names = [CPU]
        return self._real.run(names, feed)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        if not self.tells_placement:
            raise RuntimeError("not recorded")
        import onnx

        nodes = [SimpleNamespace(op_type=node.op_type) for node in onnx.load(self.graph).graph.node]
        convolutions = [node for node in nodes if "Conv" in node.op_type]
        parts = [(self._names[0], [node for node in nodes if "Conv" not in node.op_type])]
        for name, count in self.left.items():
            parts.append((name, convolutions[:count]))
            del convolutions[:count]
        parts.append((self._names[0], convolutions))
        return [SimpleNamespace(ep_name=name, get_nodes=lambda nodes=nodes: nodes) for name, nodes in parts]

    def end_profiling(self) -> str:
        path = Path(self._real.end_profiling())
        events = json.loads(path.read_text())
        left = sum(self.left.values())
        for event in events:
            if "Conv" in event.get("args", {}).get("op_name", "") and event["name"].endswith("_kernel_time"):
                event["args"]["provider"] = self._names[0]
                if self.compiled:
                    event["args"]["op_name"] = "TRTKernel_graph_main_42_0"
        shown = [event for event in events if event.get("args", {}).get("provider") == self._names[0]]
        runs = sum(event["name"] == "model_run" for event in events)
        for run in range(runs):  # the first convolutions of each stay with the processor
            for event in shown[run * len(shown) // runs :][:left]:
                event["args"].update(provider=CPU, op_name="Conv")
        path.write_text(json.dumps(events))
        return str(path)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., type[Pretended]]:
    def make(**answers: Any) -> type[Pretended]:
        kind = type("Told", (Pretended,), {**answers, "sessions": []})
        monkeypatch.setattr(onnxruntime, "InferenceSession", kind)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(kind.built))
        return kind

    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")  # set for the process by TensorRT; put back afterwards
    return make


def onnx_session(graph: Path, **options: Any) -> Any:
    return open_session("onnxruntime", graph, SessionOptions(**options))


# ------------------------------------------------------------------------------- ONNX Runtime: refused


def test_the_node_that_providers_are_tried_with():
    from onnx import TensorProto, checker, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    assert model.SerializeToString() == providers.NODE
    assert providers.refusal(onnxruntime, providers.PROVIDERS["cpu"]) == ""


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt", "cann", "migraphx"])
def test_a_provider_that_is_not_built_in_is_refused(bilinear: Graphs, device: str):
    provider = providers.PROVIDERS[device.partition(":")[0]]
    if provider.name in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    with pytest.raises(DeviceMissing) as caught:
        onnx_session(bilinear.files["fp32"], device=device)
    told = str(caught.value)
    assert told.startswith(f"onnxruntime has no device '{device}' here, only cpu; {provider.name} is not in this")
    assert provider.install in told


@pytest.mark.parametrize("device", ["gpu", "npu"])
def test_a_device_of_another_engine_names_that_engine(bilinear: Graphs, device: str):
    with pytest.raises(DeviceMissing, match=rf"'{device}' is a device of --engine openvino"):
        onnx_session(bilinear.files["fp32"], device=device)


@pytest.mark.parametrize(("device", "name"), [("cuda:1", CUDA), ("tensorrt", TENSORRT), ("cann", CANN)])
def test_falling_back_when_opened_is_refused(pretend: Any, bilinear: Graphs, device: str, name: str):
    pretend(starts=(CPU,))
    with pytest.raises(DeviceMissing, match=rf"could not start {name} for '{device}' .* would run on the processor"):
        onnx_session(bilinear.files["fp32"], device=device)


def test_a_device_that_raises_is_refused_with_its_words(
    pretend: Any, bilinear: Graphs, capsys: pytest.CaptureFixture[str]
):
    pretend(raises=("trace of calls", "CUDA failure 101: invalid device ordinal"))
    with pytest.raises(DeviceMissing, match=r"'cuda:7' \(CUDA failure 101: invalid device ordinal\)") as caught:
        onnx_session(bilinear.files["fp32"], device="cuda:7")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_graph_that_the_device_refuses_is_not_the_device_s_absence(pretend: Any, bilinear: Graphs):
    pretend(raises=("this network is too strange",), only_the_graph=True)
    with pytest.raises(EngineError, match=rf"{CUDA}:1 \(this network is too strange\)") as caught:
        onnx_session(bilinear.files["fp32"], device="cuda:1")
    assert not isinstance(caught.value, DeviceMissing)


def test_falling_back_in_mid_run_is_refused(pretend: Any, bilinear: Graphs):
    kind = pretend(falls_back_in_run=True)
    session = onnx_session(bilinear.files["fp32"], device="cuda")
    assert not kind.sessions[0]._fallback
    with pytest.raises(DeviceMissing, match="failed while it ran"):
        session.run(images(1))


def test_the_real_session_has_no_fallback(bilinear: Graphs):
    assert not onnx_session(bilinear.files["fp32"])._session._enable_fallback


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer", "no memory left on CUDA"),
        ("CUDNN_STATUS_EXECUTION_FAILED", "failed on CUDAExecutionProvider .*try `--device cpu`"),
    ],
)
def test_a_run_that_fails_names_the_device(pretend: Any, bilinear: Graphs, words: str, told: str):
    pretend(fails_in_run=words)
    with pytest.raises(EngineError, match=told):
        onnx_session(bilinear.files["fp32"], device="cuda").run(images(1))


def test_a_network_of_which_the_device_takes_nothing_is_refused(pretend: Any, bilinear: Graphs):
    pretend(left={CPU: 1000})
    with pytest.raises(EngineError, match=rf"{CUDA} takes no part .* of \d+ convolutions on {CPU}"):
        onnx_session(bilinear.files["fp32"], device="cuda")


def test_tensorrt_that_leaves_all_to_cuda_is_refused(pretend: Any, bilinear: Graphs):
    pretend(left={CUDA: 1000})
    with pytest.raises(EngineError, match=f"{TENSORRT} takes no part"):
        onnx_session(bilinear.files["fp32"], device="tensorrt")


# -------------------------------------------------------------------------- ONNX Runtime: told as it is


def test_a_session_is_given_what_it_was_asked_for(pretend: Any, bilinear: Graphs):
    kind = pretend()
    session = onnx_session(bilinear.files["fp32"], device="cuda:1")
    assert kind.sessions[0].asked == [(CUDA, {"use_tf32": "0", "device_id": "1"}), CPU]
    assert session.device == f"{CUDA}:1"
    x = images(2)
    for output, expected in zip(session.run(x), bilinear.reference(x), strict=True):
        assert np.abs(output - expected).max() < 1e-4
    executed = session.executed(x)
    assert (executed.device, executed.convolution_share) == (f"{CUDA}:1", {"f32": 1.0})
    assert (executed.evidence, executed.elsewhere) == ("profile", None)


@pytest.mark.parametrize("tells", [True, False])
def test_convolutions_left_to_the_processor_are_told(
    pretend: Any, bilinear: Graphs, tells: bool, caplog: pytest.LogCaptureFixture
):
    pretend(left={CPU: 2}, tells_placement=tells)
    with caplog.at_level("WARNING"):
        session = onnx_session(bilinear.files["fp32"], device="cuda")
    assert ("2 of " in caplog.text) == tells
    executed = session.executed(images(1))
    assert executed.elsewhere is not None
    assert executed.elsewhere.startswith("2 of ")
    assert executed.elsewhere.endswith(f" convolutions on {CPU}")
    assert executed.elsewhere in executed.text
    assert Executed.model_validate_json(executed.model_dump_json()) == executed


@pytest.mark.parametrize(
    ("precision", "extra"),
    [("fp32", {}), ("fp16", {"trt_fp16_enable": "1"}), ("int8", {"trt_int8_enable": "1"}), ("int16", {})],
)
def test_tensorrt_is_followed_by_cuda(
    pretend: Any, bilinear: Graphs, precision: str, extra: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    kind = pretend(compiled=True)
    session = onnx_session(bilinear.files[precision], device="tensorrt:1", precision=precision)
    number = {"device_id": "1"}
    assert kind.sessions[0].asked == [(TENSORRT, {**extra, **number}), (CUDA, {"use_tf32": "0", **number}), CPU]
    executed = session.executed(images(1))
    assert (executed.convolution_share, executed.evidence) == ({"unknown": 1.0}, "settings")
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_what_a_compiled_part_computes_in_is_not_claimed(pretend: Any, bilinear: Graphs):
    pretend(compiled=True, left={CPU: 2})
    executed = onnx_session(bilinear.files["fp32"], device="tensorrt").executed(images(1))
    assert set(executed.convolution_share) == {"unknown", "f32"}
    assert executed.elsewhere is not None
    assert executed.elsewhere.startswith("2 of ")


@pytest.mark.parametrize(
    ("precision", "mode"),
    [
        ("fp32", "must_keep_origin_dtype"),
        ("fp16", "force_fp16"),
        ("int8", "must_keep_origin_dtype"),
        ("int16", "must_keep_origin_dtype"),
    ],
)
def test_cann_is_kept_from_rounding_to_16_bits(pretend: Any, bilinear: Graphs, precision: str, mode: str):
    kind = pretend()
    session = onnx_session(bilinear.files[precision], device="cann", precision=precision)
    assert kind.sessions[0].asked == [(CANN, {"precision_mode": mode}), CPU]
    assert session.device == CANN


def test_what_is_built_in_and_does_not_start_is_missing(pretend: Any):
    pretend(starts=(CUDA, CPU))
    found = ort_engine.availability()
    assert {device.name: device.precisions for device in found.devices if device.name != "cpu"} == {"cuda": ("fp32",)}
    assert set(found.missing) == {"tensorrt", "cann", "migraphx", "directml", "coreml"}
    assert "is there and does not start (a library or a driver is missing" in found.missing["cann"]
    assert "onnxruntime-cann" in found.missing["cann"]


@pytest.mark.parametrize(("starts", "device"), [((CUDA, CPU), CUDA), ((CPU,), CPU)])
def test_auto_takes_what_starts(pretend: Any, bilinear: Graphs, starts: tuple[str, ...], device: str):
    pretend(starts=starts)
    assert onnx_session(bilinear.files["fp32"], device="auto").device == device


def test_what_loading_libraries_prints_is_no_result(
    pretend: Any, bilinear: Graphs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pretend()
    loaded = []

    def preload() -> None:
        loaded.append(True)
        print("Failed to load libcublasLt.so.13")
        raise RuntimeError("odd folder")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    for device in ("cpu", "cann"):
        onnx_session(bilinear.files["fp32"], device=device)
    assert not loaded
    onnx_session(bilinear.files["fp32"], device="cuda")
    assert loaded
    assert capsys.readouterr().out == ""


# -------------------------------------------------------------------------------------------- OpenVINO


class Core:
    """OpenVINO with two GPUs and an NPU; what is compiled for them runs on the processor."""

    available_devices = ("CPU", "GPU.0", "GPU.1", "NPU")

    def __init__(self, real: Any, moves_to: str = "") -> None:
        self._real, self._moves_to = real, moves_to
        self.compiled: list[tuple[str, dict[str, Any]]] = []

    def get_property(self, device: str, key: str) -> Any:
        if device == "CPU":
            return self._real.get_property(device, key)
        return {"FULL_DEVICE_NAME": f"a {device}", "OPTIMIZATION_CAPABILITIES": ["FP32", "FP16", "INT8"]}[key]

    def read_model(self, path: str) -> Any:
        return self._real.read_model(path)

    def compile_model(self, source: Any, target: str, properties: dict[str, Any]) -> Any:
        self.compiled.append((target, properties))
        return Compiled(self._real.compile_model(source, "CPU", properties), self._moves_to or target)


class Compiled:
    def __init__(self, real: Any, device: str) -> None:
        self._real, self._device = real, device

    def get_property(self, key: str) -> Any:
        return [self._device] if key == "EXECUTION_DEVICES" else self._real.get_property(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Core]:
    pytest.importorskip("openvino")
    real = ov_engine._core()

    def make(**answers: Any) -> Core:
        made = Core(real, **answers)
        monkeypatch.setattr(ov_engine, "_core", lambda: made)
        return made

    return make


@pytest.mark.parametrize(
    ("device", "target"), [("gpu", "GPU.0"), ("gpu:1", "GPU.1"), ("GPU:0", "GPU.0"), ("npu", "NPU"), ("auto", "GPU.0")]
)
def test_openvino_compiles_for_the_device_it_was_asked_for(core: Any, bilinear: Graphs, device: str, target: str):
    made = core()
    session = open_session("openvino", bilinear.files["fp32"], SessionOptions(device=device))
    (compiled, properties) = made.compiled[0]
    assert (compiled, session.device) == (target, target)
    assert properties["INFERENCE_PRECISION_HINT"] == "f32"
    assert ("NUM_STREAMS" in properties) == (target != "NPU")
    assert session.executed(images(1)).device == target


def test_openvino_lists_its_devices(core: Any, bilinear: Graphs):
    core()
    found = ov_engine.availability()
    assert [device.name for device in found.devices] == ["cpu", "gpu:0", "gpu:1", "npu"]
    assert found.devices[1].precisions == ("fp32", "fp16", "int8")
    assert found.missing == {}
    with pytest.raises(DeviceMissing, match="no device 'gpu:7' here, only cpu, gpu:0, gpu:1, npu; choose"):
        open_session("openvino", bilinear.files["fp32"], SessionOptions(device="gpu:7"))


def test_openvino_that_moves_to_the_processor_is_refused(core: Any, bilinear: Graphs):
    core(moves_to="CPU")
    with pytest.raises(DeviceMissing, match=r"no device 'gpu:1' here, only CPU; openvino moved the graph away"):
        open_session("openvino", bilinear.files["fp32"], SessionOptions(device="gpu:1"))


@pytest.mark.parametrize("device", ["cuda", "tensorrt", "cann"])
def test_openvino_names_the_engine_that_has_the_device(bilinear: Graphs, device: str):
    with pytest.raises(DeviceMissing, match=rf"no device '{device}' here, only cpu.*--engine onnxruntime"):
        open_session("openvino", bilinear.files["fp32"], SessionOptions(device=device))


def test_openvino_s_gpu_is_not_nvidia_s(bilinear: Graphs):
    if "gpu" not in ov_engine.availability().missing:
        pytest.skip("this machine has an Intel GPU")
    with pytest.raises(DeviceMissing, match="an NVIDIA GPU is --device cuda of --engine onnxruntime or pytorch"):
        open_session("openvino", bilinear.files["fp32"], SessionOptions(device="gpu"))


# --------------------------------------------------------------------------------------------- PyTorch


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch lists two CUDA devices; starting one fails, as with a driver that is too old."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Card {i}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)


@pytest.mark.usefixtures("cuda")
def test_pytorch_lists_cuda_devices(bilinear: Graphs):
    found = torch_engine.availability()
    assert [device.name for device in found.devices] == ["cpu", "cuda:0", "cuda:1"]
    assert found.devices[2].precisions == ("fp32", "fp16", "bf16")
    assert found.missing == {}
    with pytest.raises(DeviceMissing, match="no device 'cuda:2' here, only cpu, cuda:0, cuda:1; choose"):
        open_session("pytorch", bilinear.files["fp32"], SessionOptions(device="cuda:2"))


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_pytorch_refuses_a_device_that_does_not_start(bilinear: Graphs, device: str):
    with pytest.raises(DeviceMissing, match=r"torch lists cuda:[01] and cannot start it \(.*\): install NVIDIA"):
        open_session("pytorch", bilinear.files["fp32"], SessionOptions(device=device))


@pytest.mark.usefixtures("cuda")
def test_auto_on_pytorch_takes_what_starts(bilinear: Graphs):
    assert open_session("pytorch", bilinear.files["fp32"], SessionOptions(device="auto")).device == "cpu"


@pytest.mark.usefixtures("cuda")
def test_pytorch_puts_the_graph_on_the_device(bilinear: Graphs, monkeypatch: pytest.MonkeyPatch):
    built: list[Any] = []
    real = torch_engine._build
    monkeypatch.setattr(torch, "zeros", lambda *a, device=None, **k: torch.ones(1))
    flags = (torch.backends.cudnn, torch.backends.cuda.matmul)  # settings of the process, which monkeypatch cannot undo
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = True

    def build(torch: Any, graph: Path, device: Any, precision: str) -> Any:
        built.append((str(device), precision))
        return real(torch, graph, torch.device("cpu"), "fp32")

    monkeypatch.setattr(torch_engine, "_build", build)
    try:
        session = open_session("pytorch", bilinear.files["fp32"], SessionOptions(device="cuda:1", precision="bf16"))
        assert built == [("cuda:1", "bf16")]
        assert session.device == "cuda:1"
        assert [flag.allow_tf32 for flag in flags] == [False, False]
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int16"])
def test_a_graph_on_a_device_lies_there_and_is_never_read_in_mid_run(graphs: Graphs, precision: str):
    """torch's meta device has shapes and no values: reading one, or adding one to the processor's, is an error."""
    import onnx

    from segship.engines.pytorch_ops.program import Program

    program = Program(onnx.load(str(graphs.files[precision])), torch.device("meta"), torch.float32)
    outputs = program.run(torch.empty(2, 3, 32, 32))
    assert [tuple(o.shape) for o in outputs] == [(2, 2, 32, 32)] * 4
    weights = [v for v in program._initial if v is not None and v.is_floating_point() and v.dim() == 4]
    assert {v.device.type for v in (*outputs, *weights)} == {"meta"}


def test_pytorch_without_memory_says_so(bilinear: Graphs, monkeypatch: pytest.MonkeyPatch):
    session = open_session("pytorch", bilinear.files["fp32"], SessionOptions())
    assert isinstance(session, torch_engine.PyTorchSession)

    class Full:
        def run(self, *_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(session, "_program", Full())
    session.device = "cuda:0"
    with pytest.raises(EngineError, match=r"no memory left on cuda:0 for an input of shape .*smaller batches"):
        session.run(images(1))


# ------------------------------------------------------------------------------------------- in common


@pytest.mark.parametrize(
    ("name", "asked", "same"),
    [
        ("cuda:0", "cuda", True),
        ("cuda:1", "cuda", False),
        ("cuda:1", "CUDA:1", True),
        ("cuda", "cuda:1", True),
        ("gpu", "gpu:1", True),
        ("cpu", "cuda", False),
        ("npu", "gpu", False),
    ],
)
def test_which_listed_device_is_meant(name: str, asked: str, same: bool):
    assert chosen._is_called(name, asked) is same


def test_a_library_without_devices():
    told = str(common.no_device("vendor", "mlu:0", []))
    assert told == "vendor has no device 'mlu:0' here, only none at all; see `segship doctor`"


def test_bf16_is_refused_on_every_provider(pretend: Any, bilinear: Graphs):
    pretend()
    with pytest.raises(PrecisionMissing):
        onnx_session(bilinear.files["fp32"], device="cuda", precision="bf16")
