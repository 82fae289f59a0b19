"""What every family's package for volumes must do on every engine in every precision. A new family is found by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

from segship.convert import parity
from segship.convert.checks import checking_engines
from segship.convert.export import ExportResult, export
from segship.convert.precision import CompileResult, compile_package
from segship.engines import get_engine
from segship.errors import UsageError
from segship.families import Source, family_names, get_family
from segship.inference.predictor import Predictor
from segship.inference.verify import verify_package
from segship.inference.volume_predictor import VolumePredictor
from segship.package import Package, open_package

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int16")
PAIRS = [(engine, p) for p in PRECISIONS for engine in checking_engines(None, p)]
FAMILIES = [name for name in family_names() if get_family(name).tiny().recipe.input.kind == "volume"]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A family's tiny network as a package with every precision."""

    source: Source
    package: Package
    exported: ExportResult
    compiled: dict[str, CompileResult]


def write_case(path: Path, seed: int, labels: Path | None = None) -> None:
    rng = np.random.default_rng(seed)
    values = np.clip(rng.normal(60, 20, (30, 26, 14)), 0, 255)
    values[5:14, 6:18, 4:9] += 90
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), affine), path)
    if labels is not None:
        truth = np.zeros(values.shape, np.uint8)
        truth[5:14, 6:18, 4:9] = 1
        nibabel.save(nibabel.Nifti1Image(truth, affine), labels)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training cases with their labels."""
    root = tmp_path_factory.mktemp("cases")
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    for seed in range(3):
        write_case(root / "imagesTr" / f"case{seed}_0000.nii.gz", seed, root / "labelsTr" / f"case{seed}.nii.gz")
    return root


@pytest.fixture(scope="session", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cases: Path) -> Made:
    source = get_family(request.param).tiny()
    path = tmp_path_factory.mktemp(request.param) / "net.segship"
    exported = export(source, path)
    compiled = {
        "fp16": compile_package(path, "fp16", batches=(1, 4), shape="static"),
        "bf16": compile_package(path, "bf16"),
        "int8": compile_package(path, "int8", calibrate=cases, batches=(1, 4), subset=24, keep_in_float=[]),
        "int16": compile_package(path, "int16", calibrate=cases, subset=24),
    }
    return Made(source=source, package=open_package(path, verify=True), exported=exported, compiled=compiled)


def test_every_stage_was_proved_on_every_engine(made: Made) -> None:
    engines = checking_engines(None, "fp32")
    members = made.source.recipe.network.members
    for engine in engines:
        rows = {row.stage: row for row in made.exported.parity if row.engine == engine}
        assert {"read", "preprocessed", "scores", "decoded"} <= set(rows)
        networks = {f"network {name}" for name in members} if len(members) > 1 else {"network"}
        assert networks <= set(rows)
        assert all(row.passed for row in rows.values())
        ours = {stage for stage, row in rows.items() if row.shared_code}
        assert ours == {"read", "preprocessed", "decoded"}
    recorded = made.package.provenance()["parity"]
    assert [row["stage"] for row in recorded] == [row.stage for row in made.exported.parity]
    fp32 = made.package.manifest.variant("fp32")
    assert fp32 is not None
    assert fp32.engines == tuple(engines)
    assert set(fp32.graphs) == set(members)


@pytest.mark.parametrize(("engine", "precision"), PAIRS)
def test_the_answers(made: Made, engine: str, precision: str, tmp_path: Path) -> None:
    write_case(tmp_path / "new_0000.nii.gz", 7)
    with Predictor.open(made.package, engine="pytorch") as predictor:
        expected = predictor.trace(tmp_path / "new_0000.nii.gz")
    with Predictor.open(made.package, engine=engine, precision=precision) as predictor:
        assert isinstance(predictor, VolumePredictor)
        found = predictor.trace(tmp_path / "new_0000.nii.gz")
    wanted = expected["network"]
    error = float(np.sqrt(np.mean((found["network"] - wanted) ** 2)) / wanted.std())
    assert error <= get_engine(engine).TOLERANCE[precision]
    if precision == "int8":
        assert error > 1e-4, "nothing was quantised"
    agreement = np.mean(found["decoded"] == expected["decoded"])
    assert agreement >= {"fp32": 0.9999, "fp16": 0.99, "bf16": 0.97, "int8": 0.9, "int16": 0.999}[precision]


def test_every_member_is_in_every_precision(made: Made) -> None:
    members = set(made.source.recipe.network.members)
    for variant in made.package.manifest.variants:
        assert set(variant.graphs) == members
        assert len(set(variant.sha256.values())) == len(members), variant.precision
    fp32, bf16 = (made.package.manifest.variant(name) for name in ("fp32", "bf16"))
    assert fp32 is not None
    assert bf16 is not None
    assert bf16.graphs == fp32.graphs
    shares = {record.engine: record.convolution_share for record in made.compiled["int8"].variant.executed}
    assert shares.get("openvino", {"i8": 1.0}).get("i8", 0) > 0, "int8 ran in float"
    for precision, result in made.compiled.items():
        assert all(row.passed for row in result.checks), precision


def test_calibration_is_recorded_by_its_cases(made: Made) -> None:
    record = made.package.provenance()["calibration"]["int8"]
    assert record["images"] == 24
    assert record["available"] == 3
    assert len(set(record["pixel_sha256"])) == 3
    assert len(set(record["input_sha256"])) > 12
    assert any("fewer than 64" in warning for warning in made.compiled["int8"].warnings)
    assert not any("no labels" in warning for warning in made.compiled["int8"].warnings)


def test_the_packages_own_golden_sample(made: Made) -> None:
    rows = verify_package(made.package.path)
    assert {row.precision for row in rows} == set(PRECISIONS)
    assert all(row.passed for row in rows)


def test_a_folded_normalisation_and_a_free_size_are_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="normalisation"):
        compile_package(made.package, "fp16", fold_normalization=True, output=tmp_path / "folded.segship")
    with pytest.raises(UsageError, match="leave --shape out"):
        export(made.source, tmp_path / "free.segship", shape="dynamic")
    with pytest.raises(UsageError, match="leave --validate out"):
        export(made.source, tmp_path / "scored.segship", validate=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_same_source_gives_the_same_package(made: Made, tmp_path: Path) -> None:
    again = export(made.source, tmp_path / "again.segship", engines=["pytorch"])
    for name in (name for name in again.package.names() if name.startswith(("graphs/fp32", "golden/"))):
        assert again.package.read(name) == made.package.read(name), name
    assert parity.table(again.parity)
