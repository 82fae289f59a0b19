from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np
import pytest
from engine_contract import EngineContract
from engine_graphs import Graphs, images

from segship.engines import SessionOptions, open_session
from segship.engines import onnxruntime as engine
from segship.engines.onnxruntime_wheels import wheel_conflict
from segship.errors import DeviceMissing, PrecisionMissing

onnxruntime = pytest.importorskip("onnxruntime")


class TestOnnxRuntime(EngineContract):
    engine = "onnxruntime"
    library = "onnxruntime"
    # of an 8-bit graph, convolutions behind a concatenation stay in float32: the Quantize nodes lie before it
    kinds = {"fp32": {"f32"}, "fp16": {"f32"}, "int8": {"i8", "f32"}, "int16": {"f32"}}  # noqa: RUF012


def test_int8_convolutions_are_seen(bilinear: Graphs):
    session = open_session("onnxruntime", bilinear.files["int8"], SessionOptions(precision="int8"))
    assert session.executed(images(2)).convolution_share["i8"] > 0


def test_bf16_says_where_to_get_it(bilinear: Graphs):
    with pytest.raises(PrecisionMissing, match="no bf16 of its own; choose --engine openvino"):
        open_session("onnxruntime", bilinear.files["fp32"], SessionOptions(precision="bf16"))


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt", "cann"])
def test_absent_device_names_the_wheel(bilinear: Graphs, device: str):
    if device.partition(":")[0] not in engine.availability().missing:
        pytest.skip("this ONNX Runtime has the provider")
    with pytest.raises(DeviceMissing, match=r"pip install '?onnxruntime-(gpu|cann)"):
        open_session("onnxruntime", bilinear.files["fp32"], SessionOptions(device=device))


def test_falling_back_to_the_processor_is_refused(bilinear: Graphs, monkeypatch: pytest.MonkeyPatch):
    """ONNX Runtime lists CUDA but cannot start it: it opens a session on the processor, with a warning."""

    class FellBack:
        def __init__(self, *_: Any, providers: list[Any], **__: Any) -> None:
            assert providers[0] == ("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "1"})

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", FellBack)
    with pytest.raises(DeviceMissing, match="would run on the processor"):
        open_session("onnxruntime", bilinear.files["fp32"], SessionOptions(device="cuda:1"))


def test_two_wheels_are_reported(monkeypatch: pytest.MonkeyPatch):
    assert wheel_conflict() == ""

    def version(name: str) -> str:
        if name in ("onnxruntime", "onnxruntime-gpu"):
            return "1.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert "pip uninstall onnxruntime onnxruntime-gpu" in wheel_conflict()
    assert "onnxruntime-gpu 1.0" in engine.availability().note


def test_a_profile_is_read_without_its_first_run():
    def event(name: str, ts: int, dur: int, op: str = "", kind: str = "float") -> dict[str, Any]:
        return {"name": name, "ts": ts, "dur": dur, "args": {"op_name": op, "input_type_shape": [{kind: [1]}]}}

    events = [
        {"name": "model_run", "ts": 0, "dur": 10},
        event("a_kernel_time", 1, 1000, "Conv"),
        {"name": "model_run", "ts": 100, "dur": 10},
        event("a_fence_before", 101, 7, "Conv"),
        event("a_kernel_time", 102, 300, "QLinearConv", "uint8"),
        event("b_kernel_time", 103, 100, "FusedConv"),
        event("c_kernel_time", 104, 900, "MaxPool"),
        {"name": "model_run", "ts": 200, "dur": 10},
        event("a_kernel_time", 202, 400, "QLinearConv", "uint8"),
        event("b_kernel_time", 203, 50, "FusedConv"),
        {"name": "session_end", "ts": 300, "dur": 1},
    ]
    assert engine.convolution_times(events) == [("i8", pytest.approx(3e-4)), ("f32", pytest.approx(5e-5))]


def test_no_profile_is_left_behind(bilinear: Graphs, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    session = open_session("onnxruntime", bilinear.files["fp32"], SessionOptions(profile=True))
    session.executed(images(1))
    assert np.isfinite(session.run(images(1))[0]).all()
    assert list(tmp_path.iterdir()) == []
