"""Salient-object metrics: golden numbers, edge cases, and PySODMetrics itself on pictures that hypothesis makes up."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segship.errors import DatasetError, UsageError
from segship.metrics import get_scorer, sod, sod_compat

INTEROP = Path(__file__).resolve().parents[2] / ".interop" / "pysodmetrics" / "bin" / "python"
GOLDEN = {
    "MAE": "MAE", "S": "S", "E_adp": "adpE", "E_mean": "meanE", "E_max": "maxE", "F_adp": "adpF", "F_mean": "meanF",
    "F_max": "maxF", "wF": "wF", "F_v2_adp": "adpF", "F_v2_max": "maxF", "F_bin": "F", "IoU_bin": "IoU",
    "Dice_bin": "Dice", "IoU_max": "maxIoU", "author_maxF": "maxF_pr",
}  # fmt: skip
SET = ("noisy", "perfect", "inverse", "gt_one_pixel", "gt_corners", "gt_grey_levels")
"""the pairs that the golden numbers of the synthetic set are averaged over"""
Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "reference" / "sod_metrics.json").read_text())
    return found


@pytest.fixture(scope="module")
def pairs(shared: Path) -> dict[str, Pair]:
    with np.load(shared / "reference" / "sod_metrics.npz") as file:
        names = [name.removesuffix("_pred") for name in file if name.endswith("_pred")]
        return {name: (file[f"{name}_pred"], file[f"{name}_gt"]) for name in names}


@pytest.fixture(scope="module")
def photos(shared: Path) -> dict[str, Pair]:
    """Released masks: U²-NetP's against U²-Net's, thresholded."""
    with np.load(shared / "reference" / "u2net_released_masks.npz") as file:
        names = [name.removesuffix("_u2net") for name in file if name.endswith("_u2net")]
        return {n: (file[f"{n}_u2netp"], np.where(file[f"{n}_u2net"] > 128, 255, 0).astype(np.uint8)) for n in names}


def check_golden(pairs: dict[str, Pair], wanted: dict[str, Any]) -> list[str]:
    """Every field of one golden entry over these pairs; returns the fields that were compared."""
    scores = [sod.score_arrays(name, *pair) for name, pair in pairs.items()]
    values, curves = sod.summarise(scores), sod.mean_curves(scores)
    found = {theirs: values[ours] for theirs, ours in GOLDEN.items()}
    found["F_max_of_mean_PR"] = float(sod.f_of_mean(curves["precision"], curves["recall"]).max())
    for name in sod_compat.NAMES:
        found |= sod_compat.summarise(name, [sod_compat.score_case(name, n, *p) for n, p in pairs.items()], scores)
    for theirs, wanted_value in wanted.items():
        if theirs.endswith("_curve_at_0_32_64_and_on"):
            np.testing.assert_allclose(curves[theirs[0]][::32], wanted_value, atol=1e-6, rtol=0)
        else:
            tolerance = 1e-3 if theirs.startswith("magicmind") else 1e-6
            assert found[theirs] == pytest.approx(wanted_value, abs=tolerance), theirs
    return list(wanted)


def test_every_golden_number_of_every_edge_case(golden: dict[str, Any], pairs: dict[str, Pair]) -> None:
    assert len(pairs) == 12
    for name, pair in pairs.items():
        assert len(check_golden({name: pair}, golden["cases"][name])) == 23


def test_the_synthetic_set_averages_curves_before_it_takes_the_maximum(
    golden: dict[str, Any], pairs: dict[str, Pair]
) -> None:
    chosen = {name: pairs[name] for name in SET}
    check_golden(chosen, golden["cases"]["synthetic_set"])
    scores = [sod.score_arrays(name, *pair) for name, pair in chosen.items()]
    mean_of_maxima = np.mean([score.values["maxF"] for score in scores])
    assert sod.summarise(scores)["maxF"] < mean_of_maxima - 0.01


def test_released_masks_of_small_photos(golden: dict[str, Any], photos: dict[str, Pair]) -> None:
    for name in ("girl", "hockey", "long", "whisk"):
        check_golden({name: photos[name]}, golden["real"][name])


@pytest.mark.slow
def test_released_masks_of_all_photos(golden: dict[str, Any], photos: dict[str, Pair]) -> None:
    check_golden(photos, golden["real_set"])
    for name, pair in photos.items():
        check_golden({name: pair}, golden["real"][name])


# ----------------------------------------------------------------------------- against the library itself


@pytest.fixture(scope="module")
def library() -> Iterator[Callable[[np.ndarray, np.ndarray], dict[str, float]]]:
    if not INTEROP.exists():
        pytest.skip("PySODMetrics has an environment of its own; type: make interop")
    worker = Path(__file__).with_name("pysodmetrics_worker.py")
    with subprocess.Popen([INTEROP, worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(pred: np.ndarray, gt: np.ndarray) -> dict[str, float]:
            process.stdin.write(json.dumps({"pred": pred.tolist(), "gt": gt.tolist()}) + "\n")
            process.stdin.flush()
            answer: dict[str, float] = json.loads(process.stdout.readline())
            return answer

        yield ask
        process.stdin.close()


@st.composite
def pictures(draw: st.DrawFn) -> Pair:
    """A map and a label of one small size: free values, few values, constant ones, one object pixel, touching edges."""
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    few = st.sampled_from([0, 1, 127, 128, 129, 254, 255])
    values = draw(st.sampled_from([st.integers(0, 255), few, st.just(0), st.just(255), st.just(77)]))
    pred = draw(hnp.arrays(np.uint8, shape, elements=values))
    labels = draw(st.sampled_from([few, st.sampled_from([0, 255]), st.just(0), st.just(255)]))
    gt = draw(hnp.arrays(np.uint8, shape, elements=labels))
    if draw(st.booleans()):
        gt = np.zeros(shape, np.uint8)
        gt[draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))] = 255
    return pred, gt


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pair=pictures())
def test_equal_to_pysodmetrics(library: Callable[[np.ndarray, np.ndarray], dict[str, float]], pair: Pair) -> None:
    pred, gt = pair
    assume(gt.size > 1)  # of one pixel the library divides by 2e-16
    wanted, found = library(pred, gt), sod.score_arrays("x", pred, gt).values
    if wanted["S"] is None:  # the library's NaN where the object's centre is on the last row or column
        rows, columns = np.nonzero(gt > 128)
        assert round(rows.mean()) == gt.shape[0] - 1 or round(columns.mean()) == gt.shape[1] - 1
        assert 0 <= found["S"] <= 1
        del wanted["S"]
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


# ------------------------------------------------------------------------------------ what must always hold


@settings(max_examples=200, deadline=None)
@given(pair=pictures())
def test_every_number_is_finite_and_in_its_range(pair: Pair) -> None:
    pred, gt = pair
    values = sod.score_arrays("x", pred, gt).values
    top = 1 + 1 / max(1, gt.size - 1)  # E alone may pass 1, by one pixel's share
    for name, value in values.items():
        assert np.isfinite(value), name
        assert 0 <= value <= (top + 1e-9 if name.endswith("E") and name != "MAE" else 1 + 1e-9), name


@settings(max_examples=100, deadline=None)
@given(pair=pictures(), flip=st.sampled_from([np.flipud, np.fliplr, np.transpose]))
def test_mirroring_changes_only_what_depends_on_a_centre(pair: Pair, flip: Callable[[np.ndarray], np.ndarray]) -> None:
    before, after = (sod.score_arrays("x", *p).values for p in (pair, (flip(pair[0]), flip(pair[1]))))
    for name in set(before) - {"S", "wF"}:  # S rounds the centre, wF takes the first of equally near pixels
        assert before[name] == pytest.approx(after[name], abs=1e-9), name


@settings(max_examples=100, deadline=None)
@given(gt=hnp.arrays(np.uint8, (9, 11), elements=st.sampled_from([0, 255])))
def test_a_perfect_map_is_perfect(gt: np.ndarray) -> None:
    assume(0 < np.count_nonzero(gt) < gt.size)
    values = sod.score_arrays("x", gt, gt).values
    assert values["MAE"] == values["MAE_raw"] == 0
    for name in ("maxF", "adpF", "maxF_pr", "wF", "S", "IoU", "Dice", "precision", "recall"):
        assert values[name] == pytest.approx(1, abs=1e-6), name


@settings(max_examples=50, deadline=None)
@given(pred=hnp.arrays(np.uint8, (7, 8)), gt=hnp.arrays(np.uint8, (7, 8), elements=st.sampled_from([0, 255])))
def test_a_float_map_scores_as_its_bytes(pred: np.ndarray, gt: np.ndarray) -> None:
    floats = (pred / np.float64(255)).astype(np.float64)
    as_bytes, as_floats = (sod.score_arrays("x", p, gt).values for p in (pred, floats))
    for name in ("MAE", "MAE_raw", "maxF", "meanF", "adpF", "S", "wF", "IoU"):
        assert as_bytes[name] == pytest.approx(as_floats[name], abs=1e-9), name


def test_one_pixel_has_numbers() -> None:
    values = sod.score_arrays("x", np.full((1, 1), 255, np.uint8), np.full((1, 1), 255, np.uint8)).values
    assert values["maxE"] == 1
    assert values["MAE"] == 0


def test_mae_255_is_the_other_scale(pairs: dict[str, Pair]) -> None:
    summary = sod.summarise([sod.score_arrays("noisy", *pairs["noisy"])])
    assert summary["MAE_255"] == pytest.approx(255 * summary["MAE"])
    assert pytest.approx(8.7251 / 255, abs=5e-5) == 0.0342
    assert "8.7251" in sod.REMARKS[0]
    assert list(summary) == list(sod.METRICS)


def test_sizes_and_names_are_checked(pairs: dict[str, Pair]) -> None:
    pred, gt = pairs["noisy"]
    with pytest.raises(DatasetError, match="sizes must be equal"):
        sod.score_arrays("a", pred[:-1], gt)
    with pytest.raises(DatasetError, match="case a: the map is 131×97, the label 97×131: one of them is turned by 90°"):
        sod.fit("a", pred.T, gt.shape, "pillow:bilinear")
    fitted, note = sod.fit("a", pred[:50, :60], gt.shape, "pillow:bilinear")
    assert fitted.shape == gt.shape
    assert fitted.dtype == np.uint8
    assert note == "50×60 to 97×131 by pillow:bilinear"
    assert sod.fit("a", pred, gt.shape, "pillow:bilinear")[0] is pred
    with pytest.raises(UsageError, match="magicmind or author"):
        sod_compat.check("matlab")
    assert get_scorer("sod") is sod
    assert sod.summarise([]) == {}


def test_an_empty_label_ruins_the_vendors_whole_set(pairs: dict[str, Pair]) -> None:
    both = [pairs["noisy"], pairs["gt_empty"]]
    scores = [sod_compat.score_case("magicmind", "x", *pair) for pair in both]
    own = [sod.score_arrays("x", *pair) for pair in both]
    assert sod_compat.summarise("magicmind", scores, own)["magicmind_maxf"] == 0
    assert sod_compat.summarise("magicmind", scores[:1], own[:1])["magicmind_maxf"] > 4
