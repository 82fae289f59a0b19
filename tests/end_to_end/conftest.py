"""A command line to call, a package to call it on, and pictures to feed it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chromium import Page
from tiny_package import tiny_package

from segship.cli import run as run_command


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that an error is. Fails when it is a traceback or more than one line."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.strip().splitlines() if line.startswith(("error:", "Error:"))]
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def segship(capsys, tmp_path, monkeypatch) -> Callable[..., Outcome]:
    """``segship("predict", package, …)`` runs the command line in this process."""
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run_command([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code=code, out=captured.out, err=captured.err)

    return call


@pytest.fixture(scope="session")
def package(tmp_path_factory) -> Path:
    """A real package whose network is one convolution: bright is nucleus."""
    return tiny_package(tmp_path_factory.mktemp("package") / "bright.segship", size=64).path


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Page]:
    """A page in a browser, and the folder that its downloads come to."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "downloads").mkdir()
    with Page(folder / "profile", folder / "downloads") as page:
        page.downloads = folder / "downloads"
        yield page
