"""The epochs of an MLPerf 3D U-Net run: rate, steps, scores, logs, checkpoint and state, in the reference's order."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from tqdm import tqdm

from segship.errors import SegshipError, UsageError
from segship.inference.writers import write_bytes
from segship.training import distributed, mlperf_checkpoint, mlperf_log, runs
from segship.training.mlperf_checkpoint import LOG, LOG_HEADER, STATE, Progress
from segship.training.mlperf_data import Case, Items, SyntheticItems, batches, shares
from segship.training.mlperf_evaluation import Evaluation, mixed
from segship.training.mlperf_log import DllLog, MlperfLog
from segship.training.mlperf_losses import dice_ce_loss
from segship.training.mlperf_options import Unet3dOptions
from segship.training.mlperf_recipe import (
    Seeds,
    epoch_order,
    evaluation_schedule,
    is_evaluated,
    learning_rate,
    samples_per_epoch,
)
from segship.training.norms import synchronise

log = logging.getLogger(__name__)
LEAST_SIZE = 128
"""what `segship prepare kits19` pads every axis to, unless told otherwise"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What stays the same while a run goes on."""

    options: Unet3dOptions
    items: Items | SyntheticItems
    held_out: list[Case]
    seeds: Seeds
    device: torch.device
    network: nn.Module
    progress: bool
    score: Callable[[], Evaluation]

    @property
    def global_batch(self) -> int:
        return self.options.batch_size * distributed.world()

    @property
    def scored(self) -> bool:
        return bool(self.held_out) and not self.options.benchmark

    def schedule(self) -> tuple[int, int]:
        """(first scored epoch, epochs between scores)."""
        first, every = evaluation_schedule(
            samples_per_epoch(len(self.items), self.options.batch_size, distributed.world())
        )
        return self.options.start_eval_at or first, self.options.evaluate_every or every


@dataclass(kw_only=True)
class _Moving:
    """What changes: ``state`` and everything with a state of its own."""

    state: Progress
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    wrapped: nn.Module
    mllog: MlperfLog
    dll: DllLog
    steps: list[float]
    """seconds of each step, for --benchmark"""


def train_epochs(setting: Setting) -> tuple[Progress, dict[str, float]]:
    """Train until the threshold, divergence or the last epoch; returns the progress and --benchmark's figures."""
    options, first = setting.options, distributed.rank() == 0
    moving = _start(setting, first)
    state = moving.state
    begin, every = setting.schedule()
    for epoch in range(state.epoch + 1, options.epochs + 1):
        if state.first_success or state.diverged:
            break
        started = time.perf_counter()
        rate = _set_rate(options, moving.optimizer, epoch)
        moving.mllog.start("block_start", first_epoch_num=epoch, epoch_count=1)
        moving.mllog.start("epoch_start", epoch_num=epoch)
        row: dict[str, Any] = {"epoch": epoch, "lr": rate, "train_loss": _one_epoch(setting, moving, epoch)}
        moving.mllog.end("epoch_stop", epoch_num=epoch, current_lr=rate)
        found = None
        if setting.scored and is_evaluated(epoch, first=begin, every=every, last=options.epochs):
            moving.mllog.start("eval_start", epoch, epoch_num=epoch)
            found = setting.score()
            row |= found.metrics()
            moving.mllog.event("eval_accuracy", found.mean_dice, epoch_num=epoch)
            moving.mllog.end("eval_stop", epoch_num=epoch)
        moving.mllog.end("block_stop", first_epoch_num=epoch, epoch_count=1)
        state.rows.append(row)
        state.epoch = epoch
        if found is not None:
            _note(setting, moving, row, found, first)
        state.seconds += time.perf_counter() - started
        if first:
            _save(setting, moving)
            _report(row, found, state, time.perf_counter() - started)
    return state, _end(setting, moving, first)


def _start(setting: Setting, first: bool) -> _Moving:
    options, network = setting.options, setting.network
    optimizer = make_optimizer(options, network)
    # A CPU's bf16 has float32's range and needs no loss scale.
    scaler = torch.amp.GradScaler("cuda", enabled=options.amp and setting.device.type == "cuda")
    state, sizes = Progress(), (0, 0)
    if options.resume:
        state, sizes = _restore(setting, optimizer, scaler)
        if first:
            for path in (options.run_folder / STATE, options.checkpoint):
                mlperf_checkpoint.sweep(path)
    elif first:
        _start_folder(setting)
    mllog = MlperfLog(options.mllog if first else None, stdout=options.mllog_stdout and first, keep_bytes=sizes[0])
    dll = DllLog(options.log_folder / "log.json" if first else None, keep_bytes=sizes[1])
    if not options.resume:
        _announce(setting, mllog)
    if first:
        log.info(
            "training on %d cases, scored on %d", len(setting.items), len(setting.held_out) if setting.scored else 0
        )
        begin, _ = setting.schedule()
        if setting.scored and begin > options.epochs:
            log.info("the first score is due in epoch %d: only the last of %d epochs is scored", begin, options.epochs)
    synchronise(network)
    wrapped = distributed.wrap(network, setting.device)
    return _Moving(state=state, optimizer=optimizer, scaler=scaler, wrapped=wrapped, mllog=mllog, dll=dll, steps=[])


def make_optimizer(options: Unet3dOptions, network: nn.Module) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or Adam."""
    if options.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    return torch.optim.SGD(
        network.parameters(),
        lr=options.learning_rate,
        momentum=options.momentum,
        nesterov=True,
        weight_decay=options.weight_decay,
    )


def _set_rate(options: Unet3dOptions, optimizer: torch.optim.Optimizer, epoch: int) -> float:
    rate = learning_rate(
        epoch,
        rate=options.learning_rate,
        initial=options.init_learning_rate,
        warmup=options.lr_warmup_epochs,
        decay_epochs=options.lr_decay_epochs,
        decay_factor=options.lr_decay_factor,
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _one_epoch(setting: Setting, moving: _Moving, epoch: int) -> float:
    """Every full step of the epoch; returns the mean loss over them and over processes.

    Steps that are left over when ``ga_steps`` does not divide an epoch move no weight, as in the reference.
    """
    options, device = setting.options, setting.device
    order = epoch_order(setting.seeds.order, epoch, len(setting.items), shuffle=not options.benchmark)
    mine = shares(order, options.batch_size, distributed.rank(), distributed.world())
    loader = batches(setting.items, mine, epoch=epoch, workers=options.num_workers)
    total = torch.zeros((), dtype=torch.float64, device=device)
    moving.wrapped.train()
    moving.optimizer.zero_grad(set_to_none=True)
    bar = tqdm(loader, total=len(mine), desc=f"epoch {epoch}", leave=False, disable=None if setting.progress else True)
    started = time.perf_counter()
    for step, (image, label) in enumerate(bar, start=1):
        moves = step % options.ga_steps == 0
        total += _one_step(setting, moving, image.to(device), label.to(device), moves)
        if options.benchmark:
            if device.type == "cuda":
                torch.cuda.synchronize()
            moving.steps.append(time.perf_counter() - started)
            started = time.perf_counter()
    both = torch.stack([total.cpu(), torch.tensor(float(len(mine)), dtype=torch.float64)])
    loss, count = distributed.add(both).tolist()
    if not np.isfinite(loss):
        raise SegshipError(
            f"the loss became {loss} in epoch {epoch}; lower --learning_rate or lengthen --lr_warmup_epochs, then --resume"
        )
    return float(loss / count)


def _one_step(setting: Setting, moving: _Moving, image: torch.Tensor, label: torch.Tensor, moves: bool) -> torch.Tensor:
    """Forward, backward and, if it ``moves``, a step of the optimiser; returns the loss (no gradient)."""
    options = setting.options
    # gradients are exchanged once, with the last of the steps that are added up
    quiet = distributed.world() > 1 and not moves
    with moving.wrapped.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
        with mixed(options.amp, setting.device):
            logits = moving.wrapped(image)
        loss = dice_ce_loss(logits, label, include_background=options.include_background)
        moving.scaler.scale(loss / options.ga_steps).backward()
    if moves:
        moving.scaler.step(moving.optimizer)
        moving.scaler.update()
        moving.optimizer.zero_grad(set_to_none=True)
    return loss.detach().double()


def _note(setting: Setting, moving: _Moving, row: dict[str, Any], found: Evaluation, first: bool) -> None:
    """Scores into the progress; checkpoint and log.json of this epoch."""
    state, options, epoch = moving.state, setting.options, int(row["epoch"])
    scores = {"epoch": float(epoch), **found.metrics(), "train_loss": float(row["train_loss"])}
    state.note(scores, setting.network, moving.optimizer, copies=first)
    if found.mean_dice >= options.quality_threshold:
        state.first_success = epoch
    elif found.mean_dice < options.diverged_below:
        state.diverged = True
    if not first:
        return
    mlperf_checkpoint.save_checkpoint(
        options.checkpoint, state, setting.network, moving.optimizer, setting.seeds.workers[0]
    )
    header = ("id", "l1", "l2", "loss")
    runs.write_log(options.run_folder / mlperf_checkpoint.CASES, found.rows(), header)
    moving.dll.write(float(epoch), {**scores, **_top(state)})


def _top(state: Progress) -> dict[str, float]:
    return {f"TOP_{key}": value for key, value in state.best.items()}


def _save(setting: Setting, moving: _Moving) -> None:
    options = setting.options
    runs.write_log(options.run_folder / LOG, moving.state.rows, LOG_HEADER)
    seeds = setting.seeds
    # The state comes last: what it says was done is on the disk.
    mlperf_checkpoint.save_run(
        options.run_folder / STATE, options, moving.state, setting.network, moving.optimizer, moving.scaler,
        {
            "master_seed": seeds.master, "worker_seed": seeds.workers[0], "order_seed": seeds.order,
            "global_batch": setting.global_batch, "cases": [case.id for case in _trained(setting)],
            "log_bytes": [moving.mllog.size, moving.dll.size],
        },
    )  # fmt: skip


def _trained(setting: Setting) -> list[Case]:
    return list(setting.items.cases) if isinstance(setting.items, Items) else []


def _restore(setting: Setting, optimizer: torch.optim.Optimizer, scaler: Any) -> tuple[Progress, tuple[int, int]]:
    options = setting.options
    state = mlperf_checkpoint.load_run(options.run_folder / STATE, options)
    if state["global_batch"] != setting.global_batch:
        raise UsageError(
            f"the run was started with {state['global_batch']} cases a step, now --batch_size × processes is "
            f"{setting.global_batch}; keep the product"
        )
    if state["cases"] != [case.id for case in _trained(setting)]:
        raise UsageError("the training cases are not those that the run was started with; give the same --data_dir")
    setting.network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    mlperf_checkpoint.restore_random(state["random"])
    progress = Progress(**state["progress"])
    progress.best_weights = mlperf_checkpoint.load_best(options.checkpoint, progress.best)
    # a run that had reached its threshold or its divergence goes on if that was moved
    value = progress.last.get("mean_dice")
    if value is not None:
        progress.first_success = progress.first_success if value >= options.quality_threshold else 0
        progress.diverged = value < options.diverged_below
    mllog_bytes, dll_bytes = state["log_bytes"]
    return progress, (mllog_bytes, dll_bytes)


def _start_folder(setting: Setting) -> None:
    """The run's folder with segship.yml, from which `segship export` knows activation, window and least size."""
    options = setting.options
    if (options.run_folder / STATE).exists():
        raise UsageError(f"{options.run_folder} already holds a run; go on with --resume, or choose another --output")
    record = mlperf_checkpoint.options_record(options)
    # Patches are cut from within cases: padding around a window is something that the network never saw.
    record |= {"overlap": options.overlap, "window": _times(options.val_input_shape), "borders": "flush"}
    sizes = [case.shape for case in (*_trained(setting), *setting.held_out)]
    if sizes:
        record["pad_to"] = _times([min(LEAST_SIZE, *sides) for sides in zip(*sizes, strict=True)])
    write_bytes(options.run_folder / runs.EXTRA, yaml.safe_dump(record).encode())


def _times(sides: Sequence[int]) -> str:
    return "x".join(str(side) for side in sides)


def _announce(setting: Setting, mllog: MlperfLog) -> None:
    """MLPerf's lines before the first epoch. cache_clear says what was done: the data's pages were given up."""
    options, seeds = setting.options, setting.seeds
    if options.mllog is not None or options.mllog_stdout:
        files = [path for case in (*_trained(setting), *setting.held_out) for path in (case.image, case.label)]
        mllog.event("cache_clear", mlperf_log.drop_cached(files))
    mllog.start("init_start")
    mlperf_log.start_of_run(mllog, options, seeds.workers[0])
    distributed.barrier()
    mllog.end("init_stop")
    mllog.start("run_start")
    per_epoch = samples_per_epoch(len(setting.items), options.batch_size, distributed.world())
    mlperf_log.sizes_of_run(
        mllog, len(setting.items), len(setting.held_out), per_epoch, setting.global_batch * options.ga_steps,
        options.ga_steps,
    )  # fmt: skip


def _end(setting: Setting, moving: _Moving, first: bool) -> dict[str, float]:
    state, options = moving.state, setting.options
    distributed.barrier()
    moving.mllog.end("run_stop", status="success" if state.first_success else "aborted")
    speed = mlperf_log.speed(moving.steps[options.warmup_steps :], setting.global_batch) if options.benchmark else {}
    if first:
        ending = {"last_epoch": state.epoch, "first_conv_ep": state.first_success, "seed": setting.seeds.workers[0],
                  "total_time": state.seconds / 60}  # fmt: skip
        moving.dll.write([], {**_top(state), **ending, **speed})
    moving.mllog.close()
    return speed


def _report(row: dict[str, Any], found: Evaluation | None, state: Progress, seconds: float) -> None:
    text = f"epoch {row['epoch']}: loss {row['train_loss']:.4f}, lr {row['lr']:.4g}, {seconds:.1f} s"
    if found is not None:
        text += f" | mean Dice {found.mean_dice:.4f} (kidney {found.l1:.4f}, tumour {found.l2:.4f})"
        text += f", best {state.best.get('mean_dice', 0.0):.4f}"
    log.info(text)
