"""Each step that pictures have, alone: resizing, values, padding, decisions, restoring, clean-up, windows, ensembles."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from cpp_cases import (
    ARGMAX,
    COLOR,
    SIGMOID,
    SIZES,
    SKIMAGE,
    picture_package,
    resized,
    write_pictures,
)
from cpp_compare import AGREEMENT, Runner, check_decoded, check_stages

from segship.inference.predictor import Predictor
from segship.manifest import (
    Channels,
    Clip,
    CropToNonzero,
    Decode,
    Divide,
    DivideByMaximum,
    FillHoles,
    ImageResize,
    KeepLargest,
    Mirror,
    Normalize,
    Pad,
    Regions,
    RemoveSmall,
    RescaleMinMax,
    Resize,
    ResizeByFactor,
    ResizeKeepRatio,
    Saliency,
    SmoothMask,
    Threshold,
    Tiling,
    ZScore,
)
from segship.package import Package

METHODS = get_args(ImageResize)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), SIZES)


def beside(package: Package, run_cpp: Runner, inputs: list[Path], **tolerances: float) -> None:
    """All inputs through both runners."""
    found = run_cpp(package, *inputs)
    assert found.code == 0, found.err
    with Predictor.open(package) as predictor:
        for path in inputs:
            check_stages(found.of(path.stem), predictor.trace(path), **tolerances)


def some(pictures: list[Path]) -> list[Path]:
    """Those of more than one pixel."""
    return [path for path in pictures if path.stem != "p1x1"]


# ------------------------------------------------------------------------------------------------- resizing


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(64, 64), (37, 90), (300, 211)])
def test_resize(method: str, size: tuple[int, int], pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    package = picture_package(tmp_path / "net.segship", *resized(*size, method))
    beside(package, run_cpp, pictures, prepared=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_resize_of_one_plane(method: str, run_cpp: Runner, tmp_path: Path) -> None:
    inputs = write_pictures(tmp_path / "in", channels=1)
    steps = (Resize(height=50, width=70, method=method), Channels(count=3), Divide(by=255))
    beside(picture_package(tmp_path / "net.segship", *steps, spec=SKIMAGE), run_cpp, inputs, prepared=2e-6)


@pytest.mark.parametrize(
    "step",
    [
        ResizeKeepRatio(long_side=96, short_side=64, method="opencv:linear"),
        ResizeKeepRatio(long_side=40, short_side=40, method="pillow:bilinear"),
        ResizeByFactor(factor=0.5, keep_ratio=False, method="opencv:area"),
        ResizeByFactor(factor=1.37, keep_ratio=True, method="opencv:linear"),
        ResizeByFactor(factor=0.73, keep_ratio=True, method="torch:bilinear"),
    ],
    ids=lambda step: f"{step.step}-{step.method}",
)
def test_sizes_that_follow_the_picture(step: Any, pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    package = picture_package(tmp_path / "net.segship", step, Divide(by=255), decode=ARGMAX, classes=3)
    beside(package, run_cpp, pictures, prepared=2e-6)


@pytest.mark.parametrize("where", ["both", "end"])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_padding_and_mirroring(where: Any, mode: Any, pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    padding = Pad(minimum=(90, 40), multiple_of=16, where=where, mode=mode, value=7.0)
    steps = (Divide(by=255), Mirror(), padding)
    package = picture_package(tmp_path / "net.segship", *steps, decode=ARGMAX, classes=4, multiple=16)
    beside(package, run_cpp, some(pictures))


def test_a_crop_comes_back_in_its_place(run_cpp: Runner, tmp_path: Path) -> None:
    import cv2

    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[11:40, 23:71] = np.random.default_rng(0).integers(1, 255, (29, 48, 3))
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((30, 20, 3), np.uint8))
    steps = (CropToNonzero(fill_holes=False), *resized(40, 40))
    package = picture_package(tmp_path / "net.segship", *steps, decode=ARGMAX, classes=3)
    beside(package, run_cpp, [tmp_path / "a.png", tmp_path / "b.png"])


# --------------------------------------------------------------------------------------------------- values

VALUES = {
    "normalize": (Normalize(subtract=(123.675, 116.28, 103.53), multiply=(0.0171, 0.0175, 0.0174)),),
    "normalize in float64": (
        DivideByMaximum(floor=1e-6, dtype="float64"),
        Normalize(subtract=(0.485, 0.456, 0.406), multiply=(1 / 0.229, 1 / 0.224, 1 / 0.225), dtype="float64"),
    ),
    "divide one channel": (Divide(by=255), Divide(by=3, channel=1)),
    "divide by maximum": (DivideByMaximum(floor=300.0, dtype="float32"),),
    "clip": (Divide(by=255), Clip(low=0.2, high=0.7), Clip(low=0.3, high=0.5, channel=2)),
    "rescale": tuple(RescaleMinMax(channel=k, epsilon=0.0) for k in range(3)),
    "zscore": tuple(
        ZScore(channel=k, mean=None, std=None, epsilon=1e-8, epsilon_rule="add", mask="none") for k in range(3)
    ),
    "zscore where not zero": tuple(
        ZScore(
            channel=k, mean=None, std=None, epsilon=1e-3, epsilon_rule="maximum", mask="nonzero", outside_mask="zero",
            between=(10.0, 200.0) if k == 1 else None,
        )
        for k in range(3)
    ),
    "zscore of given numbers": tuple(
        ZScore(channel=k, mean=100.0 + k, std=50.0, epsilon=0.0, epsilon_rule="add", mask="none") for k in range(3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_value_steps(name: str, pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    beside(picture_package(tmp_path / "net.segship", *VALUES[name], gain=1.0), run_cpp, some(pictures))


# ------------------------------------------------------------------------------------------------ decisions


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["logits", "probabilities", "decision"])
def test_independent_classes(what: Any, method: Any, pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    decode = Decode(activation="sigmoid", decision=Threshold(threshold=0.4), restore_what=what, restore_method=method)
    package = picture_package(tmp_path / "net.segship", *resized(48, 56), decode=decode, classes=3)
    # Zeros and ones enlarged by halves end at 0.5 often, where the last bit of a float64 sum decides.
    ties = what == "decision" and method.startswith("skimage")
    beside(package, run_cpp, some(pictures), prepared=2e-6, agreement=0.995 if ties else AGREEMENT)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("opencv:nearest", "opencv:area")])
@pytest.mark.parametrize("path", ["direct", "by-input-size"])
def test_exclusive_classes_of_a_coarser_output(
    path: Any, method: Any, pictures: list[Path], run_cpp: Runner, tmp_path: Path
) -> None:
    decode = ARGMAX.model_copy(update={"restore_method": method, "restore_path": path})
    steps = (*resized(64, 96), Pad(multiple_of=40, where="end", mode="constant"))
    package = picture_package(tmp_path / "net.segship", *steps, decode=decode, classes=5, stride=4, multiple=8)
    beside(package, run_cpp, some(pictures), prepared=2e-6)


@pytest.mark.parametrize(("what", "method"), [("probabilities", "opencv:linear"), ("decision", "opencv:nearest")])
def test_exclusive_classes(what: Any, method: Any, pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    decode = ARGMAX.model_copy(update={"restore_what": what, "restore_method": method})
    beside(picture_package(tmp_path / "n.segship", *resized(50, 60), decode=decode, classes=4), run_cpp, some(pictures))


def test_regions_in_their_order(pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    decode = SIGMOID.model_copy(update={"decision": Regions(threshold=0.5, order=(2, 1, 3))})
    package = picture_package(tmp_path / "net.segship", *resized(50, 60), decode=decode, classes=3)
    beside(package, run_cpp, some(pictures))


@pytest.mark.parametrize("method", ["pillow:lanczos", "pillow:bilinear", "opencv:linear", "skimage:linear"])
@pytest.mark.parametrize("what", ["decision", "probabilities"])
@pytest.mark.parametrize("rounding", ["truncate", "round", "none"])
def test_saliency(what: Any, method: Any, rounding: Any, pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    rule = Saliency(min_max=True, polarity="inverted" if rounding == "round" else "as-is", to_uint8=rounding)
    decode = Decode(activation="none", decision=rule, restore_what=what, restore_method=method)
    package = picture_package(
        tmp_path / "net.segship", *resized(64, 48), decode=decode, values="probabilities", graph_activation="Sigmoid"
    )
    beside(package, run_cpp, some(pictures))


def test_a_constant_map_and_one_without_min_max(pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    for number, (gain, min_max) in enumerate([(0.0, True), (4.0, False)]):
        rule = Saliency(min_max=min_max, polarity="as-is", to_uint8="truncate")
        decode = Decode(activation="sigmoid", decision=rule, restore_what="decision", restore_method="pillow:lanczos")
        package = picture_package(tmp_path / f"{number}.segship", *resized(32, 48), decode=decode, gain=gain)
        beside(package, run_cpp, some(pictures))


def test_ids_that_are_not_0_1_2(pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    from cpp_cases import labels

    for number, ids in enumerate([(0, 7, 3), (5, 300, 1)]):
        named = tuple(label.model_copy(update={"id": i}) for label, i in zip(labels(3), ids, strict=True))
        package = picture_package(tmp_path / f"{number}.segship", decode=ARGMAX, classes=3, labels=named)
        beside(package, run_cpp, some(pictures))


# ------------------------------------------------------------------------------------------------- clean-up

CLEANING = {
    "largest": (KeepLargest(labels=(1, 2), joint=False, connectivity="face"),),
    "largest together": (KeepLargest(labels=(1, 2), joint=True, connectivity="full"),),
    "largest above": (KeepLargest(labels=(1,), joint=False, minimum_mm3=30.0, connectivity="full"),),
    "small": (RemoveSmall(minimum_pixels=25, connectivity="face"), RemoveSmall(minimum_pixels=40, connectivity="full")),
    "holes": (FillHoles(),),
}


@pytest.mark.parametrize("name", CLEANING)
@pytest.mark.parametrize("exclusive", [True, False])
def test_clean_up(name: str, exclusive: bool, pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    decode = ARGMAX if exclusive else SIGMOID
    rules = CLEANING[name]
    package = picture_package(tmp_path / "net.segship", decode=decode, classes=3, postprocess=rules, gain=6.0)
    raw = picture_package(tmp_path / "raw.segship", decode=decode, classes=3, gain=6.0)
    beside(package, run_cpp, some(pictures))
    path = pictures[0]
    with Predictor.open(package) as clean, Predictor.open(raw) as plain:
        assert (clean.trace(path)["decoded"] != plain.trace(path)["decoded"]).any(), "nothing was there to clean"


def test_smoothed_masks(pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    saliency = Saliency(min_max=True, polarity="as-is", to_uint8="truncate")
    rules = (SmoothMask(sigma=2.0),)
    as_map = Decode(activation="sigmoid", decision=saliency, restore_what="decision", restore_method="pillow:lanczos")
    for number, decode in enumerate([SIGMOID, as_map]):
        package = picture_package(tmp_path / f"{number}.segship", *resized(64, 64), decode=decode, postprocess=rules)
        beside(package, run_cpp, some(pictures))


# ------------------------------------------------------------------------------------ windows and ensembles


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("window", "step"), [((24, 32), (14, 20)), ((40, 40), (40, 40)), ((17, 300), (5, 100))])
def test_slide_mode(
    window: tuple[int, int], step: tuple[int, int], stride: int, pictures: list[Path], run_cpp: Runner, tmp_path: Path
) -> None:
    tiling = Tiling(
        window=window, step=step, positions="flush-last", weighting="uniform", pad_mode="none", average="logits"
    )
    package = picture_package(
        tmp_path / "net.segship", decode=ARGMAX, classes=4, tiling=tiling, stride=stride, multiple=4
    )
    beside(package, run_cpp, pictures)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("decode", [SIGMOID, ARGMAX], ids=["independent", "exclusive"])
def test_members_are_averaged(
    average: str, decode: Decode, pictures: list[Path], run_cpp: Runner, tmp_path: Path
) -> None:
    members = ("one", "two", "three")
    package = picture_package(tmp_path / "net.segship", *resized(40, 56), decode=decode, classes=3, members=members)
    network = package.manifest.network.model_copy(update={"member_average": average})
    package = picture_package(
        tmp_path / "net.segship", *resized(40, 56), decode=decode, classes=3, members=members, network=network
    )
    beside(package, run_cpp, some(pictures))


@pytest.mark.parametrize("decode", [SIGMOID, ARGMAX], ids=["independent", "exclusive"])
def test_probabilities(decode: Decode, pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    package = picture_package(tmp_path / "net.segship", *resized(40, 56), decode=decode, classes=3)
    found = run_cpp(package, *some(pictures), save_probabilities=True)
    assert found.code == 0, found.err
    with Predictor.open(package) as predictor:
        for path in some(pictures):
            wanted = predictor(path).probabilities
            with np.load(found.folder / "probabilities" / f"{path.stem}.npz") as arrays:
                assert arrays["probabilities"].dtype == np.float32
                assert arrays["probabilities"].shape == wanted.shape
                assert np.abs(arrays["probabilities"] - wanted).max() <= 1e-5


def test_a_static_variant_is_filled_up(pictures: list[Path], run_cpp: Runner, tmp_path: Path) -> None:
    """Graphs compiled for one shape: the last batch is padded, and what the padding gives is dropped."""
    from segship.convert.precision import compile_package

    package = picture_package(tmp_path / "net.segship", *resized(40, 56), decode=ARGMAX, classes=3)
    network = package.manifest.network.model_copy(update={"size": (40, 56)})
    package = picture_package(tmp_path / "net.segship", *resized(40, 56), decode=ARGMAX, classes=3, network=network)
    compile_package(package.path, "fp16", shape="static", batches=(4,), engines=["openvino"])
    found = run_cpp(package, *some(pictures), precision="fp16")
    assert found.code == 0, found.err
    with Predictor.open(package.path, precision="fp16") as predictor:
        for path in some(pictures):
            wanted = predictor.trace(path)
            check_decoded(found.of(path.stem)["decoded"], wanted["decoded"], agreement=0.999)


def test_the_readers_channel_order_reaches_the_network(run_cpp: Runner, tmp_path: Path) -> None:
    """A pure red, green and blue picture: exchanged channels would give another picture's answer."""
    import cv2

    for k, name in enumerate(("blue", "green", "red")):
        pixels = np.zeros((20, 20, 3), np.uint8)
        pixels[..., k] = 200
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
    inputs = [tmp_path / f"{name}.png" for name in ("blue", "green", "red")]
    for order in ("rgb", "bgr"):
        spec = COLOR.model_copy(update={"channel_order": order})
        package = picture_package(tmp_path / f"{order}.segship", spec=spec)
        beside(package, run_cpp, inputs)
        reds = run_cpp(package, inputs[2]).of("red")["preprocessed"].max(axis=(1, 2))
        assert (reds > 0).tolist() == [name == "r" for name in order]
