"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
