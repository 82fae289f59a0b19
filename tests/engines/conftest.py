"""The graphs of `engine_graphs`, made once a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from engine_graphs import Graphs


@pytest.fixture(scope="session")
def bilinear(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    from engine_graphs import make_graphs

    return make_graphs(tmp_path_factory.mktemp("bilinear"), "bilinear")


@pytest.fixture(scope="session")
def nearest(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    from engine_graphs import make_graphs

    return make_graphs(tmp_path_factory.mktemp("nearest"), "nearest")


@pytest.fixture(params=["bilinear", "nearest"])
def graphs(request: pytest.FixtureRequest) -> Graphs:
    made: Graphs = request.getfixturevalue(request.param)
    return made
