"""Whole networks against MMSegmentation 1.2.2's own outputs on seeded weights, on every engine.

Each network is exported once, free in height and width, from an example of another size than any case has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmseg_seeded import DEEPLAB, OCR, UNET, Fill, Read, segmentor

from segship.convert.checks import checking_engines, temporary_package
from segship.families.mmseg_config import Config
from segship.families.mmseg_keys import recognise
from segship.families.mmseg_known import known_config
from segship.families.mmseg_native import complete
from segship.inference.predictor import Predictor
from segship.inference.preprocess import restore
from segship.manifest import ResizeKeepRatio, Tiling
from segship.networks.mmseg_hrnet import HRNetShape
from segship.networks.mmseg_resnet import ResNetShape
from segship.networks.mmseg_segmentor import HeadShape, NetworkShape, Segmentor
from segship.networks.mmseg_unet import UNetShape
from segship.package import Package

ENGINES = ("openvino", "onnxruntime", "pytorch")


@pytest.fixture(scope="module")
def made(kept: Path, fill: Fill, reference_case: Read) -> Callable[[str, str], Package]:
    """``made(case, arch)``: a network with a case's weights as a package of any size, exported once."""
    return lambda case, arch: segmentor(kept, case, arch, fill, reference_case)


@pytest.fixture
def changed() -> Iterator[Callable[..., Predictor]]:
    """``changed(package, engine, long, short, **recipe)``: a predictor of the package at another test size."""
    open_: list[Any] = []

    def change(package: Package, engine: str, scale: tuple[int, int] | None, **rest: Any) -> Predictor:
        steps = tuple(step for step in package.manifest.preprocess if step.step != "resize_keep_ratio")
        if scale is not None:
            resize = ResizeKeepRatio(long_side=scale[0], short_side=scale[1], method="opencv:linear")
            steps = (resize, *steps)
        tiling = rest.pop("tiling", None)
        if tiling is not None:
            steps = tuple(step for step in steps if step.step == "normalize")
        manifest = package.manifest.model_copy(update={"preprocess": steps, "tiling": tiling})
        files = {name: package.read(name) for name in manifest.variants[0].graphs.values()}
        context = temporary_package(manifest, files)
        opened = context.__enter__()
        predictor = Predictor.open(opened, engine=engine, array_order="bgr", cache_dir=opened.path / "cache", **rest)
        open_.extend([context, predictor])
        return predictor

    yield change
    for one in reversed(open_):
        one.__exit__(None, None, None)


def full_logits(predictor: Predictor, image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels on the picture's own grid."""
    found = predictor(image)
    decode = predictor.manifest.decode
    return restore(found.outputs[0], found.frame, decode.restore_method, decode.restore_path), found.labels


CASES = [
    ("fcn_unet_s5_d16", UNET),
    pytest.param("ocrnet_hr18", OCR, marks=pytest.mark.slow),
    pytest.param("ocrnet_hr18_odd", OCR, marks=pytest.mark.slow),
    pytest.param("deeplabv3_r101_d16_mg124", DEEPLAB, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("case", "arch"), CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_logits_and_labels(
    made: Callable[..., Package],
    changed: Callable[..., Predictor],
    reference_case: Read,
    case: str,
    arch: str,
    engine: str,
) -> None:
    if engine not in checking_engines(None, "fp32"):
        pytest.skip(f"{engine} is not installed")
    arrays = reference_case(case)[1]
    predictor = changed(made(case, arch), engine, None)
    logits, labels = full_logits(predictor, arrays["image_bgr"])
    assert np.abs(logits[:, ::4, ::4] - arrays["logits_every_4th_pixel"][0]).max() <= 1e-4
    assert np.mean(labels == arrays["labels"]) >= 0.9999
    if "head_logits" in arrays:
        x = predictor.prepare(arrays["image_bgr"]).x
        assert np.abs(predictor.network(x[None]) - arrays["head_logits"]).max() <= 1e-4


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_the_pipeline(
    made: Callable[..., Package], changed: Callable[..., Predictor], reference_case: Read, shared: Path, engine: str
) -> None:
    arrays = reference_case("mmseg_pipeline")[1]
    package = made("fcn_unet_s5_d16", UNET)
    frame = shared / "data" / "street" / "cityscapes_frame.png"
    half = changed(package, engine, (512, 256))
    logits, labels = full_logits(half, frame)
    assert np.abs(logits[:, ::8, ::8] - arrays["half_logits_every_8th_pixel"]).max() <= 1e-4
    assert np.mean(labels == arrays["half_labels"]) >= 0.9999
    padded = changed(package, engine, None)
    logits, labels = full_logits(padded, arrays["pad16_image_bgr"])
    assert np.abs(logits[:, ::4, ::4] - arrays["pad16_logits_every_4th_pixel"]).max() <= 1e-4
    assert np.array_equal(labels, arrays["pad16_labels"])


@pytest.mark.slow
def test_test_time_augmentation_and_the_whole_frame(
    made: Callable[..., Package], changed: Callable[..., Predictor], reference_case: Read, shared: Path
) -> None:
    arrays = reference_case("mmseg_pipeline")[1]
    package = made("fcn_unet_s5_d16", UNET)
    several = changed(package, "openvino", (512, 256), tta="1.x", tta_ratios=(0.5, 0.75, 1.0))
    image = reference_case("fcn_unet_s5_d16")[1]["image_bgr"]
    assert np.mean(several(image).labels == arrays["tta_labels"]) >= 0.9999
    frame = cv2.imread(str(shared / "data" / "street" / "cityscapes_frame.png"))
    logits, labels = full_logits(changed(package, "openvino", (1024, 512)), frame)
    assert np.abs(logits[:, ::8, ::8] - arrays["full_logits_every_8th_pixel"]).max() <= 1e-4
    assert np.mean(labels == arrays["full_labels"]) >= 0.9999


@pytest.mark.parametrize(("name", "stride"), [("unet", (85, 85)), ("unet_small", (100, 90))])
@pytest.mark.parametrize("engine", ENGINES[:2])
def test_slide_mode(
    made: Callable[..., Package],
    changed: Callable[..., Predictor],
    reference_case: Read,
    name: str,
    stride: tuple[int, int],
    engine: str,
) -> None:
    arrays = reference_case("mmseg_slide")[1]
    tiling = Tiling(
        window=(128, 128), step=stride, positions="flush-last", weighting="uniform", pad_mode="none", average="logits"
    )
    predictor = changed(made("fcn_unet_s5_d16", UNET), engine, None, tiling=tiling, batch=2)
    found = predictor(arrays[f"{name}_image_bgr"])
    expected = arrays[f"{name}_logits_every_4th_pixel"][0]
    assert np.abs(found.outputs[0][:, ::4, ::4] - expected).max() <= 1e-4
    assert np.mean(found.labels == arrays[f"{name}_labels"]) >= 0.9999
    alone = predictor(arrays[f"{name}_image_bgr"], keep_scores=False)  # decided row by row, as `segship predict` does
    np.testing.assert_array_equal(alone.labels, found.labels)


# ------------------------------------------------------------------------------------- names and counts


def hrnet(width: int, modules: tuple[int, int, int], blocks: int) -> NetworkShape:
    backbone = HRNetShape(
        width=width, first_blocks=4 if blocks == 4 else 2, modules=modules, blocks=(blocks, blocks, blocks)
    )
    joined: dict[str, Any] = {"inputs": 15 * width, "classes": 19, "maps": (0, 1, 2, 3)}
    first = HeadShape(kind="fcn", channels=15 * width, kernel=1, **joined)
    return NetworkShape(backbone=backbone, heads=(first, HeadShape(kind="ocr", channels=512, inner=256, **joined)))


def deeplab(depth: int) -> NetworkShape:
    head = HeadShape(kind="aspp", inputs=2048, channels=512, classes=19, maps=(3,), dilations=(1, 12, 24, 36))
    return NetworkShape(backbone=ResNetShape(depth=depth, stem="v1c"), heads=(head,))


def fcn_unet() -> NetworkShape:
    head = HeadShape(kind="fcn", inputs=64, channels=64, classes=19, maps=(4,))
    return NetworkShape(backbone=UNetShape(base=64, encoder=(2,) * 5, decoder=(2,) * 4), heads=(head,))


@pytest.mark.parametrize(
    ("shape", "arch", "entries", "parameters", "stride"),
    [
        (hrnet(18, (1, 4, 3), 4), "ocrnet_hr18_512x1024", 1888, 12_080_036, 4),
        (hrnet(18, (1, 3, 2), 2), "ocrnet_hr18s_512x1024", 922, 6_378_496, 4),
        (hrnet(48, (1, 4, 3), 4), "ocrnet_hr48_512x1024", 1888, 70_371_446, 4),
        (deeplab(101), "deeplabv3_r101-d16-mg124_512x1024", 682 - 8, 84_740_467, 16),
        (deeplab(101), "deeplabv3_r101-d8_769x769", 682 - 8, 84_740_467, 8),
        (deeplab(50), "deeplabv3_r50-d8_512x1024", 376 - 8, 65_748_339, 8),
        (deeplab(50), "deeplabv3_r50-d8_769x769", 376 - 8, 65_748_339, 8),
        (fcn_unet(), UNET, 148 - 8, 28_987_795, 1),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_released_networks_have_their_entries_and_parameters(
    shape: NetworkShape, arch: str, entries: int, parameters: int, stride: int
) -> None:
    """Without the auxiliary head's 8 entries."""
    with torch.device("meta"):
        state = Segmentor(shape).state_dict()
        network = Segmentor(shape)
    assert len(state) == entries
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    found = recognise(state)
    known = complete(found.shape, Config(values=known_config(arch), origin=arch))
    assert known.stride == stride
    assert known.heads[-1].align_corners == arch.endswith("769x769")
    with torch.device("meta"):
        assert Segmentor(known).state_dict().keys() == state.keys()


@pytest.mark.parametrize(
    ("case", "arch"), [("ocrnet_hr18", OCR), ("deeplabv3_r101_d16_mg124", DEEPLAB), ("fcn_unet_s5_d16", UNET)]
)
def test_names_and_shapes_are_upstreams_own(reference_case: Read, case: str, arch: str) -> None:
    about = reference_case(case)[0]
    given = {key: torch.zeros(shape) for key, shape in about["state_dict"].items()}
    found = recognise(given)
    with torch.device("meta"):
        ours = {key: list(value.shape) for key, value in Segmentor(found.shape).state_dict().items()}
    assert ours == {key: shape for key, shape in about["state_dict"].items() if not key.startswith("auxiliary_head.")}
    assert found.auxiliary + sum(p.numel() for p in Segmentor(found.shape).parameters()) == about["parameters"]
