"""Salient-object data sets: a photo and a grey mask with one stem, in the folders that the field's sets come in.

    Image/a.jpg          Mask/a.png                  also images/, imgs/, im/ … and masks/, gt/, ground_truth_mask/ …
    DUTS-TE-Image/a.jpg  DUTS-TE-Mask/a.png          the same words at the end of a name, with one beginning
    a.jpg                a.png                       side by side in one folder, as MSRA-B

Capitals, blanks and dashes in folder names do not count. Every photo needs a mask and every mask a photo: a file
that stands alone is an error that names it, as a set that was copied in part would score as if it were whole. Masks
keep their greys; what counts as object is the scorer's decision (above 128).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from segship.datasets import dsb2018
from segship.datasets.cases import Bool, Bytes, Case, Dataset, MaskCache
from segship.datasets.dsb2018_splits import SPLITS, some
from segship.datasets.dsb2018_splits import split as divide
from segship.datasets.folders import IMAGE_SUFFIXES, by_stem, read_mask
from segship.errors import DatasetError

OBJECT_ABOVE = 128
IMAGE_WORDS = ("image", "images", "img", "imgs", "im", "jpegimages", "photos", "imaug")
MASK_WORDS = (
    "mask", "masks", "gt", "gts", "groundtruth", "groundtruths", "groundtruthmask", "groundtruthmasks", "label",
    "labels", "annotation", "annotations", "saliency", "gtaug",
)  # fmt: skip
PHOTO_SUFFIXES = (".jpg", ".jpeg")
HINT = (
    "expected Image/<name>.jpg and Mask/<name>.png (or images/ + ground_truth_mask/, DUTS-TE-Image/ + DUTS-TE-Mask/ …), "
    "or <name>.jpg beside <name>.png in one folder"
)
_SAMPLE = 64  # masks looked at to learn whether they hold 0/1 or 0..255


def is_sod(root: Path) -> bool:
    """Whether ``root`` looks like one of these layouts; a folder with several sets in it does not raise here."""
    return root.is_dir() and (bool(_folder_pairs(root)) or _side_by_side(root))


def open_sod(root: Path) -> Dataset:
    """The data set under ``root``, sorted by name. DatasetError names files that stand alone, doubled names, and what
    was expected where nothing fits."""
    images, masks, where = _find(root)
    if not images and not masks:
        raise DatasetError(f"{where} holds no image; {HINT}")
    for what, alone in (("images without a mask", set(images) - set(masks)), ("masks without an image", set(masks) - set(images))):  # fmt: skip
        if alone:
            raise DatasetError(
                f"{what} in {where}: {len(alone)} ({some(sorted(alone))}); add what is missing or remove these"
            )
    return _dataset(root, images, masks, "sod")


def open_sod_masks(root: Path, split: str | Path | None = None) -> Dataset:
    """Ground truth without photos: ``<id>.png`` (or another picture type) in one folder. ``split``: its validation ids."""
    masks = by_stem(root)
    if not masks:
        raise DatasetError(f"{root} holds no mask; expected <id>.png, or a data set: {HINT}")
    dataset = _dataset(root, {}, masks, "masks")
    if split is None:
        return dataset
    divided = divide(dataset.ids, split)
    return dataset.select(divided.validation, divided.name if divided.name in SPLITS else Path(split).name)


def _find(root: Path) -> tuple[dict[str, Path], dict[str, Path], str]:
    """(photos, masks, where they are in words)."""
    pairs = _folder_pairs(root)
    if len(pairs) > 1:
        names = "; ".join(f"{image.name} + {mask.name}" for image, mask in pairs)
        raise DatasetError(f"{root} holds {len(pairs)} pairs ({names}); put the one to use into a folder of its own")
    if pairs:
        image, mask = pairs[0]
        return by_stem(image), by_stem(mask), f"{root} ({image.name} + {mask.name})"
    if root.is_dir() and _side_by_side(root):
        files = [path for path in sorted(root.iterdir()) if _is_picture(path)]
        photos = by_stem(root, [path for path in files if path.suffix.lower() in PHOTO_SUFFIXES])
        return photos, by_stem(root, [path for path in files if path.suffix.lower() == ".png"]), str(root)
    raise DatasetError(f"{root} holds no photos with masks; {HINT}")


def _folder_pairs(root: Path) -> list[tuple[Path, Path]]:
    """Folders of photos and masks that belong together: one beginning, or the only two there are."""
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    images, masks = (
        [(start, path) for path in folders if (start := _beginning(path.name, words)) is not None]
        for words in (IMAGE_WORDS, MASK_WORDS)
    )
    pairs = [(image, mask) for first, image in images for second, mask in masks if first == second]
    if not pairs and len(images) == len(masks) == 1:
        return [(images[0][1], masks[0][1])]
    return pairs


def _beginning(name: str, words: tuple[str, ...]) -> str | None:
    """What stands before the word at the end of a folder's name: 'DUTS-TE-Image' -> 'dutste'; None for other names."""
    parts = [part for part in re.split(r"[^a-z0-9]+", name.lower()) if part]
    for take in range(len(parts), 0, -1):  # 'ground_truth_mask' before 'mask'
        if "".join(parts[-take:]) in words:
            return "".join(parts[:-take])
    return None


def _side_by_side(root: Path) -> bool:
    kinds: dict[str, set[str]] = {}
    for path in root.iterdir():
        if _is_picture(path):
            kinds.setdefault(path.stem, set()).add(path.suffix.lower())
    return any(".png" in found and not found.isdisjoint(PHOTO_SUFFIXES) for found in kinds.values())


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


# ------------------------------------------------------------------------------------------- reading masks


def _dataset(root: Path, images: dict[str, Path], masks: dict[str, Path], layout: str) -> Dataset:
    zero_one = _holds_zero_one(masks)
    cache = MaskCache()
    cases = tuple(_case(stem, images.get(stem), masks[stem], zero_one, cache) for stem in sorted(masks))
    notes = ("masks hold 0 and 1: taken as background and object",) if zero_one else ()
    return Dataset(name=root.resolve().name, layout=layout, cases=cases, notes=notes)


def _case(stem: str, image: Path | None, mask: Path, zero_one: bool, cache: MaskCache) -> Case:
    def source() -> Path:
        if image is None:
            raise DatasetError(f"{stem} has a mask only; give the folder that holds its image too")
        return image

    def grey() -> Bytes:
        return read_grey(mask, zero_one)[None]

    def full() -> Bool:
        return cache.get(stem, lambda: grey() > OBJECT_ABOVE)

    def network(height: int, width: int) -> Bytes:
        return dsb2018.resize_masks(full().astype(np.uint8) * np.uint8(255), "raw", (height, width))

    return Case(id=stem, source=source, full_target=full, network_target=network, grey_target=grey)


def read_grey(path: Path, zero_one: bool = False) -> Bytes:
    """(H, W) uint8 0..255. DatasetError for colour, for more than 8 bits, and for 0/1 among masks of 0..255."""
    mask = read_mask(path)
    top = int(mask.max(initial=0))
    if mask.dtype != np.uint8:
        raise DatasetError(f"mask {path} has {8 * mask.itemsize} bits a pixel; store it as an 8-bit grey PNG, 0..255")
    if zero_one:
        if top > 1:
            raise DatasetError(
                f"mask {path} goes up to {top} while the others hold only 0 and 1; make all masks 0..255"
            )
        return np.asarray(mask * np.uint8(255), np.uint8)
    if top == 1:
        raise DatasetError(f"mask {path} holds only 0 and 1, but masks are 0..255 here; multiply it by 255")
    return np.asarray(mask, np.uint8)


def _holds_zero_one(masks: dict[str, Path]) -> bool:
    """Whether a sample of the masks holds no value above 1, and not only empty ones."""
    paths = [masks[stem] for stem in sorted(masks)]
    top = max((int(read_mask(path).max(initial=0)) for path in paths[:: max(1, len(paths) // _SAMPLE)]), default=0)
    return top == 1
