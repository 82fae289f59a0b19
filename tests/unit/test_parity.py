"""The proof of an export: what counts as equal, and what fails."""

from __future__ import annotations

import json

import numpy as np
import pytest
from packages import manifest_data

from segship.convert import parity
from segship.convert.parity import ParityRow, difference_row
from segship.errors import BarMissed, SourceError
from segship.inference.prediction import decode
from segship.inference.preprocess import Frame
from segship.manifest import Manifest


def row(**changes: object) -> ParityRow:
    values = {
        "engine": "e", "stage": "network", "max_abs": 0.0, "mean_abs": 0.0, "tolerance": 1e-4, "shared_code": False,
    }  # fmt: skip
    return ParityRow(**{**values, **changes})  # type: ignore[arg-type]


def test_differences_are_largest_and_mean() -> None:
    found = difference_row("e", "s", np.zeros(4), np.array([0, 0, 1, -3]), 1.0, shared_code=True)
    assert (found.max_abs, found.mean_abs, found.passed) == (3.0, 1.0, False)
    assert not difference_row("e", "s", np.zeros(4), np.zeros(5), 1.0, shared_code=True).passed
    assert difference_row("e", "s", np.zeros(0), np.zeros(0), 0.0, shared_code=True).passed


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"max_abs": 1e-4}, True),
        ({"max_abs": 1.1e-4}, False),
        ({"max_abs": float("nan")}, False),
        ({"label_agreement": 0.9999}, True),
        ({"label_agreement": 0.9998}, False),
        ({"label_agreement": float("nan")}, False),
    ],
)
def test_what_passes(changes: dict[str, float], passed: bool) -> None:
    assert row(**changes).passed is passed
    rows = [row(), row(**changes)]
    assert ("MISSED" in parity.table(rows)) is not passed
    if passed:
        parity.require(rows, "x")
        return
    with pytest.raises(BarMissed, match=r"x: e, stage network.*1 of 2.*nothing was written"):
        parity.require(rows, "x")


def test_the_tolerance_follows_the_spread_only_above_one() -> None:
    assert parity.network_tolerance(1e-4, np.array([-0.1, 0.1], np.float32)) == pytest.approx(1e-4)
    assert parity.network_tolerance(1e-4, np.array([-5.0, 5.0], np.float32)) == pytest.approx(5e-4)


def test_labels_near_the_edge_are_left_out() -> None:
    about = Manifest.model_validate(manifest_data()).recipe
    logits = np.array([[[1e-6, 2.0, -2.0, -1e-6]]], np.float32)
    frame = Frame(name="a", original_hw=(1, 4), prepared_hw=(1, 4), geometry=())
    expected = decode((logits,), frame, about)
    close = np.array([[[False, True, False, True]]])
    assert parity.label_agreement(expected, close, 1e-5) == 1.0
    assert parity.label_agreement(expected, close, 1e-9) == 0.5
    assert parity.label_agreement(expected, np.array([[[True, False, False, False]]]), 1e-5) == 0.5
    assert parity.label_agreement(expected, np.zeros((1, 2, 2), bool), 1e-5) == 0.0


def test_a_size_that_the_network_refuses_is_said() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(SourceError, match=r"does not run at 4x6 \(.*\); export with --input-size"):
        parity.run_source(torch.nn.AvgPool2d(9), np.zeros((1, 3, 4, 6), np.float32))


def test_rows_are_plain_data_and_shared_code_is_marked() -> None:
    rows = [row(stage="read", shared_code=True), row()]
    assert json.loads(json.dumps([r.as_dict() for r in rows]))[0]["shared_code"] is True
    lines = parity.table(rows).splitlines()
    assert "read *" in lines[1]
    assert "*" not in lines[2]
