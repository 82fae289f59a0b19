"""Cutouts and composites as people make them: folders, pipes, Python; and every odd picture that may come along."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from made_pictures import picture, write_pictures
from PIL import Image
from tiny_saliency import is_object, saliency_package, scene

import segship as library
from segship.cli import run as run_command


@pytest.fixture(scope="session", params=["rembg", "upstream"])
def salient(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("salient")
    return saliency_package(folder / f"{request.param}.segship", recipe=request.param).path


@pytest.fixture(scope="session")
def rembg(tmp_path_factory) -> Path:
    return saliency_package(tmp_path_factory.mktemp("rembg") / "rembg.segship").path


def write_scenes(folder: Path, count: int, suffix: str = ".png") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"scene_{number:02d}{suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(scene(number)).save(path)
    return paths


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def piped(package: Path, arguments: list[object], data: bytes, cache: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "segship", "predict", package, *arguments]
    environment = {**os.environ, "SEGSHIP_CACHE_DIR": str(cache)}
    return subprocess.run([str(part) for part in command], input=data, capture_output=True, env=environment, timeout=60)


# -------------------------------------------------------------------------------------------------- kinds


def test_cutouts_of_a_folder(segship, salient, tmp_path):
    paths = write_scenes(tmp_path / "in", 3)
    outcome = segship("predict", salient, tmp_path / "in", "-o", tmp_path / "out", "--output", "cutout")
    assert outcome.code == 0, outcome.err
    for path in paths:
        photo, cut = pixels(path), pixels(tmp_path / "out" / path.name)
        assert (cut[..., :3] == photo).all()
        inside = (cut[..., 3] > 127)[4:-4, 4:-4]  # the border sees the network's padding
        truth = is_object(photo)[4:-4, 4:-4]
        assert (inside & truth).sum() / (inside | truth).sum() > 0.8


def test_composites_over_colours_and_pictures(segship, rembg, tmp_path):
    path = write_scenes(tmp_path / "in", 1)[0]
    Image.fromarray(np.full((300, 10, 3), (1, 2, 3), np.uint8)).save(tmp_path / "below.jpg", quality=100)
    segship("predict", rembg, path, "-o", tmp_path / "mask")
    alpha = pixels(tmp_path / "mask" / path.name)
    for background, color in (("#00ff00", (0, 255, 0)), ("9,8,7", (9, 8, 7)), (tmp_path / "below.jpg", (1, 2, 3))):
        out = tmp_path / str(background).replace("/", "_")
        outcome = segship("predict", rembg, path, "-o", out, "--background", background)
        assert outcome.code == 0, outcome.err
        laid = pixels(out / path.name)
        assert laid.shape == (90, 120, 3)
        assert np.abs(laid[alpha == 0].astype(int) - color).max() <= 2
        assert (laid[alpha == 255] == pixels(path)[alpha == 255]).all()


def test_masks_by_threshold_cleaned_and_in_three_planes(segship, rembg, tmp_path):
    path = write_scenes(tmp_path / "in", 1)[0]
    variants = {
        "map": [],
        "decided": ["--threshold", 0.4],
        "clean": ["--clean-mask"],
        "planes": ["--rgb-mask"],
        "overlay": ["--output", "overlay"],
    }
    found = {}
    for name, options in variants.items():
        outcome = segship("predict", rembg, path, "-o", tmp_path / name, *options)
        assert outcome.code == 0, outcome.err
        found[name] = pixels(tmp_path / name / path.name)
    assert len(np.unique(found["map"])) > 20
    assert (found["decided"] == (found["map"] > 0.4 * 255) * 255).all()
    assert set(np.unique(found["clean"])) == {0, 255}
    assert (found["planes"] == found["map"][..., None]).all()
    assert (found["overlay"][found["map"] == 0] == pixels(path)[found["map"] == 0]).mean() > 0.95


def test_matting_refines_the_edge(segship, rembg, tmp_path):
    pytest.importorskip("pymatting")
    path = write_scenes(tmp_path / "in", 1)[0]
    outcome = segship("predict", rembg, path, "-o", tmp_path / "out", "--output", "cutout", "--matting", "--erode", 4)
    assert outcome.code == 0, outcome.err
    cut = pixels(tmp_path / "out" / path.name)
    assert cut.shape == (90, 120, 4)
    assert not (cut[..., :3] == pixels(path)).all()  # the object's own colours are estimated, too


def test_nuclei_are_cut_out_too(segship, package, tmp_path):
    path = write_pictures(tmp_path / "in", 1)[0]
    segship("predict", package, path, "-o", tmp_path / "mask")
    segship("predict", package, path, "-o", tmp_path / "cut", "--output", "cutout")
    assert (pixels(tmp_path / "cut" / path.name)[..., 3] == pixels(tmp_path / "mask" / path.name)).all()
    assert (pixels(tmp_path / "cut" / path.name)[..., :3] == picture(0)[..., ::-1]).all()


def test_resume_tells_cutouts_from_masks(segship, rembg, tmp_path):
    write_scenes(tmp_path / "in", 2)

    def done(*options: object) -> int:
        arguments = [rembg, tmp_path / "in", "-o", tmp_path / "out", "--json", *options]
        return json.loads(segship("predict", *arguments).out)["done"]

    assert [done(), done(), done("--output", "cutout"), done("--output", "cutout")] == [2, 0, 2, 0]
    assert [done("--background", "white"), done("--background", "#fff"), done("--background", "#ffe")] == [2, 0, 2]


# --------------------------------------------------------------------------------- the same bytes everywhere


def test_pipes_files_and_python_give_the_same_bytes(segship, rembg, tmp_path):
    path = write_scenes(tmp_path / "in", 1, ".jpg")[0]
    options = ["--output", "cutout", "--clean-mask"]
    segship("predict", rembg, path, "-o", tmp_path / "out", *options)
    want = (tmp_path / "out" / "scene_00.png").read_bytes()
    through = piped(rembg, ["-", "-o", "-", *options], path.read_bytes(), tmp_path / "cache")
    assert through.returncode == 0, through.stderr
    assert through.stdout == want
    assert through.stderr == b""
    from_file = piped(rembg, [path, "-o", "-", *options], b"", tmp_path / "cache")
    assert from_file.stdout == want
    with library.load(rembg) as model:
        assert model(path.read_bytes()).encode("cutout", clean_mask=True) == want


def test_a_reader_that_goes_away_is_no_traceback(rembg, tmp_path):
    path = write_scenes(tmp_path / "in", 1)[0]
    command = f"{sys.executable} -m segship predict {rembg} - -o - < {path} | head -c 10 | wc -c"
    environment = {**os.environ, "SEGSHIP_CACHE_DIR": str(tmp_path / "cache")}
    outcome = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment, timeout=60)
    assert outcome.stdout.strip() == "10"
    assert "Traceback" not in outcome.stderr


@pytest.fixture
def through(rembg, tmp_path, monkeypatch, capsysbinary):
    """``through(data, *arguments)`` pipes bytes through the command in this process: (code, stdout, stderr)."""
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))

    def call(data: bytes, *arguments: object) -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        capsysbinary.readouterr()
        code = run_command(["predict", str(rembg), *map(str, arguments)])
        captured = capsysbinary.readouterr()
        return code, captured.out, captured.err.decode()

    return call


def test_what_is_broken_in_a_pipe_is_one_line_and_no_bytes(through):
    whole = io.BytesIO()
    Image.fromarray(scene(1)).save(whole, "PNG")
    for data, says in ((b"", "stdin is empty"), (b"no picture", "stdin"), (whole.getvalue()[:900], "cut short")):
        code, out, err = through(data, "-", "-o", "-")
        assert (code, out) == (1, b"")
        assert says in err
        assert len(err.strip().splitlines()) == 1
    code, out, err = through(whole.getvalue(), "-", "-o", "-", "--max-bytes", 500)
    assert (code, out) == (1, b"")
    assert "--max-bytes" in err


def test_notes_go_to_stderr(through):
    frames = [Image.fromarray(scene(k)) for k in range(2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    code, out, err = through(buffer.getvalue(), "-", "-o", "-", "--output", "cutout")
    assert code == 0
    assert err == "note: stdin: more than one frame; the first is used\n"
    assert Image.open(io.BytesIO(out)).mode == "RGBA"
    assert through(buffer.getvalue(), "-", "-o", "-", "-q")[2] == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-", "-o", "out"], "-o -"),
        (["-", "-", "-o", "-"], "one input"),
        (["IN", "-o", "-"], "there are 2 inputs"),
        (["-", "-o", "-", "--json"], "'json'"),
        (["-", "-o", "-", "--overlay"], "--output overlay"),
        (["-", "-o", "-", "--format", "npz"], "'format'"),
        (["-", "-o", "-", "--save-probabilities"], "'probabilities'"),
        (["IN", "--output", "out"], "-o"),
        (["IN", "-o", "out", "--output", "cutout", "--background", "white"], "--output composite"),
        (["IN", "-o", "out", "--background", "nosuch.png"], "nosuch.png"),
        (["IN", "-o", "out", "--background", "1,2,999"], "0..255"),
        (["IN", "-o", "out", "--output", "cutout", "--rgb-mask"], "--rgb-mask"),
        (["IN", "-o", "out", "--cutout-style", "rembg"], "--cutout-style"),
        (["IN", "-o", "out", "--erode", "3"], "--matting"),
        (["IN", "-o", "out", "--output", "overlay", "--matting"], "--matting"),
        (["IN", "-o", "out", "--threshold", "7"], "0..1"),
        (["IN", "-o", "out", "--output", "cutout", "--grid", "network"], "grid"),
        (["IN", "-o", "out", "--output", "cutout", "--format", "npz"], "npz"),
        (["IN", "-o", "out", "--instances", "--palette", "--output", "cutout"], "palette"),
    ],
)
def test_arguments_that_do_not_go_together(through, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path / "IN", 2)
    code, out, err = through(b"", *arguments)
    assert (code, out) == (2, b"")
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_matting_that_is_not_installed(segship, rembg, tmp_path, monkeypatch):
    from segship.inference import matting

    matting._pymatting.cache_clear()
    monkeypatch.setitem(sys.modules, "pymatting.alpha.estimate_alpha_cf", None)
    try:
        outcome = segship("predict", rembg, write_scenes(tmp_path / "in", 1)[0], "-o", tmp_path / "out", "--matting")
    finally:
        matting._pymatting.cache_clear()
    assert outcome.code == 2
    assert "pip install 'segship[matting]'" in outcome.error


# ------------------------------------------------------------------------------------------- odd pictures


def _wide(mode: str) -> Image.Image:
    import cv2

    colors = (scene(2).astype(np.uint16) << 8) + 99
    data = cv2.imencode(".png", colors[..., ::-1] if mode == "RGB16" else colors[..., 0])[1].tobytes()
    return Image.open(io.BytesIO(data))


ODD = {
    "one_pixel.png": lambda: Image.fromarray(np.full((1, 1, 3), 200, np.uint8)),
    "black.png": lambda: Image.fromarray(np.zeros((50, 70, 3), np.uint8)),
    "grey.png": lambda: Image.fromarray(scene(2)[..., 0]),
    "grey_alpha.png": lambda: Image.fromarray(scene(2)).convert("LA"),
    "alpha.png": lambda: Image.fromarray(np.dstack([scene(2), np.full((90, 120), 77, np.uint8)])),
    "palette.png": lambda: Image.fromarray(scene(2)).convert("P"),
    "bits.png": lambda: Image.fromarray(scene(2)).convert("1"),
    "inks.jpg": lambda: Image.fromarray(scene(2)).convert("CMYK"),
    "one_frame.gif": lambda: Image.fromarray(scene(2)),
}
KINDS = ("mask", "cutout", "composite", "overlay")


@pytest.mark.parametrize("kind", KINDS)
def test_odd_pictures_in_one_folder(segship, salient, tmp_path, kind):
    (tmp_path / "in").mkdir()
    for name, make in ODD.items():
        make().save(tmp_path / "in" / name)
    (tmp_path / "in" / "grey16.png").write_bytes(_wide("L16").fp.getvalue())
    (tmp_path / "in" / "rgb16.png").write_bytes(_wide("RGB16").fp.getvalue())
    Image.fromarray(np.full((20000, 1, 3), 90, np.uint8)).save(tmp_path / "in" / "tall.png")
    Image.fromarray(np.full((1, 20000, 3), 90, np.uint8)).save(tmp_path / "in" / "wide.png")
    outcome = segship("predict", salient, tmp_path / "in", "-o", tmp_path / "out", "--output", kind)
    assert outcome.code == 0, outcome.err
    assert "Warning" not in outcome.err
    count = {"mask": 1, "cutout": 4, "composite": 3, "overlay": 3}[kind]
    for path in (tmp_path / "in").iterdir():
        made = pixels(tmp_path / "out" / f"{path.stem}.png")
        with Image.open(path) as original:
            assert made.shape[:2] == original.size[::-1]
        assert (1 if made.ndim == 2 else made.shape[2]) == count
    if kind == "cutout":
        for name in ("alpha", "rgb16"):
            assert (pixels(tmp_path / "out" / f"{name}.png")[..., :3] == scene(2)).all()
        assert (pixels(tmp_path / "out" / "grey16.png")[..., :3] == scene(2)[..., :1]).all()


def test_a_strip_costs_little_memory(salient, tmp_path):
    for shape in ((1, 20000, 3), (20000, 1, 3)):
        strip = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        with library.load(salient) as model:
            model(strip)
            tracemalloc.start()
            cut = model(strip).cutout()
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert cut.shape == (*shape[:2], 4)
        assert peak < 64e6


def test_a_network_that_sees_nothing_says_so(segship, tmp_path):
    blind = saliency_package(tmp_path / "blind.segship", slope=0).path
    write_scenes(tmp_path / "in", 5)
    outcome = segship("predict", blind, tmp_path / "in", "-o", tmp_path / "out", "--output", "cutout")
    assert outcome.code == 0, outcome.err
    notes = [line for line in outcome.err.splitlines() if line.startswith("note:")]
    assert len(notes) == 1
    assert "and 2 more: the network's output is one constant" in notes[0]
    entries = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert all(entry["constant_output"] for entry in entries)
    assert not pixels(tmp_path / "out" / "scene_00.png")[..., 3].any()


def test_matting_without_an_object_is_a_plain_cutout_and_said(segship, rembg, tmp_path):
    pytest.importorskip("pymatting")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "black.png")
    outcome = segship(
        "predict", rembg, tmp_path / "black.png", "-o", tmp_path / "out", "--output", "cutout", "--matting",
        "--foreground-threshold", 255,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "no matting" in outcome.err
    assert pixels(tmp_path / "out" / "black.png").shape == (40, 60, 4)


def test_a_turned_photo_is_cut_out_as_its_recipe_reads_it(segship, salient, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene(3)).save(tmp_path / "turned.jpg", exif=exif, quality=98)
    outcome = segship("predict", salient, tmp_path / "turned.jpg", "-o", tmp_path / "out", "--output", "cutout")
    assert outcome.code == 0, outcome.err
    cut = pixels(tmp_path / "out" / "turned.png")
    upright = np.rot90(scene(3), -1) if "rembg" in salient.name else scene(3)
    assert cut.shape[:2] == upright.shape[:2]
    assert np.abs(cut[..., :3].astype(int) - upright).mean() < 3
    inside, truth = (cut[..., 3] > 127)[4:-4, 4:-4], is_object(upright)[4:-4, 4:-4]
    assert (inside & truth).sum() / (inside | truth).sum() > 0.8


def test_an_animation_is_its_first_frame_and_said(segship, salient, tmp_path):
    frames = [Image.fromarray(scene(k)) for k in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    outcome = segship("predict", salient, tmp_path / "moving.gif", "-o", tmp_path / "out", "--output", "cutout")
    assert outcome.code == 0
    assert f"note: {tmp_path / 'moving.gif'}: more than one frame; the first is used" in outcome.err
    with Image.open(tmp_path / "moving.gif") as first:
        shown = np.asarray(first.convert("RGB"))
    assert (pixels(tmp_path / "out" / "moving.png")[..., :3] == shown).all()


def test_heic_without_its_reader(segship, salient, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    good = write_scenes(tmp_path / "in", 1)[0]
    (tmp_path / "in" / "holiday.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    outcome = segship("predict", salient, tmp_path / "in", "-o", tmp_path / "out", "--output", "cutout")
    assert outcome.code == 1
    failures = [line for line in outcome.err.splitlines() if line.startswith("failed:")]
    assert len(failures) == 1
    assert "holiday.HEIC" in failures[0]
    assert "pip install 'segship[heic]'" in failures[0]
    assert "JPEG or PNG" in failures[0]
    assert (tmp_path / "out" / good.name).exists()


def test_heic_with_its_reader(segship, rembg, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.fromarray(scene(1))).save(tmp_path / "holiday.heic", quality=-1)
    outcome = segship("predict", rembg, tmp_path / "holiday.heic", "-o", tmp_path / "out", "--output", "cutout")
    assert outcome.code == 0, outcome.err
    assert np.abs(pixels(tmp_path / "out" / "holiday.png")[..., :3].astype(int) - scene(1)).mean() < 6
