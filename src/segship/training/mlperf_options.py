"""Options of `segship train unet3d_mlperf`: the reference's flags with its script's values, then ours.

Names and meanings are those of mlcommons/training: retired_benchmarks/unet3d/pytorch/runtime/arguments.py; defaults those
of its run_and_time.sh. ``None`` means "worked out": see the properties.
"""

# ruff: noqa: RUF009 (`option` makes a field; its default is immutable)
from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from segship.errors import UsageError
from segship.manifest import Tiling
from segship.networks.unet3d_mlperf_choices import FILTERS, SIZE_MULTIPLE, Activation, Normalization
from segship.training.options import option

OPTIMIZERS = ("sgd", "adam", "lamb")
LOADERS = ("pytorch", "synthetic")
MODES = ("train", "evaluate")
DIVISIONS = ("closed", "open")
STATUSES = ("onprem", "cloud", "preview", "research")
DATA_VARIABLE, CHECKPOINT_VARIABLE = "PYTORCH_TRAIN_DATASET", "PYTORCH_TRAIN_CHECKPOINT"
DATA_FOLDERS = ("", "kits19", "kits19/data", "data")
"""where prepared cases are looked for below $PYTORCH_TRAIN_DATASET"""
# What may differ when a run goes on: nothing that changes a number of an epoch (of batch_size and devices the product may
# not, which the loop checks).
FREE_ON_RESUME = frozenset(
    {
        "resume", "data_dir", "batch_size", "log_dir", "save_ckpt_path", "output", "num_workers", "local_rank", "devices", "epochs",
        "quality_threshold", "start_eval_at", "evaluate_every", "mllog", "mllog_stdout", "submission_org",
        "submission_platform", "submission_division", "submission_status", "reference_sharding", "cudnn_benchmark",
        "diverged_below",
    }
)  # fmt: skip
PAD_VALUE = -2.2
SIGMA_SCALE = 0.125 * 3**0.5  # the reference takes the cube root of a Gaussian of 0.125 window sides


@dataclass(frozen=True, kw_only=True)
class Unet3dOptions:
    """One training or evaluation run of the MLPerf 3D U-Net. Checked when built: UsageError names the option at fault."""

    data_dir: Path | None = option(None, f"folder of prepared cases (case_00000_x.npy …) [${DATA_VARIABLE}]")
    epochs: int = option(4000, "passes over the training cases, at most")
    batch_size: int = option(2, "cases of one step on each device")
    learning_rate: float = option(0.8, "learning rate after the warm-up", flags=("--lr",))
    init_learning_rate: float = option(1e-4, "where the linear warm-up starts")
    lr_warmup_epochs: int = option(200, "epochs of the warm-up")
    lr_decay_epochs: tuple[int, ...] = option((), "epochs after which the rate is multiplied by --lr_decay_factor")
    lr_decay_factor: float = option(1.0, "factor at --lr_decay_epochs")
    optimizer: str = option("sgd", "sgd has Nesterov momentum; lamb is refused", choices=OPTIMIZERS)
    momentum: float = option(0.9, "momentum of sgd")
    weight_decay: float = option(0.0, "weight decay")
    lamb_betas: tuple[float, ...] = option((0.9, 0.999), "betas of lamb (refused)")
    ga_steps: int = option(1, "steps whose gradients are added up before the weights move")
    amp: bool = option(False, "mixed precision: fp16 with a loss scale on CUDA, bf16 on a CPU", switch=True)
    quality_threshold: float = option(0.908, "mean Dice at which training stops as a success")
    start_eval_at: int = option(
        1000, "first epoch that is scored; 0: as the reference's bare command line works it out"
    )
    evaluate_every: int = option(20, "epochs between two scores; 0: worked out alike", flags=("--eval_every",))
    seed: int = option(1, "master seed of weights, order and augmentation; -1 draws one")
    input_shape: tuple[int, ...] = option((128, 128, 128), "training patch, multiples of 32")
    val_input_shape: tuple[int, ...] = option((128, 128, 128), "window of the scoring, multiples of 32")
    overlap: float = option(0.5, "share of a window that the next one repeats, 0 to below 1")
    oversampling: float = option(0.4, "chance of a crop around kidney or tumour")
    include_background: bool = option(False, "count the background's Dice in loss and score too", switch=True)
    normalization: str = option("instancenorm", "normalisation layers", choices=get_args(Normalization))
    activation: str = option("relu", "activation", choices=get_args(Activation))
    layout: str = option("NCDHW", "axis order", choices=("NCDHW",))
    loader: str = option("pytorch", "synthetic: 64 random items, to measure speed without data", choices=LOADERS)
    num_workers: int = option(8, "threads that prepare items; 0 none")
    exec_mode: str = option("train", "evaluate needs --load_ckpt_path", choices=MODES)
    load_ckpt_path: Path | None = option(None, "checkpoint to score; nothing is trained (--resume goes on with a run)")
    save_ckpt_path: Path | None = option(
        None, f"checkpoint, written at every score [<output>/checkpoint.pth, or in ${CHECKPOINT_VARIABLE}]"
    )
    log_dir: Path | None = option(None, "folder of log.json [the run's folder]")
    benchmark: bool = option(False, "measure: no shuffling, no scores; throughput and latency at the end", switch=True)
    warmup_steps: int = option(4, "steps that --benchmark leaves out")
    cudnn_benchmark: bool = option(False, "let cuDNN try algorithms", switch=True)
    cudnn_deterministic: bool = option(False, "deterministic algorithms of cuDNN", switch=True)
    local_rank: int = option(0, "set by older launchers; torchrun's environment wins")

    filters: tuple[int, ...] = option(FILTERS, "widths of the five levels; smaller ones make a smaller network")
    output: Path | None = option(
        None, f"folder of the run [${CHECKPOINT_VARIABLE}/unet3d_<epochs>, models/unet3d_<epochs>]", flags=("-o",)
    )
    resume: bool = option(False, "go on with the run in the output folder", switch=True)
    device: str = option("auto", "auto takes CUDA devices where there are some", choices=("auto", "cpu", "cuda"))
    devices: int = option(1, "processes on this machine, started through torchrun; each has --batch_size cases a step")
    reference_sharding: bool = option(
        False,
        "as the reference with that many processes: its shuffling seed, and its mean of unequal shards",
        switch=True,
    )
    diverged_below: float = option(1e-6, "a mean Dice below this ends the run as diverged; 0 never")
    mllog: Path | None = option(None, "write MLPerf's log here (needs mlperf-logging)")
    mllog_stdout: bool = option(False, "print MLPerf's log too", switch=True)
    submission_org: str = option("your-company", "for --mllog")
    submission_platform: str = option("your_platform", "for --mllog")
    submission_division: str = option("closed", "for --mllog", choices=DIVISIONS)
    submission_status: str = option("onprem", "for --mllog", choices=STATUSES)

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_ranges(self)
        _check_shapes(self)
        if self.optimizer == "lamb":
            raise UsageError(
                "--optimizer lamb is NVIDIA apex's FusedLAMB in the reference, on CUDA only; use sgd or adam"
            )
        if self.optimizer == "sgd" and self.momentum <= 0:
            raise UsageError("--momentum must be above 0: the recipe's sgd has Nesterov momentum")
        if self.exec_mode == "evaluate" and self.load_ckpt_path is None:
            raise UsageError("--exec_mode evaluate needs --load_ckpt_path FILE")
        if self.resume and self.load_ckpt_path is not None:
            raise UsageError(
                "--load_ckpt_path scores a checkpoint, --resume goes on with the run in --output; give one"
            )

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Unet3dOptions:
        """Options from what JSON makes of them."""
        paths = ("data_dir", "load_ckpt_path", "save_ckpt_path", "log_dir", "output", "mllog")
        found: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**found | {key: Path(found[key]) for key in paths if found.get(key) is not None})

    @property
    def evaluates_only(self) -> bool:
        return self.load_ckpt_path is not None

    @property
    def run_folder(self) -> Path:
        base = Path(os.environ.get(CHECKPOINT_VARIABLE) or "models")
        return self.output or base / f"unet3d_{self.epochs}"

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint goes: named, in the folder of $PYTORCH_TRAIN_CHECKPOINT, or in the run's folder."""
        if self.save_ckpt_path is not None:
            return self.save_ckpt_path
        base = os.environ.get(CHECKPOINT_VARIABLE)
        return (
            Path(base) / f"unet3d_{self.epochs}.pth" if base and not self.output else self.run_folder / "checkpoint.pth"
        )

    @property
    def log_folder(self) -> Path:
        return self.log_dir or self.run_folder

    @property
    def data_path(self) -> Path:
        """``data_dir``, or the folder below $PYTORCH_TRAIN_DATASET that holds prepared cases. UsageError without both."""
        if self.data_dir is not None:
            return self.data_dir
        base = os.environ.get(DATA_VARIABLE)
        if not base:
            raise UsageError(
                f"no data: give --data_dir (the folder that `segship prepare kits19` wrote), or set ${DATA_VARIABLE}"
            )
        places = [Path(base) / name for name in DATA_FOLDERS]
        return next((place for place in places if next(place.glob("*_x.npy"), None)), places[0])

    @property
    def tiling(self) -> Tiling:
        """The reference's window plan: short remainders cut away, padded with -2.2, Gaussian weights."""
        window = self.val_input_shape
        step = tuple(max(1, int(side * (1 - self.overlap))) for side in window)
        return Tiling(
            window=window, step=step, positions="stride-multiple", weighting="gaussian-centred",
            gaussian_sigma_scale=SIGMA_SCALE, pad_mode="constant", pad_value=PAD_VALUE,
            crop_remainder_below=min(step) // 2, average="logits",
        )  # fmt: skip


def _check_choices(options: Unet3dOptions) -> None:
    for entry in fields(options):
        choices = entry.metadata["choices"]
        if choices and getattr(options, entry.name) not in choices:
            raise UsageError(f"--{entry.name} is {getattr(options, entry.name)!r}; choose one of {', '.join(choices)}")


def _check_ranges(options: Unet3dOptions) -> None:
    for name in ("epochs", "batch_size", "ga_steps", "devices"):
        _at_least(options, name, 1)
    for name in ("lr_warmup_epochs", "start_eval_at", "evaluate_every", "num_workers", "warmup_steps", "weight_decay"):
        _at_least(options, name, 0)
    _at_least(options, "seed", -1)
    if options.learning_rate <= 0 or options.init_learning_rate < 0:
        raise UsageError("--learning_rate must be positive and --init_learning_rate not negative")
    if not 0 <= options.oversampling <= 1:
        raise UsageError(f"--oversampling is a chance from 0 to 1, got {options.oversampling}")
    if not 0 <= options.overlap < 1:
        raise UsageError(f"--overlap goes from 0 to below 1, got {options.overlap}")
    if any(epoch < 1 for epoch in options.lr_decay_epochs):
        raise UsageError("--lr_decay_epochs are epochs from 1")


def _at_least(options: Unet3dOptions, name: str, lowest: int) -> None:
    value: Any = getattr(options, name)
    if value < lowest:
        raise UsageError(f"--{name} must be at least {lowest}, got {value}")


def _check_shapes(options: Unet3dOptions) -> None:
    for name in ("input_shape", "val_input_shape"):
        shape = getattr(options, name)
        if len(shape) != 3 or any(side < 1 or side % SIZE_MULTIPLE for side in shape):
            raise UsageError(f"--{name} is three multiples of {SIZE_MULTIPLE} such as 128 128 128, got {_words(shape)}")
        if all(side == SIZE_MULTIPLE for side in shape):
            raise UsageError(
                f"--{name} 32 32 32 leaves one voxel at the bottom, which cannot be normalised; use 64 64 64"
            )
    if len(options.filters) != len(FILTERS) or min(options.filters) < 1:
        raise UsageError(
            f"--filters are {len(FILTERS)} widths such as {_words(FILTERS)}, got {_words(options.filters)}"
        )


def _words(values: tuple[Any, ...]) -> str:
    return " ".join(str(value) for value in values)
