"""One input on its way through a run, what is left of one that failed, and what it is called in messages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segship.errors import SegshipError
from segship.inference.decode import LabelsAlone
from segship.inference.images import Image, Source
from segship.inference.preprocess import Frame


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An input of a stream that could not be done; the others went on."""

    name: str
    error: SegshipError

    def __str__(self) -> str:
        return str(self.error)


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """One input on its way through `Predictor.run`."""

    number: int
    name: str
    frame: Frame | None = None
    x: np.ndarray | None = None
    """prepared (C, h, w); dropped after inference unless it is to be kept"""
    image: Image | None = None
    keep: bool = True
    """the picture stays with the result"""
    outputs: tuple[np.ndarray, ...] = ()
    labels: LabelsAlone | None = None
    """in the place of outputs where scores were not to be kept"""
    error: SegshipError | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        return None if self.x is None or self.error else self.x.shape


def source_name(source: Source) -> str:
    """A source's name in messages and results: the path as given, else its kind."""
    if isinstance(source, Image):
        return source.name
    if isinstance(source, (str, Path)):
        return str(source)
    return type(source).__name__
