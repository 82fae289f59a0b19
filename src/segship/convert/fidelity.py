"""How far a variant's saliency maps are from fp32's: a gate that needs no ground truth.

What is compared is the finished map (after min-max, before it is enlarged) on pictures that calibration never saw:
those given with ``--validate``, else pictures kept out of the calibration folder, else the package's golden sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segship.convert.base import Base
from segship.convert.calibration import Calibration
from segship.convert.quantize import spread_evenly
from segship.datasets import Dataset
from segship.errors import DatasetError, InputError
from segship.inference.images import find_inputs, pixel_sha256
from segship.inference.predictor import Failure, Predictor
from segship.inference.preprocess import prepare
from segship.manifest import Fidelity, Recipe, Saliency

Progress = Callable[[int, int, str], None]
LIMIT = 0.02
"""mean |difference| of maps on 0..1 above which a variant is refused"""
MOST_PICTURES = 64

Origin = Literal["validate", "held out", "golden sample"]


def concerns(recipe: Recipe) -> bool:
    """Whether the package gives saliency maps, which can be compared without ground truth."""
    return isinstance(recipe.decode.decision, Saliency)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What to compare maps on, and where it is from."""

    entries: tuple[tuple[str, Any], ...]
    """(name, what the predictor reads)"""
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class Reference:
    """fp32's maps (h, w) float32 on the network's grid, a picture each."""

    pictures: Pictures
    maps: tuple[np.ndarray, ...]
    sha256: str


def choose_pictures(base: Base, validate: Dataset | Path | None, calibration: Calibration | None) -> Pictures:
    """The pictures given (a data set's images, or a folder without masks), else held-out ones, else the golden sample."""
    if isinstance(validate, Dataset):
        found: list[tuple[str, Any]] = [
            (case.id, case.read_image()) for case in spread_evenly(validate.cases, MOST_PICTURES)
        ]
        return Pictures(entries=tuple(found), origin="validate")
    if validate is not None:
        paths = spread_evenly(find_inputs([validate]), MOST_PICTURES)
        return Pictures(entries=tuple((path.name, path) for path in paths), origin="validate")
    if calibration is not None and calibration.held_out:
        return Pictures(entries=calibration.held_out, origin="held out")
    return golden_pictures(base)


def golden_pictures(base: Base) -> Pictures:
    golden = base.package.golden()
    if golden is None:
        raise DatasetError("the package has no golden sample to compare masks on; give pictures with --validate FOLDER")
    return Pictures(entries=((golden.input_name, golden.input_bytes),), origin="golden sample")


def reference(predictor: Predictor, pictures: Pictures, calibration: Calibration | None) -> Reference | None:
    """fp32's maps. None where every held-out picture is a copy of one that was calibrated on.

    Raises DatasetError for a picture given with ``--validate`` that was calibrated on, InputError for one that
    cannot be read.
    """
    known: set[str] = set()
    if calibration is not None:
        known = {*calibration.pixel_sha256, *calibration.input_sha256}
    entries, maps, hashes = [], [], []
    sources = [source for _, source in pictures.entries]
    stream = predictor.stream(sources, grid="network", keep_images=True)
    for entry, found in zip(pictures.entries, stream, strict=True):
        if isinstance(found, Failure):
            raise InputError(f"{entry[0]} cannot be compared on ({found}); leave it out")
        assert found.image is not None  # keep_images
        pixels = pixel_sha256(found.image.pixels)
        if known and {pixels, pixel_sha256(prepare(found.image, predictor.manifest).x)} & known:
            if pictures.origin == "validate":
                raise DatasetError(
                    f"{entry[0]} is a calibration picture too; measure on others, so that the result means something"
                )
            continue
        entries.append(entry)
        maps.append(found.probabilities[0])
        hashes.append(pixels)
    if not entries:
        return None
    digest = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
    kept = Pictures(entries=tuple(entries), origin=pictures.origin)
    return Reference(pictures=kept, maps=tuple(maps), sha256=digest)


def measure(
    predictor: Predictor, expected: Reference, *, forced: bool = False, progress: Progress | None = None
) -> Fidelity:
    """The variant's maps against fp32's. ``forced`` marks a value beyond ``LIMIT`` as written all the same."""
    values: list[float] = []
    names = [name for name, _ in expected.pictures.entries]
    stream = predictor.stream([source for _, source in expected.pictures.entries], grid="network")
    for name, before, found in zip(names, expected.maps, stream, strict=True):
        if isinstance(found, Failure):
            raise InputError(f"{name} cannot be compared on ({found}); leave it out")
        values.append(_difference(before, found.probabilities[0]))
        if progress is not None:
            progress(len(values), len(names), f"comparing maps, {predictor.precision}")
    worst = int(np.argmax(values))
    value = float(np.mean(values))
    return Fidelity(
        value=value,
        worst=values[worst],
        worst_picture=names[worst],
        pictures=len(names),
        source=expected.pictures.origin,
        pictures_sha256=expected.sha256,
        engine=predictor.engine,
        limit=LIMIT,
        forced=forced and not value <= LIMIT,
    )


def _difference(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.abs(before - after).mean(dtype=np.float64))
