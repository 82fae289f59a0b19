"""From scores on the network's grid to labels on the case's own grid, walking the preprocessing's record backwards.

    labels:         resampled and decided in one go (see `enlarge`), put back into the crop box, axes turned back
    probabilities:  resampled class by class, activated, put back; what was cropped away is background

Scores are (K, z, y, x); labels (z, y, x) uint8 or uint16.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from segship.errors import PackageError
from segship.inference.decode import activate, label_dtype, stacked_labels
from segship.inference.enlarge import argmax_on_grid, each_above, first_maximum, resample_one_by_one
from segship.inference.postprocess import keep_largest
from segship.inference.resample import Rule, resample_wide
from segship.inference.volume_chain import Moved, VolumeFrame
from segship.manifest import Argmax, Decode, KeepLargest, Recipe, Regions, Threshold

_KINDS = {
    "skimage:edge": "spline",
    "torch:trilinear": "torch",
    "torch:trilinear-align-corners": "torch-align-corners",
}


def restore_rule(decode: Decode) -> Rule:
    """How scores are resampled on their way back. PackageError for a method that volumes do not have."""
    if decode.restore_method not in _KINDS:
        raise PackageError(f"restore method '{decode.restore_method}' is for pictures; this package takes volumes")
    return Rule(
        order=decode.restore_order,
        order_z=decode.restore_order_z,
        separate_z=decode.restore_separate_z,
        anisotropy_threshold=decode.anisotropy_threshold,
        kind=_KINDS[decode.restore_method],  # type: ignore[arg-type]
    )


def decide(scores: np.ndarray, frame: VolumeFrame, recipe: Recipe, *, activated: bool = False) -> np.ndarray:
    """Labels (z, y, x) for exclusive classes and regions, (K, z, y, x) bool for independent ones, on the case's grid.

    ``activated`` says that the scores are probabilities already.
    """
    decode = recipe.decode
    decision = decode.decision
    rule = restore_rule(decode)
    half = scores.dtype == np.float16
    scores, moved = _before_resampling(np.asarray(scores, np.float32), frame)
    step = moved[-1] if moved and moved[-1].kind == "resample" else None
    if isinstance(decision, Argmax):
        index = _half_argmax(scores, step, rule) if half and step else _resampled_argmax(scores, step, rule)
        ids = tuple(label.id for label in recipe.labels)
        labels = index if ids == tuple(range(len(ids))) else np.array(ids, label_dtype(ids))[index]
        return _back(labels, moved[:-1] if step else moved, 0)
    if not isinstance(decision, Regions | Threshold):
        raise PackageError(f"decision '{decision.rule}' is for pictures; this package takes volumes")
    if activated or decode.restore_what == "probabilities":
        scores = scores if activated else np.stack([activate(one, decode.activation) for one in scores])
        limit = decision.threshold
    else:
        limit = _logit(decision.threshold)
    shape = step.before if step is not None else scores.shape[1:]
    before, after = (step.after_spacing, step.before_spacing) if step else (frame.spacing, frame.spacing)
    above = each_above(scores, limit, shape, rule, before, after)  # type: ignore[arg-type]
    rest = moved[:-1] if step else moved
    if isinstance(decision, Threshold):
        return np.stack([_back(one, rest, False) for one in above])
    return _back(stacked_labels(above, decision.order, shape), rest, 0)


def _resampled_argmax(scores: np.ndarray, step: Moved | None, rule: Rule) -> np.ndarray:
    # Softmax keeps the order of its inputs, so exclusive classes need no activation to be decided.
    if step is None:
        return argmax_on_grid(scores, scores.shape[1:], rule, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))  # type: ignore[arg-type]
    return argmax_on_grid(scores, step.before, rule, step.after_spacing, step.before_spacing)


def _half_argmax(scores: np.ndarray, step: Moved, rule: Rule) -> np.ndarray:
    """Of scores that were summed in float16: nnU-Net v2 resamples them in float64 and rounds them to float16 again (its
    torch functions excepted), and the first of equal ones wins."""
    way = (step.before, rule, step.after_spacing, step.before_spacing)
    parts: Iterator[np.ndarray] = resample_one_by_one(scores, *way)
    if rule.kind == "spline":
        parts = (resample_wide(one.astype(np.float64), *way) for one in scores)
    if rule.kind == "torch" or step.before == step.after:
        return first_maximum(parts)
    return first_maximum(part.astype(np.float16) for part in parts)


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def probabilities(scores: np.ndarray, frame: VolumeFrame, recipe: Recipe, *, activated: bool = False) -> np.ndarray:
    """(K, z, y, x) float32 on the case's grid. Outside the crop box the background has 1, regions and classes 0."""
    decode = recipe.decode
    rule = restore_rule(decode)
    scores, moved = _before_resampling(np.asarray(scores, np.float32), frame)
    step = moved[-1] if moved and moved[-1].kind == "resample" else None
    early = not activated and decode.restore_what == "probabilities"
    if early:
        scores = activate(scores, decode.activation)
    values = np.empty((len(scores), *(step.before if step else scores.shape[1:])), np.float32)
    if values.shape == scores.shape:
        values[...] = scores
    elif step is not None:
        parts = resample_one_by_one(scores, step.before, rule, step.after_spacing, step.before_spacing)
        for target, part in zip(values, parts, strict=True):
            target[...] = part
    if not activated and not early:
        for z in range(values.shape[1]):  # slice by slice: an activation needs several times what it is given
            values[:, z] = activate(values[:, z], decode.activation)
    rest = moved[:-1] if step else moved
    if not rest:
        return values
    exclusive = isinstance(decode.decision, Argmax)
    out = np.empty((len(values), *frame.shape), np.float32)
    for k, one in enumerate(values):
        out[k] = _back(one, rest, np.float32(1 if exclusive and k == 0 else 0))
    return out


def _before_resampling(scores: np.ndarray, frame: VolumeFrame) -> tuple[np.ndarray, tuple[Moved, ...]]:
    """Cut off what was padded after the last resampling; the moves that are left to undo."""
    moved = frame.moved
    while moved and moved[-1].kind == "pad":
        step = moved[-1]
        box = tuple(slice(a, a + n) for a, n in zip(step.start, step.before, strict=True))
        scores = scores[(slice(None), *box)]
        moved = moved[:-1]
    return np.ascontiguousarray(scores), moved


def _back(array: np.ndarray, moved: tuple[Moved, ...], fill: float | bool | np.float32) -> np.ndarray:
    """Undo crops, pads and transposes; what was cropped away gets ``fill``."""
    for step in reversed(moved):
        if step.kind == "transpose":
            array = array.transpose(np.argsort(step.axes))
        elif step.kind == "crop" and step.before != step.after:
            whole = np.full(step.before, fill, array.dtype)
            whole[tuple(slice(a, a + n) for a, n in zip(step.start, step.after, strict=True))] = array
            array = whole
        elif step.kind == "pad":
            array = array[tuple(slice(a, a + n) for a, n in zip(step.start, step.before, strict=True))]
        elif step.kind == "resample":
            raise PackageError("the package resamples twice; labels can be put back over one resampling only")
    return np.ascontiguousarray(array)


def clean(labels: np.ndarray, frame: VolumeFrame, recipe: Recipe) -> np.ndarray:
    """The manifest's component rules, sizes in cubic millimetres of the case's own spacing."""
    voxel = float(np.prod(frame.spacing))
    for rule in recipe.postprocess:
        if not isinstance(rule, KeepLargest):
            raise PackageError(f"postprocessing rule '{rule.rule}' is for pictures; this package takes volumes")
        labels = keep_largest(labels, rule, voxel)
    return labels
