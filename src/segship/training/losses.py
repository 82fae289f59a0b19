"""Losses of the UNet++ world on logits and (possibly soft) targets, all (N, K, H, W).

``bce_dice_loss``, ``lovasz_hinge_loss`` and ``bce_with_logits_loss`` equal those of 4uiiurz1/pytorch-nested-unet;
the Lovász hinge is that of Berman et al., "The Lovász-Softmax loss" (CVPR 2018). Targets are 0..1; upstream feeds
the soft, linearly resized masks to each of them, also to Lovász, whose definition expects 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from segship.errors import UsageError

SMOOTH = 1e-5
LOVASZ_WEIGHT = 0.5  # of the Lovász term in bce_dice_lovasz_loss

Loss = Callable[[Tensor, Tensor], Tensor]


def bce_with_logits_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, mean over all elements."""
    return functional.binary_cross_entropy_with_logits(logits, target)


def bce_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """0.5 · BCE + 1 − mean soft Dice; a sample's classes and pixels are flattened together."""
    bce = functional.binary_cross_entropy_with_logits(logits, target)
    probability = torch.sigmoid(logits).flatten(1)
    flat = target.flatten(1)
    intersection = (probability * flat).sum(1)
    dice = (2.0 * intersection + SMOOTH) / (probability.sum(1) + flat.sum(1) + SMOOTH)
    return 0.5 * bce + 1 - dice.mean()


def lovasz_hinge_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Lovász hinge per image (all classes together), mean over images."""
    scores, labels = logits.flatten(1), target.flatten(1)
    errors = 1.0 - scores * (2.0 * labels - 1.0)
    errors, order = torch.sort(errors, dim=1, descending=True)
    return (functional.relu(errors) * _lovasz_gradient(labels.gather(1, order))).sum(1).mean()


def bce_dice_lovasz_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Ours: BCE-Dice on the soft target plus half the Lovász hinge on the target > 0.5.

    The hinge is a bound of 1 − IoU of the thresholded mask, which is what the world's metric asks for.
    """
    return bce_dice_loss(logits, target) + LOVASZ_WEIGHT * lovasz_hinge_loss(logits, (target > 0.5).to(target.dtype))


def _lovasz_gradient(labels: Tensor) -> Tensor:
    # Rows are sorted by falling error: the increments of the Jaccard loss as each pixel becomes wrong.
    total = labels.sum(1, keepdim=True)
    intersection = total - labels.cumsum(1)
    union = total + (1.0 - labels).cumsum(1)
    jaccard = 1.0 - intersection / union
    return torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], 1)


LOSSES: dict[str, Loss] = {
    "BCEDiceLoss": bce_dice_loss,
    "LovaszHingeLoss": lovasz_hinge_loss,
    "BCEWithLogitsLoss": bce_with_logits_loss,
    "BCEDiceLovaszLoss": bce_dice_lovasz_loss,
}


def find_loss(name: str) -> Loss:
    """The loss of that name; UsageError lists the known ones."""
    if name not in LOSSES:
        raise UsageError(f"no loss named {name}; choose one of {', '.join(LOSSES)}")
    return LOSSES[name]


def mean_over_heads(loss: Loss, outputs: Tensor | Sequence[Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, logits of the last head) as float32: with deep supervision the mean of the loss over the heads."""
    heads = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    heads = [head.float() for head in heads]
    return torch.stack([loss(head, target) for head in heads]).mean(), heads[-1]
