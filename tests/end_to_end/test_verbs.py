"""The other verbs, each tried as a user would."""

from __future__ import annotations

import json

from conftest import write_dataset


def test_inspect(segship, package):
    text = segship("inspect", package)
    assert text.code == 0
    assert "bright" in text.out
    assert "fp32" in text.out
    about = json.loads(segship("inspect", package, "--json").out)
    assert about["input"]["channel_order"] == "bgr"
    assert {variant["precision"] for variant in about["variants"]} == {"fp32", "int8"}


def test_doctor(segship):
    text = segship("doctor")
    assert text.code == 0
    assert "openvino" in text.out
    assert "fake" in json.dumps(json.loads(segship("doctor", "--json").out))


def test_evaluate_prints_and_records(segship, package, tmp_path):
    import shutil

    own = shutil.copy(package, tmp_path / "own.segship")
    data = write_dataset(tmp_path / "data", 5)
    outcome = segship("evaluate", own, data, "--precision", "fp32,int8", "--json", "-o", tmp_path / "evaluation")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["cases"] == 5
    assert 0.5 < found["metrics"]["iou"] <= 1
    assert len(found["dataset_sha256"]) == 64
    assert (tmp_path / "evaluation" / "summary.json").exists()
    about = json.loads(segship("inspect", own, "--json").out)
    assert any(abs(r["value"] - found["metrics"]["iou"]) < 1e-9 for r in about["accuracy"])


def test_score_from_files_equals_evaluate(segship, package, tmp_path):
    data = write_dataset(tmp_path / "data", 4)
    found = json.loads(segship("evaluate", package, data, "--no-record", "--json").out)["metrics"]
    segship(
        "predict", package, data / "images", "-o", tmp_path / "out", "--save-stages", tmp_path / "raw", "--raw", "-q"
    )
    outcome = segship("score", "dsb2018", data, tmp_path / "raw", "--size", "64", "--json")
    assert outcome.code == 0, outcome.err
    scored = json.loads(outcome.out)["metrics"]
    for name in ("iou", "iou-logit-half", "iou-batch16"):
        assert abs(scored[name] - found[name]) < 1e-6


def test_benchmark(segship, package, tmp_path):
    outcome = segship(
        "benchmark", package, "--batch", "1,3", "--iterations", 2, "--repeat", 1, "--against", "onnxruntime", "--json",
        "-o", tmp_path / "b.json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    rows = json.loads(outcome.out)["variants"]
    assert {"precision", "engine", "executed", "latency_ms", "images_per_second"} <= set(rows[0])
    assert set(rows[0]["latency_ms"]) == {"1", "3"}
    assert {row["engine"] for row in rows} == {"openvino", "onnxruntime"}
    assert json.loads((tmp_path / "b.json").read_text())["variants"]
