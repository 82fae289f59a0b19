"""The reference cases for pictures: what the original programs computed, from the C++ runner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mmseg_seeded
import numpy as np
import pytest
import torch
from cpp_compare import Runner, check_stages
from cpp_sources import bare_network, picture_source
from mmseg_seeded import DEEPLAB, OCR, UNET, Fill, Read
from u2net_files import write_onnx

from segship.families import load_source
from segship.inference.predictor import Predictor
from segship.manifest import Resize, ResizeKeepRatio, Tiling
from segship.networks.u2net import U2NET, U2NETP
from segship.networks.unetplusplus import NestedUNet
from segship.package import Package, write_package

# ------------------------------------------------------------------------------------- networks on their own


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("nested_unet", lambda: NestedUNet(1)),
        ("nested_unet_deep", lambda: NestedUNet(1, deep_supervision=True)),
        ("u2netp", U2NETP),
        pytest.param("u2net", U2NET, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_networks(
    case: str, kind: Callable[[], Any], reference_case: Read, fill: Fill, run_cpp: Runner, tmp_path: Path
) -> None:
    about, arrays = reference_case(case)
    network = kind()
    state = fill(network.state_dict(), about["gain"])
    for key, factor in about.get("after_fill", {}).items():
        state[key] = state[key] * factor
    network.load_state_dict(state)
    package, x = bare_network(network, arrays["input"], tmp_path / "net.segship")
    np.save(tmp_path / "case_x.npy", x)
    found = run_cpp(package, tmp_path / "case_x.npy")
    assert found.code == 0, found.err
    answer = next(iter(found.stages.values()))["network"]
    with torch.inference_mode():
        first = network.eval()(torch.from_numpy(arrays["input"]))
    first = first[0] if isinstance(first, list | tuple) else first
    expected = arrays["output0"]
    assert np.abs(first.numpy() - expected).max() <= 1e-4
    assert np.abs(answer.transpose(1, 0, 2, 3) - expected).max() <= 2e-4


# -------------------------------------------------------------------------------------------------- UNet++


def test_nuclei_end_to_end(reference_case: Read, fill: Fill, run_cpp: Runner, tmp_path: Path) -> None:
    about, arrays = reference_case("dsb2018_pipeline")
    state = fill(NestedUNet(1).state_dict(), about["gain"])
    for key, factor in about["after_fill"].items():
        state[key] = state[key] * factor
    torch.save(state, tmp_path / "net.pth")
    package = picture_source(load_source(tmp_path / "net.pth"), tmp_path / "net.segship")
    inputs = [tmp_path / f"{number}.png" for number in range(len(arrays["image"]))]
    for path, pixels in zip(inputs, arrays["image"], strict=True):
        cv2.imwrite(str(path), pixels)
    found = run_cpp(package, *inputs)
    with Predictor.open(package) as predictor:
        for path, x, logits in zip(inputs, arrays["input"], arrays["output0"], strict=True):
            stages = found.of(path.stem)
            check_stages(stages, predictor.trace(path))
            assert np.abs(stages["preprocessed"] - x).max() <= 1e-7
            assert np.abs(stages["network"] - logits).max() <= 2e-4
            assert np.mean(stages["decoded"] == (logits > 0)) >= 0.9999


# --------------------------------------------------------------------------------------------------- U²-Net

PHOTOS = {"horse": "horse.jpg", "girl": "girl.png", "bike": "bike.jpg"}
INPUTS = {"upstream": "input", "upstream-0.14": "input_no_antialias", "rembg": "input_lanczos"}


@pytest.fixture(scope="module")
def u2netp(fill: Fill, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = U2NETP()
    network.load_state_dict(fill(network.state_dict(), 2.0))
    return write_onnx(network.eval(), tmp_path_factory.mktemp("u2netp") / "seeded.onnx", (320, 320))


@pytest.mark.parametrize("recipe", [*INPUTS, "portrait"])
def test_salient_objects_in_photos(
    recipe: str, u2netp: Path, reference_case: Read, shared: Path, run_cpp: Runner, tmp_path: Path
) -> None:
    arrays = reference_case("u2netp_pipeline")[1]
    package = picture_source(load_source(u2netp, options={"recipe": recipe}), tmp_path / "net.segship")
    photos = {name: shared / "data" / "photos" / file for name, file in PHOTOS.items()}
    found = run_cpp(package, *photos.values())
    with Predictor.open(package) as predictor:
        for name, path in photos.items():
            stages = found.of(path.stem)
            check_stages(stages, predictor.trace(path), prepared=5e-6)
            if recipe in INPUTS:
                wanted = arrays[f"{name}_{INPUTS[recipe]}_every_8th"]
                assert np.abs(stages["preprocessed"][None, :, ::8, ::8] - wanted).max() <= 1e-5
    if recipe == "upstream":
        for name in ("horse", "girl"):
            stages = found.of(photos[name].stem)
            assert np.abs(stages["network"][:, ::4, ::4] - arrays[f"{name}_d0_every_4th"]).max() <= 1e-4
            grey_levels(stages["decoded"], arrays[f"{name}_mask"])
        grey_levels(found.of("bike")["decoded"][::16, ::16], arrays["bike_mask_every_16th"])
    if recipe == "rembg":
        for name in ("horse", "girl"):
            grey_levels(found.of(photos[name].stem)["decoded"], arrays[f"{name}_rembg_mask"])


def grey_levels(found: np.ndarray, wanted: np.ndarray) -> None:
    gap = np.abs(found.astype(np.float64) - wanted)
    assert gap.max() <= 2
    assert gap.mean() <= 0.05


# --------------------------------------------------------------------------------------------------- mmseg


@pytest.fixture(scope="module")
def segmentor(kept: Path, fill: Fill, reference_case: Read) -> Callable[..., Package]:
    """``segmentor(case, arch)``: a network with a case's weights, free in height and width."""
    return lambda case, arch: mmseg_seeded.segmentor(kept, case, arch, fill, reference_case)


def changed(package: Package, path: Path, scale: tuple[int, int] | None, tiling: Tiling | None = None) -> Package:
    """The package at another test size: (long, short) sides, or pictures as they are."""
    steps = tuple(s for s in package.manifest.preprocess if not isinstance(s, ResizeKeepRatio | Resize))
    if tiling is not None:
        steps = tuple(step for step in steps if step.step == "normalize")
    if scale is not None:
        steps = (ResizeKeepRatio(long_side=scale[0], short_side=scale[1], method="opencv:linear"), *steps)
    manifest = package.manifest.model_copy(update={"preprocess": steps, "tiling": tiling})
    files = {name: package.read(name) for name in manifest.variants[0].graphs.values()}
    return write_package(path, manifest, files, {})


def beside(package: Package, run_cpp: Runner, picture: Path, wanted: np.ndarray, **options: Any) -> None:
    found = run_cpp(package, picture, **options).of(picture.stem)
    with Predictor.open(package) as predictor:
        check_stages(found, predictor.trace(picture))
    assert np.mean(found["decoded"] == wanted) >= 0.9999


@pytest.mark.parametrize(
    ("case", "arch"),
    [
        ("fcn_unet_s5_d16", UNET),
        pytest.param("ocrnet_hr18", OCR, marks=pytest.mark.slow),
        pytest.param("ocrnet_hr18_odd", OCR, marks=pytest.mark.slow),
        pytest.param("deeplabv3_r101_d16_mg124", DEEPLAB, marks=pytest.mark.slow),
    ],
)
def test_segmentors(
    case: str, arch: str, segmentor: Callable[..., Package], reference_case: Read, run_cpp: Runner, tmp_path: Path
) -> None:
    arrays = reference_case(case)[1]
    cv2.imwrite(str(tmp_path / "image.png"), arrays["image_bgr"])
    package = changed(segmentor(case, arch), tmp_path / "net.segship", None)
    beside(package, run_cpp, tmp_path / "image.png", arrays["labels"])


def test_the_test_pipeline_of_mmseg(
    segmentor: Callable[..., Package], reference_case: Read, shared: Path, run_cpp: Runner, tmp_path: Path
) -> None:
    arrays = reference_case("mmseg_pipeline")[1]
    package = segmentor("fcn_unet_s5_d16", UNET)
    half = changed(package, tmp_path / "half.segship", (512, 256))
    beside(half, run_cpp, shared / "data" / "street" / "cityscapes_frame.png", arrays["half_labels"])
    cv2.imwrite(str(tmp_path / "pad16.png"), arrays["pad16_image_bgr"])
    beside(changed(package, tmp_path / "pad.segship", None), run_cpp, tmp_path / "pad16.png", arrays["pad16_labels"])


@pytest.mark.parametrize(("name", "stride"), [("unet", (85, 85)), ("unet_small", (100, 90))])
def test_slide_mode(
    name: str,
    stride: tuple[int, int],
    segmentor: Callable[..., Package],
    reference_case: Read,
    run_cpp: Runner,
    tmp_path: Path,
) -> None:
    arrays = reference_case("mmseg_slide")[1]
    tiling = Tiling(
        window=(128, 128), step=stride, positions="flush-last", weighting="uniform", pad_mode="none", average="logits"
    )
    package = changed(segmentor("fcn_unet_s5_d16", UNET), tmp_path / "net.segship", None, tiling)
    cv2.imwrite(str(tmp_path / "image.png"), arrays[f"{name}_image_bgr"])
    beside(package, run_cpp, tmp_path / "image.png", arrays[f"{name}_labels"])
    stages = run_cpp(package, tmp_path / "image.png", batch=2).of("image")
    assert np.abs(stages["network"][:, ::4, ::4] - arrays[f"{name}_logits_every_4th_pixel"][0]).max() <= 1e-4


@pytest.mark.slow
def test_the_whole_frame(
    segmentor: Callable[..., Package], reference_case: Read, shared: Path, run_cpp: Runner, tmp_path: Path
) -> None:
    arrays = reference_case("mmseg_pipeline")[1]
    package = changed(segmentor("fcn_unet_s5_d16", UNET), tmp_path / "net.segship", (1024, 512))
    beside(package, run_cpp, shared / "data" / "street" / "cityscapes_frame.png", arrays["full_labels"])
