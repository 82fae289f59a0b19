"""The accuracy gate: fail-closed, one group at a time, in the order of what disturbs most."""

from __future__ import annotations

import json

import numpy as np
import pytest

from segship.convert import gate
from segship.convert.gate import Bars, Measured
from segship.errors import BarMissed
from segship.manifest import Drop, Fidelity

GROUPS = {name: (f"{name}.1", f"{name}.2") for name in "abcdef"}


def drop(value: float) -> Drop:
    return Drop(
        metric="iou", fp32=0.8, value=0.8 - value, drop=value, interval95=(value - 0.01, value + 0.01), worst_case="x",
        worst_drop=value, cases=5, dataset_sha256="0" * 64, engine="fake",
    )  # fmt: skip


def fidelity(value: float, **changes: object) -> Fidelity:
    found = Fidelity(
        value=value, worst=2 * value, worst_picture="w.png", pictures=5, source="held out", pictures_sha256="0" * 64,
        engine="fake", limit=0.02,
    )  # fmt: skip
    return found.model_copy(update=changes)


class World:
    """A network in which each layer in int8 costs accuracy and adds its own disturbance to the logits."""

    def __init__(self, cost: dict[str, float]) -> None:
        self.cost = cost
        self.measured: list[tuple[str, ...]] = []

    def measure(self, kept: tuple[str, ...]) -> Measured:
        self.measured.append(kept)
        return Measured(drop=drop(self.loss(kept)))

    def measure_maps(self, kept: tuple[str, ...]) -> Measured:
        self.measured.append(kept)
        return Measured(fidelity=fidelity(self.loss(kept)))

    def loss(self, kept: tuple[str, ...]) -> float:
        return sum(c for group, c in self.cost.items() if not set(GROUPS[group]) <= set(kept))

    def logits(self, kept: tuple[str, ...]) -> np.ndarray:
        left = [c for group, c in self.cost.items() if not set(GROUPS[group]) <= set(kept)]
        return np.array([sum(left)])

    def rank(self, kept: tuple[str, ...]) -> dict[str, float]:
        return gate.rank_groups(GROUPS, self.logits, np.zeros(1), kept)


def test_a_good_variant_is_taken_as_it_is() -> None:
    world = World({"a": 0.001})
    found = gate.search(
        world.measure, Bars(max_drop=0.002), groups=GROUPS, rank=lambda _: pytest.fail("nothing to rank")
    )
    assert (found.measured.drop, found.kept_in_float, len(found.trials)) == (drop(0.001), (), 1)


def test_without_a_bar_it_only_measures() -> None:
    assert gate.search(World({"a": 0.5}).measure, Bars()).drop == drop(0.5)
    assert gate.search(World({"a": 0.5}).measure_maps, Bars()).fidelity == fidelity(0.5)


def test_groups_are_put_back_by_how_much_they_disturb_until_it_is_enough() -> None:
    world = World({"c": 0.004, "a": 0.001, "e": 0.003, "b": 0.0005})
    found = gate.search(world.measure, Bars(max_drop=0.002), groups=GROUPS, rank=world.rank)
    assert found.kept_in_float == ("c.1", "c.2", "e.1", "e.2")
    assert found.drop is not None
    assert found.drop.drop == pytest.approx(0.0015)
    assert world.measured == [(), ("c.1", "c.2"), ("c.1", "c.2", "e.1", "e.2")]
    assert list(found.sensitivity)[:3] == ["c", "e", "a"]
    assert [trial.passed for trial in found.trials] == [False, False, True]
    assert json.loads(json.dumps(found.as_dict()))["max_drop"] == 0.002


def test_layers_kept_from_the_start_stay_and_are_not_ranked() -> None:
    world = World({"a": 0.01, "b": 0.01})
    found = gate.search(world.measure, Bars(max_drop=0.002), groups=GROUPS, rank=world.rank, kept=GROUPS["a"])
    assert found.kept_in_float == (*GROUPS["a"], *GROUPS["b"])
    assert "a" not in found.sensitivity


def test_too_many_layers_back_in_float_is_a_failure_with_the_table() -> None:
    world = World(dict.fromkeys(GROUPS, 0.01))
    with pytest.raises(BarMissed, match=r"loses more than the allowed 0\.002; nothing was written") as caught:
        gate.search(world.measure, Bars(max_drop=0.002), groups=GROUPS, rank=world.rank, what="int8")
    assert len(world.measured) == 4  # as it is, then one, two, three of six groups
    text = str(caught.value)
    assert text.count("drop +") == 4
    assert "drop +0.06000 [+0.05000, +0.07000] iou 0.74000 (fp32 0.80000)" in text
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("groups", [None, {}])
def test_a_precision_without_groups_fails_at_once(groups: dict[str, tuple[str, ...]] | None) -> None:
    world = World({"a": 0.01})
    with pytest.raises(BarMissed, match="fp16"):
        gate.search(world.measure, Bars(max_drop=0.002), groups=groups, what="fp16")
    assert len(world.measured) == 1


@pytest.mark.parametrize("measured", [drop(0.0).model_copy(update={"drop": float("nan")}), None])
def test_a_drop_that_is_no_number_never_passes(measured: Drop | None) -> None:
    assert not Bars(max_drop=0.1).passed(Measured(drop=measured))


# --- maps against fp32's, without ground truth ----------------------------------------------------------------


def test_maps_are_searched_in_the_same_way() -> None:
    world = World({"c": 0.04, "a": 0.01, "e": 0.03})
    found = gate.search(world.measure_maps, Bars(max_mask_mae=0.02), groups=GROUPS, rank=world.rank)
    assert found.kept_in_float == (*GROUPS["c"], *GROUPS["e"])
    assert found.fidelity is not None
    assert found.fidelity.value == pytest.approx(0.01)
    assert found.drop is None
    assert json.loads(json.dumps(found.as_dict()))["trials"][0]["fidelity"]["value"] == pytest.approx(0.08)


def test_maps_that_stay_too_far_are_refused_with_the_table_and_the_way_out() -> None:
    world = World(dict.fromkeys(GROUPS, 0.02))
    with pytest.raises(BarMissed) as caught:
        gate.search(world.measure_maps, Bars(max_mask_mae=0.02), groups=GROUPS, rank=world.rank, what="int8")
    text = str(caught.value)
    assert text.startswith("int8 gives masks that differ from fp32's by more than the allowed 0.02 of full scale")
    assert text.count("mask MAE to fp32") == 4
    assert "--force" in text
    assert caught.value.exit_code == 3


def test_both_bars_must_hold() -> None:
    bars = Bars(max_drop=0.01, max_mask_mae=0.02)
    assert bars.passed(Measured(drop=drop(0.01), fidelity=fidelity(0.02)))
    assert not bars.passed(Measured(drop=drop(0.011), fidelity=fidelity(0.02)))
    assert not bars.passed(Measured(drop=drop(0.01), fidelity=fidelity(0.021)))
    assert not bars.passed(Measured(drop=drop(0.01)))
    assert "masks" in bars.missed(Measured(drop=drop(0.0), fidelity=fidelity(0.1)))
    assert "0.01" in bars.missed(Measured(drop=drop(0.1), fidelity=fidelity(0.1)))


def test_a_better_mae_is_no_loss() -> None:
    """MAE falls where it is better; a Drop is positive where something was lost, whichever way the metric runs."""
    gained = Drop(
        metric="MAE", fp32=0.05, value=0.04, drop=-0.01, interval95=(-0.02, 0.0), worst_case="x", worst_drop=0.0,
        cases=5, dataset_sha256="0" * 64, engine="fake",
    )  # fmt: skip
    assert Bars(max_drop=0.0).passed(Measured(drop=gained))
    assert not Bars(max_drop=0.0).passed(Measured(drop=gained.model_copy(update={"value": 0.06, "drop": 0.01})))


def test_a_forced_variant_says_so() -> None:
    assert fidelity(0.5, forced=True).text.endswith("allowed 0.02; written by --force")
    assert "0.50000 over 5 pictures (held out of calibration), worst 1.00000 (w.png)" in fidelity(0.5).text
