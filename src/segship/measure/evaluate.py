"""`segship evaluate`: a package's own metric on a data set, for one precision or several side by side.

What is left in the output folder:

    summary.json                 every number, each with data set, hashes, cases, engine and what executed
    <precision>/cases.csv        one line a case
    <precision>/summary.json     nnU-Net packages: the file that nnU-Net itself would write
    <precision>/curves.csv       precision, recall, F … by threshold, where the world has curves; curves.png shows them
    pictures/*.png               panels of examples, worst cases and worst disagreements
    pictures.json                which panel is what
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segship.datasets import Case, Dataset, FolderOptions, default_split, is_sod, open_dataset
from segship.errors import UsageError
from segship.inference.predictor import Predictor
from segship.inference.volume_network import TileOptions
from segship.inference.volume_predictor import VolumePredictor
from segship.manifest import Drop, Executed, Manifest
from segship.measure import label_maps
from segship.measure.agreement import Kind, Reference, kind_of
from segship.measure.environment import executed_by
from segship.measure.evaluation_files import write_evaluation, write_nnunet_summary
from segship.measure.recording import record_accuracy
from segship.measure.seen import picture_note, training_note
from segship.measure.tables import batch_lines, metric_lines
from segship.measure.volume_pictures import VolumeGallery
from segship.metrics import get_scorer
from segship.metrics.evaluation import Evaluation, check_scoring, default_batch, drop_against, evaluate_cases
from segship.metrics.files import own_numbers
from segship.metrics.scores import CaseScore, without_nan
from segship.package import Package, open_package

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class VariantScore:
    """One precision's result."""

    evaluation: Evaluation
    device: str
    executed: Executed | None
    drop: Drop | None
    """against fp32 of the same call; None for fp32 itself or where it was not evaluated"""
    agreement: dict[str, float] = field(default_factory=dict)
    """case -> likeness to fp32 on the network's grid: share of equal labels, or 1 − mean |difference| of maps"""
    kind: Kind = "labels"
    by_batch: dict[int, dict[str, float]] = field(default_factory=dict)
    """batch -> metrics, where several batches were asked for"""

    @property
    def precision(self) -> str:
        return self.evaluation.precision

    def as_dict(self) -> dict[str, Any]:
        found = self.evaluation
        agreement = float(np.mean(list(self.agreement.values()))) if self.agreement else None
        likeness: dict[str, Any] = {"label_agreement": agreement}
        if self.kind == "maps":
            likeness = {"label_agreement": None, "map_difference": None if agreement is None else 1 - agreement}
        return {
            "precision": found.precision,
            "engine": found.engine,
            "device": self.device,
            "executed": self.executed.model_dump(mode="json") if self.executed else None,
            "value": without_nan(found.metrics)[found.metric],
            "metrics": without_nan(found.metrics),
            "metrics_by_batch": {str(batch): without_nan(values) for batch, values in self.by_batch.items()},
            "drop": self.drop.drop if self.drop else 0.0 if found.precision == "fp32" else None,
            "drop_detail": self.drop.model_dump(mode="json") if self.drop else None,
            **likeness,
            "cases": len(found.scores),
            "failed": [{"case": case, "error": message} for case, message in found.failures],
            "seconds": round(found.seconds, 3),
        }


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    package: Package
    """the package as it is now, with the accuracy recorded where that was asked for"""
    dataset: Dataset
    variants: tuple[VariantScore, ...]
    notes: tuple[str, ...] = ()
    output: Path | None = None
    form: str | None = None
    """of the world's own table, where it has several"""
    score: str | None = None
    """which of the world's ways of counting, where it has several"""

    @property
    def failed(self) -> bool:
        """Some inputs could not be predicted (exit code 1)."""
        return any(variant.evaluation.failures for variant in self.variants)

    def variant(self, precision: str) -> VariantScore | None:
        return next((v for v in self.variants if v.precision == precision), None)

    def as_dict(self) -> dict[str, Any]:
        """As `evaluate --json` prints it; ``metrics`` and ``cases`` are those of the first precision."""
        first = self.variants[0].evaluation
        published = label_maps.reference(self)
        return {
            "metric": {"name": first.metric, "higher_is_better": first.higher_is_better},
            "scorer": self.package.manifest.metric.scorer,
            **({"score": self.score} if self.score else {}),
            "metrics": without_nan(first.metrics),
            "cases": len(first.scores),
            "dataset": self.dataset.name,
            "dataset_sha256": first.dataset_sha256,
            "layout": self.dataset.layout,
            "split": self.dataset.split,
            "split_sha256": self.dataset.split_sha256,
            "variants": [variant.as_dict() for variant in self.variants],
            "notes": list(self.notes),
            **({"reference": published} if published else {}),
            **own_numbers(get_scorer(self.package.manifest.metric.scorer), first.metrics),
        }

    def as_text(self) -> str:
        """The world's own table, then one line a precision when there are several."""
        first = self.variants[0].evaluation
        scorer = get_scorer(self.package.manifest.metric.scorer)
        split = f", split {self.dataset.split} (ids {self.dataset.split_sha256[:12]}…)" if self.dataset.split else ""
        head = f"{self.dataset.name}{split}: {len(first.scores)} cases, content {first.dataset_sha256[:12]}…"
        names = [f"{v.precision} on {v.evaluation.engine}" for v in self.variants]
        lines = [head, "", ", ".join(names)]
        lines += metric_lines(scorer, self.variants, self.form)
        lines += (
            ["", *(_drop_line(v.evaluation, v.drop) for v in self.variants if v.drop)] if len(self.variants) > 1 else []
        )
        lines += batch_lines(self.variants, getattr(scorer, "TABLE", ()))
        lines += ["", published] if (published := label_maps.reference_text(self)) else []
        lines += [f"failed: {case}: {text}" for v in self.variants for case, text in v.evaluation.failures]
        lines += ["", *remarks] if (remarks := getattr(scorer, "REMARKS", ())) else []
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)]).rstrip()


def evaluate(
    package: Package | Path | str,
    dataset: Dataset | Path | str,
    *,
    layout: str | None = None,
    split: str | Path | None = None,
    exclude: Sequence[str] = (),
    precision: str | Sequence[str] = "fp32",
    engine: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    streams: int = 1,
    batch: int | Sequence[int] | None = None,
    cache_dir: Path | str | None = None,
    output: Path | str | None = None,
    record: bool = True,
    tiles: TileOptions | None = None,
    splits: Path | str | None = None,
    format: Literal["v1", "v2", "0.x", "1.x"] | None = None,
    surface_mm: float | None = None,
    score: str | None = None,
    previous_stage: Path | str | None = None,
    metrics: Sequence[str] = (),
    unknown: str | None = None,
    folders: FolderOptions | None = None,
    limit: int | None = None,
    predictions: Path | str | None = None,
    tta: str | None = None,
    tta_ratios: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> EvaluateResult:
    """Score a package on a data set with its own metric.

    ``precision`` may name several variants; where fp32 is among them the others' drop is computed over the same
    cases. ``batch`` may hold several, each scored (pictures a call, of volumes windows a call). ``tiles`` changes how
    windows of volumes are run; ``splits`` is nnU-Net's splits_final file, by which cases that the network was trained on
    are told; ``format`` is whose summary.json is written for nnU-Net packages [the package's own]. ``surface_mm`` adds surface Dice at that
    tolerance and HD95. ``previous_stage`` is a cascade's first package [the one beside it]. ``record`` writes the numbers into the package's provenance.
    Of packages that give one class a pixel: ``metrics`` are mIoU, mDice, mFscore, ``unknown`` is what becomes of label ids
    that are no class, ``folders`` how label maps are found and read, ``predictions`` a folder that gets each case's label
    map, ``tta`` test-time augmentation (``tta_ratios``: its sizes). ``limit`` takes the first cases only. ``score`` chooses among a world's ways of
    counting (kits19: mlperf-full, mlperf, kits). Raises DatasetError for faulty data or images
    that a variant was calibrated on; unreadable inputs are failures in the result, which ``failed`` tells.
    """
    opened = package if isinstance(package, Package) else open_package(package)
    scorer = get_scorer(opened.manifest.metric.scorer)
    scored_by = opened.manifest.metric.scorer
    if format is not None and format not in getattr(scorer, "FORMATS", ()):
        chooses = "nnU-Net's summary.json" if format in ("v1", "v2") else "MMSegmentation's table"
        raise UsageError(f"--format chooses {chooses}; this package is scored by {scored_by}")
    given = (("metrics", metrics), ("unknown", unknown), ("score", score))
    scoring = {name: value for name, value in given if value}
    check_scoring(scored_by, scoring)
    score = score or getattr(scorer, "SCORE", None)
    if score in getattr(scorer, "CROPPED", ()):
        tiles = replace(tiles or TileOptions(), crop_remainder=True)
    data = label_maps.limited(_open_data(dataset, layout, split, exclude, opened.manifest, folders), limit)
    batches = [batch] if isinstance(batch, int) or batch is None else list(batch)
    wanted = [precision] if isinstance(precision, str) else list(precision)
    if not wanted:
        raise UsageError("name at least one precision to evaluate")
    options: dict[str, Any] = {
        "engine": engine,
        "device": device,
        "threads": threads,
        "streams": streams,
        "batch": batches[0] or default_batch(scored_by),
        "cache_dir": cache_dir,
        **({"tta": tta, "tta_ratios": tta_ratios} if tta else {}),
    }
    variants: list[VariantScore] = []
    reference = Reference()
    gallery = VolumeGallery() if output and opened.manifest.input.kind == "volume" else None
    for name in sorted(dict.fromkeys(wanted), key=lambda p: p != "fp32"):  # fp32 first: the others are compared with it
        with Predictor.open(opened, precision=name, **options) as predictor:
            if any(v.precision == predictor.precision for v in variants):
                continue  # `auto` chose one that was named too
            if isinstance(predictor, VolumePredictor):
                predictor.tiles = tiles or predictor.tiles
                predictor.progress = _windows(predictor, data, progress)
                predictor.previous_package = None if previous_stage is None else Path(previous_stage)
            kept = _kept_in(predictions, predictor.precision, len(wanted))
            how = scoring | ({} if surface_mm is None else {"surface_mm": surface_mm})
            variants.append(_score(predictor, data, batches, reference, variants, gallery, how, kept, progress))
    notes = list(dict.fromkeys([*data.notes, *(note for v in variants for note in v.evaluation.notes)]))
    root = None if isinstance(dataset, Dataset) else Path(dataset)
    origin = opened.provenance()
    validated = (origin.get("source") or {}).get("validation")
    seen = training_note(opened.manifest.options, data, root, splits, validated) or picture_note(origin, data, root)
    if seen is not None:
        notes.insert(0, seen)
    if tta is not None:
        notes.append(f"with test-time augmentation {tta}; such numbers are not recorded in the package")
    if record and tta is None:
        opened = record_accuracy(opened, data, variants, notes, score)
    result = EvaluateResult(
        package=opened,
        dataset=data,
        variants=tuple(variants),
        notes=tuple(notes),
        output=Path(output) if output else None,
        form=format,
        score=score,
    )
    if result.output is not None:
        write_evaluation(result, result.output, options, gallery)
        if hasattr(scorer, "summary_file"):
            write_nnunet_summary(result, result.output, format)
    return result


def _windows(predictor: VolumePredictor, data: Dataset, progress: Progress | None) -> Progress | None:
    """Progress window by window: a case of a large volume is minutes."""
    if progress is None:
        return None
    places = {case: f" ({number} of {len(data.ids)})" for number, case in enumerate(data.ids, start=1)}
    return lambda done, total, case: progress(done, total, f"{predictor.precision}: {case}{places.get(case, '')}")


def _open_data(
    dataset: Dataset | Path | str,
    layout: str | None,
    split: str | Path | None,
    exclude: Sequence[str],
    manifest: Manifest,
    folders: FolderOptions | None = None,
) -> Dataset:
    if isinstance(dataset, Dataset):
        return dataset
    if manifest.metric.scorer == "mmseg":
        return label_maps.open_labels(dataset, layout, split, tuple(exclude), folders, manifest)
    if layout is None and manifest.metric.scorer == "sod" and is_sod(Path(dataset)):
        layout = "sod"  # images/ + masks/ is one of its layouts too
    classes = manifest.network.outputs[0].channels
    split = split or default_split(Path(dataset), layout)
    # one class leaves the masks to tell what they are; more are needed to tell label ids from a binary mask
    return open_dataset(dataset, layout, split, exclude, num_classes=classes if classes > 1 else None)


def _score(
    predictor: Predictor,
    data: Dataset,
    batches: Sequence[int | None],
    reference: Reference,
    before: Sequence[VariantScore],
    gallery: VolumeGallery | None,
    scoring: Mapping[str, Any],
    predictions: Path | None,
    progress: Progress | None,
) -> VariantScore:
    agreement: dict[str, float] = {}
    is_reference = predictor.precision == "fp32"

    def on_case(case: Case, prediction: Any, score: CaseScore) -> None:
        if is_reference:
            reference.keep(case.id, prediction)
        elif (share := reference.agreement(case.id, prediction)) is not None:
            agreement[case.id] = share
        if predictions is not None:
            label_maps.write_prediction(predictions, case, prediction)
        if gallery is not None:
            beside = None if is_reference else reference.labels(case.id)
            gallery.add(predictor.precision, case, prediction, beside)

    def tell(done: int, total: int, text: str) -> None:
        if progress is not None and not isinstance(predictor, VolumePredictor):  # volumes tell their windows
            progress(done, total, f"{predictor.precision}: {text}")

    found = evaluate_cases(predictor, data, batch=batches[0], on_case=on_case, scoring=scoring, progress=tell)
    again = {
        b: evaluate_cases(predictor, data, batch=b, scoring=scoring, progress=tell).metrics
        for b in batches[1:]
        if b is not None
    }
    fp32 = next((v.evaluation for v in before if v.precision == "fp32"), None)
    comparable = fp32 is not None and [s.id for s in fp32.scores] == [s.id for s in found.scores]
    return VariantScore(
        evaluation=found,
        device=predictor.sessions[0].device,
        executed=_executed(predictor, data, found),
        drop=drop_against(fp32, found) if fp32 is not None and comparable else None,
        agreement=agreement,
        kind=kind_of(predictor.manifest),
        by_batch={batches[0]: found.metrics, **again} if batches[0] is not None else {},
    )


def _kept_in(predictions: Path | str | None, precision: str, precisions: int) -> Path | None:
    """The folder of one precision's label maps: one below it for each, where there are several."""
    if predictions is None:
        return None
    return Path(predictions) / precision if precisions > 1 else Path(predictions)


def _executed(predictor: Predictor, data: Dataset, found: Evaluation) -> Executed:
    done = {score.id for score in found.scores}
    case = next(case for case in data.cases if case.id in done)
    return executed_by(predictor, case.read_image())


def _drop_line(found: Evaluation, drop: Drop) -> str:
    what, digits = f"{drop.metric} drop against fp32", 4
    if not found.higher_is_better:  # errors are small numbers
        what, digits = f"{drop.metric} worse than fp32 by", 5
    value, low, high, worst = (f"{n:+.{digits}f}" for n in (drop.drop, *drop.interval95, drop.worst_drop))
    return (
        f"{found.precision}: {what} {value} (95 % interval {low} to {high}, paired bootstrap over {drop.cases} cases); "
        f"worst case {drop.worst_case}: {worst}"
    )
