"""Arithmetic of the MLPerf 3D U-Net's training: seeds, order, learning rate, evaluation schedule, shards.

Rules of mlcommons/training: retired_benchmarks/unet3d/pytorch (main.py, runtime/training.py, runtime/distributed_utils.py,
data_loading/data_loader.py). Epochs count from 1.
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segship.errors import UsageError

KITS_CASES = 168
"""training cases that the benchmark's schedule is written for"""
DIVERGED = 1e-6
"""a mean Dice below this ends the reference's run"""
_SEEDS = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """``workers``: one a process (weights come from the first); ``order``: of the shuffling, the same in all."""

    master: int
    workers: tuple[int, ...]
    order: int


def make_seeds(master: int, world: int = 1) -> Seeds:
    """What the reference draws from its master seed for ``world`` processes; a negative one is drawn first."""
    if master < 0:
        master = secrets.randbelow(_SEEDS + 1)
    draw = random.Random(master)
    workers = tuple(draw.randint(0, _SEEDS) for _ in range(world))
    return Seeds(master=master, workers=workers, order=draw.randint(0, _SEEDS))


def learning_rate(
    epoch: int,
    *,
    rate: float,
    initial: float = 1e-4,
    warmup: int = 0,
    decay_epochs: Sequence[int] = (),
    decay_factor: float = 1.0,
) -> float:
    """The rate that epoch ``epoch`` (from 1) trains with.

    Linear from ``initial`` (never used itself) to ``rate`` at epoch ``warmup``; then multiplied by ``decay_factor`` after
    each of ``decay_epochs``. A decay that falls into the warm-up is overwritten by it.
    """
    if epoch <= warmup:
        return initial + (rate - initial) * (epoch / warmup)
    for boundary in sorted(decay_epochs):
        if max(warmup, 1) <= boundary < epoch:
            rate *= decay_factor
    return rate


def samples_per_epoch(cases: int, batch: int, world: int = 1) -> int:
    """Samples that one epoch trains on: whole global batches only."""
    return cases // (batch * world) * (batch * world)


def evaluation_schedule(per_epoch: int) -> tuple[int, int]:
    """(first evaluation, epochs from one to the next) of the bare command line: 1000 and 20 epochs of 168 samples."""
    return math.ceil(1000 * KITS_CASES / per_epoch), math.ceil(20 * KITS_CASES / per_epoch)


def is_evaluated(epoch: int, *, first: int, every: int, last: int) -> bool:
    """Whether the network is scored after this epoch. After the last one always: a run ends with a score."""
    return epoch == last or (epoch >= first and (epoch - first) % every == 0)


def shard_sizes(cases: int, world: int) -> list[int]:
    """How the reference cuts ``cases`` over processes (numpy.array_split)."""
    return [cases // world + (rank < cases % world) for rank in range(world)]


def mean_over_shards(values: Sequence[float], world: int) -> float:
    """The reference's mean: each shard's own, then those with equal weights. Cases in shards of unequal size count
    unequally, which the plain mean over cases does not do. UsageError where a shard would be empty."""
    if world > len(values):
        raise UsageError(
            f"--reference-sharding: {len(values)} cases cannot be cut over {world} processes; use fewer, or leave it out"
        )
    parts = np.array_split(np.asarray(values, np.float64), world)
    return float(np.mean([part.mean() for part in parts]))


def epoch_order(seed: int, epoch: int, cases: int, *, shuffle: bool = True) -> NDArray[np.int64]:
    """Case indices of one epoch, as torch's DistributedSampler deals them: process r takes every world-th from r.

    Taken in global batches they do not depend on the number of processes.
    """
    if not shuffle:
        return np.arange(cases)
    import torch

    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(cases, generator=generator).numpy()


def item_seeds(seed: int, epoch: int, index: int) -> tuple[int, int]:
    """Seeds of Python's and numpy's draws for one item: a function of its place, not of the process or thread."""
    state = np.random.SeedSequence([seed, epoch, index]).generate_state(2)
    return int(state[0]), int(state[1])
