"""Which files make a case."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from volume_files import volume_input

from segship.errors import UsageError
from segship.inference.volume_cases import case_name, group_cases


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_channels_are_numbered_and_cases_sorted(tmp_path: Path) -> None:
    make(tmp_path, "b_0001.nii.gz", "b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz", "notes.txt", ".b_0002.nii.gz")
    (tmp_path / "c_0000.nii.gz").mkdir()
    cases = group_cases([tmp_path], volume_input(channels=2))
    assert [case.name for case in cases] == ["a", "b"]
    assert [file.name for file in cases[1].files] == ["b_0000.nii.gz", "b_0001.nii.gz"]


def test_missing_and_surplus_channels_are_named_before_anything_runs(tmp_path: Path) -> None:
    make(tmp_path, "a_0000.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", "b_0002.nii.gz")
    with pytest.raises(UsageError) as raised:
        group_cases([tmp_path], volume_input(channels=2))
    text = str(raised.value)
    assert "a_0001.nii.gz (c1) is missing" in text
    assert "b_0002.nii.gz is one channel too many" in text
    assert text.endswith("a case is CASE_0000.nii.gz to CASE_0001.nii.gz: c0, c1")


def test_many_faults_are_counted(tmp_path: Path) -> None:
    make(tmp_path, *(f"case{n}_0001.nii.gz" for n in range(9)))
    with pytest.raises(UsageError, match=r"and 13 more"):
        group_cases([tmp_path], volume_input(channels=1))


def test_a_case_of_one_file_needs_no_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = volume_input(channels=3, channel_files="one-file", file_ending=".png")
    make(tmp_path, "x.png", "y.PNG")
    assert [case.name for case in group_cases([tmp_path], one)] == ["x", "y"]
    make(tmp_path, "z_0000.png")
    with caplog.at_level(logging.WARNING):
        assert [case.name for case in group_cases([tmp_path], one)] == ["z"]
    assert "left out: x.png, y.PNG" in caplog.text
    named = group_cases([tmp_path / "x.png", tmp_path / "z_0000.png"], one)
    assert [(case.name, case.files[0].name) for case in named] == [("x", "x.png"), ("z", "z_0000.png")]


def test_files_given_by_name_are_grouped_too(tmp_path: Path) -> None:
    make(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b.nii.gz")
    files = [tmp_path / "a_0001.nii.gz", tmp_path / "a_0000.nii.gz"]
    with pytest.raises(UsageError, match=r"a_0001\.nii\.gz \(c1\) is missing"):
        group_cases(files[1:], volume_input(channels=2))
    assert group_cases(files, volume_input(channels=2))[0].files == (files[1], files[0])
    with pytest.raises(UsageError, match=r"b\.nii\.gz has no channel number"):
        group_cases([*files, tmp_path / "b.nii.gz"], volume_input(channels=2))


def test_nothing_to_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no case found"):
        group_cases([make(tmp_path / "empty")], volume_input())
    with pytest.raises(UsageError, match="there is no file or folder"):
        group_cases([tmp_path / "nowhere"], volume_input())
    with pytest.raises(UsageError, match="no file has a channel number"):
        group_cases([make(tmp_path / "bare", "a.nii.gz")], volume_input(channels=2))
    first, second = make(tmp_path / "one", "a_0000.nii.gz"), make(tmp_path / "two", "a_0000.nii.gz")
    with pytest.raises(UsageError, match="two cases are called a"):
        group_cases([first, second], volume_input())


@pytest.mark.parametrize(
    ("name", "ending", "case"),
    [
        ("liver_0000.nii.gz", ".nii.gz", "liver"),
        ("liver.nii.gz", ".nii.gz", "liver"),
        ("a_0000_0003.png", ".png", "a_0000"),
        ("a_12.tif", ".tif", "a_12"),
        ("a_0000.nii.gz", ".png", "a"),
    ],
)
def test_case_names(name: str, ending: str, case: str) -> None:
    assert case_name(Path(name), ending) == case
