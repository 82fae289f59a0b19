"""The memory estimate of a case beside what its arrays really take, part by part, on several sizes and recipes."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from volume_files import volume_input, write_nifti
from volume_recipes import volume_recipe

from segship.inference.volume_chain import prepare_volume
from segship.inference.volume_cost import Cost, cost_of, header_of, peak_of
from segship.inference.volume_files import write_case
from segship.inference.volume_memory import Extent, Memory, memory_of
from segship.inference.volume_network import TileOptions, scores
from segship.inference.volume_prediction import VolumePrediction
from segship.inference.volumes import read_volume
from segship.manifest import (
    Clip,
    CropToNonzero,
    KeepLargest,
    Network,
    Normalize,
    Output,
    Pad,
    Recipe,
    Resample,
    Tiling,
    Transpose,
    VolumeInput,
    ZScore,
)

SLACK = 3 << 20
"""what gzip, headers and Python itself take"""
MOST = 1.3


def resample(spacing: tuple[float | None, ...], method: str = "skimage:edge", order: int = 3) -> Resample:
    return Resample(
        spacing_mm_zyx=spacing, shape_rule="round-half-even", method=method, order=order, order_z=0, separate_z="auto",
        anisotropy_threshold=3.0,
    )  # type: ignore[arg-type] # fmt: skip


def recipe_of(
    classes: int = 2, channels: int = 1, window: tuple[int, ...] = (32, 32, 32), reader: str = "nibabel", **changes: Any
) -> Recipe:
    return volume_recipe(
        input=volume_input(reader, channels),
        network=Network(
            architecture="none", parameters=1, input_name="input", layout="NCDHW" if len(window) == 3 else "NCHW",
            input_channels=channels, size=window, size_multiple=(1,) * len(window),
            outputs=(Output(name="logits", channels=classes, values="logits"),), members=("model",),
        ),
        tiling=Tiling(
            window=window, step=tuple(side / 2 for side in window), positions="even-spread", weighting="gaussian",
            gaussian_sigma_scale=1 / 8, pad_mode="constant", average="logits",
        ),
        labels=tuple(
            {"id": k, "name": "background" if k == 0 else f"class {k}", "color": (0, 0, 0)} for k in range(classes)
        ),
        **changes,
    )  # fmt: skip


NNUNET = (
    CropToNonzero(fill_holes=True),
    Clip(channel=0, low=0.0, high=90.0),
    ZScore(channel=0, mean=40.0, std=20.0, epsilon=1e-8, epsilon_rule="maximum", mask="none"),
    resample((1.5, 1.0, 1.0)),
)
MASKED = (
    Transpose(axes=(1, 0, 2)),
    CropToNonzero(fill_holes=True),
    *(
        ZScore(
            channel=c, mean=None, std=None, epsilon=1e-8, epsilon_rule="maximum", mask="nonzero", outside_mask="zero"
        )
        for c in range(2)
    ),
    resample((0.8, 1.0, 1.0)),
)
MLPERF = (
    resample((1.2, 0.9, 0.9), "torch:trilinear-align-corners", 1),
    Clip(low=10.0, high=80.0),
    Normalize(subtract=(40.0,), multiply=(0.05,)),
    Pad(minimum=(96, 96, 96), where="both", mode="edge"),
)
CASES = {
    "nnU-Net, fewer voxels": (recipe_of(preprocess=NNUNET), (150, 140, 90), {}),
    "nnU-Net, more voxels": (recipe_of(5, preprocess=(*NNUNET[:3], resample((0.7, 0.8, 0.8)))), (100, 90, 80), {}),
    "nnU-Net, slices, two channels": (recipe_of(3, 2, (64, 64), preprocess=MASKED), (110, 100, 60), {}),
    "no resampling": (recipe_of(3, preprocess=NNUNET[:3]), (128, 100, 90), {}),
    "smaller than the window": (recipe_of(3, 1, (96, 96, 96), preprocess=NNUNET[:3]), (60, 50, 40), {}),
    "MLPerf": (recipe_of(3, 1, (64, 64, 64), "nibabel-stored", preprocess=MLPERF), (120, 110, 100), {}),
    "probabilities": (recipe_of(4, preprocess=NNUNET), (120, 110, 90), {"probabilities": True}),
    "postprocessing": (
        recipe_of(2, preprocess=NNUNET[:1], postprocess=(KeepLargest(labels=(1,), joint=False, connectivity="full"),)),
        (130, 120, 100), {},
    ),
    "image kept": (recipe_of(2, preprocess=NNUNET), (140, 130, 90), {"image": True}),
}  # fmt: skip


def write_files(folder: Path, recipe: Recipe, shape: tuple[int, ...]) -> list[Path]:
    """A body of noise on a ground of zeros that the crop takes a rim of."""
    out = []
    for number in range(len(recipe.input.channels)):
        values = np.zeros(shape, np.int16)
        values[1:-1, 1:-1, 1:-1] = np.random.default_rng(number).integers(1, 100, [n - 2 for n in shape])
        path = folder / f"case_{number:04d}.nii.gz"
        nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.0, 1.5, 1.0])), path)
        out.append(path)
    return out


def peak(work: Callable[[], Any]) -> tuple[int, Any]:
    tracemalloc.reset_peak()
    found = work()
    return tracemalloc.get_traced_memory()[1], found


def measured(files: list[Path], recipe: Recipe, folder: Path, probabilities: bool, image: bool) -> Memory:
    """What one case's arrays take, part by part, with a network that hardly computes anything."""
    assert isinstance(recipe.input, VolumeInput)
    spec, classes = recipe.input, recipe.network.outputs[0].channels
    tracemalloc.start()
    try:

        def read() -> tuple[Any, Any]:
            volume = read_volume(files, spec)
            prepared = prepare_volume(volume, recipe, keep=image)
            return (volume if image else volume.without_values()), prepared

        reading, (volume, prepared) = peak(read)
        waiting = tracemalloc.get_traced_memory()[0]
        x, frame = prepared.x, prepared.frame
        running, found = peak(partial(scores, x, recipe, [lambda window: np.repeat(window[:, :1], classes, 1)]))
        del prepared, x
        answer = VolumePrediction(scores=found, frame=frame, recipe=recipe, volume=volume)
        del found
        writing, _ = peak(
            lambda: write_case(answer, folder, "case", ".nii.gz", probabilities=probabilities, preview=image)
        )
    finally:
        tracemalloc.stop()
    return Memory(reading=reading, waiting=waiting, running=running, writing=writing)


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_above_what_is_taken_and_not_far(name: str, tmp_path: Path) -> None:
    recipe, shape, options = CASES[name]
    probabilities, image = options.get("probabilities", False), options.get("image", False)
    files = write_files(tmp_path, recipe, shape)
    cost = cost_of(files, recipe, TileOptions(), probabilities=probabilities, image=image)
    assert cost is not None
    measured(files, recipe, tmp_path, probabilities, image)  # what is imported and cached at first counts for nobody
    taken = measured(files, recipe, tmp_path, probabilities, image)
    for part in ("reading", "waiting", "running", "writing"):
        assert getattr(cost.memory, part) + SLACK >= getattr(taken, part), part
    assert cost.bytes <= MOST * taken.peak + SLACK, (cost.memory, taken)


def test_memory_grows_with_what_is_asked_for() -> None:
    recipe = recipe_of(4, preprocess=NNUNET)
    case = Extent(shape=(90, 120, 110), spacing=(1.5, 1.0, 1.0))
    plain = memory_of(case, recipe, TileOptions(), image=False)
    assert memory_of(case, recipe, TileOptions(), image=True).writing > plain.writing
    assert memory_of(case, recipe, TileOptions(), image=False, probabilities=True).writing > plain.writing
    assert memory_of(case, recipe, TileOptions(half_sums=True), image=False).running > plain.running
    twice = memory_of(Extent(shape=(180, 120, 110), spacing=(1.5, 1.0, 1.0)), recipe, TileOptions(), image=False)
    assert 1.6 * plain.peak < twice.peak < 2.2 * plain.peak


@pytest.mark.parametrize(
    "reader", ["nibabel", "simpleitk", "nibabel-reorient", "simpleitk-reorient", "nibabel-stored", "turned"]
)
@pytest.mark.parametrize("kind", ["plain", "flipped", "anisotropic"])
def test_a_header_says_the_grid_that_reading_gives(reader: str, kind: str, tmp_path: Path) -> None:
    spec = volume_input("nibabel-stored", orientation="IPL") if reader == "turned" else volume_input(reader)
    path = write_nifti(tmp_path / "case_0000.nii.gz", kind, (6, 5, 4))
    found, volume = header_of(path, spec), read_volume([path], spec)
    assert found is not None
    assert found.shape == volume.shape
    assert found.spacing == pytest.approx(volume.spacing)
    assert found.stored_bytes == 2


def test_three_cases_are_in_memory_at_most() -> None:
    def cost(size: int) -> Cost:
        memory = Memory(reading=3 * size, waiting=size, running=10 * size, writing=2 * size)
        return Cost(shape=(1, 1, 1), grid=(1, 1, 1), passes=1, memory=memory)

    assert peak_of([cost(1)]) == 10
    assert peak_of([cost(1), cost(1)]) == 13
    assert peak_of([cost(1)] * 9) == 15
    assert peak_of([cost(1), cost(1), cost(1), cost(100), cost(1)]) == 1005


HELD = """
import numpy as np
from segship.inference.volume_cost import process_memory, process_peak
before = process_memory()
held = np.ones(64 << 20, np.uint8)
holding = process_memory()
del held
print(before, holding, process_memory(), process_peak())
"""


def test_what_a_process_holds_is_told() -> None:
    """In a process of its own: one that ran other tests may give memory back at any time."""
    told = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True, timeout=120)
    before, holding, after, peak = map(int, told.stdout.split())
    assert holding - before > 48 << 20
    assert peak >= after - (8 << 20) > 0
