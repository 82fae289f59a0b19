"""The MLPerf 3D U-Net: names, shapes and answers of the original, and every form its checkpoints come in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeded import State
from torch import nn

from segship.convert import onnx_graph
from segship.engines import SessionOptions, open_session
from segship.errors import SourceError, UnknownSource, UsageError
from segship.families import load_source, unet3d_mlperf
from segship.families.unet3d_mlperf_recipe import Choices, build_recipe, tiling
from segship.inference import tiling as windows
from segship.inference.volume_chain import prepare_volume
from segship.inference.volume_network import scores
from segship.inference.volumes import Volume
from segship.manifest import Pad, Recipe, Tiling
from segship.networks.unet3d_mlperf import Unet3D

WIDTHS = (4, 6, 8, 8, 10)
Read = Callable[[str], Any]


@pytest.fixture(scope="module")
def upstream(reference_case: Read, fill: Callable[..., State]) -> tuple[nn.Module, dict[str, np.ndarray]]:
    about, arrays = reference_case("mlperf_unet3d")
    network = Unet3D().eval()
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == about["state_dict"]
    assert sum(parameter.numel() for parameter in network.parameters()) == about["parameters"] == 31_190_243
    network.load_state_dict(fill(network.state_dict(), about["gain"]))
    return network, arrays


def test_the_networks_answer(upstream: tuple[nn.Module, dict[str, np.ndarray]]) -> None:
    network, arrays = upstream
    with torch.inference_mode():
        found = network(torch.from_numpy(arrays["input"])).numpy()
    assert np.abs(found - arrays["output0"]).max() <= 1e-4


@pytest.mark.slow
def test_the_answer_on_every_engine(upstream: tuple[nn.Module, dict[str, np.ndarray]], tmp_path: Path) -> None:
    network, arrays = upstream
    graph = onnx_graph.serialise(
        onnx_graph.from_torch(
            network,
            arrays["input"].shape[1:],
            input_name="input",
            output_names=["logits"],
            batch=None,
            size_multiple=None,
        )
    )
    (tmp_path / "net.onnx").write_bytes(graph)
    for name in ("openvino", "onnxruntime", "pytorch"):
        session = open_session(name, tmp_path / "net.onnx", SessionOptions(threads=1))
        assert np.abs(session.run(arrays["input"])[0] - arrays["output0"]).max() <= 1e-3, name
        session.close()


@pytest.mark.parametrize("normalization", ["instancenorm", "batchnorm"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_other_kinds_of_the_network(normalization: Any, activation: Any) -> None:
    network = Unet3D(2, 4, normalization, activation, WIDTHS).eval()
    keys = network.state_dict()
    assert len(Unet3D(normalization=normalization).state_dict()) == (144 if normalization == "batchnorm" else 78)
    assert ("input_block.conv1.1.running_mean" in keys) == (normalization == "batchnorm")
    with torch.inference_mode():
        x = torch.randn(2, 2, 32, 64, 32)
        both = network(x)
        alone = network(x[1:])
    assert both.shape == (2, 4, 32, 64, 32)
    assert torch.allclose(both[1:], alone, atol=1e-5)
    with pytest.raises(ValueError, match="5 widths, not 2"):
        Unet3D(filters=(4, 8))


# ------------------------------------------------------------------------------------------- checkpoints


def state_of(seed: int = 0, **changes: Any) -> State:
    torch.manual_seed(seed)
    return dict(Unet3D(filters=WIDTHS, **changes).state_dict())


def saved(tmp_path: Path, content: Mapping[str, Any], name: str = "kits.pth") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def first_value(path: Path, **options: Any) -> float:
    source = load_source(path, options={"window": "64", **options})
    return float(source.network.state_dict()["input_block.conv1.0.weight"].flatten()[0])  # type: ignore[union-attr]


def test_best_is_taken_and_last_on_request(tmp_path: Path) -> None:
    best, last = state_of(1), state_of(2)
    path = saved(
        tmp_path,
        {
            "epoch": 2659.0, "L1 dice": 0.95, "L2 dice": 0.87, "mean_dice": 0.91, "seed": 3,
            "best_model_state_dict": best, "last_model_state_dict": last,
            "best_optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 0.8}]},
        },
    )  # fmt: skip
    key = "input_block.conv1.0.weight"
    assert first_value(path) == first_value(path, weights="best") == float(best[key].flatten()[0])
    assert first_value(path, weights="last") == float(last[key].flatten()[0])
    source = load_source(path)
    assert source.recipe.options["weights"] == "best_model_state_dict"
    assert source.recipe.options["filters"] == "4 6 8 8 10"
    assert source.provenance["saved_with_it"]["mean_dice"] == 0.91
    assert any("epoch 2659, mean_dice 0.9100" in note for note in source.notes)


def test_a_run_that_never_scored_has_its_last_weights_only(tmp_path: Path) -> None:
    path = saved(tmp_path, {"last_model_state_dict": state_of(), "epoch": 1.0})
    assert load_source(path).recipe.options["weights"] == "last_model_state_dict"
    with pytest.raises(UsageError, match="no best_model_state_dict; it holds last_model_state_dict"):
        load_source(path, options={"weights": "best"})


@pytest.mark.parametrize("wrap", ["bare", "ddp", "state_dict", "first spelling", "torchscript", "best ddp"])
def test_every_wrapper_gives_the_same_network(tmp_path: Path, wrap: str) -> None:
    state = state_of(5)
    path = tmp_path / "kits.ptc"
    if wrap == "torchscript":
        network = Unet3D(filters=WIDTHS).eval()
        network.load_state_dict(state)
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 1, 64, 32, 32), check_trace=False), path)
    else:
        prefixed = {f"module.{key}": value for key, value in state.items()}
        old = {key.replace("output.conv.", "output.conv.0."): value for key, value in state.items()}
        contents = {
            "bare": state, "ddp": prefixed, "state_dict": {"state_dict": state}, "first spelling": old,
            "best ddp": {"best_model_state_dict": {f"module.{k}": v for k, v in old.items()}, "epoch": 1.0},
        }  # fmt: skip
        torch.save(contents[wrap], path)
    source = load_source(path)
    assert source.recipe.family == "unet3d_mlperf"
    found = source.network.state_dict()  # type: ignore[union-attr]
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert not source.warnings


def test_a_run_folder_says_what_the_weights_do_not(tmp_path: Path) -> None:
    saved(tmp_path, {"last_model_state_dict": state_of()}, "checkpoint.pth")
    saved(tmp_path, {"epoch": 3}, "state.pt")
    (tmp_path / "segship.yml").write_text(
        "activation: leaky_relu\nwindow: 64x32x64\noverlap: 0.25\npad_to: 65x65x70\nborders: flush\n"
    )
    recipe = load_source(tmp_path).recipe
    assert recipe.options["activation"] == "leaky_relu"
    assert recipe.tiling is not None
    assert recipe.tiling.window == (64, 32, 64)
    assert recipe.tiling.step == (48, 24, 48)
    assert recipe.tiling.positions == "flush-last"
    assert [step.minimum for step in recipe.preprocess if isinstance(step, Pad)] == [(65, 65, 70)]
    with pytest.raises(SourceError, match="contradicts what the file says"):
        load_source(tmp_path, options={"activation": "relu"})


def test_batch_norm_is_seen_and_the_activation_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path, {"last_model_state_dict": state_of(normalization="batchnorm", in_channels=2, classes=4)})
    source = load_source(path, options={"activation": "leaky_relu"})
    assert source.recipe.options["normalization"] == "batchnorm"
    assert [channel.name for channel in source.recipe.input.channels] == ["channel 0", "channel 1"]
    assert [label.name for label in source.recipe.labels] == ["background", "class 1", "class 2", "class 3"]
    kinds = {type(module) for module in source.network.modules()}  # type: ignore[union-attr]
    assert nn.LeakyReLU in kinds
    assert nn.BatchNorm3d in kinds
    assert nn.ReLU not in kinds


def test_a_script_says_its_activation(tmp_path: Path) -> None:
    network = Unet3D(activation="leaky_relu", filters=WIDTHS).eval()
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 1, 64, 32, 32), check_trace=False), tmp_path / "net.pt")
    assert load_source(tmp_path / "net.pt").recipe.options["activation"] == "leaky_relu"
    with pytest.raises(SourceError, match="contradicts what the file says"):
        load_source(tmp_path / "net.pt", options={"activation": "relu"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downsample.2.conv1.0.weight": None}, "downsample.2.conv1.0.weight should be"),
        ({"upsample.0.conv1.0.weight": (10, 10, 3, 3, 3)}, r"upsample.0.conv1.0.weight should be \(10, 20, 3, 3, 3\)"),
        ({"output.conv.weight": None}, "output.conv.weight should be a three-dimensional convolution, it is missing"),
        ({"downsample.4.conv1.0.weight": (9, 10, 3, 3, 3)}, "deeper than the 5 levels"),
    ],
)
def test_tensors_of_another_network(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    state = state_of()
    for key, shape in change.items():
        state.pop(key, None)
        if shape is not None:
            state[key] = torch.zeros(shape)
    with pytest.raises(SourceError, match=message):
        load_source(saved(tmp_path, state))


def test_another_architecture_and_weights_that_diverged(tmp_path: Path) -> None:
    other = saved(tmp_path, {"encoder.weight": torch.zeros(3, 3)}, "other.pth")
    with pytest.raises(UnknownSource, match=r"unet3d_mlperf: input_block.conv1.0.weight"):
        load_source(other)
    with pytest.raises(SourceError, match="not the network of mlcommons/training's unet3d"):
        load_source(other, family="unet3d_mlperf")
    state = state_of()
    state["bottleneck.conv2.0.weight"][0] = float("nan")
    with pytest.raises(SourceError, match="diverged"):
        load_source(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "100"}, "multiple of 32"),
        ({"window": "32"}, "single voxel"),
        ({"window": "64x64"}, "a side or three"),
        ({"overlap": "1"}, "0 up to below 1"),
        ({"borders": "crop"}, "one of pad, flush"),
        ({"overlap": "0.5,0.5"}, "0 up to below 1"),
        ({"compat": "v1-cascade"}, "knows 'crop'"),
        ({"class_names": "kidney"}, "needs 2 different names"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_source(saved(tmp_path, state_of()), options=options)


def test_what_the_options_change(tmp_path: Path) -> None:
    path = saved(tmp_path, state_of())
    plain = load_source(path).recipe
    assert plain.tiling is not None
    assert plain.tiling.window == (128, 128, 128)
    assert plain.tiling.step == (64, 64, 64)
    assert plain.tiling.crop_remainder_below == 0
    assert plain.input.kind == "volume"
    assert plain.input.orientation == "IPL"
    pads = [step for step in plain.preprocess if isinstance(step, Pad)]
    assert pads[0].minimum == (128, 128, 128)
    changed = load_source(
        path, options={"window": "64x96x96", "overlap": "0.25", "pad_to": "0", "as_stored": True, "compat": "crop"}
    ).recipe
    assert changed.tiling is not None
    assert changed.tiling.window == (64, 96, 96)
    assert changed.tiling.step == (48, 72, 72)
    assert changed.tiling.crop_remainder_below == 24
    assert changed.input.kind == "volume"
    assert changed.input.orientation is None
    assert not [step for step in changed.preprocess if isinstance(step, Pad)]


# ----------------------------------------------------------------------------------------- sliding window


def choices(window: tuple[int, int, int], overlap: float, crop: bool = False) -> Choices:
    return Choices(window=window, overlap=overlap, pad_to=None, as_stored=False, crop=crop)


def recipe_with(found: Tiling) -> Recipe:
    recipe = build_recipe(
        name="net", parameters=1, channels=("CT",), classes=("kidney", "tumour"),
        choices=choices((32, 32, 64), 0.5), options={},
    )  # fmt: skip
    return recipe.model_copy(update={"tiling": found})


def test_the_weights_of_a_window(reference_case: Read, shared: Path) -> None:
    import json

    golden = json.loads((shared / "reference/mlperf_training.json").read_text())["gaussian"]
    found = windows.weights(tiling(choices((128, 128, 128), 0.5)), 2)
    assert found is not None
    for place, value in golden["values"].items():
        assert found[tuple(json.loads(place))] == pytest.approx(value, rel=2e-6)
    assert float(found.sum(dtype=np.float64)) == pytest.approx(golden["sum"], rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "window", "overlap", "crop"),
    [
        ((1, 1, 1), (32, 32, 64), 0.5, False),
        ((70, 33, 5), (32, 64, 32), 0.25, False),
        ((50, 40, 129), (32, 32, 64), 0.6, False),
        ((33, 40, 65), (32, 32, 64), 0.0, False),
        ((34, 32, 64), (32, 32, 64), 0.97, False),
        ((45, 70, 100), (32, 32, 32), 0.5, True),
        ((70, 70, 70), (64, 64, 64), 0.5, True),
    ],
)
def test_any_shape_window_and_overlap(
    shape: tuple[int, int, int], window: tuple[int, int, int], overlap: float, crop: bool
) -> None:
    """A network that answers with its input shows where each voxel went: nothing is lost, moved or NaN."""
    x = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    found = scores(
        x, recipe_with(tiling(choices(window, overlap, crop))), [lambda a: np.concatenate([a, -a, 2 * a], 1)]
    )
    assert found.shape == (3, *shape)
    assert np.isfinite(found).all()
    kept = windows.remainder_crop(shape, tiling(choices(window, overlap, crop)))
    inside = (slice(None), *kept)
    wanted = np.concatenate([x, -x, 2 * x])
    assert np.abs(found[inside] - wanted[inside]).max() <= 1e-5
    outside = np.ones(shape, bool)
    outside[kept] = False
    assert not found[:, outside].any()


@pytest.mark.slow
def test_mlperfs_own_window_over_a_volume(reference_case: Read, fill: Callable[..., State]) -> None:
    """Two windows of 128³ through the whole network: logits, labels and scores as the reference loop has them."""
    from segship.metrics.kits19 import dice_scores

    about, arrays = reference_case("mlperf_unet3d_sliding")
    network = Unet3D().eval()
    network.load_state_dict(fill(network.state_dict(), about["gain"]))
    x, target = formula_volume(about)

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(np.ascontiguousarray(batch))).numpy()

    cropped = tiling(choices((128, 128, 128), 0.5, crop=True))
    kept = windows.remainder_crop(x.shape[1:], cropped)
    found = scores(x, recipe_with(cropped), [run])[(slice(None), *kept)]
    assert list(found.shape) == about["output_shape"]
    assert np.abs(found[:, ::5, ::5, ::5] - arrays["logits"]).max() <= 1e-3
    labels = found.argmax(axis=0)
    assert np.mean(labels[labels.shape[0] // 2] == arrays["argmax_mid"]) >= 0.9995
    first, second = dice_scores(labels, target[kept])
    assert first == pytest.approx(about["scores"]["L1 dice"], abs=5e-4)
    assert second == pytest.approx(about["scores"]["L2 dice"], abs=5e-4)
    assert (first + second) / 2 == pytest.approx(about["scores"]["mean_dice"], abs=5e-4)


def formula_volume(about: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    shape, p = about["volume"]["shape"], about["volume"]["phase"]
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij")
    values = 0.9 * np.sin(0.11 * z + 0.3 + p) + 0.8 * np.sin(0.07 * y - 0.5) * np.cos(0.05 * x + p)
    values += 0.6 * np.sin(0.023 * (z + 2 * y + 3 * x)) - 0.4
    c = [n // 2 for n in shape]
    labels = np.zeros(shape, np.uint8)
    labels[4 * (z - c[0]) ** 2 + 9 * (y - c[1]) ** 2 + 4 * (x - c[2]) ** 2 < 20000] = 1
    labels[(z - c[0] - 10) ** 2 + (y - c[1] - 8) ** 2 + (x - c[2] + 12) ** 2 < 500] = 2
    return np.clip(values, -2.340702, 2.639792).astype(np.float32)[None], labels


@pytest.mark.parametrize("shape", [(65, 65, 71), (20, 40, 130), (1, 32, 33)])
def test_flush_borders_pad_only_what_is_smaller_than_a_window(shape: tuple[int, int, int]) -> None:
    flush = tiling(Choices(window=(32, 32, 64), overlap=0.5, pad_to=None, as_stored=False, crop=False, borders="flush"))
    seen: list[np.ndarray] = []

    def run(batch: np.ndarray) -> np.ndarray:
        seen.extend(batch)
        return np.concatenate([batch, -batch, 2 * batch], 1)

    x = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    found = scores(x, recipe_with(flush), [run])
    assert np.abs(found - np.concatenate([x, -x, 2 * x])).max() <= 1e-5
    padded = all(n >= side for n, side in zip(shape, (32, 32, 64), strict=True))
    assert padded == (not any((window == np.float32(-2.2)).any() for window in seen))
    cropped = windows.compat_crop(flush)
    assert cropped.positions == "stride-multiple"
    assert cropped.crop_remainder_below == 8


def test_one_voxel_of_a_thin_case_goes_through_the_chain() -> None:
    recipe = unet3d_mlperf.tiny().recipe
    volume = Volume(channels=np.full((1, 1, 3, 2), 40, np.float32), spacing=(0.5, 0.4, 0.4), name="thin")
    prepared = prepare_volume(volume, recipe)
    assert prepared.x.shape == (1, 32, 64, 64)
    assert np.allclose(prepared.x, (40 - 101) / 76.9)
