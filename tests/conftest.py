"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Call, Outcome

if "PYTEST_XDIST_WORKER" in os.environ:
    # One process a core: threads of several processes on one core wait for each other. Set before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference cases and real data beside the repository.

    Tests that need it skip where it is absent; with SEGSHIP_REQUIRE_SHARED=1 its absence is a failure.
    """
    if not SHARED.is_dir():
        if os.environ.get("SEGSHIP_REQUIRE_SHARED") == "1":
            pytest.fail(f"SEGSHIP_REQUIRE_SHARED=1, but {SHARED} is not there")
        pytest.skip("reference cases are not beside the repository (../shared)")
    return SHARED


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that its processes share, for what takes long to make: one makes it, the others wait."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "kept"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def segship(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """``segship("predict", package, …)`` runs the command line in this process."""
    from segship.cli import run

    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code=code, out=captured.out, err=captured.err)

    return call


@pytest.fixture
def convolutions_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of convolutions are by number, not by time: what the machine does beside a test changes nothing."""
    from segship.engines import common

    measured = common.undisturbed
    monkeypatch.setattr(common, "undisturbed", lambda runs: [(kind, 1.0) for kind, _ in measured(runs)])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What engines keep goes into a folder of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
