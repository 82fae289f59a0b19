"""The accuracy gate: fail-closed, one group at a time, in the order of what disturbs most."""

from __future__ import annotations

import json

import numpy as np
import pytest

from segship.convert import gate
from segship.errors import BarMissed
from segship.manifest import Drop

GROUPS = {name: (f"{name}.1", f"{name}.2") for name in "abcdef"}


def drop(value: float) -> Drop:
    return Drop(
        metric="iou", fp32=0.8, value=0.8 - value, drop=value, interval95=(value - 0.01, value + 0.01), worst_case="x",
        worst_drop=value, cases=5, dataset_sha256="0" * 64, engine="fake",
    )  # fmt: skip


class World:
    """A network in which each layer in int8 costs accuracy and adds its own disturbance to the logits."""

    def __init__(self, cost: dict[str, float]) -> None:
        self.cost = cost
        self.measured: list[tuple[str, ...]] = []

    def measure(self, kept: tuple[str, ...]) -> Drop:
        self.measured.append(kept)
        return drop(sum(c for group, c in self.cost.items() if not set(GROUPS[group]) <= set(kept)))

    def logits(self, kept: tuple[str, ...]) -> np.ndarray:
        left = [c for group, c in self.cost.items() if not set(GROUPS[group]) <= set(kept)]
        return np.array([sum(left)])

    def rank(self, kept: tuple[str, ...]) -> dict[str, float]:
        return gate.rank_groups(GROUPS, self.logits, np.zeros(1), kept)


def test_a_good_variant_is_taken_as_it_is() -> None:
    world = World({"a": 0.001})
    found = gate.search(world.measure, 0.002, groups=GROUPS, rank=lambda _: pytest.fail("nothing to rank"))
    assert (found.drop.drop, found.kept_in_float, len(found.trials)) == (0.001, (), 1)


def test_without_a_bar_it_only_measures() -> None:
    assert gate.search(World({"a": 0.5}).measure, None).drop.drop == 0.5


def test_groups_are_put_back_by_how_much_they_disturb_until_it_is_enough() -> None:
    world = World({"c": 0.004, "a": 0.001, "e": 0.003, "b": 0.0005})
    found = gate.search(world.measure, 0.002, groups=GROUPS, rank=world.rank)
    assert found.kept_in_float == ("c.1", "c.2", "e.1", "e.2")
    assert found.drop.drop == pytest.approx(0.0015)
    assert world.measured == [(), ("c.1", "c.2"), ("c.1", "c.2", "e.1", "e.2")]
    assert list(found.sensitivity)[:3] == ["c", "e", "a"]
    assert [trial.passed for trial in found.trials] == [False, False, True]
    assert json.loads(json.dumps(found.as_dict()))["max_drop"] == 0.002


def test_layers_kept_from_the_start_stay_and_are_not_ranked() -> None:
    world = World({"a": 0.01, "b": 0.01})
    found = gate.search(world.measure, 0.002, groups=GROUPS, rank=world.rank, kept=GROUPS["a"])
    assert found.kept_in_float == (*GROUPS["a"], *GROUPS["b"])
    assert "a" not in found.sensitivity


def test_too_many_layers_back_in_float_is_a_failure_with_the_table() -> None:
    world = World(dict.fromkeys(GROUPS, 0.01))
    with pytest.raises(BarMissed, match=r"loses more than the allowed 0\.002; nothing was written") as caught:
        gate.search(world.measure, 0.002, groups=GROUPS, rank=world.rank, what="int8")
    assert len(world.measured) == 4  # as it is, then one, two, three of six groups
    text = str(caught.value)
    assert text.count("drop +") == 4
    assert "drop +0.06000 [+0.05000, +0.07000] iou 0.74000 (fp32 0.80000)" in text
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("groups", [None, {}])
def test_a_precision_without_groups_fails_at_once(groups: dict[str, tuple[str, ...]] | None) -> None:
    world = World({"a": 0.01})
    with pytest.raises(BarMissed, match="fp16"):
        gate.search(world.measure, 0.002, groups=groups, what="fp16")
    assert len(world.measured) == 1


def test_a_drop_that_is_no_number_never_passes() -> None:
    assert not gate._trial(lambda _: drop(0.0).model_copy(update={"drop": float("nan")}), (), 0.1).passed
