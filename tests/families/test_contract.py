"""What every family's package for pictures must do on every engine in every precision. A new family is found by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from segship.convert import parity
from segship.convert.checks import checking_engines
from segship.convert.export import ExportResult, bundled_sample, export
from segship.convert.fidelity import concerns
from segship.convert.precision import CompileResult, compile_package
from segship.engines import get_engine
from segship.errors import BarMissed, DatasetError, UsageError
from segship.families import Source, family_names, get_family
from segship.families.checkpoint import open_checkpoint
from segship.inference.predictor import Predictor
from segship.inference.verify import verify_package
from segship.measure.inspect import describe_text
from segship.package import Package, open_package

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int16")
PAIRS = [(engine, p) for p in PRECISIONS for engine in checking_engines(None, p)]
FAMILIES = [name for name in family_names() if get_family(name).tiny().recipe.input.kind == "image"]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A family's tiny network as a package with every precision."""

    source: Source
    package: Package
    exported: ExportResult
    compiled: dict[str, CompileResult]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A paired data set, and further pictures to calibrate on, cut from the bundled sample."""
    root = tmp_path_factory.mktemp("pictures")
    whole = cv2.imdecode(np.frombuffer(bundled_sample(), np.uint8), cv2.IMREAD_COLOR)
    for folder in ("data/images", "data/masks", "classes/img_dir", "classes/ann_dir", "training"):
        (root / folder).mkdir(parents=True)
    for index in range(12):
        part = whole[3 * index : 3 * index + 80, 5 * index : 5 * index + 100]
        part = np.clip(part.astype(np.float32) * (0.6 + 0.1 * index), 0, 255).astype(np.uint8)
        if index % 3:
            cv2.imwrite(str(root / "training" / f"{index}.png"), part)
        else:
            cv2.imwrite(str(root / "data/images" / f"{index}.png"), part)
            cv2.imwrite(str(root / "data/masks" / f"{index}.png"), np.uint8(255) * (part[..., 1] > 60).astype(np.uint8))
            cv2.imwrite(str(root / "classes/img_dir" / f"{index}.png"), part)
            cv2.imwrite(str(root / "classes/ann_dir" / f"{index}.png"), part[..., 1] // 64)
    return root


def scored(made: Made, pictures: Path) -> Path:
    """The data set that fits a family: a mask a picture, or one class number a pixel."""
    exclusive = made.source.recipe.decode.decision.rule == "argmax"
    return pictures / ("classes" if exclusive else "data")


@pytest.fixture(scope="session", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Made:
    source = get_family(request.param).tiny()
    path = tmp_path_factory.mktemp(request.param) / "net.segship"
    exported = export(source, path)
    compiled = {
        "fp16": compile_package(path, "fp16", batches=(1, 4), shape="static"),
        "bf16": compile_package(path, "bf16"),
        "int8": compile_package(path, "qint8_mixed_float16", calibrate=pictures / "training", batches=(1, 4)),
        "int16": compile_package(path, "qint16_mixed_float32", calibrate=pictures / "training"),
    }
    return Made(source=source, package=open_package(path, verify=True), exported=exported, compiled=compiled)


@pytest.fixture(scope="session")
def expected(made: Made) -> parity.Reference:
    return parity.reference(made.source.network, made.source.recipe, bundled_sample(), "sample.png")


def test_a_family_describes_itself(made: Made) -> None:
    family = get_family(made.source.recipe.family)
    assert family.LOOKS_FOR
    assert len({option.name for option in family.OPTIONS}) == len(family.OPTIONS)
    for option in family.OPTIONS:
        assert option.help
        assert bool(option.choices) == (option.kind == "choice")


def test_a_family_leaves_other_checkpoints_alone(made: Made, tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.ones(3)}, tmp_path / "net.pth")
    assert not get_family(made.source.recipe.family).recognise(open_checkpoint(tmp_path / "net.pth"))


def test_every_stage_was_proved_on_every_engine(made: Made) -> None:
    engines = checking_engines(None, "fp32")
    for engine in engines:
        rows = {row.stage: row for row in made.exported.parity if row.engine == engine}
        assert set(parity.STAGES) <= set(rows)
        assert all(row.passed for row in rows.values())
        assert [stage for stage in parity.STAGES if not rows[stage].shared_code] == ["network"]
    recorded = made.package.provenance()["parity"]
    assert [row["stage"] for row in recorded] == [row.stage for row in made.exported.parity]
    fp32 = made.package.manifest.variant("fp32")
    assert fp32 is not None
    assert fp32.engines == tuple(engines)
    assert all(record.convolution_share == {"f32": 1.0} for record in fp32.executed)


@pytest.mark.parametrize(("engine", "precision"), PAIRS)
def test_the_answers(made: Made, expected: parity.Reference, engine: str, precision: str) -> None:
    with Predictor.open(made.package, engine=engine, precision=precision) as predictor:
        found = predictor.trace(bundled_sample())
        x = np.stack([expected.prepared.x, expected.prepared.x[:, ::-1], expected.prepared.x[:, :, ::-1]])
        several = predictor.network(x)
        alone = np.concatenate([predictor.network(part[None]) for part in x])
    difference = float(np.abs(found["network"] - expected.outputs[0]).max())
    allowed = parity.network_tolerance(get_engine(engine).TOLERANCE[precision], expected.outputs[0])
    assert difference <= allowed
    if precision == "int8":
        assert difference > 1e-4, "nothing was quantised"
    if precision == "int16":
        assert difference > 0, "nothing was quantised"
    scale = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 5e-2, "int8": 5e-2, "int16": 1e-3}[precision]
    assert np.abs(several - alone).max() <= scale
    if concerns(made.source.recipe):
        moved = np.abs(found["decoded"].astype(np.float64) - expected.prediction.decoded).mean() / 255
        assert moved <= {"fp32": 1e-4, "fp16": 1e-3, "bf16": 1e-2, "int8": 5e-2, "int16": 5e-4}[precision]
        return
    agreement = np.mean(found["decoded"] == expected.prediction.decoded)
    assert agreement >= {"fp32": 0.9999, "fp16": 0.995, "bf16": 0.97, "int8": 0.9, "int16": 0.999}[precision]


def test_what_executed_is_recorded(made: Made) -> None:
    for precision, result in made.compiled.items():
        assert {record.engine for record in result.variant.executed} == set(result.variant.engines)
        assert all(row.passed for row in result.checks), precision
    shares = {record.engine: record.convolution_share for record in made.compiled["int8"].variant.executed}
    if "openvino" in shares:
        assert shares["openvino"].get("i8", 0) > 0
    if "onnxruntime" in shares:
        assert shares["onnxruntime"].get("i8", 0) > 0
    int16 = made.compiled["int16"]
    assert all(record.convolution_share == {"f32": 1.0} for record in int16.variant.executed)
    rounding = {record.engine: record.rounding for record in int16.variant.executed}
    assert rounding.get("openvino", "weights") == "weights"
    assert rounding.get("onnxruntime", "activations and weights") == "activations and weights"
    assert "numerics of 16-bit fixed point and half the file, not speed" in int16.as_text()
    assert "f32 100%, activations and weights rounded to int16" in describe_text(made.package)


def test_precisions_share_or_halve_their_graphs(made: Made) -> None:
    manifest = made.package.manifest
    fp32, fp16, bf16 = (manifest.variant(name) for name in ("fp32", "fp16", "bf16"))
    assert fp32 is not None
    assert fp16 is not None
    assert bf16 is not None
    assert bf16.graphs == fp32.graphs
    whole = weight_bytes(made.package, "fp32")
    assert weight_bytes(made.package, "fp16") == whole // 2
    assert weight_bytes(made.package, "int16") == whole // 2
    assert weight_bytes(made.package, "int8") < 0.4 * whole  # some layers stay in float
    assert (fp16.shapes, fp16.batches) == ("static", (1, 4))


def weight_bytes(package: Package, precision: str) -> int:
    """Of all convolution weights, as they are stored."""
    variant = package.manifest.variant(precision)
    assert variant is not None
    graph = onnx.ModelProto.FromString(package.read(variant.graphs["model"])).graph
    arrays = [onnx.numpy_helper.to_array(i) for i in graph.initializer]
    return sum(array.nbytes for array in arrays if array.ndim == 4)


@pytest.mark.parametrize("precision", ["int8", "int16"])
def test_calibration_is_recorded_by_its_pixels(made: Made, precision: str) -> None:
    variant = made.package.manifest.variant(precision)
    assert variant is not None
    assert variant.quantization is not None
    record = made.package.provenance()["calibration"][precision]
    # of eight pictures a saliency package keeps one to compare its masks on
    held = 1 if concerns(made.source.recipe) else 0
    assert len(record["held_out"]) == held
    assert variant.quantization.calibration_images == record["images"] == 8 - held
    assert variant.quantization.calibration_sha256 == record["sha256"]
    assert len(record["pixel_sha256"]) == 8 - held
    assert any("fewer than 64" in warning for warning in made.compiled[precision].warnings)


def test_the_packages_own_golden_sample(made: Made) -> None:
    assert all(row.passed for row in verify_package(made.package.path))


def test_folding_the_normalisation_changes_no_answer(
    made: Made, expected: parity.Reference, pictures: Path, tmp_path: Path
) -> None:
    if made.source.recipe.preprocess[-1].step not in ("normalize", "divide"):
        with pytest.raises(UsageError, match="no normalisation that could be folded"):
            compile_package(made.package, "fp16", fold_normalization=True, output=tmp_path / "folded.segship")
        return
    result = compile_package(made.package, "fp16", fold_normalization=True, output=tmp_path / "folded.segship")
    assert [step.step for step in result.package.manifest.preprocess] == ["resize"]
    for precision in ("fp32", "int8"):
        with Predictor.open(result.package, precision=precision) as folded:
            after = folded.trace(bundled_sample())
        with Predictor.open(made.package, precision=precision) as before:
            assert np.abs(after["network"] - before.trace(bundled_sample())["network"]).max() <= 1e-4
        assert after["preprocessed"].max() > 10
    assert all(row.passed for row in verify_package(result.package.path))
    again = compile_package(
        result.package,
        "int8",
        calibrate=pictures / "training",
        dynamic_range=(float(expected.prepared.x.min()), float(expected.prepared.x.max())),
        output=tmp_path / "b.segship",
    )
    assert again.variant.quantization is not None
    assert len(again.variant.quantization.kept_in_float) == 1
    with pytest.raises(UsageError, match="no normalisation"):
        compile_package(result.package, "fp16", fold_normalization=True)


def test_the_gate_measures_and_is_fail_closed(made: Made, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "gated.segship"
    engine = "onnxruntime" if "onnxruntime" in checking_engines(None, "int8") else None  # it opens graphs quickest
    common = {"calibrate": pictures / "training", "validate": scored(made, pictures), "output": out, "engine": engine}
    result = compile_package(made.package, "int8", max_drop=0.5, **common)
    assert result.gate is not None
    assert result.variant.drop is not None
    assert result.variant.drop.drop <= 0.5
    assert result.variant.drop.cases == 4
    assert result.variant.drop == result.gate.drop
    if concerns(made.source.recipe):  # masks are compared with fp32's besides, on the same pictures
        assert result.variant.fidelity is not None
        assert (result.variant.fidelity.source, result.variant.fidelity.pictures) == ("validate", 4)
        assert result.variant.drop.drop <= result.variant.fidelity.value
    before = out.read_bytes()
    impossible = compile_package.__kwdefaults__ | {"max_drop": 0.0, **common}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "segship.convert.judge.drop_against", lambda a, b: result.variant.drop.model_copy(update={"drop": 0.1})
        )
        with pytest.raises(BarMissed, match=r"Tried:(.*\n)+.*in float32: .*, ") as caught:
            compile_package(made.package, "int8", **impossible)
    assert caught.value.exit_code == 3
    assert out.read_bytes() == before


def test_calibrating_on_evaluation_pictures_is_refused(made: Made, pictures: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    whole = cv2.imread(str(pictures / "data/images/0.png"))
    cv2.imwrite(str(copies / "renamed.bmp"), whole)
    with pytest.raises(DatasetError, match=r"renamed\.bmp"):
        compile_package(
            made.package, "int8", calibrate=copies, validate=scored(made, pictures), output=tmp_path / "n.segship"
        )
    assert not (tmp_path / "n.segship").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int8"}, "--calibrate"),
        ({"precision": "int16"}, "--calibrate"),
        ({"precision": "fp16", "calibrate": "x"}, "belongs to int8 and int16"),
        ({"precision": "int16", "calibrate": "x", "dynamic_range": (0.0, 1.0)}, "--dynamic-range"),
        ({"precision": "fp16", "max_drop": 0.1}, "--validate"),
        ({"precision": "fp16", "dynamic_range": (0.0, 1.0)}, "--dynamic-range"),
        ({"precision": "int8", "calibrate": "x", "dynamic_range": (1.0, 0.0)}, "--dynamic-range"),
        ({"precision": "fp16", "input_size": (160, 160)}, "--shape dynamic"),
        ({"precision": "fp16", "batches": (0,)}, "--batch"),
        ({"precision": "fp16", "engines": ["none"]}, "no engine"),
    ],
)
def test_arguments_that_do_not_fit(made: Made, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compile_package(made.package, **arguments)


def test_a_dynamic_package_takes_another_size(made: Made, tmp_path: Path) -> None:
    free = export(made.source, tmp_path / "free.segship", shape="dynamic", engines=["onnxruntime"])
    assert any(row.stage.startswith("network, ") and "x" in row.stage for row in free.parity)
    height, width = (2 * side for side in made.source.recipe.network.size or (0, 0))
    larger = compile_package(
        free.package,
        "fp16",
        input_size=(height, width),
        output=tmp_path / "larger.segship",
        engine="onnxruntime",
        engines=["onnxruntime"],
    )
    with Predictor.open(larger.package, precision="fp16", engine="onnxruntime") as predictor:
        assert predictor.trace(bundled_sample())["network"].shape[1:] == (height, width)
    assert any("another size" in warning for warning in larger.warnings)


@pytest.mark.parametrize(
    "options",
    [
        {"activations": "asymmetric"},
        {"weights": "per-tensor"},
        {"algorithm": "percentile"},
        {"bias_correction": "fast"},
    ],
)
def test_int16_has_one_definition(made: Made, pictures: Path, options: dict) -> None:
    with pytest.raises(UsageError, match="int16 is symmetric, per output channel, min-max"):
        compile_package(made.package, "int16", calibrate=pictures / "training", **options)
