"""Training of the MLPerf 3D U-Net by the reference's recipe. One process of one or several.

The numbers of a run are a function of its options, data, device and global batch: order and augmentation of every item
follow from (seed, epoch, case), and the state holds the rest, so a run that was killed and resumed gives the same numbers
as one that was not, and several processes the same as one. Recipe: mlcommons/training: retired_benchmarks/unet3d/pytorch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segship.errors import SegshipError, SourceError, UsageError
from segship.families import load_source
from segship.inference.writers import write_bytes
from segship.networks.unet3d_mlperf import Unet3D
from segship.training import distributed, mlperf_checkpoint, runs
from segship.training.mlperf_data import Case, Items, SyntheticItems, find_cases, split_cases
from segship.training.mlperf_evaluation import Evaluation, evaluate
from segship.training.mlperf_loop import Setting, train_epochs
from segship.training.mlperf_options import Unet3dOptions
from segship.training.mlperf_recipe import Seeds, make_seeds

log = logging.getLogger(__name__)
FAMILY, CLASSES = "unet3d_mlperf", 3


@dataclass(frozen=True, kw_only=True)
class Unet3dResult:
    """What a run leaves. ``value`` is the best mean Dice over ``cases`` held-out cases, reached in ``epoch``; without a
    score (--benchmark, --loader synthetic) it is None. ``speed`` is what --benchmark measured."""

    folder: Path
    checkpoint: Path | None
    metric: str
    value: float | None
    l1: float | None
    l2: float | None
    loss: float | None
    epoch: int
    epochs: int
    cases: int
    seed: int
    success: bool
    diverged: bool
    first_success: int
    minutes: float
    """of epochs and scores, interruptions left out"""
    speed: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in the run's result.json."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def train_unet3d(options: Unet3dOptions, *, progress: bool = True) -> Unet3dResult:
    """Train, or with ``load_ckpt_path`` score a checkpoint; leaves checkpoint, log.csv, log.json and a state to resume from.

    ``progress`` shows a bar where the output is a terminal. With ``devices`` > 1 the processes are started here, through
    torchrun. Raises UsageError, DatasetError, SourceError or OutputError with what to do.
    """
    if options.devices > 1 and not distributed.inside():
        values = distributed.launch("unet3d_mlperf", options, progress=progress)
        kept = Path(values["checkpoint"]) if values["checkpoint"] else None
        return Unet3dResult(**values | {"folder": Path(values["folder"]), "checkpoint": kept})
    training, held_out = _cases(options)
    with distributed.group(options.device) as device:
        try:
            return _run(options, training, held_out, device, progress)
        except torch.OutOfMemoryError as error:
            raise SegshipError(
                "the device's memory does not hold a step; lower --batch_size (with --ga_steps for the same sum), "
                "--input_shape or --val_input_shape, or give --amp"
            ) from error


def build_network(options: Unet3dOptions, seed: int) -> Unet3D:
    """The network of these options with torch's default initialisation from ``seed``."""
    torch.manual_seed(seed)
    return Unet3D(1, CLASSES, options.normalization, options.activation, options.filters)  # type: ignore[arg-type]


def load_network(path: Path, activation: str) -> nn.Module:
    """The network of a checkpoint (its best weights, else the last, else a bare state dict), widths and normalisation
    included. ``activation`` counts where nothing beside the file names one. SourceError for another network's."""
    given = {} if activation == "relu" else {"activation": activation}
    source = load_source(path, options=given)
    network = source.network
    if (
        not isinstance(network, nn.Module)
        or source.recipe.family != FAMILY
        or source.recipe.network.input_channels != 1
    ):
        raise SourceError(
            f"{path} is a {source.recipe.family} network, not the 3D U-Net of MLPerf Training on one CT channel"
        )
    if source.recipe.network.outputs[0].channels != CLASSES:
        raise SourceError(
            f"{path} has {source.recipe.network.outputs[0].channels} classes; KiTS19 has background and 2"
        )
    return network


def score_network(
    options: Unet3dOptions, network: nn.Module, cases: Sequence[Case], device: torch.device, progress: bool = False
) -> Evaluation:
    """Score ``network`` on ``cases`` as these options say; shared out over processes."""
    distributed.same_weights(network)
    return evaluate(
        network,
        cases,
        options.tiling,
        device,
        amp=options.amp,
        include_background=options.include_background,
        reference_sharding=options.reference_sharding,
        progress=progress,
    )


def _cases(options: Unet3dOptions) -> tuple[list[Case], list[Case]]:
    if options.loader == "synthetic":
        return [], []
    training, held_out = split_cases(find_cases(options.data_path))
    if not held_out and not options.benchmark:
        raise UsageError(
            f"{options.data_path} has none of MLPerf's 42 evaluation cases; prepare case_00000, for example"
        )
    if not training and not options.evaluates_only:
        raise UsageError(f"{options.data_path} has evaluation cases only, which are never trained on; add others")
    small = next((c for c in training if any(n < p for n, p in zip(c.shape, options.input_shape, strict=True))), None)
    if small is not None and not options.evaluates_only:
        raise UsageError(
            f"{small.id} has {'×'.join(map(str, small.shape))} voxels, less than --input_shape "
            f"{' '.join(map(str, options.input_shape))}; lower it, or prepare the cases with `segship prepare kits19`"
        )
    return training, held_out


def _run(
    options: Unet3dOptions, training: list[Case], held_out: list[Case], device: torch.device, progress: bool
) -> Unet3dResult:
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    torch.backends.cudnn.deterministic = options.cudnn_deterministic
    first = distributed.rank() == 0
    if options.evaluates_only:
        return _score_checkpoint(options, held_out, device, progress and first)
    seeds = _seeds(options)
    network = build_network(options, seeds.workers[0]).to(device)
    items: Items | SyntheticItems
    if options.loader == "synthetic":
        items = SyntheticItems(patch=options.input_shape, seed=seeds.order)
    else:
        items = Items(cases=training, patch=options.input_shape, oversampling=options.oversampling, seed=seeds.order)
    _check_batch(options, len(items))
    setting = Setting(
        options=options, items=items, held_out=held_out, seeds=seeds, device=device, network=network,
        progress=progress and first, score=lambda: score_network(options, network, held_out, device, progress and first),
    )  # fmt: skip
    state, speed = train_epochs(setting)
    result = Unet3dResult(
        folder=options.run_folder,
        checkpoint=options.checkpoint if state.last else None,
        metric="mean Dice",
        value=state.best.get("mean_dice", state.last.get("mean_dice")),
        l1=state.best.get("L1 dice", state.last.get("L1 dice")),
        l2=state.best.get("L2 dice", state.last.get("L2 dice")),
        loss=state.best.get("eval_loss", state.last.get("eval_loss")),
        epoch=int(state.best.get("epoch", 0)),
        epochs=state.epoch,
        cases=len(held_out) if state.last else 0,
        seed=seeds.master,
        success=state.first_success > 0,
        diverged=state.diverged,
        first_success=state.first_success,
        minutes=state.seconds / 60,
        speed=speed,
    )
    if first:
        _finish(result)
    return result


def _seeds(options: Unet3dOptions) -> Seeds:
    """The run's seeds: of a resumed run those it had, of a new one drawn, the same in every process."""
    if options.resume:
        state = mlperf_checkpoint.load_run(options.run_folder / mlperf_checkpoint.STATE, options)
        return Seeds(master=state["master_seed"], workers=(state["worker_seed"],), order=state["order_seed"])
    drawn = make_seeds(options.seed, distributed.world() if options.reference_sharding else 1)
    return distributed.from_first(drawn)


def _check_batch(options: Unet3dOptions, cases: int) -> None:
    whole = options.batch_size * distributed.world()
    if cases < whole:
        raise UsageError(f"{cases} training cases do not fill one step of {whole}; lower --batch_size or --devices")
    if cases // whole < options.ga_steps:
        raise UsageError(f"--ga_steps {options.ga_steps}, but an epoch has {cases // whole} steps; lower it")


def _score_checkpoint(
    options: Unet3dOptions, held_out: list[Case], device: torch.device, progress: bool
) -> Unet3dResult:
    assert options.load_ckpt_path is not None
    network = load_network(options.load_ckpt_path, options.activation)
    found = score_network(options, network.to(device), held_out, device, progress)
    if distributed.rank() == 0:
        for name, value in found.metrics().items():
            log.info("%s %.6f", name, value)
    return Unet3dResult(
        folder=options.load_ckpt_path.parent,
        checkpoint=options.load_ckpt_path,
        metric="mean Dice",
        value=found.mean_dice,
        l1=found.l1,
        l2=found.l2,
        loss=found.loss,
        epoch=0,
        epochs=0,
        cases=len(held_out),
        seed=options.seed,
        success=found.mean_dice >= options.quality_threshold,
        diverged=False,
        first_success=0,
        minutes=0.0,
        speed={},
    )


def _finish(result: Unet3dResult) -> None:
    text = (json.dumps(result.as_dict(), indent=1) + "\n").encode()
    write_bytes(result.folder / runs.RESULT, text)
    if result.diverged:
        log.info(
            "stopped: the mean Dice is below --diverged_below, the reference's sign of divergence; lower --learning_rate, or "
            "where it is only early, score later (--start_eval_at) or give --diverged_below 0"
        )
    if result.value is not None:
        log.info(
            "mean Dice %.4f (kidney %.4f, tumour %.4f) over %d cases, best in epoch %d of %d",
            result.value, result.l1, result.l2, result.cases, result.epoch, result.epochs,
        )  # fmt: skip
    for name, value in result.speed.items():
        log.info("%s %.3f", name, value)
