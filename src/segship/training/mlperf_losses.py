"""Loss of the MLPerf 3D U-Net: Dice with cross-entropy. The score is `metrics.kits19.dice_scores`.

mlcommons/training: retired_benchmarks/unet3d/pytorch/model/losses.py. Logits are (N, K, D, H, W), targets (N, 1, D, H, W)
with class numbers. Sums are float32 whatever autocast gives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

SMOOTH = 1e-6


def dice(prediction: Tensor, target: Tensor, *, include_background: bool = False) -> Tensor:
    """(N, classes): (2 Σ t·p + 1e-6) / (Σ t + Σ p + 1e-6) of one-hot ``target`` and ``prediction`` (N, K, …)."""
    if not include_background:
        prediction, target = prediction[:, 1:], target[:, 1:]
    axes = tuple(range(2, target.ndim))
    both = (target * prediction).sum(axes)
    return (2.0 * both + SMOOTH) / (target.sum(axes) + prediction.sum(axes) + SMOOTH)


def one_hot(target: Tensor, classes: int) -> Tensor:
    """(N, 1, …) class numbers as (N, classes, …) float32."""
    shape = (target.shape[0], classes, *target.shape[2:])
    return torch.zeros(shape, device=target.device).scatter_(1, target.long(), 1.0)


def dice_ce_loss(logits: Tensor, target: Tensor, *, include_background: bool = False) -> Tensor:
    """(mean over samples and classes of 1 − Dice + cross-entropy over all classes) / 2."""
    logits = logits.float()
    cross_entropy = functional.cross_entropy(logits, target[:, 0].long())
    probability = torch.softmax(logits, 1)
    found = dice(probability, one_hot(target, logits.shape[1]), include_background=include_background)
    return ((1.0 - found).mean() + cross_entropy) / 2
