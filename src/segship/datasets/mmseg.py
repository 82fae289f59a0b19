"""Folders as mmseg's data sets keep them: pictures and label maps in two trees of the same names.

    img_dir/val/a.jpg       ann_dir/val/a.png            also images/ + annotations/, JPEGImages/ + SegmentationClass/ …
    images/validation/…     annotations/validation/…     also without a folder of the split

A label map holds one class number a pixel, 0 to C−1, 255 where nothing is said; ``reduce_zero_label`` and ``label_map``
change numbers first, as mmseg's loader does. A split is a folder, or a text file of names without suffix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from segship.datasets.cases import Dataset
from segship.datasets.dsb2018_splits import read_ids, some
from segship.datasets.folders import IMAGE_SUFFIXES
from segship.datasets.label_cases import FolderOptions, Numbers, label_case
from segship.datasets.label_png import read_numbers
from segship.errors import DatasetError, UsageError

FOLDERS = (
    ("img_dir", "ann_dir"),
    ("images", "annotations"),
    ("JPEGImages", "SegmentationClass"),
    ("images", "labels"),
    ("images", "masks"),
)
OWN = (FOLDERS[0], FOLDERS[2])
"""pairs that no other layout uses; images + annotations may be salient objects too, unless they hold splits"""
VALIDATION, TRAINING = ("val", "validation", "valid"), ("train", "training")
HINT = "expected img_dir/<split>/<name>.jpg and ann_dir/<split>/<name>.png (or --img-dir, --ann-dir, --img-suffix, --seg-map-suffix)"


def is_mmseg(root: Path) -> bool:
    """Whether two folders lie there that only this layout has."""
    if any((root / images).is_dir() and (root / labels).is_dir() for images, labels in OWN):
        return True
    splits = (*VALIDATION, *TRAINING)
    return any((root / "images" / name).is_dir() and (root / "annotations" / name).is_dir() for name in splits)


def is_mmseg_like(root: Path) -> bool:
    """Also ``images/`` beside ``labels/`` or ``masks/``, for packages that are scored as mmseg scores."""
    return any((root / images).is_dir() and (root / labels).is_dir() for images, labels in FOLDERS)


def open_mmseg(
    root: Path, split: str | Path | None = None, options: FolderOptions | None = None, classes: int | None = None
) -> Dataset:
    """The cases of a split [val or validation, where there is one; else all], sorted by path.

    Raises DatasetError naming pictures without a label map, UsageError where a split or folder is not there.
    """
    options = options or FolderOptions()
    images, labels = _folders(root, options)
    listed = _listed(split, images)
    part = None if listed is not None else _part(images, split)
    pictures = _files(images / part if part else images, options.img_suffix, IMAGE_SUFFIXES)
    maps = _files(labels / part if part else labels, options.seg_map_suffix, frozenset({".png"}))
    if listed is not None:
        absent = [name for name in listed if name not in pictures]
        if absent:
            raise DatasetError(f"{split} lists {some(absent)}, which {images} does not hold; {HINT}")
        pictures = {name: pictures[name] for name in listed}
    if not pictures:
        raise DatasetError(f"{images / part if part else images} holds no picture; {HINT}")
    lacking = [name for name in pictures if name not in maps]
    if lacking:
        raise DatasetError(f"pictures without a label map in {labels}: {len(lacking)} ({some(lacking)}); {HINT}")

    def reader(path: Path):  # type: ignore[no-untyped-def]
        def read() -> Numbers:
            return options.rules.apply(read_numbers(path))

        return read

    cases = tuple(label_case(name, pictures[name], classes, reader(maps[name])) for name in pictures)
    return Dataset(name=root.resolve().name, layout="mmseg", cases=cases, split=part or _name_of(split))


def training_split(root: Path, options: FolderOptions | None = None) -> str | None:
    """The name of the folder of training pictures, where there is one."""
    images, _ = _folders(root, options or FolderOptions())
    return next((name for name in TRAINING if (images / name).is_dir()), None)


def validation_split(root: Path, options: FolderOptions | None = None) -> str | None:
    """The name of the folder of validation pictures, where there is one."""
    return _part(_folders(root, options or FolderOptions())[0], None)


def _folders(root: Path, options: FolderOptions) -> tuple[Path, Path]:
    if (options.img_dir is None) != (options.ann_dir is None):
        raise UsageError("--img-dir and --ann-dir go together: the pictures' folder and the label maps'")
    if options.img_dir is not None and options.ann_dir is not None:
        given = root / options.img_dir, root / options.ann_dir
        missing = [folder for folder in given if not folder.is_dir()]
        if missing:
            raise DatasetError(f"there is no folder {missing[0]}; {HINT}")
        return given
    pairs = [(root / images, root / labels) for images, labels in FOLDERS]
    found = next((pair for pair in pairs if pair[0].is_dir() and pair[1].is_dir()), None)
    if found is None:
        names = ", ".join(f"{images} + {labels}" for images, labels in FOLDERS)
        raise DatasetError(f"{root} holds none of {names}; {HINT}")
    return found


def _listed(split: str | Path | None, images: Path) -> list[str] | None:
    if split is None or (images / str(split)).is_dir():
        return None
    return read_ids(Path(split)) if Path(split).is_file() else None


def _part(images: Path, split: str | Path | None) -> str | None:
    if split is not None:
        if not (images / str(split)).is_dir():
            have = sorted(path.name for path in images.iterdir() if path.is_dir())
            raise UsageError(f"{images} has no split '{split}' (there are: {', '.join(have) or 'none'})")
        return str(split)
    return next((name for name in VALIDATION if (images / name).is_dir()), None)


def _name_of(split: str | Path | None) -> str | None:
    return None if split is None else Path(split).name


def _files(folder: Path, suffix: str | None, kinds: frozenset[str]) -> Mapping[str, Path]:
    """Path below the folder without suffix -> file, sorted by path. DatasetError for two files of one name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        if suffix is not None and not path.name.endswith(suffix):
            continue
        if suffix is None and path.suffix.lower() not in kinds:
            continue
        below = path.relative_to(folder).as_posix()
        name = below[: -len(suffix)] if suffix else below[: -len(path.suffix)]
        if name in found:
            raise DatasetError(f"{found[name]} and {path.name} have one name; keep one, or name it with --img-suffix")
        found[name] = path
    return found
