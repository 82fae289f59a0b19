"""`segship score mmseg GT PRED`: label maps in two folders, scored as MMSegmentation's IoUMetric does.

Ground truth: a Cityscapes tree, a folder (with folders in it) of ``…_gtFine_labelTrainIds.png`` or ``…_labelIds.png``, an
mmseg data set, or any folder of label maps. Predictions: PNG files, grey or with a palette, that hold class numbers
(train ids), the data set's own ids, or the classes' colours; which of them is found out from all files together and
said. Files are paired by their names without what Cityscapes adds to them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segship.datasets import Dataset, FolderOptions
from segship.datasets.cityscapes import (
    LABEL_IDS,
    TRAIN_IDS,
    base_name,
    find_cityscapes,
    open_cityscapes,
    train_ids_of,
)
from segship.datasets.cityscapes_labels import IGNORE, cityscapes_labels
from segship.datasets.dsb2018_splits import some
from segship.datasets.label_cases import Numbers, label_case
from segship.datasets.label_png import LabelPicture, color_table, from_colors, read_label_png, read_numbers
from segship.datasets.label_rules import rules_in
from segship.datasets.mmseg import is_mmseg, open_mmseg
from segship.errors import DatasetError, UsageError
from segship.manifest import Label
from segship.metrics import mmseg
from segship.metrics.files import FileScores, Progress, each, pair
from segship.metrics.mmseg import Settings, UnknownIds
from segship.metrics.scores import CaseScore
from segship.package import open_package

KINDS = ("train-ids", "ids", "color")
MOST_CLASSES = 1000
_CITYSCAPES = re.compile(r"[a-z][a-z-]*_\d{6}_\d{6}")
SAMPLE = 64  # predictions looked at to learn what they hold


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What is scored: names, and where they are known the colours and own ids by which files tell the classes."""

    labels: tuple[Label, ...]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def ids(self) -> tuple[int, ...] | None:
        """The data set's own ids, where they differ from the class numbers."""
        found = tuple(label.id if label.file_value is None else label.file_value for label in self.labels)
        return None if found == tuple(range(len(found))) else found

    def one_more(self) -> Classes:
        """The same with own ids one above the class numbers: of maps whose 0 is ignored. mmseg's ``--out`` writes those."""
        labels = (label.model_copy(update={"file_value": place + 1}) for place, label in enumerate(self.labels))
        return replace(self, labels=tuple(labels))

    @property
    def coloured(self) -> bool:
        return len({label.color for label in self.labels}) > 1


def score_files(
    gt: Path | str,
    pred: Path | str,
    *,
    layout: str | None = None,
    split: str | Path | None = None,
    classes: str | Sequence[str] | None = None,
    ignore: int = IGNORE,
    metrics: Sequence[str] = ("mIoU",),
    beta: float = 1.0,
    nan_to_num: float | None = None,
    unknown: UnknownIds = "error",
    values: str | None = None,
    folders: FolderOptions | None = None,
    form: str | None = None,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> FileScores:
    """Score the label maps under ``pred`` against those of ``gt``.

    ``classes``: 'cityscapes', names, a number of classes, or a package whose classes they are; None recognises
    Cityscapes by its file names and counts the classes of others. ``values`` says what predictions hold (KINDS) instead of finding it out. ``folders``
    reads ground truth otherwise (suffixes, label_map, reduce_zero_label). ``form`` is that of the table, 0.x or 1.x.
    Raises DatasetError naming files that are missing, faulty or of another size, UsageError for options without sense.
    """
    if values is not None and values not in KINDS:
        raise UsageError(f"--values takes one of {', '.join(KINDS)}, not '{values}'")
    if form is not None and form not in mmseg.FORMATS:
        raise UsageError(f"--form takes one of {', '.join(mmseg.FORMATS)}, not '{form}'")
    root = Path(pred)
    folders = _rules_of(classes, folders or FolderOptions())
    truth = _open_truth(Path(gt), layout, split, folders)
    files = _predictions(root)
    truth = pair(truth, files, root, allow_missing)
    scored = _classes(classes, truth) or _counted([files[case.id] for case in truth.cases], truth, ignore)
    if folders.rules.reduce_zero_label and scored.ids is None:
        scored = scored.one_more()
    settings = Settings(
        classes=scored.names, metrics=tuple(metrics), beta=beta, nan_to_num=nan_to_num, ignore=ignore, unknown=unknown
    )
    read, said = _reader([files[case.id] for case in truth.cases], scored, values, ignore)
    scores: list[CaseScore] = []
    for case in each(truth, progress):
        wanted = case.read_labels().labels[0]
        found = read(files[case.id])
        _refuse_foreign(files[case.id], found, settings)
        scores.append(_light(mmseg.score_arrays(case.id, found, wanted, settings)))
    return FileScores(
        scorer="mmseg",
        name=root.resolve().name,
        metrics=mmseg.summarise(scores),
        scores=tuple(scores),
        notes=(*truth.notes, *mmseg.notes(scores), *scored.notes, said),
        dataset=truth,
        listed=("mIoU",) if "mIoU" in settings.metrics else (),
        form=form,
    )


def _light(score: CaseScore) -> CaseScore:
    """Without the table of pairs of classes, which nothing here shows: a few integers stay of a picture."""
    assert score.areas is not None
    return replace(score, areas=replace(score.areas, confusion=None))


# ------------------------------------------------------------------------------------------- ground truth


def _rules_of(classes: str | Sequence[str] | None, folders: FolderOptions) -> FolderOptions:
    """Label maps as the package was trained with them, where classes are a package's and nobody says other rules."""
    if folders.rules or not isinstance(classes, str) or not Path(classes).exists():
        return folders
    return replace(folders, rules=rules_in(open_package(classes).manifest.metric.options))


def _open_truth(root: Path, layout: str | None, split: str | Path | None, folders: FolderOptions) -> Dataset:
    if not root.is_dir():
        raise DatasetError(f"there is no folder of ground truth at {root}; check the path")
    if layout not in (None, "cityscapes", "mmseg", "labels"):
        raise UsageError(f"ground truth for mmseg has the layout cityscapes, mmseg or labels, not '{layout}'")
    if layout == "cityscapes" or (layout is None and find_cityscapes(root) is not None):
        return open_cityscapes(root, None if split is None else str(split), folders.rules)
    if layout == "mmseg" or (layout is None and is_mmseg(root)):
        return open_mmseg(root, split, folders)
    if split is not None:
        root = root / str(split)
        if not root.is_dir():
            raise UsageError(f"there is no folder of split {split} at {root}")
    return _folder_of_labels(root, folders)


def _folder_of_labels(root: Path, folders: FolderOptions) -> Dataset:
    """Label maps alone, found below the folder; of a picture that has both kinds, train ids."""
    suffix = folders.seg_map_suffix
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if path.name.startswith(".") or not path.is_file() or path.suffix.lower() != ".png":
            continue
        if suffix is not None and not path.name.endswith(suffix):
            continue
        if suffix is None and path.name.endswith(("_gtFine_color.png", "_gtFine_instanceIds.png", "_leftImg8bit.png")):
            continue
        name = path.name[: -len(suffix)] if suffix else base_name(path.name)
        known = found.get(name)
        if known is not None and {known.name, path.name} != {f"{name}{TRAIN_IDS}", f"{name}{LABEL_IDS}"}:
            raise DatasetError(f"{known} and {path} belong to one picture; keep one, or name the end of files with "
                               "--seg-map-suffix")  # fmt: skip
        if known is None or path.name.endswith(TRAIN_IDS):
            found[name] = path
    if not found:
        raise DatasetError(f"{root} holds no label map; expected <name>.png with one class number a pixel")

    def reader(path: Path) -> Callable[[], Numbers]:
        own = path.name.endswith((LABEL_IDS, TRAIN_IDS))
        return lambda: folders.rules.apply(train_ids_of(path) if own else read_numbers(path))

    cases = tuple(label_case(name, path, None, reader(path)) for name, path in found.items())
    named = all(path.name.endswith((LABEL_IDS, TRAIN_IDS)) for path in found.values())
    return Dataset(name=root.resolve().name, layout="cityscapes" if named else "labels", cases=cases)


def _classes(given: str | Sequence[str] | None, truth: Dataset) -> Classes | None:
    """None where neither anybody nor the files' names say which classes there are. UsageError for words without sense."""
    if given is None:
        known = truth.layout == "cityscapes" or all(_CITYSCAPES.fullmatch(case.id) for case in truth.cases)
        return Classes(labels=cityscapes_labels()) if known else None
    names = [part.strip() for part in given.split(",")] if isinstance(given, str) else list(given)
    if len(names) == 1 and names[0].lower() == "cityscapes":
        return Classes(labels=cityscapes_labels())
    if len(names) == 1 and Path(names[0]).exists():
        return Classes(labels=open_package(names[0]).manifest.labels)
    if len(names) == 1 and names[0].isdecimal():
        names = [str(number) for number in range(int(names[0]))]
    if not all(names) or not names:
        raise UsageError(f"--classes takes names with commas between them, a number or a package, not '{given}'")
    return _named(names)


def _named(names: Sequence[str], notes: tuple[str, ...] = ()) -> Classes:
    labels = tuple(Label(id=place, name=name, color=(0, 0, 0)) for place, name in enumerate(names))
    return Classes(labels=labels, notes=notes)


def _counted(files: Sequence[Path], truth: Dataset, ignore: int) -> Classes:
    """As many classes as the numbers of both sides tell: means leave out those that are nowhere, so none is changed by one
    that no file shows."""
    top = 0
    for case, path in zip(truth.cases, files, strict=True):
        found = read_label_png(path)
        if found.in_colour:
            raise UsageError(
                f"which classes have these colours ({path.name})? give --classes cityscapes, or a package that has them"
            )
        top = max(
            [
                top,
                *(
                    n
                    for v in (case.read_labels().labels, found.values)
                    for n in _present(v)
                    if n not in (ignore, IGNORE)
                ),
            ]
        )
    if top > MOST_CLASSES:
        raise UsageError(f"the files hold numbers up to {top}; say what they are with --classes and --label-map")
    told = f"classes are taken as 0 to {top}, the numbers that the files hold; --classes names them"
    return _named([str(number) for number in range(top + 1)], (told,))


# -------------------------------------------------------------------------------------------- predictions


def _predictions(root: Path) -> Mapping[str, Path]:
    if not root.is_dir():
        raise DatasetError(f"there is no folder of predictions at {root}; check the path")
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.png")):
        if path.name.startswith(".") or "overlays" in path.relative_to(root).parts[:-1]:
            continue
        name = base_name(path.name)
        if name in found:
            raise DatasetError(f"{found[name]} and {path} are both predictions of {name}; keep one of them")
        found[name] = path
    if not found:
        raise DatasetError(f"there are no predictions in {root}; expected <image stem>.png")
    return found


def _reader(
    paths: Sequence[Path], classes: Classes, values: str | None, ignore: int
) -> tuple[Callable[[Path], Numbers], str]:
    """How predictions are read, found out from a sample of them, and what to say about it."""
    kind = values or _kind_of([read_label_png(path) for path in paths[:: max(1, len(paths) // SAMPLE)]], classes)
    colors = color_table(classes.labels)
    ids = classes.ids

    def read(path: Path) -> Numbers:
        stored = read_label_png(path)
        if kind == "color":
            rgb = stored.values if stored.in_colour else _coloured(stored, path)
            return from_colors(rgb, colors, path, ignore)
        if stored.in_colour:
            raise DatasetError(
                f"prediction {path} holds colours, others hold numbers; write all of one kind, or say --values color"
            )
        if kind == "ids" and ids is not None:
            return np.asarray(mmseg.as_places(stored.values, ids, ignore)).astype(np.uint16)
        return stored.values

    told = {"train-ids": "class numbers (train ids)", "ids": "the data set's own ids", "color": "colours"}
    return read, f"predictions are taken as {told[kind]}" + ("" if values else ", found from what they hold")


def _coloured(stored: LabelPicture, path: Path) -> Numbers:
    if stored.palette is None:
        raise DatasetError(f"prediction {path} holds numbers, not colours; leave --values out, or say train-ids or ids")
    return stored.palette[stored.values]


def _kind_of(sample: Sequence[LabelPicture], classes: Classes) -> str:
    """Colours where a file has them; own ids where a number occurs that no class number is, or a palette says so."""
    if any(one.in_colour for one in sample):
        if not classes.coloured:
            raise UsageError(
                "the predictions hold colours; --classes has to name a package or cityscapes, which have colours"
            )
        return "color"
    ids = classes.ids
    numbers = {number for one in sample for number in _present(one.values)}
    with_palette = [one for one in sample if one.palette is not None]
    if with_palette and classes.coloured:
        return _by_palette(with_palette, classes)
    if ids is None:
        return "train-ids"
    known = set(range(len(classes.labels)))
    foreign = {number for number in numbers if number not in known and number != IGNORE}
    return "ids" if foreign and foreign <= set(ids) else "train-ids"


def _by_palette(sample: Sequence[LabelPicture], classes: Classes) -> str:
    """Of indexed pictures: what their own colours say that a number means."""
    ids = classes.ids or tuple(range(len(classes.labels)))
    number_is = {"train-ids": range(len(classes.labels)), "ids": ids}
    used = [(one.palette, _present(one.values)) for one in sample if one.palette is not None]
    for kind, numbering in number_is.items():
        color_of = {number: label.color for number, label in zip(numbering, classes.labels, strict=True)}
        if all(tuple(int(c) for c in palette[v]) == color_of.get(v) for palette, values in used for v in values if v != IGNORE):  # fmt: skip
            return kind
    colors = color_table(classes.labels)
    if all(tuple(int(c) for c in palette[v]) in colors for palette, values in used for v in values):
        return "color"
    known = set(range(len(classes.labels))) | {IGNORE}
    return "train-ids" if all(v in known for _, values in used for v in values) else "ids"


def _refuse_foreign(path: Path, found: Numbers, settings: Settings) -> None:
    """Ids in the place of class numbers would score low without a word."""
    if settings.unknown != "error":
        return
    if int(found.max(initial=0)) < len(settings.classes):
        return
    foreign = [str(v) for v in _present(found) if v >= len(settings.classes) and v != settings.ignore]
    if foreign:
        raise DatasetError(
            f"prediction {path} holds {some(foreign)}, but classes are 0 to {len(settings.classes) - 1}; say what it "
            "holds with --values train-ids, ids or color, or --unknown upstream to count it as wrong"
        )


def _present(values: Numbers) -> list[int]:
    """The numbers that occur, ascending."""
    return np.flatnonzero(np.bincount(values.ravel())).tolist()
