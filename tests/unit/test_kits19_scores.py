"""KiTS19's split, layouts and scores."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from kits19_files import write_case

from segship.datasets import default_split, open_dataset, recognise_layout
from segship.datasets.kits19 import calibration_cases, evaluation_ids, facts, preferred_for_calibration
from segship.datasets.kits19_prepare import prepare_kits19
from segship.errors import DatasetError
from segship.metrics import files, get_scorer
from segship.metrics.kits19 import dice_scores, kits_scores, mlperf_case, summarise
from segship.metrics.scores import CaseScore


def upstreams_dice(labels: np.ndarray, target: np.ndarray) -> list[float]:
    out = []
    for k in (1, 2):
        t, p = (target == k).astype(np.float64), (labels == k).astype(np.float64)
        out.append((2 * (t * p).sum() + 1e-6) / (t.sum() + p.sum() + 1e-6))
    return out


def test_the_edges_of_the_score(shared: Path) -> None:
    golden = json.loads((shared / "reference/mlperf_training.json").read_text())
    shape = (2, 1, 10, 12, 14)
    v = (7919 * np.arange(np.prod(shape)) // 13) % 7
    three = np.where(v < 4, 0, np.where(v < 6, 1, 2)).astype(np.uint8).reshape(shape)
    empty = np.zeros_like(three)
    edges = golden["score_edges"]

    def over_batch(labels: np.ndarray, target: np.ndarray) -> list[float]:
        return list(np.mean([dice_scores(a, b) for a, b in zip(labels, target, strict=True)], axis=0))

    assert over_batch(three, three) == edges["perfect prediction"]
    assert over_batch(empty, empty) == edges["prediction all background, target background"]
    got = over_batch(empty, three)
    assert all(0 < value < 1e-7 for value in got)


def test_dice_of_any_labels() -> None:
    rng = np.random.default_rng(0)
    labels, target = (rng.integers(0, 3, (9, 8, 7)).astype(np.uint8) for _ in range(2))
    assert dice_scores(labels, target) == pytest.approx(upstreams_dice(labels, target), abs=1e-12)
    together, tumour = kits_scores(labels, target)
    assert tumour == dice_scores(labels, target)[1]
    assert together == pytest.approx(
        2 * ((labels > 0) & (target > 0)).sum() / ((labels > 0).sum() + (target > 0).sum())
    )
    with pytest.raises(DatasetError, match="shape"):
        dice_scores(labels, target[1:])


def test_cases_weigh_the_same() -> None:
    scores = [
        CaseScore(id=str(i), values={"mean Dice": value, "L1 Dice": value, "L2 Dice": value})
        for i, value in enumerate((0.5, 0.25, 1.0))
    ]
    assert summarise(scores)["mean Dice"] == pytest.approx(1.75 / 3)
    scorer = get_scorer("kits19")
    assert "0.9076" in scorer.REMARKS[0]
    assert "mlperf-full" in scorer.notes(scores)[0]
    part = [mlperf_case("a", np.ones((4, 4, 4), np.uint8), np.ones((4, 4, 4), np.uint8), 80)]
    assert "20.0% of the voxels on average" in scorer.notes(part)[1]


# ------------------------------------------------------------------------------------ layouts and split


def test_the_published_ids() -> None:
    ids = [f"case_{number:05d}" for number in range(210)]
    held_out = evaluation_ids(ids)
    assert len(held_out) == 42
    assert held_out[:3] == ["case_00000", "case_00003", "case_00005"]
    assert len(facts()["calibration"]) == 20
    assert not set(held_out) & set(facts()["calibration"])


def test_other_ids_are_divided_by_a_hash() -> None:
    ids = [f"case_{number:05d}" for number in range(300, 700)]
    held_out = evaluation_ids(ids)
    assert 50 < len(held_out) < 110
    assert set(evaluation_ids(ids[:200])) == set(held_out) & set(ids[:200])
    for few in (ids[:2], ids[5:7], ["a", "b"], ["b", "c", "d"]):
        assert 0 < len(evaluation_ids(few)) < len(few)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kits")
    for number in (0, 1, 3, 47, 50, 100):
        write_case(root / f"case_{number:05d}", seed=number)
    (root / "case_00211").mkdir()
    (root / "case_00211/imaging.nii.gz").write_bytes((root / "case_00001/imaging.nii.gz").read_bytes())
    return root


@pytest.mark.parametrize("layout", ["kits19", "kits19-prepared"])
def test_both_layouts(raw: Path, tmp_path: Path, layout: str) -> None:
    root = raw
    if layout == "kits19-prepared":
        prepare_kits19(raw, tmp_path / "out", minimum=16)
        root = tmp_path / "out"
    assert recognise_layout(root) == layout
    assert default_split(root) == "mlperf"
    whole = open_dataset(root)
    assert whole.ids == [f"case_{n:05d}" for n in (0, 1, 3, 47, 50, 100)]
    assert any("1 cases without a segmentation (case_00211)" in note for note in whole.notes) == (layout == "kits19")
    part = open_dataset(root, split="mlperf")
    assert part.ids == ["case_00000", "case_00003"]
    assert any("40 of MLPerf's 42" in note for note in part.notes)
    rest = open_dataset(root, split="mlperf", part="training")
    assert rest.ids == ["case_00001", "case_00047", "case_00050", "case_00100"]
    assert preferred_for_calibration(rest).ids == ["case_00047", "case_00050", "case_00100"]
    (tmp_path / "ids.txt").write_text("case_00001\n")
    assert open_dataset(root, split=tmp_path / "ids.txt").ids == ["case_00001"]
    assert open_dataset(root, split="all").ids == whole.ids
    assert len(whole.sha256) == 64
    assert whole.cases[0].pixel_hash() != whole.cases[1].pixel_hash()
    found = calibration_cases(root)
    assert found is not None
    assert found.ids == ["case_00047", "case_00050", "case_00100"]


def test_evaluation_cases_are_not_calibrated_on(tmp_path: Path) -> None:
    for number in (0, 3):
        write_case(tmp_path / f"case_{number:05d}")
    with pytest.raises(DatasetError, match=r"evaluation cases alone \(case_00000, case_00003\)"):
        calibration_cases(tmp_path)
    with pytest.raises(DatasetError, match="no training case of split mlperf"):
        open_dataset(tmp_path, split="mlperf", part="training")
    assert calibration_cases(tmp_path / "case_00000") is None


def test_segmentations_without_images(tmp_path: Path) -> None:
    write_case(tmp_path / "data/case_00000")
    (tmp_path / "data/case_00000/imaging.nii.gz").unlink()
    with pytest.raises(DatasetError, match="1 cases without an image"):
        open_dataset(tmp_path)


# ---------------------------------------------------------------------------------------- from files alone


def predictions(raw: Path, out: Path, names: str = "{id}.nii.gz") -> None:
    out.mkdir()
    for folder in sorted(raw.glob("case_*")):
        if (folder / "segmentation.nii.gz").exists():
            image = nibabel.load(folder / "segmentation.nii.gz")
            labels = np.asarray(image.dataobj).copy()
            labels[:, :8] = 0
            name = names.format(id=folder.name, number=folder.name[5:])
            (out / name).parent.mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(labels, image.affine), out / name)


@pytest.mark.parametrize("names", ["{id}.nii.gz", "prediction_{number}.nii.gz", "{id}/segmentation.nii.gz"])
def test_scores_from_files(raw: Path, tmp_path: Path, names: str) -> None:
    predictions(raw, tmp_path / "pred", names)
    found = files.score_files("kits19", raw, tmp_path / "pred")
    assert len(found.scores) == 6
    truth = np.asarray(nibabel.load(raw / "case_00001/segmentation.nii.gz").dataobj)
    labels = truth.copy()
    labels[:, :8] = 0
    first, second = dice_scores(labels, truth)
    values = {score.id: score.values for score in found.scores}["case_00001"]
    assert values["L1 Dice"] == pytest.approx(first)
    assert values["L2 Dice"] == pytest.approx(second)
    assert values["mean Dice"] == pytest.approx((first + second) / 2)
    assert values["kidney+tumour Dice"] == pytest.approx(kits_scores(labels, truth)[0])
    assert found.metrics["L1 Dice"] == pytest.approx(np.mean([s.values["L1 Dice"] for s in found.scores]))
    part = files.score_files("kits19", raw, tmp_path / "pred", split="mlperf")
    assert [score.id for score in part.scores] == ["case_00000", "case_00003"]
    assert any("0.9076" in note for note in part.notes)


def test_files_that_do_not_fit(raw: Path, tmp_path: Path) -> None:
    predictions(raw, tmp_path / "pred")
    (tmp_path / "pred/case_00001.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"no prediction in .* for 1 of 6"):
        files.score_files("kits19", raw, tmp_path / "pred")
    assert len(files.score_files("kits19", raw, tmp_path / "pred", allow_missing=True).scores) == 5
    other = nibabel.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    nibabel.save(other, tmp_path / "pred/case_00001.nii.gz")
    with pytest.raises(DatasetError, match="3×3×3 voxels and the ground truth 20×24×22"):
        files.score_files("kits19", raw, tmp_path / "pred")
    nibabel.save(
        nibabel.Nifti1Image(np.full((20, 24, 22), 255, np.uint8), np.eye(4)), tmp_path / "pred/case_00001.nii.gz"
    )
    with pytest.raises(DatasetError, match="holds the label 255"):
        files.score_files("kits19", raw, tmp_path / "pred")


def test_arrays_of_the_prepared_grid_are_scored_too(raw: Path, tmp_path: Path) -> None:
    prepare_kits19(raw, tmp_path / "out", minimum=16)
    (tmp_path / "pred").mkdir()
    for path in (tmp_path / "out").glob("*_y.npy"):
        np.save(tmp_path / "pred" / path.name.replace("_y", ""), np.load(path)[0])
    assert files.score_files("kits19", tmp_path / "out", tmp_path / "pred").metrics["mean Dice"] == 1.0
