"""Calibration inputs: pictures through the package's own preprocessing, never through another.

What is taken: a folder (searched for pictures), one picture, a text file with a path on each line, an .npz of
decoded pictures, or a data set that segship knows (its images, not its masks). The decoded pixels are hashed,
and pictures that also stand in the evaluation data are refused: calibrating on them would flatter the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segship.convert.quantize import spread_evenly
from segship.datasets import Dataset, default_split, open_dataset, recognise_layout
from segship.errors import DatasetError, InputError, UsageError
from segship.inference.images import find_inputs, pixel_sha256, read_image
from segship.inference.preprocess import prepare
from segship.manifest import Recipe

ENOUGH = 64
DEFAULT_SUBSET = 128
CALIBRATION_WINDOW = (512, 1024)
"""(height, width), at most, of what a picture of a network of any size is calibrated on"""
_SPREAD = (0.6180339887, 0.7548776662)
"""multiples of these, without their whole part, spread evenly"""
HELD_OUT = 16
"""pictures kept out of a calibration folder to measure on, at most"""
MAX_LIST_BYTES = 64 << 20
MEMORY_BYTES = 2 << 30
"""network inputs held at once: of large pictures fewer than asked for are taken, but not fewer than ENOUGH"""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Network inputs to calibrate on, and what they were made from."""

    inputs: np.ndarray
    """(N, C, H, W) float32, as the network takes them"""
    names: tuple[str, ...]
    pixel_sha256: tuple[str, ...]
    """of each picture's decoded pixels"""
    input_sha256: tuple[str, ...]
    """of each network input: the same for a picture and its copy at the network's size"""
    available: int
    warnings: tuple[str, ...] = ()
    held_out: tuple[tuple[str, Any], ...] = ()
    """(name, picture) of those that were kept out to measure on; never calibrated on"""

    @property
    def sha256(self) -> str:
        """Identity of the whole set: hash over the sorted pixel hashes."""
        return hashlib.sha256("\n".join(sorted(self.pixel_sha256)).encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """For provenance."""
        return {
            "images": len(self.names),
            "available": self.available,
            "sha256": self.sha256,
            "pixel_sha256": sorted(self.pixel_sha256),
            "input_sha256": sorted(self.input_sha256),
        }


def load_calibration(
    source: Path | str,
    recipe: Recipe,
    *,
    subset: int = DEFAULT_SUBSET,
    split: str | Path | None = None,
    array_order: Literal["rgb", "bgr"] = "rgb",
    hold_out: bool = False,
) -> Calibration:
    """Read, preprocess and hash calibration pictures; at most ``subset``, evenly spread over what is there.

    ``split`` takes the training side of a data set's split. ``array_order`` is the channel order inside an
    .npz. ``hold_out`` keeps every fifth picture, at most ``HELD_OUT``, out of the calibration to measure on. Raises UsageError for a source that names nothing, InputError for a picture that cannot be read.
    """
    if subset < 1:
        raise UsageError(f"a calibration subset needs at least 1 image, not {subset}")
    if recipe.input.kind == "volume":
        return _windows(Path(source), recipe, subset, split)
    found = list(_entries(Path(source), split))
    if not found:
        raise UsageError(f"{source} holds no picture to calibrate on; give a folder of training images")
    count = min(HELD_OUT, max(1, len(found) // 5)) if hold_out and len(found) > 1 else 0
    held = spread_evenly(range(len(found)), count)
    kept = [entry for number, entry in enumerate(found) if number not in set(held)]
    inputs = np.empty((0,), np.float32)
    names: list[str] = []
    pixels, hashes = [], []
    chosen = spread_evenly(kept, subset)
    for name, item in _within_memory(chosen, recipe, array_order):
        assert recipe.input.kind == "image"
        image = read_image(item, recipe.input, array_order=array_order, name=name)
        x = prepare(image, recipe).x
        hashes.append(pixel_sha256(x))
        if recipe.network.size is None:
            x = _window(x, recipe, len(names))
            if names:  # all become as small as the smallest
                height, width = (min(x.shape[axis], inputs.shape[axis + 1]) for axis in (1, 2))
                x, inputs = x[:, :height, :width], inputs[:, :, :height, :width]
        if names and x.shape != inputs[0].shape:
            raise InputError(
                f"{name} becomes {x.shape[1]}x{x.shape[2]}, others {inputs[0].shape[1]}x{inputs[0].shape[2]}; "
                "calibration pictures must all reach one network size"
            )
        if not names:
            inputs = np.empty((len(chosen), *x.shape), np.float32)  # pages are taken as they are written
        inputs[len(names)] = x
        names.append(name)
        pixels.append(pixel_sha256(image.pixels))
    return Calibration(
        inputs=np.ascontiguousarray(inputs[: len(names)]),
        names=tuple(names),
        pixel_sha256=tuple(pixels),
        input_sha256=tuple(hashes),
        available=len(found),
        warnings=_warnings(pixels),
        held_out=tuple(found[number] for number in held),
    )


def _within_memory(
    chosen: Sequence[tuple[str, Any]], recipe: Recipe, array_order: Literal["rgb", "bgr"]
) -> Sequence[tuple[str, Any]]:
    """Those of the pictures, still spread evenly, whose network inputs fit into MEMORY_BYTES."""
    if not chosen:
        return chosen
    assert recipe.input.kind == "image"
    name, item = chosen[0]
    x = prepare(read_image(item, recipe.input, array_order=array_order, name=name), recipe).x
    one = (_window(x, recipe, 0) if recipe.network.size is None else x).nbytes
    return spread_evenly(list(chosen), max(ENOUGH, MEMORY_BYTES // one))


def _window(x: np.ndarray, recipe: Recipe, number: int) -> np.ndarray:
    """Of a network that takes several sizes: a part of a prepared picture (C, h, w), no larger than the network's window
    or `CALIBRATION_WINDOW`, so that large pictures fit into memory; each picture's lies elsewhere, evenly spread."""
    limit = CALIBRATION_WINDOW if recipe.tiling is None else recipe.tiling.window
    box: list[slice] = []
    for side, most, multiple, spread in zip(x.shape[1:], limit, recipe.network.size_multiple, _SPREAD, strict=True):
        length = min(side, most) // multiple * multiple
        if not length:
            raise InputError(
                f"a calibration picture of {x.shape[1]}x{x.shape[2]} is smaller than what the network takes"
            )
        start = int((number * spread) % 1.0 * (side - length + 1))
        box.append(slice(start, start + length))
    return x[:, box[0], box[1]]


def _windows(source: Path, recipe: Recipe, subset: int, split: str | Path | None) -> Calibration:
    """Windows of volumes in the place of pictures; ``available`` counts cases, the hashes are each window's case's."""
    from segship.convert.calibration_volume import cut_windows

    if split is not None:
        raise UsageError(
            f"--calibrate-split divides data sets of pictures; give a folder of training cases, not {source}"
        )
    found, names, hashes, available, warnings = cut_windows(source, recipe, subset)
    few = f"calibrated on {len(found)} windows; with fewer than {ENOUGH} the ranges are guesses, give more if you have them"
    return Calibration(
        inputs=np.stack(found),
        names=tuple(names),
        pixel_sha256=tuple(hashes),
        input_sha256=tuple(pixel_sha256(window) for window in found),
        available=available,
        warnings=(*((few,) if len(found) < ENOUGH else ()), *warnings),
    )


def without_overlap(calibration: Calibration, dataset: Dataset | None, recipe: Recipe, *, drop: bool) -> Calibration:
    """The calibration free of pictures that also stand in the evaluation data, at any size and under any name.

    One that does raises DatasetError; with ``drop`` (a named split of a data set that holds copies) a copy is left
    out with a warning, and only a case that is evaluated itself raises: then the two splits are not of one kind.
    """
    if dataset is None:
        return calibration
    there: set[str] = set()
    for case in dataset.cases:
        there |= _hashes(case.read_image(), case.id, recipe)
    pairs = enumerate(zip(calibration.pixel_sha256, calibration.input_sha256, strict=True))
    shared = [index for index, hashes in pairs if there & set(hashes)]
    if not shared:
        return calibration
    names = ", ".join(calibration.names[index] for index in shared[:3])
    same = [index for index in shared if calibration.names[index] in {case.id for case in dataset.cases}]
    if drop and same:
        raise DatasetError(
            f"{len(same)} calibration pictures are evaluation cases themselves ({names}); "
            "name the same split for both: --calibrate-split and --split"
        )
    if not drop or len(shared) == len(calibration.names):
        raise DatasetError(
            f"{len(shared)} calibration pictures also stand in the evaluation data ({names}); "
            "calibrate on training images, so that the measured drop means something"
        )
    kept = [index for index in range(len(calibration.names)) if index not in shared]
    return replace(
        calibration,
        inputs=calibration.inputs[kept],
        names=tuple(calibration.names[i] for i in kept),
        pixel_sha256=tuple(calibration.pixel_sha256[i] for i in kept),
        input_sha256=tuple(calibration.input_sha256[i] for i in kept),
        warnings=(
            *calibration.warnings,
            f"left out {len(shared)} training pictures that are copies of evaluation pictures ({names})",
        ),
    )


def _hashes(source: Any, name: str, recipe: Recipe) -> set[str]:
    """Of an evaluation case's values, and of a picture's at the network's size."""
    if recipe.input.kind == "volume":
        from segship.inference.volumes import read_volume

        return {pixel_sha256(read_volume(source, recipe.input, name=name).channels)}
    image = read_image(source, recipe.input, name=name)
    return {pixel_sha256(image.pixels), pixel_sha256(prepare(image, recipe).x)}


def _warnings(hashes: Sequence[str]) -> tuple[str, ...]:
    warnings = []
    if len(hashes) < ENOUGH:
        warnings.append(
            f"calibrated on {len(hashes)} pictures; with fewer than {ENOUGH} the ranges are guesses, give more if you have them"
        )
    if len(set(hashes)) < len(hashes):
        warnings.append(f"{len(hashes) - len(set(hashes))} calibration pictures are copies of others")
    return tuple(warnings)


# ------------------------------------------------------------------------------------------------- sources


def _entries(source: Path, split: str | Path | None) -> Iterator[tuple[str, Any]]:
    if not source.exists():
        raise UsageError(f"there is no calibration data at {source}; give a folder, a list, an .npz or a data set")
    dataset = _as_dataset(source, split)
    if dataset is not None:
        yield from ((case.id, case.read_image()) for case in dataset.cases)
    elif source.is_dir():
        yield from ((path.name, path) for path in find_inputs([source]))
    elif source.suffix.lower() == ".txt":
        yield from _listed(source)
    elif source.suffix.lower() in (".npz", ".npy"):
        yield from _arrays(source)
    else:
        yield source.name, source


def _as_dataset(source: Path, split: str | Path | None) -> Dataset | None:
    """A data set's own images, so that a folder's masks are never calibrated on; None for anything else."""
    if source.is_file() and source.suffix.lower() != ".zip":
        return None
    try:
        layout = recognise_layout(source)
    except DatasetError:
        if split is not None:
            raise UsageError(
                f"--split divides data sets; {source} is a plain folder, give its training images"
            ) from None
        return None
    own = split or default_split(source, layout)  # a data set with a training side of its own is calibrated on that
    return open_dataset(source, layout, own, part="training") if own is not None else open_dataset(source, layout)


def _listed(source: Path) -> Iterable[tuple[str, Path]]:
    try:
        if source.stat().st_size > MAX_LIST_BYTES:
            raise UsageError(f"{source} is too long for a list of pictures; give the folder instead")
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{source} cannot be read as a list of pictures ({error}); write one path on each line"
        ) from error
    for line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        path = source.parent / text  # an absolute path stays itself
        if not path.is_file():
            raise UsageError(f"{source} names {text}, which is not there; paths are relative to the list's folder")
        yield path.name, path


def _arrays(source: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of the file: one picture (H, W[, C]) or a stack of them (N, H, W, C), uint8 or uint16."""
    try:
        loaded = np.load(source, allow_pickle=False)
        arrays = {"array": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise UsageError(f"{source} cannot be read as arrays ({error}); save pictures with numpy.savez") from error
    for key, array in arrays.items():
        if array.dtype.kind == "f":
            raise UsageError(
                f"{source}: '{key}' holds {array.dtype}; give decoded pictures (uint8, height x width x channels), "
                "the package prepares them itself"
            )
        if array.ndim == 4:
            yield from ((f"{key}[{index}]", picture) for index, picture in enumerate(array))
        elif array.ndim in (2, 3):
            yield key, array
        else:
            raise UsageError(f"{source}: '{key}' has shape {array.shape}; give (H, W, C) or (N, H, W, C)")
