"""NRRD and MetaImage files, which Python reads with SimpleITK and the C++ runner by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_cases import values, volume_input, volume_package
from cpp_compare import Runner, check_decoded, check_stages

from segship.inference.predictor import Predictor
from segship.manifest import CropToNonzero, Transpose

SimpleITK = pytest.importorskip("SimpleITK")
ENDINGS = (".nrrd", ".mha")


def write_itk(path: Path, dtype: Any = np.int16, *, oblique: bool = True, packed: bool = True, seed: int = 0) -> Path:
    array = values((11, 16, 13), seed).astype(dtype)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((1.5, 0.8, 2.25))
    image.SetOrigin((-12.5, 40.25, 7.0))
    c, s = np.cos(0.3), np.sin(0.3)
    image.SetDirection((c, -s, 0, s, c, 0, 0, 0, 1) if oblique else (0, 0, -1, -1, 0, 0, 0, 1, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path), packed)
    return path


@pytest.mark.parametrize("reader", ["simpleitk", "simpleitk-reorient"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_stages_and_places(ending: str, reader: str, run_cpp: Runner, tmp_path: Path) -> None:
    """Number types, packed and plain, oblique and with axes exchanged; labels lie where the image does."""
    folder = tmp_path / "in"
    inputs = [
        write_itk(folder / f"{np.dtype(kind).name}_0000{ending}", kind, oblique=bool(n % 2), packed=n % 3 > 0, seed=n)
        for n, kind in enumerate((np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64))
    ]
    spec = volume_input(reader, file_ending=ending)
    steps = (Transpose(axes=(1, 0, 2)), CropToNonzero(fill_holes=True))
    package = volume_package(tmp_path / "net.segship", *steps, spec=spec)
    found = run_cpp(package, *inputs)
    assert found.code == 0, found.err
    with Predictor.open(package) as predictor:
        for path in inputs:
            name = path.name.removesuffix(f"_0000{ending}")
            check_stages(found.of(name), predictor.trace(path))
            (wanted,) = predictor(path).save(tmp_path / f"py_{name}{ending}")
            same_file(found.folder / f"{name}{ending}", wanted)


def same_file(found: Path, wanted: Path) -> None:
    ours, theirs = SimpleITK.ReadImage(str(found)), SimpleITK.ReadImage(str(wanted))
    assert ours.GetPixelID() == theirs.GetPixelID()
    for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(ours, name)(), getattr(theirs, name)(), rtol=1e-9, atol=1e-9), name
    check_decoded(SimpleITK.GetArrayFromImage(ours), SimpleITK.GetArrayFromImage(theirs))


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_files_are_named(ending: str, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    package = volume_package(tmp_path / "net.segship", spec=volume_input("simpleitk", file_ending=ending)).path
    whole = write_itk(tmp_path / f"good{ending}").read_bytes()
    plain = write_itk(tmp_path / f"plain{ending}", packed=False).read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    for number, data in enumerate((b"", b"text\n" * 50, whole[:60], whole[:-40], plain[:-1])):
        (folder / f"bad{number}_0000{ending}").write_bytes(data)
    (folder / f"good_0000{ending}").write_bytes(whole)
    ours, theirs = run_cpp(package, folder), python(package, folder)
    assert ours.code == theirs[0] == 1
    assert (ours.folder / f"good{ending}").is_file()
    for number in range(5):
        ours.failure(f"bad{number}")


def test_what_python_alone_reads_is_named(run_cpp: Runner, tmp_path: Path) -> None:
    package = volume_package(tmp_path / "net.segship", spec=volume_input("simpleitk", file_ending=".gipl"))
    ran = run_cpp(package, write_itk(tmp_path / "a_0000.gipl", oblique=False, packed=False))
    assert ran.code == 1
    assert "GIPL volume, which the C++ runner does not read; predict it with `segship predict`" in ran.failure(
        "a_0000.gipl"
    )
