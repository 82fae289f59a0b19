"""Families of other packages: found by their entry point; one that is broken harms no other."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from outside_packages import OutsidePackages

from segship import families, plugins
from segship.cli import run
from segship.errors import SourceError, UnknownSource, UsageError

GOOD = """
from segship.errors import SourceError
from segship.families import Option
NAME, LOOKS_FOR = "theirs", "a tensor called theirs.weight"
OPTIONS = (Option(name="colour", kind="choice", choices=("red", "green"), help="theirs alone"),)
def recognise(checkpoint): return "theirs.weight" in checkpoint.state_dict
def load(checkpoint, options, force=False): raise SourceError(f"loaded by theirs with {options}")
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OutsidePackages]:
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(plugins, "_warned", set())
    yield OutsidePackages(folder, "segship.families", GOOD)
    for name in [name for name in sys.modules if name.startswith("module_of_")]:
        del sys.modules[name]


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A checkpoint that no built-in family knows."""
    torch.save({"theirs.weight": torch.zeros(2, 3, 1, 1)}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_a_good_one_is_found_recognised_and_has_its_options_read(
    packages: OutsidePackages, theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packages.add()
    assert families.family_names() == (*families.BUILT_IN, "theirs")
    with pytest.raises(SourceError, match=r"loaded by theirs with \{'colour': 'red'\}"):
        families.load_source(theirs, options={"colour": "red"})
    assert run(["export", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "For theirs:" in shown
    assert "--colour red|green" in shown
    assert run(["export", str(theirs), "-o", str(theirs.with_name("net.segship")), "--colour", "blue"]) == 2
    assert "--colour must be one of red, green" in capsys.readouterr().err


def test_an_option_goes_with_its_family(
    packages: OutsidePackages, theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packages.add()
    assert run(["export", "--help"]) == 0
    assert "--colour" in capsys.readouterr().out
    shutil.rmtree(packages.folder / "theirs-1.0.dist-info")
    importlib.invalidate_caches()
    assert run(["export", "--help"]) == 0
    assert "--colour" not in capsys.readouterr().out
    assert run(["export", str(theirs), "-o", str(theirs.with_name("net.segship"))]) == 1
    assert "internal error" not in capsys.readouterr().err


def test_damaged_metadata_of_one_package_leaves_the_others(
    packages: OutsidePackages, theirs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packages.add(package="damaged", entry="this line has no sign of equality")
    packages.add()
    assert families.family_names() == (*families.BUILT_IN, "theirs")
    assert families.get_family("theirs").NAME == "theirs"
    assert families.get_family("u2net").NAME == "u2net"
    with pytest.raises(UsageError, match=r"no family is called 'damaged'; there are: unetplusplus, .*mmseg, theirs$"):
        families.get_family("damaged")
    with pytest.raises(SourceError, match="loaded by theirs"):
        families.load_source(theirs)
    told = [record.message for record in caplog.records]
    assert len(told) == 1, "said once, however often entry points are read"
    assert told[0].startswith("the entry points of an installed package cannot be read (")


BROKEN = {
    "an import that fails": ("import no_such_library", "cannot be loaded (ModuleNotFoundError: No module named"),
    "no Python": ("def (", "cannot be loaded (SyntaxError"),
    "an exit": ("raise SystemExit('no licence\\nbuy one')", "cannot be loaded (SystemExit: buy one)"),
    "an empty module": ("", "lacks NAME, LOOKS_FOR, OPTIONS, recognise, load"),
    "another name": (GOOD + "NAME = 'ours'", "calls itself 'ours'"),
    "options of another kind": (GOOD + "OPTIONS = ('colour',)", "has OPTIONS that are no tuple of Option"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_package_is_told_in_one_line_and_hurts_no_other(
    packages: OutsidePackages, theirs: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    code, wrong = BROKEN[what]
    packages.add(code)
    packages.add(
        GOOD.replace('NAME, LOOKS_FOR = "theirs"', 'NAME, LOOKS_FOR = "good"'), package="good", entry="good = {module}"
    )
    with pytest.raises(SourceError) as caught:
        families.get_family("theirs")
    told = str(caught.value)
    assert told.startswith("family 'theirs' of theirs 1.0 ")
    assert wrong in told
    assert told.endswith("its package")
    assert "\n" not in told
    assert list(families.family_options()) == [*families.BUILT_IN, "good"]
    with pytest.raises(SourceError, match="loaded by theirs"):
        families.load_source(theirs)
    assert [record.message for record in caplog.records] == [told]


def test_a_checkpoint_that_nobody_knows_lists_all_that_looked(packages: OutsidePackages, tmp_path: Path) -> None:
    packages.add()
    torch.save({"nobody.weight": torch.zeros(1)}, tmp_path / "net.pth")
    with pytest.raises(UnknownSource, match=r"unetplusplus: .*mmseg: .*theirs: a tensor called theirs\.weight; found"):
        families.load_source(tmp_path / "net.pth")


def test_two_packages_of_one_name(packages: OutsidePackages) -> None:
    packages.add()
    packages.add(package="copy")
    with pytest.raises(SourceError, match=r"two packages bring a family called 'theirs' \(copy 1.0 and theirs 1.0\)"):
        families.get_family("theirs")


def test_a_built_in_name_cannot_be_taken(packages: OutsidePackages) -> None:
    packages.add("raise RuntimeError('imported')", package="greedy", entry="u2net = {module}")
    assert families.family_names() == families.BUILT_IN
    assert families.get_family("u2net").__name__ == "segship.families.u2net"
