"""The Dockerfiles by their text: what they copy exists, what they install is an extra, nobody runs as root."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def test_there_is_one_for_prediction_and_one_for_training() -> None:
    assert [path.name for path in FILES] == ["predict.Dockerfile", "train.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_what_is_copied_is_there_and_not_ignored(path: Path) -> None:
    kept = {
        line[1:] for line in (path.parent / f"{path.name}.dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", path.read_text(), re.M):
        for source in sources.split():
            assert (ROOT / source).exists()
            assert source in kept


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_extras_exist_versions_are_pinned_and_the_user_is_not_root(path: Path) -> None:
    text = path.read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = re.findall(r"'\.\[(.+)\]'", text)
    assert set(wanted.split(",")) <= set(extras)
    assert ("train" in path.name) == (wanted == "all")
    assert text.count("-c constraints.txt") == text.count("pip install")
    assert text.rindex("\nUSER 1000\n") < text.index("\nENTRYPOINT")
    torch = re.findall(r"torch==(\S+)", text)
    assert all(f"torch=={version}\n" in (ROOT / "constraints.txt").read_text() for version in torch)
