"""`segship prepare kits19`: upstream's arrays, resumed, verified, and a line for every case that is broken."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from kits19_files import write_case

from segship.cli import run as segship
from segship.datasets.kits19_folder import prepare_folders
from segship.datasets.kits19_prepare import prepare_kits19
from segship.datasets.kits19_verify import verify_kits19
from segship.errors import DatasetError, OutputError, UsageError


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def formula_labels(shape: tuple[int, ...]) -> np.ndarray:
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    c = [n // 2 for n in shape]
    out = np.zeros(shape, np.uint8)
    out[(z - c[0]) ** 2 + (y - c[1]) ** 2 + (2 * (x - c[2])) ** 2 < 400] = 1
    out[(z - c[0] - 6) ** 2 + (y - c[1] + 5) ** 2 + (x - c[2]) ** 2 < 60] = 2
    return out


def write_reference_case(about: dict[str, Any], shared: Path, folder: Path) -> np.ndarray | None:
    """The volume that upstream's code was given; returns labels that are no KiTS labels."""
    image = np.asarray(nibabel.load(shared / "data/ct" / about["image"]).dataobj)
    foreign = None
    if about["label_formula"] is None:
        foreign = np.asarray(nibabel.load(shared / "data/ct" / about["label"]).dataobj)
    order = about["transpose_of_the_array"]
    if order is not None:
        image = image.transpose(order)
    assert list(image.shape) == about["shape_read"]
    folder.mkdir(parents=True)
    for name, array in (("imaging", image.astype(np.int16)), ("segmentation", formula_labels(image.shape))):
        out = nibabel.Nifti1Image(array, np.eye(4))
        out.header.set_zooms(tuple(about["pixdim_written"] or about["pixdim_as_read_float32"]))
        nibabel.save(out, folder / f"{name}.nii.gz")
    return foreign


def test_the_arrays_are_upstreams(shared: Path, tmp_path: Path) -> None:
    golden = json.loads((shared / "reference/mlperf_preprocess.json").read_text())["cases"]
    arrays = np.load(shared / "reference/mlperf_preprocess.npz")
    foreign = {n: write_reference_case(c, shared, tmp_path / f"raw/case_{n:05d}") for n, c in enumerate(golden)}
    found = prepare_kits19(tmp_path / "raw", tmp_path / "out", workers=2)
    assert not found.failed
    for number, about in enumerate(golden):
        x = np.load(tmp_path / f"out/case_{number:05d}_x.npy")
        assert x.dtype == np.float32
        assert list(x.shape[1:]) == about["shape_final"]
        assert np.abs(x[0, ::4, ::4, ::4] - arrays[f"image{number}"]).max() <= 2e-5
        assert x.mean(dtype=np.float64) == pytest.approx(about["image_mean"], abs=1e-5)
        if foreign[number] is None:
            assert md5(tmp_path / f"out/case_{number:05d}_y.npy") == about["md5_y_npy"]
            y = np.load(tmp_path / f"out/case_{number:05d}_y.npy")
            assert np.array_equal(y[0, ::4, ::4, ::4], arrays[f"label{number}"])
    assert [list(case.shape) for case in found.cases] == [c["shape_final"] for c in golden]


def test_labels_beyond_kits_go_the_same_way(shared: Path, tmp_path: Path) -> None:
    """The reference case with 42 labels: nearest neighbour, then the edge repeated, byte for byte."""
    from segship.datasets.kits19_steps import reading, steps
    from segship.inference.volume_chain import prepare_steps
    from segship.inference.volume_labels import labels_on_network_grid
    from segship.inference.volumes import read_volume

    about = json.loads((shared / "reference/mlperf_preprocess.json").read_text())["cases"][0]
    labels = write_reference_case(about, shared, tmp_path / "case_00000")
    assert labels is not None
    volume = read_volume(tmp_path / "case_00000/imaging.nii.gz", reading(reorient=False))
    found = labels_on_network_grid(labels.astype(np.uint8), prepare_steps(volume, steps()).frame)
    np.save(tmp_path / "y.npy", found[None])
    assert md5(tmp_path / "y.npy") == about["md5_y_npy"]


def test_every_label_type_and_an_early_edge(tmp_path: Path) -> None:
    for number, kind in enumerate(("u1", "u2", "i2", "f4")):
        write_case(tmp_path / f"raw/case_{number:05d}", seed=3, label_type=kind)
    found = prepare_kits19(tmp_path / "raw", tmp_path / "out", minimum=24)
    assert not found.failed
    assert len({md5(path) for path in (tmp_path / "out").glob("*_y.npy")}) == 1
    y = np.load(tmp_path / "out/case_00000_y.npy")
    assert y.dtype == np.uint8
    assert set(np.unique(y)) == {0, 1, 2}
    assert y.shape == np.load(tmp_path / "out/case_00000_x.npy").shape == (1, 25, 24, 24)


def test_broken_cases_are_a_line_each_and_the_others_go_on(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for number in range(8):
        write_case(raw / f"case_{number:05d}", seed=number)
    (raw / "case_00000/segmentation.nii.gz").unlink()
    (raw / "case_00001/imaging.nii.gz").unlink()
    write_case(raw / "other", (10, 24, 22))
    (raw / "other/segmentation.nii.gz").rename(raw / "case_00002/segmentation.nii.gz")
    cut = raw / "case_00003/imaging.nii.gz"
    cut.write_bytes(cut.read_bytes()[:900])
    damaged = np.zeros((20, 24, 22), np.float32)
    damaged[3, 4, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(damaged, np.eye(4)), raw / "case_00004/imaging.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image(np.full((20, 24, 22), 7, np.uint8), np.eye(4)), raw / "case_00005/segmentation.nii.gz"
    )
    (raw / "case_00210").mkdir()
    (raw / "case_00210/imaging.nii.gz").write_bytes((raw / "case_00007/imaging.nii.gz").read_bytes())
    (raw / "case_00211").mkdir()
    (raw / "LICENSE").write_text("x")
    found = prepare_kits19(raw, tmp_path / "out", minimum=16, workers=3)
    assert [case.id for case in found.cases] == ["case_00006", "case_00007"]
    failed = dict(found.failed)
    assert failed.keys() == {f"case_{n:05d}" for n in (0, 1, 2, 3, 4, 5, 211)}
    assert "segmentation.nii.gz missing" in failed["case_00000"]
    assert "imaging.nii.gz missing" in failed["case_00001"]
    assert "20×24×22 voxels and segmentation.nii.gz 10×24×22" in failed["case_00002"]
    assert "imaging.nii.gz" in failed["case_00003"]
    assert "1 NaN or infinite values" in failed["case_00004"]
    assert "from 7 to 7; labels are 0, 1 and 2" in failed["case_00005"]
    assert any("1 cases have no published labels" in note for note in found.notes)
    assert all("\n" not in text for text in failed.values())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        f"case_0000{n}_{k}.npy" for n in (6, 7) for k in "xy"
    ]
    assert segship(["prepare", "kits19", str(raw), str(tmp_path / "out"), "--pad-to", "16", "-q"]) == 1


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for number in range(3):
        write_case(raw / f"case_{number:05d}", seed=number)
    first = prepare_kits19(raw, out, minimum=16)
    assert all(case.made for case in first.cases)
    wanted = {path.name: md5(path) for path in out.iterdir()}
    (out / "case_00000_y.npy").unlink()  # stopped between the two files
    whole = (out / "case_00001_x.npy").read_bytes()
    (out / "case_00001_x.npy").write_bytes(whole[: len(whole) // 2])  # an older tool's half-written file
    (out / ".case_00002_x.npy.part").write_bytes(b"left over")
    again = prepare_kits19(raw, out, minimum=16)
    assert {case.id: case.made for case in again.cases} == {"case_00000": True, "case_00001": True, "case_00002": False}
    assert {path.name: md5(path) for path in out.iterdir()} == wanted
    assert [(c.shape, c.mean, c.std) for c in again.cases] == [(c.shape, c.mean, c.std) for c in first.cases]
    assert [case.made for case in prepare_kits19(raw, out, minimum=32).cases] == [True] * 3


def test_the_numbers_that_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(tmp_path / "raw/case_00003")
    arguments = ["prepare", "kits19", str(tmp_path / "raw"), str(tmp_path / "out"), "--pad-to", "16"]
    assert segship(arguments) == 0
    x = np.load(tmp_path / "out/case_00003_x.npy")
    text = capsys.readouterr().out
    assert f"case_00003  25×22×16  mean {x.mean():.2f}  std {x.std():.2f}" in text
    assert f"median mean {x.mean():.2f}, std {x.std():.2f}, shape 25×22×16" in text
    assert segship([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cases"][0]["made"] is False
    assert told["medians"]["d"] == 25


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR"])
def test_other_orientations_are_told_and_turned_on_request(tmp_path: Path, codes: str) -> None:
    from nibabel.orientations import axcodes2ornt, ornt_transform

    write_case(tmp_path / "ipl/case_00000", seed=1)
    there = ornt_transform(axcodes2ornt("IPL"), axcodes2ornt(tuple(codes)))
    (tmp_path / "turned/case_00000").mkdir(parents=True)
    for name in ("imaging", "segmentation"):
        image = nibabel.load(tmp_path / f"ipl/case_00000/{name}.nii.gz")
        nibabel.save(image.as_reoriented(there), tmp_path / f"turned/case_00000/{name}.nii.gz")
    prepare_kits19(tmp_path / "ipl", tmp_path / "a", minimum=16)
    told = prepare_kits19(tmp_path / "turned", tmp_path / "b", minimum=16)
    assert any(f"first case_00000 ({','.join(codes)}); --reorient" in note for note in told.notes)
    turned = prepare_kits19(tmp_path / "turned", tmp_path / "c", minimum=16, reorient=True)
    assert not turned.notes
    for kind in "xy":
        one, other = (np.load(tmp_path / f"{folder}/case_00000_{kind}.npy") for folder in "ac")
        assert np.array_equal(one, other)


def test_nothing_to_prepare_and_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no KiTS19 case; expected case_00000/imaging"):
        prepare_kits19(tmp_path, tmp_path / "out")
    assert segship(["prepare", "kits19", str(tmp_path / "absent"), str(tmp_path / "out")]) == 2
    assert segship(["prepare", "kits19", str(tmp_path / "absent"), "--verify"]) == 2
    write_case(tmp_path / "raw/case_00000")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        prepare_kits19(tmp_path / "raw", tmp_path / "file")
    with pytest.raises(UsageError, match="name the folder"):
        prepare_folders(tmp_path / "raw")


# ------------------------------------------------------------------------------------------ verification


def test_every_mismatch_is_listed_and_extras_are_no_fault(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for number in range(3):
        write_case(raw / f"case_{number:05d}", seed=number)
    prepare_kits19(raw, out, minimum=16)
    sums = {path.name: md5(path) for path in out.iterdir()}
    sums["case_00099_x.npy"] = "0" * 32
    del sums["case_00002_y.npy"]
    (tmp_path / "checksum.json").write_text(json.dumps(sums))
    (out / "notes.txt").write_text("stray")
    fine = verify_kits19(out, tmp_path / "checksum.json")
    assert fine.passed
    assert (fine.checked, fine.absent, fine.unlisted) == (5, 1, ("case_00002_y.npy",))
    text = "".join(f"{value}  ./out/{name}\n" for name, value in sums.items())
    (tmp_path / "sums.md5").write_text(text)
    assert verify_kits19(out, tmp_path / "sums.md5") == dataclasses.replace(fine, against="sums.md5")
    for name in ("case_00000_y.npy", "case_00001_x.npy"):
        array = np.load(out / name)
        array.flat[7] += 1
        np.save(out / name, array)
    found = verify_kits19(out, tmp_path / "checksum.json")
    assert [name for name, _ in found.mismatches] == ["case_00000_y.npy", "case_00001_x.npy"]
    assert not found.passed
    assert segship(["prepare", "kits19", str(out), "--verify", str(tmp_path / "checksum.json"), "-q"]) == 3
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(UsageError, match="no list of md5 sums"):
        verify_kits19(out, tmp_path / "bad.json")


def test_an_image_of_other_bytes_counts_by_its_values(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_case(raw / "case_00000")
    prepare_kits19(raw, out, minimum=16)
    sums = {path.name: md5(path) for path in out.iterdir()}
    sums["case_00000_x.npy"] = "1" * 32  # another torch build's last bits
    (tmp_path / "list.json").write_text(json.dumps(sums))
    found = prepare_kits19(raw, out, minimum=16, verify=tmp_path / "list.json").verification
    assert found is not None
    assert found.passed
    assert found.by_value == ("case_00000_x.npy",)
    assert not verify_kits19(out, tmp_path / "list.json").passed  # without its source nobody can tell
    other = tmp_path / "elsewhere"
    other.mkdir()
    for path in out.iterdir():
        array = np.load(path)
        np.save(other / path.name, array + np.float32(4e-6) if array.dtype == np.float32 else array)
    assert verify_kits19(out, other).passed
    np.save(other / "case_00000_x.npy", np.load(out / "case_00000_x.npy") + np.float32(1e-3))
    assert "values differ by up to 1.0e-03" in verify_kits19(out, other).mismatches[0][1]


def test_the_published_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from segship.datasets.kits19 import facts

    assert len(facts()["md5"]) == 420
    write_case(tmp_path / "raw/case_00000")
    assert (
        segship(["prepare", "kits19", str(tmp_path / "raw"), str(tmp_path / "out"), "--pad-to", "16", "--verify"]) == 3
    )
    text = capsys.readouterr().out
    assert "mismatch: case_00000_y.npy: its md5 is" in text
    assert "418 listed files are not there" in text


# ------------------------------------------------------------------------------------------- synthetic


def test_synthetic_cases(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    found = prepare_folders(raw, tmp_path / "out", synthetic=3, size=40, minimum=40)
    assert [case.id for case in found.cases] == ["case_00000", "case_00001", "case_00002"]
    assert not found.failed
    assert not any("not stored" in note for note in found.notes)
    for case in found.cases:
        assert all(40 <= side <= 48 for side in case.shape)
        y = np.load(tmp_path / f"out/{case.id}_y.npy")
        x = np.load(tmp_path / f"out/{case.id}_x.npy")
        share = [float(np.mean(y == k)) for k in (1, 2)]
        assert 0.003 < share[1] < share[0] < 0.15
        assert x[y == 1].mean() > x[y == 2].mean() + 0.3 > x[y == 0].mean()
    image = nibabel.load(raw / "case_00001/imaging.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == ("I", "P", "L")
    spacings = {tuple(nibabel.load(raw / f"{c.id}/imaging.nii.gz").header.get_zooms()) for c in found.cases}
    assert len(spacings) == 3
    before = {path: path.read_bytes() for path in raw.rglob("*.nii.gz")}
    prepare_folders(raw, synthetic=3, size=40)
    assert all(path.read_bytes() == data for path, data in before.items())
    prepare_folders(raw, synthetic=3, size=40, seed=1)
    assert all(path.read_bytes() != data for path, data in before.items())


def test_synthetic_cases_never_replace_others(tmp_path: Path) -> None:
    write_case(tmp_path / "case_00000")
    with pytest.raises(OutputError, match="cases that were not made here"):
        prepare_folders(tmp_path, synthetic=1)
    with pytest.raises(UsageError, match="1 to 210 cases of at least 32"):
        prepare_folders(tmp_path / "new", synthetic=1, size=8)
