"""IoU and Dice of independent binary classes, as UNet++ on DSB2018 is scored.

Every number is ``(|o ∧ t| + 1e-5) / (|o ∨ t| + 1e-5)`` or its Dice cousin; what differs is which pixels are
pooled and where the threshold lies, and that moves the value by several points. So a number never stands
without its metric's name. Source of the formulas: 4uiiurz1/pytorch-nested-unet: metrics.py (``iou_score``,
``dice_coef``), the compatibility poolings: its train.py/val.py, its older test.py, and
Ascend/ModelZoo-PyTorch: …/Nested_UNet/nested_unet_postprocess.py.

Arrays: logits (K, h, w) float32 on the network's grid; targets (K, h, w) uint8 0..255, soft at borders, a pixel
belongs to a class where the value is at least 128; masks (K, H, W) bool on the input's grid. The K classes of
an image are always pooled together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from segship.datasets import Case
from segship.errors import DatasetError
from segship.inference.prediction import Prediction
from segship.metrics.scores import CaseScore

Bool = NDArray[np.bool_]
Float = NDArray[np.float32]
Bytes = NDArray[np.uint8]

SMOOTH = 1e-5
BATCH = 16
"""upstream's batch size, which ``iou-batch16`` and ``soft-dice`` pool over"""

DEFAULT = "iou"
METRICS = {
    "iou": "IoU per image at network size, probability > 0.5, then the mean over images",
    "iou-batch16": "IoU over each batch of 16 in order, mean weighted by batch size (upstream train.py and val.py)",
    "iou-logit-half": "IoU per image with logit > 0.5, i.e. probability > 0.62 (the Ascend port's postprocess)",
    "iou-8bit": "IoU per image with the probability truncated to 8 bits first (upstream's older test.py)",
    "soft-dice": "Dice of probabilities and soft masks over each batch of 16, mean weighted by batch size",
    "iou-full": "IoU per image on the input's own grid against the mask as stored, then the mean over images",
    "dice": "Dice per image at network size, probability > 0.5, then the mean over images",
}


def iou(prediction: Bool, target: Bool) -> float:
    """Intersection over union of two boolean arrays of one shape; 1.0 when both are empty."""
    return _ratio(np.count_nonzero(prediction & target), np.count_nonzero(prediction | target))


def dice(prediction: Bool, target: Bool) -> float:
    """2·|o ∧ t| / (|o| + |t|) of two boolean arrays of one shape; 1.0 when both are empty."""
    total = np.count_nonzero(prediction) + np.count_nonzero(target)
    return _ratio(2 * np.count_nonzero(prediction & target), total)


def soft_dice(probabilities: Float, target: Float) -> float:
    """(2·Σ p·t + 1e-5) / (Σp + Σt + 1e-5) over all elements; target 0..1, may be soft."""
    p, t = probabilities.astype(np.float64), target.astype(np.float64)
    return _ratio(2 * float((p * t).sum()), float(p.sum() + t.sum()))


def score_arrays(
    case_id: str, logits: Float, target: Bytes, masks: Bool | None = None, target_full: Bool | None = None
) -> CaseScore:
    """All per-case metrics of one image. ``iou-full`` needs masks and target_full (K, H, W) too."""
    _check_shapes(case_id, "network grid", logits.shape, target.shape)
    probabilities = np.asarray(expit(logits.astype(np.float32)), np.float32)
    wanted = target >= 128
    predicted = probabilities > 0.5
    soft = target.astype(np.float64) / 255
    values = {
        "iou": iou(predicted, wanted),
        "dice": dice(predicted, wanted),
        "iou-logit-half": iou(logits > 0.5, wanted),
        "iou-8bit": iou((probabilities * 255).astype(np.uint8) >= 128, wanted),
        "soft-dice": soft_dice(probabilities, soft.astype(np.float32)),
    }
    if masks is not None and target_full is not None:
        _check_shapes(case_id, "input grid", masks.shape, target_full.shape)
        values["iou-full"] = iou(masks, target_full)
    counts = {
        "intersection": float(np.count_nonzero(predicted & wanted)),
        "union": float(np.count_nonzero(predicted | wanted)),
        "soft_intersection": float((probabilities.astype(np.float64) * soft).sum()),
        "soft_total": float(probabilities.sum(dtype=np.float64) + soft.sum()),
    }
    if len(logits) > 1:
        values |= {f"iou-class{k}": iou(predicted[k], wanted[k]) for k in range(len(logits))}
    return CaseScore(id=case_id, values=values, counts=counts)


def score_masks(case_id: str, predicted: Bool, target: Bytes | Bool, suffix: str = "") -> CaseScore:
    """Only what binary masks allow: ``iou`` and ``dice`` (with ``suffix`` appended), and ``iou-batch16``'s counts."""
    wanted: Bool = target.astype(bool) if target.dtype == np.bool_ else target >= 128
    _check_shapes(case_id, "mask", predicted.shape, wanted.shape)
    values = {f"iou{suffix}": iou(predicted, wanted), f"dice{suffix}": dice(predicted, wanted)}
    if suffix:
        return CaseScore(id=case_id, values=values)
    counts = {
        "intersection": float(np.count_nonzero(predicted & wanted)),
        "union": float(np.count_nonzero(predicted | wanted)),
    }
    return CaseScore(id=case_id, values=values, counts=counts)


def score_case(prediction: Prediction, case: Case) -> CaseScore:
    """Score one prediction: its logits on the network's grid, its masks on the grid that it is on (the input's)."""
    logits = prediction.logits
    height, width = logits.shape[1:]
    return score_arrays(case.id, logits, case.target_network(height, width), prediction.masks, case.target())


def summarise(scores: Sequence[CaseScore], batch: int = BATCH) -> dict[str, float]:
    """The numbers over all cases, in METRICS' order. The batch-pooled ones depend on the order of ``scores``."""
    if not scores:
        return {}
    names = [name for name in scores[0].values if all(name in score.values for score in scores)]
    summary = {name: float(np.mean([score.values[name] for score in scores])) for name in names}
    if all("union" in score.counts for score in scores):
        summary["iou-batch16"] = pooled(scores, batch, "intersection", "union")
    if all("soft_total" in score.counts for score in scores):
        summary["soft-dice"] = pooled(scores, batch, "soft_intersection", "soft_total", factor=2)
    order = {name: place for place, name in enumerate(METRICS)}
    return {name: summary[name] for name in sorted(summary, key=lambda name: (order.get(name, len(order)), name))}


def pooled(scores: Sequence[CaseScore], batch: int, above: str, below: str, factor: float = 1) -> float:
    """Sum ``above`` and ``below`` over each batch, divide, and average over batches weighted by their size."""
    total = 0.0
    for start in range(0, len(scores), batch):
        part = scores[start : start + batch]
        top = sum(score.counts[above] for score in part)
        total += len(part) * _ratio(factor * top, sum(score.counts[below] for score in part))
    return total / len(scores)


def table(values: dict[str, float], names: Iterable[str] | None = None) -> str:
    """Lines ``name  value  what it is`` for the terminal."""
    chosen = list(values if names is None else names)
    width = max((len(name) for name in chosen), default=0)
    lines = [f"{name:<{width}}  {values[name]:.4f}  {explain(name)}".rstrip() for name in chosen]
    return "\n".join(lines)


def explain(name: str) -> str:
    """What a number is, in one line; "" for a name that is not known."""
    if name in METRICS:
        return METRICS[name]
    if name.startswith("iou-class"):
        return f"iou of class {name.removeprefix('iou-class')} alone"
    return "Dice per image on the input's own grid, then the mean over images" if name == "dice-full" else ""


def _ratio(above: float | np.integer[Any], below: float | np.integer[Any]) -> float:
    return (float(above) + SMOOTH) / (float(below) + SMOOTH)


def _check_shapes(case_id: str, where: str, predicted: tuple[int, ...], target: tuple[int, ...]) -> None:
    if predicted != target:
        raise DatasetError(
            f"case {case_id}: the prediction is {_shape(predicted)} and the ground truth {_shape(target)} ({where}); "
            "check the number of classes and that both belong to the same image"
        )


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(str(side) for side in shape)
