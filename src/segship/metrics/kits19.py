"""KiTS19's numbers: Dice of kidney and tumour, as MLPerf Training takes them, and on the patient's grid.

    mlperf-full  the resampled grid that the network works on, nothing left out; classes 1 and 2 alone
    mlperf       the same after MLPerf's cropping of short remainders: what its published numbers are
    kits         the case's own grid; kidney and tumour together, and tumour, as the KiTS19 challenge counts

A class's Dice is (2·Σ t·p + 1e-6) / (Σ t + Σ p + 1e-6): 1 where it is in neither, about 0 where it is in one only.
Cases are averaged plainly, and so are the classes of a case. Sources: mlcommons/training:
retired_benchmarks/unet3d/pytorch/model/losses.py and runtime/inference.py; neheller/kits19: starter_code/evaluation.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from segship.datasets import Case
from segship.errors import DatasetError, UsageError
from segship.inference.enlarge import first_maximum
from segship.inference.tiling import compat_crop, remainder_crop
from segship.inference.volume_labels import labels_on_network_grid
from segship.inference.volume_prediction import VolumePrediction
from segship.metrics.scores import CaseScore

Score = Literal["mlperf-full", "mlperf", "kits"]
SCORES: tuple[Score, ...] = get_args(Score)
DEFAULT = "mean Dice"
SCORE: Score = "mlperf-full"
CROPPED: tuple[Score, ...] = ("mlperf",)
"""scores for which windows are run with MLPerf's crop (``TileOptions.crop_remainder``)"""
SMOOTHING = 1e-6
CLASSES = (1, 2)
KIDNEY_AND_TUMOUR, TUMOUR = "kidney+tumour Dice", "tumour Dice"
METRICS = {
    "mean Dice": "mean of the two below, then over cases",
    "L1 Dice": "Dice of kidney without tumour, mean over cases",
    "L2 Dice": "Dice of tumour, mean over cases",
    KIDNEY_AND_TUMOUR: "Dice of kidney and tumour together, mean over cases",
    TUMOUR: "Dice of tumour, mean over cases",
}
TABLE = ("mean Dice", "L1 Dice", "L2 Dice")
ABOUT: dict[Score, str] = {
    "mlperf-full": "on the network's own grid of resampled voxels, nothing cropped away; kidney and tumour apart",
    "mlperf": "as MLPerf scores: on the network's own grid after its cropping of short remainders; kidney and tumour apart",
    "kits": "on each case's own grid; kidney and tumour together, and tumour, as the KiTS19 challenge counts",
}
REFERENCE = 0.9076
TARGET = 0.908
REMARKS = (
    f"published: mean Dice {REFERENCE:.4f} by score mlperf over KiTS19's 42 evaluation cases (4000 epochs, fp32, on four "
    f"accelerators); MLPerf's target is {TARGET:.3f}. Numbers over other cases or by another score do not compare",
)


def dice(both: float, predicted: float, wanted: float) -> float:
    """Of counted voxels."""
    return (2 * both + SMOOTHING) / (predicted + wanted + SMOOTHING)


def dice_scores(
    labels: NDArray[np.integer], target: NDArray[np.integer], classes: Sequence[int] = CLASSES
) -> tuple[float, ...]:
    """Each class's Dice of two label arrays of one shape. DatasetError where the shapes differ."""
    if labels.shape != target.shape:
        raise DatasetError(f"the prediction has the shape {labels.shape} and the labels {target.shape}")
    return tuple(_dice_of(labels == one, target == one) for one in classes)


def kits_scores(labels: NDArray[np.integer], target: NDArray[np.integer]) -> tuple[float, float]:
    """(kidney and tumour together, tumour) of two label arrays of one shape."""
    if labels.shape != target.shape:
        raise DatasetError(f"the prediction has the shape {labels.shape} and the labels {target.shape}")
    return _dice_of(labels > 0, target > 0), _dice_of(labels > 1, target > 1)


def _dice_of(found: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> float:
    return dice(*(float(np.count_nonzero(mask)) for mask in (found & wanted, found, wanted)))


def score_case(prediction: VolumePrediction, case: Case, *, score: str | None = None) -> CaseScore:
    """One case by ``score`` (one of SCORES; None: what the package says, else mlperf-full).

    For ``mlperf`` the windows must have been run with that crop (``TileOptions.crop_remainder``): what it leaves out is
    left out here. Raises DatasetError for labels of another shape, UsageError for a score that there is not.
    """
    chosen = check_score(score or str(prediction.recipe.metric.options.get("score", SCORE)))
    assert prediction.recipe.input.kind == "volume"
    truth = case.labels_for(prediction.recipe.input)
    if truth.shape != prediction.frame.shape:
        raise DatasetError(
            f"case {case.id}: the labels have {_text(truth.shape)} voxels and the image {_text(prediction.frame.shape)}; "
            "they are not of one case"
        )
    if chosen == "kits":
        if prediction.volume.prepared:
            raise UsageError(f"case {case.id} was prepared and has no grid of its own; give raw cases to score 'kits'")
        return kits_case(case.id, prediction.labels, truth)
    wanted = labels_on_network_grid(truth, prediction.frame)
    kept: tuple[slice, ...] = (slice(None),) * 3
    if chosen == "mlperf":
        assert prediction.recipe.tiling is not None
        kept = remainder_crop(wanted.shape, compat_crop(prediction.recipe.tiling))
    found = first_maximum(iter(prediction.scores[(slice(None), *kept)]))
    ids = np.array([label.id for label in prediction.recipe.labels])
    if not np.array_equal(ids, np.arange(len(ids))):
        found = ids[found]
    return mlperf_case(case.id, found, wanted[kept], wanted.size if chosen == "mlperf" else None)


def mlperf_case(
    case_id: str, labels: NDArray[np.integer], target: NDArray[np.integer], cropped_from: int | None = None
) -> CaseScore:
    """L1, L2 and their mean; ``cropped_from``: voxels of the whole grid, where MLPerf's crop took a part of it."""
    first, second = dice_scores(labels, target)
    counts = {} if cropped_from is None else {"scored voxels": float(target.size), "voxels": float(cropped_from)}
    values = {"mean Dice": (first + second) / 2, "L1 Dice": first, "L2 Dice": second}
    return CaseScore(id=case_id, values=values, counts=counts)


def kits_case(case_id: str, labels: NDArray[np.integer], target: NDArray[np.integer]) -> CaseScore:
    """The challenge's two numbers and their mean."""
    first, second = kits_scores(labels, target)
    return CaseScore(id=case_id, values={"mean Dice": (first + second) / 2, KIDNEY_AND_TUMOUR: first, TUMOUR: second})


def check_score(name: str) -> Score:
    """``name`` as one of SCORES. UsageError for another."""
    for known in SCORES:
        if name == known:
            return known
    raise UsageError(f"no score is called '{name}'; there are: {', '.join(SCORES)}")


def _text(shape: Sequence[int]) -> str:
    return "×".join(str(side) for side in shape)


# ---------------------------------------------------------------------------------------------- all cases


def summarise(scores: Sequence[CaseScore]) -> dict[str, float]:
    """Plain means over cases, whoever scored them."""
    if not scores:
        return {}
    return {name: math.fsum(s.values[name] for s in scores) / len(scores) for name in scores[0].values}


def notes(scores: Sequence[CaseScore]) -> tuple[str, ...]:
    """Which score the numbers are, and what it left out."""
    if not scores:
        return ()
    if KIDNEY_AND_TUMOUR in scores[0].values:
        return (f"score kits: {ABOUT['kits']}",)
    if not scores[0].counts:
        return (f"score mlperf-full: {ABOUT['mlperf-full']}",)
    lost = [1 - s.counts["scored voxels"] / s.counts["voxels"] for s in scores]
    return (
        f"score mlperf: {ABOUT['mlperf']}",
        f"the crop leaves out {np.mean(lost):.1%} of the voxels on average, {max(lost):.1%} in the worst case: nobody "
        "predicts or scores them",
    )


def explain(name: str) -> str:
    """What a number is, in one line; "" for a name that is not known."""
    return METRICS.get(name, "")


def table(values: Mapping[str, float], names: Iterable[str] | None = None) -> str:
    """Lines ``name  value  what it is`` for the terminal."""
    chosen = list(values if names is None else names)
    width = max((len(name) for name in chosen), default=0)
    return "\n".join(f"{name:<{width}}  {values[name]:7.4f}  {explain(name)}".rstrip() for name in chosen)
