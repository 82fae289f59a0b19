from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from engine_contract import EngineContract, spread
from engine_graphs import Graphs, images

from segship.engines import SessionOptions, get_engine, open_session
from segship.engines import openvino as engine
from segship.engines.processor import Processor, processor
from segship.errors import DeviceMissing, PrecisionMissing

pytest.importorskip("openvino")

NATIVE = set(engine.availability().devices[0].precisions)


class TestOpenVino(EngineContract):
    engine = "openvino"
    library = "openvino"
    kinds = {  # noqa: RUF012
        "fp32": {"f32"},
        "fp16": {"f16"} if "fp16" in NATIVE else {"f32"},
        "bf16": {"bf16"} if "bf16" in NATIVE else {"f32"},
        "int8": {"i8", "f32"},
        "int16": {"f32"},
    }

    def forget(self, module) -> None:
        module._import.cache_clear()
        module._made_core.cache_clear()


def test_fp32_is_float32_also_where_bf16_is_the_default(graphs: Graphs):
    x = images(4)
    session = open_session("openvino", graphs.files["fp32"], SessionOptions(precision="fp32"))
    for output, expected in zip(session.run(x), graphs.reference(x), strict=True):
        assert np.abs(output - expected).max() <= 1e-5 * spread(expected)
    assert session.executed(x).convolution_share == {"f32": 1.0}


@pytest.mark.skipif("bf16" not in NATIVE, reason="this processor has no bf16")
def test_bf16_is_another_answer_than_fp32(bilinear: Graphs):
    x = images(4)
    answers = [
        open_session("openvino", bilinear.files["fp32"], SessionOptions(precision=p)).run(x)[-1]
        for p in ("fp32", "bf16")
    ]
    difference = np.abs(answers[0] - answers[1]).max() / spread(answers[0])
    assert 1e-5 < difference < engine.TOLERANCE["bf16"]


@pytest.mark.usefixtures("convolutions_alike")
def test_int8_is_integer_arithmetic(graphs: Graphs):
    x = images(4)
    fp32 = open_session("openvino", graphs.files["fp32"], SessionOptions())
    int8 = open_session("openvino", graphs.files["int8"], SessionOptions(precision="int8"))
    assert int8.executed(x).convolution_share["i8"] >= 0.8
    difference = np.abs(fp32.run(x)[-1] - int8.run(x)[-1]).max()
    assert 0 < difference <= engine.TOLERANCE["int8"] * spread(fp32.run(x)[-1])


def test_whether_roundings_run_is_read_from_the_graph_that_runs(bilinear: Graphs):
    """Those of 8 bits run within the convolutions; those of 16 bits are dropped, so only the weights are rounded."""
    int8, int16 = (open_session("openvino", bilinear.files[p], SessionOptions(precision=p)) for p in ("int8", "int16"))
    assert engine._rounds_activations(int8._compiled)
    assert not engine._rounds_activations(int16._compiled)
    assert int8.executed(images(1)).rounding is None
    assert int16.executed(images(1)).rounding == "weights"


ON_ANOTHER_PROCESSOR = """
import json, sys
from pathlib import Path
import numpy as np
from segship.engines import SessionOptions, open_session
x = np.load(sys.argv[1])
session = open_session("openvino", Path(sys.argv[2]), SessionOptions(precision=sys.argv[3]))
print(json.dumps([session.executed(x).convolution_share, float(session.run(x)[-1].sum(dtype="float64"))]))
"""


@pytest.mark.skipif(
    "AVX512-VNNI" not in processor().instruction_sets, reason="imitates an AVX-512 processor without bf16"
)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_a_processor_without_the_precision_runs_float32_and_says_so(bilinear: Graphs, precision: str, tmp_path: Path):
    x = images(2)
    np.save(tmp_path / "x.npy", x)
    graph = bilinear.files["int8" if precision == "int8" else "fp32"]
    answer = subprocess.run(
        [sys.executable, "-c", ON_ANOTHER_PROCESSOR, str(tmp_path / "x.npy"), str(graph), precision],
        # the first is read by OpenVINO's kernels, the second by OpenVINO itself
        env={**os.environ, "DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI", "OV_CPU_MAX_ISA": "AVX512_CORE_VNNI"},
        capture_output=True,
        text=True,
        check=True,
    )
    share, total = json.loads(answer.stdout.splitlines()[-1])
    if precision == "int8":
        assert share["i8"] >= 0.8
        return
    assert share == {"f32": 1.0}
    assert total == pytest.approx(bilinear.reference(x)[-1].sum(dtype="float64"), rel=1e-4)


def test_emulated_arithmetic_is_not_native(monkeypatch: pytest.MonkeyPatch):
    old = Processor(name="Cascade Lake", instruction_sets=("AVX2", "AVX512F", "AVX512-VNNI"), cores=2)
    monkeypatch.setattr(engine, "processor", lambda: old)
    assert engine._native("CPU") == ("fp32", "int8")
    assert (engine._hint("bf16", "CPU"), engine._hint("fp16", "CPU")) == ("f32", "f32")


def test_a_device_that_works_in_another_precision_is_refused(bilinear: Graphs):
    session = open_session("openvino", bilinear.files["fp32"], SessionOptions())
    assert isinstance(session, engine.OpenVinoSession)
    session._hint = "f16"  # as an NPU would answer, which computes in one type whatever it is asked
    with pytest.raises(PrecisionMissing, match="where f16 was asked for"):
        session._check_working_precision()


def test_closing_leaves_nobody_waiting(bilinear: Graphs):
    session = engine.open_session(bilinear.files["fp32"], SessionOptions())
    requests = session._requests
    taken = requests.get()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(session.run, images(1))
        time.sleep(0.05)
        session.close()
        requests.put(taken)
        assert waiting.result(timeout=30)
    assert requests.qsize() == 1


def test_absent_gpu_names_the_driver(bilinear: Graphs):
    missing = engine.availability().missing
    if "gpu" not in missing:
        pytest.skip("this machine has an Intel GPU")
    with pytest.raises(DeviceMissing, match="intel-opencl-icd"):
        open_session("openvino", bilinear.files["fp32"], SessionOptions(device="gpu"))


# ------------------------------------------------------------------------------------------ the cache


def loaded_from_cache(session: object) -> bool:
    assert isinstance(session, engine.OpenVinoSession)
    return bool(session._compiled.get_property("LOADED_FROM_CACHE"))


def opener(graph: Path, cache: Path) -> Callable[..., engine.OpenVinoSession]:
    return lambda **options: engine.open_session(graph, SessionOptions(cache_dir=cache, **options))


@pytest.mark.parametrize("static_shape", [None, (2, 3, 32, 32)])
def test_second_opening_comes_from_the_cache(bilinear: Graphs, tmp_path: Path, static_shape: tuple[int, ...] | None):
    again = opener(bilinear.files["int8"], tmp_path / "new" / "folder")
    first, second = (again(precision="int8", static_shape=static_shape) for _ in range(2))
    assert not loaded_from_cache(first)
    assert loaded_from_cache(second)
    np.testing.assert_array_equal(first.run(images(2))[0], second.run(images(2))[0])


@pytest.mark.skipif("bf16" not in NATIVE, reason="this processor has no bf16")
def test_one_cache_keeps_precisions_apart(bilinear: Graphs, tmp_path: Path):
    again = opener(bilinear.files["fp32"], tmp_path)
    for _ in range(2):
        for precision, kind in (("fp32", "f32"), ("bf16", "bf16")):
            assert again(precision=precision).executed(images(1)).convolution_share == {kind: 1.0}


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_damaged_cache_is_made_again(bilinear: Graphs, tmp_path: Path, damage: bytes | None):
    again = opener(bilinear.files["fp32"], tmp_path)
    expected = again().run(images(1))[0]
    for blob in tmp_path.rglob("*.blob"):
        content = blob.read_bytes()
        blob.chmod(0o600)
        blob.write_bytes(content[: len(content) // 2] if damage is None else damage)
    np.testing.assert_array_equal(again().run(images(1))[0], expected)


def test_a_changed_graph_of_the_same_name_size_and_time_is_another_graph(
    bilinear: Graphs, nearest: Graphs, tmp_path: Path
):
    graph = tmp_path / "graph.onnx"
    contents = [graphs.files["fp32"].read_bytes() for graphs in (bilinear, nearest)]
    size = max(map(len, contents))
    answers = []
    for content in contents:
        # an unknown field (number 1000, a string) fills the shorter file up
        lacking = size - len(content)
        graph.write_bytes(content + (b"" if not lacking else b"\xc2\x3e" + _length(lacking)))
        os.utime(graph, (1e9, 1e9))
        answers.append(opener(graph, tmp_path / "cache")().run(images(1))[-1])
    for answer, graphs in zip(answers, (bilinear, nearest), strict=True):
        assert np.abs(answer - graphs.reference(images(1))[-1]).max() < 1e-4


def _length(total: int) -> bytes:
    """Length (two bytes) and filling of a protobuf string that takes ``total`` bytes with its two-byte tag."""
    filling = total - 4
    assert 0 <= filling < 2**14
    return bytes([filling & 0x7F | 0x80, filling >> 7]) + b" " * filling


def test_cache_folder_that_cannot_be_made_is_no_error(bilinear: Graphs, tmp_path: Path):
    occupied = tmp_path / "file"
    occupied.write_text("in the way")
    session = opener(bilinear.files["fp32"], occupied / "cache")()
    assert not loaded_from_cache(session)
    assert session.run(images(1))


# -------------------------------------------------------------------------------------------- imports


def test_opening_brings_in_no_usage_statistics_and_no_training_framework(bilinear: Graphs):
    code = (
        "import sys; from pathlib import Path; from segship.engines import SessionOptions, open_session\n"
        f"open_session('openvino', Path({str(bilinear.files['fp32'])!r}), SessionOptions())\n"
        "print([m for m in ('openvino_telemetry', 'torch', 'onnx', 'nncf', 'onnxruntime') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_module_by_name():
    assert get_engine("openvino") is engine
