"""nnU-Net's numbers: equal to both versions' own on the reference pairs, and true of any pair of label arrays."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segship.errors import DatasetError, UsageError
from segship.metrics import nnunet, nnunet_v1
from segship.metrics.confusion import confusion, count
from segship.metrics.surfaces import surface_scores

NEVER_STORED = ("id", "timestamp")


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reference = shared / "reference"
    with np.load(reference / "nnunet_metrics.npz") as stored:
        return json.loads((reference / "nnunet_metrics.json").read_text()), dict(stored)


def equal(found: Any, wanted: Any, where: str = "") -> None:
    """Numbers to 1e-12 and of one type, null for NaN; keys in one order."""
    if isinstance(wanted, dict):
        own = [key for key in found if key != "foreground_mean_present"]
        assert own == list(wanted), where
        for key in wanted:
            if key not in NEVER_STORED:
                equal(found[key], wanted[key], f"{where}/{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for n, (one, other) in enumerate(zip(found, wanted, strict=True)):
            equal(one, other, f"{where}/{n}")
    elif wanted is None:
        assert math.isnan(found), where
    elif isinstance(wanted, str):
        assert found == wanted, where
    else:
        assert type(found) is type(wanted), where
        assert found == pytest.approx(wanted, abs=1e-12), where


def scored(golden: Any, keys: dict[Any, str], ignore: int | None = None) -> list[Any]:
    about, stored = golden
    return [nnunet.score_arrays(c, stored[f"{c}__ref"], stored[f"{c}__pred"], keys, ignore) for c in about["cases"]]


def files(golden: Any) -> list[tuple[str, str]]:
    return [(f"pred/{case}.nii.gz", f"gt/{case}.nii.gz") for case in golden[0]["cases"]]


@pytest.mark.parametrize("which", ["labels", "labels_ignore3", "regions", "regions_mixed", "with_absent_label"])
def test_v2_writes_upstreams_summary(golden: Any, which: str) -> None:
    wanted = golden[0]["v2"][which]
    keys = {tuple(key) if isinstance(key, list) else key: "" for key in wanted["regions_or_labels"]}
    text = nnunet.summary_file(scored(golden, keys, wanted["ignore_label"]), files(golden))
    equal(json.loads(text), wanted["summary"])
    assert b"NaN" in text, "upstream writes the bare token"
    assert b"null" not in text
    present = json.loads(text)["foreground_mean_present"]["Dice"]
    means = [row["Dice"] for row in json.loads(text)["mean"].values()]
    assert present == pytest.approx(np.nanmean(means))


def test_v1_writes_upstreams_summary(golden: Any) -> None:
    text = nnunet.summary_file(scored(golden, {1: "", 2: ""}), files(golden), "v1")
    found = json.loads(text)
    equal(found, golden[0]["v1"])
    assert len(found["id"]) == 12
    assert set(found["results"]["mean"]["1"]) == set(nnunet_v1.NAMES)


def test_a_label_that_is_nowhere_spoils_upstreams_mean_only(golden: Any) -> None:
    found = nnunet.summarise(scored(golden, {1: "liver", 2: "tumour", 9: "spleen"}))
    assert math.isnan(found["foreground_mean"])
    assert math.isnan(found["Dice spleen"])
    assert found["foreground_mean_present"] == pytest.approx(np.mean([found["Dice liver"], found["Dice tumour"]]))
    assert found["Dice"] == pytest.approx(0.67375673, abs=1e-8), "a case's mean leaves out what it does not hold"


def test_dice_is_foreground_mean_where_every_label_is_in_every_case() -> None:
    random = np.random.default_rng(0)
    keys = {1: "a", 2: "b"}
    pairs = [random.integers(0, 3, (2, 3, 6, 5)) for _ in range(4)]
    found = nnunet.summarise([nnunet.score_arrays(str(n), a, b, keys) for n, (a, b) in enumerate(pairs)])
    assert found["Dice"] == pytest.approx(found["foreground_mean"])
    assert found["foreground_mean"] == found["foreground_mean_present"]


def test_cases_without_a_dice_are_told(golden: Any) -> None:
    notes = nnunet.notes(scored(golden, {1: "", 2: ""}))
    assert notes == (
        "1 of 8 cases have no Dice, as no label is in reference or prediction (first: c5_both_empty): means leave them out",
    )


def test_shapes_that_differ_are_one_line() -> None:
    with pytest.raises(DatasetError, match="case x: the prediction has 2×3×4 voxels and the reference 2×3×5"):
        nnunet.score_arrays("x", np.zeros((2, 3, 5), np.uint8), np.zeros((2, 3, 4), np.uint8), {1: ""})


# ------------------------------------------------------------------------------------- any pair of arrays

labels = st.one_of(
    arrays(np.uint16, (2, 4, 5), elements=st.sampled_from([0, 1, 2, 3, 255, 700])),
    arrays(np.uint8, (2, 4, 5), elements=st.sampled_from([0, 1, 2, 3, 255])),
)
some_key = st.one_of(
    st.sampled_from([1, 2, 255, 700, 9]), st.sets(st.sampled_from([1, 2, 3, 255, 700]), min_size=1).map(tuple)
)
SETTINGS = settings(max_examples=60, deadline=None)


@SETTINGS
@given(labels, labels, some_key, st.sampled_from([None, 3]))
def test_counts_are_those_of_masks(reference: Any, predicted: Any, key: Any, ignore: int | None) -> None:
    found = count(reference, predicted, [key], ignore)[key]
    ids = [key] if isinstance(key, int) else list(key)
    used = np.ones(reference.shape, bool) if ignore is None else reference != ignore
    a, b = np.isin(reference, ids), np.isin(predicted, ids)
    assert found.tp == (a & b & used).sum()
    assert found.fp == (~a & b & used).sum()
    assert found.fn == (a & ~b & used).sum()
    assert found.tn == (~a & ~b & used).sum()


@SETTINGS
@given(labels, labels)
def test_tables_hold_every_voxel_and_turn_over(first: Any, second: Any) -> None:
    there, back = confusion(first, second), confusion(second, first)
    assert there.table.sum() == first.size
    assert np.array_equal(there.table, back.table.T)


@SETTINGS
@given(labels, labels, some_key)
def test_relations_between_the_numbers(reference: Any, predicted: Any, key: Any) -> None:
    found = count(reference, predicted, [key])[key]
    v2, v1 = nnunet.v2_values(found), nnunet_v1.values(found)
    same = (math.isnan(v2["Dice"]) and math.isnan(v1["Dice"])) or v2["Dice"] == v1["Dice"]
    assert same
    if found.predicted or found.reference:
        assert v2["Dice"] == pytest.approx(2 * v2["IoU"] / (1 + v2["IoU"]))
    else:
        assert all(math.isnan(v1[name]) for name in ("Dice", "Jaccard", "Precision", "Recall"))
    assert v2["n_pred"] == v1["Total Positives Test"]
    assert 0 <= v1["Accuracy"] <= 1
    perfect = nnunet.v2_values(count(reference, reference, [key])[key])["Dice"]
    assert perfect == 1 or math.isnan(perfect)


@SETTINGS
@given(labels, labels, st.integers(0, 2))
def test_mirroring_both_changes_nothing(reference: Any, predicted: Any, axis: int) -> None:
    keys = {1: "a", (1, 2): "b"}
    here = nnunet.score_arrays("x", reference, predicted, keys)
    there = nnunet.score_arrays("x", np.flip(reference, axis), np.flip(predicted, axis), keys)
    assert here.counts == there.counts


# ---------------------------------------------------------------------------------------------- surfaces


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float, spacing: tuple[float, ...]) -> np.ndarray:
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    return np.asarray(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2)


def test_surface_distances_are_millimetres() -> None:
    cube = np.zeros((12, 20, 20), bool)
    cube[3:8, 5:15, 5:15] = True
    moved = np.roll(cube, 1, axis=0)
    same = surface_scores(cube, cube, (3, 1, 1))
    assert same == {"NSD": 1.0, "HD95": 0.0}
    apart = surface_scores(cube, moved, (3, 1, 1), tolerance_mm=2.9)
    assert apart["HD95"] == 3.0, "one slice of 3 mm"
    assert 0 < apart["NSD"] < 1
    assert surface_scores(cube, moved, (3, 1, 1), tolerance_mm=3)["NSD"] == 1
    # an exact transform over the surface voxels says the same for balls 4 mm apart in radius
    spacing = (2.0, 1.0, 1.0)
    small, large = (ball((24, 48, 48), (23, 23, 23), r, spacing) for r in (12, 16))
    assert surface_scores(small, large, spacing)["HD95"] == pytest.approx(4, abs=1)
    assert surface_scores(small, large, spacing, 6)["NSD"] == 1


def test_empty_masks_have_rules_of_their_own() -> None:
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    both = surface_scores(empty, empty, (2, 1, 1))
    assert math.isnan(both["NSD"])
    assert math.isnan(both["HD95"])
    one = surface_scores(empty, full, (2, 1, 1))
    assert one == {"NSD": 0.0, "HD95": pytest.approx(math.sqrt(36 + 16 + 25))}
    assert surface_scores(full, empty, (2, 1, 1)) == one


def test_a_single_slice_is_a_picture() -> None:
    disc = ball((40, 40), (20, 20), 9, (1, 1))
    moved = np.roll(disc, 3, axis=1)
    assert surface_scores(disc[None], moved[None], (999, 1, 1))["HD95"] == pytest.approx(3, abs=0.2)
    assert surface_scores(disc[None], moved[None], (999, 1, 1)) == surface_scores(disc, moved, (1, 1))


def test_a_library_that_does_not_run_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from segship.metrics import surfaces

    class Old:
        def __getattr__(self, name: str) -> Any:
            raise AttributeError("scipy.ndimage has no attribute 'filters'")

    monkeypatch.setattr(surfaces, "_library", Old)
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(UsageError, match=r"does not run with the installed numpy or scipy .*'filters'"):
        surface_scores(mask, mask, (1, 1, 1))
