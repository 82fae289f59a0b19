"""Optimisers and learning-rate schedules of the UNet++ recipe, by upstream's names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import lr_scheduler

from segship.training.options import UnetPlusPlusOptions


def make_optimizer(options: UnetPlusPlusOptions, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over ``parameters``."""
    trained = [p for p in parameters if p.requires_grad]
    if options.optimizer == "SGD":
        return torch.optim.SGD(
            trained,
            lr=options.lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
        )
    kind = torch.optim.Adam if options.optimizer == "Adam" else torch.optim.AdamW
    return kind(trained, lr=options.lr, weight_decay=options.weight_decay, fused=True)


def make_scheduler(
    options: UnetPlusPlusOptions, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> lr_scheduler.LRScheduler:
    """The schedule; OneCycleLR counts batches, every other one epochs (see ``per_step``)."""
    if options.scheduler == "CosineAnnealingLR":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.epochs, eta_min=options.min_lr)
    if options.scheduler == "ReduceLROnPlateau":
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=options.factor, patience=options.patience, min_lr=options.min_lr
        )
    if options.scheduler == "MultiStepLR":
        return lr_scheduler.MultiStepLR(optimizer, milestones=options.milestone_epochs(), gamma=options.gamma)
    if options.scheduler == "OneCycleLR":
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=options.lr,
            total_steps=options.epochs * steps_per_epoch,
            pct_start=0.15,
            cycle_momentum=False,
            final_div_factor=1e3,
        )
    return lr_scheduler.LambdaLR(optimizer, _constant)


def per_step(options: UnetPlusPlusOptions) -> bool:
    """Whether the schedule is stepped after each batch instead of each epoch."""
    return options.scheduler == "OneCycleLR"


def _constant(epoch: int) -> float:
    return 1.0
