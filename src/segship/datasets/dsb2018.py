"""The DSB2018 nuclei data set: raw archive, prepared folders, preparation, named splits.

Two layouts are read, each from a folder or (the raw one) from the zip as downloaded:

    raw        <id>/images/<id>.png + <id>/masks/*.png      one 0/255 file a nucleus
    prepared   images/<id>.png + masks/<class 0..K-1>/<id>.png   what 4uiiurz1/pytorch-nested-unet trains on

Images are what OpenCV's default reader gives: (H, W, 3) uint8, BGR, alpha dropped. Masks are (K, H, W)
uint8, 0..255; a pixel belongs to a class where the value is at least 128.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.datasets.dsb2018_splits import SPLITS, Split, facts, ids_hash, read_ids, refuse_overlap, some, split
from segship.errors import DatasetError, DatasetMissing, OutputError

__all__ = [
    "SPLITS", "Case", "Dataset", "Preparation", "Split", "facts", "ids_hash", "open_dataset", "prepare",
    "prepared_cases", "prepared_hash", "prepared_image", "prepared_masks", "read_ids", "read_image", "read_masks",
    "refuse_overlap", "resize_image", "resize_masks", "split",
]  # fmt: skip

Bytes = NDArray[np.uint8]
Layout = Literal["raw", "prepared"]
FILE_LIMIT_BYTES = 512 << 20  # one image or mask file; real ones are below 2 MiB
RAW_HINT = "expected <id>/images/<id>.png and <id>/masks/*.png for each case (Kaggle's stage1_train, zip or folder)"
PREPARED_HINT = (
    "expected images/<id>{image} and masks/<class>/<id>{mask} (written by `segship prepare dsb2018 SRC OUT`)"
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image with its masks, not yet read. ``mask_names`` holds the files of each class.

    ``image_path`` is None inside a zip; ``read(name)`` gives the bytes either way.
    """

    id: str
    layout: Layout
    image_name: str
    mask_names: tuple[tuple[str, ...], ...]
    image_path: Path | None
    read: Callable[[str], bytes] = field(repr=False, compare=False)

    def image_bytes(self) -> bytes:
        """The image file as stored."""
        return _read(self, self.image_name)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All cases of one folder or archive, sorted by id."""

    root: Path
    layout: Layout
    cases: tuple[Case, ...]

    @property
    def ids(self) -> list[str]:
        return [case.id for case in self.cases]

    def select(self, ids: Iterable[str]) -> list[Case]:
        """The cases of ``ids``, in that order; DatasetError for an id that is not there."""
        by_id = {case.id: case for case in self.cases}
        wanted = list(ids)
        absent = [i for i in wanted if i not in by_id]
        if absent:
            raise DatasetError(f"{self.root} has no case {some(absent)}; check the list of ids against the data set")
        return [by_id[i] for i in wanted]


def open_dataset(
    path: Path | str, *, image_suffix: str = ".png", mask_suffix: str = ".png", num_classes: int | None = None
) -> Dataset:
    """Find the cases under ``path`` (zip or folder, raw or prepared); file contents are read later.

    ``num_classes`` only matters for the prepared layout: None takes the class folders that are there.
    Raises DatasetError where the layout is neither, or a case lacks its image or its masks.
    """
    root = Path(path)
    if root.is_dir():
        if (root / "images").is_dir():
            return _open_prepared(root, image_suffix, mask_suffix, num_classes)
        return _raw_dataset(root, _folder_names(root), lambda name: _read_file(root / name), in_folder=True)
    if not root.is_file():
        raise DatasetMissing(f"there is no data set at {root}; {RAW_HINT}, or the prepared folder")
    try:
        archive = zipfile.ZipFile(root)
    except zipfile.BadZipFile as error:
        raise DatasetError(f"{root} is neither a folder nor a zip ({error}); {RAW_HINT}") from error
    return _raw_dataset(root, archive.namelist(), lambda name: _read_entry(archive, name), in_folder=False)


def read_image(case: Case, *, grey: bool = False) -> Bytes:
    """The image at its stored size: (H, W, 3) uint8, BGR, alpha dropped. ``grey``: three equal channels."""
    if grey:
        return np.asarray(cv2.cvtColor(_decode(case, case.image_name, cv2.IMREAD_GRAYSCALE), cv2.COLOR_GRAY2BGR))
    return _decode(case, case.image_name, cv2.IMREAD_COLOR)


def read_masks(case: Case) -> Bytes:
    """The masks at their stored size: (K, H, W) uint8. Raw: the union of all nuclei, 0 or 255."""
    planes = []
    for names in case.mask_names:
        files = [_decode(case, name, cv2.IMREAD_GRAYSCALE) for name in names]
        if len({file.shape for file in files}) > 1:
            raise DatasetError(f"the masks of case {case.id} differ in size; download or export that case again")
        for name, file in zip(names, files, strict=True):
            if file.max(initial=0) == 1:
                raise DatasetError(
                    f"mask {name} holds only 0 and 1, but masks are 0..255 here (divided by 255 they would "
                    "be empty targets and the IoU would stay 0); multiply them by 255"
                )
        if case.layout == "raw":
            union = np.zeros(files[0].shape, np.uint8)
            for file in files:
                union[file > 127] = 255
            planes.append(union)
        else:
            planes.append(files[0])
    if len({plane.shape for plane in planes}) > 1:
        raise DatasetError(f"the masks of case {case.id} differ in size between classes; make them equal")
    return np.stack(planes)


def prepared_image(case: Case, size_hw: tuple[int, int], *, grey: bool = False) -> Bytes:
    """The image at network size: (h, w, 3) uint8 BGR, OpenCV linear on uint8, aspect not kept."""
    return resize_image(read_image(case, grey=grey), size_hw)


def resize_image(image: Bytes, size_hw: tuple[int, int]) -> Bytes:
    """OpenCV linear resize of (H, W, 3) uint8 to ``size_hw``; an image of that size is returned as it is."""
    height, width = size_hw
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def prepared_masks(case: Case, size_hw: tuple[int, int]) -> Bytes:
    """The masks at network size: (K, h, w) uint8, soft at the borders for the raw layout."""
    return resize_masks(read_masks(case), case.layout, size_hw)


def resize_masks(masks: Bytes, layout: Layout, size_hw: tuple[int, int]) -> Bytes:
    """(K, H, W) uint8 masks at ``size_hw``.

    Raw: the float64 union is resized linearly and truncated to 8 bits, as upstream's preparation does.
    Prepared files of another size are resized by nearest neighbour, as upstream's loader does.
    """
    height, width = size_hw
    if layout == "raw":
        unions = [cv2.resize((m > 127).astype(np.float64), (width, height)) for m in masks]
        return np.stack([(union * 255).astype(np.uint8) for union in unions])
    if masks.shape[1:] == (height, width):
        return masks
    return np.stack([cv2.resize(m, (width, height), interpolation=cv2.INTER_NEAREST) for m in masks])


def prepared_cases(dataset: Dataset, size: int = 96) -> Iterator[tuple[str, Bytes, Bytes]]:
    """(id, image (size, size, 3) uint8 BGR, masks (K, size, size) uint8) of each case, sorted by id."""
    for case in dataset.cases:
        yield case.id, prepared_image(case, (size, size)), prepared_masks(case, (size, size))


def prepared_hash(dataset: Dataset, size: int = 96) -> tuple[str, str]:
    """sha256 of all prepared images and of all prepared masks: decoded arrays in C order, sorted ids.

    For the 664 cases at 96×96 these are `facts()["prepared_96"]`, with OpenCV 4.14.
    """
    images, masks = hashlib.sha256(), hashlib.sha256()
    for _, image, mask in prepared_cases(dataset, size):
        images.update(np.ascontiguousarray(image).tobytes())
        masks.update(np.ascontiguousarray(mask).tobytes())
    return images.hexdigest(), masks.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What ``prepare`` did. The hashes are those of ``prepared_hash`` over the files as written."""

    out: str
    size: int
    cases: int
    written: int
    sha256_images: str
    sha256_masks: str
    opencv: str
    as_published: bool | None
    """equal to the published hashes; None where there are none for this size and these cases"""

    def __str__(self) -> str:
        told = {
            True: "equal to the published set",
            False: "NOT the published set",
            None: "no published hash to compare",
        }
        return (
            f"{self.cases} cases at {self.size}x{self.size} in {self.out} ({self.written} written now)\n"
            f"images {self.sha256_images}\nmasks  {self.sha256_masks}\n{told[self.as_published]} (OpenCV {self.opencv})"
        )


def prepare(
    source: Path | str, out: Path | str, *, size: int = 96, progress: Callable[[int, int, str], None] | None = None
) -> Preparation:
    """Write upstream's layout: ``out``/images/<id>.png and ``out``/masks/0/<id>.png at ``size`` × ``size`` pixels.

    Goes on where an interrupted call stopped; each file is written whole or not at all. A case that cannot be
    read does not stop the others: DatasetError lists them at the end. ``progress(done, total, id)``.
    """
    dataset, root = open_dataset(source), Path(out)
    if dataset.layout != "raw":
        raise DatasetError(f"{source} is prepared already; {RAW_HINT}")
    _refuse_strangers(root, dataset.ids)
    images, masks = hashlib.sha256(), hashlib.sha256()
    written, failed = 0, []
    for done, case in enumerate(dataset.cases):
        paths = (root / "images" / f"{case.id}.png", root / "masks" / "0" / f"{case.id}.png")
        stored = _stored(paths, size)
        if stored is None:
            try:
                stored = prepared_image(case, (size, size)), prepared_masks(case, (size, size))[0]
            except DatasetError as error:
                failed.append(str(error))
                continue
            for path, array in zip(paths, stored, strict=True):
                _write_png(path, array)
            written += 1
        image, mask = stored
        images.update(image.tobytes())
        masks.update(mask.tobytes())
        if progress is not None:
            progress(done + 1, len(dataset.cases), case.id)
    if failed:
        raise DatasetError(f"{len(failed)} of {len(dataset.cases)} cases were not prepared: " + "; ".join(failed[:5]))
    published = facts()["prepared_96"] if size == 96 else {}
    known = size == 96 and ids_hash(dataset.ids) == facts()["stage1_train"]["sha256_ids"]
    found = (images.hexdigest(), masks.hexdigest())
    return Preparation(
        out=str(root),
        size=size,
        cases=len(dataset.cases),
        written=written,
        sha256_images=found[0],
        sha256_masks=found[1],
        opencv=cv2.__version__,
        as_published=found == (published["sha256_images"], published["sha256_masks"]) if known else None,
    )


# --- reading, the small parts -----------------------------------------------------------------------------


def _folder_names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in root.glob("*/*/*") if path.is_file()] + [
        path.relative_to(root).as_posix() for path in root.glob("stage1_train/*/*/*") if path.is_file()
    ]


def _raw_dataset(root: Path, names: Iterable[str], read: Callable[[str], bytes], *, in_folder: bool) -> Dataset:
    images: dict[str, list[str]] = {}
    masks: dict[str, list[str]] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        # entries may sit below one more folder (stage1_train/<id>/images/…)
        if len(parts) < 3 or name.endswith("/") or parts[-1].startswith("."):
            continue
        kind = {"images": images, "masks": masks}.get(parts[-2])
        if kind is not None:
            kind.setdefault(parts[-3], []).append(name)
    if not images and not masks:
        raise DatasetError(f"{root} holds no case; {RAW_HINT}")
    cases = []
    for case_id in sorted(images.keys() | masks.keys()):
        files = images.get(case_id, [])
        if len(files) != 1:
            raise DatasetError(f"case {case_id} of {root} has {len(files)} images instead of one; {RAW_HINT}")
        if case_id not in masks:
            raise DatasetError(f"case {case_id} of {root} has no masks; {RAW_HINT}")
        cases.append(
            Case(
                id=case_id,
                layout="raw",
                image_name=files[0],
                mask_names=(tuple(sorted(masks[case_id])),),
                image_path=root / files[0] if in_folder else None,
                read=read,
            )
        )
    return Dataset(root=root, layout="raw", cases=tuple(cases))


def _open_prepared(root: Path, image_suffix: str, mask_suffix: str, num_classes: int | None) -> Dataset:
    hint = PREPARED_HINT.format(image=image_suffix, mask=mask_suffix)
    ids = sorted(
        path.name.removesuffix(image_suffix)
        for path in (root / "images").iterdir()
        if path.name.endswith(image_suffix) and not path.name.startswith(".")
    )
    if not ids:
        raise DatasetError(f"{root / 'images'} holds no {image_suffix} file; {hint}")
    if num_classes is None:
        num_classes = 0
        while (root / "masks" / str(num_classes)).is_dir():
            num_classes += 1
    for k in range(max(num_classes, 1)):
        if not (root / "masks" / str(k)).is_dir():
            raise DatasetError(f"{root} has no folder masks/{k}; {hint}")
    cases = []
    for case_id in ids:
        masks = tuple((f"masks/{k}/{case_id}{mask_suffix}",) for k in range(num_classes))
        for (name,) in masks:
            if not (root / name).is_file():
                raise DatasetError(f"image {case_id}{image_suffix} has no mask {root / name}; {hint}")
        image_name = f"images/{case_id}{image_suffix}"
        cases.append(
            Case(
                id=case_id,
                layout="prepared",
                image_name=image_name,
                mask_names=masks,
                image_path=root / image_name,
                read=lambda name: (root / name).read_bytes(),
            )
        )
    return Dataset(root=root, layout="prepared", cases=tuple(cases))


def _read(case: Case, name: str) -> bytes:
    try:
        return case.read(name)
    except (OSError, KeyError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{name} (case {case.id}) cannot be read: {error}; copy that file again") from error


def _read_file(path: Path) -> bytes:
    if path.stat().st_size > FILE_LIMIT_BYTES:
        raise ValueError(f"it is larger than {FILE_LIMIT_BYTES >> 20} MiB")
    return path.read_bytes()


def _read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > FILE_LIMIT_BYTES:
        raise ValueError(f"it unpacks to more than {FILE_LIMIT_BYTES >> 20} MiB")
    return archive.read(name)


def _decode(case: Case, name: str, flags: int) -> Bytes:
    data = _read(case, name)
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise DatasetError(f"{name} (case {case.id}) cannot be decoded: {error}; copy that file again") from error
    if array is None:
        raise DatasetError(f"{name} (case {case.id}) is no image that OpenCV can decode; copy that file again")
    return np.asarray(array, np.uint8)


def _stored(paths: tuple[Path, Path], size: int) -> tuple[Bytes, Bytes] | None:
    """Image and mask that an earlier call wrote; None where one is missing, broken or of another size."""
    if not all(path.is_file() for path in paths):
        return None
    image, mask = cv2.imread(str(paths[0]), cv2.IMREAD_COLOR), cv2.imread(str(paths[1]), cv2.IMREAD_UNCHANGED)
    if image is None or mask is None or image.shape != (size, size, 3) or mask.shape != (size, size):
        return None
    return np.asarray(image, np.uint8), np.asarray(mask, np.uint8)


def _write_png(path: Path, array: Bytes) -> None:
    coded, data = cv2.imencode(".png", array)
    assert coded
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data.tobytes())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}); choose a writable folder with space") from error


def _refuse_strangers(root: Path, ids: Sequence[str]) -> None:
    folder = root / "images"
    strangers = sorted({path.stem for path in folder.glob("*.png")} - set(ids)) if folder.is_dir() else []
    if strangers:
        raise DatasetError(f"{folder} holds images of another data set ({some(strangers)}); choose an empty folder")
