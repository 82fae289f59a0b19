"""What every data set is once it is opened: named cases with an image and a mask, read when they are needed."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.datasets.dsb2018_splits import ids_hash, some
from segship.datasets.label_files import VOLUME_ENDINGS, LabelVolume
from segship.errors import DatasetError, InputError
from segship.inference.volumes import read_labels
from segship.manifest import VolumeInput

Bool = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

MASK_CACHE_BYTES = 128 << 20
"""decoded masks of a data set that stay in memory, one bit a pixel; older ones are read again"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image and its ground truth. Nothing is read before a method is called; each raises DatasetError."""

    id: str
    source: Callable[[], bytes | Path | list[Path]] = field(repr=False, compare=False)
    full_target: Callable[[], Bool] = field(repr=False, compare=False)
    network_target: Callable[[int, int], Bytes] = field(repr=False, compare=False)
    grey_target: Callable[[], Bytes] | None = field(default=None, repr=False, compare=False)
    label_volume: Callable[[bool], LabelVolume] | None = field(default=None, repr=False, compare=False)
    label_file: Path | None = field(default=None, repr=False, compare=False)

    def read_image(self) -> bytes | Path | list[Path]:
        """The image as a predictor takes it: a path, several of them (one a channel), or the file's bytes where it lies
        in an archive."""
        return self.source()

    def read_labels(self, *, reorient: bool = False) -> LabelVolume:
        """Label ids (z, y, x); ``reorient``: with the axes turned to RAS. Layouts of masks: 1 for the first class, 2 for
        the second …, the later on top where they overlap."""
        if self.label_volume is not None:
            return self.label_volume(reorient)
        masks = self.target()
        labels = np.zeros(masks.shape[1:], np.uint8)
        for number, mask in enumerate(masks, start=1):
            labels[mask] = number
        return LabelVolume(labels=labels[None], spacing=(999.0, 1.0, 1.0))

    def labels_for(self, spec: VolumeInput) -> NDArray[np.integer]:
        """Label ids (z, y, x) with the axes in the order and directions that ``spec``'s reader gives the image's."""
        if self.label_file is None or not (spec.reader == "nibabel-stored" or spec.orientation is not None):
            return self.read_labels(reorient=spec.reader.endswith("-reorient")).labels
        try:
            return read_labels(self.label_file, spec)
        except InputError as error:
            raise DatasetError(f"case {self.id}: {error}") from error

    def target(self) -> Bool:
        """(K, H, W) bool at the image's own size."""
        return self.full_target()

    def target_network(self, height: int, width: int) -> Bytes:
        """(K, height, width) uint8 0..255 on the network's grid; soft at borders where it was reduced."""
        return self.network_target(height, width)

    def target_grey(self) -> Bytes:
        """(K, H, W) uint8 0..255 at the image's own size: the masks' own greys where the layout has them, else 0/255."""
        if self.grey_target is not None:
            return self.grey_target()
        return self.target().astype(np.uint8) * np.uint8(255)

    def decoded(self) -> NDArray[np.generic]:
        """The stored pixels, (H, W) or (H, W, C), bit depth, alpha and orientation as in the file."""
        data = self.read_bytes()
        try:
            array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
        except cv2.error:
            array = None
        if array is None:
            raise DatasetError(f"image {self.id} is no picture that OpenCV can decode; convert it to PNG or TIFF")
        return np.asarray(array)

    def read_bytes(self) -> bytes:
        """The image file as stored; of several, one after the other."""
        source = self.read_image()
        files = source if isinstance(source, list) else [source]
        try:
            return b"".join(file if isinstance(file, bytes) else file.read_bytes() for file in files)
        except OSError as error:
            raise DatasetError(f"image {self.id} cannot be read: {error}; copy that file again") from error

    def pixel_hash(self) -> str:
        """sha256 of ``decoded()`` with its shape and type: equal pictures in two formats are equal. Of a volume, or of
        channels in several files: of what is stored in each, compressed or not."""
        source = self.read_image()
        files = source if isinstance(source, list) else [source]
        if all(isinstance(file, Path) for file in files) and (
            len(files) > 1 or str(files[0]).lower().endswith((*VOLUME_ENDINGS, ".npy"))
        ):
            return _hash_files(self.id, [file for file in files if isinstance(file, Path)])
        return _hash_arrays(self.decoded()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The cases of one data set, or of one side of a split, in the split's order."""

    name: str
    layout: str
    cases: tuple[Case, ...]
    split: str | None = None
    """None: every case"""
    notes: tuple[str, ...] = ()
    """what a reader of the numbers has to know: masks taken as 0/1, listed ids that are absent …"""

    @property
    def ids(self) -> list[str]:
        return [case.id for case in self.cases]

    @property
    def split_sha256(self) -> str:
        """Hash of the sorted ids, to stand beside every number."""
        return ids_hash(self.ids)

    @cached_property
    def sha256(self) -> str:
        """Hash over sorted ids, decoded images and masks, read one case at a time.

        A file that is no picture counts with its bytes: it is part of the data set, a prediction of it will fail.
        """
        total = hashlib.sha256()
        for case in sorted(self.cases, key=lambda c: c.id):
            total.update(f"{case.id}\n".encode())
            try:
                total.update(case.pixel_hash().encode())
            except DatasetError:
                total.update(hashlib.sha256(case.read_bytes()).digest())
            total.update(_hash_arrays(_truth(case, self.layout)).digest())
        return total.hexdigest()

    def select(self, ids: Sequence[str], split: str | None = None) -> Dataset:
        """The cases of ``ids`` in that order; DatasetError for one that is not there."""
        by_id = {case.id: case for case in self.cases}
        absent = [i for i in ids if i not in by_id]
        if absent:
            raise DatasetError(
                f"data set {self.name} has no case {some(absent)}; check the list against its file names"
            )
        return replace(self, cases=tuple(by_id[i] for i in ids), split=split or self.split)


def divide_by_pixels(dataset: Dataset, share: float = 0.2) -> tuple[Dataset, Dataset]:
    """Two parts by a hash of each decoded image: (calibration, evaluation), about ``share`` of the cases in the second.

    A picture's side depends on its pixels alone: it stays there on any machine, under any file name, in any
    other data set, and two copies of one picture never stand on both sides. (In a set so small that one side
    would be empty, the picture with the smallest or largest hash changes over.)
    """
    hashes = {case.id: case.pixel_hash() for case in dataset.cases}
    distinct = sorted(set(hashes.values()))
    if len(distinct) < 2:
        raise DatasetError(f"data set {dataset.name} has fewer than 2 different images; it cannot be divided")
    held_out = {value for value in distinct if int(value[:8], 16) < share * 2**32}
    held_out = (held_out or {distinct[0]}) - ({distinct[-1]} if len(held_out) == len(distinct) else set())
    evaluation = [i for i in dataset.ids if hashes[i] in held_out]
    calibration = [i for i in dataset.ids if hashes[i] not in held_out]
    return dataset.select(calibration, "pixel-hash, rest"), dataset.select(evaluation, "pixel-hash")


class MaskCache:
    """The masks read last, packed to one bit a pixel and kept up to a number of bytes. Safe among threads."""

    def __init__(self, limit_bytes: int = MASK_CACHE_BYTES) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._lock = Lock()
        self._packed: OrderedDict[str, tuple[Bytes, tuple[int, ...]]] = OrderedDict()

    def get(self, key: str, read: Callable[[], Bool]) -> Bool:
        """(K, H, W) bool: from memory, else by ``read``."""
        with self._lock:
            found = self._packed.get(key)
            if found is not None:
                self._packed.move_to_end(key)
        if found is not None:
            packed, shape = found
            return np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)
        mask = read()
        packed = np.packbits(mask)
        with self._lock:
            if key not in self._packed and packed.nbytes <= self._limit:
                self._packed[key] = (packed, mask.shape)
                self._held += packed.nbytes
            while self._held > self._limit:
                self._held -= self._packed.popitem(last=False)[1][0].nbytes
        return mask


def _truth(case: Case, layout: str) -> NDArray[np.generic]:
    """What a data set's hash takes of a case's ground truth."""
    if case.label_volume is not None:
        return case.read_labels().labels
    # greys are part of a salient-object set; the others' masks are decisions
    return case.target_grey() if layout == "sod" else np.packbits(case.target())


def _hash_files(case: str, files: Sequence[Path]) -> str:
    """Of the unpacked bytes of each file."""
    total = hashlib.sha256()
    for path in files:
        try:
            with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    total.update(block)
        except (OSError, EOFError, zlib.error) as error:
            raise DatasetError(f"image {path} of case {case} cannot be read ({error}); copy that file again") from error
    return total.hexdigest()


def _hash_arrays(*arrays: NDArray[np.generic]) -> hashlib._Hash:
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.shape} {array.dtype.str}\n".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total
