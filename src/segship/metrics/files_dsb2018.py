"""`segship score dsb2018 GT PRED`: nuclei masks or raw logits in two folders, compared as UNet++ is scored.

Predictions, one file a case (in ``<class>/`` folders where there are several classes):

    <id>.png             mask 0/255 or 8-bit probability, at network size (96×96) or at the image's own size;
                         also .jpg, as upstream's val.py writes it
    <id>_0.bin           raw float32 logits as the Ascend port writes them; a plain <id>.bin beside them is a network input

Ground truth: the raw DSB2018 archive or folder, the prepared folder, paired folders, or just a folder of masks.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segship.datasets import Dataset, open_dataset
from segship.datasets.dsb2018_splits import some
from segship.datasets.folders import IMAGE_SUFFIXES, open_masks, read_mask
from segship.errors import DatasetError
from segship.metrics import nuclei
from segship.metrics.files import FileScores, Progress, each, pair
from segship.metrics.scores import CaseScore

NETWORK_SIZE = (96, 96)


def score_files(
    gt: Path | str,
    pred: Path | str,
    *,
    layout: str | None = None,
    split: str | Path | None = None,
    size_hw: tuple[int, int] = NETWORK_SIZE,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> FileScores:
    """Score the predictions under ``pred`` against the ground truth ``gt``.

    ``size_hw`` is the network's size: masks of that size and raw logits are compared with the prepared mask, masks of
    the image's own size with the mask as stored (``iou-full``). ``split`` limits the ground truth to its validation
    ids; ``allow_missing`` scores only the cases that were predicted. Raises DatasetError naming missing pairs.
    """
    truth = _open_truth(Path(gt), layout, split)
    files = _predictions(Path(pred))
    truth = pair(truth, files, Path(pred), allow_missing)
    scores = []
    for case in each(truth, progress):
        planes = files[case.id]
        if planes[0].suffix == ".bin":
            scores.append(nuclei.score_arrays(case.id, _logits(planes, size_hw), case.target_network(*size_hw)))
        else:
            scores.append(_score_planes(case.id, planes, case.target_network(*size_hw), case.target()))
    return FileScores(
        scorer="nuclei",
        name=Path(pred).resolve().name,
        metrics=nuclei.summarise(scores),
        scores=tuple(scores),
        notes=truth.notes,
        dataset=truth,
    )


def _score_planes(
    case_id: str, planes: tuple[Path, ...], network: NDArray[np.uint8], full: NDArray[np.bool_]
) -> CaseScore:
    predicted = np.stack([_mask(path) for path in planes])
    sides = predicted.shape[1:]
    if sides == full.shape[1:] and sides != network.shape[1:]:
        return nuclei.score_masks(case_id, predicted, full, suffix="-full")
    if sides != network.shape[1:]:
        raise DatasetError(
            f"prediction {planes[0]} is {sides[0]}×{sides[1]}: neither the network's size {network.shape[1]}×"
            f"{network.shape[2]} nor the image's {full.shape[1]}×{full.shape[2]}; give the network's size with --size"
        )
    return nuclei.score_masks(case_id, predicted, network)


def _mask(path: Path) -> NDArray[np.bool_]:
    values = read_mask(path)
    if values.max(initial=0) == 1:
        raise DatasetError(f"prediction {path} holds only 0 and 1, but masks are 0/255 here; multiply it by 255")
    return np.asarray(values >= 128)


def _logits(planes: tuple[Path, ...], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """(K, h, w) from one raw float32 file."""
    if len(planes) > 1:
        raise DatasetError(f"{planes[0].stem.removesuffix('_0')} has several .bin files; one file holds all classes")
    try:
        raw = planes[0].read_bytes()
    except OSError as error:
        raise DatasetError(f"{planes[0]} cannot be read: {error}; copy that file again") from error
    plane_bytes = 4 * math.prod(size_hw)
    if not raw or len(raw) % plane_bytes:
        raise DatasetError(
            f"{planes[0]} has {len(raw)} bytes, which is no whole number of {size_hw[0]}×{size_hw[1]} float32 maps "
            f"({plane_bytes} bytes each); give the network's size with --size"
        )
    logits = np.frombuffer(raw, "<f4").reshape(-1, *size_hw)
    if not np.isfinite(logits).all():
        raise DatasetError(f"{planes[0]} holds NaN or infinity; the run that wrote it went wrong")
    return logits.astype(np.float32)


# ------------------------------------------------------------------------------------------ finding files


def _open_truth(root: Path, layout: str | None, split: str | Path | None) -> Dataset:
    if layout is None and root.is_dir() and not (root / "images").is_dir() and _holds_masks(root):
        return open_masks(root, split=split)
    return open_dataset(root, layout, split)


def _holds_masks(root: Path) -> bool:
    folders = [root, *(p for p in root.iterdir() if p.is_dir() and p.name.isdecimal())]
    return any(path.suffix.lower() in IMAGE_SUFFIXES for folder in folders for path in folder.iterdir())


def _predictions(root: Path) -> dict[str, tuple[Path, ...]]:
    """id -> one file a class."""
    if not root.is_dir():
        raise DatasetError(f"there is no folder of predictions at {root}; check the path")
    classes = sorted((p for p in root.iterdir() if p.is_dir() and p.name.isdecimal()), key=lambda p: int(p.name))
    found: dict[str, tuple[Path, ...]] = {}
    for folder in classes or [root]:
        here: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            case_id = _case_id(path)
            if case_id is None:
                continue
            if case_id in here:
                raise DatasetError(
                    f"{here[case_id]} and {path.name} are both predictions of {case_id}; keep one of them"
                )
            here[case_id] = path
        for case_id, path in here.items():
            found[case_id] = (*found.get(case_id, ()), path)
    if not found:
        raise DatasetError(f"{root} holds no prediction; expected <id>.png masks or <id>_0.bin float32 logits")
    uneven = sorted(i for i, files in found.items() if len(files) != max(1, len(classes)))
    if uneven:
        raise DatasetError(f"{some(uneven)} lack the mask of a class in {root}; every class folder needs every case")
    return found


def _case_id(path: Path) -> str | None:
    if path.name.startswith(".") or not path.is_file():
        return None
    if path.suffix == ".bin":
        # `predict --save-stages --raw` and the port leave inputs (<id>.bin) and first outputs (<id>_0.bin)
        return path.stem.removesuffix("_0") if path.stem.endswith("_0") else None
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else None
