"""nnU-Net's folders as sources: zip, folder and fold are one; what is wrong with a folder is one line."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunet_files import write_model
from seeded import State

from segship.cli import run as run_command
from segship.errors import SegshipError, SourceError, UnsafePickle, UsageError
from segship.families import get_family, load_source
from segship.families.nnunet_folder import opened
from segship.families.nnunet_validation import validation_cases
from segship.package import open_package

GRAPHS = ("graphs/", "manifest.json", "golden/")


@pytest.fixture(scope="module")
def folder(
    shared: Path, reference_case: Callable[[str], Any], fill: Callable[..., State], tmp_path_factory: Any
) -> Path:
    """A model folder of one fold in its results folder: small, and quick to export."""
    about = reference_case("nnunet_v2_torchres")[0]
    return write_model(tmp_path_factory.mktemp("results"), about, fill, "Dataset807_RefG")


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the folder with ``plans`` and ``dataset`` changed by functions on their content."""

    def make(plans: Callable[[Any], Any] | None = None, dataset: Callable[[Any], Any] | None = None) -> Path:
        target = tmp_path / folder.parent.name / folder.name
        shutil.copytree(folder, target)
        for name, change in (("plans.json", plans), ("dataset.json", dataset)):
            if change is not None:
                content = json.loads((target / name).read_text())
                change(content)
                (target / name).write_text(json.dumps(content))
        return target

    return make


def exported(source: Path, out: Path, *words: str) -> dict[str, bytes]:
    """The package's graphs, manifest and golden sample, made by the command line."""
    code = run_command(["export", str(source), "-o", str(out), "--engine", "onnxruntime", "-q", *words])
    assert code == 0
    package = open_package(out, verify=True)
    return {name: package.read(name) for name in package.names() if name.startswith(GRAPHS)}


def test_zip_folder_and_fold_give_one_package(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(folder.rglob("*")):
            out.write(path, path.relative_to(folder.parent.parent))
    whole = exported(folder, tmp_path / "folder.segship")
    assert {"graphs/fp32.onnx", "manifest.json"} <= set(whole)
    assert exported(archive, tmp_path / "zip.segship") == whole
    assert exported(folder / "fold_0", tmp_path / "fold.segship") == whole
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    assert exported(checkpoint, tmp_path / "file.segship", "-c", "3d_fullres", "-f", "0", "-chk", "final") == whole
    provenance = open_package(tmp_path / "zip.segship").provenance()["source"]
    assert provenance["source"] == "model.zip"
    assert set(provenance["files"]) == {"plans.json", "dataset.json", "fold_0/checkpoint_final.pth"}


def test_folds_become_members(shared: Path) -> None:
    model = shared / "reference" / "nnunet_v1_2d_model"
    assert list(load_source(model).members) == ["fold_0", "fold_1"]
    one = load_source(model, options={"folds": "1"})
    assert list(one.members) == ["fold_1"]
    assert one.recipe.options["folds"] == "1"
    assert [list(load_source(model / f"fold_{fold}").members) for fold in range(2)] == [["fold_0"], ["fold_1"]]
    assert list(load_source(shared / "reference" / "nnunet_v1_3d_model").members) == ["fold_all"]


def test_the_command_line_takes_several_folds(shared: Path, tmp_path: Path) -> None:
    model = shared / "reference" / "nnunet_v1_2d_model"
    both = exported(
        model, tmp_path / "both.segship", "--folds", "0", "1", "--checkpoint", "model_final_checkpoint.model"
    )
    assert {"graphs/fp32.fold_0.onnx", "graphs/fp32.fold_1.onnx"} <= set(both)
    assert run_command(["inspect", str(tmp_path / "both.segship")]) == 0
    assert run_command(["verify", str(tmp_path / "both.segship"), "--engine", "onnxruntime"]) == 0


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"folds": "0 3"}, SourceError, "has no checkpoint_final.pth in fold 3; there is: 0"),
        ({"folds": "first"}, UsageError, "--folds takes numbers"),
        ({"checkpoint": "best"}, SourceError, "no fold with checkpoint_best.pth"),
        ({"configuration": "2d"}, SourceError, "no nnU-Net model of configuration '2d'"),
        ({"compat": "everything"}, UsageError, "--compat knows"),
        ({"step_size": "2"}, UsageError, "--step-size is a part of the patch"),
        ({"mirror_axes": "0,5"}, UsageError, "do not fit a 3D network"),
        ({"postprocessing": "nowhere.json"}, SourceError, "does not exist"),
    ],
)
def test_choices_that_are_not_there(
    folder: Path, options: dict[str, str], error: type[SegshipError], says: str
) -> None:
    with pytest.raises(error, match=says):
        load_source(folder, options=options)


def test_plans_and_dataset_that_disagree(changed: Callable[..., Path]) -> None:
    def two_channels(dataset: Any) -> None:
        dataset["channel_names"] = {"0": "CT", "1": "T1"}

    with pytest.raises(SourceError, match=r"dataset\.json names 2 channels, plans\.json has 1 normalization schemes"):
        load_source(changed(dataset=two_channels))


def test_labels_and_weights_that_disagree(changed: Callable[..., Path]) -> None:
    def one_more(dataset: Any) -> None:
        dataset["labels"]["another"] = max(v for v in dataset["labels"].values() if isinstance(v, int)) + 1

    with pytest.raises(SourceError, match=r"seg_layers.*should be"):
        load_source(changed(dataset=one_more))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dynamic_network_architectures.architectures.primus.Primus", "Primus"),
        ("my_package.MyNet", "MyNet"),
    ],
)
def test_networks_outside_the_plans_are_refused_by_name(changed: Callable[..., Path], name: str, says: str) -> None:
    def custom(plans: Any) -> None:
        plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = name

    with pytest.raises(SourceError, match=says) as caught:
        load_source(changed(plans=custom))
    assert "PlainConvUNet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_duplicated_tensors_must_agree(changed: Callable[..., Path]) -> None:
    model = changed()
    file = model / "fold_0" / "checkpoint_final.pth"
    loaded = torch.load(file, weights_only=False)
    key = next(key for key in loaded["network_weights"] if "all_modules" in key)
    loaded["network_weights"][key] = loaded["network_weights"][key] + 1
    torch.save(loaded, file)
    with pytest.raises(SourceError, match="should be one tensor and differ"):
        load_source(model)


class Evil:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch /tmp/segship-was-here",)


def test_a_pickle_that_would_run_something_is_refused(shared: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(shared / "reference" / "nnunet_v1_2d_model", model)
    side = model / "fold_0" / "model_final_checkpoint.model.pkl"
    side.chmod(0o644)
    side.write_bytes(pickle.dumps({"plans": Evil()}))
    with pytest.raises(UnsafePickle, match="system"):
        load_source(model)
    assert not Path("/tmp/segship-was-here").exists()


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/outside.txt"])
def test_a_zip_that_leads_elsewhere_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(folder.rglob("*")):
            out.write(path, path.relative_to(folder.parent.parent))
        out.writestr(name, "outside")
    with pytest.raises(SourceError, match="would be written outside"):
        load_source(archive)


def test_a_folder_is_recognised_by_its_layout(folder: Path, tmp_path: Path) -> None:
    family = get_family("nnunet")
    assert family.recognise_path(folder)
    assert family.recognise_path(folder / "fold_0")
    assert family.recognise_path(folder.parent.parent)
    assert not family.recognise_path(tmp_path)


def test_a_folds_own_validation_cases_are_read(shared: Path, tmp_path: Path) -> None:
    trained = next((shared / "reference" / "nnunet_v2_trained").glob("nnUNet*"))
    with opened(trained) as model:
        found = validation_cases(model)
        assert list(found) == ["0"]
        assert len(found["0"]) == 30
        assert all(case.startswith("nuc_") and "." not in case for case in found["0"])
        damaged = replace(model, path=tmp_path)
        (tmp_path / "fold_0" / "validation_raw").mkdir(parents=True)
        summary = tmp_path / "fold_0" / "validation_raw" / "summary.json"
        v1 = {"results": {"all": [{"test": "/a/la_003.nii.gz"}, {"test": "C:\\b\\la_004.nii.gz"}]}}
        summary.write_text(json.dumps(v1))
        assert validation_cases(damaged) == {"0": ["la_003", "la_004"]}
        for text in ("{", "[]", '{"metric_per_case": [1]}', "{}"):
            summary.write_text(text)
            assert validation_cases(damaged) == {}


def test_missing_files_are_named(changed: Callable[..., Path]) -> None:
    model = changed()
    (model / "dataset.json").unlink()
    with pytest.raises(SourceError, match=r"lacks dataset\.json; copy the whole model folder"):
        load_source(model)
