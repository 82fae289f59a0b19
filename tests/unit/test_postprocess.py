"""Clean-up rules on masks and label maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segship.errors import PackageError
from segship.inference.postprocess import (
    clean_labels,
    clean_mask,
    components,
    fill_holes,
    keep_largest,
    remove_small,
    smooth_mask,
)
from segship.manifest import FillHoles, Instances, KeepLargest, RemoveSmall, SmoothMask

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def picture(*rows: str) -> np.ndarray:
    return np.array([[int(value) for value in row] for row in rows], np.uint8)


def largest(*labels: int, joint: bool = False, minimum: float | None = None) -> KeepLargest:
    return KeepLargest(labels=labels, joint=joint, minimum_mm3=minimum, connectivity="face")


def test_components_count_by_side_or_corner() -> None:
    mask = picture("110", "001", "011") > 0
    assert components(mask, "face")[1] == 2
    assert components(mask, "full")[1] == 1
    assert components(np.ones((2, 2, 2), bool), "face")[1] == 1


def test_keep_largest_of_each_label_or_of_their_union() -> None:
    labels = picture("1102", "1102", "0000", "2201", "2200")
    each = keep_largest(labels, largest(1, 2))
    assert each.tolist() == picture("1100", "1100", "0000", "2200", "2200").tolist()
    touching = picture("1122", "0000", "1110")
    assert keep_largest(touching, largest(1, 2)).tolist() == picture("0022", "0000", "1110").tolist()
    assert keep_largest(touching, largest(1, 2, joint=True)).tolist() == picture("1122", "0000", "0000").tolist()
    assert (keep_largest(labels, largest(3)) == labels).all()


def test_keep_largest_with_a_minimum_drops_only_what_is_smaller() -> None:
    labels = picture("11011001", "11010000")
    assert keep_largest(labels, largest(1, minimum=3)).tolist() == picture("11011000", "11010000").tolist()
    assert keep_largest(labels, largest(1)).tolist() == picture("11000000", "11000000").tolist()
    assert keep_largest(labels, largest(1, minimum=3), voxel_mm3=10.0).tolist() == labels.tolist()
    assert (clean_mask(labels > 0, [largest(1)], 1) == picture("11000000", "11000000")).all()
    assert (clean_mask(labels > 0, [largest(2)], 1) == labels).all()


def test_remove_small_counts_pixels() -> None:
    mask = picture("110010", "100000") > 0
    assert remove_small(mask, RemoveSmall(minimum_pixels=2, connectivity="face")).sum() == 3
    assert remove_small(mask, RemoveSmall(minimum_pixels=4, connectivity="face")).sum() == 0


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(1, 6))
def test_remove_small_only_removes_whole_components(mask: np.ndarray, least: int) -> None:
    kept = remove_small(mask, RemoveSmall(minimum_pixels=least, connectivity="full"))
    assert not (kept & ~mask).any()
    numbered, count = components(mask, "full")
    for k in range(1, count + 1):
        part = numbered == k
        assert kept[part].all() == (part.sum() >= least)
        assert kept[part].any() == (part.sum() >= least)


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_filling_twice_changes_nothing(mask: np.ndarray) -> None:
    filled = fill_holes(mask)
    assert (filled | ~mask).all()
    assert (fill_holes(filled) == filled).all()


def test_labels_grow_only_into_background() -> None:
    labels = picture("11111", "10201", "11111")
    filled = clean_labels(labels, [FillHoles()])
    assert filled.tolist() == picture("11111", "11211", "11111").tolist()
    cleaned = clean_labels(labels, [RemoveSmall(minimum_pixels=2, connectivity="face")])
    assert cleaned.tolist() == picture("11111", "10001", "11111").tolist()
    assert labels[1, 2] == 2


def test_instances_as_a_rule() -> None:
    labels = picture("1101", "0000", "0220")
    assert clean_labels(labels, [Instances(connectivity="face")]).max() == 3


def test_smooth_mask_opens_blurs_and_decides() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 255
    mask[2, 2] = 255  # a lone pixel falls to the opening
    out = smooth_mask(mask, 2.0)
    assert set(np.unique(out)) == {0, 255}
    assert out[2, 2] == 0
    assert out[20, 20] == 255
    assert out[10, 10] == 0  # corners are rounded
    assert (clean_mask(mask > 0, [SmoothMask(sigma=2.0)], 1) == (out > 0)).all()
    with pytest.raises(PackageError, match="smooth_mask"):
        clean_labels(mask, [SmoothMask(sigma=2.0)])
