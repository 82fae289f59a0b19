"""predictions.jsonl: either runner knows what the other wrote into a folder, and what it did not finish."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from cpp_cases import picture_package, volume_package, write_pictures, write_volume
from cpp_compare import Runner, same
from PIL import Image

from segship.manifest import Divide
from segship.package import Package

ODD_NAMES = ("caf\udce9.png", "\U0001f4c3\udc80\udcff.png", "a\u2028b\x85.png", "back\\u0000\\udce9.png", 'tab\t".png')
"""bytes that are no UTF-8, a character of two halves, ends of lines, and what looks like an escape"""


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "predictions.jsonl").read_bytes().decode("ascii")
    return [json.loads(line) for line in text.split("\n") if line]


def labels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj).copy()


def mask(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).copy()


@pytest.fixture
def volumes(tmp_path: Path) -> tuple[Package, Package]:
    """Two packages that answer unlike each other."""
    return volume_package(tmp_path / "a.segship"), volume_package(tmp_path / "b.segship", scale=1 / 300)


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Package, Package]:
    return picture_package(tmp_path / "a.segship"), picture_package(tmp_path / "b.segship", Divide(by=120))


def test_labels_of_volumes_are_not_taken_for_pythons(
    volumes: tuple[Package, Package], run_cpp: Runner, python: Any, tmp_path: Path
) -> None:
    case, out = write_volume(tmp_path / "in" / "a_0000.nii.gz", (12, 14, 10)), tmp_path / "python"
    assert python(volumes[0].path, case)[0] == 0
    wanted = labels(out / "a.nii.gz")
    ran = run_cpp.words(str(volumes[1].path), f"{tmp_path}/./in//a_0000.nii.gz", "-o", str(out), "--save-probabilities")
    assert ran.code == 0, ran.err
    assert (labels(out / "a.nii.gz") != wanted).any(), "the packages answer alike"
    last = lines(out)[-1]
    assert (last["input"], last["made_by"]) == (str(case), "segship-run")
    assert last["outputs"] == ["a.nii.gz", "a.npz", "a.pkl"]
    assert (last["size"], last["mtime_ns"]) == (case.stat().st_size, case.stat().st_mtime_ns)
    assert python(volumes[0].path, case)[0] == 0
    assert np.array_equal(labels(out / "a.nii.gz"), wanted)


def test_volumes_of_a_run_that_ended_early(
    volumes: tuple[Package, Package], run_cpp: Runner, python: Any, tmp_path: Path
) -> None:
    """It wrote the labels, but not the stages behind them: what Python noted before does not hold any more."""
    case, out = write_volume(tmp_path / "in" / "a_0000.nii.gz", (12, 14, 10)), tmp_path / "python"
    assert python(volumes[0].path, case)[0] == 0
    wanted = labels(out / "a.nii.gz")
    (tmp_path / "stages").write_text("in the way")
    words = ["-o", str(out), "--save-stages", str(tmp_path / "stages")]
    assert run_cpp.words(str(volumes[1].path), str(case), *words).code == 1
    assert (labels(out / "a.nii.gz") != wanted).any()
    assert python(volumes[0].path, case)[0] == 0
    assert np.array_equal(labels(out / "a.nii.gz"), wanted)


def test_pictures_of_a_run_that_ended_early(
    pictures: tuple[Package, Package], run_cpp: Runner, python: Any, tmp_path: Path
) -> None:
    path, out = write_pictures(tmp_path / "in", ((40, 50),))[0], tmp_path / "python"
    other = tmp_path / "other" / path.name  # whose mask has the same name
    other.parent.mkdir()
    shutil.copy(path, other)
    assert python(pictures[0].path, path)[0] == 0
    wanted = mask(out / path.name)
    (out / "overlays").write_text("in the way")
    assert run_cpp.words(str(pictures[1].path), str(other), "-o", str(out), "--overlay").code == 1
    assert (mask(out / path.name) != wanted).any(), "the packages answer alike"
    assert python(pictures[0].path, path)[0] == 0
    assert np.array_equal(mask(out / path.name), wanted)


def test_a_result_that_is_named_is_an_input(
    pictures: tuple[Package, Package], run_cpp: Runner, python: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    package, out = str(pictures[0].path), tmp_path / "python"
    inputs = write_pictures(tmp_path / "in", ((40, 50), (20, 30)))
    assert run_cpp.words(package, str(tmp_path / "in"), "-o", "python").code == 0
    ran = run_cpp.words(package, f"python/{inputs[0].name}", "-o", "./python", "--format", "npz", "--json")
    assert json.loads(ran.out)["done"] == 1
    assert (out / inputs[0].with_suffix(".npz").name).is_file()
    before = mask(out / inputs[0].name)
    ran = run_cpp.words(package, f"python/{inputs[0].name}", "-o", "python")
    assert ran.code == 2
    assert "would overwrite the input" in ran.error
    assert np.array_equal(mask(out / inputs[0].name), before)
    for words in (out, out / "*.png"):
        ours = run_cpp.words(package, str(words), "-o", str(out))
        same(ours, python(package, words), f"all inputs are results of an earlier run into {out}")


def test_an_overlay_over_an_input(pictures: tuple[Package, Package], run_cpp: Runner, tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "out" / "overlays", ((20, 30),))[0]
    before = path.read_bytes()
    ran = run_cpp.words(str(pictures[0].path), str(path), "-o", str(tmp_path / "out"), "--overlay")
    assert ran.code == 2
    assert "would overwrite the input" in ran.error
    assert path.read_bytes() == before


def test_names_of_any_bytes(pictures: tuple[Package, Package], run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    """Written as Python writes them, and known again by both runners."""
    made, folder, out = (
        write_pictures(tmp_path / "made", ((20, 30),))[0],
        tmp_path / "python" / "in",
        tmp_path / "python",
    )
    folder.mkdir(parents=True)
    for name in ODD_NAMES:
        shutil.copy(made, folder / name)
    for _ in range(2):
        ran = run_cpp.words(str(pictures[0].path), str(out), "-o", str(out), "--json")
        assert json.loads(ran.out)["done"] == len(ODD_NAMES), ran.out
    assert sorted(os.listdir(out)) == sorted([*ODD_NAMES, "in", "predictions.jsonl"])
    assert {name for line in lines(out) for name in line["outputs"]} == set(ODD_NAMES)
    assert {line["input"] for line in lines(out)} == {str(folder / name) for name in ODD_NAMES}
    assert python(pictures[0].path, out)[0] == 0
    ran = run_cpp.words(str(pictures[0].path), str(out), "-o", str(out), "--json")
    assert json.loads(ran.out)["done"] == len(ODD_NAMES), ran.out
