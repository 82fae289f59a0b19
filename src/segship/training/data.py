"""Batches for UNet++ training: a pure function of (seed, epoch, place in the epoch), made ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segship.datasets.dsb2018 import Case, prepared_image, prepared_masks, read_image, read_masks
from segship.errors import DatasetError
from segship.families.unetplusplus_recipe import BGR_IMAGENET, DEFAULT_SIZE, Choices, Shape, build_recipe
from segship.inference.preprocess import apply_step
from segship.manifest import Normalize, Resize, Step
from segship.training import augment

Augmentation = Literal["upstream", "strong", "none"]
Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
Made = TypeVar("Made")
CACHE_BYTES = 2 * 2**30  # decoded images kept in memory; the rest is read again each epoch


@cache
def normalisation(channels: int) -> tuple[Step, ...]:
    """The steps after the resize, as the manifest of a network trained here will say them (bgr-imagenet-div255)."""
    shape = Shape(architecture="NestedUNet", deep_supervision=False, channels=channels, classes=1)
    choices = Choices(upsample="bilinear", input=BGR_IMAGENET, size=DEFAULT_SIZE, found_in={}, config={}, warnings=())
    recipe = build_recipe("training", shape, choices, None, {}, parameters=1)
    return tuple(step for step in recipe.preprocess if not isinstance(step, Resize))


def network_input(image: NDArray[np.uint8], steps: Sequence[Step]) -> NDArray[np.float32]:
    """(H, W, 3) uint8 BGR to (C, H, W) float32, about ±0.01, by the steps of ``normalisation``.

    One channel: the image's grey (that of a grey reading, whose three channels are equal, is that reading).
    """
    array: NDArray[Any] = image
    if isinstance(steps[0], Normalize) and len(steps[0].subtract) == 1:
        array = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))[..., None]
    for step in steps:
        array = apply_step(array, step)
    return np.ascontiguousarray(array.transpose(2, 0, 1), np.float32)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The cases of one side of a split and how a sample is made of each."""

    cases: Sequence[Case]
    size_hw: tuple[int, int]
    channels: int = 3
    augmentation: Augmentation = "none"
    hard_targets: bool = False
    seed: int = 41
    cache: dict[int, Arrays] = field(default_factory=dict, repr=False, compare=False)

    def arrays(self, index: int) -> Arrays:
        """Image (H, W, 3) and masks (K, H, W), uint8: at the stored size for ``strong``, else at network size."""
        found = self.cache.get(index)
        if found is None:
            case = self.cases[index]
            grey = self.channels == 1
            if self.augmentation == "strong":
                found = read_image(case, grey=grey), read_masks(case)
                if found[0].shape[:2] != found[1].shape[1:]:
                    raise DatasetError(f"image and masks of case {case.id} differ in size; make them equal")
            else:
                found = prepared_image(case, self.size_hw, grey=grey), prepared_masks(case, self.size_hw)
            if sum(image.nbytes + masks.nbytes for image, masks in list(self.cache.values())) < CACHE_BYTES:
                self.cache[index] = found
        return found

    def sample(self, epoch: int, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Network input (C, h, w) and target (K, h, w), both float32."""
        image, masks = self.arrays(index)
        random = np.random.default_rng([self.seed, epoch, index])
        if self.augmentation == "strong":
            image, target = augment.strong(image, masks, self.size_hw, random)
        elif self.augmentation == "upstream":
            image, target = augment.upstream(image, masks, random)
        else:
            target = masks.astype(np.float32) / np.float32(255)
        if self.hard_targets:
            target = (target > 0.5).astype(np.float32)
        return network_input(image, normalisation(self.channels)), target


def training_order(seed: int, epoch: int, count: int, batch: int) -> list[NDArray[np.int64]]:
    """Indices of each full batch of one epoch; the incomplete last one is dropped, as upstream does."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return [order[start : start + batch] for start in range(0, count - batch + 1, batch)]


def validation_order(count: int, batch: int) -> list[NDArray[np.int64]]:
    """Indices of each batch in the split's order; the last one may be smaller."""
    return [np.arange(start, min(start + batch, count)) for start in range(0, count, batch)]


def batches(
    samples: Samples, order: Sequence[NDArray[np.int64]], *, epoch: int = 0, workers: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """(input (N, C, h, w), target (N, K, h, w)) float32 for each entry of ``order``, in that order.

    ``workers`` threads work ahead (OpenCV releases the interpreter lock); 0 makes each batch when asked for.
    """

    def make(indices: NDArray[np.int64]) -> Pair:
        # numpy only: a torch operation here would start a second team of threads beside the network's
        pairs = [samples.sample(epoch, int(index)) for index in indices]
        return np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])

    for inputs, targets in ahead(make, order, workers):
        yield torch.from_numpy(inputs).contiguous(memory_format=torch.channels_last), torch.from_numpy(targets)


def ahead(
    make: Callable[[NDArray[np.int64]], Made], order: Sequence[NDArray[np.int64]], workers: int
) -> Iterator[Made]:
    """``make`` of each entry of ``order``, in that order, by ``workers`` threads that stay ahead; 0 makes it when asked."""
    if workers <= 0:
        yield from map(make, order)
        return
    waiting: deque[Future[Made]] = deque()
    remaining = iter(order)
    with ThreadPoolExecutor(workers, thread_name_prefix="samples") as pool:
        try:
            for indices in remaining:
                waiting.append(pool.submit(make, indices))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
