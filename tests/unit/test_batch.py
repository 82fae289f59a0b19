"""Folders of files: names, resume, failures, interruption, and every kind of output."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from packages import manifest_data
from PIL import Image as Pil
from stub_engine import StubSession, first_channel, install, open_stub

from segship.errors import OutputError, UsageError
from segship.inference.batch import JOURNAL, PredictSummary, predict_files
from segship.inference.images import find_inputs
from segship.inference.outputs import OutputOptions, PredictOptions, output_names
from segship.inference.prediction import CONSTANT
from segship.inference.predictor import Predictor


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[StubSession]:
    return install(monkeypatch, lambda x: [x[:, :1] * 1000])


@pytest.fixture
def model(opened: list[StubSession], tmp_path: Path) -> Any:
    with open_stub(tmp_path / "net.segship") as model:
        yield model


def write_inputs(folder: Path, *names: str) -> list[Path]:
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Pil.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return [folder / name for name in names]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def runs(opened: list[StubSession]) -> int:
    return sum(shape[0] for session in opened for shape in session.shapes)


RECORDS = [JOURNAL, "segship-run.json"]


# ------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["in/a.png", "in/b.jpg"], ["a", "b"]),
        (["in/x/a.png", "in/y/b.png"], ["a", "b"]),
        (["in/x/a.png", "in/y/a.png", "in/y/b.png"], ["x/a", "y/a", "y/b"]),
        (["in/a.png", "in/a.jpg", "in/b.png"], ["a_png", "a_jpg", "b"]),
        (["in/a.png", "in/A.png"], ["a_png", "A_png"]),
        (["in/a.v1.png", "in/a.v2.png"], ["a.v1", "a.v2"]),
        ([], []),
    ],
)
def test_names(inputs: list[str], names: list[str]) -> None:
    if names == ["a_png", "A_png"]:
        with pytest.raises(UsageError, match="same name"):
            output_names([Path(name) for name in inputs])
        return
    assert output_names([Path(name) for name in inputs]) == names


def test_a_folder_becomes_masks(model: Predictor, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", "a.png", "sub/b.jpg", "sub/c.tif")
    out = tmp_path / "out"
    summary = predict_files(model, inputs, out, PredictOptions(batch=2))
    assert (summary.done, summary.skipped, summary.failed) == (3, 0, ())
    assert files(out) == sorted(["a.png", "b.png", "c.png", *RECORDS])
    for path in inputs:
        expected = model(path).masks[0] * 255
        assert (cv2.imread(str(out / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED) == expected).all()


def test_names_that_collide_keep_their_folders(model: Predictor, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", "x/a.png", "y/a.png")
    predict_files(model, inputs, tmp_path / "out")
    assert files(tmp_path / "out") == sorted(["x/a.png", "y/a.png", *RECORDS])


def test_inputs_are_never_overwritten(model: Predictor, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", "a.png", "b.jpg")
    before = inputs[0].read_bytes()
    with pytest.raises(UsageError, match="would overwrite the input"):
        predict_files(model, inputs, tmp_path / "in")
    with pytest.raises(UsageError, match="would overwrite the input"):
        predict_files(model, [inputs[1], inputs[0]], tmp_path / "in" / ".." / "in")
    assert inputs[0].read_bytes() == before
    predict_files(model, inputs[1:], tmp_path / "in")
    assert "b.png" in files(tmp_path / "in")


def test_results_below_the_input_folder_are_not_taken_as_inputs(model: Predictor, tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", "a.png", "b.png")
    out = tmp_path / "in" / "masks"
    assert predict_files(model, find_inputs([tmp_path / "in"]), out).done == 2
    again = predict_files(model, find_inputs([tmp_path / "in"]), out)
    assert (again.done, again.skipped, again.failed) == (0, 2, ())


# ------------------------------------------------------------------------------------------------ resume


def test_what_is_done_is_skipped(model: Predictor, opened: list[StubSession], tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", "a.png", "b.png", "c.png")
    out = tmp_path / "out"
    predict_files(model, inputs, out)
    before = runs(opened)

    def again(**options: Any) -> tuple[int, int]:
        summary = predict_files(model, inputs, out, PredictOptions(**options))
        return summary.done, summary.skipped

    assert again() == (0, 3)
    assert runs(opened) == before
    assert again(batch=2) == (0, 3)  # the batch size changes nothing in the files
    (out / "b.png").unlink()
    assert again() == (1, 2)
    os.utime(inputs[0], ns=(1, 1))
    assert again() == (1, 2)
    write_inputs(tmp_path / "in", "a.png")
    assert again() == (1, 2)
    assert again(grid="network") == (3, 0)
    assert again() == (3, 0)
    assert again(resume=False) == (3, 0)


def test_another_package_does_not_skip(model: Predictor, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", "a.png")
    predict_files(model, inputs, tmp_path / "out")
    with open_stub(tmp_path / "other.segship", changes={"description": "other"}) as other:
        assert predict_files(other, inputs, tmp_path / "out").done == 1


def test_a_journal_that_was_cut_off_or_damaged_is_no_error(model: Predictor, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", "a.png", "b.png")
    out = tmp_path / "out"
    predict_files(model, inputs, out)
    journal = out / JOURNAL
    first, second = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first + b'{"input": 3}\n[]\nnot json\n' + second[: len(second) // 2])
    summary = predict_files(model, inputs, out)
    assert (summary.done, summary.skipped) == (1, 1)
    assert predict_files(model, inputs, out).skipped == 2


def test_parts_share_the_work(model: Predictor, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", *(f"{k}.png" for k in range(7)))
    out = tmp_path / "out"
    done = [predict_files(model, inputs, out, PredictOptions(num_parts=3, part_id=k)).done for k in range(3)]
    assert done == [3, 2, 2]
    records = [f"segship-run-{k}-of-3.json" for k in range(3)]
    assert files(out) == sorted([*(f"{k}.png" for k in range(7)), JOURNAL, *records])
    assert predict_files(model, inputs, out).skipped == 7


# ----------------------------------------------------------------------------------------------- failures


def test_a_broken_file_is_listed_and_the_others_go_on(model: Predictor, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", "a.png", "b.png", "c.png")
    inputs[1].write_bytes(inputs[1].read_bytes()[:200])
    missing = tmp_path / "in" / "missing.png"
    seen: list[tuple[int, int, str]] = []
    summary = predict_files(
        model, [*inputs, missing], tmp_path / "out", progress=lambda done, total, text: seen.append((done, total, text))
    )
    assert summary.done == 2
    assert [name for name, _ in summary.failed] == [str(inputs[1]), str(missing)]
    assert "cut short" in summary.failed[0][1]
    assert files(tmp_path / "out") == sorted(["a.png", "c.png", *RECORDS])
    assert seen == [(0, 4, ""), (1, 4, "a.png"), (2, 4, "b.png"), (3, 4, "c.png"), (4, 4, "missing.png")]
    record = json.loads((tmp_path / "out" / "segship-run.json").read_text())
    assert record["result"]["failed"][0]["input"] == str(inputs[1])
    again = predict_files(model, inputs, tmp_path / "out")
    assert (again.skipped, len(again.failed)) == (2, 1)


def test_an_interruption_keeps_what_is_done(model: Predictor, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", *(f"{k:02}.png" for k in range(40)))
    out = tmp_path / "out"

    def progress(done: int, total: int, text: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(model, inputs, out, progress=progress)
    written = [name for name in files(out) if name.endswith(".png")]
    assert 5 <= len(written) < 40
    assert not [name for name in files(out) if name.endswith((".tmp", ".part"))]
    for name in written:
        assert cv2.imread(str(out / name), cv2.IMREAD_UNCHANGED).shape == (20, 30)
    record = json.loads((out / "segship-run.json").read_text())
    assert record["result"]["interrupted"] is True
    summary = predict_files(model, inputs, out)
    assert summary.skipped == len(written)
    assert summary.done == 40 - len(written)
    assert json.loads((out / "segship-run.json").read_text())["result"]["interrupted"] is False


def test_a_place_that_cannot_be_written_ends_the_run(
    model: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = write_inputs(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(OutputError, match="choose another"):
            predict_files(model, inputs, place)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        predict_files(model, inputs, tmp_path / "out")
    assert files(tmp_path / "out") == [JOURNAL]


def test_nothing_to_do(model: Predictor, tmp_path: Path) -> None:
    summary = predict_files(model, [], tmp_path / "out")
    assert (summary.done, summary.images_per_second) == (0, None)
    assert files(tmp_path / "out") == sorted(RECORDS)


# ------------------------------------------------------------------------------------------------ outputs


def outputs(model: Predictor, tmp_path: Path, **options: Any) -> tuple[list[str], Path]:
    inputs = write_inputs(tmp_path / "in", "a.png")
    out = tmp_path / "out"
    summary = predict_files(model, inputs, out, PredictOptions(**options))
    assert summary.failed == ()
    return [name for name in files(out) if name not in RECORDS], out


def test_everything_beside_the_mask(model: Predictor, tmp_path: Path) -> None:
    names, out = outputs(model, tmp_path, probabilities="npz", overlay=True, instances=True)
    assert names == ["a.png", "instances/a.png", "overlays/a.png", "probabilities/a.npz"]
    found = model(tmp_path / "in/a.png")
    with np.load(out / "probabilities/a.npz") as arrays:
        assert (arrays["probabilities"] == found.probabilities).all()
    assert cv2.imread(str(out / "instances/a.png"), cv2.IMREAD_UNCHANGED).max() == found.instances().max()
    assert (cv2.imread(str(out / "overlays/a.png"))[..., ::-1] == found.overlay()).all()


def test_probabilities_to_look_at(model: Predictor, tmp_path: Path) -> None:
    names, out = outputs(model, tmp_path, probabilities="png")
    assert names == ["a.png", "probabilities/a.png"]
    expected = np.rint(model(tmp_path / "in/a.png").probabilities[0] * 255)
    assert (cv2.imread(str(out / "probabilities/a.png"), cv2.IMREAD_UNCHANGED) == expected).all()


def test_npz_and_palette(model: Predictor, tmp_path: Path) -> None:
    names, out = outputs(model, tmp_path, format="npz", probabilities="npz")
    assert names == ["a.npz"]
    with np.load(out / "a.npz") as arrays:
        assert "probabilities" in arrays
    outputs(model, tmp_path, palette=True)
    with Pil.open(out / "a.png") as picture:
        assert picture.mode == "P"


def test_network_grid(model: Predictor, tmp_path: Path) -> None:
    _, out = outputs(model, tmp_path, grid="network")
    assert cv2.imread(str(out / "a.png"), cv2.IMREAD_UNCHANGED).shape == (32, 32)


def test_upstreams_jpeg_files(model: Predictor, tmp_path: Path) -> None:
    """``<class>/<id>.jpg`` at network size: sigmoid x 255 truncated (4uiiurz1/pytorch-nested-unet, val.py)."""
    names, out = outputs(model, tmp_path, format="jpeg")
    assert names == ["0/a.jpg"]
    probability = model(tmp_path / "in/a.png", grid="network").probabilities[0]
    expected = cv2.imencode(".jpg", (probability * 255).astype(np.uint8))[1].tobytes()
    assert (out / "0/a.jpg").read_bytes() == expected


def test_stages_as_arrays_and_as_the_vendors_files(model: Predictor, tmp_path: Path) -> None:
    outputs(model, tmp_path, stages=tmp_path / "stages")
    expected = model.trace(tmp_path / "in/a.png")
    with np.load(tmp_path / "stages/a.npz") as arrays:
        assert sorted(arrays) == sorted(expected)
        assert all((arrays[key] == expected[key]).all() for key in expected)
    outputs(model, tmp_path, stages=tmp_path / "raw", raw=True)
    assert files(tmp_path / "raw") == ["a.bin", "a_0.bin"]
    assert (tmp_path / "raw/a.bin").stat().st_size == 4 * 3 * 32 * 32
    assert (tmp_path / "raw/a.bin").read_bytes() == expected["preprocessed"].tobytes()
    assert (tmp_path / "raw/a_0.bin").read_bytes() == expected["network"].tobytes()


def test_several_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda x: [x[:, :2] * 1000])
    network = manifest_data()["network"] | {"outputs": [{"name": "y", "channels": 2, "values": "logits"}]}
    labels = [{"id": k, "name": f"class {k}", "color": [k, k, k]} for k in (1, 2)]
    with open_stub(tmp_path / "net", changes={"network": network, "labels": labels}) as model:
        names, _ = outputs(model, tmp_path, instances=True, probabilities="png")
    kinds = ("", "instances/", "probabilities/")
    assert names == sorted(f"{kind}{k}/a.png" for kind in kinds for k in (0, 1))


def test_many_instances_do_not_fit_a_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, first_channel)
    size = {"network": manifest_data()["network"] | {"size": None, "size_multiple": [1, 1]}}
    steps = {"preprocess": [{"step": "normalize", "subtract": [100, 0, 0], "multiply": [1, 1, 1]}]}
    board = np.zeros((600, 600, 3), np.uint8)
    board[::2, ::2] = 255
    (tmp_path / "in").mkdir()
    Pil.fromarray(board).save(tmp_path / "in/a.png")
    with open_stub(tmp_path / "net", changes=size | steps) as model:
        predict_files(model, [tmp_path / "in/a.png"], tmp_path / "out", PredictOptions(instances=True))
    with np.load(tmp_path / "out/instances/a.npz") as arrays:
        assert arrays["instances"].max() == 300 * 300


# ----------------------------------------------------------------------------------- options and the record


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": "world"}, "grid is one of input, network"),
        ({"format": "gif"}, "format is one of png, npz, jpeg"),
        ({"probabilities": "yes"}, "probabilities is one of"),
        ({"num_parts": 2, "part_id": 2}, "counts from 0"),
        ({"num_parts": 0}, "counts from 0"),
        ({"batch": 0}, "batch is at least 1"),
        ({"raw": True}, "--save-stages"),
        ({"palette": True, "format": "npz"}, "palette"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PredictOptions(**options)


def test_the_record_says_what_ran(model: Predictor, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", "a.png")
    summary = predict_files(model, inputs, tmp_path / "out", PredictOptions(overlay=True))
    assert isinstance(summary, PredictSummary)
    assert summary.record == tmp_path / "out" / "segship-run.json"
    assert summary.images_per_second is not None
    record = json.loads(summary.record.read_text())
    assert record["package"]["sha256"] == model.package.sha256
    assert record["precision"] == {"name": "fp32", "why": "asked for", "executed": None}
    assert record["engine"]["name"] == "stub"
    assert record["options"]["overlay"] is True
    assert record["versions"]["segship"]
    assert record["result"] == summary.as_dict()


# ----------------------------------------------------------------------------------- cutouts and composites


@pytest.fixture
def salient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A package that gives a map: the first channel as it is."""
    install(monkeypatch, first_channel)
    data = manifest_data()
    decision = {"rule": "saliency", "min_max": True, "polarity": "as-is", "to_uint8": "truncate"}
    decode = data["decode"] | {"activation": "none", "decision": decision, "restore_what": "decision"}
    with open_stub(tmp_path / "salient.segship", changes={"decode": decode}) as model:
        yield model


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]


@pytest.mark.parametrize("kind", ["mask", "cutout", "composite", "overlay"])
def test_files_are_the_bytes_that_encode_gives(salient: Predictor, model: Predictor, tmp_path: Path, kind: Any) -> None:
    inputs = write_inputs(tmp_path / "in", "a.png", "b.jpg", "c.tif")
    for package in (salient, model):
        options = OutputOptions(kind=kind, background="#102030", clean_mask=True)
        out = tmp_path / package.manifest.decode.decision.rule
        predict_files(package, inputs, out, PredictOptions(output=options, batch=2))
        for path in inputs:
            assert (out / f"{path.stem}.png").read_bytes() == package(path.read_bytes()).encode(kind, options)


def test_resume_knows_the_kind_and_its_background(salient: Predictor, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", "a.png", "b.png")
    below = write_inputs(tmp_path / "below", "x.png")[0]
    out = tmp_path / "out"

    def done(**options: Any) -> int:
        return predict_files(salient, inputs, out, PredictOptions(output=OutputOptions(**options))).done

    composite = {"kind": "composite", "background": str(below)}
    for options in ({}, {"kind": "cutout"}, {"kind": "composite"}, composite, {"threshold": 0.4}, {"clean_mask": True}):
        assert done(**options) == 2
        assert done(**options) == 0
    assert done(**composite) == 2
    Pil.fromarray(np.zeros((4, 4, 3), np.uint8)).save(below)
    assert done(**composite) == 2


def test_pictures_beyond_the_budget_are_read_twice(
    salient: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = write_inputs(tmp_path / "in", *(f"{k}.png" for k in range(6)))
    read = []
    original = Predictor.read

    def counted(self: Predictor, source: Any, name: str | None = None) -> Any:
        read.append(source)
        return original(self, source, name)

    monkeypatch.setattr(Predictor, "read", counted)
    files_of = {}
    for budget, expected in ((1 << 20, 6), (0, 12), (20 * 30 * 3, None)):
        monkeypatch.setattr("segship.inference.batch.KEPT_BYTES", budget)
        read.clear()
        out = tmp_path / f"out{budget}"
        options = PredictOptions(output=OutputOptions(kind="cutout"), batch=2)
        assert predict_files(salient, inputs, out, options).failed == ()
        assert len(read) == expected if expected else 6 <= len(read) <= 12
        files_of[budget] = [(out / f"{path.stem}.png").read_bytes() for path in inputs]
    assert files_of[0] == files_of[1 << 20] == files_of[20 * 30 * 3]


def test_notes_reach_the_journal_and_the_summary(salient: Predictor, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", "a.png")
    frames = [Pil.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    gif = tmp_path / "in" / "b.gif"
    frames[0].save(gif, save_all=True, append_images=frames[1:])
    summary = predict_files(salient, [*inputs, gif], tmp_path / "out")
    said = [note for _, note in summary.notes]
    assert said == ["more than one frame; the first is used", CONSTANT]
    assert {name for name, _ in summary.notes} == {str(gif)}
    by_input = {Path(entry["input"]).name: entry for entry in journal(tmp_path / "out")}
    assert by_input["a.png"]["notes"] == []
    assert by_input["a.png"]["constant_output"] is False
    assert by_input["b.gif"]["notes"] == said
    assert by_input["b.gif"]["constant_output"] is True
    record = json.loads((tmp_path / "out" / "segship-run.json").read_text())
    assert [entry["note"] for entry in record["result"]["notes"]] == said
    assert record["options"]["output"] == {"kind": "mask"}


def test_extras_follow_the_same_decision(salient: Predictor, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", "a.png")
    options = PredictOptions(
        output=OutputOptions(kind="cutout", threshold=0.5, clean_mask=True), instances=True, overlay=True
    )
    predict_files(salient, inputs, tmp_path / "out", options)
    alpha = cv2.imread(str(tmp_path / "out/a.png"), cv2.IMREAD_UNCHANGED)[..., 3]
    numbered = cv2.imread(str(tmp_path / "out/instances/a.png"), cv2.IMREAD_UNCHANGED)
    assert ((numbered > 0) == (alpha > 0)).all()
    assert (tmp_path / "out/overlays/a.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instances": True}, "--threshold"),
        ({"palette": True}, "--threshold"),
        ({"output": {"kind": "composite", "background": "nocolour"}}, "background"),
    ],
)
def test_what_would_fail_on_every_picture_is_said_once(
    salient: Predictor, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    inputs = write_inputs(tmp_path / "in", "a.png")
    if "output" in options:
        options = {"output": OutputOptions(**options["output"])}
    with pytest.raises(UsageError, match=message):
        predict_files(salient, inputs, tmp_path / "out", PredictOptions(**options))
    assert not (tmp_path / "out").exists()


def test_forms_of_masks_do_not_go_with_cutouts() -> None:
    cutout = OutputOptions(kind="cutout")
    for options in ({"format": "npz"}, {"palette": True}, {"format": "jpeg"}, {"grid": "network"}):
        with pytest.raises(UsageError, match=r"leave (it )?out"):
            PredictOptions(output=cutout, **options)
    with pytest.raises(UsageError, match="rgb masks"):
        PredictOptions(output=OutputOptions(rgb_mask=True), palette=True)


def test_rgb_masks_of_several_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda x: [x[:, :2] * 1000])
    network = manifest_data()["network"] | {"outputs": [{"name": "y", "channels": 2, "values": "logits"}]}
    labels = [{"id": k, "name": f"class {k}", "color": [k, k, k]} for k in (1, 2)]
    inputs = write_inputs(tmp_path / "in", "a.png")
    with open_stub(tmp_path / "net", changes={"network": network, "labels": labels}) as model:
        with pytest.raises(UsageError, match="each of its classes"):
            predict_files(model, inputs, tmp_path / "out", PredictOptions(output=OutputOptions(rgb_mask=True)))
        predict_files(model, inputs, tmp_path / "out", PredictOptions(output=OutputOptions(kind="cutout")))
        assert cv2.imread(str(tmp_path / "out/a.png"), cv2.IMREAD_UNCHANGED).shape == (20, 30, 4)
