"""Run a package over a data set and score every case; compare two precisions on the same cases.

One picture's arrays are held at a time (plus what the predictor reads ahead); what stays is a few numbers and
two hashes a case.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.datasets import Case, Dataset
from segship.datasets.dsb2018_splits import some
from segship.errors import DatasetError, UsageError
from segship.inference.images import pixel_sha256
from segship.inference.prediction import Prediction
from segship.inference.predictor import Failure, Predictor
from segship.inference.preprocess import prepare
from segship.inference.volume_prediction import VolumePrediction
from segship.manifest import Drop
from segship.metrics import get_scorer
from segship.metrics.bootstrap import Interval, paired_bootstrap, pooled_bootstrap, worst_case
from segship.metrics.scores import CaseScore, Pooled

Progress = Callable[[int, int, str], None]
BATCH = 8
"""pictures in one call of the engine, unless the caller says otherwise; a scorer of large pictures has its own"""
AnyPrediction = Prediction | VolumePrediction
OnCase = Callable[[Case, Any, CaseScore], None]
"""(case, its Prediction or VolumePrediction, score)"""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one precision scored on one data set."""

    metric: str
    """the package's own metric; the number that stands for all"""
    higher_is_better: bool
    metrics: dict[str, float]
    scores: tuple[CaseScore, ...]
    failures: tuple[tuple[str, str], ...]
    """(case id, message) of inputs that could not be predicted; they are in no number"""
    dataset_sha256: str
    pixel_sha256: dict[str, str]
    """case id -> hash of the decoded pixels, as the package's reader gives them"""
    precision: str
    engine: str
    seconds: float
    curves: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """averaged over cases, by threshold; empty in worlds without curves"""
    notes: tuple[str, ...] = ()
    """what was done to answers before they were scored"""
    undefined: Mapping[str, float] = field(default_factory=dict)
    """what a case's missing (NaN) number counts as in a comparison with one that is there; others are left out"""
    batch: int | None = None
    """pictures, or windows of a volume, in one call of the engine; None: its own choice"""
    pooled: Pooled | None = None
    """numbers made of areas that are summed over cases; None in worlds whose numbers are means of cases"""
    confusion: NDArray[np.int64] | None = None
    """(C, C) pixels by label and prediction over all cases, in worlds of exclusive classes"""

    @property
    def value(self) -> float:
        return self.metrics[self.metric]

    def per_case(self, metric: str | None = None) -> dict[str, float]:
        """Case id -> score, of the cases that have one (no Dice is where nothing is). UsageError for a metric that is
        pooled over batches and has no value per case."""
        name = metric or self.metric
        if not all(name in score.values for score in self.scores):
            have = ", ".join(self.scores[0].values) if self.scores else "none"
            raise UsageError(f"metric '{name}' has no value per case; there are: {have}")
        return {score.id: score.values[name] for score in self.scores if not math.isnan(score.values[name])}


def evaluate_cases(
    predictor: Predictor,
    dataset: Dataset,
    *,
    batch: int | None = None,
    calibration: Collection[str] | None = None,
    on_case: OnCase | None = None,
    surface_mm: float | None = None,
    scoring: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict every case and score it with the package's own scorer.

    ``calibration``: hashes of pixels that this variant was calibrated on; None takes them from the package's
    provenance. ``surface_mm`` asks for surface metrics at that tolerance, where the world has them; ``scoring`` holds
    other options of the scorer's ``score_case`` (`check_scoring`). Raises DatasetError at the first case that was
    calibrated on, for faulty ground truth, and when no case at all could be predicted; an unreadable input is a failure
    in the result.
    """
    manifest = predictor.package.manifest
    scorer = get_scorer(manifest.metric.scorer)
    if calibration is None:
        calibration = calibration_hashes(predictor.package.provenance(), predictor.precision)
    options = dict(scoring or {}) | ({} if surface_mm is None else {"surface_mm": surface_mm})
    check_scoring(manifest.metric.scorer, options)
    scores: list[CaseScore] = []
    failures: list[tuple[str, str]] = []
    pixels: dict[str, str] = {}
    confusion: NDArray[np.int64] | None = None
    start = time.perf_counter()
    predictions = predictor.stream(_sources(dataset.cases), **_streaming(predictor, batch))
    for done, (case, found) in enumerate(zip(dataset.cases, predictions, strict=True)):
        if isinstance(found, Failure):
            failures.append((case.id, str(found)))
        else:
            pixels[case.id] = pixel_sha256(_as_read(found))
            if calibration:
                _refuse(case.id, pixels[case.id], found, calibration, predictor)
            score = scorer.score_case(found, case, **options)
            if score.areas is not None and score.areas.confusion is not None:
                confusion = score.areas.confusion + (0 if confusion is None else confusion)
                score = replace(score, areas=replace(score.areas, confusion=None))
            scores.append(score)
            if on_case is not None:
                on_case(case, found, score)
        if progress is not None:
            progress(done + 1, len(dataset.cases), case.id)
    if not scores:
        reason = f"; the first: {failures[0][0]}: {failures[0][1]}" if failures else ""
        raise DatasetError(f"no case of data set {dataset.name} could be predicted{reason}")
    return Evaluation(
        metric=manifest.metric.name,
        higher_is_better=manifest.metric.higher_is_better,
        metrics=scorer.summarise(scores),
        scores=tuple(scores),
        failures=tuple(failures),
        dataset_sha256=dataset.sha256,
        pixel_sha256=pixels,
        precision=predictor.precision,
        engine=predictor.engine,
        seconds=time.perf_counter() - start,
        curves=scorer.mean_curves(scores) if hasattr(scorer, "mean_curves") else {},
        notes=scorer.notes(scores) if hasattr(scorer, "notes") else (),
        undefined=getattr(scorer, "UNDEFINED", {}),
        batch=batch,
        pooled=scorer.summed(scores) if hasattr(scorer, "summed") else None,
        confusion=confusion,
    )


def default_batch(scorer: str) -> int:
    """Pictures in one call where nobody says how many."""
    return int(getattr(get_scorer(scorer), "BATCH", BATCH))


def check_scoring(scorer: str, options: Collection[str]) -> None:
    """Raise UsageError for an option that this scorer's ``score_case`` does not have."""
    known = inspect.signature(get_scorer(scorer).score_case).parameters
    for name in options:
        if name not in known:
            what = {"surface_mm": "surface metrics", "metrics": "metrics to choose", "unknown": "unknown ids"}
            raise UsageError(f"there are no {what.get(name, f'options {name}')} for packages scored by {scorer}")


def _streaming(predictor: Predictor, batch: int | None) -> dict[str, Any]:
    """How `stream` is called: of volumes, a batch is one of windows."""
    if predictor.manifest.input.kind == "image":
        name = predictor.manifest.metric.scorer
        scores = not getattr(get_scorer(name), "LABELS_ALONE", False)
        return {"batch": batch or default_batch(name), "keep_images": True, "keep_scores": scores}
    tiles: Any = getattr(predictor, "tiles")  # noqa: B009
    return {"tiles": replace(tiles, batch=batch or tiles.batch)}


def _as_read(found: Prediction | VolumePrediction) -> NDArray[np.generic]:
    """The input's values as the package's reader gives them."""
    if isinstance(found, VolumePrediction):
        return found.volume.channels
    assert found.image is not None  # keep_images
    return found.image.pixels


def drop_against(fp32: Evaluation, variant: Evaluation, metric: str | None = None) -> Drop:
    """What a variant lost against fp32 on the same cases, as the manifest records it. Positive is a loss.

    A case that has no number on one side counts as `Evaluation.undefined` says: where fp32 rightly finds nothing and
    the variant something, that is a loss. Raises UsageError when the two did not score the same cases of the same data
    set, and where no case has a number.
    """
    name = metric or fp32.metric
    if fp32.dataset_sha256 != variant.dataset_sha256:
        raise UsageError("a drop is between two evaluations of one data set; these two have different content hashes")
    if [score.id for score in fp32.scores] != [score.id for score in variant.scores]:
        raise UsageError("a drop needs the same cases on both sides; one of them failed on some, see its failures")
    before, after = fp32.per_case(name), variant.per_case(name)
    if not before or not after:
        raise UsageError(f"no case has a {name} on both sides, so there is no drop; evaluate on cases with foreground")
    pooled = fp32.pooled is not None and name in fp32.pooled.names
    if not pooled and any(
        abs(found.metrics[name] - float(np.mean(list(of.values())))) > 1e-9
        for found, of in ((fp32, before), (variant, after))
    ):
        raise UsageError(f"'{name}' is pooled over all cases, so a drop of it has no interval; ask for another metric")
    before, after = _filled(before, after, fp32.undefined.get(name), [score.id for score in fp32.scores])
    if not before:
        raise UsageError(f"no case has a {name} on both sides, so there is no drop; evaluate on cases with foreground")
    sign = 1 if fp32.higher_is_better else -1
    if pooled:
        interval = _pooled_interval(fp32, variant, name, sign)
    else:
        interval = paired_bootstrap([sign * before[i] for i in before], [sign * after[i] for i in before])
    worst = worst_case(before, after, fp32.higher_is_better)
    return Drop(
        metric=name,
        fp32=fp32.metrics[name],
        value=variant.metrics[name],
        drop=interval.mean,
        interval95=interval.bounds,
        worst_case=worst.id,
        worst_drop=worst.drop,
        cases=interval.cases,
        dataset_sha256=fp32.dataset_sha256,
        engine=variant.engine,
    )


def _pooled_interval(fp32: Evaluation, variant: Evaluation, name: str, sign: int) -> Interval:
    """Of a number over summed areas: images are drawn again, their areas summed on both sides."""
    rule = fp32.pooled
    assert rule is not None

    def stacked(found: Evaluation) -> NDArray[np.int64]:
        return np.stack([score.areas.values for score in found.scores if score.areas is not None])

    return pooled_bootstrap(stacked(fp32), stacked(variant), lambda sums: sign * rule.value(name, sums))


def _filled(
    before: Mapping[str, float], after: Mapping[str, float], stand_in: float | None, ids: Iterable[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Both sides' numbers of the same cases: those that both have, and with ``stand_in`` those that one has."""
    if stand_in is None:
        kept = [i for i in ids if i in before and i in after]
        return {i: before[i] for i in kept}, {i: after[i] for i in kept}
    kept = [i for i in ids if i in before or i in after]
    return {i: before.get(i, stand_in) for i in kept}, {i: after.get(i, stand_in) for i in kept}


def calibration_hashes(provenance: Mapping[str, Any], precision: str | None = None) -> frozenset[str]:
    """Hashes of the images that a variant was calibrated on; of all variants without ``precision``.

    They stand under ``calibration`` → precision: ``pixel_sha256`` of decoded pixels, ``input_sha256`` of network
    inputs, by which a copy of an image at the network's size is found too.
    """
    records = provenance.get("calibration") or {}
    chosen = records.values() if precision is None else [records.get(precision) or {}]
    kinds = ("pixel_sha256", "input_sha256")
    return frozenset(value for record in chosen for kind in kinds for value in record.get(kind, ()))


def check_disjoint(provenance: Mapping[str, Any], hashes: Mapping[str, str], precision: str | None = None) -> None:
    """Raise DatasetError when images to evaluate on (id -> pixel hash) were calibrated on."""
    known = calibration_hashes(provenance, precision)
    both = sorted(case for case, value in hashes.items() if value in known)
    if both:
        raise DatasetError(_overlap(both, precision or "a variant"))


def _refuse(
    case_id: str, digest: str, found: AnyPrediction, calibration: Collection[str], predictor: Predictor
) -> None:
    known = digest in calibration
    if not known and isinstance(found, Prediction):
        assert found.image is not None
        known = pixel_sha256(prepare(found.image, predictor.manifest).x) in calibration
    if known:
        raise DatasetError(_overlap([case_id], predictor.precision))


def _overlap(cases: list[str], precision: str) -> str:
    return (
        f"{some(cases)}: {precision} was calibrated on this very image, so its score would not count; "
        "evaluate on other images (--split, --exclude) or calibrate again without them"
    )


def _sources(cases: Iterable[Case]) -> Iterator[Any]:
    for case in cases:
        yield case.read_image()
