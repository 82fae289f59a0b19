"""The other verbs, each tried as a user would."""

from __future__ import annotations

import hashlib
import json
import shutil

from made_pictures import write_dataset, write_pictures
from tiny_package import graph

from segship.inference.predictor import Predictor
from segship.package import golden_files, open_package, update_package


def test_inspect(segship, package):
    text = segship("inspect", package)
    assert text.code == 0
    assert "bright" in text.out
    assert "fp32" in text.out
    about = json.loads(segship("inspect", package, "--json").out)
    assert about["input"]["channel_order"] == "bgr"
    assert {variant["precision"] for variant in about["variants"]} == {"fp32", "int8"}


def test_inspect_says_where_a_package_comes_from(segship, package, tmp_path):
    checkpoint = {"file": "model.pth", "sha256": "ab" * 32}
    origins = {
        "from      model.pth  sha256 abababababababab…  (PyTorch)": {"checkpoint": checkpoint, "framework": "PyTorch"},
        "from      Dataset004  (nnU-Net v2)": {"source": "Dataset004", "framework": "nnU-Net v2"},
    }
    own = open_package(shutil.copy(package, tmp_path / "own.segship"))
    for text, source in origins.items():
        own = update_package(own, provenance={**own.provenance(), "source": source})
        assert text in segship("inspect", own.path).out


def test_verify(segship, package, tmp_path):
    picture = write_pictures(tmp_path / "in", 1)[0].read_bytes()
    own = open_package(shutil.copy(package, tmp_path / "own.segship"))
    with Predictor.open(own) as predictor:
        stages = {name: (array, 1e-3) for name, array in predictor.trace(picture).items() if name != "decoded"}
    own = update_package(own, add=golden_files("cell.png", picture, False, stages))
    assert segship("verify", own.path, "--precision", "fp32").code == 0
    # another network in the same clothes: every hash is right, only its answers are not
    weights = graph(60.0)
    changed = {"sha256": {"model": hashlib.sha256(weights).hexdigest()}}
    variants = tuple(v.model_copy(update=changed) if v.precision == "fp32" else v for v in own.manifest.variants)
    manifest = own.manifest.model_copy(update={"variants": variants})
    other = update_package(own, manifest=manifest, add={variants[0].graphs["model"]: weights}).path
    outcome = segship("verify", other, "--precision", "fp32")
    assert outcome.code == 3
    assert "hashes ok; golden sample FAILED" in outcome.out
    found = json.loads(segship("verify", other, "--precision", "fp32", "--json").out)
    assert not found["passed"]
    assert [row["stage"] for row in found["rows"] if not row["passed"]] == ["network"]


def test_doctor(segship):
    text = segship("doctor")
    assert text.code == 0
    assert "openvino" in text.out
    assert "fake" in json.dumps(json.loads(segship("doctor", "--json").out))


def test_evaluate_prints_and_records(segship, package, tmp_path):
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


def test_every_verb_is_a_function_too(segship, package, tmp_path):
    import segship as library
    from segship.cli import VERBS

    assert {verb.replace("-", "_") for verb in VERBS} - {"serve"} <= set(library.__all__)
    inputs = write_pictures(tmp_path / "in", 2)
    summary = library.predict(package, tmp_path / "in", tmp_path / "out", library.PredictOptions(grid="network"))
    assert (summary.done, summary.failed) == (2, ())
    assert library.predict(package, [inputs[0]], tmp_path / "out", library.PredictOptions(grid="network")).skipped == 1
    assert library.inspect(package)["sha256"] == open_package(package).sha256
    assert {engine["engine"] for engine in library.doctor()["engines"]} >= {"openvino", "fake"}


def test_functions_refuse_what_the_command_line_refuses(tmp_path):
    import pytest

    import segship as library

    with pytest.raises(library.SegshipError, match="unetplusplus"):
        library.train("nonsense")
    with pytest.raises(library.SegshipError, match="dsb2018"):
        library.prepare("nonsense", tmp_path, tmp_path / "out")
    pytest.importorskip("torch")
    with pytest.raises(library.SegshipError, match="epoch_count"):
        library.train("unetplusplus", epoch_count=3)
