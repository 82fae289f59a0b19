"""ONNX files as sources: recognised by their graph, tidied without changing an answer, refused for good reasons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image as Pil
from torch import nn
from u2net_files import NUMBERS, write_onnx

from segship.cli import run as run_command
from segship.convert import onnx_graph, parity
from segship.convert.checks import checking_engines
from segship.convert.export import export, to_onnx
from segship.convert.onnx_import import import_graph
from segship.convert.onnx_sizes import settle_sizes
from segship.convert.precision import compile_package
from segship.engines import SessionOptions, open_session
from segship.errors import SourceError, UnknownSource, UsageError
from segship.families import load_source, u2net_onnx
from segship.families.onnx_source import OnnxNetwork, is_onnx, open_onnx
from segship.inference.predictor import Predictor
from segship.inference.verify import verify_package
from segship.networks.u2net import U2NET, U2NETP, uniform

ENGINES = checking_engines(None, "fp32")


@pytest.fixture(scope="module")
def network() -> U2NETP:
    torch.manual_seed(5)
    return U2NETP().eval()


@pytest.fixture(scope="module")
def file(network: U2NETP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven numbered outputs, everything fixed to 1×3×64×64, opset 11."""
    return write_onnx(network, tmp_path_factory.mktemp("onnx") / "u2netp.onnx")


@pytest.fixture(scope="module")
def free(network: U2NETP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with batch, height and width left open."""
    return write_onnx(network, tmp_path_factory.mktemp("free") / "free.onnx", free=(0, 2, 3))


def inputs(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def truth(network: nn.Module, x: np.ndarray) -> list[np.ndarray]:
    with torch.inference_mode():
        return [output.numpy() for output in network(torch.from_numpy(x))]


def changed(file: Path, folder: Path, change: Callable[[onnx.ModelProto], None], name: str = "changed.onnx") -> Path:
    model = onnx.load(file)
    change(model)
    onnx.save(model, folder / name)
    return folder / name


# --------------------------------------------------------------------------------------------- recognition


def test_a_file_is_known_by_its_graph(file: Path, network: U2NETP) -> None:
    source = load_source(file)
    recipe = source.recipe
    assert (recipe.family, recipe.network.architecture, recipe.network.size) == ("u2net", "U2NETP", (64, 64))
    assert recipe.options["recipe"] == "rembg"
    assert recipe.options["recipe_from"] == "default"
    assert [output.name for output in recipe.network.outputs] == ["d0"]
    assert recipe.network.outputs[0].values == "probabilities"
    assert recipe.network.parameters == pytest.approx(1_131_181, rel=0.01)  # batch norms are folded
    assert isinstance(source.network, OnnxNetwork)
    x = inputs(3, 3, 64, 64)  # more than the file's batch of one
    assert np.abs(parity.run_source(source.network, x)[0] - truth(network, x)[0]).max() <= 1e-5
    assert source.provenance["checkpoint"]["opset"] == 11
    assert any("--recipe" in warning for warning in source.warnings)


def test_names_of_files_and_tensors_mean_nothing(file: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "segmentation.model"
    renamed.write_bytes(file.read_bytes())
    assert is_onnx(renamed)
    assert load_source(renamed).recipe.name == "segmentation"
    assert load_source(changed(file, tmp_path, _swap_names)).recipe.network.architecture == "U2NETP"


def _swap_names(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = f"n{id(node)}"
    for tensor in model.graph.initializer:
        new = f"w{tensor.name}"
        for node in model.graph.node:
            inputs = [new if name == tensor.name else name for name in node.input]
            del node.input[:]
            node.input.extend(inputs)
        tensor.name = new


def test_the_published_md5_is_said(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    md5 = open_onnx(file).md5
    other = load_source(file)
    assert other.notes == ()
    assert any("not its md5" in warning and md5 in warning for warning in other.warnings)
    monkeypatch.setitem(u2net_onnx.PUBLISHED, md5, "u2net_human_seg.onnx")
    copy = tmp_path / "mine.onnx"
    copy.write_bytes(file.read_bytes())
    source = load_source(copy)
    assert md5 in source.notes[0]
    assert "u2net_human_seg.onnx" in source.notes[0]
    assert source.recipe.labels[0].name == "person"
    assert source.provenance["published_as"] == "u2net_human_seg.onnx"
    assert not any("md5" in warning for warning in source.warnings)


def test_other_widths_and_several_classes(tmp_path: Path) -> None:
    narrow = U2NET(3, 1, widths=uniform(4, 8))
    source = load_source(write_onnx(narrow, tmp_path / "silueta.onnx", (32, 32)))
    assert source.recipe.network.architecture == "U2NET, other widths"
    clothes = load_source(write_onnx(U2NETP(3, 4), tmp_path / "cloth_seg.onnx", (32, 32)))
    assert clothes.recipe.decode.decision.rule == "argmax"
    assert [label.name for label in clothes.recipe.labels] == ["background", "upper body", "lower body", "full body"]
    assert [label.id for label in clothes.recipe.labels] == [0, 1, 2, 3]
    assert clothes.recipe.network.outputs[0].channels == 4


def test_a_file_with_the_fused_map_alone(tmp_path: Path) -> None:
    network = U2NETP(all_outputs=False)
    source = load_source(write_onnx(network, tmp_path / "fused.onnx", (32, 32), outputs=["map"]))
    assert source.recipe.network.architecture == "U2NETP"
    everything = load_source(tmp_path / "fused.onnx", options={"all_outputs": True})
    assert len(everything.recipe.network.outputs) == 1


def test_options_that_the_graph_rules_out(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="64x64 pixels only"):
        load_source(file, options={"input_size": "320"})
    with pytest.raises(UsageError, match="made for 64x64 alone"):
        export(file, tmp_path / "n.segship", shape="dynamic")
    with pytest.raises(SourceError, match="taken from checkpoints only"):
        load_source(file, family="unetplusplus")


# --------------------------------------------------------------------------------------------- the graph


def test_an_export_is_proved_against_the_file(file: Path, network: U2NETP, tmp_path: Path) -> None:
    result = export(file, tmp_path / "net.segship")
    assert {row.engine for row in result.parity} == set(ENGINES)
    assert all(row.passed for row in result.parity)
    assert any(row.stage == "network, batch 3" for row in result.parity)
    variant = result.package.manifest.variants[0]
    assert (variant.shapes, variant.batches) == ("dynamic", (1, 3))  # the file's batch of one was freed
    assert all(row.passed for row in verify_package(result.package.path))
    x = inputs(4, 3, 64, 64)
    for engine in ENGINES:
        with Predictor.open(result.package, engine=engine) as predictor:
            outputs = predictor.network(x, all_outputs=True)
            assert len(outputs) == 1
            assert np.abs(outputs[0] - truth(network, x)[0]).max() <= 1e-4


def test_validate_scores_the_recipes_that_the_weights_leave_open(file: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for name in ("a", "b"):
        picture = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Pil.fromarray(picture).save(tmp_path / "data/images" / f"{name}.png")
        Pil.fromarray(np.uint8(255) * (picture[..., 0] > 99).astype(np.uint8)).save(
            tmp_path / "data/masks" / f"{name}.png"
        )
    result = export(file, tmp_path / "net.segship", engines=["onnxruntime"], validate=tmp_path / "data")
    assert [(a.name, a.chosen) for a in result.alternatives] == [
        ("recipe=upstream", False), ("recipe=upstream-0.14", False), ("recipe=rembg", True),
    ]  # fmt: skip
    assert all((a.metric, a.cases) == ("MAE", 2) for a in result.alternatives)
    assert len({a.value for a in result.alternatives}) == 3
    assert load_source(file, options={"recipe": "portrait"}).alternatives == ()


@pytest.mark.parametrize("opset", [9, 10, 17])
def test_files_of_every_age_keep_their_own_rule_of_enlarging(network: U2NETP, tmp_path: Path, opset: int) -> None:
    source = load_source(write_onnx(network, tmp_path / "old.onnx", (48, 64), opset=opset))
    x = inputs(1, 3, 48, 64)
    wanted = parity.run_source(source.network, x)[0]
    old = opset < 11
    assert bool(np.abs(wanted - truth(network, x)[0]).max() > 1e-4) == old
    assert any("another rule" in warning for warning in source.warnings) == old
    path = onnx_graph.save(to_onnx(source), tmp_path / "net.onnx")
    for engine in ENGINES:
        session = open_session(engine, path, SessionOptions())
        assert np.abs(session.run(x)[0] - wanted).max() <= 1e-5, engine
        session.close()


def test_the_command_line_takes_a_file_all_the_way(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(u2net_onnx.PUBLISHED, open_onnx(file).md5, "u2netp.onnx")
    package, photo = tmp_path / "net.segship", tmp_path / "photo.png"
    Pil.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(photo)

    def call(*arguments: object) -> str:
        assert run_command([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    shown = call(
        "export", file, "-o", package, "--recipe", "upstream", "--all-outputs", "--engine", "onnxruntime,openvino"
    )
    assert "is rembg's u2netp.onnx: its md5" in shown
    assert "d6, batch 3" in shown
    assert "recipe=upstream" in call("inspect", package)
    assert "golden sample ok" in call("verify", package)
    call("predict", package, photo, "-o", tmp_path / "out")
    mask = np.asarray(Pil.open(tmp_path / "out/photo.png"))
    assert (mask.shape, mask.dtype) == ((50, 70), np.uint8)
    assert mask.std() > 1
    assert run_command(["export", str(file), "-o", str(package), "--recipe", "rembg", "--polarity", "inverted"]) == 2
    assert "--polarity belongs to --recipe custom" in capsys.readouterr().err


def test_all_outputs_stay_where_asked(file: Path, network: U2NETP, tmp_path: Path) -> None:
    result = export(file, tmp_path / "net.segship", options={"all_outputs": True}, engines=["onnxruntime"])
    names = [output.name for output in result.package.manifest.network.outputs]
    assert names == [f"d{k}" for k in range(7)]
    assert {f"d{k}, batch 3" for k in range(1, 7)} < {row.stage for row in result.parity}
    x = inputs(1, 3, 64, 64)
    with Predictor.open(result.package, engine="onnxruntime") as predictor:
        for found, wanted in zip(predictor.network(x, all_outputs=True), truth(network, x), strict=True):
            assert np.abs(found - wanted).max() <= 1e-5


def test_the_graph_is_tidied(file: Path) -> None:
    model = to_onnx(load_source(file))
    counts = onnx_graph.operators(model)
    assert counts == {"Conv": 119, "Relu": 112, "Concat": 51, "Resize": 38, "MaxPool": 33, "Add": 11, "Sigmoid": 1}
    assert [model.graph.input[0].name, model.graph.output[0].name] == ["input", "d0"]
    assert onnx_graph.convolution_names(model)[:2] == ["stage1.rebnconvin.conv_s1", "stage1.rebnconv1.conv_s1"]
    assert onnx_graph.convolution_names(model)[-1] == "outconv"
    assert next(entry.version for entry in model.opset_import if entry.domain == "") == onnx_graph.OPSET
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_batch_that_the_graph_insists_on_is_kept(file: Path, network: U2NETP, tmp_path: Path) -> None:
    def insist(model: onnx.ModelProto) -> None:
        shape = numpy_helper.from_array(np.array([1, 3, 64, 64], np.int64), "shape")
        model.graph.initializer.append(shape)
        for node in model.graph.node:
            if "input.1" in node.input:
                node.input[list(node.input).index("input.1")] = "reshaped"
        model.graph.node.insert(0, helper.make_node("Reshape", ["input.1", "shape"], ["reshaped"]))

    fixed = changed(file, tmp_path, insist)
    result = export(fixed, tmp_path / "net.segship", engines=["onnxruntime", "openvino"])
    assert any("batch of 1" in warning for warning in result.warnings)
    variant = result.package.manifest.variants[0]
    assert (variant.shapes, variant.batches) == ("static", (1,))
    x = inputs(3, 3, 64, 64)
    with Predictor.open(result.package) as predictor:
        assert np.abs(predictor.network(x) - truth(network, x)[0]).max() <= 1e-4
    with pytest.raises(UsageError, match="does not work with --batch 4"):
        export(fixed, tmp_path / "four.segship", batch=4, engines=["onnxruntime"])
    half = compile_package(result.package.path, "fp16", engines=["onnxruntime"]).package
    made = half.manifest.variant("fp16")
    assert made is not None
    assert (made.shapes, made.batches) == ("static", (1,))
    with Predictor.open(half, precision="fp16", engine="onnxruntime") as predictor:
        assert predictor.network(x).shape == (3, 1, 64, 64)


@pytest.mark.parametrize(("size", "kept"), [((64, 64), 0), ((64, 96), 0), ((80, 64), 9), ((63, 64), 3), ((16, 64), 9)])
def test_ceil_mode_goes_only_where_it_cannot_matter(
    free: Path, network: U2NETP, tmp_path: Path, size: tuple[int, int], kept: int
) -> None:
    """80 is 5·2⁴: at a sixteenth of the input, where nine poolings stand, it is odd. At full size three stand."""
    model = to_onnx(load_source(free, options={"input_size": size}))
    assert not any(node.op_type == "Shape" for node in model.graph.node)
    pools = [n for n in model.graph.node if n.op_type == "MaxPool"]
    assert len(pools) == 33
    assert sum(any(a.name == "ceil_mode" and a.i for a in n.attribute) for n in pools) == kept
    session = open_session("onnxruntime", onnx_graph.save(model, tmp_path / "net.onnx"), SessionOptions())
    x = inputs(2, 3, *size)
    assert np.abs(session.run(x)[0] - truth(network, x)[0]).max() <= 1e-5
    session.close()


def small(nodes: Sequence[onnx.NodeProto], tensors: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def run(model: onnx.ModelProto, x: np.ndarray, folder: Path) -> np.ndarray:
    session = open_session("onnxruntime", onnx_graph.save(model, folder / "run.onnx"), SessionOptions())
    found = session.run(x)[0]
    session.close()
    return found


def test_batch_norms_and_shared_weights_are_folded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    four = {name: rng.normal(size=4).astype(np.float32) for name in ("scale", "shift", "mean")}
    tensors = {
        "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        **four,
        "var": rng.random(4).astype(np.float32) + 1,
    }
    nodes = [
        helper.make_node("Identity", ["scale"], ["scale2"]),
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale2", "shift", "mean", "var"], ["y"]),
    ]
    model = small(nodes, tensors)
    x = inputs(1, 3, 8, 6)
    found = import_graph(model, input_name="input", outputs=(0,), output_names=("d0",))
    assert onnx_graph.operators(found) == {"Conv": 1}
    assert np.abs(run(found, x, tmp_path) - run(model, x, tmp_path)).max() <= 1e-5
    assert run(found, inputs(3, 3, 8, 6), tmp_path).shape == (3, 4, 8, 6)


def test_a_tensor_in_the_way_of_a_name_moves(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["d0"]), helper.make_node("Sigmoid", ["d0"], ["y"])]
    found = import_graph(small(nodes, {}), input_name="input", outputs=(0,), output_names=("d0",))
    x = inputs(1, 3, 8, 6)
    assert np.abs(run(found, x, tmp_path) - 1 / (1 + np.exp(-np.maximum(x, 0)))).max() <= 1e-6


def test_only_poolings_that_divide_evenly_lose_their_rounding(tmp_path: Path) -> None:
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    plain = settle_sizes(small([node], {}))
    assert not any(a.name == "ceil_mode" for a in plain.graph.node[0].attribute)
    odd = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1)
    kept = settle_sizes(small([odd], {}))
    assert any(a.name == "ceil_mode" and a.i for a in kept.graph.node[0].attribute)
    free = small([node], {})
    free.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "h"
    del free.graph.output[0].type.tensor_type.shape.dim[:]
    assert any(
        a.name == "ceil_mode" and a.i for a in settle_sizes(free, {"x": (1, 3, None, 6)}).graph.node[0].attribute
    )


# ------------------------------------------------------------------------------------------------- faults


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _foreign(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _quantised(model: onnx.ModelProto) -> None:
    model.graph.node[-1].op_type = "QLinearConv"


def _old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 8


def _second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 1, 64, 64]))


def _half(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def _raw(model: onnx.ModelProto) -> None:
    fused = next(node for node in model.graph.node if node.output[0] == NUMBERS[0])
    fused.op_type = "Tanh"


def _infinite(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _broken(model: onnx.ModelProto) -> None:
    model.graph.node[-1].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_external, "keeps its weights in passwd; join them"),
        (_foreign, r"operator com\.microsoft\."),
        (_quantised, "quantised already"),
        (_old, "opset 8"),
        (_second_input, "one float32 input"),
        (_half, "no valid ONNX graph|one float32 input"),
        (_raw, "comes from Tanh, not from a Sigmoid"),
        (_infinite, "NaN or infinite weights"),
        (_broken, "no valid ONNX graph"),
    ],
)
def test_files_that_cannot_be_taken(
    file: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        load_source(changed(file, tmp_path, change))
    assert "\n" not in str(caught.value)
    assert "changed.onnx" in str(caught.value)


def test_damaged_files(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    contents = {
        "empty.onnx": (b"", "is empty"),
        "cut.onnx": (whole[: len(whole) // 2], "cut short or damaged"),
        "text.onnx": (b"hello world, this is no graph\n" * 9, "cut short or damaged|no ONNX graph"),
        "start.onnx": (b"\x08\x09", "no ONNX graph"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=message) as caught:
            load_source(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match="does not exist"):
        load_source(tmp_path / "absent.onnx")


def test_flipped_bytes_give_a_source_or_one_line(file: Path, tmp_path: Path) -> None:
    whole = bytearray(file.read_bytes())
    rng = np.random.default_rng(1)
    for round_ in range(25):
        data = bytearray(whole)
        for position in rng.integers(0, len(data) if round_ % 2 else 4000, 6):
            data[position] ^= 1 << int(rng.integers(8))
        path = tmp_path / "flipped.onnx"
        path.write_bytes(data)
        assert "\n" not in refusal(path)


def refusal(path: Path) -> str:
    """The message for a file that is refused, '' for one that is taken; any other exception is a fault."""
    try:
        load_source(path)
    except (SourceError, UsageError) as error:
        return str(error)
    return ""


def test_another_networks_graph_is_not_taken(tmp_path: Path) -> None:
    node = helper.make_node("Sigmoid", ["x"], ["y"])
    onnx.save(small([node], {}), tmp_path / "other.onnx")
    with pytest.raises(
        UnknownSource, match=r"no network that segship knows; looked for u2net: .*found input x float32"
    ):
        load_source(tmp_path / "other.onnx")
