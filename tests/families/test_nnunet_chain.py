"""nnU-Net's preprocessing and its network's answer, against the originals' arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeded import State

from segship.families.nnunet_plans import read_plan
from segship.families.nnunet_recipe import build_recipe
from segship.inference.volume_chain import prepare_volume
from segship.inference.volume_network import scores
from segship.inference.volumes import Volume, read_labels, read_volume
from segship.manifest import Recipe, VolumeInput
from segship.networks.nnunet import PlannedUNet

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


@pytest.mark.parametrize("case", ["png", "torchres"])
def test_logits_over_tiles_mirrorings_and_folds(
    case: str, shared: Path, reference_case: Callable[[str], Any], fill: Callable[..., State]
) -> None:
    about, arrays = reference_case(f"nnunet_v2_{case}")
    recipe = recipe_of(about)
    plan = read_plan(about["plans"], about["dataset"], about["configuration"])
    network = PlannedUNet(plan.architecture).eval()
    state = fill(network.state_dict(), about["gain"])
    for key, values in about["overrides"].items():
        state[key] = torch.tensor(values)
    network.load_state_dict(state)

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(np.ascontiguousarray(x))).numpy()

    found = prepare_volume(read(about, shared, recipe), recipe)
    got = scores(found.x, recipe, [run] * len(about["folds"]))
    part = got[tuple(slice(None, None, step) for step in about["strides"]["logits_sub"])]
    assert np.abs(part - arrays["logits_fp32_sub"]).max() <= 2e-4
