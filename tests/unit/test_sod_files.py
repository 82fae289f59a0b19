"""`segship score sod`: two folders in, the field's numbers out; and what it says of files that cannot be scored."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from command_line import Call
from test_sod_datasets import paired, picture, write

from segship.errors import DatasetError, UsageError
from segship.measure.scoring import as_csv, score_sets
from segship.metrics import sod
from segship.metrics.files import score_files


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return paired(tmp_path / "set", "DUTS-TE-Image", "DUTS-TE-Mask")


@pytest.fixture
def maps(tmp_path: Path, truth: Path) -> Path:
    """Noisy copies of the masks."""
    for seed, path in enumerate(sorted((truth / "DUTS-TE-Mask").iterdir())):
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(int)
        noisy = (grey + np.random.default_rng(seed).integers(-60, 60, grey.shape)).clip(0, 255)
        write(tmp_path / "maps" / path.name, noisy.astype(np.uint8))
    return tmp_path / "maps"


def test_the_numbers_are_those_of_the_arrays(truth: Path, maps: Path) -> None:
    found = score_files("sod", truth, maps)
    expected = []
    for path in sorted(maps.iterdir()):
        pair = [cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in (path, truth / "DUTS-TE-Mask" / path.name)]
        expected.append(sod.score_arrays(path.stem, *pair))
    assert found.metrics == sod.summarise(expected)
    assert [score.id for score in found.scores] == ["ant", "bee.small", "cat"]
    assert "3 of 3 labels hold greys" in found.notes[0]
    bare = score_files("sod", truth / "DUTS-TE-Mask", maps)
    assert bare.metrics == found.metrics, "a folder of masks alone will do"


def test_text_names_each_number_and_each_photo(segship: Call, truth: Path, maps: Path) -> None:
    text = segship("score", "sod", truth, maps)[1]
    assert "maxF_pr" in text
    assert "MAE_255" in text
    assert any(line.startswith("bee.small") for line in text.splitlines())
    assert "3 cases" in text


def test_the_vendors_numbers_come_with_what_is_wrong_with_them(segship: Call, truth: Path, maps: Path) -> None:
    _, text, _ = segship("score", "sod", truth, maps, "--compat", "magicmind")
    assert "magicmind_maxf" in text
    assert "No F can be above 1" in text
    told = json.loads(segship("score", "sod", truth, maps, "--compat", "magicmind", "--json")[1])
    assert told["compat"]["magicmind_maxf"] > 1 >= told["metrics"]["maxF"]
    author = json.loads(segship("score", "sod", truth, maps, "--compat", "author", "--json")[1])
    assert author["compat"]["author_maxF"] == author["metrics"]["maxF_pr"]


def test_per_image_csv(segship: Call, truth: Path, maps: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "cases.csv"
    assert segship("score", "sod", truth, maps, "--per-image", out, "-q")[0] == 0
    rows = list(csv.DictReader(out.open()))
    found = score_files("sod", truth, maps)
    assert [row["case"] for row in rows] == ["ant", "bee.small", "cat"]
    assert float(rows[1]["wF"]) == pytest.approx(found.scores[1].values["wF"], abs=1e-6)


def test_several_folders_stand_side_by_side(segship: Call, truth: Path, maps: Path, tmp_path: Path) -> None:
    other = tmp_path / "rembg"
    for path in maps.iterdir():
        write(other / path.name, cv2.imread(str(truth / "DUTS-TE-Mask" / path.name), cv2.IMREAD_GRAYSCALE))
    _, text, _ = segship("score", "sod", truth / "DUTS-TE-Mask", maps, other)
    raw = next(part for part in text.split("\n\n") if part.startswith("MAE_raw "))
    assert raw.splitlines()[0].split() == ["MAE_raw", "maps", "rembg"]
    assert raw.splitlines()[2].split()[0] == "ant"
    assert raw.splitlines()[2].split()[2] == "0.0000"
    told = json.loads(segship("score", "sod", truth, maps, other, "--json")[1])
    assert set(told["sets"]) == {"maps", "rembg"}
    assert "predictions,case,MAE" in as_csv(score_sets("sod", truth, [maps, other]))
    twice = score_sets("sod", truth, [maps, maps])
    assert twice[0].name == str(maps), "one name for two folders would not tell them apart"


def test_maps_of_another_size_are_resized_and_that_is_said(truth: Path, maps: Path) -> None:
    small = cv2.resize(cv2.imread(str(maps / "ant.png"), cv2.IMREAD_GRAYSCALE), (15, 12))
    write(maps / "ant.png", small)
    notes = score_files("sod", truth, maps).notes
    assert any(
        "resized to the size of their label: 1 of 3 (first ant: 12×15 to 20×30 by pillow:bilinear)" in n for n in notes
    )
    assert score_files("sod", truth, maps, resize="pillow:lanczos").metrics["MAE"] != score_files("sod", truth, maps).metrics["MAE"]  # fmt: skip
    write(maps / "ant.png", picture(0, (30, 20)))
    with pytest.raises(DatasetError, match="ant: the map is 30×20, the label 20×30: one of them is turned"):
        score_files("sod", truth, maps)


def test_missing_and_unknown_predictions_are_named(truth: Path, maps: Path) -> None:
    (maps / "cat.png").rename(maps / "cow.png")
    with pytest.raises(DatasetError, match=r"predictions without ground truth: 1 \(cow\)"):
        score_files("sod", truth, maps)
    (maps / "cow.png").unlink()
    with pytest.raises(DatasetError, match=r"for 1 of 3 ground truth cases \(cat\)"):
        score_files("sod", truth, maps)
    assert score_files("sod", truth, maps, allow_missing=True).as_dict()["cases"] == 2


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (picture(3, (20, 30, 3)), "is in colour"),
        (picture(3).astype(np.uint16) * 256, "has 16 bits a pixel"),
        (np.eye(20, 30, dtype=np.uint8), "holds only 0 and 1"),
    ],
)
def test_predictions_of_another_kind_are_refused(truth: Path, maps: Path, array: np.ndarray, message: str) -> None:
    write(maps / "ant.png", array)
    with pytest.raises(DatasetError, match=message):
        score_files("sod", truth, maps)


def test_empty_folders_and_unknown_options(truth: Path, maps: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DatasetError, match="there are no predictions in"):
        score_files("sod", truth, empty)
    with pytest.raises(DatasetError, match="is empty; expected masks"):
        score_files("sod", empty, maps)
    with pytest.raises(UsageError, match="--resize takes one of"):
        score_files("sod", truth, maps, resize="bicubic")
    with pytest.raises(UsageError, match="'score sod' has no option --size; leave it out"):
        score_files("sod", truth, maps, size_hw=(96, 96))
    with pytest.raises(UsageError, match="'score dsb2018' has no option --compat"):
        score_files("dsb2018", truth, maps, compat="magicmind")


@pytest.mark.parametrize(
    ("change", "options", "code", "message"),
    [
        ("orphan", (), 1, "predictions without ground truth: 1 (cow); remove them from"),
        ("empty", (), 1, "there are no predictions in"),
        ("turned", (), 1, "one of them is turned by 90°"),
        ("colour", (), 1, "is in colour; store it as a grey PNG"),
        ("16-bit", (), 1, "has 16 bits a pixel; store it as an 8-bit grey PNG"),
        ("", ("--compat", "matlab"), 2, "--compat takes magicmind or author, not 'matlab'"),
        ("", ("--layout", "voc"), 2, "no layout is called 'voc'"),
    ],
)
def test_a_fault_is_one_line(
    segship: Call, truth: Path, maps: Path, change: str, options: tuple[str, ...], code: int, message: str
) -> None:
    arrays = {
        "turned": picture(0, (30, 20)),
        "colour": picture(3, (20, 30, 3)),
        "16-bit": picture(3).astype(np.uint16) * 9,
    }
    if change in arrays:
        write(maps / "ant.png", arrays[change])
    elif change == "orphan":
        write(maps / "cow.png", picture(0))
    elif change == "empty":
        for path in maps.iterdir():
            path.unlink()
    found, _, said = segship("score", "sod", truth, maps, *options)
    assert found == code
    assert message in said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("error:")]) == 1
