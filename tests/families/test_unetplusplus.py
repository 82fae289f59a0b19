"""UNet++ and U-Net checkpoints: recognised, built, normalised and exported as upstream trained them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeded import State, trained_looking

from segship.convert import onnx_graph, parity
from segship.convert.checks import checking_engines
from segship.convert.export import export, to_onnx
from segship.convert.layers import edge_layers
from segship.convert.quantize import QuantizeOptions, quantize, relative_error
from segship.engines import SessionOptions, open_session
from segship.engines.processor import processor
from segship.errors import BarMissed, SourceError, UsageError
from segship.families import Source, load_source
from segship.inference.images import read_image
from segship.inference.preprocess import prepare
from segship.networks.unetplusplus import NestedUNet, UNet

BGR, RGB = "bgr-imagenet-div255", "rgb-div255"
ENGINES = checking_engines(None, "fp32")


def save(folder: Path, state: State, config: str | None = None, name: str = "model.pth") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    if config is not None:
        (folder / "config.yml").write_text(config)
    return folder / name


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NestedUNet checkpoint without side files."""
    return save(tmp_path_factory.mktemp("plain"), trained_looking(NestedUNet(1)), name="net.pth")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a deep-supervision NestedUNet of 2 classes."""
    state = trained_looking(NestedUNet(2, deep_supervision=True))
    config = "arch: NestedUNet\ninput_h: 32\ninput_w: 48\nname: cells_wDS\ndataset: cells\nnum_classes: 2\nodd: 1\n"
    return save(tmp_path_factory.mktemp("deep"), state, config).parent


def inputs(*shape: int) -> np.ndarray:
    """Network inputs in the range that normalised pictures have."""
    return (np.random.default_rng(1).random(shape, np.float32) * 0.018 - 0.008).astype(np.float32)


# ------------------------------------------------------------------------------- what the original computed


@pytest.fixture(scope="module")
def golden(
    tmp_path_factory: pytest.TempPathFactory,
    fill: Callable[..., State],
    reference_case: Callable[[str], tuple[dict[str, Any], dict[str, np.ndarray]]],
) -> Callable[[str], tuple[Source, dict[str, np.ndarray]]]:
    """``golden(case)``: our reading of the case's seeded checkpoint, and what upstream's code gave for it."""

    def build(name: str) -> tuple[Source, dict[str, np.ndarray]]:
        about, arrays = reference_case(name)
        deep = "deep" in name
        state = fill(NestedUNet(1, deep_supervision=deep).state_dict(), about["gain"])
        for key, factor in about.get("after_fill", {}).items():
            state[key] = state[key] * factor
        path = save(tmp_path_factory.mktemp(name), state)
        return load_source(path, options={"head": "all"} if deep else {}), arrays

    return build


@pytest.mark.parametrize("case", ["nested_unet", "nested_unet_deep", "dsb2018_pipeline"])
def test_reference_logits_in_pytorch_and_every_engine(
    case: str, golden: Callable[[str], tuple[Source, dict[str, np.ndarray]]], tmp_path: Path
) -> None:
    source, arrays = golden(case)
    x = arrays["input"]
    count = len([key for key in arrays if key.startswith("output")])
    # the manifest's order: the answer (upstream's last head) first
    expected = [arrays[f"output{i}"] for i in (count - 1, *range(count - 1))]
    for found, wanted in zip(parity.run_source(source.network, x), expected, strict=True):
        assert np.abs(found - wanted).max() <= 1e-4
    graph = onnx_graph.save(to_onnx(source), tmp_path / "net.onnx")
    for engine in ENGINES:
        session = open_session(engine, graph, SessionOptions())
        for found, wanted in zip(session.run(x), expected, strict=True):
            assert np.abs(found - wanted).max() <= 2e-4, engine
        session.close()


def test_reference_network_inputs_come_out_of_the_recipe(
    golden: Callable[[str], tuple[Source, dict[str, np.ndarray]]],
) -> None:
    source, arrays = golden("dsb2018_pipeline")
    for pixels, wanted in zip(arrays["image"], arrays["input"], strict=True):
        assert source.recipe.input.kind == "image"
        found = prepare(read_image(pixels, source.recipe.input, array_order="bgr"), source.recipe).x
        assert np.abs(found - wanted).max() <= 1e-7


# --------------------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("arch", "parameters"), [(NestedUNet, 9_163_329), (UNet, 7_852_545)])
@pytest.mark.parametrize("upsample", ["bilinear", "nearest"])
def test_every_variant_is_recognised_and_gives_the_networks_own_answer(
    tmp_path: Path, arch: type, parameters: int, channels: int, upsample: str
) -> None:
    network = arch(3, channels, upsample=upsample).eval()
    state = trained_looking(network)
    network.load_state_dict(state)
    source = load_source(save(tmp_path, state), options={"upsample": upsample, "input_size": "32x48"})
    assert source.recipe.network.architecture == arch.__name__
    assert source.recipe.network.parameters == parameters + 2 * 33 + (channels - 3) * 32 * 9
    assert source.recipe.network.size == (32, 48)
    assert [output.channels for output in source.recipe.network.outputs] == [3]
    assert [label.name for label in source.recipe.labels] == ["class0", "class1", "class2"]
    x = inputs(2, channels, 32, 48)
    assert np.array_equal(parity.run_source(source.network, x)[0], parity.run_source(network, x)[0])


@pytest.mark.parametrize(("head", "parameters"), [(1, 103_041), (2, 519_105), (3, 2_236_161), (4, 9_163_329)])
def test_a_pruned_head_equals_that_head_of_the_whole_network(deep: Path, head: int, parameters: int) -> None:
    whole = load_source(deep, options={"head": "all"})
    pruned = load_source(deep, options={"head": str(head)})
    assert pruned.recipe.network.parameters == parameters + 33  # a second class
    assert pruned.recipe.network.size_multiple == (2**head, 2**head)
    assert whole.recipe.network.parameters == 9_163_428 + 4 * 33
    x = inputs(2, 3, 32, 48)
    heads = parity.run_source(whole.network, x)  # fourth, first, second, third
    assert np.abs(parity.run_source(pruned.network, x)[0] - heads[head % 4]).max() <= 1e-5


def test_the_graph_holds_the_network_and_nothing_else(plain: Path, tmp_path: Path) -> None:
    x = inputs(2, 3, 32, 32)
    for upsample, mode in (("bilinear", b"align_corners"), ("nearest", b"asymmetric")):
        source = load_source(plain, options={"upsample": upsample, "input_size": "32"})
        model = to_onnx(source)
        for engine in ENGINES:
            session = open_session(engine, onnx_graph.save(model, tmp_path / "net.onnx"), SessionOptions())
            assert np.abs(session.run(x)[0] - parity.run_source(source.network, x)[0]).max() <= 2e-4, (engine, upsample)
            session.close()
        assert onnx_graph.operators(model) == {"Conv": 31, "Relu": 30, "Resize": 10, "Concat": 10, "MaxPool": 4}
        resize = [node for node in model.graph.node if node.op_type == "Resize"]
        modes = {a.s for node in resize for a in node.attribute if a.name == "coordinate_transformation_mode"}
        assert modes == {mode}
        assert (model.graph.input[0].name, model.graph.output[0].name) == ("actual_input_1", "output_1")
        assert onnx_graph.convolution_names(model)[0] == "conv0_0.conv1"
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        assert __file__.encode() not in onnx_graph.serialise(model)


def test_half_precision_convolutions_are_taken_and_half_precision_batch_norms_are_warned_of(tmp_path: Path) -> None:
    state = trained_looking(NestedUNet(1))
    exact = load_source(save(tmp_path / "a", state), options={"input_size": "32"})
    halves = {k: v.half() if ".bn" not in k and v.is_floating_point() else v for k, v in state.items()}
    source = load_source(save(tmp_path / "b", halves), options={"input_size": "32"})
    assert not any("half precision" in warning for warning in source.warnings)
    assert all(p.dtype == torch.float32 for p in source.network.parameters())
    x = inputs(1, 3, 32, 32)
    assert np.abs(parity.run_source(source.network, x)[0] - parity.run_source(exact.network, x)[0]).max() < 1e-2
    naive = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    assert any("half precision" in w for w in load_source(save(tmp_path / "c", naive)).warnings)


def test_parallel_checkpoints_and_extra_tensors(tmp_path: Path) -> None:
    state = trained_looking(NestedUNet(1))
    wrapped = {"net": {f"module.{key}": value for key, value in state.items()} | {"module.total_ops": torch.ones(1)}}
    source = load_source(save(tmp_path, wrapped))
    assert source.provenance["checkpoint"]["prefix"] == "module."
    assert any("total_ops" in warning for warning in source.warnings)


@pytest.mark.parametrize("change", ["missing", "shape", "nan", "channels", "heads"])
def test_a_wrong_checkpoint_is_refused_naming_the_key(tmp_path: Path, change: str) -> None:
    state = trained_looking(NestedUNet(1))
    expected = "conv1_2.conv1.weight"
    if change == "missing":
        del state[expected]
    elif change == "shape":
        state[expected] = state[expected][:10]
    elif change == "nan":
        state[expected][0] = float("nan")
    elif change == "channels":
        state["conv0_0.conv1.weight"] = torch.ones(32, 5, 3, 3)
        state["conv0_0.bn1.running_var"] = torch.full((32,), 45 * 8e-6)
        expected = "5 channels"
    else:
        del state["final.weight"]
        expected = r"final\.weight"
    with pytest.raises(SourceError, match=expected):
        load_source(save(tmp_path, state))


# --------------------------------------------------------------------------- what the weights do not say


def test_without_side_files_the_defaults_are_named_in_a_warning(plain: Path) -> None:
    source = load_source(plain)
    assert source.recipe.options["upsample"] == "bilinear"
    assert source.recipe.options["input"] == BGR
    assert source.recipe.network.size == (96, 96)
    warning = next(w for w in source.warnings if "config.yml" in w)
    assert "--upsample nearest" in warning
    assert "--input rgb-div255" in warning
    assert not any("config.yml" in w for w in load_source(plain, options={"upsample": "nearest"}).warnings)


def test_a_run_folders_config_is_used(deep: Path) -> None:
    source = load_source(deep)
    assert not any("no config.yml" in warning for warning in source.warnings)
    assert source.recipe.network.size == (32, 48)
    assert source.recipe.name == "cells_wDS"
    assert source.recipe.options["input_from"] == "config.yml"
    assert source.recipe.options["head"] == 4
    assert source.recipe.metric.name == "iou"
    # the file itself finds the same side files
    assert load_source(deep / "model.pth").recipe == source.recipe


def test_our_own_runs_say_which_upsampling_they_used(tmp_path: Path) -> None:
    path = save(tmp_path, trained_looking(NestedUNet(1)), "input_h: 32\ninput_w: 32\n")
    (tmp_path / "segship.yml").write_text("upsample: nearest\n")
    source = load_source(path)
    assert (source.recipe.options["upsample"], source.recipe.options["upsample_from"]) == ("nearest", "segship.yml")
    assert load_source(path, options={"upsample": "bilinear"}).recipe.options["upsample_from"] == "option"
    (tmp_path / "segship.yml").write_text("upsample: cubic\n")
    with pytest.raises(SourceError, match="cubic"):
        load_source(path)


def test_side_files_that_contradict_or_cannot_be_read(tmp_path: Path) -> None:
    path = save(tmp_path, trained_looking(NestedUNet(1)), "arch: UNet\nnum_classes: 4\n")
    assert sum("the weights are believed" in warning for warning in load_source(path).warnings) == 2
    for text in ("a: [", "- 1\n", "!!python/object/apply:os.system ['true']", "input_h: 96\ninput_w: ten\n"):
        (tmp_path / "config.yml").write_text(text)
        with pytest.raises(SourceError, match=r"config\.yml"):
            load_source(path)


def test_an_old_runs_pickle_is_never_opened_but_tells_the_input_kind(tmp_path: Path) -> None:
    path = save(tmp_path, trained_looking(NestedUNet(1), kind=RGB))
    (tmp_path / "args.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    source = load_source(path)
    assert (source.recipe.options["input"], source.recipe.options["input_from"]) == (RGB, "args.pkl")
    assert source.recipe.input.kind == "image"
    assert source.recipe.input.channel_order == "rgb"
    assert [step.step for step in source.recipe.preprocess] == ["resize", "divide"]


@pytest.mark.parametrize(("trained_on", "asked"), [(BGR, RGB), (RGB, BGR)])
def test_the_weights_tell_which_input_they_were_trained_on(tmp_path: Path, trained_on: str, asked: str) -> None:
    path = save(tmp_path, trained_looking(NestedUNet(1), kind=trained_on))
    assert load_source(path, options={"input": trained_on, "upsample": "bilinear"}).warnings == ()
    with pytest.raises(SourceError, match=f"--input {trained_on}.*--force"):
        load_source(path, options={"input": asked})
    forced = load_source(path, options={"input": asked}, force=True)
    assert forced.recipe.options["input"] == asked
    assert any(warning.startswith("forced") for warning in forced.warnings)


@pytest.mark.parametrize(("q", "steps"), [(3e-4, 0), (2.0, 0), (2.5e-2, 40)])
def test_weights_that_do_not_tell_are_only_warned_of(tmp_path: Path, q: float, steps: int) -> None:
    state = trained_looking(NestedUNet(1))
    state["conv0_0.bn1.running_var"] = q * state["conv0_0.conv1.weight"].flatten(1).square().sum(1)
    state["conv0_0.bn1.num_batches_tracked"] = torch.tensor(steps)
    source = load_source(save(tmp_path, state), options={"upsample": "bilinear"})
    assert len(source.warnings) == 1
    assert "input" in source.warnings[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_program_tells_its_upsampling(tmp_path: Path) -> None:
    network = NestedUNet(1, upsample="nearest").eval()
    network.load_state_dict(trained_looking(network))
    torch.jit.trace(network, torch.zeros(1, 3, 32, 32), check_trace=False).save(str(tmp_path / "net.ts"))
    source = load_source(tmp_path / "net.ts", options={"input_size": "32"})
    assert (source.recipe.options["upsample"], source.recipe.options["upsample_from"]) == (
        "nearest",
        "TorchScript program",
    )
    x = inputs(1, 3, 32, 32)
    assert np.array_equal(parity.run_source(source.network, x)[0], parity.run_source(network, x)[0])
    with pytest.raises(SourceError, match="TorchScript program"):
        load_source(tmp_path / "net.ts", options={"upsample": "bilinear"})


def test_constants_and_names(tmp_path: Path, plain: Path) -> None:
    steps = load_source(plain).recipe.preprocess
    assert steps[0].model_dump() == {"step": "resize", "height": 96, "width": 96, "method": "opencv:linear"}
    normalize = steps[1].model_dump()
    assert np.allclose(normalize["subtract"], (123.675, 116.28, 103.53), rtol=1e-7)
    assert np.allclose(normalize["multiply"], 1 / np.array((58.395, 57.12, 57.375)), rtol=1e-6)
    assert steps[2].model_dump() == {"step": "divide", "by": 255.0, "channel": None}
    grey = save(tmp_path, trained_looking(NestedUNet(1, 1)))
    normalize = load_source(grey).recipe.preprocess[1].model_dump()
    assert np.allclose((normalize["subtract"][0], normalize["multiply"][0]), (123.675, 1 / 58.395))
    given = load_source(grey, options={"mean": "0.5", "std": "0.25", "class_names": "cell"})
    assert list(given.recipe.preprocess[1].model_dump()["subtract"]) == [127.5]
    assert given.recipe.labels[0].name == "cell"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upsample": "cubic"}, "--upsample must be one of bilinear, nearest"),
        ({"input_size": "100x96"}, "multiples of 16; use 112x96"),
        ({"input_size": "wide"}, "HEIGHTxWIDTH"),
        ({"head": "2"}, "deep supervision"),
        ({"mean": "0.5"}, "--mean needs 3"),
        ({"std": "0,1,1"}, "--std needs 3 positive"),
        ({"mean": "a,b,c"}, "numbers separated by commas"),
        ({"class_names": "a,b"}, "--class-names needs 1"),
        ({"folds": "0"}, "no option 'folds'"),
    ],
)
def test_options_that_do_not_fit(plain: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_source(plain, options=options)


# --------------------------------------------------------------------------------------------- exporting


@pytest.fixture
def pruned(deep: Path) -> Source:
    return load_source(deep, options={"head": "1", "input_size": "32"})


def test_a_wrong_conversion_writes_nothing(pruned: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = onnx_graph.from_torch

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        model = original(*args, **kwargs)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "coordinate_transformation_mode":
                    attribute.s = b"half_pixel"
        return model

    monkeypatch.setattr(onnx_graph, "from_torch", spoiled)
    with pytest.raises(BarMissed, match=r"stage network.*nothing was written"):
        export(pruned, tmp_path / "net.segship", engines=["onnxruntime"])
    assert list(tmp_path.iterdir()) == []


def test_exporting_twice_gives_one_file(pruned: Source, tmp_path: Path) -> None:
    first = export(pruned, tmp_path / "a.segship", engines=["onnxruntime"]).package
    second = export(pruned, tmp_path / "b.segship", engines=["onnxruntime"]).package
    assert first.sha256 == second.sha256
    golden = first.golden()
    assert golden is not None
    assert golden.bundled
    assert str(tmp_path).encode() not in first.read("provenance.json")


def test_validate_scores_both_upsamplings_and_decides_nothing(tmp_path: Path) -> None:
    import cv2

    from segship.convert.export import bundled_sample

    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    pixels = cv2.imdecode(np.frombuffer(bundled_sample(), np.uint8), cv2.IMREAD_COLOR)
    for index in range(3):
        part = pixels[index * 10 : index * 10 + 64, : 64 + index]
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{index}.png"), part)
        mask = np.uint8(255) * (part[..., 0] > 60).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "data" / "masks" / f"{index}.png"), mask)
    path = save(tmp_path, trained_looking(NestedUNet(1, deep_supervision=True)))
    result = export(
        path, tmp_path / "net.segship", options={"head": "1", "input_size": "32"}, engines=["onnxruntime"],
        validate=tmp_path / "data",
    )  # fmt: skip
    assert [(a.name, a.chosen) for a in result.alternatives] == [
        ("upsample=bilinear", True),
        ("upsample=nearest", False),
    ]
    assert all(a.metric == "iou" and a.cases == 3 for a in result.alternatives)
    assert result.package.manifest.options["upsample"] == "bilinear"
    assert any("config.yml" in warning for warning in result.warnings)


@pytest.mark.skipif(processor().computes("int8") is False, reason="this processor has no int8 instructions")
@pytest.mark.usefixtures("convolutions_alike")
def test_int8_is_int8(golden: Callable[[str], tuple[Source, dict[str, np.ndarray]]], tmp_path: Path) -> None:
    source, arrays = golden("dsb2018_pipeline")
    x, expected = arrays["input"], arrays["output0"]
    model = to_onnx(source)
    edges = edge_layers({"model": model})
    assert edges == ("conv0_0.conv1", "final")
    graph = onnx_graph.save(quantize(model, x, QuantizeOptions(keep_in_float=edges)), tmp_path / "int8.onnx")
    answers = {}
    for engine in checking_engines(None, "int8"):
        session = open_session(engine, graph, SessionOptions(precision="int8", profile=True))
        answers[engine] = session.run(x)[0]
        if engine == "openvino":
            assert session.executed(x).convolution_share.get("i8", 0) >= 0.8
        session.close()
    for engine, found in answers.items():
        # seeded weights: nothing was trained to be robust, so this error is far above that of a trained network
        assert 1e-3 < relative_error(found, expected) < 0.15, engine
        assert relative_error(found, answers["onnxruntime"]) < 0.05, engine


def test_the_inputs_quantiser_covers_the_data(deep: Path) -> None:
    model = to_onnx(load_source(deep, options={"head": "1", "input_size": "32"}))
    x = inputs(8, 3, 32, 32)
    x[0, 0, 0, 0] = 0.0104  # one bright pixel in one picture
    for activations in ("symmetric", "asymmetric"):
        found = onnx_graph.input_range(quantize(model, x, QuantizeOptions(activations=activations)))
        assert found is not None
        assert found[0] <= x.min() + 1e-4
        assert found[1] >= x.max() - 1e-4
        assert found[1] - found[0] < 3 * (x.max() - x.min())
    fixed = quantize(model, x, QuantizeOptions(input_range=(-0.02, 0.03)))
    assert onnx_graph.input_range(fixed) == pytest.approx((-0.02, 0.03), abs=2e-4)


def test_putting_every_layer_back_gives_the_float_graph(deep: Path) -> None:
    import onnxruntime

    model = to_onnx(load_source(deep, options={"head": "2", "input_size": "32"}))
    x = inputs(4, 3, 32, 32)

    def run(graph: Any) -> np.ndarray:
        session = onnxruntime.InferenceSession(onnx_graph.serialise(graph), providers=["CPUExecutionProvider"])
        return session.run(None, {"actual_input_1": x})[0]

    quantised = quantize(model, x, QuantizeOptions())
    names = onnx_graph.convolution_names(model)
    whole = onnx_graph.restore_float(quantised, model, names)
    assert np.array_equal(run(whole), run(model))
    assert onnx_graph.operators(whole) == onnx_graph.operators(model)
    # one block alone: the others stay as they were
    part = onnx_graph.restore_float(quantised, model, ["conv0_2.conv1", "conv0_2.conv2"])
    before, after = onnx_graph.operators(quantised), onnx_graph.operators(part)
    assert 0 < after["QuantizeLinear"] < before["QuantizeLinear"]
    assert relative_error(run(part), run(model)) < relative_error(run(quantised), run(model)) * 1.05
