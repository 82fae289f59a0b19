"""Prepared KiTS19 cases for training: which there are, and batches as a function of (seed, epoch, place)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segship.datasets.kits19 import Files, evaluation_ids, prepared_files
from segship.errors import DatasetError, UsageError
from segship.training.data import ahead
from segship.training.mlperf_items import Boxes, foreground_boxes, make_item
from segship.training.mlperf_recipe import item_seeds

Item = tuple[NDArray[np.float32], NDArray[np.uint8]]
SYNTHETIC_ITEMS, SYNTHETIC_VOLUMES = 64, 32


@dataclass(frozen=True, kw_only=True)
class Case:
    """``case_XXXXX_x.npy`` float32 and ``case_XXXXX_y.npy`` uint8, both (1, D, H, W)."""

    id: str
    image: Path
    label: Path
    shape: tuple[int, ...]

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Image and label mapped from the disk: what is not used is not read. DatasetError where they do not fit."""
        return mapped(self.image), mapped(self.label)


def mapped(path: Path) -> NDArray[Any]:
    """A .npy file as a read-only array on the disk. DatasetError for a broken one."""
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path} cannot be read ({error}); prepare the case again") from error
    return found


def find_cases(folder: Path) -> list[Case]:
    """Every prepared case of ``folder`` by its name. DatasetError for none, a missing partner, or unlike shapes; UsageError
    where there is no such folder."""
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}; prepared cases are written by: segship prepare kits19 SOURCE {folder}"
        )
    listed = prepared_files(folder)
    if not listed:
        raise DatasetError(
            f"{folder} has no prepared cases (case_00000_x.npy …); write them with: segship prepare kits19 SOURCE {folder}"
        )
    return [_case(files) for files in listed]


def split_cases(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """(training, evaluation): MLPerf's 42 cases are never trained on."""
    held_out = set(evaluation_ids([case.id for case in cases]))
    return [case for case in cases if case.id not in held_out], [case for case in cases if case.id in held_out]


def _case(files: Files) -> Case:
    if files.image is None or files.labels is None:
        lacking = "image case_…_x.npy" if files.image is None else "segmentation case_…_y.npy"
        raise DatasetError(f"{files.id} has no {lacking.replace('case_…', files.id)}; prepare the case again")
    x, y = mapped(files.image), mapped(files.labels)
    if x.shape != y.shape or x.ndim != 4 or x.shape[0] != 1:
        raise DatasetError(
            f"{files.id}: image {x.shape} and segmentation {y.shape}; both must be the same (1, D, H, W)"
        )
    return Case(id=files.id, image=files.image, label=files.labels, shape=x.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Items:
    """Training items of ``cases``. Boxes of the foreground are found once a case and kept."""

    cases: Sequence[Case]
    patch: tuple[int, ...]
    oversampling: float
    seed: int
    boxes: dict[int, Boxes] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.cases)

    def item(self, epoch: int, index: int) -> Item:
        """Image float32 and label uint8 (1, *patch): a function of (seed, epoch, index). DatasetError for NaN voxels."""
        case = self.cases[index]
        image, label = case.arrays()
        if index not in self.boxes:
            self.boxes[index] = foreground_boxes(np.asarray(label[0]))
        first, second = item_seeds(self.seed, epoch, index)
        x, y = make_item(
            image,
            label,
            self.boxes[index],
            patch=self.patch,
            oversampling=self.oversampling,
            python=random.Random(first),
            numeric=np.random.RandomState(second),
        )
        if not np.isfinite(x).all():
            raise DatasetError(f"{case.image} holds NaN or infinite voxels; prepare the case again from a sound file")
        return x, y


@dataclass(frozen=True, kw_only=True)
class SyntheticItems:
    """64 items of 32 random volumes with labels 0 and 1, as the reference's synthetic loader: for measuring only."""

    patch: tuple[int, ...]
    seed: int
    volumes: dict[int, Item] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return SYNTHETIC_ITEMS

    def item(self, epoch: int, index: int) -> Item:
        place = index % SYNTHETIC_VOLUMES
        if place not in self.volumes:
            draw = np.random.default_rng([self.seed, place])
            shape = (1, *self.patch)
            self.volumes[place] = draw.random(shape, np.float32), draw.integers(0, 2, shape, np.uint8)
        return self.volumes[place]


def batches(
    items: Items | SyntheticItems, order: Sequence[NDArray[np.int64]], *, epoch: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(image float32, label uint8), both (N, 1, *patch), for each entry of ``order``; ``workers`` threads work ahead."""

    def make(indices: NDArray[np.int64]) -> Item:
        made = [items.item(epoch, int(index)) for index in indices]
        return np.stack([pair[0] for pair in made]), np.stack([pair[1] for pair in made])

    for image, label in ahead(make, order, workers):
        yield torch.from_numpy(image), torch.from_numpy(label)


def shares(order: NDArray[np.int64], batch: int, rank: int, world: int) -> list[NDArray[np.int64]]:
    """What process ``rank`` trains on: its part of every full global batch of ``batch`` × ``world`` cases."""
    whole = batch * world
    return [order[start : start + whole][rank::world] for start in range(0, len(order) - whole + 1, whole)]
