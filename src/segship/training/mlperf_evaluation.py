"""Scoring in training: the reference's sliding window over whole cases, shared out over processes, averaged by case.

mlcommons/training: retired_benchmarks/unet3d/pytorch/runtime/inference.py. Every case gets its own row, so the result
does not depend on how many processes shared the work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from segship.errors import DatasetError
from segship.inference.tiling import gaussian, padding, remainder_crop, window_starts
from segship.manifest import Tiling
from segship.metrics.kits19 import dice_scores
from segship.training import distributed
from segship.training.mlperf_data import Case
from segship.training.mlperf_losses import dice_ce_loss
from segship.training.mlperf_recipe import mean_over_shards


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """One case's Dice of kidney (1) and tumour (2), and the loss on its logits."""

    id: str
    l1: float
    l2: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Means over cases, in the reference's names."""

    l1: float
    l2: float
    mean_dice: float
    loss: float
    cases: tuple[CaseRow, ...]

    def metrics(self) -> dict[str, float]:
        """As the reference's checkpoint and logs call them."""
        return {"L1 dice": self.l1, "L2 dice": self.l2, "mean_dice": self.mean_dice, "eval_loss": self.loss}

    def rows(self) -> list[dict[str, object]]:
        return [asdict(row) for row in self.cases]


def sliding_window(network: nn.Module, image: Tensor, tiling: Tiling) -> Tensor:
    """Logits (K, D, H, W) float32 of ``image`` (1, D, H, W), already cropped; windows weighted, summed, padding cut off."""
    widths = padding(image.shape[1:], tiling)
    padded = functional.pad(image, [w for pair in reversed(widths) for w in pair], value=tiling.pad_value)
    scale = tiling.gaussian_sigma_scale or 1.0
    weight = torch.from_numpy(gaussian(tiling.window, scale, True).copy()).to(image.device)
    total: Tensor | None = None
    seen = torch.zeros(padded.shape[1:], device=image.device)
    for start in window_starts(padded.shape[1:], tiling):
        box = tuple(slice(s, s + side) for s, side in zip(start, tiling.window, strict=True))
        logits = network(padded[(slice(None), *box)][None])[0].float()
        if total is None:
            total = torch.zeros((logits.shape[0], *padded.shape[1:]), device=image.device)
        total[(slice(None), *box)] += logits * weight
        seen[box] += weight
    assert total is not None  # there is always a window
    inner = tuple(slice(w[0], w[0] + side) for w, side in zip(widths, image.shape[1:], strict=True))
    return (total / seen)[(slice(None), *inner)]


def score_case(
    network: nn.Module, case: Case, tiling: Tiling, device: torch.device, *, amp: bool, include_background: bool
) -> CaseRow:
    """One case through the sliding window. DatasetError for NaN voxels."""
    image, label = case.arrays()
    kept = remainder_crop(case.shape, tiling)
    x = np.array(image[(slice(None), *kept)], np.float32)
    if not np.isfinite(x).all():
        raise DatasetError(f"{case.image} holds NaN or infinite voxels; prepare the case again from a sound file")
    y = np.array(label[(slice(None), *kept)], np.uint8)
    with torch.inference_mode(), mixed(amp, device):
        logits = sliding_window(network, torch.from_numpy(x).to(device), tiling)[None]
    with torch.inference_mode():
        loss = dice_ce_loss(logits, torch.from_numpy(y)[None].to(device), include_background=include_background)
        won = logits.argmax(1).to(torch.uint8).cpu().numpy()
    l1, l2 = dice_scores(won[0], y[0])
    return CaseRow(id=case.id, l1=l1, l2=l2, loss=float(loss))


def evaluate(
    network: nn.Module,
    cases: Sequence[Case],
    tiling: Tiling,
    device: torch.device,
    *,
    amp: bool = False,
    include_background: bool = False,
    reference_sharding: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Score ``cases``, every process its share; all return the same. Mean over cases, or as the reference's shards give."""
    from tqdm import tqdm

    training = network.training
    network.eval()
    mine = range(distributed.rank(), len(cases), distributed.world())
    found: dict[int, CaseRow] = {}
    for index in tqdm(mine, desc="scoring", leave=False, disable=None if progress else True):
        found[index] = score_case(network, cases[index], tiling, device, amp=amp, include_background=include_background)
    network.train(training)
    rows = distributed.gathered(found)
    world = distributed.world() if reference_sharding else 1
    l1, l2, loss = (
        mean_over_shards([getattr(rows[i], name) for i in range(len(cases))], world) for name in ("l1", "l2", "loss")
    )
    ordered = tuple(rows[i] for i in range(len(cases)))
    return Evaluation(l1=l1, l2=l2, mean_dice=(l1 + l2) / 2, loss=loss, cases=ordered)


def mixed(amp: bool, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Mixed precision of this device: fp16 on CUDA, bf16 on a CPU; nothing without ``amp``."""
    if not amp:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.float16 if device.type == "cuda" else torch.bfloat16)
