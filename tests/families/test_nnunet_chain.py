"""nnU-Net's preprocessing and its network's answer, against the originals' arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from seeded import State

from segship.families.nnunet_plans import read_plan
from segship.families.nnunet_recipe import build_recipe
from segship.inference.volume_chain import prepare_volume
from segship.inference.volume_network import scores
from segship.inference.volumes import Volume
from segship.manifest import Recipe
from segship.networks.nnunet import PlannedUNet

V2 = ["2d", "3d", "aniso", "cascade", "png", "regions", "torchres"]


def read(about: dict[str, Any], shared: Path) -> Volume:
    """The case's input by the plainest reading: nibabel's stored order turned round, the zooms as spacing."""
    channels, spacing = [], (999.0, 1.0, 1.0)
    for name in about["inputs"]:
        path = shared.parent / name
        if path.suffix == ".png":
            channels += list(np.asarray(Image.open(path), np.float32).transpose(2, 0, 1)[:, None])
            continue
        picture = nibabel.load(path)
        if "nibabel_stuff" in about["properties"] and "reoriented_affine" in about["properties"]["nibabel_stuff"]:
            picture = picture.as_reoriented(nibabel.io_orientation(picture.affine))
        channels.append(np.asarray(picture.dataobj, np.float32).transpose(2, 1, 0))
        spacing = tuple(float(zoom) for zoom in picture.header.get_zooms()[::-1])
    return Volume(channels=np.stack(channels), spacing=spacing, name="case")  # type: ignore[arg-type]


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


def previous(about: dict[str, Any], shared: Path) -> np.ndarray | None:
    if not about.get("previous_stage_segmentation"):
        return None
    file = shared / "reference" / "nnunet_inputs" / "nnunet_v2_cascade_prev.nii.gz"
    return np.asarray(nibabel.load(file).dataobj).transpose(2, 1, 0).astype(np.uint8)


@pytest.mark.parametrize("case", V2)
def test_the_network_gets_what_nnunets_network_got(
    case: str, shared: Path, reference_case: Callable[[str], Any]
) -> None:
    about, arrays = reference_case(f"nnunet_v2_{case}")
    found = prepare_volume(read(about, shared), recipe_of(about), previous(about, shared))
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

    found = prepare_volume(read(about, shared), recipe)
    got = scores(found.x, recipe, [run] * len(about["folds"]))
    part = got[tuple(slice(None, None, step) for step in about["strides"]["logits_sub"])]
    assert np.abs(part - arrays["logits_fp32_sub"]).max() <= 2e-4
