"""Packages of others with families: the names that they import from segship, and libraries that they miss."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from outside_packages import OutsidePackages

from segship import families, plugins

GOOD = """
from segship.families import Checkpoint, OnnxFile, OnnxNetwork, Option, Source, is_onnx, open_checkpoint, open_onnx
from segship.families.common import ALL_OUTPUTS, CLASS_NAMES, INPUT_SIZE, MEAN, STD
NAME, LOOKS_FOR = "theirs", "nothing"
OPTIONS = (ALL_OUTPUTS, CLASS_NAMES, INPUT_SIZE, MEAN, STD)
def recognise(checkpoint: Checkpoint): return False
def load(checkpoint, options, force=False): pass
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OutsidePackages]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_warned", set())
    yield OutsidePackages(tmp_path, "segship.families", GOOD)
    for name in [name for name in sys.modules if name.startswith("module_of_")]:
        del sys.modules[name]


def test_families_find_what_they_build_on(packages: OutsidePackages, caplog: pytest.LogCaptureFixture) -> None:
    packages.add()
    options = families.family_options()["theirs"]
    assert [option.name for option in options] == ["all_outputs", "class_names", "input_size", "mean", "std"]
    assert caplog.records == []
    with pytest.raises(AttributeError, match=r"module 'segship.families' has no attribute 'open_nothing'"):
        _ = families.open_nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(("missing", "library"), [("torch", "torch"), ("torch.nn", "torch"), ("onnx", "onnx")])
def test_a_library_of_converting_that_is_missing_is_no_fault_of_theirs(
    packages: OutsidePackages, caplog: pytest.LogCaptureFixture, missing: str, library: str
) -> None:
    packages.add(f"raise ModuleNotFoundError('No module named {missing}', name={missing!r})")
    assert list(families.family_options()) == list(families.BUILT_IN)
    said = f"family 'theirs' of theirs 1.0 needs {library}; type: pip install 'segship[convert]'"
    assert [record.message for record in caplog.records] == [said]
