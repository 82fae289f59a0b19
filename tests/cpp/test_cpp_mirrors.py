"""Mirrored passes are flipped back before they are averaged: every combination of axes, against Python.

A vendor's C++ program for nnU-Net once had a Dice of 0.06 where Python had 0.98, because it flipped the mirrored passes'
answers along other axes than their inputs and divided by another number. The convolution here looks another way in every
direction and the grid has three unlike sides, so either mistake moves every answer; `test_the_mistake_would_show` computes
it and sees that it would be found.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from cpp_cases import tiling, volume_package, write_volume
from cpp_compare import Runner, check_stages

from segship.inference.predictor import Predictor
from segship.inference.tiling import flip, mirror_subsets
from segship.inference.volume_predictor import VolumePredictor

SHAPE = (15, 19, 11)
WINDOW = (8, 12, 10)
SOLID = [axes for count in range(4) for axes in itertools.combinations(range(3), count)]
FLAT = [axes for count in range(3) for axes in itertools.combinations(range(2), count)]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volume(tmp_path_factory.mktemp("mirrors") / "case_0000.nii.gz", SHAPE, seed=3)


def test_there_are_eight_and_four() -> None:
    assert (len(SOLID), len(FLAT)) == (8, 4)
    assert {frozenset(axes) for axes in mirror_subsets((0, 1, 2))} == {frozenset(axes) for axes in SOLID}


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("axes", SOLID, ids=str)
def test_every_combination_of_three_axes(
    axes: tuple[int, ...], average: str, case: Path, run_cpp: Runner, tmp_path: Path
) -> None:
    windows = tiling(WINDOW, mirror_axes=axes, average=average)
    package = volume_package(tmp_path / "net.segship", windows=windows, members=("fold_0", "fold_1"))
    with Predictor.open(package) as predictor:
        wanted = predictor.trace(case)
    check_stages(run_cpp(package, case).of("case"), wanted)


@pytest.mark.parametrize("axes", FLAT, ids=str)
def test_every_combination_of_two_axes(axes: tuple[int, ...], case: Path, run_cpp: Runner, tmp_path: Path) -> None:
    package = volume_package(tmp_path / "net.segship", windows=tiling((10, 12), mirror_axes=axes))
    with Predictor.open(package) as predictor:
        wanted = predictor.trace(case)
    check_stages(run_cpp(package, case).of("case"), wanted)


def test_mirroring_can_be_left_out(case: Path, run_cpp: Runner, tmp_path: Path) -> None:
    mirrored = volume_package(tmp_path / "all.segship", windows=tiling(WINDOW, mirror_axes=(0, 1, 2)))
    plain = volume_package(tmp_path / "none.segship", windows=tiling(WINDOW))
    with Predictor.open(plain) as predictor:
        check_stages(run_cpp(mirrored, case, disable_tta=True).of("case"), predictor.trace(case))


def test_the_mistake_would_show(case: Path, run_cpp: Runner, tmp_path: Path) -> None:
    """Every combination gives an answer of its own, and one that is not flipped back another one again."""
    answers = []
    for number, axes in enumerate(SOLID):
        package = volume_package(tmp_path / f"{number}.segship", windows=tiling(WINDOW, mirror_axes=axes))
        answers.append(run_cpp(package, case).of("case"))
    for one, other in itertools.combinations(answers, 2):
        assert np.abs(one["network"] - other["network"]).max() > 1e-2
    package = volume_package(tmp_path / "all.segship", windows=tiling(WINDOW, mirror_axes=(0, 1, 2)))
    with Predictor.open(package) as predictor:
        assert isinstance(predictor, VolumePredictor)
        right = predictor.trace(case)
        x = predictor.prepare(case).x
        x = np.pad(x, [(0, 0), *((0, max(0, w - n)) for w, n in zip(WINDOW, x.shape[1:], strict=True))])
        tile = np.ascontiguousarray(x[(slice(None), *(slice(0, side) for side in WINDOW))])
        run = predictor.passes(predictor.tiles)[0]
        undone = np.mean([flip(run(flip(tile, axes, 1)[None])[0], axes, 1) for axes in SOLID], axis=0)
        forgotten = np.mean([run(flip(tile, axes, 1)[None])[0] for axes in SOLID], axis=0)
    assert np.abs(undone - forgotten).max() > 0.1
    assert np.mean(undone.argmax(0) != forgotten.argmax(0)) > 0.02
    check_stages(answers[-1], right)
