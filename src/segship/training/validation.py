"""Validation at network size: per-image confusion sums, and the two IoUs that come out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from segship.training.losses import Loss, mean_over_heads

SMOOTH = 1e-5


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Validation numbers, each the mean over all images."""

    loss: float
    iou: float  # per image, then the mean
    iou_batch16: float  # pooled over each batch in validation order, weighted by its size (upstream's)

    def named(self, metric: str) -> float:
        """The value of ``iou`` or ``iou-batch16``."""
        return self.iou if metric == "iou" else self.iou_batch16


def overlaps(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Per image (N,): pixels in both masks, pixels in either; probability > 0.5 and target > 0.5, all classes."""
    # probability > 0.5 in floating point, as upstream decides it, not logit > 0
    predicted, truth = torch.sigmoid(logits) > 0.5, target > 0.5
    both = (predicted & truth).flatten(1).sum(1)
    either = (predicted | truth).flatten(1).sum(1)
    return both.double(), either.double()


def iou(both: Tensor, either: Tensor) -> Tensor:
    """(both + 1e-5) / (either + 1e-5): 1 where both masks are empty."""
    return (both + SMOOTH) / (either + SMOOTH)


def validation_sums(
    network: Callable[[Tensor], Tensor | list[Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
    device: torch.device,
) -> Tensor:
    """(images, Σ loss, Σ iou, Σ iou-batch16) as float64, so that the parts of several processes can be added."""
    sums = torch.zeros(4, dtype=torch.float64)
    with torch.inference_mode():
        for inputs, target in batches:
            target = target.to(device)
            value, logits = mean_over_heads(loss, network(inputs.to(device)), target)
            both, either = (t.cpu() for t in overlaps(logits, target))
            count = len(target)
            sums += torch.tensor(
                [
                    count,
                    count * float(value),
                    float(iou(both, either).sum()),
                    count * float(iou(both.sum(), either.sum())),
                ],
                dtype=torch.float64,
            )
    return sums


def scores(sums: Tensor) -> Scores:
    """The means of ``validation_sums``."""
    count, loss, per_image, pooled = sums.tolist()
    return Scores(loss=loss / count, iou=per_image / count, iou_batch16=pooled / count)
