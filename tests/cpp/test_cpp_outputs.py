"""What becomes of an answer: masks, numbers, colours, cutouts, composites, overlays and matting, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cpp_cases import ARGMAX, SIGMOID, labels, picture_package, resized
from cpp_compare import Runner
from PIL import Image

from segship.inference.predictor import Predictor
from segship.manifest import Decode, Label, Saliency

MAP = Decode(
    activation="sigmoid",
    decision=Saliency(min_max=True, polarity="as-is", to_uint8="truncate", threshold=0.5),
    restore_what="decision",
    restore_method="pillow:lanczos",
)
OF_MAPS: list[dict[str, Any]] = [
    {"kind": "mask"},
    {"kind": "mask", "clean_mask": True},
    {"kind": "mask", "rgb_mask": True},
    {"kind": "color", "threshold": 0.4},
    {"kind": "cutout"},
    {"kind": "cutout", "cutout_style": "rembg"},
    {"kind": "composite", "background": "10,200,30,120"},
    {"kind": "overlay"},
    {"kind": "cutout", "matting": True, "erode": 3},
    {"kind": "mask", "matting": True, "erode": 3},
]
OF_CLASSES: list[dict[str, Any]] = [
    {"kind": kind} for kind in ("mask", "ids", "color", "cityscapes", "cutout", "overlay")
]


def disc(path: Path, height: int = 90, width: int = 120) -> Path:
    """A bright disc with a soft edge before something dark."""
    y, x = np.mgrid[:height, :width]
    share = 1 / (1 + np.exp((np.hypot(y - height / 2, x - width / 2) - height / 3) / 2))[..., None]
    noise = np.random.default_rng(3).normal(0, 2, (height, width, 3))
    pixels = share * np.array([200, 220, 240]) + (1 - share) * np.array([40, 20, 30]) + noise
    cv2.imwrite(str(path), np.clip(pixels, 0, 255).astype(np.uint8))
    return path


def beside(package: Any, source: Path, fields: dict[str, Any], run_cpp: Runner) -> None:
    words = {"output" if name == "kind" else name: value for name, value in fields.items()}
    ran = run_cpp(package, source, trace=False, **words)
    assert ran.code == 0, ran.err
    with Image.open(ran.folder / f"{source.stem}.png") as picture:
        found, palette = np.asarray(picture), picture.getpalette() if picture.mode == "P" else None
    with Predictor.open(package) as predictor:
        drawn = predictor(source).render(**fields)
    assert found.shape == drawn.pixels.shape
    gap = np.abs(found.astype(int) - drawn.pixels.astype(int))
    assert np.mean(gap == 0) >= 0.9999, f"{np.mean(gap > 0):.5f} differ, by up to {gap.max()}"
    assert (palette is None) == (drawn.palette is None)
    for number, color in (drawn.palette or {}).items():
        assert palette is not None
        assert tuple(palette[3 * number : 3 * number + 3]) == color


@pytest.mark.parametrize("fields", OF_MAPS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_of_maps(fields: dict[str, Any], run_cpp: Runner, tmp_path: Path) -> None:
    if fields.get("matting"):
        pytest.importorskip("pymatting")
    package = picture_package(tmp_path / "net.segship", *resized(48, 64), decode=MAP)
    beside(package, disc(tmp_path / "disc.png"), fields, run_cpp)


@pytest.mark.parametrize("fields", OF_CLASSES, ids=lambda fields: fields["kind"])
def test_of_classes(fields: dict[str, Any], run_cpp: Runner, tmp_path: Path) -> None:
    named = tuple(
        Label(id=one.id, name="background" if one.id == 0 else one.name, color=one.color, file_value=one.id + 20)
        for one in labels(4)
    )
    package = picture_package(tmp_path / "net.segship", *resized(48, 64), decode=ARGMAX, classes=4, labels=named)
    beside(package, disc(tmp_path / "disc.png"), fields, run_cpp)


def test_the_kept_decision_is_the_one_that_is_written(run_cpp: Runner, tmp_path: Path) -> None:
    """A threshold of the command line counts for the mask and for the stage before it."""
    decode = SIGMOID.model_copy(update={"restore_what": "probabilities"})
    package = picture_package(tmp_path / "net.segship", *resized(48, 64), decode=decode)
    source = disc(tmp_path / "disc.png")
    kept = {}
    for threshold in ("0.5", "0.8"):
        ran = run_cpp(package, source, threshold=threshold)
        kept[threshold] = ran.of("disc")["decoded"]
        with Image.open(ran.folder / "disc.png") as mask:
            assert np.array_equal(np.asarray(mask) > 0, kept[threshold].reshape(mask.size[::-1]) > 0)
    assert (kept["0.5"] != kept["0.8"]).any()


def test_probabilities_are_float32_whatever_enlarges_them(run_cpp: Runner, tmp_path: Path) -> None:
    """scikit-image resizes in float64."""
    for method in ("skimage:linear", "skimage:linear-antialias", "opencv:linear", "torch:bilinear"):
        decode = SIGMOID.model_copy(update={"restore_what": "probabilities", "restore_method": method})
        package = picture_package(tmp_path / "net.segship", *resized(48, 64), decode=decode, classes=2)
        source = disc(tmp_path / "disc.png")
        ran = run_cpp(package, source, save_probabilities=True)
        with np.load(ran.folder / "probabilities" / "disc.npz") as arrays, Predictor.open(package) as predictor:
            ours, theirs = arrays["probabilities"], predictor(source).probabilities
        assert ours.dtype == theirs.dtype == np.float32
        assert np.abs(ours - theirs).max() <= 1e-5


def test_maps_in_npz_are_float32(run_cpp: Runner, tmp_path: Path) -> None:
    rule = Saliency(min_max=True, polarity="as-is", to_uint8="none")
    decode = Decode(
        activation="sigmoid", decision=rule, restore_what="probabilities", restore_method="skimage:linear"
    )  # fmt: skip
    package = picture_package(tmp_path / "net.segship", *resized(48, 64), decode=decode)
    source = disc(tmp_path / "disc.png")
    ran = run_cpp(package, source, format="npz")
    with Predictor.open(package) as predictor:
        predictor(source).save(tmp_path / "python.npz")
    with np.load(ran.folder / "disc.npz") as ours, np.load(tmp_path / "python.npz") as theirs:
        assert ours.files == theirs.files
        for name in theirs.files:
            assert ours[name].dtype == theirs[name].dtype
        assert ours["saliency"].dtype == np.float32
        assert np.abs(ours["saliency"] - theirs["saliency"]).max() <= 1e-5
