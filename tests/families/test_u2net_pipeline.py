"""U²-Net end to end on real photos, held to what upstream's and rembg's own programs gave, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil
from seeded import State
from u2net_files import write_onnx

from segship.convert import checks, onnx_graph, parity
from segship.convert.checks import checking_engines, temporary_package
from segship.convert.source_graph import FP32, first_manifest, free_size, to_onnx
from segship.engines import SessionOptions, open_session
from segship.families import load_source
from segship.inference.images import read_image
from segship.inference.postprocess import smooth_mask
from segship.inference.prediction import decode
from segship.inference.predictor import Predictor
from segship.inference.preprocess import prepare
from segship.manifest import Recipe
from segship.networks.u2net import U2NET, U2NETP

CASE = "u2netp_pipeline"
PHOTOS = {"horse": "horse.jpg", "girl": "girl.png", "bike": "bike.jpg"}
INPUTS = {"upstream": "input", "upstream-0.14": "input_no_antialias", "rembg": "input_lanczos"}
ENGINES = [engine for engine in checking_engines(None, "fp32") if engine != "pytorch"]
ODD = [(1, 321, 287), (1, 97, 131), (1, 33, 47), (2, 97, 131)]
Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def arrays(reference_case: Callable[[str], Any]) -> Arrays:
    return reference_case(CASE)[1]


@pytest.fixture(scope="module")
def network(fill: Callable[..., State]) -> U2NETP:
    """The network whose seeded weights all reference cases have."""
    net = U2NETP()
    net.load_state_dict(fill(net.state_dict(), 2.0))
    return net.eval()


@pytest.fixture(scope="module")
def file(network: U2NETP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an ONNX file of 320×320, quicker to make than a package from the checkpoint."""
    return write_onnx(network, tmp_path_factory.mktemp("u2netp") / "seeded.onnx", (320, 320))


@pytest.fixture(scope="module")
def graph(file: Path) -> bytes:
    return onnx_graph.serialise(to_onnx(load_source(file)))


def recipe_of(file: Path, name: str, **options: Any) -> Recipe:
    return load_source(file, options={"recipe": name, **options}).recipe


@contextmanager
def opened(recipe: Recipe, graph: bytes, engine: str) -> Iterator[Predictor]:
    manifest = first_manifest(recipe, graph, None, [engine], ())
    with temporary_package(manifest, {FP32: graph}) as package, Predictor.open(package, engine=engine) as predictor:
        yield predictor


def prepared(recipe: Recipe, picture: Any) -> np.ndarray:
    assert recipe.input.kind == "image"
    return prepare(read_image(picture, recipe.input), recipe).x[None]


def levels(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Largest and mean difference in grey levels."""
    assert found.shape == expected.shape
    gap = np.abs(found.astype(np.int64) - expected)
    return float(gap.max()), float(gap.mean())


@pytest.mark.parametrize("recipe", INPUTS)
@pytest.mark.parametrize("photo", PHOTOS)
def test_the_networks_input(file: Path, arrays: Arrays, shared: Path, recipe: str, photo: str) -> None:
    x = prepared(recipe_of(file, recipe), shared / "data/photos" / PHOTOS[photo])
    assert x.dtype == np.float32
    expected = arrays[f"{photo}_{INPUTS[recipe]}_every_8th"]
    assert np.abs(x[..., ::8, ::8] - expected).max() <= 1e-5
    if recipe == "upstream" and f"{photo}_input_rows_0_1_318_319" in arrays:
        # the outermost rows, which the zeros outside the picture darken
        assert np.abs(x[..., [0, 1, 318, 319], :] - arrays[f"{photo}_input_rows_0_1_318_319"]).max() <= 1e-5


def test_grey_is_normalised_as_one_plane_used_three_times(file: Path, arrays: Arrays, shared: Path) -> None:
    grey = np.asarray(Pil.open(shared / "data/photos/long.jpg").convert("L"))
    x = prepared(recipe_of(file, "upstream"), grey)
    assert np.abs(x[..., ::8, ::8] - arrays["long_gray_input_every_8th"]).max() <= 1e-5
    assert np.array_equal(x[:, 0], x[:, 2])


def test_alpha_takes_part_in_the_maximum_only_where_asked(file: Path, arrays: Arrays, shared: Path) -> None:
    photo = np.asarray(Pil.open(shared / "data/photos/long.jpg").convert("RGB"))
    alpha = np.broadcast_to(np.linspace(0, 200, photo.shape[1]).astype(np.uint8), photo.shape[:2])
    rgba = np.dstack([(photo * 0.6).astype(np.uint8), alpha])
    compat = prepared(recipe_of(file, "upstream", alpha="in-max"), rgba)
    assert np.abs(compat[..., ::8, ::8] - arrays["long_rgba_input_every_8th"]).max() <= 1e-5
    dropped = prepared(recipe_of(file, "upstream"), rgba)
    assert np.array_equal(dropped, prepared(recipe_of(file, "upstream"), rgba[..., :3].copy()))
    assert np.abs(dropped - compat).max() > 0.1


Traced = Callable[[str, str, str], Mapping[str, np.ndarray]]


@pytest.fixture(scope="module")
def traced(file: Path, graph: bytes, shared: Path) -> Traced:
    """``traced(engine, recipe, photo)``: every stage of the package, run once each."""

    @cache
    def run(engine: str, recipe: str, photo: str) -> Mapping[str, np.ndarray]:
        with opened(recipe_of(file, recipe), graph, engine) as predictor:
            return predictor.trace(shared / "data/photos" / PHOTOS[photo])

    return run


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("photo", ["horse", "girl"])
def test_map_and_mask(traced: Traced, arrays: Arrays, engine: str, photo: str) -> None:
    stages = traced(engine, "upstream", photo)
    assert np.abs(stages["network"][:, ::4, ::4] - arrays[f"{photo}_d0_every_4th"]).max() <= 1e-4
    largest, mean = levels(stages["decoded"], arrays[f"{photo}_mask"])
    assert largest <= 2
    assert mean <= 0.05


@pytest.mark.parametrize("photo", ["horse", "girl"])
def test_masks_of_the_other_recipes(traced: Traced, arrays: Arrays, photo: str) -> None:
    plain = traced("onnxruntime", "upstream-0.14", photo)["decoded"][::4, ::4]
    largest, mean = levels(plain, arrays[f"{photo}_mask_no_antialias_every_4th"])
    assert (largest <= 2, mean <= 0.05) == (True, True)
    mask = traced("onnxruntime", "rembg", photo)["decoded"]
    largest, mean = levels(mask, arrays[f"{photo}_rembg_mask"])
    assert (largest <= 2, mean <= 0.05) == (True, True)
    post = arrays[f"{photo}_rembg_mask_post_every_4th"]
    assert np.mean(smooth_mask(mask, 2.0)[::4, ::4] != post) <= 1e-3


def test_a_large_photo(traced: Traced, arrays: Arrays) -> None:
    mask = traced("openvino", "upstream", "bike")["decoded"]
    assert mask.shape == (2000, 3000)
    largest, mean = levels(mask[::16, ::16], arrays["bike_mask_every_16th"])
    assert (largest <= 2, mean <= 0.05) == (True, True)


def test_recipes_give_different_masks(traced: Traced) -> None:
    """What makes the recipe worth recording: several percent of full scale between them."""
    masks = {name: traced("onnxruntime", name, "horse")["decoded"] / 255 for name in INPUTS}
    assert np.abs(masks["upstream"] - masks["upstream-0.14"]).mean() > 0.005
    assert np.abs(masks["upstream"] - masks["rembg"]).mean() > 0.005


def test_portrait_is_upstream_turned_round(file: Path, traced: Traced, shared: Path) -> None:
    stages = traced("onnxruntime", "upstream", "girl")
    d0 = np.float32(1) - stages["network"][0]
    expected = ((d0 - d0.min()) / (d0.max() - d0.min()) * np.float32(255)).astype(np.uint8)
    portrait = recipe_of(file, "portrait")
    assert portrait.options["input_size"] == "320x320"  # the file's own; 512x512 from a checkpoint
    assert portrait.input.kind == "image"
    frame = prepare(read_image(shared / "data/photos/girl.png", portrait.input), portrait)
    assert np.array_equal(frame.x, stages["preprocessed"])
    drawn = decode((stages["network"],), frame, portrait)
    assert np.array_equal(drawn.on_grid("network").saliency, expected)
    height, width = drawn.size_hw
    across = Pil.fromarray(expected).resize((width, 320), Pil.Resampling.BILINEAR)
    assert np.array_equal(drawn.saliency, np.asarray(across.resize((width, height), Pil.Resampling.BILINEAR)))


# ------------------------------------------------------------------------------------------------ any size


def test_a_graph_free_in_all_axes_takes_odd_sizes(network: U2NETP, tmp_path: Path) -> None:
    source = free_size(load_source(write_onnx(network, tmp_path / "free.onnx", (64, 64), free=(0, 2, 3))))
    model = to_onnx(source)
    pools = [node for node in model.graph.node if node.op_type == "MaxPool"]
    assert all(any(a.name == "ceil_mode" and a.i for a in node.attribute) for node in pools)
    saved = onnx_graph.save(model, tmp_path / "net.onnx")
    sessions = {engine: open_session(engine, saved, SessionOptions()) for engine in ENGINES}
    for batch, height, width in ODD:
        x = normal(batch, height, width)
        expected = parity.run_source(network, x)[0]
        for engine, session in sessions.items():
            assert np.abs(session.run(x)[0] - expected).max() <= 1e-4, (engine, x.shape)
    for session in sessions.values():
        session.close()


@pytest.mark.slow
@pytest.mark.parametrize(("case", "kind"), [("u2netp", U2NETP), ("u2net", U2NET)])
def test_one_dynamic_package_from_the_checkpoint(
    case: str, kind: type[U2NET], reference_case: Callable[[str], Any], fill: Callable[..., State], tmp_path: Path
) -> None:
    import torch

    about, arrays = reference_case(case)
    path = tmp_path / f"{case}.pth"
    torch.save(fill(kind().state_dict(), about["gain"]), path)
    source = free_size(load_source(path))
    saved = onnx_graph.save(to_onnx(source), tmp_path / "net.onnx")
    for engine in ENGINES:
        session = open_session(engine, saved, SessionOptions())
        assert np.abs(session.run(arrays["input"])[0] - arrays["output0"]).max() <= 1e-4
        for batch, height, width in ODD if kind is U2NETP else ODD[:1]:  # the wide one is the same graph
            x = normal(batch, height, width)
            assert np.abs(session.run(x)[0] - parity.run_source(source.network, x)[0]).max() <= 1e-4, (engine, x.shape)
        session.close()


def normal(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).normal(size=(batch, 3, height, width)).astype(np.float32)


def test_sizes_of_a_dynamic_package_are_odd_ones_too(file: Path) -> None:
    sizes = checks.other_sizes(recipe_of(file, "upstream"))
    assert any(side % 2 for size in sizes for side in size)
