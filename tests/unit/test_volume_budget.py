"""A time budget: which settings there are, in which order they are given up, and what is told and kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nnunet_data import raw_data
from tiny_volume import volume_package
from volume_recipes import volume_recipe

from segship.errors import UsageError
from segship.inference import volume_budget
from segship.inference.predictor import Predictor
from segship.inference.volume_batch import CaseOptions, Plan, predict_cases
from segship.inference.volume_network import TileOptions
from segship.inference.volume_predictor import VolumePredictor
from segship.manifest import Recipe


def recipe(members: int = 2, axes: tuple[int, ...] = (0, 1, 2)) -> Recipe:
    made = volume_recipe()
    assert made.tiling is not None
    return made.model_copy(
        update={
            "tiling": made.tiling.model_copy(update={"mirror_axes": axes}),
            "network": made.network.model_copy(update={"members": tuple(f"fold_{n}" for n in range(members))}),
        }
    )


def settings(made: Recipe, tiles: TileOptions) -> list[tuple[float, int, int]]:
    """(step, members, mirrorings) of every candidate"""
    assert made.tiling is not None
    out = []
    for one in volume_budget.candidates(made, tiles):
        tiling = one.applied(made.tiling)
        members = len(one.members or made.network.members)
        out.append((tiling.step[0] / tiling.window[0], members, 2 ** len(tiling.mirror_axes)))
    return out


def test_mirroring_goes_first_then_folds_then_overlap() -> None:
    found = settings(recipe(), TileOptions())
    assert found[:8] == [
        (0.5, 2, 8), (0.5, 2, 4), (0.5, 2, 2), (0.5, 2, 1), (0.5, 1, 8), (0.5, 1, 4), (0.5, 1, 2), (0.5, 1, 1),
    ]  # fmt: skip
    assert found[8] == (0.75, 2, 8)
    assert found[-1] == (1.0, 1, 1)
    assert len(found) == 24


def test_what_the_user_fixed_stays() -> None:
    assert settings(recipe(), TileOptions(mirror=False, step_size=0.6)) == [(0.6, 2, 1), (0.6, 1, 1)]
    assert {members for _, members, _ in settings(recipe(), TileOptions(members=("fold_1",)))} == {1}
    assert settings(recipe(1, ()), TileOptions()) == [(0.5, 1, 1), (0.75, 1, 1), (1.0, 1, 1)]
    assert {mirrors for _, _, mirrors in settings(recipe(1), TileOptions(mirror_axes=(2,)))} == {2}


def test_the_packages_own_setting_is_left_unsaid() -> None:
    """So that its files count as made by it when a run without a budget goes on."""
    assert volume_budget.candidates(recipe(), TileOptions())[0] == TileOptions()


# ---------------------------------------------------------------------------------------------- choosing


@pytest.fixture
def predictor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A package with mirroring; a window takes 10 ms and everything else 1 s on the case that is timed."""
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    tiling = recipe().tiling
    package = volume_package(tmp_path / "net.segship", tiling=tiling)
    monkeypatch.setattr(volume_budget, "window_seconds", lambda *_: 0.01)
    timed = volume_budget._timed_rest

    def rest(*arguments: object) -> object:
        found = timed(*arguments)  # type: ignore[arg-type]
        return None if found is None else (found[0], 1.0, found[2])

    monkeypatch.setattr(volume_budget, "_timed_rest", rest)
    with Predictor.open(package) as opened:
        assert isinstance(opened, VolumePredictor)
        yield opened


def run(predictor: VolumePredictor, data: Path, out: Path, seconds: float, **options: object) -> tuple[Plan, dict]:  # type: ignore[type-arg]
    plans: list[Plan] = []
    made = CaseOptions(time_budget=seconds, **options)  # type: ignore[arg-type]
    summary = predict_cases(predictor, [data / "imagesTr"], out, made, announce=plans.append)
    assert not summary.failed
    return plans[0], summary.as_dict()["time_budget"]


def test_the_best_setting_that_fits_runs_and_is_told(predictor: VolumePredictor, tmp_path: Path) -> None:
    data = raw_data(tmp_path / "raw")
    plan, kept = run(predictor, data, tmp_path / "all", 1e6)
    assert plan.budget is not None
    assert plan.budget.chosen.gives_up == ()
    assert "gives up nothing" in plan.budget.line
    full = plan.budget.chosen
    assert full.mirrorings == 8
    assert full.case_seconds == pytest.approx(1 + 0.01 * full.passes)
    assert full.total_seconds == pytest.approx(sum(1 + 0.01 * full.passes for _ in range(3)))
    half = 1 + 0.01 * full.passes / 2
    plan, kept = run(predictor, data, tmp_path / "half", half + 1e-6)
    assert plan.budget is not None
    assert plan.budget.chosen.mirror_axes == (1, 2)
    assert "gives up some mirroring (4 of 8 passes)" in plan.budget.line
    text = str(plan.budget)
    assert text.count("<- runs") == 1
    assert "(too long)" in text
    assert kept["chosen"]["passes"] == full.passes // 2
    record = json.loads((tmp_path / "half" / "segship-run.json").read_text())
    assert record["options"]["mirror_axes"] == [1, 2]
    assert record["result"]["time_budget"]["chosen"]["gives_up"] == ["some mirroring (4 of 8 passes)"]


def test_what_was_chosen_once_stands_for_a_resumed_run(
    predictor: VolumePredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = raw_data(tmp_path / "raw")
    out = tmp_path / "out"
    first, _ = run(predictor, data, out, 2)
    (out / "liver_2.nii.gz").unlink()
    monkeypatch.setattr(volume_budget, "window_seconds", lambda *_: 100.0)
    again, _ = run(predictor, data, out, 2)
    assert again.budget is not None
    assert first.budget is not None
    assert again.budget.kept
    assert again.budget.chosen == first.budget.chosen
    assert again.skipped == 2, "the same setting made the files that are there"
    (out / volume_budget.FILE).write_text("{")
    with pytest.raises(UsageError, match=r"no setting keeps to 2 s a case"):
        run(predictor, data, out, 2)


def test_a_budget_that_nothing_fits_into_is_refused_with_numbers(predictor: VolumePredictor, tmp_path: Path) -> None:
    data = raw_data(tmp_path / "raw")
    with pytest.raises(
        UsageError, match=r"no setting keeps to 0.5 s a case: liver_\d takes about .* beside the network"
    ):
        run(predictor, data, tmp_path / "out", 0.5)
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    with pytest.raises(UsageError, match="above 0"):
        run(predictor, data, tmp_path / "out", 0)


def test_cases_that_cannot_be_read_fail_alone(predictor: VolumePredictor, tmp_path: Path) -> None:
    data = raw_data(tmp_path / "raw")
    (data / "imagesTr" / "liver_1_0000.nii.gz").write_bytes(b"cut")
    options = CaseOptions(time_budget=1e6)
    summary = predict_cases(predictor, [data / "imagesTr"], tmp_path / "out", options)
    assert (summary.done, len(summary.failed)) == (2, 1)
    for file in (data / "imagesTr").iterdir():
        file.write_bytes(b"cut")
    summary = predict_cases(predictor, [data / "imagesTr"], tmp_path / "none", options)
    assert (summary.done, len(summary.failed), summary.time_budget) == (0, 3, None)


def test_a_pass_is_really_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    with Predictor.open(volume_package(tmp_path / "net.segship")) as opened:
        assert isinstance(opened, VolumePredictor)
        found = volume_budget.window_seconds(opened, TileOptions(batch=2))
    assert 0 < found < 1
    assert np.isfinite(found)
