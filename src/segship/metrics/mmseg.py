"""IoU, accuracy, Dice and F-score over summed pixel areas, as MMSegmentation's IoUMetric computes and prints them.

Pixels whose label is the ignore index are left out; of the others each class has an intersection I, a prediction P and
a label L, and the union U = P + L − I. A value outside 0 … C−1 is in no class of its own side, but what stands on the
other side at that pixel still counts there, as upstream has it. Areas are summed over all images, then

    aAcc = ΣI / ΣL   IoU = I/U   Acc = Recall = I/L   Precision = I/P   Dice = 2I/(P+L)   Fscore = (1+β²)·p·r/(β²·p+r)

0/0 is NaN and means leave NaN out, so a mean is over the classes that have the number: a class that is nowhere is in
none, one that is predicted but never there has IoU 0 and no Acc, one that is never hit has no Fscore. ``nan_to_num``
puts a value in the place of NaN first. Source: open-mmlab/mmsegmentation: mmseg/evaluation/metrics/iou_metric.py; areas
are int64 here and float32 there, which differ below 0.01 % above 2²⁴ pixels a class.

All numbers are 0..1; `percent` and the tables give upstream's percent of two decimals. Labels are (H, W) whole numbers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segship.datasets import Case
from segship.datasets.dsb2018_splits import some
from segship.datasets.label_rules import rules_in
from segship.errors import DatasetError, UsageError
from segship.inference.prediction import Prediction
from segship.manifest import Recipe, Threshold
from segship.metrics.confusion import confusion
from segship.metrics.mmseg_tables import class_table, percent, summary_line, summary_table
from segship.metrics.scores import Areas, CaseScore, Pooled, without_nan

IGNORE = 255
DEFAULT = "mIoU"
TABLE = ("aAcc", "mIoU", "mAcc")
FORMATS = ("0.x", "1.x")
BATCH = 1
"""pictures of a street take hundreds of megabytes each inside a network; upstream tests one at a time too"""
LABELS_ALONE = True
"""nothing but the decision is scored"""
METRICS = {
    "aAcc": "share of all scored pixels that are right",
    "mIoU": "intersection / union of each class over the pixels of all images, then the mean over classes",
    "mAcc": "share of each class's pixels that are found, then the mean over classes",
    "mDice": "2·intersection / (predicted + labelled) of each class, then the mean over classes",
    "mFscore": "F of precision and recall of each class, then the mean over classes that are ever hit",
    "mPrecision": "share of what is predicted as a class that is right, then the mean over predicted classes",
    "mRecall": "the same as mAcc",
}
REMARKS = (
    "Areas are summed over all images before they are divided, so mIoU is not the mean of the images' own mIoU; a class "
    "that no image shows is in no mean.",
)
GROUPS: dict[str, tuple[str, ...]] = {
    "mIoU": ("IoU", "Acc"),
    "mDice": ("Dice", "Acc"),
    "mFscore": ("Fscore", "Precision", "Recall"),
}
"""metric that may be asked for -> the class numbers that it brings"""
UnknownIds = Literal["error", "upstream", "ignore"]
UNKNOWN: tuple[UnknownIds, ...] = ("error", "upstream", "ignore")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How areas become numbers. UsageError for a metric that there is not."""

    classes: tuple[str, ...]
    metrics: tuple[str, ...] = ("mIoU",)
    beta: float = 1.0
    nan_to_num: float | None = None
    ignore: int = IGNORE
    unknown: UnknownIds = "error"
    """of labels outside the classes: refuse them, count them as upstream does, or ignore them"""

    def __post_init__(self) -> None:
        foreign = [name for name in self.metrics if name not in GROUPS]
        if foreign or not self.metrics:
            raise UsageError(f"metrics are {', '.join(GROUPS)}, not '{', '.join(foreign)}'")
        if not self.classes:
            raise UsageError("a score needs at least one class")
        if not self.beta > 0:
            raise UsageError(f"beta is above 0, got {self.beta:g}")
        if self.unknown not in UNKNOWN:
            raise UsageError(f"unknown ids are one of {', '.join(UNKNOWN)}, not '{self.unknown}'")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The class numbers, in upstream's order."""
        return tuple(dict.fromkeys(kind for name in self.metrics for kind in GROUPS[name]))

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names, each once."""
        often = {name: self.classes.count(name) for name in self.classes}
        return tuple(name if often[name] == 1 else f"{name} {place}" for place, name in enumerate(self.classes))


# ------------------------------------------------------------------------------------------------- areas


def class_areas(
    predicted: NDArray[np.generic], label: NDArray[np.generic], classes: int, ignore: int = IGNORE
) -> NDArray[np.int64]:
    """(4, classes) int64 of one image: intersection, union, predicted, label. ValueError where the shapes differ."""
    return _counted(predicted, label, classes, ignore).areas


@dataclass(frozen=True, kw_only=True, eq=False)
class _Counted:
    areas: NDArray[np.int64]
    confusion: NDArray[np.int64]
    """(C, C) by label and prediction"""
    unknown: dict[int, int]
    """label value outside the classes -> its pixels"""


def _counted(predicted: NDArray[np.generic], label: NDArray[np.generic], classes: int, ignore: int) -> _Counted:
    found = confusion(label, predicted)
    kept = found.reference != ignore
    rows, table = found.reference[kept], found.table[kept]
    areas = np.zeros((4, classes), np.int64)
    known_rows, known_columns = rows < classes, found.predicted < classes
    areas[3, rows[known_rows]] = table[known_rows].sum(axis=1)
    areas[2, found.predicted[known_columns]] = table[:, known_columns].sum(axis=0)
    square = np.zeros((classes, classes), np.int64)
    square[np.ix_(rows[known_rows], found.predicted[known_columns])] = table[np.ix_(known_rows, known_columns)]
    areas[0] = square.diagonal()
    areas[1] = areas[2] + areas[3] - areas[0]
    unknown = {int(value): int(table[rows == value].sum()) for value in rows[~known_rows]}
    return _Counted(areas=areas, confusion=square, unknown=unknown)


def numbers(
    sums: NDArray[np.generic], kinds: Sequence[str], beta: float = 1.0, nan_to_num: float | None = None
) -> dict[str, NDArray[np.float64]]:
    """``aAcc`` (…) and each class number of ``kinds`` (…, C), 0..1, from areas (…, 4, C)."""
    inter, union, predicted, label = np.moveaxis(np.asarray(sums, np.float64), -2, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall, precision = inter / label, inter / predicted
        made = {
            "IoU": lambda: inter / union,
            "Acc": lambda: recall,
            "Dice": lambda: 2 * inter / (predicted + label),
            "Fscore": lambda: (1 + beta**2) * (precision * recall) / (beta**2 * precision + recall),
            "Precision": lambda: precision,
            "Recall": lambda: recall,
        }
        found = {"aAcc": inter.sum(axis=-1) / label.sum(axis=-1)} | {kind: made[kind]() for kind in kinds}
    if nan_to_num is not None:
        found = {name: np.nan_to_num(value, nan=nan_to_num) for name, value in found.items()}
    return found


def means(found: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """``aAcc`` and ``m<number>``, each (…): the mean over the classes that have the number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no class has it: NaN
        return {
            name if name == "aAcc" else f"m{name}": value if name == "aAcc" else np.nanmean(value, axis=-1)
            for name, value in found.items()
        }


# ------------------------------------------------------------------------------------------------- cases


def score_case(
    prediction: Prediction, case: Case, *, metrics: Sequence[str] | None = None, unknown: UnknownIds | None = None
) -> CaseScore:
    """Score one prediction on the picture's own grid against the case's labels."""
    settings, ids = settings_of(prediction.recipe, metrics, unknown)
    found: NDArray[np.generic] = prediction.on_grid("input").labels
    wanted: NDArray[np.generic] = truth_of(case, prediction.recipe)
    if ids != tuple(range(len(ids))):
        found, wanted = as_places(found, ids, settings.ignore), as_places(wanted, ids, settings.ignore)
    return score_arrays(case.id, found, wanted, settings)


def truth_of(case: Case, recipe: Recipe) -> NDArray[np.unsignedinteger]:
    """(H, W) of a case's label map, its numbers read as the package was trained on them (`rules_in`)."""
    found = case.read_labels().labels
    if found.shape[0] != 1:
        raise DatasetError(f"case {case.id} is a volume of {found.shape[0]} slices; this package is scored on pictures")
    return rules_in(recipe.metric.options).apply(found[0])


def score_arrays(
    case_id: str, predicted: NDArray[np.generic], label: NDArray[np.generic], settings: Settings
) -> CaseScore:
    """One image's own numbers, and its areas. DatasetError where shapes differ and for labels that are no class."""
    if predicted.shape != label.shape:
        raise DatasetError(
            f"case {case_id}: the prediction is {_shape(predicted)} and its label {_shape(label)} pixels; they are not of "
            "one image, or one of them was resized"
        )
    counted = _counted(predicted, label, len(settings.classes), settings.ignore)
    unknown = counted.unknown
    notes: tuple[str, ...] = ()
    if unknown:
        if settings.unknown == "error":
            raise DatasetError(_about_unknown(case_id, unknown, settings))
        if settings.unknown == "ignore":
            void = np.isin(label, list(unknown))
            known = np.where(void, np.uint32(settings.ignore), label)
            counted = _counted(predicted, known, len(settings.classes), settings.ignore)
        notes = (f"{sum(unknown.values())} pixels hold {_listed(unknown)}",)
    found = means(numbers(counted.areas, settings.kinds, settings.beta, settings.nan_to_num))
    return CaseScore(
        id=case_id,
        values={name: float(value) for name, value in found.items()},
        areas=Areas(values=counted.areas, settings=settings, confusion=counted.confusion),
        notes=notes,
    )


def settings_of(
    recipe: Recipe, metrics: Sequence[str] | None = None, unknown: UnknownIds | None = None
) -> tuple[Settings, tuple[int, ...]]:
    """(how a package is scored, the label id of each class) by its manifest. ``metrics`` stand in the place of its own;
    the one number that stands for the package is always among them."""
    options = recipe.metric.options
    named = list(metrics or (name.strip() for name in str(options.get("metrics", DEFAULT)).split(",")))
    if recipe.metric.name in GROUPS and recipe.metric.name not in named:
        named.append(recipe.metric.name)
    nan = options.get("nan_to_num")
    pairs = [(label.id, label.name) for label in recipe.labels]
    if isinstance(recipe.decode.decision, Threshold) and not any(number == 0 for number, _ in pairs):
        pairs.insert(0, (0, "background"))  # what no threshold finds
    settings = Settings(
        classes=tuple(name for _, name in pairs),
        metrics=tuple(dict.fromkeys(named)),
        beta=float(options.get("beta", 1.0)),
        nan_to_num=None if nan is None else float(nan),
        ignore=int(options.get("ignore_index", IGNORE)),
        unknown=unknown or "error",
    )
    return settings, tuple(number for number, _ in pairs)


def as_places(labels: NDArray[np.generic], ids: Sequence[int], ignore: int) -> NDArray[np.generic]:
    """Label ids as places among the classes. The ignored value stays; numbers that are no id come behind the classes."""
    top = max(int(labels.max(initial=0)), *ids, ignore)
    table = np.arange(top + 1, dtype=np.int64) + len(ids) + ignore + 1
    table[ignore] = ignore
    table[list(ids)] = np.arange(len(ids))
    return np.asarray(table[labels.astype(np.int64)])


def _about_unknown(case_id: str, unknown: Mapping[int, int], settings: Settings) -> str:
    top = len(settings.classes) - 1
    hint = ""
    if max(unknown) <= 33 and top == 18:
        hint = "; they look like Cityscapes' label ids: give _labelTrainIds.png or _labelIds.png under their own names"
    return (
        f"case {case_id}: its label map holds {_listed(unknown)}, but classes are 0 to {top} and {settings.ignore} is "
        f"ignored{hint}; map them with --label-map, or say --unknown upstream (count them as MMSegmentation does) or ignore"
    )


def _listed(unknown: Mapping[int, int]) -> str:
    values = [str(value) for value in sorted(unknown)]
    return f"the unknown {'ids' if len(values) > 1 else 'id'} {some(values)}"


def _shape(array: NDArray[np.generic]) -> str:
    return "×".join(str(side) for side in array.shape)


# ---------------------------------------------------------------------------------------------- all cases


def total(scores: Sequence[CaseScore]) -> tuple[NDArray[np.int64], Settings]:
    """The sum of all cases' areas (4, C), and how they were scored."""
    areas = [score.areas for score in scores if score.areas is not None]
    if len(areas) != len(scores) or not areas:
        raise UsageError("these scores hold no areas; score the cases again")
    first = areas[0].settings
    assert isinstance(first, Settings)
    found = np.zeros_like(areas[0].values)
    for one in areas:
        found += one.values
    return found, first


def summarise(scores: Sequence[CaseScore]) -> dict[str, float]:
    """The means, then each class's numbers as ``IoU.road``: 0..1, NaN where there is none."""
    if not scores:
        return {}
    sums, settings = total(scores)
    found = numbers(sums, settings.kinds, settings.beta, settings.nan_to_num)
    summary = {name: float(value) for name, value in means(found).items()}
    for kind in settings.kinds:
        summary |= {f"{kind}.{name}": float(v) for name, v in zip(settings.names, found[kind], strict=True)}
    return summary


def summed(scores: Sequence[CaseScore]) -> Pooled:
    """All the means are made of summed areas."""
    settings = total(scores)[1]

    def value(name: str, sums: NDArray[np.generic]) -> NDArray[np.float64]:
        kinds = () if name == "aAcc" else (name[1:],)
        return means(numbers(sums, kinds, settings.beta, settings.nan_to_num))[name]

    return Pooled(names=frozenset(("aAcc", *(f"m{kind}" for kind in settings.kinds))), value=value)


def notes(scores: Sequence[CaseScore]) -> tuple[str, ...]:
    """What a reader of the numbers has to know: unknown ids that were counted or ignored, nothing scored."""
    if not scores:
        return ()
    found = [score for score in scores if score.notes]
    told: tuple[str, ...] = ()
    if found:
        areas = found[0].areas
        assert areas is not None
        how = "left out" if areas.settings.unknown == "ignore" else "counted as upstream does"
        told = (
            f"label maps with unknown ids, {how}: {len(found)} of {len(scores)} (first {found[0].id}: {found[0].notes[0]})",
        )
    sums, settings = total(scores)
    absent = [name for name, there in zip(settings.names, sums[3] > 0, strict=True) if not there]
    if len(absent) == len(settings.names):
        return (*told, "no pixel has a label that is scored: all numbers but Precision are empty")
    if absent:
        told += (f"{len(absent)} of {len(settings.names)} classes are in no label map ({some(absent)})",)
    return told


# -------------------------------------------------------------------------------------------------- words


def explain(name: str) -> str:
    """What a number is, in one line; "" for a name that is not known."""
    if name in METRICS:
        return METRICS[name]
    kind, _, label = name.partition(".")
    return f"{kind} of {label} over all images" if label and kind in {k for g in GROUPS.values() for k in g} else ""


def by_class(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Number -> class -> value, from what `summarise` gives."""
    found: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        kind, dot, label = name.partition(".")
        if dot:
            found.setdefault(kind, {})[label] = value
    return found


def table(values: Mapping[str, float], names: Iterable[str] | None = None, form: str = "1.x") -> str:
    """Class table and summary as mmseg prints them: '1.x' ends in a line, '0.x' in a second table."""
    wanted = None if names is None else set(names)
    values = {name: value for name, value in values.items() if wanted is None or name in wanted}
    overall = {name: value for name, value in values.items() if "." not in name}
    classes = by_class(values)
    parts = ["per class results:", "", class_table(classes), ""] if classes else []
    if form == "0.x":
        return "\n".join([*parts, "Summary:", "", summary_table(overall)])
    return "\n".join([*parts, summary_line(overall)])


def as_upstream(values: Mapping[str, float]) -> dict[str, dict[str, object]]:
    """What `summarise` gives as IoUMetric has it: ``metrics`` in percent of two decimals, ``per_class`` number -> class ->
    0..1; null where there is no number."""
    overall = {name: percent(value) for name, value in values.items() if "." not in name}
    classes = {kind: without_nan(found) for kind, found in by_class(values).items()}
    return {"metrics": dict(without_nan(overall)), "per_class": dict(classes)}


def compare(named: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of several precisions side by side: each class's IoU (or first number), then the means; percent."""
    first = next(iter(named.values()))
    overall = [name for name in first if "." not in name]
    kind = next((name.partition(".")[0] for name in first if "." in name), None)
    rows = [name for name in first if kind is not None and name.startswith(f"{kind}.")]
    lines = [
        [name.partition(".")[2] or name, *(_cell(values.get(name, math.nan)) for values in named.values())]
        for name in (*rows, *overall)
    ]
    return [f"{kind} of class, %" if kind else "%", *named], lines


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{percent(value):.2f}"
