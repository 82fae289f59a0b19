"""Labels on the full grid without full-size scores: the same as interpolating every class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segship.inference import enlarge
from segship.inference.enlarge import argmax_on_grid, each_above, first_maximum, largest, resample_one_by_one
from segship.inference.resample import Rule, Spacing

sides = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
targets = st.tuples(st.integers(1, 14), st.integers(1, 20), st.integers(1, 20))
spacings = st.sampled_from([(1.0, 1.0, 1.0), (5.0, 1.0, 1.0), (1.0, 1.0, 6.0), (1.0, 4.0, 1.0)])


def rule(order: int = 1, kind: str = "spline") -> Rule:
    return Rule(order=order, order_z=0, separate_z="auto", anisotropy_threshold=3, kind=kind)  # type: ignore[arg-type]


def smooth(seed: int, classes: int, side: tuple[int, ...], blocks: int) -> np.ndarray:
    """Scores with uniform regions and borders, as a trained network gives them."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 3, (classes, *(-(-n // blocks) for n in side)))
    for axis in (1, 2, 3):
        coarse = coarse.repeat(blocks, axis=axis)
    cut = coarse[:, : side[0], : side[1], : side[2]]
    return (cut + rng.normal(0, 0.3, cut.shape)).astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(1, 5),
    side=sides,
    shape=targets,
    spacing=spacings,
    blocks=st.integers(1, 6),
    kind=st.sampled_from(["spline", "torch", "torch-align-corners"]),
)
def test_labels_are_those_of_interpolating_every_class(
    seed: int,
    classes: int,
    side: tuple[int, int, int],
    shape: tuple[int, int, int],
    spacing: Spacing,
    blocks: int,
    kind: str,
) -> None:
    scores = smooth(seed, classes, side, blocks)
    how, even = rule(kind=kind), (1.0, 1.0, 1.0)
    full = np.stack(list(resample_one_by_one(scores, shape, how, spacing, even)))
    clear = np.ones(shape, bool)
    if classes > 1:
        ordered = np.sort(full, axis=0)
        clear = ordered[-1] - ordered[-2] > 1e-4
    got = argmax_on_grid(scores, shape, how, spacing, even)
    assert got.shape == shape
    assert (got == full.argmax(axis=0))[clear].all()
    above = np.stack(list(each_above(scores, 0.5, shape, how, spacing, even)))
    assert (above == (full > 0.5))[np.abs(full - 0.5) > 1e-4].all()


@pytest.mark.parametrize("order", [0, 3])
def test_other_orders_interpolate_class_by_class(order: int) -> None:
    scores = smooth(3, 3, (4, 7, 6), 2)
    even = (1.0, 1.0, 1.0)
    full = np.stack(list(resample_one_by_one(scores, (6, 5, 9), rule(order), even, even)))
    assert (argmax_on_grid(scores, (6, 5, 9), rule(order), even, even) == full.argmax(axis=0)).all()


def test_more_than_256_classes_need_16_bits() -> None:
    scores = np.zeros((300, 1, 2, 2), np.float32)
    scores[299, 0, 0, 0] = 1
    scores[7, 0, 1, 1] = 1
    got = argmax_on_grid(scores, (1, 4, 4), rule(), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    assert got.dtype == np.uint16
    assert got[0, 0, 0] == 299
    assert got[0, 3, 3] == 7


def test_the_first_of_equal_scores_wins_and_scores_stay_as_they_were() -> None:
    scores = np.stack([np.zeros((2, 2)), np.zeros((2, 2)), np.full((2, 2), -1)]).astype(np.float32)
    kept = scores.copy()
    assert (first_maximum(iter(scores)) == 0).all()
    assert (scores == kept).all()


@pytest.mark.parametrize("classes", [2, 3, 40])
@pytest.mark.parametrize("shape", [(9, 30, 26), (3, 7, 8), (12, 15, 40)])
def test_where_every_cell_holds_several_labels_every_class_is_looked_at(
    classes: int, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enlarge, "_CHUNK", 100)  # a plane then takes several pieces
    scores = np.random.default_rng(classes).normal(0, 3, (classes, 6, 14, 17)).astype(np.float32)
    even = (1.0, 1.0, 1.0)
    full = np.stack(list(resample_one_by_one(scores, shape, rule(), even, even)))
    ordered = np.sort(full, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert (argmax_on_grid(scores, shape, rule(), even, even) == full.argmax(axis=0))[clear].all()
    assert clear.mean() > 0.99


def test_the_answer_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, even = smooth(8, 5, (12, 40, 33), 4), (1.0, 1.0, 1.0)
    found = []
    for threads in (1, 4):
        monkeypatch.setattr(enlarge, "helper_threads", lambda count=threads: count)
        found.append(argmax_on_grid(scores, (23, 71, 50), rule(), even, even))
    assert (found[0] == found[1]).all()


def test_a_failure_on_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(enlarge, "_spread", broken)
    with pytest.raises(MemoryError):
        argmax_on_grid(smooth(1, 2, (4, 5, 6), 2), (8, 10, 12), rule(), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(1, 300), side=sides)
def test_the_largest_of_whole_numbers_is_numpys_argmax(seed: int, classes: int, side: tuple[int, int, int]) -> None:
    scores = np.random.default_rng(seed).integers(-3, 4, (classes, *side)).astype(np.float32)
    assert (largest(scores) == scores.argmax(axis=0)).all()
    assert (first_maximum(iter(scores)) == scores.argmax(axis=0)).all()


def test_classes_above_a_limit_come_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, even = smooth(2, 3, (4, 9, 7), 3), (1.0, 1.0, 1.0)
    made: list[np.ndarray] = []
    one_above = enlarge._one_above

    def counted(*args: Any) -> np.ndarray:
        made.append(one_above(*args))
        return made[-1]

    monkeypatch.setattr(enlarge, "_one_above", counted)
    parts = each_above(scores, 0.0, (8, 18, 20), rule(), even, even)
    for number, part in enumerate(parts, start=1):
        assert part.shape == (8, 18, 20)
        assert len(made) == number, "the next class is not made before it is asked for"
    assert len(made) == len(scores)
