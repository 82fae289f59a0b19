"""`segship score nnunet GT PRED` and `score nnunet-v1`: two folders of label files, as nnU-Net evaluates them.

Files are paired by name without ending: NIfTI, .nrrd, .mha, PNG, BMP, TIFF; 2D and 3D. Labels, regions and the ignore
label come from ``-l`` and ``--ignore``, or from a dataset.json: the one given, or one that lies beside the ground truth
or with the predictions. Voxels are compared as they are stored, as upstream does; other than there, files of different
shapes are refused and files that lie elsewhere in space are told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segship.datasets.dsb2018_splits import some
from segship.datasets.label_files import LabelVolume, ending_of, read_label_file, stem_of
from segship.datasets.nnunet_json import DatasetJson, find_dataset_json, read_dataset_json
from segship.errors import DatasetError, UsageError
from segship.inference.writers import write_bytes
from segship.metrics import nnunet, surfaces
from segship.metrics.confusion import Key
from segship.metrics.files import FileScores, Progress, each, pair
from segship.metrics.label_folders import labels_only, same_place
from segship.metrics.scores import CaseScore

LABEL_FOLDERS = ("labelsTr", "labelsTs", "labels")
Version = Literal["v1", "v2"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is counted."""

    keys: Mapping[Key, str]
    ignore: int | None
    reorient: bool
    known: frozenset[int] | None
    """every number that dataset.json allows; None where only ``-l`` was given"""


def score_files(
    gt: Path | str,
    pred: Path | str,
    *,
    labels: Sequence[Key] = (),
    dataset: Path | str | None = None,
    plans: Path | str | None = None,
    ignore: int | None = None,
    allow_missing: bool = False,
    output: Path | str | None = None,
    surface: bool = False,
    tolerance: float = surfaces.TOLERANCE_MM,
    version: Version = "v2",
    progress: Progress | None = None,
) -> FileScores:
    """Score the label files under ``pred`` against those of ``gt``.

    ``labels`` (regions as tuples) or ``dataset`` (a dataset.json) say what is counted. ``output`` gets the world's
    own summary.json. ``surface`` adds surface Dice at ``tolerance`` millimetres and HD95. ``plans`` is accepted as
    upstream asks for it; a reader that turns axes is taken from it. Raises DatasetError naming files that are missing,
    faulty or of another shape, UsageError where nothing says which labels to count.
    """
    truth_folder, root = _label_folder(Path(gt)), Path(pred)
    if surface:
        surfaces.check_library()
    rules = _rules(labels, dataset, plans, ignore, truth_folder, root)
    references, files = _by_stem(truth_folder, "ground truth"), _by_stem(root, "predictions")
    known = labels_only(truth_folder, references, lambda path, reorient: read_label_file(path, reorient=reorient))
    truth = pair(known, files, root, allow_missing)
    scores: list[CaseScore] = []
    elsewhere: list[str] = []
    pictures = False
    for case in each(truth, progress):
        wanted = read_label_file(references[case.id], reorient=rules.reorient)
        found = read_label_file(files[case.id], reorient=rules.reorient)
        try:
            score = nnunet.score_arrays(case.id, wanted.labels, found.labels, rules.keys, rules.ignore)
        except DatasetError as error:
            raise DatasetError(f"{files[case.id]}: {error}") from None
        _refuse_foreign(files[case.id], found, rules)
        if surface:
            score = _with_surfaces(score, wanted, found, rules, tolerance)
            pictures |= wanted.is_picture
        scores.append(score)
        if not same_place(wanted, found):
            elsewhere.append(case.id)
    paths = [(str(files[score.id]), str(references[score.id])) for score in scores]
    if output is not None:
        write_bytes(Path(output), nnunet.summary_file(scores, paths, version))
    return FileScores(
        scorer="nnunet",
        name=root.resolve().name,
        metrics=nnunet.summarise(scores),
        scores=tuple(scores),
        notes=(
            *truth.notes,
            *nnunet.notes(scores),
            *_about_places(elsewhere, len(scores)),
            *(("pictures have no millimetres: NSD's tolerance and HD95 are in pixels",) if pictures else ()),
        ),
        dataset=truth,
        listed=("Dice", *(("NSD", "HD95") if surface else ())),
    )


def _with_surfaces(
    score: CaseScore, wanted: LabelVolume, found: LabelVolume, rules: Rules, tolerance: float
) -> CaseScore:
    masks = {key: (nnunet.mask_of(wanted.labels, key), nnunet.mask_of(found.labels, key)) for key in rules.keys}
    used = None if rules.ignore is None else wanted.labels != rules.ignore
    return nnunet.with_surfaces(score, masks, rules.keys, wanted.spacing, tolerance, used)


# ------------------------------------------------------------------------------------------ what is counted


def _rules(
    labels: Sequence[Key],
    dataset: Path | str | None,
    plans: Path | str | None,
    ignore: int | None,
    truth: Path,
    predictions: Path,
) -> Rules:
    if labels and dataset is not None:
        raise UsageError("either -l names the labels or --dataset does; leave one of them out")
    if labels:
        if ignore in labels:
            raise UsageError(f"label {ignore} cannot be counted and ignored; leave it out of -l")
        keys = dict.fromkeys(labels)
        return Rules(keys={key: str(key) for key in keys}, ignore=ignore, reorient=_turns(plans), known=None)
    about = Path(dataset) if dataset is not None else find_dataset_json(truth, truth.parent, predictions)
    if about is None:
        raise UsageError(
            f"which labels are to be scored? give -l 1 2 …, or --dataset dataset.json (none lies in {truth.parent} or {predictions})"
        )
    described = read_dataset_json(about)
    ignored = ignore if ignore is not None else described.ignore
    return Rules(
        keys=described.labels,
        ignore=ignored,
        reorient=described.reorient or _turns(plans),
        known=_known(described, ignored),
    )


def _turns(plans: Path | str | None) -> bool:
    """Whether the plans' reader turns images to RAS."""
    if plans is None:
        return False
    try:
        return '"image_reader_writer": "' in (text := Path(plans).read_text(encoding="utf-8")) and any(
            f'"{name}WithReorient"' in text for name in ("SimpleITKIO", "NibabelIO")
        )
    except (OSError, ValueError) as error:
        raise DatasetError(f"{plans} cannot be read ({error}); leave it out, it is not needed") from error


def _known(described: DatasetJson, ignore: int | None) -> frozenset[int]:
    ids = {0, *(described.regions_order or ()), *(() if ignore is None else (ignore,))}
    for key in described.labels:
        ids.update((key,) if isinstance(key, int) else key)
    return frozenset(ids)


def _refuse_foreign(path: Path, found: LabelVolume, rules: Rules) -> None:
    """0/255 masks in the place of labels would score 0 without a word."""
    if rules.known is None:
        return
    top = int(found.labels.max(initial=0))
    if top in rules.known or top <= max(rules.known):
        return
    raise DatasetError(
        f"{path} holds the label {top}, but dataset.json names {', '.join(map(str, sorted(rules.known)))}; "
        "store label ids, or give the dataset.json that belongs to it"
    )


# ---------------------------------------------------------------------------------------------------- files


def _label_folder(gt: Path) -> Path:
    """The folder of labels: the one given, or the one in a raw data set."""
    if not gt.is_dir():
        raise DatasetError(f"there is no folder of ground truth at {gt}; check the path")
    return next((gt / name for name in LABEL_FOLDERS if (gt / name).is_dir()), gt)


def _by_stem(folder: Path, what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"there is no folder of {what} at {folder}; check the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if ending_of(path.name) is None or not path.is_file():
            continue
        stem = stem_of(path.name)
        if stem in found:
            raise DatasetError(f"{found[stem]} and {path.name} have one name; keep one of them")
        found[stem] = path
    if not found:
        raise DatasetError(f"there are no label files ({what}) in {folder}; expected <case>.nii.gz or <case>.png …")
    return found


def _about_places(elsewhere: Sequence[str], cases: int) -> tuple[str, ...]:
    if not elsewhere:
        return ()
    return (
        f"{len(elsewhere)} of {cases} predictions lie elsewhere in space than their reference ({some(list(elsewhere))}): "
        "their headers' affines differ, voxels were compared in the order that they are stored in",
    )
