"""When a graph is opened: at once, so that errors show at once; for the golden sample alone, at its own size only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from packages import manifest_data
from stub_engine import NAME, StubSession, install, open_stub, stub_package

from segship.convert.export import export
from segship.engines import Session, SessionOptions, open_session
from segship.families import get_family
from segship.inference import members
from segship.inference.predictor import Predictor
from segship.inference.verify import verify_package
from segship.inference.views import with_resize
from segship.manifest import ResizeKeepRatio
from segship.package import golden_files, update_package

LARGE, SMALL = (1, 3, 1024, 2048), (16, 32)


def large() -> dict[str, Any]:
    """A package of street scenes: its network takes any size, 2048 × 1024 as a rule, and is checked at 32 × 16."""
    data = manifest_data()
    resize = {"step": "resize", "height": LARGE[2], "width": LARGE[3], "method": "opencv:linear"}
    return {
        "preprocess": [resize, *data["preprocess"][1:]],
        "network": data["network"] | {"size": None, "size_multiple": [1, 1], "check_size": list(SMALL)},
    }


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[StubSession]:
    return install(monkeypatch)


def sample() -> bytes:
    picture = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    return cv2.imencode(".png", picture)[1].tobytes()


def test_a_predictor_compiles_what_it_will_use_at_once(opened: list[StubSession], tmp_path: Path) -> None:
    with open_stub(tmp_path / "net.segship", changes=large()):
        assert [session.options.static_shape for session in opened] == [LARGE]


def test_the_golden_sample_compiles_the_graph_of_its_own_size_only(opened: list[StubSession], tmp_path: Path) -> None:
    with open_stub(tmp_path / "net.segship", changes=large(), compile_now=False) as predictor:
        assert not opened
        later = predictor.golden_trace(sample())
    assert [(session.options.static_shape, session.shapes) for session in opened] == [(None, [(1, 3, *SMALL)])]
    with open_stub(tmp_path / "net.segship", changes=large()) as predictor:
        for stage, array in predictor.golden_trace(sample()).items():
            np.testing.assert_array_equal(array, later[stage])


def test_verify_compiles_no_graph_that_it_does_not_run(opened: list[StubSession], tmp_path: Path) -> None:
    package = stub_package(tmp_path / "net.segship", **large())
    with Predictor.open(package, engine=NAME, compile_now=False) as predictor:
        stages = {name: (array, 1e-4) for name, array in predictor.golden_trace(sample()).items()}
    package = update_package(package, add=golden_files("street.png", sample(), False, stages))
    opened.clear()
    assert all(row.passed for row in verify_package(package.path, engine=NAME))
    assert [session.shapes for session in opened] == [[(1, 3, *SMALL)]]


def test_first_use_by_several_threads_opens_one_graph(opened: list[StubSession], tmp_path: Path) -> None:
    with open_stub(tmp_path / "net.segship", compile_now=False, streams=4) as predictor:
        assert not opened
        x = np.zeros((1, 3, 32, 32), np.float32)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: predictor.network(x), range(32)))
    assert len(opened) == 1
    assert len(opened[0].shapes) == len(answers) == 32


def test_an_export_compiles_nothing_at_a_size_that_its_proof_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def recording(engine: str, graph: Path, options: SessionOptions) -> Session:
        shapes.append(options.static_shape)
        return open_session(engine, graph, options)

    monkeypatch.setattr(members, "open_session", recording)
    tiny = get_family("mmseg").tiny()
    resize = ResizeKeepRatio(long_side=LARGE[3], short_side=LARGE[2], method="opencv:linear")
    network = tiny.recipe.network.model_copy(update={"size": None, "size_multiple": (8, 8), "check_size": (64, 128)})
    recipe = with_resize(tiny.recipe.model_copy(update={"network": network}), resize)
    (tmp_path / "street.png").write_bytes(sample())
    export(replace(tiny, recipe=recipe), tmp_path / "net.segship", sample=tmp_path / "street.png", engines=["openvino"])
    assert shapes == [None], "one graph, of any size"
