"""Evaluating a package of exclusive classes on a toy Cityscapes: numbers, files, published ones beside, report, outputs."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_labels import LABELS, TRAIN, VAL, cityscapes_tree, label_ids, label_package, scene
from tiny_package import tiny_package

from segship.cli import cli
from segship.convert.calibration import load_calibration
from segship.datasets import FolderOptions, open_dataset
from segship.datasets.label_rules import LabelRules
from segship.errors import DatasetError, InputError, UsageError
from segship.inference.batch import predict_files
from segship.inference.options import OutputOptions
from segship.inference.outputs import PredictOptions
from segship.inference.predictor import Predictor
from segship.manifest import Threshold
from segship.measure import label_report, mmseg_table
from segship.measure.evaluate import EvaluateResult, evaluate
from segship.measure.report import report
from segship.measure.rundir import write_run_summary
from segship.metrics import mmseg
from segship.metrics.files import score_files


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cache: None) -> tuple[Path, EvaluateResult]:
    """Both precisions on the toy val, all metrics, label maps kept; the report of it."""
    root = tmp_path_factory.mktemp("streets")
    tree = cityscapes_tree(root / "cs")
    (root / "run").mkdir()
    package = label_package(root / "run" / "net.segship")
    result = evaluate(
        package,
        tree,
        precision=("int8", "fp32"),
        metrics=("mIoU", "mDice", "mFscore"),
        output=root / "run" / "evaluation",
        predictions=root / "maps",
    )
    write_run_summary(root / "run", result.package, evaluation=result)
    report(root / "run")
    return root, result


def test_numbers_are_those_of_the_written_label_maps(made: tuple[Path, EvaluateResult]) -> None:
    root, result = made
    for precision in ("fp32", "int8"):
        files = score_files("mmseg", root / "cs", root / "maps" / precision, metrics=("mIoU", "mDice", "mFscore"))
        variant = result.variant(precision)
        assert variant is not None
        assert files.metrics == pytest.approx(variant.evaluation.metrics, nan_ok=True)
        assert {path.name for path in (root / "maps" / precision).iterdir()} == {
            f"{name}_leftImg8bit.png" for name in VAL
        }
    assert 0.85 < result.variants[0].evaluation.value < 1, "noise hides some of the nearest colours"


def test_the_drop_draws_images_again(made: tuple[Path, EvaluateResult]) -> None:
    drop = made[1].variants[1].drop
    assert drop is not None
    assert drop.drop == pytest.approx(made[1].variants[0].evaluation.value - made[1].variants[1].evaluation.value)
    assert drop.interval95[0] <= drop.drop <= drop.interval95[1]
    assert drop.cases == 4
    assert drop.worst_case in VAL


def test_json_and_text(made: tuple[Path, EvaluateResult]) -> None:
    root, result = made
    found = json.loads((root / "run" / "evaluation" / "summary.json").read_text())
    fp32 = result.variants[0].evaluation.metrics
    assert found["metrics"]["mIoU"] == round(100 * fp32["mIoU"], 2)
    assert found["per_class"]["IoU"]["traffic light"] == pytest.approx(fp32["IoU.traffic light"])
    assert found["layout"] == "cityscapes"
    assert found["split"] == "val"
    assert found["reference"][0] == {
        "network": "OCRNet-HR18 160k", "precision": "fp32", "kind": "reference",
        "aAcc": "96.40", "mIoU": "79.45", "mAcc": "86.75",
    }  # fmt: skip
    measured = [row for row in found["reference"] if row["kind"] == "measured"]
    assert [row["precision"] for row in measured] == ["fp32", "int8"]
    assert measured[0]["mIoU"] == f"{100 * fp32['mIoU']:.2f}"
    text = result.as_text()
    assert re.search(r"^IoU of class, % +fp32 +int8$", text, re.M)
    assert re.search(rf"^mIoU +{100 * fp32['mIoU']:.2f} ", text, re.M)
    assert re.search(r"DeepLabV3-R101-D16-MG124 80k +int8 +reference +95.99 +77.73 +84.90", text)
    assert "Measured on 4 of the reference's 500 pictures" in text
    assert "72.14" not in text, "the vendor's table of some other network"
    assert "int8: mIoU drop against fp32" in text
    one = replace(result, variants=result.variants[:1]).as_text()
    assert "|     Class     |" in one
    assert f"mIoU: {100 * fp32['mIoU']:.2f}00" in one
    assert "Summary:" in replace(result, variants=result.variants[:1], form="0.x").as_text()


def test_files_by_class_and_case(made: tuple[Path, EvaluateResult]) -> None:
    root, result = made
    folder = root / "run" / "evaluation" / "fp32"
    rows = list(csv.DictReader((folder / "classes.csv").open()))
    assert [row["class"] for row in rows] == [label.name for label in LABELS]
    fp32 = result.variants[0].evaluation
    assert float(rows[0]["IoU"]) == pytest.approx(fp32.metrics["IoU.road"], abs=1e-6)
    table = np.array([list(row.values())[1:] for row in csv.DictReader((folder / "confusion.csv").open())], int)
    assert fp32.confusion is not None
    np.testing.assert_array_equal(table, fp32.confusion)
    assert table.trace() == sum(int(row["intersection"]) for row in rows)
    assert table.sum() == sum(int((scene(k, 48 + 4 * (k % 2), 96)[1] != 255).sum()) for k in range(4))
    cases = list(csv.DictReader((folder / "cases.csv").open()))
    assert [row["case"] for row in cases] == list(VAL)
    assert 0 < float(cases[0]["mIoU"]) <= 1
    assert all(score.areas is not None and score.areas.confusion is None for score in fp32.scores)


def test_the_page(made: tuple[Path, EvaluateResult]) -> None:
    page = (made[0] / "run" / "report.html").read_text()
    table = page[page.index('id="classes"') : page.index('id="published"')]
    assert table.count('class="chip"') == 19
    fp32 = made[1].variants[0].evaluation.metrics
    assert f"{100 * fp32['IoU.vegetation']:.2f}" in table
    assert f'style="width:{100 * fp32["IoU.vegetation"]:.2f}%"' in table
    published = page[page.index('id="published"') :]
    assert published.index("79.45") < published.index("nearest-colour")
    assert "another class" in page
    assert ">road</li>" in page, "no class of a street is background"
    about = json.loads((made[0] / "run" / "evaluation" / "pictures.json").read_text())
    assert about["exclusive"]
    panel = cv2.imread(str(made[0] / "run" / "evaluation" / "pictures" / about["worst"][0]["panels"]["truth"]))
    assert panel.shape[1] == 96


def test_the_heat_map_of_the_page(made: tuple[Path, EvaluateResult]) -> None:
    page = (made[0] / "run" / "report.html").read_text()
    table = page[page.index('<table class="heatmap">') :]
    table = table[: table.index("</table>")]
    assert [cell.replace("<span>", "").replace("</span>", "") for cell in re.findall(r'<th scope="col">(.*?)</th>', table)] == ["class", *(label.name for label in LABELS)]  # fmt: skip
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == [label.name for label in LABELS]
    counts = made[1].variants[0].evaluation.confusion
    assert counts is not None
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    strengths = re.findall(r"--v:([0-9.]+)", table)
    np.testing.assert_allclose(np.array(strengths, float).reshape(19, 19), np.sqrt(shares), atol=6e-4)
    texts = np.array(re.findall(r"<td [^>]*>(.*?)</td>", table)).reshape(19, 19)
    i, k = next((i, k) for i in range(19) for k in range(19) if i != k and shares[i, k] > 0.02)
    assert texts[i, k] == f"{100 * shares[i, k]:.0f}"
    assert f"{LABELS[i].name} taken for {LABELS[k].name}: {100 * shares[i, k]:.2f} %, {counts[i, k]} pixels" in table
    assert {texts[i, k] for i in range(19) for k in range(19) if shares[i, k] < 0.005} <= {"", "–"}


def test_heat_maps_of_many_classes_of_none_and_of_one_name(tmp_path: Path) -> None:
    def written(names: list[str], counts: np.ndarray) -> Path:
        (tmp_path / "fp32").mkdir(exist_ok=True)
        lines = [["label", *names], *([name, *row] for name, row in zip(names, counts.tolist(), strict=True))]
        with (tmp_path / "fp32" / "confusion.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)
        return tmp_path

    assert label_report.heat_map(tmp_path, "fp32") is None, "nothing was written"
    assert label_report.heat_map(written(["a", "b"], np.zeros((2, 2), int)), "fp32") is None
    found = label_report.heat_map(written(["a", "a", "c"], np.array([[3, 1, 0], [0, 0, 0], [0, 0, 9]])), "fp32")
    assert found is not None
    assert [[cell["text"] for cell in row["cells"]] for row in found["rows"]] == [["75", "25", ""], ["", "–", ""], ["", "", "100"]]  # fmt: skip
    assert label_report.confusions(tmp_path, "fp32") == [{"label": "a", "taken": "a", "share": 0.25, "pixels": 1}]
    many = np.diag(np.arange(100, 250)) + 7
    found = label_report.heat_map(written([f"c{i}" for i in range(150)], many), "fp32")
    assert found is not None
    assert [row["name"] for row in found["rows"]] == [f"c{i}" for i in range(40)], "those that are least often right"
    assert (found["columns"][-1], found["left_out"], found["dense"]) == ("others", 110, True)
    for row in found["rows"]:
        assert sum(cell["strength"] ** 2 for cell in row["cells"]) == pytest.approx(1)
    (tmp_path / "fp32" / "confusion.csv").write_text("label,a,b\na,1\n")
    with pytest.raises(InputError, match="evaluate again"):
        label_report.heat_map(tmp_path, "fp32")


def test_likeness_of_precisions_counts_pixels_not_masks(made: tuple[Path, EvaluateResult]) -> None:
    root, result = made
    a, b = (cv2.imread(str(root / "maps" / p / f"{VAL[0]}_leftImg8bit.png"), -1) for p in ("fp32", "int8"))
    assert result.variants[1].agreement[VAL[0]] == pytest.approx(float(np.mean(a == b)))


def test_limits_ids_and_folders(tmp_path: Path, cache: None) -> None:
    tree = cityscapes_tree(tmp_path / "cs", train_ids=False, ids=True)
    package = label_package(tmp_path / "net.segship", int8=False)
    few = evaluate(package, tree, limit=2, split="train", record=False)
    assert [score.id for score in few.variants[0].evaluation.scores] == list(TRAIN[:2])
    assert "limited to the first 2 of 5 cases" in few.notes
    assert "reference" not in few.as_dict()
    for place in range(2):
        picture, truth = scene(place)
        for folder in ("images/val", "annotations/val"):
            (tmp_path / "own" / folder).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "own" / "images" / "val" / f"{place}.png"), picture)
        cv2.imwrite(str(tmp_path / "own" / "annotations" / "val" / f"{place}.png"), label_ids(truth))
    with pytest.raises(DatasetError, match="its label map holds the unknown ids 19, 20"):
        evaluate(package, tmp_path / "own", record=False)
    rules = LabelRules(label_map={number: 255 if number == 1 else place for place, number in _ids()})
    mapped = evaluate(package, tmp_path / "own", folders=FolderOptions(rules=rules), record=False)
    assert mapped.variants[0].evaluation.value > 0.8
    ignored = evaluate(package, tmp_path / "own", unknown="ignore", record=False)
    assert "label maps with unknown ids, left out: 2 of 2" in " ".join(ignored.notes)


def _ids() -> list[tuple[int, int]]:
    return [*((label.id, label.file_value or 0) for label in LABELS), (255, 1)]


def test_a_package_says_how_its_label_maps_are_read(tmp_path: Path, cache: None) -> None:
    package = label_package(tmp_path / "net.segship", int8=False, options={"reduce_zero_label": True})
    picture, truth = scene(0)
    for folder, array in (("img_dir", picture), ("ann_dir", np.where(truth == 255, 0, truth + 1).astype(np.uint8))):
        (tmp_path / "d" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "d" / folder / "a.png"), array)
    value = evaluate(package, tmp_path / "d", record=False).variants[0].evaluation.value
    assert value > 0.8
    assert evaluate(package, open_dataset(tmp_path / "d"), record=False).variants[0].evaluation.value == value
    said = FolderOptions(rules=LabelRules(reduce_zero_label=True))
    assert evaluate(package, tmp_path / "d", folders=said, record=False).variants[0].evaluation.value == value
    void = FolderOptions(rules=LabelRules(label_map={0: 255}))
    without_road = evaluate(package, tmp_path / "d", folders=void, record=False, output=tmp_path / "out")
    assert any("classes are in no label map (road" in note for note in without_road.notes)
    files = score_files(
        "mmseg", tmp_path / "d", tmp_path / "d" / "ann_dir", classes=str(package.path), unknown="upstream"
    )
    assert files.metrics["aAcc"] < 0.2, "labels of another numbering are no predictions"


def test_a_package_of_a_part_of_the_classes(tmp_path: Path, cache: None) -> None:
    """Numbers of classes that it has not are ignored, in the evaluation and in scores of its files."""
    picture, truth = scene(0)
    for folder, array in (("img_dir", picture), ("ann_dir", np.where(truth == 255, 255, truth + 4).astype(np.uint8))):
        (tmp_path / "d" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "d" / folder / "a.png"), array)
    moved = ",".join(f"{old}:{old - 4 if 4 <= old < 4 + len(LABELS) else 255}" for old in range(30))
    package = label_package(tmp_path / "net.segship", int8=False, options={"label_map": moved})
    result = evaluate(package, tmp_path / "d", record=False, predictions=tmp_path / "maps")
    assert result.variants[0].evaluation.value > 0.8
    files = score_files("mmseg", tmp_path / "d", tmp_path / "maps", classes=str(package.path))
    assert files.metrics["mIoU"] == result.variants[0].evaluation.value
    cv2.imwrite(str(tmp_path / "d" / "ann_dir" / "a.png"), np.where(truth == 255, 255, truth + 40).astype(np.uint8))
    said = FolderOptions(rules=LabelRules(label_map={place + 40: place for place in range(len(LABELS))}))
    own = evaluate(package, tmp_path / "d", folders=said, record=False)
    assert own.variants[0].evaluation.value == result.variants[0].evaluation.value, (
        "given rules take the package's place"
    )
    files = score_files("mmseg", tmp_path / "d", tmp_path / "maps", classes=str(package.path), folders=said)
    assert files.metrics["mIoU"] == own.variants[0].evaluation.value
    without = label_package(tmp_path / "plain.segship", int8=False)
    with pytest.raises(DatasetError, match="holds the unknown id"):
        evaluate(without, tmp_path / "d", record=False)


def test_options_of_other_worlds_are_refused(tmp_path: Path, cache: None) -> None:
    tree = cityscapes_tree(tmp_path / "cs")
    package = label_package(tmp_path / "net.segship", int8=False)
    with pytest.raises(UsageError, match="metrics are mIoU, mDice, mFscore, not 'IoU'"):
        evaluate(package, tree, metrics=("IoU",), record=False)
    with pytest.raises(UsageError, match="--format chooses nnU-Net's"):
        evaluate(package, tree, format="v1", record=False)
    with pytest.raises(UsageError, match="there are no surface metrics"):
        evaluate(package, tree, surface_mm=1.0, record=False)
    other = tiny_package(tmp_path / "other.segship", int8=False)
    with pytest.raises(UsageError, match="no metrics to choose for packages scored by nuclei"):
        evaluate(other, tmp_path, metrics=("mIoU",))
    with pytest.raises(DatasetError, match="so give it images and masks"):
        evaluate(other, tree, record=False)


def test_the_command(tmp_path: Path, cache: None) -> None:
    tree = cityscapes_tree(tmp_path / "cs")
    package = str(label_package(tmp_path / "net.segship", int8=False).path)
    command = [
        "evaluate",
        package,
        str(tree),
        "--layout",
        "cityscapes",
        "--split",
        "val",
        "--limit",
        "3",
        "--no-record",
    ]
    done = CliRunner().invoke(
        cli, [*command, "--metrics", "mIoU,mDice,mFscore", "--out", str(tmp_path / "maps"), "--json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found["metrics"]) == {"aAcc", "mIoU", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall"}
    assert len(found["per_class"]["Fscore"]) == 19
    assert len(list((tmp_path / "maps").glob("*_leftImg8bit.png"))) == 3
    old = CliRunner().invoke(cli, [*command, "--format", "0.x"])
    assert "\nSummary:\n\n+" in old.stdout
    for wrong, message in (
        (["--tta-ratios", "0.5,1"], "--tta-ratios are the sizes of --tta"),
        (["--tta", "1.x"], "has no test-time augmentation of pictures"),
        (["--label-map", "1"], None),
        (["--label-map", "1:x"], "a label map is written"),
    ):
        result = CliRunner().invoke(cli, [*command, *wrong])
        assert result.exit_code == (0 if message is None else 1), result.output
        assert message is None or message in str(result.exception)


def test_calibration_takes_the_training_side(tmp_path: Path) -> None:
    tree = cityscapes_tree(tmp_path / "cs", ids=True)
    for path in (tree / "leftImg8bit").rglob("*.png"):
        picture = cv2.imread(str(path))
        cv2.imwrite(str(path), cv2.resize(picture, (96, 48)))
    recipe = label_package(tmp_path / "net.segship").manifest.recipe
    assert load_calibration(tree, recipe).names == TRAIN


def test_large_pictures_are_calibrated_on_within_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segship.convert import calibration

    folder = tmp_path / "p"
    folder.mkdir()
    for seed in range(8):
        cv2.imwrite(str(folder / f"{seed}.png"), scene(seed)[0])
    recipe = label_package(tmp_path / "net.segship").manifest.recipe
    monkeypatch.setattr(calibration, "ENOUGH", 3)
    monkeypatch.setattr(calibration, "MEMORY_BYTES", 4 * 3 * 48 * 96 * 4)
    found = load_calibration(folder, recipe)
    assert (len(found.names), found.inputs.shape) == (4, (4, 3, 48, 96))


def test_published_rows_of_the_networks_own(tmp_path: Path) -> None:
    deeplab, unet = mmseg_table.REFERENCES[1:]
    assert unet.means["int8"] == (94.81, 68.82, 76.14)
    assert unet.published == 69.1
    recipe = label_package(tmp_path / "net.segship", int8=False).manifest.recipe

    def of(architecture: str, parameters: int, stride: int) -> tuple[mmseg_table.Reference, ...]:
        outputs = (recipe.network.outputs[0].model_copy(update={"stride": stride}),)
        changes = {"architecture": architecture, "parameters": parameters, "outputs": outputs}
        network = recipe.network.model_copy(update=changes)
        return mmseg_table.references_for(recipe.model_copy(update={"network": network}))

    assert of("FCN-UNet", 28_987_795, 1) == (unet,)
    assert of("DeepLabV3-ResNetV1c-101", 84_740_467, 16) == (deeplab,)
    assert of("DeepLabV3-ResNetV1c-101", 84_740_467, 8) == mmseg_table.REFERENCES, "another network of the same weights"


# ------------------------------------------------------------------------------------------------- outputs


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory, cache: None) -> tuple[Path, np.ndarray, np.ndarray]:
    """(folder with one picture and the package, the picture as RGB, its class numbers as predicted)."""
    root = tmp_path_factory.mktemp("street")
    picture = scene(5)[0]
    cv2.imwrite(str(root / "aachen_000000_000019_leftImg8bit.png"), picture)
    with Predictor.open(label_package(root / "net.segship", int8=False)) as predictor:
        labels = predictor(root / "aachen_000000_000019_leftImg8bit.png").labels
    return root, picture[..., ::-1], labels


def written(root: Path, kind: str, out: Path) -> Image.Image:
    with Predictor.open(root / "net.segship") as predictor:
        options = PredictOptions(output=OutputOptions(kind=kind))  # type: ignore[arg-type]
        picture = root / "aachen_000000_000019_leftImg8bit.png"
        assert predict_files(predictor, [picture], out, options).done == 1
    return Image.open(out / "aachen_000000_000019_leftImg8bit.png")


def test_kinds_of_label_files(street: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    root, rgb, labels = street
    colors = np.array([label.color for label in LABELS], np.uint8)
    mask = written(root, "mask", tmp_path / "mask")
    assert mask.mode == "L"
    np.testing.assert_array_equal(np.asarray(mask), labels)
    ids = written(root, "ids", tmp_path / "ids")
    assert ids.mode == "L"
    np.testing.assert_array_equal(np.asarray(ids), label_ids(labels))
    color = written(root, "color", tmp_path / "color")
    np.testing.assert_array_equal(np.asarray(color), colors[labels])
    handed_in = written(root, "cityscapes", tmp_path / "cityscapes")
    assert handed_in.mode == "P"
    np.testing.assert_array_equal(np.asarray(handed_in), label_ids(labels))
    np.testing.assert_array_equal(np.asarray(handed_in.convert("RGB")), colors[labels])
    overlay = np.asarray(written(root, "overlay", tmp_path / "overlay"))
    expected = (rgb * 0.5 + colors[labels] * 0.5).astype(np.uint8)
    np.testing.assert_array_equal(overlay, expected)


def test_label_kinds_need_labels(street: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    plain = tuple(label.model_copy(update={"file_value": None}) for label in LABELS)
    with Predictor.open(label_package(tmp_path / "plain.segship", plain, int8=False)) as predictor:
        found = predictor(street[0] / "aachen_000000_000019_leftImg8bit.png")
        np.testing.assert_array_equal(found.render(kind="ids").pixels, found.labels)
        road = found.instances()[0]
        assert (road > 0).sum() == (found.labels == 0).sum() > 0, "road is a class like the others"
        with pytest.raises(UsageError, match="does not know the label ids of Cityscapes"):
            found.render(kind="cityscapes")
        with pytest.raises(UsageError, match="nothing to cut out"):
            found.render(kind="cutout")


def test_a_class_called_background_keeps_its_overlay(cache: None, tmp_path: Path) -> None:
    labels = tuple(label.model_copy(update={"name": "background" if label.id == 0 else label.name}) for label in LABELS)
    picture = scene(5)[0]
    with Predictor.open(label_package(tmp_path / "bg.segship", labels, int8=False)) as predictor:
        drawn = predictor(picture[..., ::-1]).overlay()
        road = cv2.erode((predictor(picture[..., ::-1]).labels == 0).astype(np.uint8), np.ones((5, 5))) == 1
    np.testing.assert_array_equal(drawn[road], picture[..., ::-1][road])


def test_a_label_of_another_size_is_an_error(tmp_path: Path, cache: None) -> None:
    tree = cityscapes_tree(tmp_path / "cs")
    label = next((tree / "gtFine" / "val").rglob(f"{VAL[0]}*"))
    cv2.imwrite(str(label), np.zeros((20, 20), np.uint8))
    package = label_package(tmp_path / "net.segship", int8=False)
    with pytest.raises(DatasetError, match=rf"case {VAL[0]}: the prediction is 48×96 and its label 20×20 pixels"):
        evaluate(package, open_dataset(tree), record=False)


def test_settings_of_a_manifest(tmp_path: Path) -> None:
    package = label_package(
        tmp_path / "n.segship", int8=False, options={"ignore_index": 250, "beta": 2, "metrics": "mDice"}
    )
    settings, ids = mmseg.settings_of(package.manifest)
    assert (settings.ignore, settings.beta, settings.metrics) == (250, 2.0, ("mDice", "mIoU"))
    assert ids == tuple(range(19))
    one = package.manifest.model_copy(
        update={
            "labels": (LABELS[1].model_copy(update={"id": 1}),),
            "decode": package.manifest.decode.model_copy(update={"decision": Threshold(threshold=0.3)}),
        }
    )
    assert mmseg.settings_of(one)[0].classes == ("background", "sidewalk")
    assert mmseg.settings_of(one)[1] == (0, 1)
    assert mmseg.as_places(np.array([[7, 9, 255]]), (7, 8), 255).tolist() == [[0, 2 + 255 + 1 + 9, 255]]
