"""What engines share beyond checks of their inputs: how a profile's times become shares."""

from __future__ import annotations

import pytest

from segship.engines import common


def test_an_interrupted_convolution_is_told_by_its_other_runs() -> None:
    calm = [("i8", 4e-3), ("f32", 1e-3)]
    interrupted = [("i8", 5e-3), ("f32", 9e-3)]
    measured = common.undisturbed([interrupted, calm, interrupted])
    assert measured == calm
    assert common.convolution_share(measured) == {"i8": 0.8, "f32": 0.2}


def test_of_runs_of_other_layers_the_shortest_stands_for_all() -> None:
    runs = [[("i8", 4e-3), ("f32", 1e-3)], [("i8", 3e-3)], [("f32", 7e-3)]]
    assert common.undisturbed(runs) == [("i8", 3e-3)]


def test_a_graph_without_convolutions_has_no_times() -> None:
    assert common.undisturbed([[], [], []]) == []


def test_a_network_that_takes_long_is_profiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    assert len(list(common.profile_runs())) > 1
    monkeypatch.setattr(common.time, "monotonic", lambda: float(next(clock)))
    assert len(list(common.profile_runs())) == 1
