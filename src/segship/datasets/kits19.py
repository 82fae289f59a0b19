"""KiTS19: kidneys and kidney tumours in CT, as published and as MLPerf prepares it.

    kits19            case_00000/imaging.nii.gz + case_00000/segmentation.nii.gz, also under data/
    kits19-prepared   case_00000_x.npy (1, D, H, W) float32 + case_00000_y.npy uint8, as `segship prepare kits19` writes

Labels: 0 background, 1 kidney, 2 tumour. Cases 00000 to 00209 are published with labels; 42 of them are MLPerf's
evaluation cases, whose ids stand in kits19.json with the 20 that mlcommons/inference calibrates on and the md5 of every
prepared file (sources there). Images: CC BY-NC-SA 4.0, neheller/kits19.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segship.datasets.cases import Bool, Bytes, Case, Dataset
from segship.datasets.dsb2018_splits import read_ids, some
from segship.datasets.label_files import LabelVolume, read_label_file
from segship.errors import DatasetError

LAYOUTS = ("kits19", "kits19-prepared")
SPLIT = "mlperf"
IMAGES = ("imaging.nii.gz", "imaging.nii")
LABELS = ("segmentation.nii.gz", "segmentation.nii")
OTHERS_SHARE = 0.2
"""of cases with other ids: those that are evaluated on, by a hash of the id"""
HINT = "expected case_00000/imaging.nii.gz and case_00000/segmentation.nii.gz"
Part = Literal["validation", "training"]
_CASE = re.compile(r"case_(\d+)")


@dataclass(frozen=True, kw_only=True)
class Files:
    """What lies there of one case; None: not there."""

    id: str
    image: Path | None
    labels: Path | None


@cache
def facts() -> dict[str, Any]:
    """Published ids and md5 sums (kits19.json)."""
    text = resources.files("segship.datasets").joinpath("kits19.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def is_known(case_id: str) -> bool:
    """Whether it is one of the 210 published cases that have labels."""
    return _number(case_id) < int(facts()["cases"])


def _number(case_id: str) -> int:
    match = _CASE.fullmatch(case_id)
    return int(match[1]) if match else 1 << 62


# --------------------------------------------------------------------------------------------- the layouts


def layout_of(root: Path) -> str | None:
    """Which of LAYOUTS lies at ``root``, from names alone; None: neither."""
    if not root.is_dir():
        return None
    if any(files.image is not None and files.labels is not None for files in prepared_files(root)):
        return "kits19-prepared"
    return "kits19" if raw_files(root) else None


def raw_files(root: Path, *, empty: bool = False) -> list[Files]:
    """The cases under ``root`` (or its data/), sorted; folders with neither image nor labels count with ``empty``."""
    for place in (root, root / "data"):
        if not place.is_dir():
            continue
        folders = sorted(p for p in place.iterdir() if p.is_dir() and _CASE.fullmatch(p.name))
        found = [Files(id=p.name, image=_one_of(p, IMAGES), labels=_one_of(p, LABELS)) for p in folders]
        kept = [files for files in found if files.image is not None or files.labels is not None]
        if kept:
            return found if empty else kept
    return []


def _one_of(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def prepared_files(root: Path) -> list[Files]:
    """Prepared cases, sorted by name."""
    ends = {"_x.npy": "image", "_y.npy": "labels"}
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(root.iterdir()):
        kind = next((what for end, what in ends.items() if path.name.endswith(end)), None)
        if kind is not None and not path.name.startswith(".") and path.is_file():
            found.setdefault(path.name[:-6], {})[kind] = path
    return [Files(id=name, image=of.get("image"), labels=of.get("labels")) for name, of in sorted(found.items())]


def open_kits19(root: Path, layout: str, split: str | Path | None, part: Part = "validation") -> Dataset:
    """The complete cases of a layout, or one side of a split: 'mlperf', 'all', or a file of evaluation ids.

    Incomplete cases are left out and told in the notes. Raises DatasetError where no complete case is there, and for a
    split without cases.
    """
    listed = raw_files(root) if layout == "kits19" else prepared_files(root)
    if not listed:
        raise DatasetError(f"{root} holds no case of layout {layout}; {HINT}, or case_00000_x.npy and _y.npy")
    complete = [files for files in listed if files.image is not None and files.labels is not None]
    if not complete:
        raise DatasetError(f"{root}: {_lacking(listed)[0]}; {HINT} (neheller/kits19 says where the images come from)")
    build = _raw_case if layout == "kits19" else _prepared_case
    cases = tuple(build(files) for files in complete)
    notes = tuple(f"left out: {text}" for text in _lacking(listed))
    dataset = Dataset(name=root.resolve().name, layout=layout, cases=cases, notes=notes)
    return take_part(dataset, split, part) if split is not None else dataset


def _lacking(listed: Sequence[Files]) -> list[str]:
    texts = []
    for what, attribute in (("an image", "image"), ("a segmentation", "labels")):
        alone = [files.id for files in listed if getattr(files, attribute) is None]
        if alone:
            texts.append(f"{len(alone)} cases without {what} ({some(alone)})")
    return texts


def _raw_case(files: Files) -> Case:
    assert files.image is not None
    assert files.labels is not None
    labels = files.labels
    return _case(files.id, files.image, labels, lambda reorient: read_label_file(labels, reorient=reorient))


def _prepared_case(files: Files) -> Case:
    assert files.image is not None
    assert files.labels is not None
    labels = files.labels
    return _case(files.id, files.image, labels, lambda _: LabelVolume(labels=load_labels(labels), spacing=(1.0,) * 3))


def load_labels(path: Path) -> NDArray[np.uint8]:
    """A prepared case's labels (D, H, W). DatasetError for what is no such file."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path} is no array that numpy reads ({error}); prepare the case again") from error
    if found.ndim != 4 or len(found) != 1 or found.dtype != np.uint8:
        raise DatasetError(f"{path} holds {found.dtype} of shape {found.shape}; labels are uint8 (1, D, H, W)")
    return np.asarray(found[0])


def _case(name: str, image: Path, labels: Path, read: Callable[[bool], LabelVolume]) -> Case:
    def full() -> Bool:
        found = read(False).labels
        return np.stack([found == label for label in (1, 2)])

    def network(height: int, width: int) -> Bytes:
        raise DatasetError(f"case {name} is a volume; its labels have no two-dimensional grid")

    return Case(
        id=name, source=lambda: image, full_target=full, network_target=network, label_volume=read, label_file=labels
    )


# ------------------------------------------------------------------------------------------------- splits


def take_part(dataset: Dataset, split: str | Path, part: Part) -> Dataset:
    """One side of a split, sorted by id: 'mlperf' (see `evaluation_ids`), 'all', or a file of evaluation ids."""
    ids = sorted(dataset.ids)
    if str(split) == "all":
        return dataset.select(ids, "all")
    named = str(split) == SPLIT
    held_out = set(evaluation_ids(ids)) if named else set(read_ids(Path(split)))
    if not named and not held_out & set(ids):
        raise DatasetError(f"none of the ids of {split} is in the data set; it has {some(ids)}")
    chosen = [i for i in ids if (i in held_out) == (part == "validation")]
    if not chosen:
        side = "evaluation" if part == "validation" else "training"
        raise DatasetError(f"no {side} case of split {split} is in {dataset.name}; --split all takes every case")
    name = SPLIT if named else Path(split).name
    taken = dataset.select(chosen, name if part == "validation" else f"{name}, training")
    absent = [i for i in facts()["evaluation"] if i not in ids] if named and part == "validation" else []
    if not absent:
        return taken
    note = f"{len(absent)} of MLPerf's 42 evaluation cases are not there ({some(absent)})"
    return replace(taken, notes=(*taken.notes, note))


def evaluation_ids(ids: Sequence[str]) -> list[str]:
    """Which of these cases are evaluated on: of the 210 published ones MLPerf's 42, of others every fifth by a hash of
    the id. In a set without any published case at least one is, and one is not."""
    recorded = frozenset(facts()["evaluation"])
    others = {i: int(hashlib.sha256(i.encode()).hexdigest()[:8], 16) for i in ids if not is_known(i)}
    chosen = {i for i in ids if i in recorded} | {i for i, value in others.items() if value < OTHERS_SHARE * 2**32}
    if len(others) == len(ids) > 1:
        chosen = (chosen or {min(others, key=others.__getitem__)}) - (
            {max(others, key=others.__getitem__)} if len(chosen) == len(ids) else set()
        )
    return sorted(chosen)


def preferred_for_calibration(dataset: Dataset) -> Dataset:
    """MLPerf's calibration cases where any of them is there, else the data set as it is."""
    listed = [i for i in facts()["calibration"] if i in set(dataset.ids)]
    return dataset.select(listed, "mlperf calibration") if dataset.layout in LAYOUTS and listed else dataset


def calibration_cases(root: Path) -> Dataset | None:
    """The cases to calibrate on of a KiTS folder; None where it is none. DatasetError where all are evaluation cases."""
    layout = layout_of(root)
    if layout is None:
        return None
    whole = open_kits19(root, layout, None)
    held_out = set(evaluation_ids(whole.ids))
    rest = [i for i in whole.ids if i not in held_out]
    if not rest:
        raise DatasetError(
            f"{root} holds evaluation cases alone ({some(sorted(held_out))}), which nothing may be calibrated on; give "
            "training cases"
        )
    return preferred_for_calibration(whole.select(rest, f"{SPLIT}, training"))


def label_paths(dataset: Dataset) -> Mapping[str, Path]:
    """Case -> its file of labels."""
    return {case.id: case.label_file for case in dataset.cases if case.label_file is not None}
