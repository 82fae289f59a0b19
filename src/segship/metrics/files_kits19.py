"""`segship score kits19 GT PRED`: label files against KiTS19's segmentations, no package and no engine needed.

    GT     case_00000/segmentation.nii.gz …, prepared case_00000_y.npy …, or label files case_00000.nii.gz
    PRED   case_00000.nii.gz as `segship predict` writes them, prediction_00000.nii.gz as the challenge took them,
           case_00000/segmentation.nii.gz, or case_00000.npy / case_00000_y.npy on the prepared grid

Both scores are counted on the files' own grid, voxel by voxel as they are stored: kidney and tumour apart, as MLPerf
does (its published numbers are taken on the resampled, cropped grid), and together, as the challenge does.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segship.datasets.dsb2018_splits import some
from segship.datasets.kits19 import load_labels, prepared_files, raw_files, take_part
from segship.datasets.label_files import LabelVolume, ending_of, read_label_file, stem_of
from segship.errors import DatasetError
from segship.metrics import kits19
from segship.metrics.files import FileScores, Progress, each, pair
from segship.metrics.label_folders import labels_only, same_place
from segship.metrics.scores import CaseScore

LISTED = (*kits19.TABLE, kits19.KIDNEY_AND_TUMOUR)
_CHALLENGE = re.compile(r"prediction_(\d+)")


def score_files(
    gt: Path | str,
    pred: Path | str,
    *,
    split: str | Path | None = None,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> FileScores:
    """Score the label files under ``pred`` against those of ``gt``.

    ``split``: 'mlperf' (the evaluation cases alone) or a file of ids [every case]. Raises DatasetError naming files that
    are missing, faulty, of another shape, or that hold other labels than 0, 1 and 2.
    """
    references = _files(Path(gt), "ground truth")
    files = _files(Path(pred), "predictions")
    dataset = labels_only(Path(gt), references, lambda path, _: _read(path))
    truth = pair(
        dataset if split is None else take_part(dataset, split, "validation"), files, Path(pred), allow_missing
    )
    scores: list[CaseScore] = []
    elsewhere: list[str] = []
    for case in each(truth, progress):
        wanted, found = _read(references[case.id]), _read(files[case.id])
        scores.append(score_pair(case.id, wanted.labels, found.labels, str(files[case.id])))
        if not same_place(wanted, found):
            elsewhere.append(case.id)
    return FileScores(
        scorer="kits19",
        name=Path(pred).resolve().name,
        metrics=kits19.summarise(scores),
        scores=tuple(scores),
        notes=(*truth.notes, "on the files' own grid; " + kits19.REMARKS[0], *_about_places(elsewhere)),
        dataset=truth,
        listed=LISTED,
    )


def score_pair(case: str, wanted: NDArray[np.integer], found: NDArray[np.integer], name: str) -> CaseScore:
    """Both scores of one case. DatasetError for other shapes or labels."""
    if wanted.shape != found.shape:
        turn = 1 if name.endswith(".npy") else -1  # a NIfTI file's axes are read last first
        raise DatasetError(
            f"{name}: the prediction has {_text(found.shape[::turn])} voxels and the ground truth "
            f"{_text(wanted.shape[::turn])}; they are not on one grid"
        )
    for what, labels in (("the prediction", found), (f"the ground truth of {case}", wanted)):
        if int(labels.max(initial=0)) > 2:
            raise DatasetError(
                f"{name}: {what} holds the label {int(labels.max())}; KiTS19 has 0, 1 (kidney) and 2 (tumour)"
            )
    apart, together = kits19.mlperf_case(case, found, wanted), kits19.kits_case(case, found, wanted)
    values = {**apart.values, kits19.KIDNEY_AND_TUMOUR: together.values[kits19.KIDNEY_AND_TUMOUR]}
    return CaseScore(id=case, values=values)


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(str(side) for side in shape)


# -------------------------------------------------------------------------------------------------- files


def _files(root: Path, what: str) -> dict[str, Path]:
    """Case -> label file."""
    if not root.is_dir():
        raise DatasetError(f"there is no folder of {what} at {root}; check the path")
    found = {files.id: files.labels for files in raw_files(root) if files.labels is not None}
    found = found or {files.id: files.labels for files in prepared_files(root) if files.labels is not None}
    found = found or _flat(root)
    if not found:
        raise DatasetError(
            f"there are no label files ({what}) in {root}; expected case_00000.nii.gz, or case_00000/segmentation.nii.gz"
        )
    return found


def _flat(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        array = path.suffix == ".npy" and not path.name.startswith(".")
        if not path.is_file() or not (array or ending_of(path.name)):
            continue
        stem = path.stem if array else stem_of(path.name)
        match = _CHALLENGE.fullmatch(stem)
        name = f"case_{int(match[1]):05d}" if match else stem
        if name in found:
            raise DatasetError(f"{found[name]} and {path.name} are of one case; keep one of them")
        found[name] = path
    return found


def _read(path: Path) -> LabelVolume:
    if path.suffix != ".npy":
        return read_label_file(path)
    if path.name.endswith("_y.npy"):
        return LabelVolume(labels=load_labels(path), spacing=(1.0, 1.0, 1.0))
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path} is no array that numpy reads ({error}); write it again") from error
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.ndim != 3 or array.dtype.kind not in "ui" or int(array.min(initial=0)) < 0:
        raise DatasetError(f"{path} holds {array.dtype} of shape {array.shape}; labels are whole numbers (D, H, W)")
    return LabelVolume(labels=array.astype(np.uint32), spacing=(1.0, 1.0, 1.0))


def _about_places(elsewhere: list[str]) -> tuple[str, ...]:
    if not elsewhere:
        return ()
    return (
        f"{len(elsewhere)} predictions lie elsewhere in space than their reference ({some(elsewhere)}): voxels were "
        "compared in the order that they are stored in",
    )
