"""Every family's package through the C++ runner, stage by stage against Python. A new family is found by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cpp_cases import write_pictures, write_volume
from cpp_compare import Runner, check_decoded, check_stages

from segship.convert.export import bundled_sample, export
from segship.convert.precision import compile_package
from segship.engines import get_engine
from segship.families import family_names, get_family
from segship.inference.predictor import Predictor
from segship.inference.verify import verify_package, verify_with_runner
from segship.package import Package, open_package

SIZES = ((96, 128), (61, 200), (150, 33))
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int16")
AGREEMENT = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.999, "int8": 0.999, "int16": 0.999}
"""one engine and one graph on both sides: what differs is which threads summed first"""


@dataclass(frozen=True, kw_only=True)
class Made:
    package: Package
    inputs: list[Path]

    @property
    def kind(self) -> str:
        return self.package.manifest.input.kind


def training_data(folder: Path, kind: str) -> Path:
    if kind == "volume":
        for seed in range(2):
            write_volume(folder / "imagesTr" / f"case{seed}_0000.nii.gz", (30, 26, 14), seed=seed)
        return folder
    whole = cv2.imdecode(np.frombuffer(bundled_sample(), np.uint8), cv2.IMREAD_COLOR)
    folder.mkdir()
    for index in range(4):
        cv2.imwrite(str(folder / f"{index}.png"), whole[3 * index : 3 * index + 80, 5 * index : 5 * index + 100])
    return folder


@pytest.fixture(scope="module", params=family_names())
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A family's tiny network in every precision, and inputs that are not its golden sample."""
    source = get_family(request.param).tiny()
    root = tmp_path_factory.mktemp(request.param)
    path, kind = root / "net.segship", source.recipe.input.kind
    export(source, path, engines=["openvino"])
    calibration: dict[str, Any] = {"calibrate": training_data(root / "training", kind), "engines": ["openvino"]}
    if kind == "volume":
        calibration |= {"subset": 4, "keep_in_float": []}
    for precision in ("fp16", "bf16"):
        compile_package(path, precision, engines=["openvino"])
    compile_package(path, "int8", **calibration)
    calibration.pop("keep_in_float", None)
    compile_package(path, "int16", **calibration)
    if kind == "volume":
        inputs = [write_volume(root / "in" / f"{k}_0000.nii.gz", (33, 27, 15), kind=k) for k in ("plain", "oblique")]
    else:
        inputs = write_pictures(root / "in", SIZES)
    return Made(package=open_package(path, verify=True), inputs=inputs)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_stage(made: Made, run_cpp: Runner, precision: str) -> None:
    found = run_cpp(made.package, *made.inputs, precision=precision)
    with Predictor.open(made.package, precision=precision) as predictor:
        for path in made.inputs:
            name = path.name.removesuffix(".nii.gz").removesuffix("_0000").removesuffix(".png")
            tolerance = 1e-4 if precision == "fp32" else get_engine("openvino").TOLERANCE[precision]
            check_stages(
                found.of(name), predictor.trace(path), network=tolerance, agreement=AGREEMENT[precision],
                levels=1 if precision == "fp32" else 8,
            )  # fmt: skip


def test_the_files_are_pythons(made: Made, run_cpp: Runner, tmp_path: Path) -> None:
    """What lies in the output folder: names, pixels, geometry."""
    from segship.cli import run as segship

    assert segship(["predict", str(made.package.path), *map(str, made.inputs), "-o", str(tmp_path / "py"), "-q"]) == 0
    found = run_cpp(made.package, *made.inputs)
    assert found.code == 0, found.err
    records = {"predictions.jsonl", "segship-run.json"}
    wanted = sorted(p.relative_to(tmp_path / "py") for p in (tmp_path / "py").rglob("*") if p.is_file())
    wanted = [path for path in wanted if path.name not in records]
    assert wanted
    written = sorted(p.relative_to(found.folder) for p in found.folder.rglob("*") if p.is_file())
    assert [path for path in written if path.name not in records] == wanted
    for name in wanted:
        ours, theirs = tmp_path / "py" / name, found.folder / name
        if made.kind == "volume":
            same_volume(theirs, ours)
        else:
            check_decoded(as_stored(theirs), as_stored(ours))


def as_stored(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return np.asarray(pixels)


def same_volume(found: Path, wanted: Path) -> None:
    """Labels, type, and every byte of the header."""
    import nibabel

    a, b = nibabel.load(found), nibabel.load(wanted)
    assert a.get_data_dtype() == b.get_data_dtype()
    check_decoded(np.asarray(a.dataobj), np.asarray(b.dataobj))
    assert bytes(a.header.binaryblock) == bytes(b.header.binaryblock)


def test_the_golden_sample(made: Made, binary: Path) -> None:
    """Both runners judge every variant alike; fp32 passes. (Quantised on four windows, some other misses its bar.)"""
    ours = verify_with_runner(made.package.path, binary=binary)
    theirs = verify_package(made.package.path)
    assert {row.precision for row in ours} == set(PRECISIONS)
    for found, wanted in zip(ours, theirs, strict=True):
        assert (found.precision, found.stage) == (wanted.precision, wanted.stage)
        assert found.passed == wanted.passed, (found, wanted)
        assert found.passed or found.precision != "fp32"
