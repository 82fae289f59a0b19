"""U²-Net checkpoints: recognised, and used in the way that was asked for, on every kind of picture."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil

from segship.errors import SourceError, UnknownSource, UnsafePickle, UsageError
from segship.families import all_options, load_source, parse_options, u2net
from segship.families.u2net import tiny
from segship.families.u2net_options import RECIPES, RESTORES
from segship.families.u2net_recipe import build_chain, build_recipe
from segship.inference.images import read_image
from segship.inference.prediction import decode
from segship.inference.preprocess import prepare
from segship.manifest import Recipe, Saliency
from segship.networks.u2net import U2NET, U2NETP, uniform

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return U2NETP().state_dict()


@pytest.fixture(scope="module")
def large() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return U2NET().state_dict()


def save(folder: Path, content: Any, name: str = "u2netp.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def recipe(name: str = "upstream", classes: int = 1, **options: Any) -> Recipe:
    chain = build_chain(name, parse_options(u2net, {"input_size": "64", **options}), classes)
    return build_recipe("n", chain, architecture="U2NETP", parameters=1, classes=classes, outputs=1, record={})


def saliency(found: Recipe) -> Saliency:
    assert isinstance(found.decode.decision, Saliency)
    return found.decode.decision


# --------------------------------------------------------------------------------------------- recognition


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_in_every_wrapping(
    tmp_path: Path, state: dict[str, torch.Tensor], wrapper: str | None, prefix: str
) -> None:
    tensors = OrderedDict((prefix + key, value) for key, value in state.items())
    source = load_source(save(tmp_path, tensors if wrapper is None else {wrapper: tensors, "epoch": 3}))
    assert (source.recipe.family, source.recipe.network.architecture) == ("u2net", "U2NETP")
    assert source.recipe.network.parameters == 1_131_181
    assert (source.recipe.network.size, source.recipe.network.size_multiple) == ((320, 320), (1, 1))
    assert [output.name for output in source.recipe.network.outputs] == ["d0"]
    assert source.recipe.metric.model_dump(exclude={"options"}) == {
        "name": "MAE", "scorer": "sod", "higher_is_better": False, "grid": "input",
    }  # fmt: skip
    assert isinstance(source.network, U2NETP)
    assert torch.equal(source.network.state_dict()["outconv.weight"], state["outconv.weight"])


def test_the_large_network(tmp_path: Path, large: dict[str, torch.Tensor]) -> None:
    source = load_source(save(tmp_path, large, "u2net.pth"), options={"all_outputs": True})
    assert (source.recipe.network.architecture, source.recipe.network.parameters) == ("U2NET", 44_009_869)
    assert [output.name for output in source.recipe.network.outputs] == [f"d{k}" for k in range(7)]


def test_what_the_files_name_says(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    portrait = load_source(save(tmp_path, state, "u2net_portrait.pth"))
    assert portrait.recipe.options["recipe"] == "portrait"
    assert portrait.recipe.options["recipe_from"] == "file name"
    assert portrait.recipe.network.size == (512, 512)
    assert saliency(portrait.recipe).polarity == "inverted"
    assert any("name says portrait" in warning for warning in portrait.warnings)
    named = load_source(save(tmp_path, state, "u2net_portrait.pth"), options={"recipe": "upstream"})
    assert named.recipe.options["recipe"] == "upstream"
    assert not any("recipe" in warning for warning in named.warnings)
    human = load_source(save(tmp_path, state, "u2net_human_seg.pth"))
    assert human.recipe.labels[0].name == "person"
    assert load_source(save(tmp_path, state), options={"class_names": "fish"}).recipe.labels[0].name == "fish"


def test_a_default_recipe_is_said_aloud(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    source = load_source(save(tmp_path, state))
    assert source.recipe.options["recipe_from"] == "default"
    assert any("--recipe" in warning and "upstream-0.14" in warning for warning in source.warnings)
    other = load_source(save(tmp_path, state), options={"recipe": "upstream", "input_size": "256x320"})
    assert any("trained at 320x320" in warning for warning in other.warnings)


def test_sizes_that_an_engine_cannot_run_are_known(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = save(tmp_path, state)
    assert "openvino" in load_source(path, options={"input_size": "16x64"}).unable
    assert not load_source(path, options={"input_size": "17x64"}).unable


def test_several_classes_are_decided_by_the_largest(tmp_path: Path) -> None:
    source = load_source(save(tmp_path, U2NETP(3, 4).state_dict()), options={"recipe": "upstream"})
    assert source.recipe.decode.decision.rule == "argmax"
    assert [label.id for label in source.recipe.labels] == [0, 1, 2, 3]


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this ran",)


def test_files_that_cannot_be_taken(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    missing = {key: value for key, value in state.items() if key != "stage3.rebnconv2.conv_s1.weight"}
    wide = U2NET(3, 1, widths=uniform(24, 64)).state_dict()
    broken = {**state, "side1.weight": torch.full_like(state["side1.weight"], float("nan"))}
    cases: dict[str, tuple[Any, type[Exception], str]] = {
        "missing.pth": (missing, SourceError, r"stage3\.rebnconv2\.conv_s1\.weight should be .* it is missing"),
        "wide.pth": (wide, SourceError, r"is \(24, 64, 3, 3\)"),
        "lab.pth": (U2NETP(6, 1).state_dict(), SourceError, "takes 6 channels"),
        "nan.pth": (broken, SourceError, "NaN or infinity"),
        "other.pth": ({"layer.weight": torch.ones(3)}, UnknownSource, "u2net: stage1.rebnconvin"),
        "runs.pth": ({"model": state, "more": _Runs()}, UnsafePickle, "print"),
    }
    for name, (content, kind, message) in cases.items():
        with pytest.raises(kind, match=message) as caught:
            load_source(save(tmp_path, content, name))
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
    whole = save(tmp_path, state).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(SourceError, match="cut short"):
        load_source(tmp_path / "cut.pth")


# ------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("upstream", ("skimage", "ignore", "skimage:linear-antialias", "pillow:bilinear", "as-is")),
        ("upstream-0.14", ("skimage", "ignore", "skimage:linear", "pillow:bilinear", "as-is")),
        ("rembg", ("pillow:rgb", "apply", "pillow:lanczos", "pillow:lanczos", "as-is")),
        ("portrait", ("skimage", "ignore", "skimage:linear-antialias", "pillow:bilinear", "inverted")),
        ("custom", ("skimage", "ignore", "skimage:linear-antialias", "pillow:bilinear", "as-is")),
    ],
)
def test_each_recipe_is_written_down(name: str, expected: tuple[str, ...]) -> None:
    found = recipe(name)
    assert found.input.kind == "image"
    resize = found.preprocess[0]
    assert resize.step == "resize"
    rule = saliency(found)
    assert (
        found.input.reader, found.input.exif_rotation, resize.method, found.decode.restore_method, rule.polarity
    ) == expected  # fmt: skip
    assert (rule.min_max, rule.to_uint8, found.decode.restore_what) == (True, "truncate", "decision")
    assert found.options["recipe"] == name
    sizes = {"portrait": (512, 512)}
    assert build_chain(name, {}, 1).size == sizes.get(name, (320, 320))


def test_what_a_custom_recipe_changes() -> None:
    found = recipe(
        "custom", resize="opencv:area", restore="torch:bilinear", mean="0.5,0.5,0.5", std="1,1,1", polarity="inverted",
        exif="ignore", min_max="no", input_size="48x64",
    )  # fmt: skip
    assert found.input.kind == "image"
    assert (found.input.reader, found.input.exif_rotation) == ("pillow:rgb", "ignore")
    assert found.network.size == (48, 64)
    assert found.decode.restore_method == "torch:bilinear"
    assert (saliency(found).polarity, saliency(found).min_max) == ("inverted", False)
    assert found.options["normalization"] == "own"
    normalize = next(step for step in found.preprocess if step.step == "normalize")
    assert (normalize.subtract, normalize.multiply) == ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))


def test_the_demos_constants_stand_the_other_way_round() -> None:
    demo = next(step for step in recipe(normalization="portrait-demo").preprocess if step.step == "normalize")
    plain = next(step for step in recipe().preprocess if step.step == "normalize")
    assert demo.subtract == plain.subtract[::-1] == (0.406, 0.456, 0.485)
    assert demo.multiply == plain.multiply[::-1]
    assert recipe(normalization="portrait-demo").options["normalization"] == "portrait-demo"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("upstream", {"resize": "opencv:area"}, "--resize belongs to --recipe custom"),
        ("rembg", {"mean": "0,0,0"}, "--mean belongs to --recipe custom"),
        ("portrait", {"polarity": "as-is"}, "--polarity belongs"),
        ("rembg", {"alpha": "in-max"}, "--alpha in-max"),
        ("custom", {"normalization": "rgb", "mean": "0,0,0"}, "--normalization names constants"),
        ("custom", {"mean": "0,0"}, "--mean needs 3"),
        ("custom", {"std": "1,0,1"}, "--std needs 3 positive"),
        ("custom", {"restore": "skimage:linear"}, "--restore must be one of"),
        ("upstream", {"min_max": "maybe"}, "--min-max must be one of"),
    ],
)
def test_options_that_do_not_go_together(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(name, **options)


def test_options_are_shared_by_name_with_one_meaning() -> None:
    options = all_options()
    assert options["recipe"].choices == RECIPES
    assert options["all_outputs"].kind == "flag"
    assert options["all_outputs"].parse(True) is True
    assert "U²-Net" in options["input_size"].help
    assert "UNet++" in options["input_size"].help


# ---------------------------------------------------------------------------------- pictures of every kind


def encoded(picture: Pil.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def colours(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 6, (x + y) * 2], axis=2).astype(np.uint8)


def x_of(found: Recipe, picture: Any) -> np.ndarray:
    assert found.input.kind == "image"
    prepared = prepare(read_image(picture, found.input), found)
    assert prepared.x.dtype == np.float32
    assert prepared.x.shape == (3, *(found.network.size or ()))
    assert np.isfinite(prepared.x).all()
    return prepared.x


@pytest.mark.parametrize("name", RECIPES)
def test_every_picture_gives_finite_inputs(name: str) -> None:
    rgb = colours()
    alpha = np.full(rgb.shape[:2], 90, np.uint8)
    exif = Pil.Exif()
    exif[0x0112] = 6
    animated = [Pil.fromarray(rgb), Pil.fromarray(rgb[::-1].copy())]
    gif = io.BytesIO()
    animated[0].save(gif, "GIF", save_all=True, append_images=animated[1:])
    pictures = {
        "black": np.zeros_like(rgb),
        "white": np.full_like(rgb, 255),
        "one pixel": rgb[:1, :1],
        "one column": rgb[:, :1],
        "long": np.tile(rgb[:1], (1, 300, 1)),
        "RGBA": encoded(Pil.fromarray(np.dstack([rgb, alpha]))),
        "LA": encoded(Pil.fromarray(np.dstack([rgb[..., 0], alpha]))),
        "grey": encoded(Pil.fromarray(rgb[..., 0])),
        "CMYK": encoded(Pil.fromarray(rgb).convert("CMYK"), "JPEG"),
        "16 bit": encoded(Pil.fromarray(rgb[..., 0].astype(np.uint16) * 200)),
        "palette": encoded(Pil.fromarray(rgb).quantize(16)),
        "1 bit": encoded(Pil.fromarray(rgb[..., 0]).convert("1")),
        "rotated": encoded(Pil.fromarray(rgb), "JPEG", exif=exif),
        "animated": gif.getvalue(),
    }
    found = recipe(name)
    for picture in pictures.values():
        x_of(found, picture)


def test_black_stays_black() -> None:
    for name in RECIPES:
        x = x_of(recipe(name), np.zeros((20, 30, 3), np.uint8))
        assert np.abs(x - (-MEAN / STD)[:, None, None]).max() <= 1e-6


def test_alpha_is_dropped_before_anything_is_computed() -> None:
    rgb = colours() // 2
    for name in ("upstream", "rembg"):
        with_alpha = encoded(Pil.fromarray(np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])))
        assert np.array_equal(x_of(recipe(name), with_alpha), x_of(recipe(name), rgb))


def test_alpha_in_the_maximum_divides_by_it() -> None:
    rgb = colours() // 2
    opaque = encoded(Pil.fromarray(np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])))
    values = x_of(recipe(alpha="in-max"), opaque) * STD[:, None, None] + MEAN[:, None, None]
    plain = x_of(recipe(), rgb) * STD[:, None, None] + MEAN[:, None, None]
    assert plain.max() == pytest.approx(1.0)
    assert 0.3 < values.max() < 0.6  # the picture is at most half as bright as its alpha
    assert np.abs(values - plain * values.max()).max() <= 1e-6
    assert np.array_equal(x_of(recipe(alpha="in-max"), rgb), x_of(recipe(), rgb))


def test_grey_and_grey_with_alpha_are_one_plane() -> None:
    grey = colours()[..., 0]
    both = encoded(Pil.fromarray(np.dstack([grey, np.full(grey.shape, 40, np.uint8)])))
    for options in ({}, {"alpha": "in-max"}):
        x = x_of(recipe(**options), both)
        assert np.array_equal(x, x_of(recipe(**options), grey))
        assert np.array_equal(x[0], x[1])
    rembg = x_of(recipe("rembg"), grey)
    assert not np.array_equal(rembg[0], rembg[1])  # repeated before it is normalised


def test_cmyk_is_converted_not_cut() -> None:
    ink = Pil.fromarray(colours()).convert("CMYK")
    picture = encoded(ink, "JPEG", quality=100)
    expected = np.asarray(Pil.open(io.BytesIO(picture)).convert("RGB"))
    for name in ("upstream", "rembg"):
        assert np.array_equal(x_of(recipe(name), picture), x_of(recipe(name), expected))


def test_sixteen_bits_are_kept_by_upstream_and_cut_by_rembg() -> None:
    fine = (np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) + 256) * 8
    picture = encoded(Pil.fromarray(fine))
    scaled = x_of(recipe("upstream"), fine)
    assert np.array_equal(x_of(recipe("upstream"), picture), scaled)
    assert len(np.unique(scaled[0])) > 300
    assert np.array_equal(x_of(recipe("rembg"), picture), x_of(recipe("rembg"), (fine >> 8).astype(np.uint8)))


def test_rotation_is_ignored_by_upstream_and_applied_by_rembg() -> None:
    exif = Pil.Exif()
    exif[0x0112] = 6
    rgb = np.repeat(np.repeat(colours(5, 8), 8, axis=0), 8, axis=1)
    picture = encoded(Pil.fromarray(rgb), "JPEG", quality=100, exif=exif)
    stored = np.asarray(Pil.open(io.BytesIO(picture)))
    turned = np.rot90(stored, -1).copy()
    expected = {"upstream": stored, "rembg": turned}
    for name, pixels in expected.items():
        assert np.array_equal(x_of(recipe(name), picture), x_of(recipe(name), pixels))
        other = recipe(name, exif="apply" if name == "upstream" else "ignore")
        opposite = expected["rembg" if name == "upstream" else "upstream"]
        assert np.array_equal(x_of(other, picture), x_of(recipe(name), opposite))


# --------------------------------------------------------------------------------------- after the network


def mask_of(found: Recipe, d0: np.ndarray, height: int = 9, width: int = 7) -> Any:
    assert found.input.kind == "image"
    frame = prepare(read_image(np.zeros((height, width, 3), np.uint8), found.input), found).frame
    return decode((d0[None].astype(np.float32),), frame, found)


def test_a_constant_map_becomes_zeros_and_says_so() -> None:
    for value in (0.0, 0.3, 1.0):
        for name in RECIPES:
            found = mask_of(recipe(name), np.full((64, 64), value))
            assert not found.saliency.any()
            assert found.saliency.shape == (9, 7)
            assert found.constant_output
    assert not mask_of(recipe(), np.linspace(0.2, 0.4, 64 * 64).reshape(64, 64)).constant_output


def test_min_max_stretches_unless_it_is_left_out() -> None:
    d0 = np.linspace(0.2, 0.6, 64 * 64).reshape(64, 64)
    stretched = mask_of(recipe(), d0).on_grid("network").saliency
    assert (stretched.min(), stretched.max()) == (0, 255)
    kept = mask_of(recipe(min_max="no"), d0).on_grid("network").saliency
    assert (kept.min(), kept.max()) == (51, 153)


def test_values_are_cut_not_rounded() -> None:
    d0 = np.zeros((64, 64))
    d0[0, :4] = (1.0, 0.999, 254.99 / 255, 0.5)
    found = mask_of(recipe(), d0).on_grid("network").saliency
    assert found[0, :4].tolist() == [255, 254, 254, 127]


@pytest.mark.parametrize("method", RESTORES)
def test_a_mask_comes_back_in_grey_levels_by_every_method(method: str) -> None:
    d0 = np.zeros((64, 64))
    d0[16:48] = 1.0
    found = mask_of(recipe("custom", restore=method), d0, 97, 33).saliency
    assert (found.dtype, found.shape) == (np.uint8, (97, 33))
    assert (found.min(), found.max()) == (0, 255)


def test_labels_are_the_map_above_one_half() -> None:
    d0 = np.zeros((64, 64))
    d0[16:48] = 1.0
    found = mask_of(recipe(), d0, 64, 64)
    assert np.array_equal(found.labels, (found.saliency > 127).astype(np.uint8))
    assert found.masks.shape == (1, 64, 64)
    assert found.probabilities.shape == (1, 64, 64)


def test_the_tiny_network_has_something_to_show() -> None:
    source = tiny()
    assert source.recipe.network.parameters < 200_000
    with torch.inference_mode():
        d0 = source.network(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert float(d0.max() - d0.min()) > 0.1
