"""Run a package over a data set and score every case; compare two precisions on the same cases.

One picture's arrays are held at a time (plus what the predictor reads ahead); what stays is a few numbers and
two hashes a case.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.datasets import Case, Dataset
from segship.datasets.dsb2018_splits import some
from segship.errors import DatasetError, UsageError
from segship.inference.images import Image, pixel_sha256
from segship.inference.prediction import Prediction
from segship.inference.predictor import Failure, Predictor
from segship.inference.preprocess import prepare
from segship.manifest import Drop
from segship.metrics import get_scorer
from segship.metrics.bootstrap import paired_bootstrap, worst_case
from segship.metrics.scores import CaseScore

Progress = Callable[[int, int, str], None]
OnCase = Callable[[Case, Prediction, CaseScore], None]


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

    @property
    def value(self) -> float:
        return self.metrics[self.metric]

    def per_case(self, metric: str | None = None) -> dict[str, float]:
        """Case id -> score. UsageError for a metric that is pooled over batches and has no value per case."""
        name = metric or self.metric
        if not all(name in score.values for score in self.scores):
            have = ", ".join(self.scores[0].values) if self.scores else "none"
            raise UsageError(f"metric '{name}' has no value per case; there are: {have}")
        return {score.id: score.values[name] for score in self.scores}


def evaluate_cases(
    predictor: Predictor,
    dataset: Dataset,
    *,
    batch: int = 8,
    calibration: Collection[str] | None = None,
    on_case: OnCase | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict every case and score it with the package's own scorer.

    ``calibration``: hashes of pixels that this variant was calibrated on; None takes them from the package's
    provenance. Raises DatasetError at the first case that is among them, for faulty ground truth, and when no case at
    all could be predicted; an unreadable input is a failure in the result.
    """
    manifest = predictor.package.manifest
    scorer = get_scorer(manifest.metric.scorer)
    if calibration is None:
        calibration = calibration_hashes(predictor.package.provenance(), predictor.precision)
    scores: list[CaseScore] = []
    failures: list[tuple[str, str]] = []
    pixels: dict[str, str] = {}
    start = time.perf_counter()
    predictions = predictor.stream(_sources(dataset.cases), batch=batch, keep_images=True)
    for done, (case, found) in enumerate(zip(dataset.cases, predictions, strict=True)):
        if isinstance(found, Failure):
            failures.append((case.id, str(found)))
        else:
            assert found.image is not None  # keep_images
            pixels[case.id] = pixel_sha256(found.image.pixels)
            if calibration:
                _refuse(case.id, found.image, calibration, predictor)
            score = scorer.score_case(found, case)
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
    )


def drop_against(fp32: Evaluation, variant: Evaluation, metric: str | None = None) -> Drop:
    """What a variant lost against fp32 on the same cases, as the manifest records it. Positive is a loss.

    Raises UsageError when the two did not score the same cases of the same data set.
    """
    name = metric or fp32.metric
    if fp32.dataset_sha256 != variant.dataset_sha256:
        raise UsageError("a drop is between two evaluations of one data set; these two have different content hashes")
    before, after = fp32.per_case(name), variant.per_case(name)
    if list(before) != list(after):
        raise UsageError("a drop needs the same cases on both sides; one of them failed on some, see its failures")
    if any(
        abs(found.metrics[name] - float(np.mean(list(of.values())))) > 1e-9
        for found, of in ((fp32, before), (variant, after))
    ):
        raise UsageError(f"'{name}' is pooled over all cases, so a drop of it has no interval; ask for another metric")
    sign = 1 if fp32.higher_is_better else -1
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


def _refuse(case_id: str, image: Image, calibration: Collection[str], predictor: Predictor) -> None:
    if pixel_sha256(image.pixels) in calibration or pixel_sha256(prepare(image, predictor.manifest).x) in calibration:
        raise DatasetError(_overlap([case_id], predictor.precision))


def _overlap(cases: list[str], precision: str) -> str:
    return (
        f"{some(cases)}: {precision} was calibrated on this very image, so its score would not count; "
        "evaluate on other images (--split, --exclude) or calibrate again without them"
    )


def _sources(cases: Iterable[Case]) -> Iterator[Any]:
    for case in cases:
        yield case.read_image()
