"""What stands in an output folder from earlier runs: what counts as done, what is no input, and odd file names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from nnunet_data import raw_data
from PIL import Image as Pil
from stub_engine import install, open_stub
from tiny_volume import volume_package

from segship.errors import OutputError, UsageError
from segship.inference import batch, volume_batch
from segship.inference.batch import predict_files
from segship.inference.images import find_inputs
from segship.inference.journal import JOURNAL, read_journal
from segship.inference.outputs import PredictOptions
from segship.inference.predictor import Predictor
from segship.inference.volume_batch import CaseOptions, predict_cases
from segship.inference.volume_predictor import VolumePredictor

ODD_NAMES = ("caf\N{LATIN SMALL LETTER E WITH ACUTE}.png", os.fsdecode(b"caf\xe9.png"), "a\u2028b.png", "c\x85d.png")
"""UTF-8, no UTF-8, and ends of lines to Python but not to JSON"""


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Predictor]:
    install(monkeypatch, lambda x: [x[:, :1] * 1000])
    with open_stub(tmp_path / "net.segship") as model:
        yield model


def write_picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pil.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def counts(model: Predictor, inputs: list[Path], out: Path, **options: Any) -> tuple[int, int]:
    summary = predict_files(model, inputs, out, PredictOptions(**options))
    assert summary.failed == ()
    return summary.done, summary.skipped


# ------------------------------------------------------------------------------------- results as inputs


def test_results_of_every_earlier_run_are_no_inputs(model: Predictor, tmp_path: Path) -> None:
    """Overlays of the first run too, of which the last lines do not tell."""
    folder = tmp_path / "in"
    for seed, name in enumerate(("a.png", "b.png")):
        write_picture(folder / name, seed)
    found = [
        counts(model, find_inputs([folder]), folder / "masks", overlay=overlay) for overlay in (True, False, False)
    ]
    assert found == [(2, 0), (2, 0), (0, 2)]


def test_results_named_outright_are_inputs(model: Predictor, tmp_path: Path) -> None:
    picture, out = write_picture(tmp_path / "in" / "a.png"), tmp_path / "out"
    assert counts(model, [picture], out, overlay=True) == (1, 0)
    for inputs in ([out / "a.png"], find_inputs([out])):
        with pytest.raises(UsageError, match=r"all inputs are results of an earlier run into .*out; choose another"):
            predict_files(model, inputs, out)
    assert (
        predict_files(model, [out / "a.png"], out, PredictOptions(format="npz"), named=[str(out / "a.png")]).done == 1
    )
    assert (out / "a.npz").is_file()
    overlay = out / "overlays" / "a.png"
    for folder, options in ((out / "overlays", PredictOptions()), (out, PredictOptions(overlay=True))):
        with pytest.raises(UsageError, match="would overwrite the input"):
            predict_files(model, [overlay], folder, options, named=[overlay])


# ------------------------------------------------------------------------------------------ what is done


def test_a_result_that_another_input_overwrote_is_not_done(model: Predictor, tmp_path: Path) -> None:
    first, second = (write_picture(tmp_path / name / "a.png", seed) for seed, name in enumerate("xy"))
    out = tmp_path / "out"
    for path, expected in ((first, (1, 0)), (second, (1, 0)), (first, (1, 0)), (first, (0, 1)), (second, (1, 0))):
        assert counts(model, [path], out) == expected
        mask = cv2.imread(str(out / "a.png"), cv2.IMREAD_UNCHANGED)
        assert (mask == model(path).masks[0] * 255).all()


@pytest.mark.parametrize("other", ["the same input", "another input"])
def test_a_run_that_ends_between_a_file_and_its_line(
    model: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    first, second = (write_picture(tmp_path / name / "a.png", seed) for seed, name in enumerate("xy"))
    away, out = write_picture(tmp_path / "x" / "b.png", 5), tmp_path / "out"
    assert counts(model, [first, away], out) == (2, 0)
    written = batch.write_case

    def full(*arguments: Any) -> None:
        written(*arguments)
        raise OutputError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(batch, "write_case", full)
        with pytest.raises(OutputError, match="No space"):
            predict_files(model, [first if other == "the same input" else second], out, PredictOptions(grid="network"))
    assert cv2.imread(str(out / "a.png"), cv2.IMREAD_UNCHANGED).shape == (32, 32)
    assert counts(model, [first, away], out) == (1, 1)
    assert cv2.imread(str(out / "a.png"), cv2.IMREAD_UNCHANGED).shape == (20, 30)
    assert counts(model, [first, away], out) == (0, 2)


def test_files_beside_the_mask_are_noted_before_they_are_replaced(model: Predictor, tmp_path: Path) -> None:
    picture, out, stages = write_picture(tmp_path / "in" / "a.png"), tmp_path / "out", tmp_path / "stages"
    every = {"overlay": True, "instances": True, "probabilities": "png", "stages": stages}
    counts(model, [picture], out, **every)
    counts(model, [picture], out, format="npz", **every)
    lines = [json.loads(line) for line in (out / JOURNAL).read_text().split("\n")[:-1]]
    beside = ["instances/a.png", "overlays/a.png", "probabilities/a.png", "../stages/a.npz"]
    assert [line["made_by"] == "" for line in lines] == [False, True, False]
    assert sorted(lines[0]["outputs"]) == sorted(["a.png", *beside])
    assert sorted(lines[1]["outputs"]) == sorted(beside)
    assert sorted(lines[2]["outputs"]) == sorted(["a.npz", *beside])


def test_volumes_of_one_name_and_a_run_that_ended_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "xy":
        raw_data(tmp_path / name, ["liver_1"])
    first, second = (tmp_path / name / "imagesTr" for name in "xy")
    out = tmp_path / "out"
    written = volume_batch.write_case

    def full(*arguments: Any, **options: Any) -> None:
        written(*arguments, **options)
        raise OutputError("No space left on device")

    with Predictor.open(volume_package(tmp_path / "net.segship")) as opened:
        assert isinstance(opened, VolumePredictor)

        def skipped(folder: Path) -> int:
            return predict_cases(opened, [folder], out).skipped

        assert [skipped(folder) for folder in (first, first, second, first, first)] == [0, 1, 0, 0, 1]
        with monkeypatch.context() as patch:
            patch.setattr(volume_batch, "write_case", full)
            with pytest.raises(OutputError, match="No space"):
                predict_cases(opened, [first], out, CaseOptions(preview=True))
        assert [skipped(first), skipped(first)] == [0, 1]


# ------------------------------------------------------------------------------------------- odd file names


def write_odd(folder: Path) -> list[Path]:
    try:
        return [write_picture(folder / name, seed) for seed, name in enumerate(ODD_NAMES)]
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")


def test_names_that_are_no_utf_8_or_hold_ends_of_lines(model: Predictor, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "in" / "masks"
    inputs = write_odd(folder)
    assert counts(model, inputs, out) == (4, 0)
    assert counts(model, find_inputs([folder]), out) == (0, 4)
    lines = (out / JOURNAL).read_bytes().decode("ascii").splitlines()
    assert {json.loads(line)["input"] for line in lines} == {str(path) for path in inputs}
    assert sum("caf\\udce9.png" in line for line in lines) == 1
    inputs[1].write_bytes(b"broken")
    summary = predict_files(model, inputs, out)
    assert [name for name, _ in summary.failed] == [str(inputs[1])]
    record = json.loads((out / "segship-run.json").read_text(encoding="utf-8"))
    assert record["result"]["failed"][0]["input"] == str(inputs[1])


def test_journals_that_were_not_ascii_are_read(model: Predictor, tmp_path: Path) -> None:
    inputs, out = [path for path in write_odd(tmp_path / "in") if "caf" not in path.name], tmp_path / "out"
    counts(model, inputs, out)
    lines = [json.loads(line) for line in (out / JOURNAL).read_text().split("\n")[:-1]]
    raw = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out / JOURNAL).write_bytes(raw.encode())
    assert "\u2028" in raw
    assert counts(model, inputs, out) == (0, 2)


DAMAGED = [
    '{"input": "a", "size": 1e999, "mtime_ns": 1, "made_by": "", "outputs": []}',
    '{"input": "a", "size": 1, "mtime_ns": 1, "made_by": "", "outputs": ["a\\u0000b"]}',
    '{"input": "a", "size": 1, "mtime_ns": 1, "made_by": "", "outputs": ["a\\ud800"]}',
    '{"input": "a", "size": 1, "mtime_ns": 1, "made_by": "", "outputs": 3}',
    "[" * 100_000,
]


def test_lines_that_no_run_wrote_count_as_not_written(tmp_path: Path) -> None:
    good = '{"input": "caf\\udce9", "size": 1, "mtime_ns": 2, "made_by": "x", "outputs": ["caf\\udce9.png"]}'
    (tmp_path / JOURNAL).write_text("\n".join([*DAMAGED, good]) + "\n")
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / f"{name}.png").touch()
    journal = read_journal(tmp_path)
    assert list(journal.entries) == [name]
    assert journal.is_done(name, 1, 2, "x")
    assert not journal.is_done(name, 1, 2, "")
    assert read_journal(tmp_path / "none").owners == {}
