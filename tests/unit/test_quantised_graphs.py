"""Graphs of whole numbers: 16-bit rounding, roundings where ONNX Runtime fuses them, layers by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from tiny_branches import SIZE, network  # noqa: E402

from segship.convert import int16, layers, onnx_graph, onnx_sizes, qdq, quantize  # noqa: E402
from segship.engines import SessionOptions, open_session  # noqa: E402
from segship.errors import UsageError  # noqa: E402

ENGINES = ("openvino", "onnxruntime", "pytorch")


def pictures(count: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def run(model: Any, x: np.ndarray, engine: str, tmp_path: Path, precision: str = "fp32") -> np.ndarray:
    path = onnx_graph.save(model, tmp_path / "graph.onnx")
    session = open_session(engine, path, SessionOptions(precision=precision))
    try:
        return session.run(x)[0]
    finally:
        session.close()


def executed(model: Any, engine: str, tmp_path: Path, precision: str) -> Any:
    path = onnx_graph.save(model, tmp_path / "graph.onnx")
    return open_session(engine, path, SessionOptions(precision=precision)).executed(pictures(2))


# ---------------------------------------------------------------------------------------------- 16 bits


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("transposed", [False, True])
def test_int16_is_rounding_around_float32(engine: str, transposed: bool, tmp_path: Path) -> None:
    model, x = network(transposed=transposed), pictures()
    made = int16.quantize(model, int16.activation_ranges(model, x, "onnxruntime"))
    difference = np.abs(run(made, x, engine, tmp_path, "int16") - run(model, x, engine, tmp_path)).max()
    assert 0 < difference <= 2e-3
    record = executed(made, engine, tmp_path, "int16")
    assert record.convolution_share == {"f32": 1.0}
    # OpenVINO drops a rounding to 65536 levels from the graph that it runs
    expected = "weights" if engine == "openvino" else "activations and weights"
    assert record.rounding == expected
    told = "weights alone" if expected == "weights" else "activations and weights"
    assert record.text == f"f32 100%, {told} rounded to int16"


def test_int16_weights_are_whole_numbers_of_each_output_channel() -> None:
    model = network(transposed=True)
    made = int16.quantize(model, dict.fromkeys(_inputs(model), 1.0))
    assert made.opset_import[0].version == int16.OPSET
    before = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    after = {i.name: numpy_helper.to_array(i) for i in made.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        name, axis = node.input[1], 0 if node.op_type == "Conv" else 1
        whole, scale = after[f"{name}.16.int16"], after[f"{name}.16.scale"]
        assert whole.dtype == np.int16
        assert np.abs(whole).max(axis=tuple(i for i in range(4) if i != axis)).tolist() == [32767] * len(scale)
        back = whole * scale.reshape([-1 if i == axis else 1 for i in range(4)])
        assert np.abs(back - before[name]).max() <= scale.max() * 1.001, "no further than one of two neighbours"
        assert name not in after, "the float32 weight stays behind"
    assert len([n for n in made.graph.node if n.op_type == "QuantizeLinear"]) == len(_inputs(model))


def _inputs(model: Any) -> set[str]:
    return {node.input[0] for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")}


def test_int16_keeps_layers_in_float_and_finds_its_ranges(tmp_path: Path) -> None:
    model, x = network(), pictures()
    ranges = int16.activation_ranges(model, x, "onnxruntime")
    assert set(ranges) == _inputs(model)
    assert ranges["x"] == pytest.approx(np.abs(x).max())
    other = int16.activation_ranges(model, x, "openvino")
    assert all(other[name] == pytest.approx(value, rel=1e-5) for name, value in ranges.items())
    made = int16.quantize(model, ranges, ["head", "side"])
    kept = {node.name: node.input[1] for node in made.graph.node if node.op_type == "Conv"}
    assert kept["head"] == "head.weight"
    assert kept["up.conv1"] == "up.conv1.weight.16"
    with pytest.raises(UsageError, match="no convolution 'nothing'"):
        int16.quantize(model, ranges, ["nothing"])
    with pytest.raises(UsageError, match="nothing is left to quantise"):
        int16.quantize(model, ranges, layers.names(model))
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(UsageError, match="NaN or infinite values on a calibration picture"):
        int16.activation_ranges(model, x, "onnxruntime")


def test_int16_has_room_above_what_calibration_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), pictures()
    ranges = int16.activation_ranges(model, x, "onnxruntime")

    def error() -> float:
        made = run(int16.quantize(model, ranges), 1.8 * x, "onnxruntime", tmp_path, "int16")
        return float(np.abs(made - run(model, 1.8 * x, "onnxruntime", tmp_path)).max())

    with_room = error()
    monkeypatch.setattr(int16, "HEADROOM", 1.0)
    assert with_room <= 2e-3
    assert error() > 10 * with_room, "values beyond the range are cut off"


@pytest.mark.parametrize("engine", ENGINES)
def test_biases_larger_than_their_layers_steps_are_kept(engine: str, tmp_path: Path) -> None:
    """ONNX Runtime 1.31 would quantise a float32 bias in steps of both scales' product, and cut it off at 2**31."""
    model, x = network(), 1e-3 * pictures()
    for initializer in model.graph.initializer:
        if initializer.name == "down.conv1.bias":
            initializer.CopyFrom(numpy_helper.from_array(np.float32([3, -2, 5, 1, 4, -1, 2, 6]), initializer.name))
        if initializer.name == "down.conv1.weight":
            tiny = 1e-3 * numpy_helper.to_array(initializer)
            initializer.CopyFrom(numpy_helper.from_array(tiny, initializer.name))
    made = int16.quantize(model, int16.activation_ranges(model, x, "onnxruntime"))
    assert np.abs(run(made, x, engine, tmp_path, "int16") - run(model, x, engine, tmp_path)).max() <= 2e-3


def test_a_dead_layer_is_quantised_without_dividing_by_zero(tmp_path: Path) -> None:
    model, x = network(), pictures()
    for initializer in model.graph.initializer:
        if initializer.name in ("bottom.conv2.weight", "bottom.conv2.bias"):
            zeros = np.zeros_like(numpy_helper.to_array(initializer))
            initializer.CopyFrom(numpy_helper.from_array(zeros, initializer.name))
    made = int16.quantize(model, int16.activation_ranges(model, x, "onnxruntime"))
    for engine in ENGINES:
        assert np.abs(run(made, x, engine, tmp_path, "int16") - run(model, x, engine, tmp_path)).max() <= 2e-3


def test_a_graph_of_fixed_batch_is_calibrated_too() -> None:
    model = network()
    free = int16.activation_ranges(model, pictures(), "onnxruntime")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert int16.activation_ranges(model, pictures(), "onnxruntime") == pytest.approx(free)


# ------------------------------------------------------------------------------------- 8 bits, and where


@pytest.fixture(scope="module")
def quantised() -> Any:
    """NNCF's graph before and after the roundings were written out."""
    pytest.importorskip("nncf")
    model = network()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qdq, "round_joined", lambda graph: graph)
        options = quantize.QuantizeOptions(activations="symmetric", keep_in_float=("side", "head"))
        before = quantize.quantize(model, pictures(), options)
    return before, qdq.round_joined(before)


def test_convolutions_behind_a_concatenation_run_in_integers_on_onnx_runtime(quantised: Any, tmp_path: Path) -> None:
    # Counted, not timed: on a network this small a layer's share of the time is the noise of the clock.
    # The last of them feeds a float layer, so there is nothing behind it to fuse.
    assert (_fused(quantised[0], tmp_path), _fused(quantised[1], tmp_path)) == (4, 5)


def _fused(model: Any, tmp_path: Path) -> int:
    """How many convolutions ONNX Runtime makes QLinearConv of."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    path = onnx_graph.save(model, tmp_path / "graph.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    made = onnx.load(str(tmp_path / "optimised.onnx"))
    return sum(node.op_type == "QLinearConv" for node in made.graph.node)


@pytest.mark.parametrize("engine", ENGINES)
def test_written_out_roundings_change_no_answer_by_more_than_a_step(
    quantised: Any, engine: str, tmp_path: Path
) -> None:
    before, after = (run(graph, pictures(), engine, tmp_path, "int8") for graph in quantised)
    fp32 = run(network(), pictures(), engine, tmp_path)
    rounding = np.abs(before - fp32).mean()
    assert np.abs(after - before).mean() <= 0.5 * rounding
    assert np.abs(after - fp32).mean() <= 1.25 * rounding


@pytest.mark.parametrize("pooled", [12, 8, 7])
def test_a_resize_to_a_size_becomes_one_by_a_factor(pooled: int, tmp_path: Path) -> None:
    """ONNX Runtime 1.31 cannot open a Resize of integers whose sizes are for two axes only."""
    pytest.importorskip("nncf")
    model = network(pooled=pooled)
    made = quantize.quantize(model, pictures(), quantize.QuantizeOptions(activations="symmetric"))
    resize = next(node for node in made.graph.node if node.op_type == "Resize")
    assert not [attribute for attribute in resize.attribute if attribute.name == "axes"]
    answers = [run(made, pictures(), engine, tmp_path, "int8") for engine in ENGINES]
    fp32 = run(model, pictures(), "onnxruntime", tmp_path)
    for answer in answers:
        assert answer.shape == fp32.shape
        assert np.abs(answer - fp32).mean() <= 0.02


def test_a_factor_gives_the_size_that_was_asked_for() -> None:
    for old in range(1, 200):
        for new in range(1, 200):
            factor = qdq._factor(old, new)
            assert int(np.floor(np.float32(old) * factor)) == int(np.floor(old * float(factor))) == new


def test_float_layers_read_unrounded_values(quantised: Any, tmp_path: Path) -> None:
    whole = layers.names(network())
    back = onnx_graph.restore_float(quantised[1], network(), whole)
    fp32 = run(network(), pictures(), "onnxruntime", tmp_path)
    assert np.abs(run(back, pictures(), "onnxruntime", tmp_path, "int8") - fp32).max() <= 1e-5
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in back.graph.node}


def test_nothing_is_added_where_scales_differ_or_no_quantised_layer_follows() -> None:
    def graph(scales: tuple[float, float], quantised: bool) -> Any:
        value = helper.make_tensor_value_info
        nodes, constants = [], [numpy_helper.from_array(np.array(0, np.uint8), "zero")]
        for number, scale in enumerate(scales):
            constants.append(numpy_helper.from_array(np.array(scale, np.float32), f"s{number}"))
            nodes.append(helper.make_node("QuantizeLinear", ["x", f"s{number}", "zero"], [f"q{number}"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{number}", f"s{number}", "zero"], [f"d{number}"]))
        nodes.append(helper.make_node("Concat", ["d0", "d1"], ["c"], axis=1))
        weight = np.ones((1, 2, 1, 1), np.int8)
        constants.append(numpy_helper.from_array(weight if quantised else weight.astype(np.float32), "w"))
        if quantised:
            constants.append(numpy_helper.from_array(np.array(0, np.int8), "w0"))
            nodes.append(helper.make_node("DequantizeLinear", ["w", "s0", "w0"], ["wd"]))
        nodes.append(helper.make_node("Conv", ["c", "wd" if quantised else "w"], ["y"], name="conv"))
        made = helper.make_graph(
            nodes, "g", [value("x", TensorProto.FLOAT, ["n", 1, 4, 4])],
            [value("y", TensorProto.FLOAT, ["n", 1, 4, 4])], constants,
        )  # fmt: skip
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

    def added(model: Any) -> int:
        return len(qdq.round_joined(model).graph.node) - len(model.graph.node)

    assert added(graph((0.1, 0.1), True)) == 2
    assert added(graph((0.1, 0.2), True)) == 0
    assert added(graph((0.1, 0.1), False)) == 0


# ------------------------------------------------------------------------------------------------ layers


def test_the_first_and_the_last_layer_are_edges_and_heads_are_put_back_first() -> None:
    model = network()
    assert layers.edge_layers({"m": model}) == ("down.conv1", "head")
    assert layers.edge_layers({"m": _chain(["a", "b"])}) == (), "nothing to spare in so small a network"
    groups = layers.search_groups(model, layers.edge_layers({"m": model}))
    assert groups["heads"] == ("side",)
    assert list(groups) == ["heads", "down", "bottom", "up"]


def test_groups_are_blocks_or_stages() -> None:
    assert list(layers.layer_groups(network())) == ["down", "bottom", "up", "side", "head"]
    assert layers.layer_groups(_chain([f"a{i}.b{j}.c" for i in range(5) for j in range(4)]))["a0.b0"] == ("a0.b0.c",)
    many = layers.layer_groups(_chain([f"a{i}.b{j}.c" for i in range(5) for j in range(40)]))
    assert list(many) == [f"a{i}" for i in range(5)]
    nameless = layers.layer_groups(_chain([f"Conv_{i}" for i in range(119)]))
    assert len(nameless) <= layers.MOST_GROUPS
    assert [name for group in nameless.values() for name in group] == [f"Conv_{i}" for i in range(119)]


def _chain(names: list[str]) -> Any:
    nodes = [helper.make_node("Conv", ["x", "w"], [name], name=name) for name in names]
    return helper.make_model(helper.make_graph(nodes, "chain", [], []))


def test_a_saturated_map_is_measured_against_what_a_map_may_span() -> None:
    reference = np.geomspace(1e-9, 1e-7, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    rounded = reference + np.float32(1e-6)
    assert quantize.relative_error(rounded, reference) > 1, "its own spread says nothing"
    assert quantize.relative_error(rounded, reference, probabilities=True) < 1e-5
    clear = np.zeros((1, 1, 8, 8), np.float32)
    clear[..., 2:6, 2:6] = 1
    blank = np.zeros_like(clear)
    assert quantize.relative_error(blank, clear, probabilities=True) > 1, "a blank map never passes"


def test_sizes_are_known_in_a_fixed_graph() -> None:
    assert onnx_sizes.known_shapes(network())["up"] == (None, 8, SIZE, SIZE)
