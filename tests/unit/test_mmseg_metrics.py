"""IoUMetric's numbers: the reference cases, a per-pixel count, torch's histograms, its tables, drops over summed areas."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import evaluation
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segship.errors import DatasetError, UsageError
from segship.metrics import get_scorer, mmseg
from segship.metrics.bootstrap import pooled_bootstrap
from segship.metrics.evaluation import Evaluation, drop_against
from segship.metrics.mmseg import Settings, class_areas, numbers, score_arrays, summarise
from segship.metrics.mmseg_tables import percent

CLASSES = tuple(f"c{k}" for k in range(19))
CASES = {
    "default": {"metrics": ("mIoU", "mDice", "mFscore")},
    "miou_only": {},
    "beta_2_nan_0": {"metrics": ("mIoU", "mDice", "mFscore"), "beta": 2.0, "nan_to_num": 0.0},
    "nan_minus_1": {"nan_to_num": -1.0},
    "label_out_of_range": {"unknown": "upstream"},
    "first_image_only": {},
    "ignore_index_0": {"ignore": 0, "unknown": "upstream"},
}


@pytest.mark.parametrize("name", CASES)
def test_reference(shared: Path, name: str) -> None:
    expected = json.loads((shared / "reference" / "iou_metric.json").read_text())["cases"][name]
    stored = np.load(shared / "reference" / "iou_metric.npz")
    how = Settings(classes=CLASSES, **CASES[name])
    scores = []
    for number in range(1 if name == "first_image_only" else 3):
        label = stored[f"label_{number}"].copy()
        if name == "label_out_of_range" and number == 0:
            label[:4] = 30
        scores.append(score_arrays(str(number), stored[f"pred_{number}"], label, how))
    sums = mmseg.total(scores)[0]
    for row, key in enumerate(("area_intersect", "area_union", "area_pred", "area_label")):
        np.testing.assert_array_equal(sums[row], expected[key])
    found = summarise(scores)
    for key, value in expected["summary"].items():
        assert percent(found[key]) == pytest.approx(value, abs=0.0051), key
    for kind, values in expected["per_class"].items():
        got = [found["aAcc"]] if kind == "aAcc" else [found[f"{kind}.{c}"] for c in CLASSES]
        np.testing.assert_allclose(got, [math.nan if v is None else v for v in values], atol=1e-6, equal_nan=True)
    assert set(expected["summary"]) == {key for key in found if "." not in key}


def by_pixel(pred: np.ndarray, label: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    areas = np.zeros((4, classes), np.int64)
    for p, t in zip(pred.ravel().tolist(), label.ravel().tolist(), strict=True):
        if t == ignore:
            continue
        if p == t < classes:
            areas[0, p] += 1
        if p < classes:
            areas[2, p] += 1
        if t < classes:
            areas[3, t] += 1
    areas[1] = areas[2] + areas[3] - areas[0]
    return areas


PAIRS = st.integers(2, 7).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        arrays(np.uint8, (5, 6), elements=st.sampled_from([*range(classes), classes, 40, 255])),
        arrays(np.uint8, (5, 6), elements=st.sampled_from([*range(classes), classes + 1, 40, 255])),
        st.sampled_from([255, 0, 1, 40]),
    )
)


@settings(max_examples=150, deadline=None)
@given(PAIRS)
def test_areas_are_those_of_a_count_and_of_torchs_histograms(drawn: tuple[int, np.ndarray, np.ndarray, int]) -> None:
    classes, pred, label, ignore = drawn
    areas = class_areas(pred, label, classes, ignore)
    np.testing.assert_array_equal(areas, by_pixel(pred, label, classes, ignore))
    torch = pytest.importorskip("torch")
    kept = label != ignore
    p, t = (torch.from_numpy(a[kept].astype(np.float32)) for a in (pred, label))

    def histogram(values: Any) -> np.ndarray:
        return torch.histc(values, bins=classes, min=0, max=classes - 1).numpy().astype(np.int64)

    np.testing.assert_array_equal(areas[[0, 2, 3]], [histogram(p[p == t]), histogram(p), histogram(t)])


@settings(max_examples=60, deadline=None)
@given(arrays(np.int64, (4, 5), elements=st.integers(0, 3)), st.sampled_from([0.5, 1.0, 2.0]))
def test_numbers_class_by_class(drawn: np.ndarray, beta: float) -> None:
    inter, extra, missed = drawn[0], drawn[1], drawn[2]
    areas = np.stack([inter, inter + extra + missed, inter + extra, inter + missed])
    found = numbers(areas, ("IoU", "Acc", "Dice", "Fscore", "Precision", "Recall"), beta)

    def ratio(a: float, b: float) -> float:
        return a / b if b else math.nan

    for k in range(5):
        i, u, p, t = (int(v) for v in areas[:, k])
        r, q = ratio(i, t), ratio(i, p)
        under = beta**2 * q + r
        expected = {
            "IoU": ratio(i, u), "Acc": r, "Recall": r, "Precision": q, "Dice": ratio(2 * i, p + t),
            "Fscore": math.nan if math.isnan(under) or not under else (1 + beta**2) * q * r / under,
        }  # fmt: skip
        for name, value in expected.items():
            assert found[name][k] == pytest.approx(value, nan_ok=True), name


def test_wide_labels_and_order_do_not_matter() -> None:
    random = np.random.default_rng(0)
    pred, label = random.integers(0, 300, (2, 40, 50))
    np.testing.assert_array_equal(
        class_areas(pred.astype(np.uint16), label.astype(np.uint16), 290, 299), by_pixel(pred, label, 290, 299)
    )


def test_sums_beyond_float32_stay_whole() -> None:
    label = np.zeros((600, 1000), np.uint8)
    label[0, 0] = 1
    how = Settings(classes=("a", "b"))
    one = score_arrays("x", label, label, how)
    assert one.areas is not None
    assert mmseg.total([one] * 100)[0][3].tolist() == [59_999_900, 100]


def test_unknown_ids() -> None:
    label = np.array([[0, 1, 7, 255]], np.uint8)
    pred = np.array([[0, 1, 1, 1]], np.uint8)
    with pytest.raises(DatasetError, match="case a: its label map holds the unknown id 7, but classes are 0 to 1"):
        score_arrays("a", pred, label, Settings(classes=("a", "b")))
    counted = score_arrays("a", pred, label, Settings(classes=("a", "b"), unknown="upstream"))
    left = score_arrays("a", pred, label, Settings(classes=("a", "b"), unknown="ignore"))
    assert counted.areas is not None
    assert left.areas is not None
    assert counted.areas.values[2].tolist() == [1, 2], "a wrong prediction there still counts"
    assert left.areas.values[2].tolist() == [1, 1]
    assert counted.notes == ("1 pixels hold the unknown id 7",)
    assert mmseg.notes([counted]) == (
        "label maps with unknown ids, counted as upstream does: 1 of 1 (first a: 1 pixels hold the unknown id 7)",
    )
    with pytest.raises(DatasetError, match="look like Cityscapes' label ids"):
        score_arrays("a", pred, np.full((1, 4), 33, np.uint8), Settings(classes=CLASSES))


def test_faulty_settings_and_shapes() -> None:
    with pytest.raises(UsageError, match="metrics are mIoU, mDice, mFscore, not 'IoU'"):
        Settings(classes=("a",), metrics=("IoU",))
    with pytest.raises(UsageError, match="beta is above 0"):
        Settings(classes=("a",), beta=0)
    with pytest.raises(DatasetError, match="case a: the prediction is 2×2 and its label 2×3 pixels"):
        score_arrays("a", np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), Settings(classes=("a", "b")))


def test_nothing_scored_is_no_number() -> None:
    void = np.full((3, 3), 255, np.uint8)
    score = score_arrays("a", void * 0, void, Settings(classes=("a", "b")))
    assert all(math.isnan(value) for value in score.values.values())
    assert "no pixel has a label that is scored" in mmseg.notes([score])[0]


TABLE_1X = """\
per class results:

+---------------+-------+-------+
|     Class     |  IoU  |  Acc  |
+---------------+-------+-------+
|      road     |  50.0 | 66.67 |
|    sidewalk   | 33.33 | 100.0 |
| traffic light |  nan  |  nan  |
+---------------+-------+-------+

aAcc: 75.0000  mIoU: 41.6700  mAcc: 83.3300"""

SUMMARY_0X = """\
Summary:

+------+-------+-------+
| aAcc |  mIoU |  mAcc |
+------+-------+-------+
| 75.0 | 41.67 | 83.33 |
+------+-------+-------+"""


def test_tables_are_mmsegs_own() -> None:
    values = {
        "aAcc": 0.75, "mIoU": 0.416666, "mAcc": 0.833333,
        "IoU.road": 0.5, "IoU.sidewalk": 1 / 3, "IoU.traffic light": math.nan,
        "Acc.road": 2 / 3, "Acc.sidewalk": 1.0, "Acc.traffic light": math.nan,
    }  # fmt: skip
    assert mmseg.table(values) == TABLE_1X
    old = mmseg.table(values, form="0.x")
    assert old.endswith(SUMMARY_0X)
    assert old.startswith(TABLE_1X[: TABLE_1X.index("aAcc")])
    assert mmseg.table({"aAcc": 1.0}) == "aAcc: 100.0000"


def test_two_classes_of_one_name_keep_their_numbers() -> None:
    label = np.array([[0, 1, 2, 2]], np.uint8)
    found = summarise([score_arrays("a", label, label, Settings(classes=("other", "car", "other")))])
    assert [name for name in found if name.startswith("IoU.")] == ["IoU.other 0", "IoU.car", "IoU.other 2"]


# --------------------------------------------------------------------------------------------------- drops


def evaluated(pairs: list[tuple[np.ndarray, np.ndarray]], precision: str) -> Evaluation:
    how = Settings(classes=("a", "b", "c"))
    scores = [score_arrays(str(k), pred, label, how) for k, (pred, label) in enumerate(pairs)]
    return evaluation("mIoU", summarise(scores), scores, precision=precision, pooled=mmseg.summed(scores))


def test_a_drop_of_summed_areas_has_an_interval_by_drawing_images_again() -> None:
    random = np.random.default_rng(3)
    labels = [random.integers(0, 3, (8, 9)).astype(np.uint8) for _ in range(30)]
    spoilt = []
    for label in labels:
        worse = label.copy()
        worse[:2] = (worse[:2] + random.integers(0, 2, (2, 9))) % 3
        spoilt.append(worse)
    fp32 = evaluated(list(zip(labels, labels, strict=True)), "fp32")
    int8 = evaluated(list(zip(spoilt, labels, strict=True)), "int8")
    drop = drop_against(fp32, int8)
    assert drop.drop == pytest.approx(1 - int8.metrics["mIoU"])
    low, high = drop.interval95
    assert low < drop.drop < high
    assert high - low < 0.1
    assert drop.cases == 30
    assert drop.worst_drop == pytest.approx(1 - min(int8.per_case().values()))
    assert drop_against(fp32, int8, "aAcc").drop == pytest.approx(1 - int8.metrics["aAcc"])
    with pytest.raises(UsageError, match="no value per case"):
        drop_against(fp32, int8, "IoU.a")


def test_pooled_bootstrap_against_a_loop() -> None:
    random = np.random.default_rng(5)
    a, b = random.integers(1, 50, (2, 6, 4, 3))

    def value(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0, :].sum(axis=-1) / sums[..., 3, :].sum(axis=-1)

    found = pooled_bootstrap(a, b, value, resamples=500, seed=1)
    generator = np.random.default_rng(1)
    often = generator.multinomial(6, np.full(6, 1 / 6), 500)
    draws = [
        float(value(np.tensordot(n, a, 1).astype(float)) - value(np.tensordot(n, b, 1).astype(float))) for n in often
    ]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert found.mean == pytest.approx(float(value(a.sum(axis=0)) - value(b.sum(axis=0))))


def test_the_scorer_is_found_and_explains_its_numbers() -> None:
    scorer = get_scorer("mmseg")
    assert scorer.explain("mIoU").startswith("intersection / union of each class")
    assert scorer.explain("Acc.traffic light") == "Acc of traffic light over all images"
    assert scorer.explain("whatever.else") == ""
