"""nnU-Net's preprocessing and its network's answer, against the originals' arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_files import weights
from seeded import State

from segship.families.nnunet_plans import read_plan
from segship.families.nnunet_recipe import build_recipe
from segship.inference.tiling import axis_starts
from segship.inference.volume_chain import prepare_volume
from segship.inference.volume_network import count_passes, scores
from segship.inference.volumes import Volume, read_labels, read_volume
from segship.manifest import Recipe, VolumeInput
from segship.networks.nnunet import PlannedUNet

Run = Callable[[np.ndarray], np.ndarray]
V2 = ["2d", "3d", "aniso", "cascade", "png", "regions", "torchres"]


def read(about: dict[str, Any], shared: Path, recipe: Recipe) -> Volume:
    assert isinstance(recipe.input, VolumeInput)
    return read_volume([shared.parent / name for name in about["inputs"]], recipe.input)


def recipe_of(about: dict[str, Any]) -> Recipe:
    plan = read_plan(about["plans"], about["dataset"], about["configuration"])
    return build_recipe(
        plan,
        name="case",
        parameters=about["parameters"],
        members=tuple(f"fold{fold}" for fold in about["folds"]),
        mirror_axes=about["inference_allowed_mirroring_axes"] or (),
        options={},
    )


def previous(about: dict[str, Any], shared: Path, recipe: Recipe) -> np.ndarray | None:
    if not about.get("previous_stage_segmentation"):
        return None
    assert isinstance(recipe.input, VolumeInput)
    return read_labels(shared / "reference" / "nnunet_inputs" / "nnunet_v2_cascade_prev.nii.gz", recipe.input)


@pytest.mark.parametrize("case", V2)
def test_the_network_gets_what_nnunets_network_got(
    case: str, shared: Path, reference_case: Callable[[str], Any]
) -> None:
    about, arrays = reference_case(f"nnunet_v2_{case}")
    recipe = recipe_of(about)
    found = prepare_volume(read(about, shared, recipe), recipe, previous(about, shared, recipe))
    assert list(found.x.shape) == about["preprocessed_shape"]
    part = found.x[tuple(slice(None, None, step) for step in about["strides"]["preprocessed_sub"])]
    wanted = arrays["preprocessed_sub"]
    # torch's own resampling of values in the hundreds: two units in float32's last place
    tolerance = 2 * float(np.spacing(np.abs(wanted).max())) if case == "torchres" else 1e-5
    assert np.abs(part - wanted).max() <= tolerance


def passes_of(about: dict[str, Any], fill: Callable[..., State]) -> list[Run]:
    """The network of each fold in PyTorch."""
    plan = read_plan(about["plans"], about["dataset"], about["configuration"])
    out = []
    for fold in about["folds"]:
        network = PlannedUNet(plan.architecture).eval()
        state = weights(about, fold, fill)
        network.load_state_dict({key: state[key] for key in network.state_dict()})

        def run(x: np.ndarray, network: PlannedUNet = network) -> np.ndarray:
            with torch.inference_mode():
                return network(torch.from_numpy(np.ascontiguousarray(x))).numpy()

        out.append(run)
    return out


@pytest.mark.parametrize("case", ["png", "torchres"])
def test_logits_over_tiles_mirrorings_and_folds(
    case: str, shared: Path, reference_case: Callable[[str], Any], fill: Callable[..., State]
) -> None:
    about, arrays = reference_case(f"nnunet_v2_{case}")
    recipe = recipe_of(about)
    found = prepare_volume(read(about, shared, recipe), recipe)
    got = scores(found.x, recipe, passes_of(about, fill))
    part = got[tuple(slice(None, None, step) for step in about["strides"]["logits_sub"])]
    assert np.abs(part - arrays["logits_fp32_sub"]).max() <= 2e-4


def test_logits_of_two_folds_where_two_tiles_meet(
    shared: Path, reference_case: Callable[[str], Any], fill: Callable[..., State]
) -> None:
    """The whole case takes 1,200 passes. A part of it that two neighbouring tiles and no others see takes 32."""
    about, arrays = reference_case("nnunet_v2_3d")
    recipe = recipe_of(about)
    assert recipe.tiling is not None
    assert about["folds"] == [0, 1]
    found = prepare_volume(read(about, shared, recipe), recipe)
    window, shape = recipe.tiling.window, found.x.shape[1:]
    starts = [axis_starts(n, w, s, "even-spread") for n, w, s in zip(shape, window, recipe.tiling.step, strict=True)]
    ends = (window[0], window[1], starts[2][1] + window[2])
    alone = (slice(0, starts[0][1]), slice(0, starts[1][1]), slice(0, starts[2][2]))  # the other tiles begin behind
    part = np.ascontiguousarray(found.x[(slice(None), *(slice(0, end) for end in ends))])
    assert count_passes(part.shape[1:], recipe.tiling, 2) == 32
    got = scores(part, recipe, passes_of(about, fill))[(slice(None), *alone)]
    step = about["strides"]["logits_sub"]
    wanted = arrays["logits_fp32_sub"][
        (slice(None), *(slice(0, -(-n // s)) for n, s in zip(got.shape[1:], step[1:], strict=True)))
    ]
    sub = got[tuple(slice(None, None, s) for s in step)]
    assert sub.shape == wanted.shape
    assert sub.size > 200
    assert np.abs(sub - wanted).max() <= 2e-4
