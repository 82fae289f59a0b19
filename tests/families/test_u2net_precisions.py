"""U²-NetP of seeded weights in lower precisions, on real photos: how far its maps move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from seeded import State
from u2net_files import write_onnx

from segship.convert import int16, layers, onnx_graph
from segship.convert.calibration import load_calibration
from segship.convert.checks import checking_engines
from segship.convert.source_graph import to_onnx
from segship.engines import SessionOptions, open_session
from segship.families import load_source
from segship.inference.images import read_image
from segship.inference.preprocess import prepare
from segship.networks.u2net import U2NETP

ENGINES = [engine for engine in checking_engines(None, "int16") if engine != "pytorch"]
CALIBRATED = ("girl.png", "hockey.png", "horse.jpg")
OTHERS = ("boat.jpg", "long.jpg", "vangogh.jpeg")


@pytest.fixture(scope="module")
def photos(shared: Path) -> Path:
    return shared / "data" / "photos"


@pytest.fixture(scope="module")
def source(fill: Callable[..., State], tmp_path_factory: pytest.TempPathFactory):
    network = U2NETP()
    network.load_state_dict(fill(network.state_dict(), 2.0))
    file = write_onnx(network.eval(), tmp_path_factory.mktemp("u2netp") / "seeded.onnx", (320, 320))
    return load_source(file)


@pytest.fixture(scope="module")
def graph(source):
    return to_onnx(source)


@pytest.fixture(scope="module")
def inputs(source, photos: Path) -> dict[str, np.ndarray]:
    recipe = source.recipe
    return {name: prepare(read_image(photos / name, recipe.input, name=name), recipe).x for name in OTHERS}


@pytest.fixture(scope="module")
def expected(graph, inputs: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return run(graph, inputs, ENGINES[0], "fp32", tmp_path_factory.mktemp("fp32"))


def run(graph, inputs: dict[str, np.ndarray], engine: str, precision: str, folder: Path) -> dict[str, np.ndarray]:
    path = onnx_graph.save(graph, folder / "graph.onnx")
    session = open_session(engine, path, SessionOptions(precision=precision))
    try:
        return {name: session.run(x[None])[0][0, 0] for name, x in inputs.items()}
    finally:
        session.close()


def stretched(d0: np.ndarray) -> np.ndarray:
    return (d0 - d0.min()) / (d0.max() - d0.min())


@pytest.fixture(scope="module")
def sixteen(graph, source, photos: Path, tmp_path_factory: pytest.TempPathFactory):
    listing = tmp_path_factory.mktemp("list") / "photos.txt"
    listing.write_text("\n".join(str(photos / name) for name in CALIBRATED))
    calibration = load_calibration(listing, source.recipe)
    return int16.quantize(graph, int16.activation_ranges(graph, calibration.inputs, ENGINES[0]))


@pytest.mark.parametrize("engine", ENGINES)
def test_int16_on_photos_that_calibration_has_not_seen(
    sixteen, inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray], engine: str, tmp_path: Path
) -> None:
    found = run(sixteen, inputs, engine, "int16", tmp_path)
    for name, d0 in found.items():
        difference = np.abs(d0 - expected[name]).max()
        assert 0 < difference <= 5e-3, name
        assert np.abs(stretched(d0) - stretched(expected[name])).mean() <= 5e-4, name


def test_int16_halves_the_file(sixteen, graph) -> None:
    assert len(onnx_graph.serialise(sixteen)) < 0.56 * len(onnx_graph.serialise(graph))


@pytest.mark.parametrize("engine", ENGINES)
def test_fp16_on_photos(
    graph, inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray], engine: str, tmp_path: Path
) -> None:
    found = run(onnx_graph.to_fp16_storage(graph), inputs, engine, "fp16", tmp_path)
    for name, d0 in found.items():
        assert 0 < np.abs(stretched(d0) - stretched(expected[name])).mean() <= 1e-3, name


def test_the_side_convolutions_are_what_the_search_puts_back_first(graph) -> None:
    names = layers.names(graph)
    assert len(names) == 119
    edges = layers.edge_layers({"model": graph})
    assert edges == (names[0], names[-1])
    groups = layers.search_groups(graph, edges)
    weights = {i.name: tuple(i.dims) for i in graph.graph.initializer}
    heads = [weights[node.input[1]] for node in graph.graph.node if node.name in groups[layers.HEADS]]
    assert next(iter(groups)) == layers.HEADS
    assert heads == [(1, 64, 3, 3)] * 6
    assert {name for group in groups.values() for name in group} >= set(names) - set(edges)
    assert len(groups) <= layers.MOST_GROUPS + 1
