"""nnU-Net's numbers: Dice, IoU and voxel counts of every label or region, as nnunetv2 computes and stores them.

Counts are taken on the voxels whose reference is not the ignore label. Dice and IoU of a label that is in neither
reference nor prediction are NaN, and means leave NaN out. Source: MIC-DKFZ/nnUNet:
nnunetv2/evaluation/evaluate_predictions.py. Accuracy, precision and recall follow v1 (see nnunet_v1).

A case's Dice is the mean over the labels (background apart) that have one. Over cases there are two means, equal
where every label is in every case: ``Dice`` averages the cases, ``foreground_mean`` first averages each label over the
cases and then the labels, as upstream does; upstream's is NaN as soon as one label is in no case at all, and
``foreground_mean_present`` leaves such labels out.

Arrays are whole numbers, (z, y, x), reference and prediction of one shape.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.datasets import Case
from segship.errors import DatasetError
from segship.inference.volume_prediction import VolumePrediction
from segship.manifest import Recipe, Regions, Threshold
from segship.metrics import nnunet_v1
from segship.metrics.confusion import Counts, Key, confusion
from segship.metrics.nnunet_v1 import NAN, nanmean
from segship.metrics.scores import CaseScore
from segship.metrics.surfaces import surface_scores

DEFAULT = "Dice"
FORMATS = ("v1", "v2")
TABLE = ("Accuracy", "Dice", "Precision", "Recall")
"""what the table precision × batch of a report shows"""
PUBLISHED = {
    "of": "Task02_Heart, nnU-Net v1, 2d, fold 0",
    "source": "Cambricon/magicmind_cloud: buildin/cv/segmentation/nnUNet_pytorch",
    "remark": "scored on the 20 volumes of imagesTr, which the fold was partly trained on, so not how good it is on new ones",
    "rows": (
        ("fp32", (0.9998284953, 0.9795684235, 0.9866175534, 0.9732093584)),
        ("fp16", (0.9998284876, 0.9795677021, 0.9866147442, 0.9732108592)),
        ("int8, fp16 mixed", (0.9997113756, 0.9654162004, 0.9591708264, 0.9723522342)),
    ),
}
"""another port's published numbers, in the order of ``TABLE``; a report shows them beside its own"""
METRICS = {
    "Dice": "2·TP / (2·TP + FP + FN), mean over labels but background, then over cases; NaN where nothing is",
    "IoU": "TP / (TP + FP + FN), the same means",
    "Accuracy": "(TP + TN) / all voxels, mean over labels but background, then over cases",
    "Precision": "TP / (TP + FP), the same means; NaN where nothing was predicted",
    "Recall": "TP / (TP + FN), the same means; NaN where nothing is",
    "NSD": "surface Dice: share of both surfaces within the tolerance of the other, mean over labels, then cases",
    "HD95": "95 % Hausdorff distance in mm: the larger of both directions, mean over labels, then cases",
    "foreground_mean": "nnunetv2's foreground_mean Dice: each label over cases, then over labels",
    "foreground_mean_present": "the same without labels that are in no case",
}
UNDEFINED = {"Dice": 1.0, "IoU": 1.0}
"""what a missing number counts as when a variant is compared with fp32 and only one of them has none: an empty answer
to an empty reference is right"""
V2_NAMES = ("Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref")


def v2_values(found: Counts) -> dict[str, float]:
    """The eight numbers of a label: counts stay whole."""
    either = found.tp + found.fp + found.fn
    return {
        "Dice": 2 * found.tp / (either + found.tp) if either else NAN,
        "FN": found.fn,
        "FP": found.fp,
        "IoU": found.tp / either if either else NAN,
        "TN": found.tn,
        "TP": found.tp,
        "n_pred": found.predicted,
        "n_ref": found.reference,
    }


def score_arrays(
    case_id: str,
    reference: NDArray[np.generic],
    predicted: NDArray[np.generic],
    keys: Mapping[Key, str],
    ignore: int | None = None,
) -> CaseScore:
    """All numbers of one case. ``keys``: label or region -> its name. DatasetError where the shapes differ."""
    if reference.shape != predicted.shape:
        raise DatasetError(
            f"case {case_id}: the prediction has {shape_text(predicted.shape)} voxels and the reference "
            f"{shape_text(reference.shape)}; they are not of one image, or one of them was resampled"
        )
    table = confusion(reference, predicted)
    return score_counts(case_id, {key: table.counts(key, ignore) for key in keys}, keys)


def score_counts(case_id: str, found: Mapping[Key, Counts], keys: Mapping[Key, str]) -> CaseScore:
    """The numbers that counts allow."""
    foreground = {key: counts for key, counts in found.items() if key not in (0, (0,))}
    v2 = {key: v2_values(counts) for key, counts in foreground.items()}
    v1 = {key: nnunet_v1.values(counts) for key, counts in foreground.items()}
    values = {name: nanmean([of[name] for of in v2.values()]) for name in ("Dice", "IoU")}
    values |= {name: nanmean([of[name] for of in v1.values()]) for name in ("Accuracy", "Precision", "Recall")}
    if len(foreground) > 1:
        values |= {f"Dice {keys[key]}": of["Dice"] for key, of in v2.items()}
    counts = {f"{key}/{name}": n for key, of in found.items() for name, n in of.as_dict().items()}
    return CaseScore(id=case_id, values=values, counts={name: float(n) for name, n in counts.items()})


def with_surfaces(
    score: CaseScore,
    masks: Mapping[Key, tuple[NDArray[np.bool_], NDArray[np.bool_]]],
    keys: Mapping[Key, str],
    spacing: Sequence[float],
    tolerance_mm: float,
    used: NDArray[np.bool_] | None = None,
) -> CaseScore:
    """The same with surface Dice and HD95; ``masks``: label or region -> (reference, prediction), looked at where
    ``used``."""
    if used is not None:
        masks = {key: (reference & used, predicted & used) for key, (reference, predicted) in masks.items()}
    found = {key: surface_scores(*masks[key], spacing, tolerance_mm) for key in masks if key not in (0, (0,))}
    values = {name: nanmean([of[name] for of in found.values()]) for name in ("NSD", "HD95")}
    if len(found) > 1:
        values |= {f"{name} {keys[key]}": of[name] for key, of in found.items() for name in ("NSD", "HD95")}
    return replace(score, values=score.values | values)


def score_case(prediction: VolumePrediction, case: Case, *, surface_mm: float | None = None) -> CaseScore:
    """Score one prediction against the case's labels, both as the package's reader turns them.

    ``surface_mm`` adds surface Dice at that tolerance, and HD95.
    """
    recipe = prediction.recipe
    reorient = recipe.input.kind == "volume" and recipe.input.reader.endswith("-reorient")
    truth = case.read_labels(reorient=reorient).labels
    keys, ignore = keys_of(recipe), ignore_of(recipe)
    if isinstance(recipe.decode.decision, Threshold):  # independent classes may overlap
        found = dict(zip(keys, prediction.masks, strict=True))
        shape = prediction.masks.shape[1:]
    else:
        found = {key: mask_of(prediction.labels, key) for key in keys} if surface_mm is not None else {}
        shape = prediction.labels.shape
    if shape != truth.shape or not isinstance(recipe.decode.decision, Threshold):
        score = score_arrays(case.id, truth, prediction.labels, keys, ignore)
    else:
        counts = {
            key: confusion(_with_ignored(truth, key, ignore), mask.astype(np.uint8)).counts(1, 2)
            for key, mask in found.items()
        }
        score = score_counts(case.id, counts, keys)
    if surface_mm is None:
        return score
    used = None if ignore is None else truth != ignore
    masks = {key: (mask_of(truth, key), mask) for key, mask in found.items()}
    return with_surfaces(score, masks, keys, prediction.spacing, surface_mm, used)


def _with_ignored(truth: NDArray[np.generic], key: Key, ignore: int | None) -> NDArray[np.uint8]:
    """1 where the label or region is, 2 where nothing is said."""
    wanted = mask_of(truth, key).astype(np.uint8)
    if ignore is not None:
        wanted[truth == ignore] = 2
    return wanted


def mask_of(labels: NDArray[np.generic], key: Key) -> NDArray[np.bool_]:
    """Where a label or region is."""
    return np.asarray(labels == key) if isinstance(key, int) else np.isin(labels, list(key))


def keys_of(recipe: Recipe) -> dict[Key, str]:
    """The labels or regions of a package with their names, background left out."""
    regions = isinstance(recipe.decode.decision, Regions)
    return {
        (tuple(label.ids) if regions and len(label.ids) > 1 else label.ids[0] if label.ids else label.id): label.name
        for label in recipe.labels
        if label.id != 0
    }


def ignore_of(recipe: Recipe) -> int | None:
    found = recipe.metric.options.get("ignore")
    return None if found is None else int(found)


# ---------------------------------------------------------------------------------------------- all cases


def summarise(scores: Sequence[CaseScore]) -> dict[str, float]:
    """The numbers over all cases in METRICS' order, then each label's Dice. NaN where no case has one."""
    if not scores:
        return {}
    names = list(scores[0].values)
    found = {name: nanmean([score.values[name] for score in scores]) for name in names}
    labels = [key for key in counts_of(scores[0]) if key not in ("0", "(0,)")]
    dice = [nanmean([v2_values(counts_of(score)[key])["Dice"] for score in scores]) for key in labels]
    found["foreground_mean"] = _plain_mean(dice)
    found["foreground_mean_present"] = nanmean(dice)
    order = {name: place for place, name in enumerate(METRICS)}
    return {name: found[name] for name in sorted(found, key=lambda name: order.get(name, len(order)))}


def counts_of(score: CaseScore) -> dict[str, Counts]:
    """Label or region, as the files name it -> its counts."""
    found: dict[str, dict[str, float]] = {}
    for name, value in score.counts.items():
        key, field = name.rsplit("/", 1)
        found.setdefault(key, {})[field] = value
    return {key: Counts.from_dict(values) for key, values in found.items()}


def notes(scores: Sequence[CaseScore]) -> tuple[str, ...]:
    """What a reader of the means has to know."""
    empty = [score.id for score in scores if score.values.get("Dice") != score.values.get("Dice")]
    if not empty:
        return ()
    return (
        f"{len(empty)} of {len(scores)} cases have no Dice, as no label is in reference or prediction "
        f"(first: {empty[0]}): means leave them out",
    )


def explain(name: str) -> str:
    """What a number is, in one line; "" for a name that is not known."""
    if name in METRICS:
        return METRICS[name]
    metric, _, label = name.partition(" ")
    return f"{metric} of {label} alone, mean over cases" if label and metric in METRICS else ""


def table(values: Mapping[str, float], names: Iterable[str] | None = None) -> str:
    """Lines ``name  value  what it is`` for the terminal."""
    chosen = list(values if names is None else names)
    width = max((len(name) for name in chosen), default=0)
    return "\n".join(f"{name:<{width}}  {values[name]:7.4f}  {explain(name)}".rstrip() for name in chosen)


# ------------------------------------------------------------------------------------------- summary.json


def summary_v2(cases: Sequence[Mapping[str, Counts]], files: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The content of nnunetv2's summary.json, and ``foreground_mean_present`` beside it.

    ``cases``: label or region -> counts of each case; ``files``: (prediction, reference) of each.
    """
    rows = [{key: v2_values(counts) for key, counts in found.items()} for found in cases]
    labels = list(rows[0]) if rows else []
    means = {key: {name: nanmean([row[key][name] for row in rows]) for name in V2_NAMES} for key in labels}
    foreground = [means[key] for key in labels if key != "0"]
    return {
        "foreground_mean": {name: _plain_mean([of[name] for of in foreground]) for name in V2_NAMES},
        "foreground_mean_present": {name: nanmean([of[name] for of in foreground]) for name in V2_NAMES},
        "mean": means,
        "metric_per_case": [
            {"metrics": row, "prediction_file": predicted, "reference_file": reference}
            for row, (predicted, reference) in zip(rows, files, strict=True)
        ],
    }


def summary_file(
    scores: Sequence[CaseScore], files: Sequence[tuple[str, str]], version: str = "v2", task: str = ""
) -> bytes:
    """``summary.json`` of these cases as nnU-Net v1 or v2 writes it."""
    cases = [counts_of(score) for score in scores]
    content = summary_v2(cases, files) if version == "v2" else nnunet_v1.summary(cases, files, task=task)
    return nnunet_v1.dump(content)


def shape_text(shape: Sequence[int]) -> str:
    return "×".join(str(side) for side in shape)


def _plain_mean(found: Sequence[float]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(np.mean(found)) if found else NAN
