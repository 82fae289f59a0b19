"""A user's own data: ``images/`` and ``masks/`` whose files share their stems.

    images/a.jpg  masks/a.png                 one mask an image: 0/255, 0/1, or label ids 1, 2, 3 …
    images/a.jpg  masks/<class>/a.png         one folder a class, masks 0/255 or 0/1

What the numbers in the masks mean is decided once for the whole data set from a sample of its files, said in
the data set's notes, and every later file that contradicts it is an error: a folder half 0/1 and half 0/255
would otherwise score as half empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from segship.datasets import dsb2018
from segship.datasets.cases import Bool, Bytes, Case, Dataset, MaskCache
from segship.datasets.dsb2018_splits import SPLITS, some
from segship.datasets.dsb2018_splits import split as divide
from segship.errors import DatasetError, UsageError

MaskKind = Literal["binary", "zero-one", "labels"]
MASK_FOLDERS = ("masks", "labels")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm", ".pnm"})
HINT = "expected images/<name>.<any image type> and masks/<name>.png, or masks/<class>/<name>.png"
_SAMPLE = 64  # masks looked at to learn what their numbers mean


@dataclass(frozen=True, kw_only=True)
class _Masks:
    """How the masks of one data set are read."""

    kind: MaskKind
    num_classes: int


def is_paired(root: Path) -> bool:
    return (root / "images").is_dir() and any((root / name).is_dir() for name in MASK_FOLDERS)


def open_folders(root: Path, num_classes: int | None = None, kind: MaskKind | None = None) -> Dataset:
    """The paired data set under ``root``, sorted by name.

    ``kind`` and ``num_classes`` say what the masks hold; None finds it out from up to 64 of them. Raises
    DatasetError for images without masks, doubled names, or masks that are not of one kind.
    """
    if not is_paired(root):
        raise DatasetError(f"{root} has no images/ beside masks/; {HINT}")
    mask_root = next(root / name for name in MASK_FOLDERS if (root / name).is_dir())
    images = by_stem(root / "images")
    if not images:
        raise DatasetError(f"{root / 'images'} holds no image; {HINT}")
    classes = sorted((p for p in mask_root.iterdir() if p.is_dir()), key=lambda p: _class_order(p.name))
    planes = [by_stem(folder) for folder in (classes or [mask_root])]
    _require_masks(images, planes, classes or [mask_root])
    files = {stem: tuple(plane[stem] for plane in planes) for stem in images}
    masks = _find_out(files, len(classes), num_classes, kind)
    cache = MaskCache()
    cases = tuple(_case(stem, images[stem], files[stem], masks, cache) for stem in sorted(images))
    return Dataset(name=root.resolve().name, layout="folders", cases=cases, notes=_notes(masks, images, planes))


def open_masks(root: Path, split: str | Path | None = None) -> Dataset:
    """Ground truth without images: ``<id>.png``, or ``<class 0..K-1>/<id>.png``, 0..255 as upstream stores them.

    ``split`` takes its validation ids only. The cases have masks but no image; to read one is a DatasetError.
    """
    classes = sorted((p for p in root.iterdir() if p.is_dir() and p.name.isdecimal()), key=lambda p: int(p.name))
    planes = [by_stem(folder) for folder in (classes or [root])]
    if not planes[0]:
        raise DatasetError(f"{root} holds no mask; expected <id>.png or <class>/<id>.png")
    _require_masks(planes[0], planes, classes or [root])
    files = {stem: tuple(plane[stem] for plane in planes) for stem in planes[0]}
    masks = _Masks(kind="binary", num_classes=len(planes))
    cache = MaskCache()
    cases = tuple(_case(stem, None, files[stem], masks, cache) for stem in sorted(files))
    dataset = Dataset(name=root.resolve().name, layout="masks", cases=cases)
    if split is None:
        return dataset
    divided = divide(dataset.ids, split)
    return dataset.select(divided.validation, divided.name if divided.name in SPLITS else Path(split).name)


def _case(stem: str, image: Path | None, files: tuple[Path, ...], masks: _Masks, cache: MaskCache) -> Case:
    def source() -> Path:
        if image is None:
            raise DatasetError(f"{stem} has a mask only; give the folder that holds its image too")
        return image

    def full() -> Bool:
        return cache.get(stem, lambda: _read_planes(stem, files, masks))

    def network(height: int, width: int) -> Bytes:
        target = full()
        # a mask that already has the network's size may be soft, as upstream prepares them: its greys count
        if masks.kind == "binary" and target.shape[1:] == (height, width):
            return np.stack([read_mask(path) for path in files]).astype(np.uint8)
        return dsb2018.resize_masks(target.astype(np.uint8) * np.uint8(255), "raw", (height, width))

    def grey() -> Bytes:
        if masks.kind != "binary":
            return full().astype(np.uint8) * np.uint8(255)
        full()  # checked
        return np.stack([read_mask(path) for path in files]).astype(np.uint8)

    return Case(id=stem, source=source, full_target=full, network_target=network, grey_target=grey)


def _read_planes(stem: str, files: Sequence[Path], masks: _Masks) -> Bool:
    read = [read_mask(path) for path in files]
    if len({plane.shape for plane in read}) > 1:
        raise DatasetError(f"the masks of {stem} differ in size between classes; make them equal")
    for path, plane in zip(files, read, strict=True):
        _check_kind(path, plane, masks)
    if masks.kind == "labels":
        return np.stack([read[0] == k for k in range(1, masks.num_classes + 1)])
    return np.stack([plane >= (1 if masks.kind == "zero-one" else 128) for plane in read])


def _check_kind(path: Path, mask: np.ndarray, masks: _Masks) -> None:
    top = int(mask.max(initial=0))
    if masks.kind == "binary" and top == 1:
        problem = "holds only 0 and 1, but masks are 0..255 here (divided by 255 it would be an empty target); multiply it by 255"
    elif masks.kind == "binary" and top > 255:
        problem = f"goes up to {top}, but masks are 0..255 here; store it with 8 bits"
    elif masks.kind == "zero-one" and top > 1:
        problem = f"goes up to {top} while the others hold only 0 and 1; make all masks 0/255"
    elif masks.kind == "labels" and top > masks.num_classes:
        problem = f"holds label {top}, but there are {masks.num_classes} classes; give the number of classes"
    else:
        return
    raise DatasetError(f"mask {path} {problem}")


def read_mask(path: Path) -> np.ndarray:
    """The mask as stored, (H, W) of any integer type; colour is refused, as its numbers mean nothing here."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        mask = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except (OSError, cv2.error) as error:
        raise DatasetError(f"mask {path} cannot be read: {error}; copy that file again") from error
    if mask is None:
        raise DatasetError(f"mask {path} is no image that OpenCV can decode; store it as PNG")
    if mask.ndim == 3:
        colour = mask[..., :3]
        if not (np.ptp(colour, axis=2) == 0).all():
            raise DatasetError(f"mask {path} is in colour; store it as a grey PNG, 0/255 or one label id a pixel")
        mask = colour[..., 0]
    if mask.dtype.kind == "f":
        raise DatasetError(f"mask {path} holds floating-point values; store it as an 8-bit grey PNG")
    return np.asarray(mask)


# ------------------------------------------------------------------------------------------- finding out


def _find_out(
    files: dict[str, tuple[Path, ...]], class_folders: int, num_classes: int | None, kind: MaskKind | None
) -> _Masks:
    if kind == "labels" and class_folders:
        raise UsageError("label ids stand in one mask an image; with masks/<class>/ the masks are 0/255")
    top = 0
    stems = sorted(files)
    if kind is None or (kind == "labels" and num_classes is None):
        for stem in stems[:: max(1, len(stems) // _SAMPLE)]:
            top = max(top, *(int(read_mask(path).max(initial=0)) for path in files[stem]))
        if kind is None:
            kind = _kind_of(top, class_folders, num_classes)
    if kind == "labels":
        return _Masks(kind="labels", num_classes=num_classes or max(top, 1))
    if num_classes not in (None, class_folders or 1):
        raise DatasetError(f"{num_classes} classes were asked for, the masks have {class_folders or 1}; {HINT}")
    return _Masks(kind=kind, num_classes=class_folders or 1)


def _kind_of(top: int, class_folders: int, num_classes: int | None) -> MaskKind:
    if top > 255:
        raise DatasetError(f"masks go up to {top}; store them as 8-bit PNG: 0/255, or label ids from 1 on")
    if top in (0, 255):
        return "binary"
    if not class_folders and (top > 1 or (num_classes or 1) > 1):
        return "labels"
    return "zero-one" if top <= 1 else "binary"


def _notes(masks: _Masks, images: dict[str, Path], planes: Sequence[dict[str, Path]]) -> tuple[str, ...]:
    notes = []
    if masks.kind == "zero-one":
        notes.append("masks hold 0 and 1: taken as background and foreground")
    if masks.kind == "labels":
        notes.append(f"masks hold label ids: classes 1 to {masks.num_classes}, 0 is background")
    unused = sorted({stem for plane in planes for stem in plane} - set(images))
    if unused:
        notes.append(f"masks without an image, not used: {len(unused)} ({some(unused)})")
    return tuple(notes)


def by_stem(folder: Path, files: Sequence[Path] | None = None) -> dict[str, Path]:
    """Stem -> picture file of a folder (or of ``files``), hidden files left out. DatasetError for one name twice."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if files is None else files:
        if not path.is_file() or path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.stem in found:
            raise DatasetError(f"{found[path.stem]} and {path.name} have one name; keep one file for each")
        found[path.stem] = path
    return found


def _require_masks(images: dict[str, Path], planes: Sequence[dict[str, Path]], folders: Sequence[Path]) -> None:
    for plane, folder in zip(planes, folders, strict=True):
        absent = sorted(set(images) - set(plane))
        if absent:
            raise DatasetError(f"images without a mask in {folder}: {len(absent)} ({some(absent)}); {HINT}")


def _class_order(name: str) -> tuple[int, int, str]:
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)
