"""Timing side by side, and the benchmark's rows."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_branches import branches_package, photo_folder
from tiny_package import cell_folder, tiny_package

from segship.convert.precision import compile_package
from segship.errors import EngineError, PrecisionMissing, UsageError
from segship.inference.predictor import Predictor
from segship.manifest import Drop
from segship.measure.benchmark import benchmark
from segship.measure.environment import environment
from segship.measure.tables import columns
from segship.measure.timing import Call, Plan, Timing, measure
from segship.package import Package, update_package


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("segship.measure.timing.SETTLE_SECONDS", 0.0)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return tiny_package(tmp_path / "net.segship")


QUICK = {"warmup": 1, "iterations": 2, "repeat": 2}


# --- timing -------------------------------------------------------------------------------------------------


def test_less_of_the_work_may_warm_up() -> None:
    order: list[str] = []
    call = Call(run=lambda: order.append("all"), items=8, warm=lambda: order.append("some"))
    measure({"a": call}, Plan(warmup=1, iterations=2, repeat=2))
    assert order == ["some", "all", "all"] * 2


def test_turns_alternate_after_their_warm_up() -> None:
    order: list[str] = []
    calls = {name: Call(run=lambda name=name: order.append(name), items=1) for name in "ABC"}  # type: ignore[misc]
    found = measure(calls, Plan(warmup=2, iterations=3, repeat=2))
    assert "".join(order) == "AAAAABBBBBCCCCC" + "AAAABBBBCCCC", "two untimed calls first, one before later turns"
    assert [len(t.latencies_ms) for t in found.values()] == [6, 6, 6]
    assert [len(t.rates_per_second) for t in found.values()] == [2, 2, 2]


def test_rate_counts_items() -> None:
    found = measure({"a": Call(run=lambda: time.sleep(0.01), items=8)}, Plan(warmup=0, iterations=3, repeat=1))["a"]
    assert found.percentiles_ms()["p50"] >= 10
    assert found.rate <= 800
    assert found.rate > 80


def test_duration_runs_at_least_once() -> None:
    calls: list[int] = []
    measure({"a": Call(run=lambda: calls.append(1), items=1)}, Plan(warmup=0, duration_s=1e-9, repeat=1))
    assert calls == [1]


def test_streams_overlap() -> None:
    meeting = threading.Barrier(3, timeout=5)
    measure({"a": Call(run=meeting.wait, items=1, streams=3)}, Plan(warmup=0, iterations=3, repeat=1))


def test_an_error_in_a_stream_reaches_the_caller() -> None:
    def fail() -> None:
        raise EngineError("broken")

    with pytest.raises(EngineError, match="broken"):
        measure({"a": Call(run=fail, items=1, streams=2)}, Plan(warmup=0, iterations=4, repeat=1))


def test_percentiles() -> None:
    found = Timing(latencies_ms=tuple(float(i) for i in range(1, 101)), rates_per_second=(1.0, 9.0, 3.0))
    assert found.rate == 3.0
    assert found.percentiles_ms()["p50"] == pytest.approx(50.5)
    assert found.percentiles_ms()["p99"] == pytest.approx(99.01)


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"repeat": 0}, {"warmup": -1}, {"duration_s": -1.0}])
def test_plans_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Plan(**wrong)  # type: ignore[arg-type]


# --- benchmark ----------------------------------------------------------------------------------------------


def test_every_combination_has_a_row(package: Package, tmp_path: Path) -> None:
    files = cell_folder(tmp_path / "cells", 3) / "images"
    result = benchmark(package, files, engine="fake", batch=(1, 2), threads=(None, 1), streams=(1, 2), **QUICK)
    assert len(result.rows) == 2 * 2 * 2  # precisions, threads, streams
    told = result.as_dict()
    json.dumps(told)
    for row in told["variants"]:
        assert set(row["latency_ms"]) == set(row["images_per_second"]) == set(row["files_per_second"]) == {"1", "2"}
        assert {"p50", "p90", "p99"} <= set(row["latency_percentiles_ms"]["1"])
        assert row["label_agreement"] == 1.0
        assert row["value"] is None, "never measured, so no number"
    assert told["environment"]["cores"] >= 1
    assert "3 files" in result.inputs
    assert "fake int8 1t 2s" in result.as_text()


def test_answers_are_compared_before_times(package: Package, tmp_path: Path) -> None:
    files = cell_folder(tmp_path / "cells", 2) / "images"
    result = benchmark(package, files, batch=(2,), files=False, **QUICK)
    fp32, int8 = result.rows
    assert (fp32.max_abs, fp32.label_agreement) == (0.0, 1.0)
    assert int8.max_abs > 0.1, "the other variant answers differently, and the table says so"
    assert int8.label_agreement < 1
    assert int8.executed.convolution_share == {"f32": 1.0}
    text = result.as_text()
    assert text.index("labels equal") < text.index("p50 ms")
    assert result.rows[0].files == {}


def test_the_table_of_network_precision_and_batch(package: Package) -> None:
    result = benchmark(package, engine="fake", batch=(1, 4, 8), files=False, **QUICK)
    header, _, fp32, int8 = result.rate_table().splitlines()
    assert header.split("  ")[0] == "network img/s"
    assert [f"batch {size}" in header for size in (1, 4, 8)] == [True] * 3
    assert fp32.startswith("one convolution  fake fp32")
    assert int8.startswith("one convolution  fake int8")
    assert f"{result.rows[0].network[4].rate:.2f}" in fp32
    assert int8.rstrip().endswith("i8 100%"), "what executed stands beside the rate"
    assert result.rate_table() in result.as_text()


def test_maps_are_compared_by_their_difference(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    made = branches_package(tmp_path / "net.segship")
    training = photo_folder(tmp_path / "photos", 6)
    made = compile_package(made, "int16", calibrate=training, engines=["openvino", "onnxruntime"]).package
    result = benchmark(made, training, against=("onnxruntime",), batch=(1,), files=False, **QUICK)
    rows = {row.setting.label: row for row in result.rows}
    assert rows["openvino fp32"].map_difference == 0
    moved = rows["onnxruntime int16"].map_difference
    assert moved is not None
    assert 0 < moved < 5e-3
    assert {row.label_agreement for row in result.rows} == {None}
    text = result.as_text()
    assert "mean |Δ| of maps" in text
    assert "f32 100%, activations and weights rounded to int16" in text
    assert "f32 100%, weights alone rounded to int16" in text
    assert json.loads(json.dumps(result.as_dict()))["variants"][0]["map_difference"] == 0


def test_golden_sample_stands_in_for_files(package: Package) -> None:
    result = benchmark(package, engine="fake", precision="fp32", batch=(3,), **QUICK)
    assert "golden sample" in result.inputs
    assert result.rows[0].files[3].rate > 0


def test_recorded_accuracy_stands_beside_the_engine_it_was_measured_on(package: Package) -> None:
    drop = Drop(
        metric="iou", fp32=0.8, value=0.79, drop=0.01, interval95=(0.0, 0.02), worst_case="a", worst_drop=0.1, cases=9,
        dataset_sha256="0" * 64, engine="fake",
    )  # fmt: skip
    variants = tuple(
        v.model_copy(update={"drop": drop}) if v.precision == "int8" else v for v in package.manifest.variants
    )
    provenance = {"accuracy": [{"metric": "iou", "precision": "fp32", "engine": "fake", "value": 0.8}]}
    known = update_package(
        package, manifest=package.manifest.model_copy(update={"variants": variants}), provenance=provenance
    )
    result = benchmark(known, engine="fake", against=("openvino",), batch=(1,), files=False, **QUICK)
    values = {(r.setting.engine, r.setting.precision): (r.value, r.drop) for r in result.rows}
    assert values["fake", "fp32"] == (0.8, None)
    assert values["fake", "int8"] == (0.79, 0.01)
    assert values["openvino", "int8"] == values["openvino", "fp32"] == (None, None)


def test_a_static_variant_is_filled_up_and_said(package: Package) -> None:
    variants = tuple(v.model_copy(update={"shapes": "static", "batches": (4,)}) for v in package.manifest.variants)
    static = update_package(package, manifest=package.manifest.model_copy(update={"variants": variants}))
    result = benchmark(static, engine="fake", precision="fp32", batch=(3,), **QUICK)
    assert "batch 3 runs in a graph compiled for batch 4, filled up" in result.notes[-1]
    assert result.rows[0].network[3].rate > 0


def test_what_cannot_be_run(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="batch"):
        benchmark(package, engine="fake", batch=(0,))
    with pytest.raises(UsageError, match="no engine is called"):
        benchmark(package, engine="fake", against=("tensorrt",))
    with pytest.raises(PrecisionMissing):
        benchmark(package, engine="fake", precision="bf16")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    with pytest.raises(Exception, match=r"broken\.png"):
        benchmark(package, [broken], engine="fake", **QUICK)
    # another engine that fails is left out and said; the package's own engine must run
    monkeypatch.setenv("SEGSHIP_FAKE", "fail_open=1")
    result = benchmark(package, precision="fp32", against=("fake",), batch=(1,), files=False, **QUICK)
    assert [row.setting.engine for row in result.rows] == ["openvino"]
    assert any("fake fp32 is left out" in note for note in result.notes)
    with pytest.raises(EngineError):
        benchmark(package, engine="fake", **QUICK)


def test_environment_names_machine_and_versions() -> None:
    told = environment()
    assert told["processor"]
    assert told["versions"]["numpy"]
    json.dumps(told)


def test_columns_put_numbers_to_the_right() -> None:
    assert columns(["name", "ms"], [["a", "1.5"], ["long", "12.25"]]).splitlines() == [
        "name     ms",
        "----  -----",
        "a       1.5",
        "long  12.25",
    ]


# --- the side-by-side script --------------------------------------------------------------------------------


@pytest.fixture
def script() -> Any:
    pytest.importorskip("torch", reason="the side-by-side script runs PyTorch")
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "unetplusplus.py"
    spec = importlib.util.spec_from_file_location("benchmark_unetplusplus", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_loop_that_people_write_sees_what_the_package_sees(script: Any, package: Package, tmp_path: Path) -> None:
    files = sorted((cell_folder(tmp_path / "cells", 3) / "images").iterdir())
    with Predictor.open(package) as predictor:
        for path in files:
            ours = predictor.prepare(path)
            theirs, size_hw = script.read(path, (96, 96))
            np.testing.assert_allclose(theirs, ours.x, atol=1e-7)
            assert size_hw == ours.original_hw
        (tmp_path / "out").mkdir()
        script.plain_loop(predictor.network, (96, 96))(files, tmp_path / "out", 2)
        for path in files:
            written = cv2.imread(str(tmp_path / "out" / path.name), cv2.IMREAD_GRAYSCALE)
            np.testing.assert_array_equal(written > 0, predictor(path).masks[0])


def test_targets_compare_the_fastest_of_each_side(script: Any, package: Package) -> None:
    def nothing(*args: object) -> None: ...

    rates = {"torch a": 10.0, "torch b": 20.0, "ort": 30.0, "ours": 90.0}
    groups = ("PyTorch fp32", "PyTorch fp32", "ONNX Runtime", "int8")
    contestants = [script.Contestant(name=n, group=g, run=nothing) for n, g in zip(rates, groups, strict=True)]
    timings = {n: {8: Timing(latencies_ms=(1.0,), rates_per_second=(rate,))} for n, rate in rates.items()}
    judged = script.verdicts(contestants, timings, package, 8)
    assert [met for _, met in judged] == [False, True]
    assert "ours against torch b, batch 8: 4.50× (target 5×)" in judged[0][0]


def test_another_networks_masks_stop_the_comparison(script: Any) -> None:
    rows = [{"name": "PyTorch eager fp32", "equal": 1.0}, {"name": "segship openvino int8", "equal": 0.9}]
    script.require_one_network(rows)
    with pytest.raises(SystemExit, match="ONNX Runtime fp32: not the masks of PyTorch eager fp32"):
        script.require_one_network([*rows, {"name": "ONNX Runtime fp32", "equal": 0.99}])


def test_a_turn_ends_early_but_not_before_one_call_and_slow_calls_are_warmed_up_once():
    made: list[str] = []

    def call(name: str, seconds: float) -> Call:
        def run() -> None:
            made.append(name)
            time.sleep(seconds)

        return Call(run=run, items=1)

    calls = {"slow": call("slow", 0.06), "quick": call("quick", 0.001)}
    found = measure(calls, Plan(warmup=2, iterations=3, repeat=2, at_most_s=0.05))
    assert len(found["slow"].latencies_ms) == 2, "one a turn"
    assert made.count("slow") == 3, "and one untimed call in all"
    assert len(found["quick"].latencies_ms) == 6
    assert made.count("quick") == 2 + 3 + 1 + 3


def test_slow_networks_are_timed_on_fewer_files(tmp_path: Path) -> None:
    from segship.measure.benchmark import _few

    paths = [tmp_path / str(number) for number in range(32)]
    quick, slow = (Timing(latencies_ms=(1.0,), rates_per_second=(rate,)) for rate in (50.0, 2.5))
    assert _few(paths, 4, [quick, slow], 1.0) == paths[:10]
    assert _few(paths, 16, [slow], 1.0) == paths[:16], "a batch at least"
    assert _few(paths, 4, [quick], 1.0) == paths
    assert _few(paths, 4, [slow], None) == paths
