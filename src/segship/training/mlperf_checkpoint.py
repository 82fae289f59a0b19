"""Files of an MLPerf 3D U-Net run: the checkpoint in the reference's keys, and the state that `--resume` goes on from."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segship.errors import SourceError
from segship.training import runs
from segship.training.mlperf_options import FREE_ON_RESUME, Unet3dOptions
from segship.training.runs import load_state, save_state

STATE, LOG, RESULT, CASES = "state.pt", "log.csv", "result.json", "cases.csv"
LOG_HEADER = ("epoch", "lr", "train_loss", "L1 dice", "L2 dice", "mean_dice", "eval_loss")


@dataclass(kw_only=True)
class Progress:
    """What changes while training besides weights, optimiser and loss scale. ``epoch`` is the last finished one."""

    epoch: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    """scores of the best epoch, in the reference's names; empty before the first score above 0"""
    last: dict[str, float] = field(default_factory=dict)
    first_success: int = 0
    diverged: bool = False
    seconds: float = 0.0
    best_weights: dict[str, Any] = field(default_factory=dict)
    """best_model_state_dict and best_optimizer_state_dict"""

    def note(
        self, scores: dict[str, float], network: nn.Module, optimizer: torch.optim.Optimizer, *, copies: bool
    ) -> None:
        """Keep ``scores``; where they are the best so far, with ``copies`` of weights and optimiser."""
        self.last = scores
        if not scores["mean_dice"] > self.best.get("mean_dice", 0.0):
            return
        self.best = scores
        if copies:
            self.best_weights = {
                "best_model_state_dict": on_cpu(network.state_dict()),
                "best_optimizer_state_dict": on_cpu(optimizer.state_dict()),
            }


def on_cpu(value: Any) -> Any:
    """A deep copy of nested dicts and lists with every tensor on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: on_cpu(inner) for key, inner in value.items()}
    return [on_cpu(inner) for inner in value] if isinstance(value, list | tuple) else copy.copy(value)


def save_checkpoint(
    path: Path, progress: Progress, network: nn.Module, optimizer: torch.optim.Optimizer, seed: int
) -> None:
    """The reference's keys, written at once or not at all; the best are absent while no score was above 0."""
    last = {"last_model_state_dict": network.state_dict(), "last_optimizer_state_dict": optimizer.state_dict()}
    save_state(path, {**progress.best_weights, **last, **progress.best, "seed": seed})


def save_run(
    path: Path,
    options: Unet3dOptions,
    progress: Progress,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    extra: Mapping[str, Any],
) -> None:
    """Everything that the next epoch depends on. The best weights lie in the checkpoint, not here."""
    kept = {entry.name: getattr(progress, entry.name) for entry in fields(progress) if entry.name != "best_weights"}
    save_state(
        path,
        {
            "options": options_record(options),
            "progress": kept,
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "random": random_states(),
            **extra,
        },
    )


def load_run(path: Path, options: Unet3dOptions) -> dict[str, Any]:
    """The state of an interrupted run. UsageError where its options differ in what decides numbers."""
    return load_state(path, options_record(options))


def sweep(path: Path) -> None:
    """Remove what a killed run had half written for ``path``."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


def load_best(path: Path, best: Mapping[str, float]) -> dict[str, Any]:
    """The best weights from the checkpoint, if they are those of ``best``.

    A run that was killed between checkpoint and state has one of a later epoch: it will come to those weights again.
    """
    if not best or not path.is_file():
        return {}
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        raise SourceError(
            f"{path} is no checkpoint of the run ({error}); remove it, the next score writes it"
        ) from error
    if stored.get("epoch") != best.get("epoch"):
        return {}
    return {key: stored[key] for key in ("best_model_state_dict", "best_optimizer_state_dict")}


def options_record(options: Unet3dOptions) -> dict[str, Any]:
    """The options that decide a run's numbers, as plain values."""
    return runs.options_record(options, FREE_ON_RESUME)


def random_states() -> dict[str, Any]:
    """States of Python's, numpy's and torch's generators as plain values and tensors."""
    version, inner, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    return {
        "python": [version, list(inner), gauss],
        "numpy": [torch.from_numpy(legacy["state"]["key"].astype(np.int64)), int(legacy["state"]["pos"]),
                  int(legacy["has_gauss"]), float(legacy["gauss"])],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }  # fmt: skip


def restore_random(states: Mapping[str, Any]) -> None:
    """Put ``random_states`` back. CUDA's only where the number of devices is the same."""
    version, inner, gauss = states["python"]
    random.setstate((version, tuple(inner), gauss))
    key, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", key.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
