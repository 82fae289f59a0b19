"""Instance normalisation over large windows: as exact as float64's, small ones untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segship.engines import SessionOptions, open_session
from segship.engines.openvino_norms import has_instance_norm, split_means

pytest.importorskip("openvino")
onnx = pytest.importorskip("onnx")


def write_graph(path: Path, side: int, axes: int = 3, epsilon: float = 1e-5) -> Path:
    """Instance normalisation of two channels, scaled and shifted."""
    from onnx import TensorProto, helper, numpy_helper

    weights = [np.array([1.5, 0.5], np.float32), np.array([0.25, -1.0], np.float32)]
    made = helper.make_graph(
        [helper.make_node("InstanceNormalization", ["input", "s", "b"], ["out"], epsilon=epsilon)],
        "norm",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 2, *[side] * axes])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 2, *[side] * axes])],
        [numpy_helper.from_array(weight, name) for weight, name in zip(weights, "sb", strict=True)],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def exact(x: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    wide = x.astype(np.float64)
    over = tuple(range(2, x.ndim))
    shape = (1, 2, *[1] * len(over))
    scaled = (wide - wide.mean(over, keepdims=True)) / np.sqrt(wide.var(over, keepdims=True) + epsilon)
    return scaled * np.array([1.5, 0.5]).reshape(shape) + np.array([0.25, -1.0]).reshape(shape)


@pytest.mark.parametrize(("side", "axes", "shift"), [(64, 3, 0.0), (96, 3, -3.0), (640, 2, 2.0), (16, 3, 1.0)])
def test_the_answer_is_exact(tmp_path: Path, side: int, axes: int, shift: float) -> None:
    graph = write_graph(tmp_path / "net.onnx", side, axes)
    x = np.random.default_rng(0).normal(shift, 0.6, (2, 2, *[side] * axes)).astype(np.float32)
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        session = open_session("openvino", graph, SessionOptions(cache_dir=cache, threads=1))
        assert np.abs(session.run(x)[0] - exact(x)).max() <= 2e-5
        assert np.abs(session.run(x[1:])[0] - exact(x[1:])).max() <= 2e-5
        session.close()


@pytest.mark.parametrize(("side", "axes"), [(96, 2), (300, 2), (24, 3), (80, 3)])
def test_one_value_nearly_everywhere_is_no_harm(tmp_path: Path, side: int, axes: int) -> None:
    """Padding, air: added one after the other, equal values are all rounded to the same side."""
    graph = write_graph(tmp_path / "net.onnx", side, axes)
    x = np.full((1, 2, *[side] * axes), -2.2, np.float32)
    body = (slice(None), slice(None), *[slice(side // 3, side // 2)] * axes)
    x[body] = np.random.default_rng(0).normal(3.0, 0.4, x[body].shape)
    session = open_session("openvino", graph, SessionOptions(threads=1))
    assert np.abs(session.run(x)[0] - exact(x)).max() <= 3e-5
    session.close()


def test_a_constant_channel_stays_finite(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "net.onnx", 64)
    session = open_session("openvino", graph, SessionOptions(threads=1))
    found = session.run(np.full((1, 2, 64, 64, 64), -2.2, np.float32))[0]
    assert np.allclose(found[0, 0], 0.25, atol=1e-2)
    assert np.allclose(found[0, 1], -1.0, atol=1e-2)


def replaced(path: Path) -> tuple[int, Any]:
    import openvino

    model = openvino.Core().read_model(str(path))
    return split_means(model), model


def test_only_large_ones_are_replaced(tmp_path: Path) -> None:
    count, model = replaced(write_graph(tmp_path / "large.onnx", 64))
    assert count == 1
    assert "MVN" not in {op.get_type_name() for op in model.get_ops()}
    count, model = replaced(write_graph(tmp_path / "small.onnx", 12))
    assert count == 0
    assert "MVN" in {op.get_type_name() for op in model.get_ops()}


def test_a_graph_is_told_by_its_beginning(tmp_path: Path) -> None:
    assert has_instance_norm(write_graph(tmp_path / "net.onnx", 8))
    (tmp_path / "other.onnx").write_bytes(b"\0" * (2 << 20) + b"InstanceNormalization")
    assert not has_instance_norm(tmp_path / "other.onnx")
