"""`segship prepare cityscapes SRC OUT`: the pictures in place, and label files of train ids beside them.

SRC holds leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip as downloaded, or what they unpack to, or is the folder
that is to be completed (SRC = OUT). Pictures out of archives are written, unpacked ones linked (copied where the system
has no links). Train ids are mapped from the label ids; createTrainIdLabelImgs of cityscapesScripts draws the same polygons
in the same order, so its files are equal. Labels of the test split are not published and none are written.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from segship.datasets.cityscapes import COUNTS, HINT, IMAGE_SUFFIX, IMAGES, LABEL_IDS, LABELS, TRAIN_IDS
from segship.datasets.cityscapes_labels import HIGHEST_ID, to_train_ids
from segship.datasets.dsb2018_splits import some
from segship.errors import DatasetError, DatasetMissing, OutputError

Progress = Callable[[int, int, str], None]
FILE_LIMIT_BYTES = 256 << 20  # one picture; real ones are below 3 MiB
_ENDS = "|".join(re.escape(end) for end in (IMAGE_SUFFIX, LABEL_IDS, TRAIN_IDS))
_NAME = re.compile(
    rf"(?:.*/)?(?P<kind>{IMAGES}|{LABELS})/(?P<split>train|val|test)/(?P<city>[^/]+)/(?P<base>[^/]+?)(?P<end>{_ENDS})"
)


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file of the data set, in a folder or in an archive."""

    path: Path | None
    size: int
    read: Callable[[], bytes] = field(repr=False, compare=False)


@dataclass(kw_only=True)
class _Picture:
    """What there is of one picture; ``key`` is split/city/name."""

    key: str
    image: _File | None = None
    label_ids: _File | None = None
    train_ids: _File | None = None

    @property
    def split(self) -> str:
        return self.key.split("/")[0]


@dataclass(frozen=True, kw_only=True)
class CityscapesPreparation:
    """What ``prepare`` did."""

    out: str
    counts: dict[str, int]
    """split -> pictures there now"""
    labels_written: int
    pictures_written: int
    complete: bool
    """all 2975, 500 and 1525 pictures"""

    def __str__(self) -> str:
        parts = [f"{name} {found} of {COUNTS[name]}" for name, found in self.counts.items()]
        lacks = [name for name, found in self.counts.items() if found != COUNTS[name]]
        state = "complete" if self.complete else f"not complete: {', '.join(lacks)}"
        return (
            f"{', '.join(parts)} pictures in {self.out}: {state}\n"
            f"{self.labels_written} label files of train ids and {self.pictures_written} pictures written now"
        )


def prepare(source: Path | str, out: Path | str, *, progress: Progress | None = None) -> CityscapesPreparation:
    """Complete ``out`` as a tree of pictures and train ids. Goes on where an interrupted call stopped.

    Pairs are checked before anything is written: DatasetError names pictures without labels and labels without picture.
    A file that cannot be read does not stop the others; DatasetError lists them at the end. ``progress(done, total, id)``.
    """
    root, target = Path(source), Path(out)
    if not root.exists():
        raise DatasetMissing(
            f"there is nothing at {root}; give the folder of leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip"
        )
    with ExitStack() as archives:
        found: dict[str, _Picture] = {}
        for name, file in _files(root, archives):
            _note(found, name, file)
        _check_pairs(root, found)
        failed: list[str] = []
        labels = pictures = 0
        for done, key in enumerate(sorted(found)):
            one = found[key]
            try:
                pictures += _place_picture(one, target)
                labels += _place_label(one, target)
            except DatasetError as error:
                failed.append(str(error))
            if progress is not None:
                progress(done + 1, len(found), key.rsplit("/", 1)[-1])
    if failed:
        raise DatasetError(f"{len(failed)} of {len(found)} pictures were not prepared: " + "; ".join(failed[:5]))
    counts = {name: sum(one.split == name for one in found.values()) for name in COUNTS}
    return CityscapesPreparation(
        out=str(target), counts=counts, labels_written=labels, pictures_written=pictures, complete=counts == COUNTS
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- what is there


def _files(root: Path, archives: ExitStack) -> Iterator[tuple[str, _File]]:
    """(path as in the data set, file) of everything that may belong to it."""
    zips = [root] if root.is_file() else sorted(root.glob("*.zip"))
    for path in zips:
        try:
            archive = archives.enter_context(zipfile.ZipFile(path))
        except (zipfile.BadZipFile, OSError) as error:
            raise DatasetError(f"{path} is no zip that can be read ({error}); download it again") from error
        for entry in archive.infolist():
            if not entry.is_dir():
                yield entry.filename, _File(path=None, size=entry.file_size, read=_reader_of(archive, entry))
    if root.is_dir():
        for name in (IMAGES, LABELS):
            for folder in (root / name, *sorted(root.glob(f"*/{name}"))):
                for path in sorted(folder.rglob("*.png")) if folder.is_dir() else ():
                    if not path.is_dir():
                        yield path.relative_to(root).as_posix(), _unpacked(path)


def _unpacked(path: Path) -> _File:
    try:
        return _File(path=path, size=path.stat().st_size, read=path.read_bytes)
    except OSError as error:  # a link to nothing
        raise DatasetError(f"{path} cannot be read ({error.strerror}); copy that file again") from error


def _reader_of(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[], bytes]:
    return lambda: archive.read(entry)


def _note(found: dict[str, _Picture], name: str, file: _File) -> None:
    match = _NAME.fullmatch(name)
    if match is None or ".." in name.split("/") or match["base"].startswith("."):
        return
    if (match["kind"] == IMAGES) != (match["end"] == IMAGE_SUFFIX):
        return
    key = f"{match['split']}/{match['city']}/{match['base']}"
    one = found.setdefault(key, _Picture(key=key))
    where = {IMAGE_SUFFIX: "image", LABEL_IDS: "label_ids", TRAIN_IDS: "train_ids"}[match["end"]]
    known = getattr(one, where)
    if known is None or known.path is None:  # what is unpacked already comes before the archive
        setattr(one, where, file)


def _check_pairs(root: Path, found: dict[str, _Picture]) -> None:
    if not found:
        raise DatasetError(f"{root} holds no picture of Cityscapes, unpacked or in a zip; {HINT}")
    scored = [one for one in found.values() if one.split != "test"]
    bare = sorted(
        one.key for one in scored if one.image is not None and one.label_ids is None and one.train_ids is None
    )
    alone = sorted(one.key for one in found.values() if one.image is None)
    if bare and len(bare) == len(scored):
        raise DatasetError(f"{root} has no label files; put gtFine_trainvaltest.zip beside, or unpack it there")
    if alone and len(alone) == len(found):
        raise DatasetError(f"{root} has no pictures; put leftImg8bit_trainvaltest.zip beside, or unpack it there")
    if bare:
        raise DatasetError(
            f"pictures without a label file: {len(bare)} of {len(scored)} ({some(bare)}); get gtFine again"
        )
    if alone and any(one.split != "test" for one in found.values() if one.image is None):
        raise DatasetError(
            f"label files without a picture: {len(alone)} of {len(found)} ({some(alone)}); get leftImg8bit again"
        )
    for key in alone:  # labels of the test split say nothing, so their pictures may be left away
        del found[key]


# ------------------------------------------------------------------------------------------- what is written


def _place_picture(one: _Picture, out: Path) -> bool:
    """Whether the picture was written now."""
    assert one.image is not None
    place = out / IMAGES / f"{one.key}{IMAGE_SUFFIX}"
    if place.is_file() and place.stat().st_size == one.image.size:
        return False
    if one.image.path is None:
        _write(place, _bytes(one.image, one.key))
        return True
    temporary = place.with_name(f".{place.name}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            os.link(one.image.path, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(one.image.path, temporary)
        os.replace(temporary, place)
    except OSError as error:
        raise OutputError(f"{place} cannot be written ({error}); choose a writable folder with space") from error
    return True


def _place_label(one: _Picture, out: Path) -> bool:
    """Whether the label file was written now."""
    place = out / LABELS / f"{one.key}{TRAIN_IDS}"
    if one.split == "test" or (place.is_file() and place.stat().st_size):
        return False
    assert one.image is not None
    if one.train_ids is not None:
        data = _bytes(one.train_ids, one.key)
        size = _decoded(data, f"{one.key}{TRAIN_IDS}").shape
    else:
        assert one.label_ids is not None
        ids = _decoded(_bytes(one.label_ids, one.key), f"{one.key}{LABEL_IDS}")
        top = int(ids.max(initial=0))
        if HIGHEST_ID < top < 255:
            raise DatasetError(f"{one.key}{LABEL_IDS} holds the label id {top}; Cityscapes' go up to {HIGHEST_ID}")
        size = ids.shape
        data = cv2.imencode(".png", to_train_ids()[ids])[1].tobytes()
    picture = _png_size(_head(one.image, one.key))
    if picture is None:
        raise DatasetError(f"{one.key}{IMAGE_SUFFIX} is no PNG picture; copy that file again")
    if picture != size:
        raise DatasetError(f"{one.key}: the picture is {picture} pixels and its label {size}; copy both again")
    _write(place, data)
    return True


def _head(file: _File, key: str) -> bytes:
    if file.path is None:
        return _bytes(file, key)[:24]
    try:
        with file.path.open("rb") as stream:
            return stream.read(24)
    except OSError as error:
        raise DatasetError(f"{file.path} cannot be read ({error}); copy that file again") from error


def _png_size(head: bytes) -> tuple[int, int] | None:
    """(height, width) by a PNG's header; None where it is none."""
    if len(head) < 24 or not head.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    width, height = struct.unpack(">II", head[16:24])
    return int(height), int(width)


def _bytes(file: _File, key: str) -> bytes:
    if file.size > FILE_LIMIT_BYTES:
        raise DatasetError(f"{key} takes more than {FILE_LIMIT_BYTES >> 20} MiB; that is no file of Cityscapes")
    try:
        return file.read()
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{key} cannot be read ({error}); download the archive again") from error


def _decoded(data: bytes, name: str) -> np.ndarray:
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error:
        found = None
    if found is None or found.ndim != 2 or found.dtype != np.uint8:
        raise DatasetError(f"{name} is no grey picture of 8 bits; download the archive again")
    return np.asarray(found)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}); choose a writable folder with space") from error
