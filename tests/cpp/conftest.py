"""The C++ runner beside Python. Without a built binary all of this is skipped; SEGSHIP_REQUIRE_CPP=1 makes that a failure.

`make cpp` builds cpp/build/segship-run; SEGSHIP_RUN names another one, such as a build with sanitizers. With
SEGSHIP_RUN_SANITIZED such a build runs beside it: each call but those of slow tests once more, which has to end alike and
without a sanitizer's word.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))  # reference networks and small checkpoints

from cpp_compare import Runner

from segship.errors import SegshipError
from segship.inference.cpp_runner import find_runner


@pytest.fixture(scope="session", autouse=True)
def binary() -> Path:
    try:
        return find_runner()
    except SegshipError as error:
        if os.environ.get("SEGSHIP_REQUIRE_CPP") == "1":
            pytest.fail(f"SEGSHIP_REQUIRE_CPP=1, but {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs and compiled models of this run's packages, for both runners, outside the user's own cache."""
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(cache))


@pytest.fixture(scope="session")
def sanitized() -> Path | None:
    """The build of SEGSHIP_RUN_SANITIZED, beside the one that is tested."""
    named = os.environ.get("SEGSHIP_RUN_SANITIZED")
    return find_runner(Path(named)) if named else None


@pytest.fixture
def run_cpp(request: pytest.FixtureRequest, binary: Path, sanitized: Path | None, tmp_path: Path) -> Runner:
    """``run_cpp(package, *inputs, **options)``: one call of the binary, with its stages."""
    beside = None if request.node.get_closest_marker("slow") else sanitized
    return Runner(binary=binary, folder=tmp_path / "cpp", sanitized=beside)


@pytest.fixture
def python(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """``python(package, *inputs)``: exit code and words of `segship predict`."""
    from segship.cli import run

    def call(package: Path, *inputs: Path) -> tuple[int, str]:
        capsys.readouterr()
        code = run(["predict", str(package), *map(str, inputs), "-o", str(tmp_path / "python"), "-q"])
        return code, capsys.readouterr().err

    return call


@pytest.fixture(scope="session")
def fill(shared: Path) -> Callable[..., Any]:
    """``fill(state_dict, gain)``: a copy with every float entry replaced by its seeded array."""
    from reference_files import seeded_fill

    return seeded_fill(shared)


@pytest.fixture(scope="session")
def reference_case(shared: Path) -> Callable[[str], tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """``reference_case(name)``: a case's json and its arrays."""
    from reference_files import read_case

    return partial(read_case, shared)
