from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from engine_contract import EngineContract
from engine_graphs import PRECISIONS, Graphs, images

from segship.engines import SessionOptions, fake, open_session
from segship.errors import EngineError, UsageError


class TestFake(EngineContract):
    engine = "fake"
    library = None
    computes = False
    kinds = {p: {k} for p, k in zip(PRECISIONS, ("f32", "f16", "bf16", "i8", "i16"), strict=True)}  # noqa: RUF012


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "any.onnx"
    path.write_text("not a graph at all")
    return path


def opened(graph: Path) -> fake.FakeSession:
    session = open_session("fake", graph, SessionOptions())
    assert isinstance(session, fake.FakeSession)
    return session


def test_answers_with_the_mean_of_the_channels_of_any_number_of_axes(graph: Path):
    session = opened(graph)
    for shape in ((2, 3, 8, 9), (1, 2, 4, 5, 6)):
        x = np.random.default_rng(0).random(shape, np.float32)
        (answer,) = session.run(x)
        np.testing.assert_allclose(answer, x.mean(1, keepdims=True), rtol=1e-6)
    assert session.calls == 2
    assert session.shapes == [(2, 3, 8, 9), (1, 2, 4, 5, 6)]
    assert fake.sessions[-1] is session


def test_channels_and_outputs_come_from_the_graph(bilinear: Graphs):
    answers = opened(bilinear.files["fp32"]).run(images(2))
    assert [a.shape for a in answers] == [(2, 2, 32, 32)] * 4


def test_is_told_by_the_environment(graph: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEGSHIP_FAKE", "channels=3,outputs=2,delay_s=0.02,fail_on=2")
    session = opened(graph)
    start = time.perf_counter()
    assert [a.shape for a in session.run(images(1))] == [(1, 3, 32, 32)] * 2
    assert time.perf_counter() - start >= 0.02
    with pytest.raises(EngineError, match="call 2"):
        session.run(images(1))
    session.run(images(1))
    assert session.calls == 3


def test_is_told_to_fail_when_opened(graph: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEGSHIP_FAKE", "fail_open=1")
    with pytest.raises(EngineError, match="told to fail"):
        opened(graph)


def test_is_told_nonsense(graph: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEGSHIP_FAKE", "channels=many")
    with pytest.raises(UsageError, match="channels=many"):
        opened(graph)
