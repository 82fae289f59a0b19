"""A cascade of two packages: the second stage runs the first, finds it, and takes no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunet_files import write_model
from seeded import State

from segship.cli import run as command
from segship.convert import export_volume
from segship.convert.export import export
from segship.convert.precision import compile_package
from segship.errors import InputError, PackageError, SourceError, UsageError
from segship.families.nnunet_cascade import previous_stage
from segship.inference.predictor import Predictor
from segship.inference.volume_network import TileOptions
from segship.inference.volume_predictor import VolumePredictor
from segship.manifest import PreviousStage
from segship.package import open_package

PLAIN = TileOptions(mirror=False)


def lowres_of(about: dict[str, Any]) -> dict[str, Any]:
    """The first stage of the same plans: the image alone goes in."""
    shapes = {}
    for key, shape in about["state_dict"].items():
        shapes[key] = [shape[0], 1, *shape[2:]] if len(shape) == 5 and shape[1] == about["input_channels"] > 1 and (
            ".stages.0.0.convs.0." in key and shape[0] == 4
        ) else shape  # fmt: skip
    return {**about, "configuration": "3d_lowres", "state_dict": shapes}


@pytest.fixture(scope="module")
def folders(
    shared: Path,
    reference_case: Callable[[str], Any],
    fill: Callable[..., State],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path, Path]:
    """(results folder with both stages, first stage's package, the case)"""
    root = tmp_path_factory.mktemp("cascade")
    about = reference_case("nnunet_v2_cascade")[0]
    write_model(root / "results", about, fill)
    folder = root / "results" / "Dataset900_Case"
    lowres = write_model(root / "other", lowres_of(about), fill)
    shutil.copytree(lowres, folder / lowres.name)
    first = root / "3d_lowres.segship"
    export(root / "results", first, options={"configuration": "3d_lowres"}, engines=["onnxruntime"])
    return root / "results", first, shared.parent / about["inputs"][0]


@pytest.fixture(scope="module")
def second(folders: tuple[Path, Path, Path]) -> Path:
    results, first, _ = folders
    path = first.with_name("cascade.segship")
    options = {"configuration": "3d_cascade_fullres", "previous_stage": str(first)}
    export(results, path, options=options, engines=["onnxruntime"])
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))


def opened(path: Path) -> VolumePredictor:
    predictor = Predictor.open(path, engine="onnxruntime")
    assert isinstance(predictor, VolumePredictor)
    return predictor


def test_the_first_stage_runs_and_its_labels_go_in(folders: tuple[Path, Path, Path], second: Path) -> None:
    _, first, case = folders
    link = open_package(second).manifest.previous_stage
    assert link is not None
    assert (link.file, link.sha256) == ("3d_lowres.segship", open_package(first).network_sha256)
    with opened(first) as one, opened(second) as two:
        before = one(case, tiles=PLAIN).labels
        assert len(np.unique(before)) > 1, "a first stage that says something"
        chained = two(case, tiles=PLAIN).labels
        assert (chained == two(case, previous=before, tiles=PLAIN).labels).all()
        assert (chained != two(case, previous=np.zeros_like(before), tiles=PLAIN).labels).any()


def test_the_link_is_the_network_not_the_file(folders: tuple[Path, Path, Path], second: Path, tmp_path: Path) -> None:
    """More precisions and records make another file of the same network."""
    _, first, case = folders
    for path in (first, second):
        shutil.copyfile(path, tmp_path / path.name)
    changed = compile_package(tmp_path / first.name, "fp16", engines=["onnxruntime"]).package
    assert changed.sha256 != open_package(first).sha256
    with opened(tmp_path / second.name) as two:
        assert two(case, tiles=PLAIN).labels.any()


def test_a_package_beside_the_output_is_linked_without_being_named(
    folders: tuple[Path, Path, Path], second: Path, tmp_path: Path
) -> None:
    recipe = open_package(second).manifest.recipe
    unlinked = recipe.model_copy(update={"previous_stage": PreviousStage(file="3d_lowres.segship")})
    assert export_volume._linked(unlinked, tmp_path / "two.segship") == unlinked
    shutil.copyfile(folders[1], tmp_path / "3d_lowres.segship")
    assert export_volume._linked(unlinked, tmp_path / "two.segship") == recipe


def test_a_missing_or_another_first_stage_is_said(
    folders: tuple[Path, Path, Path], second: Path, tmp_path: Path
) -> None:
    _, first, case = folders
    shutil.copyfile(second, tmp_path / "cascade.segship")
    with opened(tmp_path / "cascade.segship") as two:
        with pytest.raises(InputError, match=r"put 3d_lowres\.segship beside it, name it with --previous-stage"):
            two(case)
        two.previous_package = second
        with pytest.raises(PackageError, match="is not the package that"):
            two(case)
        two.previous_package = first
        assert two(case, tiles=PLAIN).labels.shape
    with pytest.raises(UsageError, match="continues no other"):
        previous_stage(None, (1,), str(first))


def test_labels_that_do_not_fit_are_refused(folders: tuple[Path, Path, Path]) -> None:
    assert previous_stage("3d_lowres", (1, 2, 3), str(folders[1])) is not None
    with pytest.raises(SourceError, match=r"gives the labels \[1, 2, 3\], and the second stage takes \[1, 2\]"):
        previous_stage("3d_lowres", (1, 2), str(folders[1]))
    unnamed = previous_stage("3d_lowres", (1, 2), None)
    assert unnamed == PreviousStage(file="3d_lowres.segship")
    assert previous_stage(None, (1,), None) is None


def test_predict_takes_the_package_or_its_labels(
    folders: tuple[Path, Path, Path], second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, first, case = folders
    (tmp_path / "in").mkdir()
    shutil.copyfile(case, tmp_path / "in" / "a_0000.nii.gz")
    lone = shutil.copyfile(second, tmp_path / "cascade.segship")

    def predict(*words: object) -> int:
        return command([str(word) for word in ("predict", *words, "--no-tta", "--engine", "onnxruntime", "-q")])

    def labels(folder: str) -> np.ndarray:
        return np.asarray(nibabel.load(tmp_path / folder / "a.nii.gz").dataobj)

    assert predict(first, "-i", tmp_path / "in", "-o", tmp_path / "low") == 0
    assert predict(lone, "-i", tmp_path / "in", "-o", tmp_path / "a", "--previous-stage", first) == 0
    assert predict(lone, "-i", tmp_path / "in", "-o", tmp_path / "b", "-prev_stage_predictions", tmp_path / "low") == 0
    assert (labels("a") == labels("b")).all()
    capsys.readouterr()
    assert predict(lone, "-i", tmp_path / "in", "-o", tmp_path / "c") == 1
    assert "put 3d_lowres.segship beside it" in capsys.readouterr().err
    assert not (tmp_path / "c" / "a.nii.gz").exists()
    (tmp_path / "low" / "a.nii.gz").unlink()
    assert predict(lone, "-i", tmp_path / "in", "-o", tmp_path / "d", "-prev_stage_predictions", tmp_path / "low") == 1
    assert "a.nii.gz is missing: the first stage's labels of a" in capsys.readouterr().err
    assert predict(lone, "-i", tmp_path / "in", "-o", tmp_path / "e", "--previous-stage", tmp_path / "none") == 2
    assert predict(first, "-i", tmp_path / "in", "-o", tmp_path / "f", "--previous-stage", first) == 2
    record = json.loads((tmp_path / "a" / "segship-run.json").read_text())
    assert record["options"]["previous_stage"] == str(first)
