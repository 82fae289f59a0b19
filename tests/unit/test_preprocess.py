"""The manifest's steps against outside truth and against plain formulas, and the way back to the picture's grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packages import manifest_data

from segship.errors import InputError, PackageError
from segship.inference.images import read_image
from segship.inference.preprocess import (
    apply_step,
    check_input_shape,
    keep_ratio_size,
    prepare,
    resize,
    restore,
    run_step,
)
from segship.manifest import (
    Channels,
    Clip,
    CropToNonzero,
    Divide,
    DivideByMaximum,
    Manifest,
    Normalize,
    Pad,
    PreviousStageChannels,
    ReplaceNonFinite,
    Resample,
    RescaleMinMax,
    Resize,
    ResizeKeepRatio,
    Transpose,
    ZScore,
)

RNG = np.random.default_rng(3)
PICTURE = RNG.integers(0, 256, (41, 67, 3), dtype=np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UPSTREAM: list[dict[str, Any]] = [
    {"step": "resize", "height": 96, "width": 96, "method": "opencv:linear"},
    {
        "step": "normalize",
        "subtract": [255 * value for value in MEAN],
        "multiply": [1 / (255 * value) for value in STD],
    },
    {"step": "divide", "by": 255.0},
]


def recipe(*steps: dict[str, Any], size: list[int] | None = None, multiple: int = 1, **changes: Any) -> Manifest:
    network = manifest_data()["network"] | {"size": size, "size_multiple": [multiple, multiple]}
    return Manifest.model_validate(manifest_data(preprocess=list(steps), network=network | changes))


def prepared(pixels: np.ndarray, manifest: Manifest) -> Any:
    assert manifest.input.kind == "image"
    return prepare(read_image(pixels, manifest.input, array_order="bgr"), manifest)


# ------------------------------------------------------------------------------------------ outside truth


def test_network_inputs_are_the_original_codes(shared: Path) -> None:
    """Case dsb2018_pipeline: network input from the prepared picture, within 1e-7 (made with upstream's own code)."""
    case = np.load(shared / "reference/dsb2018_pipeline.npz")
    manifest = recipe(*UPSTREAM, size=[96, 96])
    for picture, expected in zip(case["image"], case["input"], strict=True):
        x = prepared(picture, manifest).x
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert np.abs(x - expected).max() <= 1e-7


def test_raw_pictures_become_the_prepared_ones(shared: Path) -> None:
    """Case dsb2018_pipeline: reading and resizing the archive's PNG gives the prepared picture (8 sizes)."""
    import json
    import zipfile

    case = np.load(shared / "reference/dsb2018_pipeline.npz")
    about = json.loads((shared / "reference/dsb2018_pipeline.json").read_text())
    manifest = recipe(*UPSTREAM, size=[96, 96])
    assert manifest.input.kind == "image"
    exact = about["opencv"] == cv2.__version__.rsplit("-", 1)[0]
    with zipfile.ZipFile(shared / "data/dsb2018/stage1_train.zip") as archive:
        for i, name in enumerate(about["ids"]):
            image = read_image(archive.read(f"{name}/images/{name}.png"), manifest.input)
            assert list(image.size_hw) == about["source_size_hw"][i]
            small = resize(image.pixels, (96, 96), "opencv:linear")
            difference = np.abs(small.astype(int) - case["image"][i]).max()
            assert difference <= (0 if exact else about["tolerance"]["image"])
            x = prepare(image, manifest).x
            assert np.abs(x - case["input"][i]).max() <= (1e-7 if exact else 7e-5)


# ------------------------------------------------------------------------------------------- value steps


def test_normalize_rounds_once_per_operation() -> None:
    step = Normalize(subtract=(123.675, 116.28, 103.53), multiply=(1 / 58.395, 1 / 57.12, 1 / 57.375))
    out = apply_step(PICTURE, step)
    for c in range(3):
        expected = PICTURE[..., c].astype(np.float32)
        expected = expected - np.float32(step.subtract[c])
        expected = expected * np.float32(step.multiply[c])
        assert (out[..., c] == expected).all()
    assert PICTURE.dtype == np.uint8
    with pytest.raises(PackageError, match="3 channels, the input has 2"):
        apply_step(PICTURE[..., :2], step)


def test_one_plane_takes_the_first_constants_and_is_then_repeated() -> None:
    step = Normalize(subtract=(0.485, 0.456, 0.406), multiply=(1 / 0.229, 1 / 0.224, 1 / 0.225), dtype="float64")
    grey = PICTURE[..., :1] / 255.0
    out = apply_step(apply_step(grey, step), Channels(count=3))
    assert out.dtype == np.float64
    assert out.shape == PICTURE.shape
    assert np.abs(out - (grey - 0.485) / 0.229).max() <= 1e-12


def test_a_plane_beyond_the_constants_stays_until_it_is_dropped() -> None:
    step = Normalize(subtract=(1.0, 2.0, 3.0), multiply=(2.0, 2.0, 2.0))
    four = np.concatenate([PICTURE, PICTURE[..., :1]], axis=2)
    out = apply_step(four, step)
    assert (out[..., 3] == PICTURE[..., 0]).all()
    assert (apply_step(out, Channels(count=3)) == apply_step(PICTURE, step)).all()
    with pytest.raises(PackageError, match="keeps 3 planes, the input has 2"):
        apply_step(PICTURE[..., :2], Channels(count=3))


def test_steps_never_change_their_input() -> None:
    x = RNG.normal(size=(5, 6, 3)).astype(np.float32)
    before = x.copy()
    for step in (
        Divide(by=2),
        Clip(low=-0.1, high=0.1),
        Normalize(subtract=(1, 2, 3), multiply=(1, 2, 3)),
        ReplaceNonFinite(value=0),
        RescaleMinMax(channel=0, epsilon=0),
        DivideByMaximum(floor=1e-6, dtype="float32"),
    ):
        apply_step(x, step)
        assert (x == before).all()


def test_divide_by_maximum_has_a_floor() -> None:
    for kind in ("float32", "float64"):
        out = apply_step(PICTURE, DivideByMaximum(floor=1e-6, dtype=kind))  # type: ignore[arg-type]
        assert out.max() == 1
        assert (apply_step(np.zeros((2, 2, 3), np.uint8), DivideByMaximum(floor=1e-6, dtype=kind)) == 0).all()  # type: ignore[arg-type]


def test_clip_of_one_channel() -> None:
    out = apply_step(PICTURE, Clip(low=100, high=120, channel=1))
    assert (out[..., 1] == np.clip(PICTURE[..., 1], 100, 120)).all()
    assert (out[..., 0] == PICTURE[..., 0]).all()
    with pytest.raises(PackageError, match="channel 3"):
        apply_step(PICTURE, Clip(low=0, high=1, channel=3))


def test_zscore_in_a_volume() -> None:
    volume = RNG.normal(5, 3, (2, 4, 5, 6)).astype(np.float32)
    volume[1, :2] = 0
    own = ZScore(channel=1, mean=None, std=None, epsilon=1e-8, epsilon_rule="maximum", mask="nonzero")
    out = apply_step(volume, own, channel_axis=0)
    assert (out[0] == volume[0]).all()
    assert (out[1, :2] == 0).all()
    assert abs(out[1, 2:].mean()) < 1e-5
    assert abs(out[1, 2:].std() - 1) < 1e-5
    fixed = ZScore(channel=0, mean=4.0, std=2.0, epsilon=0.5, epsilon_rule="add", mask="none")
    assert np.allclose(apply_step(volume, fixed, channel_axis=0)[0], (volume[0] - 4) / 2.5)
    flat = ZScore(channel=0, mean=None, std=None, epsilon=0, epsilon_rule="add", mask="none")
    with pytest.raises(InputError, match="constant"):
        apply_step(np.ones((1, 3, 3, 3), np.float32), flat, channel_axis=0)


def test_rescale_min_max() -> None:
    out = apply_step(PICTURE, RescaleMinMax(channel=2, epsilon=1e-8))
    assert (out[..., 2].min(), out[..., 2].max()) == (0, 1)
    assert (apply_step(np.full((2, 2, 1), 9, np.uint8), RescaleMinMax(channel=0, epsilon=0)) == 0).all()


def test_transpose_of_a_volume_and_not_of_a_picture() -> None:
    volume = RNG.normal(size=(1, 2, 3, 4)).astype(np.float32)
    assert apply_step(volume, Transpose(axes=(2, 0, 1))).shape == (1, 4, 2, 3)
    with pytest.raises(PackageError, match="transpose"):
        run_step(PICTURE, Transpose(axes=(0, 1, 2)))


@pytest.mark.parametrize(
    "step",
    [
        PreviousStageChannels(labels=(1,), crop=False),
        Resample(
            spacing_mm_zyx=(1, 1, 1),
            shape_rule="truncate",
            method="skimage:edge",
            order=3,
            order_z=0,
            separate_z="auto",
            anisotropy_threshold=3,
        ),
    ],
)
def test_steps_that_are_not_run_are_named(step: Any) -> None:
    with pytest.raises(PackageError, match=rf"'{step.step}'.*pip install -U segship"):
        run_step(PICTURE, step)


def test_non_finite_floats_need_their_step() -> None:
    floats = {"reader": "skimage", "channel_order": "rgb", "exif_rotation": "ignore"}
    entry = manifest_data()["input"] | floats
    network = manifest_data()["network"] | {"size": None, "size_multiple": [1, 1]}
    for steps, fine in (([], False), ([{"step": "replace_non_finite", "value": 0.5}], True)):
        manifest = Manifest.model_validate(manifest_data(input=entry, preprocess=steps, network=network))
        pixels = np.full((4, 4, 3), np.nan, np.float32)
        if fine:
            assert (prepared(pixels, manifest).x == 0.5).all()
        else:
            with pytest.raises(InputError, match="NaN"):
                prepared(pixels, manifest)


# ------------------------------------------------------------------------------------------------ resize


def lerp(array: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Separable linear interpolation by numpy.interp, float64."""
    out = array.astype(np.float64)
    for axis, after in enumerate(size):
        before = out.shape[axis]
        if align_corners:
            position = np.linspace(0, before - 1, after) if after > 1 else np.zeros(1)
        else:
            position = (np.arange(after) + 0.5) * before / after - 0.5
        out = np.apply_along_axis(lambda line, p=position, n=before: np.interp(p, np.arange(n), line), axis, out)
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_torch_rules_are_linear_interpolation(h: int, w: int, new_h: int, new_w: int) -> None:
    x = np.random.default_rng(h * w).normal(size=(h, w, 2)).astype(np.float32)
    for method, align in (("torch:bilinear", False), ("torch:bilinear-align-corners", True)):
        out = resize(x, (new_h, new_w), method)
        assert out.shape == (new_h, new_w, 2)
        assert out.dtype == np.float32
        assert np.abs(out - lerp(x, (new_h, new_w), align)).max() < 1e-4


@pytest.mark.parametrize(
    "method", ["opencv:linear", "opencv:nearest", "opencv:area", "pillow:bilinear", "pillow:lanczos"]
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_keeps_type_channels_and_constants(method: str, kind: type, channels: int) -> None:
    flat = np.full((20, 30, channels), 77, kind)
    for size in ((20, 30), (7, 11), (50, 41), (1, 1)):
        out = resize(flat, size, method)
        assert out.shape == (*size, channels)
        assert out.dtype == kind
        assert np.abs(out.astype(np.float64) - 77).max() < 1e-3


def test_resize_of_bool_and_unknown_methods() -> None:
    mask = PICTURE > 127
    assert resize(mask, (9, 9), "opencv:nearest").dtype == np.bool_
    with pytest.raises(PackageError, match="skimage:cubic"):
        resize(PICTURE, (9, 9), "skimage:cubic")


def test_pillow_resize_is_pillows() -> None:
    from PIL import Image as Pil

    expected = np.asarray(Pil.fromarray(PICTURE).resize((31, 17), Pil.Resampling.LANCZOS))
    assert (resize(PICTURE, (17, 31), "pillow:lanczos") == expected).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 2048), st.integers(1, 1024))
def test_keep_ratio_fits_its_box(h: int, w: int, a: int, b: int) -> None:
    step = ResizeKeepRatio(long_side=max(a, b), short_side=min(a, b), method="opencv:linear")
    new_h, new_w = keep_ratio_size((h, w), step)
    assert max(new_h, new_w) <= step.long_side
    assert min(new_h, new_w) <= max(1, step.short_side)
    scale = min(step.long_side / max(h, w), step.short_side / min(h, w))
    assert abs(new_h - h * scale) <= 1
    assert abs(new_w - w * scale) <= 1


def test_keep_ratio_of_a_street_frame() -> None:
    step = ResizeKeepRatio(long_side=2048, short_side=512, method="opencv:linear")
    assert keep_ratio_size((1024, 2048), step) == (512, 1024)
    assert keep_ratio_size((333, 500), step) == (512, 769)


# --------------------------------------------------------------------------------- padding and the way back


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(1, 33),
    st.sampled_from(["both", "end"]),
    st.sampled_from(["constant", "edge"]),
    st.one_of(st.none(), st.tuples(st.integers(1, 60), st.integers(1, 60))),
)
def test_padding_is_undone_exactly(
    h: int, w: int, multiple: int, where: str, mode: str, minimum: tuple[int, int] | None
) -> None:
    step = Pad(minimum=minimum, multiple_of=multiple, where=where, mode=mode, value=0)  # type: ignore[arg-type]
    picture = np.random.default_rng(h + 64 * w).integers(1, 255, (h, w, 3), dtype=np.uint8)
    manifest = recipe(step.model_dump())
    result = prepared(picture, manifest)
    assert all(side % multiple == 0 for side in result.prepared_hw)
    if minimum is not None:
        assert all(side >= least for side, least in zip(result.prepared_hw, minimum, strict=True))
    back = restore(result.x, result.frame, "opencv:linear")
    assert (back == picture.transpose(2, 0, 1)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(2, 60), st.integers(2, 60), st.integers(2, 60))
def test_any_chain_comes_back_to_the_pictures_size(h: int, w: int, new_h: int, new_w: int) -> None:
    picture = np.zeros((h, w, 3), np.uint8)
    picture[h // 3 : h // 3 + 2, w // 3 : w // 3 + 2] = 200
    manifest = recipe(
        {"step": "crop_to_nonzero", "fill_holes": False},
        {"step": "resize", "height": new_h, "width": new_w, "method": "opencv:linear"},
        {"step": "pad", "multiple_of": 16, "where": "both", "mode": "constant"},
        multiple=16,
    )
    result = prepared(picture, manifest)
    assert result.original_hw == (h, w)
    for planes in (np.ones((1, *result.prepared_hw), np.float32), np.ones((6, *result.prepared_hw), np.float32)):
        back = restore(planes, result.frame, "opencv:linear")
        assert back.shape == (len(planes), h, w)
        inside = picture[..., 0] > 0
        assert np.allclose(back[:, inside], 1)
        assert (back[:, ~inside] == 0).all()


def test_restoring_a_resize_is_one_cv2_resize() -> None:
    manifest = recipe(*UPSTREAM, size=[96, 96])
    result = prepared(PICTURE, manifest)
    maps = RNG.random((2, 96, 96), dtype=np.float32)
    back = restore(maps, result.frame, "opencv:linear")
    for plane, expected in zip(back, maps, strict=True):
        assert (plane == cv2.resize(expected, (67, 41), interpolation=cv2.INTER_LINEAR)).all()


def test_a_coarser_output_comes_back_too() -> None:
    for steps in (UPSTREAM, [{"step": "pad", "multiple_of": 32, "where": "end", "mode": "constant"}]):
        result = prepared(PICTURE, recipe(*steps))
        h, w = result.prepared_hw
        assert restore(np.ones((3, h // 4, w // 4), np.float32), result.frame, "opencv:linear").shape == (3, 41, 67)


def test_crop_of_an_empty_picture_does_nothing() -> None:
    array, moved = run_step(np.zeros((4, 5, 3), np.uint8), CropToNonzero(fill_holes=True))
    assert array.shape == (4, 5, 3)
    assert moved is not None
    assert moved.before_hw == moved.after_hw


# --------------------------------------------------------------------------------------------- what fits


def test_sizes_that_do_not_fit_are_named_with_one_that_does() -> None:
    with pytest.raises(InputError, match=r"multiples of 16x16, got 41x67; resize or pad to 48x80"):
        prepared(PICTURE, recipe(multiple=16))
    with pytest.raises(InputError, match="exactly 32x32, got 41x67"):
        prepared(PICTURE, recipe(size=[32, 32]))
    with pytest.raises(InputError, match=r"4 channel\(s\), the network takes 3"):
        check_input_shape((4, 32, 32), recipe(), "array")
    with pytest.raises(InputError, match="spatial axes"):
        check_input_shape((3, 32), recipe(), "array")


def test_packages_for_volumes_say_so() -> None:
    data = manifest_data(
        input={
            "kind": "volume",
            "reader": "nibabel",
            "channels": [{"name": "CT"}],
            "file_ending": ".nii.gz",
            "channel_files": "suffix-0000",
        },
        preprocess=[],
    )
    data["network"] |= {"layout": "NCDHW", "input_channels": 1, "size": None, "size_multiple": [1, 1, 1]}
    manifest = Manifest.model_validate(data)
    picture = read_image(PICTURE, recipe().input)  # type: ignore[arg-type]
    with pytest.raises(PackageError, match="volumes"):
        prepare(picture, manifest)


def test_resize_step_is_skipped_at_equal_size() -> None:
    array, moved = run_step(PICTURE, Resize(height=41, width=67, method="opencv:linear"))
    assert array is PICTURE
    assert moved is not None
    assert not prepared(PICTURE, recipe()).frame.geometry
