"""Training of UNet++ and U-Net: upstream's recipe by default, ours by options. One process of one or several.

The numbers of a run are a pure function of its options, data and device: the order and augmentation of each
sample follow from (seed, epoch, index), and the state file holds everything else, so a run that was killed and
resumed gives the same numbers as one that was not.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from segship.datasets import dsb2018
from segship.errors import DatasetError, SegshipError, UsageError
from segship.inference.writers import write_bytes
from segship.networks.unetplusplus import NestedUNet, UNet
from segship.training import distributed, runs
from segship.training.averages import average_of, recalibrate
from segship.training.data import Samples, batches, training_order, validation_order
from segship.training.losses import find_loss, mean_over_heads
from segship.training.norms import separate, synchronise
from segship.training.options import UnetPlusPlusOptions
from segship.training.precision import autocast, bf16_advice, keep_ends_float32
from segship.training.schedules import make_optimizer, make_scheduler, per_step
from segship.training.validation import Scores, iou, overlaps, scores, validation_sums

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a finished run leaves. ``value`` is the best validation IoU of ``epochs`` epochs, named by ``metric``."""

    folder: Path
    model: Path
    metric: str
    value: float
    epoch: int
    epochs: int
    split: str
    split_sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in the run's result.json."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


@dataclass(kw_only=True)
class _Run:
    """Everything that changes while training."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    average: AveragedModel | None
    next_epoch: int = 0
    best_value: float = -1.0  # an IoU of 0 is a first result too
    best_epoch: int = -1
    rows: list[dict[str, Any]] = field(default_factory=list)


def train_unetplusplus(options: UnetPlusPlusOptions, *, progress: bool = True) -> TrainingResult:
    """Train by ``options``; leaves model.pth, config.yml, log.csv and the state to resume from in the run's folder.

    ``progress`` shows a bar where the output is a terminal. With ``devices`` > 1 the processes are started here,
    through torchrun. Raises UsageError, DatasetError or OutputError with what to do.
    """
    if options.devices > 1 and not distributed.inside():
        values = distributed.launch("unetplusplus", options, progress=progress)
        return TrainingResult(**values | {"folder": Path(values["folder"]), "model": Path(values["model"])})
    dataset = dsb2018.open_dataset(
        options.data_path, image_suffix=options.img_ext, mask_suffix=options.mask_ext, num_classes=options.num_classes
    )
    split = dsb2018.split(dataset.ids, options.split)
    if split.absent and distributed.launched_rank() == 0:
        log.info("%d ids of split %s are not in the data set: %s", len(split.absent), split.name, split.absent[0][:12])
    samples = _samples(options, dataset, _training_ids(options, split), options.augmentation)
    held_out = _samples(options, dataset, split.validation, "none")
    opencv_threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # the loading threads are enough; OpenCV's own would take the network's cores
    try:
        with distributed.group(options.device) as device:
            return _train(options, samples, held_out, split, device, progress)
    finally:
        cv2.setNumThreads(opencv_threads)


def build_network(options: UnetPlusPlusOptions) -> nn.Module:
    """The network of these options, with torch's default initialisation."""
    if options.arch == "UNet":
        return UNet(options.num_classes, options.input_channels, upsample=options.upsample)
    return NestedUNet(options.num_classes, options.input_channels, options.deep_supervision, upsample=options.upsample)


def _training_ids(options: UnetPlusPlusOptions, split: dsb2018.Split) -> list[str]:
    ids = list(split.training) if options.train_list is None else dsb2018.read_ids(options.train_list)
    dsb2018.refuse_overlap(ids, split.validation, "training")
    unknown = sorted(set(options.exclude) - set(ids))
    if unknown:
        raise UsageError(f"--exclude names {unknown[0]}, which is not among the training ids; check the id")
    kept = [i for i in ids if i not in set(options.exclude)]
    if len(kept) < options.batch_size:
        raise UsageError(
            f"{len(kept)} training images do not fill one batch of {options.batch_size}; lower --batch_size"
        )
    return kept


def _samples(options: UnetPlusPlusOptions, dataset: dsb2018.Dataset, ids: Any, augmentation: Any) -> Samples:
    cases = dataset.select(ids)
    wrong = next((case for case in cases if len(case.mask_names) != options.num_classes), None)
    if wrong is not None:
        raise DatasetError(
            f"case {wrong.id} has masks of {len(wrong.mask_names)} classes, --num_classes says {options.num_classes}"
        )
    return Samples(
        cases=cases,
        size_hw=options.size_hw,
        channels=options.input_channels,
        augmentation=augmentation,
        hard_targets=options.hard_targets and augmentation != "none",
        seed=options.seed,
    )


def _train(
    options: UnetPlusPlusOptions,
    samples: Samples,
    held_out: Samples,
    split: dsb2018.Split,
    device: torch.device,
    progress: bool,
) -> TrainingResult:
    folder, first = options.run_folder, distributed.rank() == 0
    if options.batch_size % distributed.world():
        raise UsageError(f"--batch_size {options.batch_size} cannot be divided over {distributed.world()} processes")
    order = training_order(options.seed, 0, len(samples.cases), options.batch_size)
    run = _start(options, len(order), device)
    training_ids = dsb2018.ids_hash(case.id for case in samples.cases)
    if options.resume:
        _restore(run, runs.load_state(folder / runs.STATE, runs.options_record(options)), training_ids)
    elif first:
        runs.start_folder(folder, options)
    if first:
        log.info(
            "training on %d images, validation on %d (split %s, %s); best epoch by %s",
            len(samples.cases), len(held_out.cases), split.name, split.sha256[:12], options.best_metric,
        )  # fmt: skip
        bf16_advice(options.precision, device, log)
    synchronise(run.network)
    wrapped = distributed.wrap(run.network, device)
    plain = replace(samples, augmentation="none", cache={})
    writer = _writer(options, run.next_epoch) if first else None
    for epoch in range(run.next_epoch, options.epochs):
        if _stalled(options, run, epoch):
            log.info("stopped before epoch %d: no improvement for %d epochs", epoch, options.early_stopping)
            break
        started = time.perf_counter()
        row: dict[str, Any] = {"epoch": epoch, "lr": run.optimizer.param_groups[0]["lr"]}
        row["loss"], row["iou"] = _one_epoch(options, run, wrapped, samples, epoch, device, progress and first)
        found, chosen = None, run.network
        if _validated(options, epoch):
            chosen = _for_validation(options, run, plain, device)
            found = validate(options, chosen, held_out, device)
            named = {"validation iou": found.iou, "validation iou-batch16": found.iou_batch16}
            row |= {"val_loss": found.loss, "val_iou": found.iou_batch16, **named}
        if not per_step(options):
            _step_schedule(run.scheduler, found)
        run.rows.append(row)
        run.next_epoch = epoch + 1
        improved = found is not None and found.named(options.best_metric) > run.best_value
        if found is not None and improved:
            run.best_value, run.best_epoch = found.named(options.best_metric), epoch
        if first:
            if improved:
                runs.save_state(folder / runs.MODEL, weights(chosen))
            _save(run, options, training_ids)
            _report(row, found, run, options, time.perf_counter() - started, writer)
    if writer is not None:
        writer.close()
    result = TrainingResult(
        folder=folder,
        model=folder / runs.MODEL,
        metric=options.best_metric,
        value=run.best_value,
        epoch=run.best_epoch,
        epochs=run.next_epoch,
        split=split.name,
        split_sha256=split.sha256,
    )
    if first:
        write_bytes(folder / runs.RESULT, (json.dumps(result.as_dict(), indent=1) + "\n").encode())
        log.info(
            "validation %s %.4f, best of %d epochs (epoch %d), split %s",
            result.metric, result.value, result.epochs, result.epoch, result.split,
        )  # fmt: skip
    return result


def _start(options: UnetPlusPlusOptions, steps: int, device: torch.device) -> _Run:
    torch.manual_seed(options.seed)
    network = build_network(options)
    keep_ends_float32(network)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(options, network.parameters())
    return _Run(
        network=network,
        optimizer=optimizer,
        scheduler=make_scheduler(options, optimizer, steps),
        average=average_of(network, options.ema),
    )


def _one_epoch(
    options: UnetPlusPlusOptions,
    run: _Run,
    wrapped: nn.Module,
    samples: Samples,
    epoch: int,
    device: torch.device,
    progress: bool,
) -> tuple[float, float]:
    """(loss, batch IoU of the last head), means over the epoch's images."""
    loss_of = find_loss(options.loss)
    order = training_order(options.seed, epoch, len(samples.cases), options.batch_size)
    mine = [indices[distributed.rank() :: distributed.world()] for indices in order]
    wrapped.train()
    steps: list[list[float]] = []  # images, loss times images, pixels in both masks, pixels in either
    loader = batches(samples, mine, epoch=epoch, workers=options.num_workers)
    bar = tqdm(loader, total=len(mine), desc=f"epoch {epoch}", leave=False, disable=None if progress else True)
    for inputs, target in bar:
        target = target.to(device)
        run.optimizer.zero_grad(set_to_none=True)
        with autocast(options.precision, device):
            outputs = wrapped(inputs.to(device))
        loss, logits = mean_over_heads(loss_of, outputs, target)
        if not torch.isfinite(loss):
            raise SegshipError(f"the loss became {loss.item()} in epoch {epoch}; lower --lr or give --clip_gradient 1")
        loss.backward()  # type: ignore[no-untyped-call]
        if options.clip_gradient:
            nn.utils.clip_grad_norm_(run.network.parameters(), options.clip_gradient)
        run.optimizer.step()
        if run.average is not None:
            run.average.update_parameters(run.network)
        if per_step(options):
            run.scheduler.step()
        with torch.no_grad():
            both, either = overlaps(logits, target)
            steps.append([len(target), len(target) * loss.item(), float(both.sum()), float(either.sum())])
    images, losses, both, either = distributed.add(torch.tensor(steps, dtype=torch.float64)).unbind(1)
    count = images.sum()
    return float(losses.sum() / count), float((images * iou(both, either)).sum() / count)


def validate(options: UnetPlusPlusOptions, network: nn.Module, held_out: Samples, device: torch.device) -> Scores:
    """Loss and both IoUs of ``network`` on the held-out cases, in the run's precision; shared over processes."""
    distributed.same_weights(network)
    order = validation_order(len(held_out.cases), options.batch_size)
    mine = order[distributed.rank() :: distributed.world()]
    training = network.training
    network.eval()
    with autocast(options.precision, device):
        loader = batches(held_out, mine, workers=options.num_workers)
        sums = validation_sums(network, loader, find_loss(options.loss), device)
    network.train(training)
    return scores(distributed.add(sums))


def weights(network: nn.Module) -> dict[str, Tensor]:
    """The bare state_dict that model.pth holds, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def _for_validation(options: UnetPlusPlusOptions, run: _Run, plain: Samples, device: torch.device) -> nn.Module:
    """The network that is validated and saved: the averaged one where there is one, recalibrated if asked for.

    ``plain`` are the training images as they are; a fixed draw of them by the seed serves to recalibrate.
    """
    network = run.average.module if run.average is not None else run.network
    if not options.recalibrate:
        return network
    copied = copy.deepcopy(network)
    separate(copied)  # every process measures on the same batches
    order = training_order(options.seed, 0, len(plain.cases), options.batch_size)[: options.recalibrate]
    loader = batches(plain, order, workers=options.num_workers)
    with autocast(options.precision, device):
        recalibrate(copied, (inputs.to(device) for inputs, _ in loader))
    return copied


def _step_schedule(scheduler: LRScheduler, found: Scores | None) -> None:
    if not isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step()
    elif found is not None:
        scheduler.step(found.loss)


def _validated(options: UnetPlusPlusOptions, epoch: int) -> bool:
    return (epoch + 1) % options.validate_every == 0 or epoch + 1 == options.epochs


def _stalled(options: UnetPlusPlusOptions, run: _Run, epoch: int) -> bool:
    # Asked before an epoch and not after the last, so that a resumed run stops where the first one did.
    if options.early_stopping < 0 or epoch == 0 or not _validated(options, epoch - 1):
        return False
    return epoch - 1 - run.best_epoch >= options.early_stopping


def _save(run: _Run, options: UnetPlusPlusOptions, training_ids: str) -> None:
    folder = options.run_folder
    runs.write_log(folder / runs.LOG, run.rows)
    runs.write_log(folder / runs.VALIDATION, [row for row in run.rows if "val_loss" in row], runs.VALIDATION_HEADER)
    # The state comes last: what it says was done is on the disk.
    runs.save_state(folder / runs.STATE, _state(run, options, training_ids))


def _state(run: _Run, options: UnetPlusPlusOptions, training_ids: str) -> dict[str, Any]:
    return {
        "options": runs.options_record(options),
        "training_ids_sha256": training_ids,
        "network": run.network.state_dict(),
        "average": run.average.state_dict() if run.average is not None else None,
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "next_epoch": run.next_epoch,
        "best_value": run.best_value,
        "best_epoch": run.best_epoch,
        "rows": run.rows,
        "random": torch.get_rng_state(),
    }


def _restore(run: _Run, state: dict[str, Any], training_ids: str) -> None:
    if state["training_ids_sha256"] != training_ids:
        raise DatasetError("the training images are not those that the run was started with; give the same --data")
    run.network.load_state_dict(state["network"])
    if run.average is not None:
        run.average.load_state_dict(state["average"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scheduler.load_state_dict(state["scheduler"])
    run.next_epoch, run.rows = state["next_epoch"], state["rows"]
    run.best_value, run.best_epoch = state["best_value"], state["best_epoch"]
    torch.set_rng_state(state["random"])


def _writer(options: UnetPlusPlusOptions, first_epoch: int) -> Any:
    if not options.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("no TensorBoard files: `pip install tensorboard`, or --tensorboard false")
        return None
    folder = options.run_folder / "tensorboard"
    return SummaryWriter(str(folder), purge_step=first_epoch)  # type: ignore[no-untyped-call]


def _report(
    row: dict[str, Any], found: Scores | None, run: _Run, options: UnetPlusPlusOptions, seconds: float, writer: Any
) -> None:
    text = f"epoch {row['epoch']}: loss {row['loss']:.4f}, batch IoU {row['iou']:.4f}, {seconds:.0f} s"
    values = {"lr": row["lr"], "train/loss": row["loss"], "train/iou": row["iou"]}
    if found is not None:
        text += f" | validation loss {found.loss:.4f}, iou {found.iou:.4f}, iou-batch16 {found.iou_batch16:.4f}"
        text += f" (best {options.best_metric} {run.best_value:.4f}, epoch {run.best_epoch})"
        values |= {"val/loss": found.loss, "val/iou": found.iou, "val/iou-batch16": found.iou_batch16}
    log.info(text)
    if writer is not None:
        for name, value in values.items():
            writer.add_scalar(name, value, row["epoch"])
        writer.flush()
