"""`segship predict` as people use it: folders and patterns, every kind of file, resume, parts, all the outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from made_pictures import picture, write_pictures
from PIL import Image

import segship as library


def iou(mask, truth):
    """Away from the border, where this package's zero padding is brighter than the picture."""
    inner = (slice(4, -4), slice(4, -4))
    return (mask & truth)[inner].sum() / (mask | truth)[inner].sum()


def test_folders_files_and_patterns_keep_their_order(segship, package, tmp_path):
    write_pictures(tmp_path / "a", 2)
    write_pictures(tmp_path / "b", 2, first=10)
    outcome = segship(
        "predict", package, tmp_path / "a", tmp_path / "b" / "cell_01*.png", "-i", write_pictures(tmp_path / "c", 1, 50)[0],
        "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert outcome.code == 0
    assert json.loads(outcome.out)["done"] == 5
    names = sorted(path.stem for path in (tmp_path / "out").glob("*.png"))
    assert names == ["cell_000", "cell_001", "cell_010", "cell_011", "cell_050"]


def test_masks_lie_on_the_input_s_own_grid(segship, package, tmp_path):
    sizes = [(64, 64), (31, 200), (1, 1), (257, 130)]
    (tmp_path / "in").mkdir()
    for number, (height, width) in enumerate(sizes):
        image = cv2.resize(picture(number), (width, height), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), image)
    assert segship("predict", package, tmp_path / "in", "-o", tmp_path / "out").code == 0
    for number, size in enumerate(sizes):
        mask = cv2.imread(str(tmp_path / "out" / f"{number}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == size
        assert set(np.unique(mask)) <= {0, 255}


def test_bright_is_found_and_dark_is_not(package):
    image = picture(3)
    with library.load(package) as model:
        mask = model(image).labels > 0
    assert iou(mask, image[..., 0] > 100) > 0.75


@pytest.mark.parametrize("kind", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16", "CMYK"])
def test_every_kind_of_picture(segship, package, tmp_path, kind):
    grey = Image.fromarray(picture(5)[..., 0])
    suffix = ".jpg" if kind == "CMYK" else ".png"
    path = tmp_path / "in" / f"x{suffix}"
    path.parent.mkdir()
    if kind == "I;16":
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path)
    else:
        grey.convert("RGB" if kind == "CMYK" else "L").convert(kind).save(path)
    outcome = segship("predict", package, path, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    mask = cv2.imread(str(tmp_path / "out" / "x.png"), cv2.IMREAD_UNCHANGED) > 0
    assert iou(mask, np.asarray(grey) > 100) > 0.7


def test_tiff_and_rotated_jpeg(segship, package, tmp_path):
    upright = Image.fromarray(picture(6))
    (tmp_path / "in").mkdir()
    upright.save(tmp_path / "in" / "a.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "in" / "b.jpg", exif=exif, quality=95)
    assert segship("predict", package, tmp_path / "in", "-o", tmp_path / "out").code == 0
    assert cv2.imread(str(tmp_path / "out" / "a.png"), 0).shape == (70, 90)
    assert cv2.imread(str(tmp_path / "out" / "b.png"), 0).shape == (90, 70)


def test_all_outputs(segship, package, tmp_path):
    inputs = write_pictures(tmp_path / "in", 2)
    outcome = segship(
        "predict", package, *inputs, "-o", tmp_path / "out", "--save-probabilities", "--overlay", "--instances",
        "--save-stages", tmp_path / "stages", "--raw",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "out" / "overlays" / "cell_000.png").exists()
    assert (tmp_path / "out" / "instances" / "cell_000.png").exists()
    with np.load(next((tmp_path / "out" / "probabilities").glob("cell_000*"))) as arrays:
        probabilities = arrays[arrays.files[0]]
    assert probabilities.dtype == np.float32
    mask = cv2.imread(str(tmp_path / "out" / "cell_000.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask > 0, probabilities.reshape(mask.shape) > 0.5)
    # the vendor's files: float32 without a header
    assert (tmp_path / "stages" / "cell_000.bin").stat().st_size == 3 * 64 * 64 * 4
    logits = np.fromfile(tmp_path / "stages" / "cell_000_0.bin", np.float32)
    assert logits.size == 64 * 64


def test_resume_skips_what_is_done_and_overwrite_does_not(segship, package, tmp_path):
    write_pictures(tmp_path / "in", 3)
    first = json.loads(segship("predict", package, tmp_path / "in", "-o", tmp_path / "out", "--json").out)
    again = json.loads(segship("predict", package, tmp_path / "in", "-o", tmp_path / "out", "--json").out)
    other = json.loads(
        segship("predict", package, tmp_path / "in", "-o", tmp_path / "out", "--precision", "int8", "--json").out
    )
    over = json.loads(segship("predict", package, tmp_path / "in", "-o", tmp_path / "out", "--overwrite", "--json").out)
    assert (first["done"], first["skipped"]) == (3, 0)
    assert (again["done"], again["skipped"]) == (0, 3)
    assert (other["done"], other["skipped"]) == (3, 0)
    assert (over["done"], over["skipped"]) == (3, 0)


def test_parts_divide_the_work(segship, package, tmp_path):
    write_pictures(tmp_path / "in", 5)
    for part in (0, 1):
        outcome = segship(
            "predict", package, tmp_path / "in", "-o", tmp_path / "out", "--num-parts", 2, "--part-id", part, "--json"
        )
        assert json.loads(outcome.out)["done"] == (3, 2)[part]
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


def test_batches_and_streams_give_the_same_masks(segship, package, tmp_path):
    write_pictures(tmp_path / "in", 7)
    results = []
    for batch, streams in [(1, 1), (4, 1), (4, 2)]:
        out = tmp_path / f"out{batch}{streams}"
        assert segship("predict", package, tmp_path / "in", "-o", out, "--batch", batch, "--streams", streams).code == 0
        results.append([path.read_bytes() for path in sorted(out.glob("*.png"))])
    assert results[0] == results[1] == results[2]
    assert len(results[0]) == 7


def test_python_takes_paths_bytes_pictures_and_arrays(package, tmp_path):
    path = write_pictures(tmp_path / "in", 1)[0]
    rgb = np.asarray(Image.open(path))
    with library.load(package) as model:
        want = model(str(path)).labels
        for source in (path, path.read_bytes(), Image.open(path), rgb):
            np.testing.assert_array_equal(model(source).labels, want)
        stages = model.trace(path)
        assert list(stages) == ["read", "preprocessed", "network", "decoded"]
        np.testing.assert_array_equal(model.network(stages["preprocessed"][None])[0], stages["network"])
        results = list(model.stream([path, tmp_path / "none.png", path], batch=2))
    np.testing.assert_array_equal(results[0].labels, want)
    assert "none.png" in str(results[1])
    np.testing.assert_array_equal(results[2].labels, want)


def test_results_are_inputs_where_they_are_named(segship, package, tmp_path):
    write_pictures(tmp_path / "in", 2)
    out = tmp_path / "out"
    assert segship("predict", package, tmp_path / "in", "-o", out).code == 0
    again = segship("predict", package, *sorted(out.glob("*.png")), "-o", out, "--format", "npz", "--json")
    assert json.loads(again.out)["done"] == 2
    for found in (out, out / "*.png"):
        outcome = segship("predict", package, found, "-o", out, "--format", "npz")
        assert outcome.code == 2
        assert f"all inputs are results of an earlier run into {out}; choose another folder with -o" in outcome.err


def test_a_folder_whose_name_is_no_utf_8(package, tmp_path):
    folder, out = (os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/in\xe9", b"/out\xe9"))
    write_pictures(tmp_path / "plain", 1)
    try:
        (tmp_path / "plain").rename(folder)
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")
    for flags, shown in (([], "1 done"), (["--json"], '"skipped": 1')):
        done = subprocess.run(
            [sys.executable, "-m", "segship", "predict", package, folder, "-o", out, *flags],
            env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout
