"""Options of `segship train unetplusplus`: upstream's flags with upstream's defaults, then ours.

Each field's metadata says how it looks on a command line: ``help``, ``choices`` (or None) and ``flags``, the
further spellings. Booleans are words there: true/false/1/0.
"""

# ruff: noqa: RUF009 (`option` makes a field; its default is immutable)
from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from segship.errors import UsageError
from segship.networks.unetplusplus_choices import SIZE_MULTIPLE, Upsampling

LOSSES = ("BCEDiceLoss", "LovaszHingeLoss", "BCEWithLogitsLoss", "BCEDiceLovaszLoss")
"""their functions are in `losses`, with torch"""
OPTIMIZERS = ("SGD", "Adam", "AdamW")
SCHEDULERS = ("CosineAnnealingLR", "ReduceLROnPlateau", "MultiStepLR", "ConstantLR", "OneCycleLR")
AUGMENTATIONS = ("upstream", "strong", "none")
PRECISIONS = ("fp32", "bf16")
BEST_METRICS = ("iou-batch16", "iou")
# What may differ when a run goes on: nothing that changes a number.
RESUMABLE = frozenset({"resume", "output", "data", "num_workers", "tensorboard"})
# In the order of config.yml, which is alphabetical.
UPSTREAM_FIELDS = (
    "arch", "batch_size", "dataset", "deep_supervision", "early_stopping", "epochs", "factor", "gamma", "img_ext",
    "input_channels", "input_h", "input_w", "loss", "lr", "mask_ext", "milestones", "min_lr", "momentum", "name",
    "nesterov", "num_classes", "num_workers", "optimizer", "patience", "scheduler", "weight_decay",
)  # fmt: skip


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    flags: tuple[str, ...] = (),
    switch: bool = False,
) -> Any:
    """A dataclass field that a command line can be generated from; a ``switch`` stands alone, without a value."""
    return field(default=default, metadata={"help": help, "choices": choices, "flags": flags, "switch": switch})


@dataclass(frozen=True, kw_only=True)
class UnetPlusPlusOptions:
    """One training run of UNet++ or U-Net. Checked when built: UsageError names the option at fault."""

    name: str | None = option(None, "name of the run; default <dataset>_<arch>_wDS or _woDS")
    epochs: int = option(100, "passes over the training images")
    batch_size: int = option(16, "images of one step, over all devices together", flags=("-b",))
    arch: str = option("NestedUNet", "network", choices=("NestedUNet", "UNet"), flags=("-a",))
    deep_supervision: bool = option(False, "train the heads of all four depths (NestedUNet)")
    input_channels: int = option(3, "3 (BGR) or 1 (grey)")
    num_classes: int = option(1, "classes, each an independent sigmoid")
    input_w: int = option(96, "network width in pixels, a multiple of 16")
    input_h: int = option(96, "network height in pixels, a multiple of 16")
    loss: str = option("BCEDiceLoss", "loss; BCEDiceLovaszLoss is ours", choices=LOSSES)
    dataset: str = option("dsb2018_96", "name of the data set; read from inputs/<dataset> unless --data says otherwise")
    img_ext: str = option(".png", "ending of image files in a prepared data set")
    mask_ext: str = option(".png", "ending of mask files in a prepared data set")
    optimizer: str = option("SGD", "optimiser; AdamW is ours", choices=OPTIMIZERS)
    lr: float = option(1e-3, "initial learning rate (the peak, with OneCycleLR)", flags=("--learning_rate",))
    momentum: float = option(0.9, "momentum of SGD")
    weight_decay: float = option(1e-4, "weight decay")
    nesterov: bool = option(False, "Nesterov momentum of SGD")
    scheduler: str = option(
        "CosineAnnealingLR", "learning-rate schedule; OneCycleLR is ours, stepped per batch", choices=SCHEDULERS
    )
    min_lr: float = option(1e-5, "lowest learning rate of CosineAnnealingLR and ReduceLROnPlateau")
    factor: float = option(0.1, "factor of ReduceLROnPlateau")
    patience: int = option(2, "patience of ReduceLROnPlateau in epochs")
    milestones: str = option("1,2", "epochs of MultiStepLR, comma-separated; unlike upstream it is really stepped")
    gamma: float = option(2 / 3, "factor of MultiStepLR")
    early_stopping: int = option(-1, "stop after this many epochs without improvement; -1 never")
    num_workers: int = option(4, "threads that prepare batches; 0 none")

    data: Path | None = option(None, "data set: prepared folder, raw folder, or Kaggle's zip; default inputs/<dataset>")
    output: Path | None = option(None, "folder of the run; default models/<name>", flags=("-o",))
    split: str = option("default", "validation images: default, ascend, or a text file of ids, one a line")
    train_list: Path | None = option(None, "text file of training ids; default every id outside the split")
    exclude: tuple[str, ...] = option((), "id to leave out of training; may be given more than once")
    augmentation: str = option("upstream", "augmentation of training images", choices=AUGMENTATIONS)
    hard_targets: bool = option(
        False, "train on masks thresholded at a half instead of upstream's soft ones", switch=True
    )
    upsample: Upsampling = option("bilinear", "upsampling in the network", choices=get_args(Upsampling))
    precision: str = option("fp32", "arithmetic of training: fp32, or bf16 autocast", choices=PRECISIONS)
    ema: float = option(0.0, "decay of an averaged copy of the weights that is validated and saved; 0 none")
    recalibrate: int = option(
        0, "training batches, not augmented, that batch norm is measured on anew before each validation; 0 none"
    )
    clip_gradient: float = option(0.0, "largest norm of the gradient; 0 no limit")
    validate_every: int = option(1, "validate after every so many epochs, and after the last")
    best_metric: str = option("iou-batch16", "which validation IoU chooses model.pth", choices=BEST_METRICS)
    seed: int = option(41, "seed of weights, order and augmentation")
    device: str = option("auto", "auto takes a CUDA device where there is one", choices=("auto", "cpu", "cuda"))
    devices: int = option(1, "processes, started through torchrun; the global batch stays the same")
    tensorboard: bool = option(True, "write TensorBoard event files beside log.csv")
    resume: bool = option(False, "go on with the run in the output folder", switch=True)

    def __post_init__(self) -> None:
        for entry in fields(self):
            choices = entry.metadata["choices"]
            if choices and getattr(self, entry.name) not in choices:
                raise UsageError(f"--{entry.name} is {getattr(self, entry.name)!r}; choose one of {', '.join(choices)}")
        for name in ("epochs", "batch_size", "num_classes", "validate_every", "devices"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1, got {getattr(self, name)}")
        for name in ("input_h", "input_w"):
            side = getattr(self, name)
            if side < SIZE_MULTIPLE or side % SIZE_MULTIPLE:
                up = max(1, -(-side // SIZE_MULTIPLE)) * SIZE_MULTIPLE
                raise UsageError(f"--{name} must be a multiple of {SIZE_MULTIPLE}, got {side}; use {up}")
        if self.input_channels not in (1, 3):
            raise UsageError(f"--input_channels must be 3 (BGR) or 1 (grey), got {self.input_channels}")
        if self.arch == "UNet" and self.deep_supervision:
            raise UsageError("UNet has one head; deep supervision needs --arch NestedUNet")
        if not 0 <= self.ema < 1:
            raise UsageError(f"--ema is a decay from 0 (off) to below 1, got {self.ema}; 0.998 is a good value")
        if self.recalibrate < 0:
            raise UsageError(f"--recalibrate counts batches, got {self.recalibrate}; 0 switches it off")
        if self.lr <= 0:
            raise UsageError(f"--lr must be positive, got {self.lr}")
        if self.batch_size % self.devices:
            raise UsageError(f"--batch_size {self.batch_size} cannot be divided over --devices {self.devices}")
        coarsest = (self.input_h // SIZE_MULTIPLE) * (self.input_w // SIZE_MULTIPLE)
        if coarsest * self.batch_size // self.devices < 2:
            raise UsageError("batch norm needs two values: raise --batch_size (per device) or the input size")
        if self.scheduler == "MultiStepLR":
            self.milestone_epochs()
        if self.nesterov and self.momentum <= 0:
            raise UsageError("--nesterov needs a --momentum above 0")

    @property
    def run_name(self) -> str:
        """``name``, or upstream's default for it."""
        return self.name or f"{self.dataset}_{self.arch}_{'wDS' if self.deep_supervision else 'woDS'}"

    @property
    def run_folder(self) -> Path:
        return self.output or Path("models") / self.run_name

    @property
    def data_path(self) -> Path:
        return self.data or Path("inputs") / self.dataset

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.input_h, self.input_w

    def milestone_epochs(self) -> list[int]:
        """``milestones`` as numbers."""
        try:
            return [int(part) for part in self.milestones.split(",")]
        except ValueError as error:
            raise UsageError(f"--milestones are epochs such as 30,60, got {self.milestones!r}") from error
