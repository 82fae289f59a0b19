"""`segship predict` on folders of cases: names, order, resume, nnU-Net's own words, and whatever is broken."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from segship.convert.export import export
from segship.families import Source, nnunet
from segship.inference.plain_pickle import read_plain_pickle
from segship.inference.predictor import Predictor
from segship.inference.volume_predictor import VolumePredictor
from segship.manifest import Channel

AFFINE = np.array([[0.0, 1.2, 0.0, -20.0], [-1.5, 0.0, 0.0, 30.0], [0.0, 0.0, 2.0, 5.0], [0.0, 0.0, 0.0, 1.0]])
SHAPE = (28, 22, 12)
"""x, y, z"""


class Bright(nn.Module):
    """Background, bright, very bright, by the mean of the channels; ``shift`` makes folds differ."""

    def __init__(self, channels: int, shift: float) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 3, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.zero_()
            for klass, slope in enumerate((0.0, 4.0, 8.0)):
                self.conv.weight[klass, :, 1, 1, 1] = slope / channels
            self.conv.bias.copy_(torch.tensor([0.0, -2.0 + shift, -8.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def bright(folder: Path, channels: int = 1) -> Path:
    source: Source = nnunet.tiny()
    networks = {f"fold_{fold}": Bright(channels, 0.2 * fold).eval() for fold in range(2)}
    recipe = source.recipe
    names = tuple(Channel(name=name) for name in ("CT", "T1")[:channels])
    recipe = recipe.model_copy(
        update={
            "input": recipe.input.model_copy(update={"channels": names}),
            "network": recipe.network.model_copy(update={"input_channels": channels}),
        }
    )
    shape = (channels, *source.input_example_shape[1:])
    made = replace(source, network=networks["fold_0"], members=networks, recipe=recipe, input_example_shape=shape)
    return export(made, folder / f"bright{channels}.segship", engines=["onnxruntime"]).package.path


@pytest.fixture(scope="session")
def volumes(tmp_path_factory) -> Path:
    return bright(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="session")
def two_channels(tmp_path_factory) -> Path:
    return bright(tmp_path_factory.mktemp("volumes2"), 2)


def write_case(path: Path, seed: int, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 60, shape).astype(np.int16)
    values[4:12, 5:14, 3:8] += 160
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def damage(path: Path, **fields: Any) -> Path:
    """Write header fields as they stand, without nibabel's care."""
    write_case(path, 5)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    header = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(raw)))
    return path


def run(segship, package: Path, *arguments: object):
    return segship("predict", package, *arguments, "--engine", "onnxruntime")


def test_a_folder_of_cases(segship, volumes, tmp_path):
    for name in ("b", "a", "c"):
        write_case(tmp_path / "in" / f"{name}_0000.nii.gz", ord(name))
    outcome = run(segship, volumes, "-i", tmp_path / "in", "-o", tmp_path / "out", "--save_probabilities", "--preview")
    assert outcome.code == 0, outcome.err
    assert "3 case(s), at most " in outcome.err
    assert "4 mirrorings x 2 folds a case); memory about " in outcome.err
    assert "3 done in" in outcome.out
    names = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    cases = [f"{n}{e}" for n in "abc" for e in (".nii.gz", ".npz", ".pkl")]
    assert names == [*cases, "predictions.jsonl", *(f"previews/{n}.png" for n in "abc"), "segship-run.json"]
    written = nibabel.load(tmp_path / "out" / "a.nii.gz")
    assert np.allclose(written.affine, AFFINE, atol=1e-6)
    assert written.get_data_dtype() == np.uint8
    labels = np.asarray(written.dataobj).transpose(2, 1, 0)
    assert (labels[4:7, 6:13, 5:11] > 0).all()
    assert (labels[:2] == 0).mean() > 0.9
    with np.load(tmp_path / "out" / "a.npz") as kept:
        probabilities = kept["probabilities"]
    assert (probabilities.shape, probabilities.dtype) == ((3, *labels.shape), np.float32)
    assert np.mean(probabilities.argmax(axis=0) == labels) > 0.9999
    about = read_plain_pickle(tmp_path / "out" / "a.pkl")
    assert np.allclose(about["spacing"], (2.0, 1.2, 1.5))
    assert about["shape_before_cropping"] == labels.shape
    preview = cv2.imread(str(tmp_path / "out" / "previews" / "a.png"))
    assert preview.shape == (320, 960, 3)
    assert preview.any()
    order = [json.loads(line)["input"] for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [Path(name).name for name in order] == [f"{n}_0000.nii.gz" for n in "abc"]


def test_nnunets_own_words_change_what_they_should(segship, volumes, tmp_path):
    source = write_case(tmp_path / "in" / "a_0000.nii.gz", 1)

    def predicted(name: str, *words: object) -> dict:
        outcome = run(segship, volumes, "-i", source, "-o", tmp_path / name, *words)
        assert outcome.code == 0, outcome.err
        return json.loads((tmp_path / name / "segship-run.json").read_text())["options"]

    plain = predicted("plain")
    assert (plain["mirror"], plain["step_size"], plain["members"]) == (True, None, None)
    changed = predicted(
        "changed", "--disable_tta", "-step_size", "0.75", "-f", "0", "-npp", "3", "-nps", "3", "-num_parts", "1",
        "-part_id", "0", "-device", "cpu", "--compat", "fp16-accumulators", "--postprocessing", "none",
    )  # fmt: skip
    assert (changed["mirror"], changed["step_size"], changed["members"]) == (False, 0.75, ["fold_0"])
    assert (changed["half_sums"], changed["postprocess"]) == (True, False)
    both = predicted("both", "--folds", "0", "1", "--disable-tta")
    assert both["members"] == ["fold_0", "fold_1"]
    with Predictor.open(volumes, engine="onnxruntime") as predictor:
        assert isinstance(predictor, VolumePredictor)
        for name, tiles in (("plain", {}), ("both", {"mirror": False})):
            found = predictor(source, tiles=replace(predictor.tiles, **tiles))
            assert (found.labels == np.asarray(nibabel.load(tmp_path / name / "a.nii.gz").dataobj).T).all()


def test_the_price_is_told_before_it_is_paid(segship, volumes, tmp_path):
    write_case(tmp_path / "in" / "a_0000.nii.gz", 1, shape=(40, 36, 24))
    # 24 slices of 2 mm stay, 36 of 1.2 mm become 29, 40 of 1.5 mm stay: 5 x 3 x 4 windows of 8 x 16 x 16 at half steps
    outcome = run(segship, volumes, tmp_path / "in", "-o", tmp_path / "out", "--folds", "1")
    assert "at most 240 passes of the network (up to 60 windows x 4 mirrorings x 1 folds a case)" in outcome.err
    outcome = run(segship, volumes, tmp_path / "in", "-o", tmp_path / "out2", "--no-tta", "--step-size", "1")
    assert "(up to 18 windows x 1 mirrorings x 2 folds a case)" in outcome.err


def test_resume_skips_what_is_done_and_nothing_else(segship, volumes, tmp_path):
    for name in "ab":
        write_case(tmp_path / "in" / f"{name}_0000.nii.gz", ord(name))
    first = run(segship, volumes, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert json.loads(first.out)["done"] == 2
    (tmp_path / "out" / "b.nii.gz").unlink()
    again = run(segship, volumes, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json", "--continue_prediction")
    assert {k: json.loads(again.out)[k] for k in ("done", "skipped")} == {"done": 1, "skipped": 1}
    other = run(segship, volumes, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json", "--no-tta")
    assert json.loads(other.out)["skipped"] == 0
    everything = run(
        segship, volumes, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json", "--no-tta", "--overwrite"
    )
    assert json.loads(everything.out)["done"] == 2


def test_parts_divide_the_sorted_cases(segship, volumes, tmp_path):
    for name in "cabd":
        write_case(tmp_path / "in" / f"{name}_0000.nii.gz", ord(name))
    for part in range(2):
        run(segship, volumes, "-i", tmp_path / "in", "-o", tmp_path / f"out{part}", "-num_parts", 2, "-part_id", part)
    assert [sorted(p.name[0] for p in (tmp_path / f"out{part}").glob("*.nii.gz")) for part in range(2)] == [
        ["a", "c"],
        ["b", "d"],
    ]


def test_every_broken_case_is_one_line_and_the_others_are_done(segship, volumes, tmp_path):
    folder = tmp_path / "in"
    good = write_case(folder / "good_0000.nii.gz", 1)
    write_case(folder / "four_0000.nii.gz", 2, shape=(*SHAPE, 2))
    cut = folder / "cut_0000.nii.gz"
    cut.write_bytes(good.read_bytes()[:2000])
    (folder / "text_0000.nii.gz").write_bytes(b"no volume at all")
    values = np.zeros(SHAPE, np.float32)
    values[3, 4, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), folder / "nan_0000.nii.gz")
    damage(folder / "spacing_0000.nii.gz", pixdim=[1, 1.5, np.nan, 2, 1, 1, 1, 1])
    damage(folder / "nought_0000.nii.gz", pixdim=[1, 1.5, 0, 2, 1, 1, 1, 1])
    write_case(folder / "surplus_0000.nii.gz", 3)
    write_case(folder / "surplus_0001.nii.gz", 3)
    outcome = run(segship, volumes, "-i", folder, "-o", tmp_path / "out")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    failures = sorted(line for line in outcome.err.splitlines() if line.startswith("failed:"))
    says = {
        "four": "has 4 axes; this package reads NIfTI files of three",
        "cut": "cannot be unpacked",
        "text": "is no NIfTI file",
        "nan": "1 NaN or infinite values, the first at (channel, z, y, x) = (0, 5, 4, 3)",
        "spacing": "has the spacing (2.0, nan, 1.5); it must be positive",
        "nought": "has voxels of 1.5 x 0 x 2 mm; the spacing must be positive",
        "surplus": "surplus_0001.nii.gz is one channel too many",
    }
    assert len(failures) == len(says), outcome.err
    for name, text in says.items():
        assert any(name in line and text in line for line in failures), (name, outcome.err)
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["good.nii.gz"]


def test_odd_cases_that_are_not_broken(segship, volumes, tmp_path):
    """All zero, smaller than the window, and turned by an odd angle."""
    folder = tmp_path / "in"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE), folder / "zero_0000.nii.gz")
    write_case(folder / "small_0000.nii.gz", 1, shape=(13, 15, 9))
    turned = AFFINE.copy()
    angle = np.deg2rad(20)
    turned[:2, :3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]] @ turned[:2, :3]
    write_case(folder / "turned_0000.nii.gz", 1, affine=turned)
    outcome = run(segship, volumes, "-i", folder, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert np.allclose(nibabel.load(tmp_path / "out" / "turned.nii.gz").affine, turned, atol=1e-6)
    assert nibabel.load(tmp_path / "out" / "small.nii.gz").shape == (13, 15, 9)
    assert not np.asarray(nibabel.load(tmp_path / "out" / "zero.nii.gz").dataobj).any()


def test_channels_that_are_missing_or_do_not_match(segship, two_channels, tmp_path):
    folder = tmp_path / "in"
    for channel in range(2):
        write_case(folder / f"good_000{channel}.nii.gz", channel)
    write_case(folder / "half_0000.nii.gz", 1)
    write_case(folder / "grids_0000.nii.gz", 1)
    write_case(folder / "grids_0001.nii.gz", 1, shape=(28, 22, 13))
    outcome = run(segship, two_channels, "-i", folder, "-o", tmp_path / "out")
    assert outcome.code == 1
    failures = [line for line in outcome.err.splitlines() if line.startswith("failed:")]
    assert len(failures) == 2, outcome.err
    assert any("half_0001.nii.gz (T1) is missing" in line for line in failures)
    assert any("the channels of a case lie on one grid" in line for line in failures)
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["good.nii.gz"]


def test_memory_is_bounded_with_numbers(segship, volumes, tmp_path):
    write_case(tmp_path / "in" / "large_0000.nii.gz", 1, shape=(300, 300, 120))
    write_case(tmp_path / "in" / "small_0000.nii.gz", 1)
    outcome = run(
        segship, volumes, "-i", tmp_path / "in" / "large_0000.nii.gz", "-o", tmp_path / "out", "--memory", "64M"
    )
    assert outcome.code == 1
    failure = next(line for line in outcome.err.splitlines() if line.startswith("failed:"))
    assert "large needs about" in failure
    assert "and --memory allows 64 MB" in failure
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    assert run(segship, volumes, tmp_path / "in", "-o", tmp_path / "o", "--memory", "much").code == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--folds", "0", "7"], "the package has no fold '7'; it has: 0, 1"),
        (["--step-size", "0"], "step size is a part of the window"),
        (["--output", "cutout"], "--output is for packages of pictures"),
        (["--overlay"], "--overlay is for packages of pictures"),
        (["--prev-stage-predictions", "nowhere"], "continues no other"),
        (["-num_parts", "2", "-part_id", "2"], "part_id counts from 0"),
        (["-num_parts", "2"], "say which part this is: --part-id 0 to 1"),
        (["--time-budget", "0"], "--time-budget takes seconds above 0"),
        (["--time-budget", "0.0001"], "no setting keeps to 0.0001 s a case"),
        (["--previous-stage", "nowhere"], "continues no other"),
    ],
)
def test_options_that_do_not_fit(segship, volumes, tmp_path, words, says):
    write_case(tmp_path / "in" / "a_0000.nii.gz", 1)
    outcome = run(segship, volumes, "-i", tmp_path / "in", "-o", tmp_path / "out", *words)
    assert outcome.code == 2
    assert says in outcome.error


def test_a_time_budget_is_told_and_kept_to(segship, volumes, tmp_path):
    write_case(tmp_path / "in" / "a_0000.nii.gz", 1)
    outcome = run(segship, volumes, "-i", tmp_path / "in", "-o", tmp_path / "out", "--time-budget", "600")
    assert outcome.code == 0, outcome.err
    assert "gives up nothing; about " in outcome.err
    assert "<- runs" in outcome.err
    kept = json.loads((tmp_path / "out" / "time-budget.json").read_text())
    assert kept["rows"][0]["gives_up"] == []
    assert kept["chosen"]["mirror_axes"] == kept["rows"][0]["mirror_axes"] != []
    told = run(segship, volumes, "-i", tmp_path / "in", "-o", tmp_path / "b", "--time-budget", "600", "-q", "--json")
    assert json.loads(told.out)["time_budget"]["seconds"] == 600
    assert "time budget of 600 s a case: gives up nothing" in told.err, "never silently"


def test_what_is_not_there_is_an_unusable_argument(segship, volumes, tmp_path):
    write_case(tmp_path / "in" / "a_0000.nii.gz", 1)
    for words in (
        ("predict", tmp_path / "none.segship", "-i", tmp_path / "in", "-o", tmp_path / "out"),
        ("predict", volumes, "-i", tmp_path / "none", "-o", tmp_path / "out"),
        ("evaluate", volumes, tmp_path / "none"),
        ("export", tmp_path / "none", "-o", tmp_path / "x.segship"),
    ):
        outcome = segship(*words)
        assert outcome.code == 2, words
        assert "none" in outcome.error


def test_labels_never_take_their_cases_place(segship, volumes, tmp_path):
    source = write_case(tmp_path / "in" / "a.nii.gz", 1)
    before = source.read_bytes()
    outcome = run(segship, volumes, source, "-o", tmp_path / "in")
    assert outcome.code == 2
    assert "would overwrite the input" in outcome.error
    assert source.read_bytes() == before


def test_pictures_refuse_what_belongs_to_volumes(segship, package, tmp_path):
    outcome = segship("predict", package, tmp_path, "-o", tmp_path / "out", "--disable_tta")
    assert outcome.code == 2
    assert "--no-tta is for packages of volumes" in outcome.error
