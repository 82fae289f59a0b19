"""Cutouts, composites, matting: against rembg's own pixels, by their properties, and for every kind of package."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packages import manifest_data
from PIL import Image as Pil
from test_prediction import LABELS, NUCLEI, STREET, TWO, manifest, predict, saliency

from segship.errors import UsageError
from segship.inference import matting
from segship.inference.cutout import over, premultiplied, put_alpha
from segship.inference.images import Image, read_image
from segship.inference.options import Backdrop, OutputOptions, parse_color
from segship.inference.prediction import CONSTANT, Prediction
from segship.manifest import Channel, ImageInput, Manifest

RNG = np.random.default_rng(5)
PHOTO = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def read(source: Any, reader: str = "pillow:rgb", order: str = "rgb", exif: str = "apply") -> Image:
    spec = ImageInput(
        reader=reader,  # type: ignore[arg-type]
        channels=tuple(Channel(name=name) for name in ("K" if order == "grey" else order.upper())),
        channel_order=order,  # type: ignore[arg-type]
        exif_rotation=exif,  # type: ignore[arg-type]
    )
    return read_image(source, spec)


def of_mask(mask: np.ndarray, picture: Any, recipe: Manifest | None = None) -> Prediction:
    """A prediction whose saliency map is ``mask`` itself."""
    recipe = recipe or saliency(min_max=False, to_uint8="round")
    return predict(mask[None] / 255, recipe, original=mask.shape, image=read(picture))


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Pil.open(io.BytesIO(data)))


# ---------------------------------------------------------------------------------------- rembg's pixels


@pytest.fixture(scope="module", params=["girl", "whisk"])
def case(request: pytest.FixtureRequest, shared: Path) -> tuple[Prediction, dict[str, np.ndarray]]:
    name = request.param
    photo = np.asarray(Pil.open(next((shared / "data/photos").glob(f"{name}.*"))).convert("RGB"))
    mask = np.load(shared / "reference/u2net_released_masks.npz")[f"{name}_u2net"]
    with np.load(shared / "reference/rembg_cutouts.npz") as arrays:
        wanted = {key.removeprefix(f"{name}_"): arrays[key] for key in arrays if key.startswith(name)}
    found = of_mask(mask, photo)
    assert (found.saliency == mask).all()
    return found, wanted


def test_cutouts_are_rembgs(case: tuple[Prediction, dict[str, np.ndarray]]) -> None:
    found, wanted = case
    assert (found.cutout(cutout_style="rembg") == wanted["naive"]).all()
    assert (found.cutout()[::4, ::4] == wanted["putalpha_every_4th"]).all()
    assert (found.composite("red", cutout_style="rembg")[::4, ::4] == wanted["red_background"]).all()


def test_clean_mask_is_rembgs_post_process(case: tuple[Prediction, dict[str, np.ndarray]]) -> None:
    found, wanted = case
    assert (decoded(found.encode("mask", clean_mask=True)) == wanted["post_mask"]).all()


@pytest.mark.parametrize("photo", ["horse.jpg", "girl.png"])
def test_a_sessions_mask_becomes_the_sessions_files(shared: Path, photo: str) -> None:
    """What rembg wrote for a whole run of its own session: only the network is left out."""
    name = photo.split(".")[0]
    with np.load(shared / "reference/u2netp_pipeline.npz") as arrays:
        mask = arrays[f"{name}_rembg_mask"]
        cut, post = arrays[f"{name}_rembg_cutout_every_8th"], arrays[f"{name}_rembg_mask_post_every_4th"]
    found = of_mask(mask, shared / "data/photos" / photo)
    assert (found.cutout(cutout_style="rembg")[::8, ::8] == cut).mean() >= 0.999
    assert (decoded(found.encode(clean_mask=True))[::4, ::4] == post).all()


def test_matting_is_rembgs(case: tuple[Prediction, dict[str, np.ndarray]]) -> None:
    pytest.importorskip("pymatting")
    found, wanted = case
    assert (matting.trimap(found.saliency) == wanted["trimap"]).all()
    matted = found.render(kind="cutout", matting=True)
    assert matted.notes == ()
    assert np.abs(matted.pixels.astype(int) - wanted["matting"]).mean() <= 1e-2
    refined = decoded(found.encode("mask", matting=True))
    assert np.abs(refined.astype(int) - wanted["matting"][..., 3]).mean() <= 1e-2
    assert (decoded(found.encode("mask", matting=True, cutout_style="rembg")) == found.saliency).all()
    laid = found.composite("red", matting=True)
    assert laid.shape[2] == 3
    assert (laid[wanted["matting"][..., 3] == 0] == (255, 0, 0)).all()


# --------------------------------------------------------------------------------------------- properties

LEVELS = st.integers(0, 255)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999), st.tuples(LEVELS, LEVELS, LEVELS, LEVELS))
def test_full_alpha_keeps_the_picture_and_none_shows_the_background(
    height: int, width: int, seed: int, color: tuple[int, int, int, int]
) -> None:
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = rng.choice(np.array([0, 1, 77, 254, 255], np.uint8), (height, width))
    cut = put_alpha(rgb, mask)
    assert (cut[..., :3] == rgb).all()
    assert (cut[..., 3] == mask).all()
    laid = over(cut, Backdrop(color=color))
    assert (laid[mask == 255] == np.dstack([rgb, np.full_like(mask, 255)])[mask == 255]).all()
    assert (laid[mask == 0] == color).all()
    assert (laid[..., 3] >= np.maximum(mask, color[3])).all()
    if color[3] == 255:
        between = rgb.astype(float) * mask[..., None] / 255 + np.array(color[:3]) * (1 - mask[..., None] / 255)
        assert np.abs(laid[..., :3] - between).max() <= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 9))
def test_premultiplied_is_the_rounded_product(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    rgba = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    mask = rng.integers(0, 256, (height, width), dtype=np.uint8)
    product = rgba.astype(int) * mask[..., None] + 128
    assert (premultiplied(rgba, mask) == (product + (product >> 8)) >> 8).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 60), st.integers(1, 60))
def test_a_background_picture_covers_all(height: int, width: int, below_h: int, below_w: int) -> None:
    below = np.full((below_h, below_w, 3), (10, 200, 30), np.uint8)
    filled = np.asarray(Backdrop.of(below).fill((height, width)))
    assert filled.shape == (height, width, 4)
    assert (filled == (10, 200, 30, 255)).all()


def test_a_background_picture_keeps_its_ratio_and_shows_its_middle() -> None:
    bands = np.repeat(np.array([[0], [100], [200]], np.uint8), 40, axis=0)[:, :, None] * np.ones((1, 60, 3), np.uint8)
    backdrop = Backdrop.of(bands)
    filled = np.asarray(backdrop.fill((40, 60)))
    assert (filled[5:-5, :, :3] == 100).all()
    assert np.asarray(backdrop.fill((120, 60)))[:, 0, 0].tolist() == bands[:, 0, 0].tolist()
    assert (np.asarray(backdrop.fill((40, 60))) == filled).all()


def test_the_filled_background_is_not_drawn_upon() -> None:
    backdrop = Backdrop.of(PHOTO)
    before = np.asarray(backdrop.fill((20, 30)))
    over(put_alpha(np.zeros_like(PHOTO), np.full((20, 30), 255, np.uint8)), backdrop)
    assert (np.asarray(backdrop.fill((20, 30))) == before).all()


def test_background_files(tmp_path: Path) -> None:
    Pil.fromarray(PHOTO).save(tmp_path / "below.png")
    found = of_mask(np.zeros((20, 30), np.uint8), np.zeros_like(PHOTO))
    for source in (tmp_path / "below.png", str(tmp_path / "below.png"), PHOTO, Pil.fromarray(PHOTO)):
        assert (found.composite(source) == PHOTO).all()
    for wrong in (str(tmp_path / "none.png"), "reddish", 3.5):
        with pytest.raises(UsageError, match="background"):
            found.composite(wrong)


@pytest.mark.parametrize(
    ("text", "color"),
    [
        ("white", (255, 255, 255, 255)),
        ("#0f0", (0, 255, 0, 255)),
        ("#00ff0080", (0, 255, 0, 128)),
        ("1,2,3", (1, 2, 3, 255)),
        (" 1, 2 ,3, 4 ", (1, 2, 3, 4)),
        ("rgb(9, 8, 7)", (9, 8, 7, 255)),
        ("transparent", (0, 0, 0, 0)),
        ((5, 6, 7), (5, 6, 7, 255)),
        ([5, 6, 7, 8], (5, 6, 7, 8)),
        ("photo.jpg", None),
        ("1,2", None),
        (np.zeros((2, 2, 3), np.uint8), None),
    ],
)
def test_colors(text: Any, color: tuple[int, ...] | None) -> None:
    assert parse_color(text) == color


def test_colors_beyond_255() -> None:
    for wrong in ("1,2,300", (1, -2, 3)):
        with pytest.raises(UsageError, match=r"0\.\.255"):
            parse_color(wrong)


# ------------------------------------------------------------------------------------- the picture itself


def rgba_png() -> bytes:
    buffer = io.BytesIO()
    Pil.fromarray(put_alpha(PHOTO, np.full((20, 30), 100, np.uint8))).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("reader", "order"),
    [
        ("opencv:color", "bgr"),
        ("opencv:color", "rgb"),
        ("opencv:grey", "grey"),
        ("pillow:rgb", "rgb"),
        ("skimage", "rgb"),
    ],
)
def test_the_picture_keeps_its_colours_whatever_the_network_reads(reader: str, order: str) -> None:
    buffer = io.BytesIO()
    Pil.fromarray(PHOTO).save(buffer, "PNG")
    for source in (buffer.getvalue(), Pil.fromarray(PHOTO), PHOTO, rgba_png()):
        image = read(source, reader, order)
        assert (image.rgb8() == PHOTO).all()
        mask = np.full((20, 30), 255, np.uint8)
        found = predict(mask[None] / 255, saliency(min_max=False), original=(20, 30), image=image)
        assert (found.cutout()[..., :3] == PHOTO).all()


@pytest.mark.parametrize("exif_rule", ["apply", "ignore"])
@pytest.mark.parametrize("reader", ["opencv:grey", "skimage", "pillow:rgb"])
def test_the_picture_is_turned_as_the_mask_is(reader: str, exif_rule: str) -> None:
    exif = Pil.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Pil.fromarray(put_alpha(PHOTO, PHOTO[..., 0])).save(buffer, "PNG", exif=exif)
    image = read(buffer.getvalue(), reader, "grey" if reader == "opencv:grey" else "rgb", exif_rule)
    turned = np.rot90(PHOTO, -1) if exif_rule == "apply" else PHOTO
    assert image.size_hw == turned.shape[:2]
    assert (image.rgb8() == turned).all()
    alpha = image.alpha8()
    assert alpha is not None
    assert (alpha == turned[..., 0]).all()


def test_rembg_style_keeps_the_files_own_alpha() -> None:
    mask = np.full((20, 30), 128, np.uint8)
    found = predict(
        mask[None] / 255, saliency(min_max=False, to_uint8="round"), original=(20, 30), image=read(rgba_png())
    )
    assert (found.cutout(cutout_style="rembg")[..., 3] == 50).all()
    assert (found.cutout()[..., 3] == 128).all()
    palette = Pil.fromarray(PHOTO[..., 0] % 4).convert("P")
    palette.info["transparency"] = 0
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=0)
    assert set(np.unique(read(buffer.getvalue()).alpha8())) == {0, 255}  # type: ignore[arg-type]
    array = put_alpha(PHOTO, PHOTO[..., 0])
    assert (read(array).alpha8() == PHOTO[..., 0]).all()
    assert (read(Pil.fromarray(array)).alpha8() == PHOTO[..., 0]).all()
    assert read(PHOTO).alpha8() is None


def test_wide_pixels_are_shown_in_8_bits() -> None:
    wide = (PHOTO.astype(np.uint16) << 8) + 7
    assert (read(wide, "skimage").rgb8() == PHOTO).all()


# ------------------------------------------------------------------------------------ every kind of package


def image_of(found: Prediction) -> Image:
    return read(np.full((*found.frame.original_hw, 3), 90, np.uint8))


def test_a_threshold_decides_a_map() -> None:
    mask = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
    found = of_mask(mask, PHOTO)
    assert (decoded(found.encode()) == mask).all()
    assert (decoded(found.encode("mask", threshold=0.5)) == (mask > 127.5) * 255).all()
    assert (found.cutout(threshold=0.2)[..., 3] == (mask > 51) * 255).all()
    assert decoded(found.encode("mask", rgb_mask=True)).shape == (20, 30, 3)
    assert (decoded(found.encode("mask", rgb_mask=True)) == mask[..., None]).all()


def test_float_maps_become_levels() -> None:
    values = RNG.random((20, 30)).astype(np.float32)
    found = predict(values[None], saliency(to_uint8="none", min_max=False), original=(20, 30), image=read(PHOTO))
    assert (found.cutout()[..., 3] == np.rint(values * 255)).all()
    cleaned = decoded(found.encode("mask", clean_mask=True))
    assert set(np.unique(cleaned)) <= {0, 255}


def test_clean_mask_takes_specks_away_everywhere() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 8:22] = 255
    mask[1, 1] = 255
    for recipe in (None, saliency(min_max=False, to_uint8="round", threshold=0.3)):
        found = of_mask(mask, PHOTO, recipe)
        for options in ({}, {"threshold": 0.5}):
            cleaned = decoded(found.encode("mask", clean_mask=True, **options))
            assert cleaned[1, 1] == 0
            assert cleaned[10, 15] == 255
            assert (found.cutout(clean_mask=True, **options)[..., 3] == cleaned).all()
    logits = np.where(mask > 0, 9.0, -9.0)
    for recipe, planes in ((NUCLEI, [logits]), (TWO, [logits, logits]), (STREET, [-logits, logits, logits])):
        found = predict(np.stack(planes), recipe, original=(20, 30), image=read(PHOTO))
        assert found.cutout()[1, 1, 3] == 255
        assert found.cutout(clean_mask=True)[1, 1, 3] == 0
        assert found.cutout(clean_mask=True)[10, 15, 3] == 255
    assert decoded(predict(logits[None], NUCLEI, original=(20, 30)).encode(clean_mask=True))[1, 1] == 0
    with pytest.raises(UsageError, match="clean_mask"):
        predict(np.stack([-logits, logits, logits]), STREET, original=(20, 30)).encode("mask", clean_mask=True)


def test_classes_are_cut_out_together() -> None:
    raw = np.full((2, 20, 30), -9.0)
    raw[0, :5], raw[1, 10:] = 9, 9
    found = predict(raw, TWO, original=(20, 30), image=read(PHOTO))
    alpha = found.cutout()[..., 3]
    assert (alpha[:5] == 255).all()
    assert (alpha[5:10] == 0).all()
    assert (alpha[10:] == 255).all()
    assert (decoded(found.encode("mask")) == found.labels).all()
    street = predict(RNG.normal(size=(3, 20, 30)), STREET, original=(20, 30), image=read(PHOTO))
    assert (street.cutout()[..., 3] == (street.labels != 0) * 255).all()
    assert (decoded(street.encode("mask")) == street.labels).all()


def test_a_threshold_changes_the_packages_own() -> None:
    raw = RNG.normal(size=(1, 20, 30)).astype(np.float32)
    found = predict(raw, NUCLEI, original=(20, 30), image=read(PHOTO))
    strict = decoded(found.encode("mask", threshold=0.8))
    assert (strict == (found.probabilities[0] > np.float32(0.8)) * 255).all()
    assert (found.cutout(threshold=0.8)[..., 3] == strict).all()
    with pytest.raises(UsageError, match="threshold"):
        predict(np.zeros((3, 8, 8)), STREET).encode("mask", threshold=0.5)


def test_without_a_background_class_there_is_nothing_to_cut_out() -> None:
    labels = [dict(LABELS[0], name="road"), *LABELS[1:]]
    everything = manifest({"rule": "argmax"}, channels=3, labels=labels, activation="softmax", restore_what="logits")
    found = predict(np.zeros((3, 20, 30)), everything, original=(20, 30), image=read(PHOTO))
    found.encode("mask")
    found.encode("overlay")
    with pytest.raises(UsageError, match="none is the background"):
        found.cutout()


def test_cutouts_lie_on_the_pictures_grid() -> None:
    found = predict(RNG.random((1, 8, 8)), saliency(), grid="network", image=read(PHOTO))
    assert found.cutout().shape == (20, 30, 4)
    assert decoded(found.encode("mask")).shape == (8, 8)


def test_a_picture_that_was_not_kept() -> None:
    found = predict(RNG.random((1, 8, 8)), saliency())
    found.encode("mask")
    for kind in ("cutout", "composite", "overlay"):
        with pytest.raises(UsageError, match="keep_images"):
            found.encode(kind)  # type: ignore[arg-type]


def test_composites_are_rgb_unless_the_colour_is_not_opaque() -> None:
    found = of_mask(np.full((20, 30), 100, np.uint8), PHOTO)
    assert found.composite().shape == (20, 30, 3)
    assert found.composite("transparent").shape == (20, 30, 4)
    assert (found.composite("transparent") == found.cutout()).all()
    assert (found.composite("1,2,3,128")[..., 3] == 100 + round(128 * (155 / 255))).all()
    assert found.composite("white", cutout_style="rembg").shape == (20, 30, 4)


# --------------------------------------------------------------------------------------- overlays, constants


def test_a_saliency_overlay_tints_by_how_much() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[:, 10:20], mask[:, 20:] = 60, 250
    recipe = manifest_data(labels=[{"id": 1, "name": "object", "color": [255, 0, 0]}])["labels"]
    data = saliency(min_max=False, to_uint8="round").model_dump() | {"labels": recipe}
    found = of_mask(mask, np.full((20, 30, 3), 100, np.uint8), Manifest.model_validate(data))
    shown = found.overlay().astype(int)
    assert (shown[:, :10] == 100).all()
    assert 100 < shown[0, 15, 0] < shown[10, 25, 0]
    assert (shown[5, 20] == (255, 0, 0)).all()  # the outline
    assert (decoded(found.encode("overlay")) == shown).all()
    strict = found.overlay(threshold=0.5).astype(int)
    assert (strict[:, :20] == 100).all()


def test_a_constant_output_is_said() -> None:
    flat = predict(np.full((1, 8, 8), 0.7), saliency(), image=read(PHOTO))
    assert flat.constant_output
    assert flat.notes == (CONSTANT,)
    assert flat.render(kind="cutout").notes == (CONSTANT,)
    assert (flat.cutout()[..., 3] == 0).all()
    almost = np.full((1, 8, 8), 0.7)
    almost[0, 3, 3] = 0.71
    assert not predict(almost, saliency()).constant_output
    assert predict(np.full((2, 8, 8), 0.7), TWO).constant_output
    assert not predict(np.stack([np.zeros((8, 8)), RNG.random((8, 8))]), TWO).constant_output


# ---------------------------------------------------------------------------------------- matting's own rules


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 40), st.integers(0, 12))
def test_trimaps_hold_only_what_is_sure(seed: int, height: int, width: int, erode: int) -> None:
    mask = cv2.GaussianBlur(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8), (0, 0), 2)
    known = matting.trimap(mask, 140, 120, erode)
    assert set(np.unique(known)) <= {0, 128, 255}
    assert (mask[known == 255] > 140).all()
    assert (mask[known == 0] < 120).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 1), (2, 2), (3, 50)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_matting_falls_back_to_the_mask_and_says_so(shape: tuple[int, int], level: int) -> None:
    pytest.importorskip("pymatting")
    found = of_mask(np.full(shape, level, np.uint8), np.full((*shape, 3), 9, np.uint8))
    matted = found.render(kind="cutout", matting=True)
    assert matted.notes[-1].startswith("no matting:")
    assert (matted.pixels == found.cutout()).all()
    rembg = found.render(kind="cutout", matting=True, cutout_style="rembg")
    assert (rembg.pixels == found.cutout(cutout_style="rembg")).all()


def test_large_pictures_are_solved_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pymatting")
    rgb = np.full((120, 160, 3), 20, np.uint8)
    rgb[:, 80:] = 220
    mask = cv2.GaussianBlur((rgb[..., 0] > 100).astype(np.uint8) * 255, (0, 0), 6)
    whole = of_mask(mask, rgb).cutout(matting=True)
    monkeypatch.setattr(matting, "MAX_PIXELS", 120 * 160 // 4)
    reduced = of_mask(mask, rgb).render(kind="cutout", matting=True)
    assert "megapixels" in reduced.notes[-1]
    assert reduced.pixels.shape == (120, 160, 4)
    assert np.abs(reduced.pixels.astype(int) - whole)[..., 3].mean() < 3


def test_without_pymatting(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    matting._pymatting.cache_clear()
    monkeypatch.setitem(sys.modules, "pymatting.alpha.estimate_alpha_cf", None)
    try:
        with pytest.raises(UsageError, match=r"segship\[matting\]"):
            matting.require()
    finally:
        matting._pymatting.cache_clear()


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "sticker"}, "color, cityscapes, cutout, composite, overlay"),
        ({"cutout_style": "round"}, "straight, rembg"),
        ({"threshold": 1.5}, "0..1"),
        ({"threshold": float("nan")}, "0..1"),
        ({"foreground_threshold": 256}, "foreground_threshold"),
        ({"background_threshold": -1}, "background_threshold"),
        ({"erode": -1}, "erode"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OutputOptions(**options)


def test_an_option_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no output option 'alpha'"):
        predict(np.zeros((1, 8, 8)), NUCLEI).encode("mask", alpha=3)


def test_content_tells_every_difference_in_bytes(tmp_path: Path) -> None:
    Pil.fromarray(PHOTO).save(tmp_path / "a.png")
    Pil.fromarray(PHOTO).save(tmp_path / "same.png")
    Pil.fromarray(255 - PHOTO).save(tmp_path / "b.png")
    composite = [
        OutputOptions(kind="composite", background=b).content() for b in ("white", "#fff", (255, 255, 255), None)
    ]
    assert all(content == composite[0] for content in composite)
    a, same, b = (
        OutputOptions(kind="composite", background=tmp_path / n).content() for n in ("a.png", "same.png", "b.png")
    )
    assert a == same != b
    kinds: list[dict[str, Any]] = [
        {}, {"kind": "cutout"}, {"clean_mask": True}, {"threshold": 0.0}, {"rgb_mask": True}, {"matting": True},
        {"matting": True, "erode": 3}, {"kind": "cutout", "cutout_style": "rembg"}, {"kind": "composite"},
    ]  # fmt: skip
    contents = [str(OutputOptions(**options).content()) for options in kinds]
    assert len(set(contents)) == len(contents)


def test_equal_pixels_give_equal_bytes() -> None:
    found = of_mask(RNG.integers(0, 256, (20, 30), dtype=np.uint8), PHOTO)
    for kind in ("mask", "cutout", "composite", "overlay"):
        assert found.encode(kind) == of_mask(found.saliency, PHOTO).encode(kind)  # type: ignore[arg-type]
    pixels = decoded(found.encode("cutout"))
    assert (pixels == found.cutout()).all()
