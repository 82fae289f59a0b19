"""The nuclei metrics: against the original implementation's numbers, scikit-learn, and constructed cases."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit

from segship.errors import DatasetError, UsageError
from segship.metrics import get_scorer, nuclei
from segship.metrics.bootstrap import paired_bootstrap, worst_case
from segship.metrics.files_dsb2018 import score_files

MASKS = arrays(np.bool_, st.tuples(*[st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)]))


def pairs(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    return st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape))


# --- outside truth ------------------------------------------------------------------------------------------


def test_pipeline_reference(shared: Path) -> None:
    expected = json.loads((shared / "reference/dsb2018_pipeline.json").read_text())["metrics"]
    stored = np.load(shared / "reference/dsb2018_pipeline.npz")
    scores = [
        nuclei.score_arrays(str(i), logits, mask[None])
        for i, (logits, mask) in enumerate(zip(stored["output0"], stored["mask"], strict=True))
    ]
    summary = nuclei.summarise(scores)
    per_image = [score.values["iou"] for score in scores]
    assert per_image == pytest.approx(expected["iou_per_image_sigmoid"], abs=1e-6)
    assert summary["iou"] == pytest.approx(expected["mean_of_images_sigmoid"], abs=1e-6)
    half = [score.values["iou-logit-half"] for score in scores]
    assert half == pytest.approx(expected["iou_per_image_logit_above_half"], abs=1e-6)
    assert summary["iou-logit-half"] == pytest.approx(expected["mean_of_images_logit_above_half"], abs=1e-6)
    # all eight fit into one batch of 16
    assert summary["iou-batch16"] == pytest.approx(expected["iou_all_pixels_of_the_batch"], abs=1e-6)
    assert summary["soft-dice"] == pytest.approx(expected["soft_dice_coef"], abs=1e-5)
    of_three = nuclei.pooled(scores, 3, "intersection", "union")
    assert of_three == pytest.approx(expected["mean_over_batches_of_3_weighted_by_size"], abs=1e-6)


def test_training_reference(shared: Path) -> None:
    for case in json.loads((shared / "reference/nested_unet_training.json").read_text())["losses"]:
        size = int(np.prod(case["shape"]))
        index = np.arange(size)
        logits = np.float32(3.0 * np.sin(0.37 * (index + 1))).reshape(case["shape"])
        grey = ((7919 * index) % 256).astype(np.uint8)
        target = {
            "soft": grey,
            "hard": np.where(np.float32(grey) / 255 > 0.5, 255, 0).astype(np.uint8),
            "all zero": np.zeros(size, np.uint8),
            "all one": np.full(size, 255, np.uint8),
        }[case["target"]].reshape(case["shape"])
        scores = [nuclei.score_arrays(str(i), x, t) for i, (x, t) in enumerate(zip(logits, target, strict=True))]
        summary = nuclei.summarise(scores)
        assert summary["iou-batch16"] == pytest.approx(case["iou_score"], abs=1e-5)
        assert summary["soft-dice"] == pytest.approx(case["dice_coef"], abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)).flatmap(pairs))
def test_iou_and_dice_equal_scikit_learn(masks: tuple[np.ndarray, np.ndarray]) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is only needed for this comparison")
    predicted, target = masks
    if not (predicted | target).any():
        assert nuclei.iou(predicted, target) == nuclei.dice(predicted, target) == 1.0
        return
    # the smoothing of 1e-5 is all that may differ, most on one-pixel masks
    assert nuclei.iou(predicted, target) == pytest.approx(
        metrics.jaccard_score(target.ravel(), predicted.ravel(), zero_division=0.0), abs=2e-5
    )
    assert nuclei.dice(predicted, target) == pytest.approx(
        metrics.f1_score(target.ravel(), predicted.ravel(), zero_division=0.0), abs=2e-5
    )


# --- properties -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(MASKS.flatmap(lambda m: st.tuples(st.just(m), arrays(np.bool_, m.shape))))
def test_iou_properties(masks: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = masks
    assert nuclei.iou(a, b) == nuclei.iou(b, a)
    assert 0 < nuclei.iou(a, b) <= nuclei.dice(a, b) <= 1
    assert nuclei.iou(a, a) == 1.0


def test_thresholds_differ_as_named() -> None:
    target = np.full((1, 1, 4), 255, np.uint8)
    # probabilities 0.5005 (above half, below 128/255), 0.6 (below the logit-half threshold), 0.7, 0.5 exactly
    logits = np.float32([[[0.002, np.log(0.6 / 0.4), np.log(0.7 / 0.3), 0.0]]])
    values = nuclei.score_arrays("a", logits, target).values
    assert values["iou"] == pytest.approx(3 / 4, abs=1e-4)
    assert values["iou-8bit"] == pytest.approx(2 / 4, abs=1e-4)
    assert values["iou-logit-half"] == pytest.approx(1 / 4, abs=1e-4)


def test_target_threshold_is_128() -> None:
    logits = np.full((1, 1, 2), 5, np.float32)
    assert nuclei.score_arrays("a", logits, np.uint8([[[127, 128]]])).values["iou"] == pytest.approx(0.5, abs=1e-4)


def test_empty_target_with_a_false_positive_is_nearly_zero() -> None:
    logits = np.full((1, 2, 2), -5, np.float32)
    target = np.zeros((1, 2, 2), np.uint8)
    assert nuclei.score_arrays("a", logits, target).values["iou"] == 1.0
    logits[0, 0, 0] = 5
    assert nuclei.score_arrays("a", logits, target).values["iou"] < 2e-5


def test_batch16_depends_on_order_and_weights_the_short_batch() -> None:
    full = [nuclei.score_arrays(str(i), np.full((1, 1, 1), 5, np.float32), np.uint8([[[255]]])) for i in range(16)]
    empty = nuclei.score_arrays("z", np.full((1, 1, 1), -5, np.float32), np.uint8([[[255]]]))
    assert nuclei.summarise([*full, empty])["iou-batch16"] == pytest.approx(16 / 17, abs=1e-4)
    assert nuclei.summarise([empty, *full])["iou-batch16"] == pytest.approx((16 * 15 / 16 + 1) / 17, abs=1e-4)


def test_classes_are_pooled_and_listed() -> None:
    logits = np.float32([[[5, -5]], [[-5, -5]]])
    values = nuclei.score_arrays("a", logits, np.uint8([[[255, 0]], [[255, 0]]])).values
    assert values["iou"] == pytest.approx(0.5, abs=1e-4)
    assert values["iou-class0"] == 1.0
    assert values["iou-class1"] < 1e-4


def test_full_size_and_table_name_every_number() -> None:
    masks = np.ones((1, 4, 4), bool)
    score = nuclei.score_arrays("a", np.full((1, 2, 2), 5, np.float32), np.full((1, 2, 2), 255, np.uint8), masks, masks)
    summary = nuclei.summarise([score])
    assert list(summary)[:2] == ["iou", "iou-batch16"]
    assert summary["iou-full"] == 1.0
    for name in nuclei.METRICS:
        assert f"{name} " in nuclei.table(summary)


def test_shape_mismatch_is_explained() -> None:
    with pytest.raises(DatasetError, match="case a: the prediction is 2×1×2 and the ground truth 1×1×2"):
        nuclei.score_arrays("a", np.zeros((2, 1, 2), np.float32), np.zeros((1, 1, 2), np.uint8))


def test_scorers_are_found_by_name() -> None:
    assert get_scorer("nuclei") is nuclei
    with pytest.raises(UsageError, match="nuclei"):
        get_scorer("kidneys")


# --- differences between precisions ------------------------------------------------------------------------------


def test_bootstrap_finds_the_mean_and_repeats() -> None:
    random = np.random.default_rng(1)
    a = random.normal(0.8, 0.1, 120)
    b = a - random.normal(0.01, 0.02, 120)
    interval = paired_bootstrap(a, b, resamples=2000)
    assert interval.mean == pytest.approx((a - b).mean())
    assert interval.low < interval.mean < interval.high
    # the normal approximation is close for 120 cases
    assert interval.high - interval.mean == pytest.approx(1.96 * (a - b).std() / np.sqrt(120), rel=0.15)
    assert paired_bootstrap(a, b, resamples=2000) == interval


def test_bootstrap_of_equal_scores_has_no_width() -> None:
    assert paired_bootstrap([0.5, 0.7], [0.5, 0.7], resamples=50).bounds == (0.0, 0.0)


def test_bootstrap_refuses_other_cases() -> None:
    with pytest.raises(UsageError, match="same cases"):
        paired_bootstrap([0.5], [0.5, 0.6])


def test_worst_case_is_the_largest_loss() -> None:
    worst = worst_case({"a": 0.9, "b": 0.8, "c": 0.1}, {"a": 0.8, "b": 0.5, "c": 0.4})
    assert (worst.id, worst.drop) == ("b", pytest.approx(0.3))
    assert worst_case({"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 2.5}, higher_is_better=False).id == "a"


# --- files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """A folder of masks, an empty folder for predictions, and logits for three cases."""
    random = np.random.default_rng(3)
    truth, pred = tmp_path / "masks", tmp_path / "pred"
    (truth / "0").mkdir(parents=True)
    pred.mkdir()
    logits = {}
    for name in ("aa", "bb", "cc"):
        logits[name] = random.normal(0, 2, (96, 96)).astype(np.float32)
        mask = np.uint8(255) * (logits[name] + random.normal(0, 1, (96, 96)) > 0)
        cv2.imwrite(str(truth / "0" / f"{name}.png"), mask.astype(np.uint8))
    return truth, pred, logits


def test_score_raw_logits(prepared: tuple[Path, Path, dict[str, np.ndarray]]) -> None:
    truth, pred, logits = prepared
    for name, values in logits.items():
        values.tofile(pred / f"{name}_0.bin")
    result = score_files(truth, pred)
    masks = {name: cv2.imread(str(truth / "0" / f"{name}.png"), cv2.IMREAD_GRAYSCALE) for name in logits}
    expected = np.mean([nuclei.iou(values > 0, masks[name] > 127) for name, values in logits.items()])
    assert result.metrics["iou"] == pytest.approx(expected)
    assert {"iou-logit-half", "iou-8bit", "soft-dice", "iou-batch16"} <= set(result.metrics)
    assert "iou-logit-half" in result.as_text()
    assert result.as_dict()["cases"] == 3


def test_score_png_masks_equals_logits(prepared: tuple[Path, Path, dict[str, np.ndarray]]) -> None:
    truth, pred, logits = prepared
    other = pred.parent / "bin"
    other.mkdir()
    for name, values in logits.items():
        values.tofile(other / f"{name}_0.bin")
        cv2.imwrite(str(pred / f"{name}.png"), np.where(values > 0, 255, 0).astype(np.uint8))
    masks, raw = score_files(truth, pred).metrics, score_files(truth, other).metrics
    assert masks == {name: pytest.approx(raw[name]) for name in ("iou", "iou-batch16", "dice")}


def test_score_probability_images_are_cut_at_128(prepared: tuple[Path, Path, dict[str, np.ndarray]]) -> None:
    truth, pred, logits = prepared
    for name, values in logits.items():
        cv2.imwrite(str(pred / f"{name}.png"), (expit(values) * 255).astype(np.uint8))
    other = pred.parent / "bin"
    other.mkdir()
    for name, values in logits.items():
        values.tofile(other / f"{name}_0.bin")
    assert score_files(truth, pred).metrics["iou"] == pytest.approx(score_files(truth, other).metrics["iou-8bit"])


def test_score_missing_and_unknown_pairs(prepared: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    truth, pred, logits = prepared
    with pytest.raises(DatasetError, match="holds no prediction"):
        score_files(truth, pred)
    logits["aa"].tofile(pred / "aa_0.bin")
    with pytest.raises(DatasetError, match=r"no prediction in .* for 2 of 3 .*bb, cc.*--allow-missing"):
        score_files(truth, pred)
    allowed = score_files(truth, pred, allow_missing=True)
    assert allowed.as_dict()["cases"] == 1
    assert "left out" in allowed.notes[-1]
    (tmp_path / "ids.txt").write_text("aa\n")
    assert score_files(truth, pred, split=tmp_path / "ids.txt").as_dict()["cases"] == 1
    logits["aa"].tofile(pred / "zz_0.bin")
    with pytest.raises(DatasetError, match=r"without ground truth: 1 \(zz\)"):
        score_files(truth, pred, allow_missing=True)
    assert "left out" in score_files(truth, pred, split=tmp_path / "ids.txt").notes[0]


def test_score_refuses_what_it_cannot_mean(prepared: tuple[Path, Path, dict[str, np.ndarray]]) -> None:
    truth, pred, logits = prepared
    for name in logits:
        cv2.imwrite(str(pred / f"{name}.png"), np.ones((96, 96), np.uint8))
    with pytest.raises(DatasetError, match="only 0 and 1"):
        score_files(truth, pred)
    cv2.imwrite(str(pred / "aa.png"), np.zeros((50, 40), np.uint8))
    with pytest.raises(DatasetError, match="50×40: neither the network's size 96×96"):
        score_files(truth, pred)
    (pred / "aa.png").unlink()
    (pred / "aa_0.bin").write_bytes(b"123")
    with pytest.raises(DatasetError, match="3 bytes"):
        score_files(truth, pred)
    np.full((96, 96), np.nan, np.float32).tofile(pred / "aa_0.bin")
    with pytest.raises(DatasetError, match="NaN"):
        score_files(truth, pred)
    (pred / "aa.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="both predictions of aa"):
        score_files(truth, pred)


def test_score_full_size_against_the_raw_archive(shared: Path, tmp_path: Path) -> None:
    """The ground truth itself, written as predictions at its own size, scores 1."""
    from segship.datasets import open_dataset

    archive = shared / "data/dsb2018/stage1_train.zip"
    ids = json.loads((shared / "reference/dsb2018_pipeline.json").read_text())["ids"][:3]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    (tmp_path / "pred").mkdir()
    for case in open_dataset(archive, split=tmp_path / "ids.txt").cases:
        cv2.imwrite(str(tmp_path / "pred" / f"{case.id}.png"), case.target()[0].astype(np.uint8) * 255)
    result = score_files(archive, tmp_path / "pred", split=tmp_path / "ids.txt")
    assert result.metrics == {"iou-full": 1.0, "dice-full": 1.0}
