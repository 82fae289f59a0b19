"""Saliency packages are compared with fp32's maps: on which pictures, how far, and what happens where it is too far."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("nncf")

from tiny_branches import branches_package, network, photo, photo_folder

from segship import workflow
from segship.cli import run
from segship.convert import fidelity, judge
from segship.convert.precision import CompileResult, compile_package
from segship.errors import BarMissed, DatasetError, InputError, UsageError
from segship.inference.precision import choose_precision
from segship.inference.predictor import Predictor
from segship.measure.inspect import describe_text
from segship.measure.rundir import StepsFolder
from segship.package import Package

ENGINES = ["openvino"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return branches_package(tmp_path_factory.mktemp("package") / "net.segship")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_folder(tmp_path_factory.mktemp("training"), 10)


@pytest.fixture(scope="module")
def int8(package: Package, training: Path, tmp_path_factory: pytest.TempPathFactory) -> CompileResult:
    out = tmp_path_factory.mktemp("int8") / "net.segship"
    return compile_package(package, "int8", calibrate=training, output=out, engines=ENGINES)


def test_pictures_are_held_out_of_the_calibration_folder(int8: CompileResult, package: Package, training: Path) -> None:
    found = int8.variant.fidelity
    assert found is not None
    assert (found.source, found.pictures, found.engine, found.limit) == ("held out", 2, "openvino", fidelity.LIMIT)
    record = int8.package.provenance()["calibration"]["int8"]
    assert record["held_out"] == ["00.png", "09.png"]
    assert record["images"] == 8
    # the number is the mean difference of what the predictor itself gives
    differences = []
    with Predictor.open(package) as before, Predictor.open(int8.package, precision="int8") as after:
        for name in record["held_out"]:
            maps = [p(training / name, grid="network").saliency.astype(np.float64) for p in (before, after)]
            differences.append(np.abs(maps[0] - maps[1]).mean() / 255)
    assert found.value == pytest.approx(np.mean(differences), abs=1e-7)
    assert found.worst == pytest.approx(max(differences), abs=1e-7)
    assert 0 < found.value <= fidelity.LIMIT


def test_the_record_is_kept_and_shown(int8: CompileResult) -> None:
    found = int8.variant.fidelity
    assert found is not None
    assert int8.package.provenance()["compile"]["int8"]["gate"]["fidelity"] == found.model_dump(mode="json")
    assert found.text in describe_text(int8.package)
    assert found.text in int8.as_text()


def test_auto_knows_the_distance_as_the_most_that_mae_can_lose(int8: CompileResult) -> None:
    found = int8.variant.fidelity
    assert found is not None
    manifest = int8.package.manifest
    generous = choose_precision(manifest, "auto", engine="fake", device="cpu", max_drop=found.value + 1e-6)
    assert (generous.precision, "masks differ from fp32's by" in generous.reason) == ("int8", True)
    strict = choose_precision(manifest, "auto", engine="fake", device="cpu", max_drop=found.value / 2)
    assert strict.precision == "fp32"
    other = manifest.model_copy(update={"metric": manifest.metric.model_copy(update={"name": "maxF"})})
    unknown = choose_precision(other, "auto", engine="fake", device="cpu", max_drop=1.0)
    assert unknown.reason == "int8: its accuracy was never measured"


def test_auto_never_takes_int16_for_speed(package: Package, training: Path, tmp_path: Path) -> None:
    made = compile_package(package, "int16", calibrate=training, output=tmp_path / "n.segship", engines=ENGINES)
    found = choose_precision(made.package.manifest, "auto", engine="fake", device="cpu", max_drop=1.0)
    assert found.precision == "fp32"
    assert "int16: for accuracy and file size, not faster" in found.reason
    assert made.variant.fidelity is not None
    assert made.variant.fidelity.value <= 5e-4
    assert made.package.provenance()["calibration"]["int16"]["headroom"] == 2.0


def test_given_pictures_come_before_held_out_ones(package: Package, training: Path, tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 3, first=50)
    out = tmp_path / "n.segship"
    made = compile_package(package, "int8", calibrate=training, validate=photos, output=out, engines=ENGINES)
    assert made.variant.fidelity is not None
    assert (made.variant.fidelity.source, made.variant.fidelity.pictures) == ("validate", 3)
    assert made.package.provenance()["calibration"]["int8"]["held_out"] == []
    cv2.imwrite(str(photos / "copy.bmp"), photo(4))
    with pytest.raises(DatasetError, match=r"copy\.bmp is a calibration picture too"):
        compile_package(package, "int8", calibrate=training, validate=photos, output=tmp_path / "m.segship")
    assert not (tmp_path / "m.segship").exists()
    (photos / "copy.bmp").write_bytes(b"BM")
    with pytest.raises(InputError, match=r"copy\.bmp"):
        compile_package(package, "fp16", validate=photos, output=tmp_path / "m.segship")


def test_held_out_copies_of_calibration_pictures_do_not_count(package: Package, tmp_path: Path) -> None:
    same = tmp_path / "same"
    same.mkdir()
    for index in range(4):
        cv2.imwrite(str(same / f"{index}.png"), photo(1))
    out = tmp_path / "n.segship"
    made = compile_package(package, "int16", calibrate=same, output=out, engines=ENGINES)
    assert made.variant.fidelity is not None
    assert (made.variant.fidelity.source, made.variant.fidelity.pictures) == ("golden sample", 1)
    assert any("golden sample alone" in warning for warning in made.warnings)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precisions_without_calibration_fall_back_on_the_golden_sample(
    package: Package, precision: str, tmp_path: Path
) -> None:
    made = compile_package(package, precision, output=tmp_path / "n.segship", engines=ENGINES)
    assert made.variant.fidelity is not None
    assert made.variant.fidelity.source == "golden sample"
    assert made.variant.fidelity.value <= (1e-3 if precision == "fp16" else 2e-2)


def test_masks_with_ground_truth_are_gated_by_mae_where_less_is_better(
    package: Package, training: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for seed in range(60, 64):
        for folder in ("Image", "Mask"):
            (data / folder).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(data / "Image" / f"{seed}.jpg"), photo(seed))
        cv2.imwrite(str(data / "Mask" / f"{seed}.png"), np.uint8(255) * (photo(seed)[..., 2] > 120))
    out = tmp_path / "n.segship"
    common = {"calibrate": training, "validate": data, "output": out, "engines": ENGINES}
    made = compile_package(package, "int8", max_drop=0.02, **common)
    drop, maps = made.variant.drop, made.variant.fidelity
    assert drop is not None
    assert maps is not None
    assert drop.metric == "MAE"
    assert drop.drop == pytest.approx(drop.value - drop.fp32, abs=1e-9), "a larger MAE is a loss"
    assert abs(drop.drop) <= maps.value + 1 / 255, "no more than the maps themselves differ"
    before = out.read_bytes()
    with pytest.raises(UsageError, match="--max-drop needs images with masks"):
        compile_package(package, "int8", max_drop=0.02, **{**common, "validate": training})
    with pytest.raises(BarMissed, match="loses more than the allowed 0;") if drop.drop > 0 else _nothing():
        compile_package(package, "int8", max_drop=0.0, **common)
    assert out.read_bytes() == before or drop.drop <= 0


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


# --- too far ------------------------------------------------------------------------------------------------


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that int8 cannot keep, whatever is put back."""
    for module in (fidelity, judge.fidelity):
        monkeypatch.setattr(module, "LIMIT", 1e-6)


def test_too_far_is_refused_with_what_was_tried(strict: None, package: Package, training: Path, tmp_path: Path) -> None:
    out = tmp_path / "n.segship"
    with pytest.raises(BarMissed) as caught:
        compile_package(package, "int8", calibrate=training, output=out, keep_in_float=(), engines=ENGINES)
    text = str(caught.value)
    assert "masks that differ from fp32's by more than the allowed 1e-06" in text
    assert text.count("mask MAE to fp32") >= 2, "layers were put back, one group at a time"
    assert "in float32: nothing" in text
    assert "--force" in text
    assert caught.value.exit_code == 3
    assert not out.exists()


def test_force_writes_it_and_says_so(strict: None, package: Package, training: Path, tmp_path: Path) -> None:
    out = tmp_path / "n.segship"
    made = compile_package(package, "int8", calibrate=training, output=out, force=True, engines=ENGINES)
    assert made.variant.fidelity is not None
    assert made.variant.fidelity.forced
    assert any("written because of --force" in warning for warning in made.warnings)
    assert "written by --force" in describe_text(made.package)


def test_the_command_line_refuses_with_exit_code_3(
    strict: None, package: Package, training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "n.segship"
    arguments = [
        "compile",
        str(package.path),
        "--precision",
        "int8",
        "--calibrate",
        str(training),
        "-o",
        str(out),
        "-q",
    ]
    assert run(arguments) == 3
    assert "Tried:" in capsys.readouterr().err
    assert run([*arguments, "--force"]) == 0
    assert "written because of --force" in capsys.readouterr().err
    assert out.exists()


def test_the_command_line_says_what_int16_is(
    package: Package, training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compile", str(package.path), "--precision", "qint16_mixed_float32", "--calibrate", str(training)]
    assert run([*arguments, "-o", str(tmp_path / "n.segship")]) == 0
    told = capsys.readouterr().out
    assert "numerics of 16-bit fixed point and half the file, not speed" in told
    assert "as f32 100%, weights alone rounded to int16" in told
    assert run(["compile", "--help"]) == 0
    assert "numerics of 16-bit fixed point and half the file, not speed" in " ".join(capsys.readouterr().out.split())
    assert run(["inspect", "--json", str(tmp_path / "n.segship")]) == 0
    executed = {r["engine"]: r for r in json.loads(capsys.readouterr().out)["variants"][1]["executed"]}
    assert executed["openvino"]["rounding"] == "weights"


def test_a_whole_run_goes_on_without_the_precision_that_was_refused(
    strict: None, training: Path, tmp_path: Path
) -> None:
    package = branches_package(tmp_path / "net.segship")
    options = workflow.RunOptions(data=training, output=tmp_path, precisions=("int8", "fp16", "int16"), batches=(1,))
    folder = StepsFolder(tmp_path, again=False)
    with pytest.MonkeyPatch.context() as patch:  # of these three only int8 is to be too far
        measure = fidelity.measure
        patch.setattr(
            judge.fidelity,
            "measure",
            lambda predictor, *rest, **more: measure(predictor, *rest, **more).model_copy(
                update={} if predictor.precision == "int8" else {"value": 0.0}
            ),
        )
        made, notes = workflow._compile(package, options, None, training, folder, lambda _: None, None)
    assert [variant.precision for variant in made.manifest.variants] == ["fp32", "fp16", "int16"]
    assert any(note.startswith("int8 was left out: int8 gives masks that differ") for note in notes)
    # without calibration images there is neither
    _, notes = workflow._compile(package, options, None, None, folder, lambda _: None, None)
    assert {note.split()[0] for note in notes if "no calibration images" in note} == {"int8", "int16"}


def test_force_has_nothing_to_override_elsewhere(tmp_path: Path) -> None:
    from tiny_package import tiny_package

    with pytest.raises(UsageError, match="--force overrides the limit on a saliency package's masks"):
        compile_package(tiny_package(tmp_path / "net.segship"), "fp16", force=True)


def test_a_saturated_network_is_judged_by_its_masks(package: Package, training: Path, tmp_path: Path) -> None:
    """An answer all but constant in its last digits: rounding is far beyond its own spread, and no reason to refuse."""
    from onnx import numpy_helper

    model = network()
    for initializer in model.graph.initializer:
        if initializer.name == "head.bias":
            initializer.CopyFrom(numpy_helper.from_array(np.float32([-14.0]), "head.bias"))
    flat = branches_package(tmp_path / "flat.segship", model)
    made = compile_package(flat, "int16", calibrate=training, output=tmp_path / "n.segship", engines=ENGINES)
    assert all(row.relative_error < 1e-4 for row in made.checks)
