"""`segship score mmseg`: label maps in folders, whatever they hold and however they are named."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_labels import LABELS, VAL, cityscapes_tree, label_ids, label_package, scene

from segship.cli import cli
from segship.datasets import FolderOptions, open_dataset
from segship.datasets.label_rules import LabelRules
from segship.errors import DatasetError, UsageError
from segship.measure.scoring import as_text
from segship.metrics import mmseg
from segship.metrics.files import FileScores, score_files
from segship.metrics.mmseg import Settings


def predicted(case: int) -> np.ndarray:
    """The truth with a stripe that is wrong; void is road."""
    found = np.where(scene(case, 48 + 4 * (case % 2), 96)[1] == 255, 0, scene(case, 48 + 4 * (case % 2), 96)[1])
    found[:, 10:14] = 13
    return found.astype(np.uint8)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cityscapes_tree(tmp_path_factory.mktemp("cs"), ids=True)


def write(folder: Path, kind: str) -> Path:
    folder.mkdir()
    colors = np.zeros((256, 3), np.uint8)
    for place, name in enumerate(VAL):
        numbers = predicted(place)
        if kind in ("ids", "ids-palette"):
            numbers = label_ids(numbers)
        if kind == "color":
            picture = Image.fromarray(np.array([label.color for label in LABELS], np.uint8)[numbers])
        else:
            picture = Image.fromarray(numbers)
        if kind.endswith("palette"):
            for label in LABELS:
                colors[label.file_value if kind == "ids-palette" else label.id] = label.color  # type: ignore[index]
            picture.putpalette(colors.tobytes())
        picture.save(folder / f"{name}_leftImg8bit.png")
    return folder


def expected(tree: Path, **how: object) -> dict[str, float]:
    settings = Settings(classes=tuple(label.name for label in LABELS), **how)  # type: ignore[arg-type]
    cases = open_dataset(tree).cases
    return mmseg.summarise(
        [
            mmseg.score_arrays(case.id, predicted(k), case.read_labels().labels[0], settings)
            for k, case in enumerate(cases)
        ]
    )


def equal(found: FileScores, numbers: dict[str, float]) -> bool:
    return found.metrics == pytest.approx(numbers, nan_ok=True)


@pytest.mark.parametrize("kind", ["train-ids", "train-palette", "ids", "ids-palette", "color"])
def test_every_kind_of_file_gives_the_same_numbers(tree: Path, tmp_path: Path, kind: str) -> None:
    found = score_files("mmseg", tree, write(tmp_path / "pred", kind))
    assert equal(found, expected(tree))
    assert 0.5 < found.metrics["mIoU"] < 1
    told = {"color": "colours", "ids": "the data set's own ids", "ids-palette": "the data set's own ids"}
    assert found.notes[-1].startswith(f"predictions are taken as {told.get(kind, 'class numbers (train ids)')}")


def test_folders_of_label_files_and_options(tree: Path, tmp_path: Path) -> None:
    pred = write(tmp_path / "pred", "train-ids")
    found = score_files("mmseg", tree / "gtFine" / "val", pred, metrics=("mDice", "mFscore"), beta=2.0, nan_to_num=0.0)
    assert equal(found, expected(tree, metrics=("mDice", "mFscore"), beta=2.0, nan_to_num=0.0))
    assert [name for name in found.metrics if "." not in name] == [
        "aAcc", "mDice", "mAcc", "mFscore", "mPrecision", "mRecall",
    ]  # fmt: skip
    ignored = score_files("mmseg", tree, pred, ignore=0, unknown="upstream")
    assert equal(ignored, expected(tree, ignore=0, unknown="upstream"))


def test_classes_that_are_not_cityscapes(tmp_path: Path) -> None:
    for name in ("gt", "pred"):
        (tmp_path / name).mkdir()
    truth = np.array([[0, 1, 2, 2]], np.uint8)
    Image.fromarray(truth).save(tmp_path / "gt" / "x.png")
    Image.fromarray(np.array([[0, 1, 1, 0]], np.uint8)).save(tmp_path / "pred" / "x.png")
    counted = score_files("mmseg", tmp_path / "gt", tmp_path / "pred")
    assert counted.metrics["IoU.1"] == 0.5
    assert "classes are taken as 0 to 2, the numbers that the files hold; --classes names them" in counted.notes
    with pytest.raises(UsageError, match="--classes takes names"):
        score_files("mmseg", tmp_path / "gt", tmp_path / "pred", classes="a,,b")
    by_number = score_files("mmseg", tmp_path / "gt", tmp_path / "pred", classes="3")
    assert by_number.metrics["IoU.1"] == 0.5
    named = score_files("mmseg", tmp_path / "gt", tmp_path / "pred", classes="sky, tree, road")
    assert named.metrics["IoU.tree"] == 0.5
    assert named.as_dict()["metrics"] == {"aAcc": 50.0, "mIoU": 33.33, "mAcc": 66.67}
    side_by_side = as_text((named, replace(named, name="again")))
    assert re.search(r"^tree +50\.00 +50\.00$", side_by_side, re.M)
    assert re.search(r"^mIoU +33\.33 +33\.33$", side_by_side, re.M)
    with pytest.raises(DatasetError, match=r"case x: its label map holds the unknown id 2"):
        score_files("mmseg", tmp_path / "gt", tmp_path / "pred", classes="2")
    found = score_files("mmseg", tmp_path / "gt", tmp_path / "pred", classes="4")
    assert "1 of 4 classes are in no label map (3)" in found.notes
    package = label_package(tmp_path / "net.segship", LABELS[:3], int8=False)
    assert score_files("mmseg", tmp_path / "gt", tmp_path / "pred", classes=str(package.path)).metrics["aAcc"] == 0.5


def test_maps_whose_zero_is_ignored(tmp_path: Path) -> None:
    for name, numbers in (("gt", [[0, 1, 2, 3]]), ("pred", [[0, 0, 1, 1]]), ("out", [[1, 1, 2, 3]])):
        (tmp_path / name).mkdir()
        Image.fromarray(np.array(numbers, np.uint8)).save(tmp_path / name / "x.png")
    rules = FolderOptions(rules=LabelRules(reduce_zero_label=True))
    found = score_files("mmseg", tmp_path / "gt", tmp_path / "pred", classes="3", folders=rules)
    assert found.metrics["aAcc"] == pytest.approx(2 / 3)
    upstream = score_files("mmseg", tmp_path / "gt", tmp_path / "out", classes="3", folders=rules)
    assert upstream.metrics["aAcc"] == 1, "3 tells that upstream's --out wrote them, one above the class numbers"
    told = score_files("mmseg", tmp_path / "gt", tmp_path / "pred", classes="3", folders=rules, values="train-ids")
    assert told.metrics == found.metrics


def test_faulty_predictions(tree: Path, tmp_path: Path) -> None:
    pred = write(tmp_path / "pred", "train-ids")
    path = pred / f"{VAL[0]}_leftImg8bit.png"
    numbers = predicted(0)
    numbers[0, 0] = 40
    Image.fromarray(numbers).save(path)
    with pytest.raises(DatasetError, match=r"holds 40, but classes are 0 to 18; say what it holds with --values"):
        score_files("mmseg", tree, pred)
    Image.fromarray(numbers[:20]).save(path)
    with pytest.raises(DatasetError, match="case frankfurt_000000_000294: the prediction is 20×96 and its label 48×96"):
        score_files("mmseg", tree, pred, unknown="upstream")
    path.unlink()
    with pytest.raises(DatasetError, match="for 1 of 4 ground truth cases"):
        score_files("mmseg", tree, pred)
    assert len(score_files("mmseg", tree, pred, allow_missing=True).scores) == 3
    with pytest.raises(UsageError, match="--values takes one of"):
        score_files("mmseg", tree, pred, values="greys")
    with pytest.raises(DatasetError, match="there is no folder of predictions at"):
        score_files("mmseg", tree, tree / "gtFine" / "train" / "ulm" / "none")


def test_the_command(tree: Path, tmp_path: Path) -> None:
    pred = write(tmp_path / "pred", "ids")
    run = CliRunner().invoke(cli, ["score", "mmseg", str(tree), str(pred), "--metrics", "mIoU,mDice", "--json"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    wanted = expected(tree, metrics=("mIoU", "mDice"))
    assert list(found["metrics"]) == ["aAcc", "mAcc", "mDice", "mIoU"]
    assert found["metrics"]["mDice"] == round(100 * wanted["mDice"], 2)
    assert found["per_class"]["IoU"]["road"] == pytest.approx(wanted["IoU.road"], abs=1e-9)
    assert found["per_class"]["Dice"]["traffic light"] == pytest.approx(wanted["Dice.traffic light"], abs=1e-9)
    assert set(found["per_case"]) == set(VAL)
    text = CliRunner().invoke(cli, ["score", "mmseg", str(tree), str(pred), "--form", "0.x"])
    assert "|     Class     |" in text.stdout
    assert "Summary:" in text.stdout
    same = CliRunner().invoke(cli, ["score", "mmseg", str(tree), str(pred), "--format", "0.x"])
    assert same.stdout == text.stdout
    mapped = CliRunner().invoke(
        cli, ["score", "mmseg", str(tree), str(pred), "--label-map", "13:255,14:255", "--per-image", str(tmp_path / "x.csv")]
    )  # fmt: skip
    assert mapped.exit_code == 0, mapped.output
    assert (tmp_path / "x.csv").read_text().startswith("case,aAcc,mIoU,mAcc\n")
    wrong = CliRunner().invoke(cli, ["score", "sod", str(tree), str(pred), "--label-map", "1:2"])
    assert "'score sod' has no option --label-map" in str(wrong.exception)


def test_a_grey_cv2_picture_is_read_like_pillows(tmp_path: Path) -> None:
    for name in ("gt", "pred"):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / "gt" / "x.png"), np.array([[0, 1]], np.uint8))
    cv2.imwrite(str(tmp_path / "pred" / "x.png"), np.repeat(np.array([[0, 1]], np.uint8)[..., None], 3, axis=2))
    assert score_files("mmseg", tmp_path / "gt", tmp_path / "pred", classes="2").metrics["mIoU"] == 1
