"""nnU-Net v2 model folders written from the reference cases, as its training leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from seeded import State


def write_model(
    root: Path, about: dict[str, Any], fill: Callable[..., State], dataset: str = "Dataset900_Case"
) -> Path:
    """``root/DatasetXXX/Trainer__Plans__configuration`` with plans.json, dataset.json and each fold's checkpoint."""
    name = f"{about['trainer_name']}__nnUNetPlans__{about['configuration']}"
    folder = root / dataset / name
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(about["plans"]))
    (folder / "dataset.json").write_text(json.dumps(about["dataset"]))  # in the file's own order
    for fold in about["folds"]:
        place = folder / f"fold_{fold}"
        place.mkdir()
        torch.save(_checkpoint(about, fold, fill), place / "checkpoint_final.pth")
    return folder


def _checkpoint(about: dict[str, Any], fold: int | str, fill: Callable[..., State]) -> dict[str, Any]:
    axes = about["inference_allowed_mirroring_axes"]
    return {
        "network_weights": weights(about, fold, fill),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 1,
        "init_args": {
            "plans": about["plans"], "configuration": about["configuration"], "fold": fold,
            "dataset_json": about["dataset"], "device": torch.device("cpu"),
        },
        "trainer_name": about["trainer_name"],
        "inference_allowed_mirroring_axes": None if axes is None else tuple(axes),
    }  # fmt: skip


def weights(about: dict[str, Any], fold: int | str, fill: Callable[..., State]) -> State:
    """Seeded by the keys of the first fold as they are, of later folds with 'fold_N.' before them; duplicates share."""
    prefix = "" if fold in (0, "all") else f"fold_{fold}."
    aliases = about["aliases"]
    empty = {f"{prefix}{key}": torch.zeros(shape) for key, shape in about["state_dict"].items() if key not in aliases}
    state = {key.removeprefix(prefix): value for key, value in fill(empty, about["gain"]).items()}
    for key, values in about["overrides"].items():
        state[key] = torch.tensor(values)
    return {key: state[aliases.get(key, key)] for key in about["state_dict"]}
