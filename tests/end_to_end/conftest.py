"""A package to call the command line on, and a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Page
from tiny_package import tiny_package


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
