"""What a case will cost, from its files' headers alone: passes of the network, and memory.

The grid is that of the whole case: what a crop will take away is not known before the voxels are read, so both numbers
are upper bounds of the windows. The memory of engine and network is measured on one window, not guessed.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segship.errors import SegshipError, UsageError
from segship.inference.nifti import parse_header
from segship.inference.resample import Shape3, Spacing
from segship.inference.volume_chain import resampled_shape
from segship.inference.volume_formats import PICTURE_SPACING
from segship.inference.volume_network import TileOptions, count_passes
from segship.manifest import Pad, Recipe, Resample, Transpose, VolumeInput

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one case, without the engine's and the network's own memory."""

    shape: Shape3
    grid: Shape3
    """on which the network runs, before any crop"""
    passes: int
    bytes: int
    waiting_bytes: int
    """while another case runs: read and prepared, or waiting to be written"""


def cost_of(files: Sequence[Path], recipe: Recipe, tiles: TileOptions, *, probabilities: bool = False) -> Cost | None:
    """The cost of a case, or None where its header does not tell (reading it will say why)."""
    spec = recipe.input
    assert isinstance(spec, VolumeInput)
    try:
        found = header_of(files[0], spec)
        return None if found is None else cost_of_extent(*found, recipe, tiles, probabilities=probabilities)
    except (SegshipError, OSError, ValueError, ZeroDivisionError, OverflowError):
        return None


def cost_of_extent(
    shape: Shape3, spacing: Spacing, recipe: Recipe, tiles: TileOptions, *, probabilities: bool = False
) -> Cost:
    """The cost of a case of (z, y, x) voxels, spacing in millimetres. Raises InputError for a grid without extent."""
    spec = recipe.input
    assert isinstance(spec, VolumeInput)
    assert recipe.tiling is not None
    grid = _grid(shape, spacing, recipe)
    members = len(tiles.members or recipe.network.members)
    tiling = tiles.applied(recipe.tiling)
    most = tuple(max(side, least) for side, least in zip(grid[-len(tiling.window) :], tiling.window, strict=True))
    voxels, cells = math.prod(shape), math.prod(grid[: 3 - len(most)]) * math.prod(most)
    channels, classes = len(spec.channels), recipe.network.outputs[0].channels
    read = 4 * channels * voxels
    prepared = 4 * recipe.network.input_channels * math.prod(grid)
    reading = 2 * read + 2 * voxels + prepared + 16 * max(voxels, math.prod(grid))  # one channel in float64, twice
    running = read + 2 * prepared + 4 * (classes + 1) * cells + 4 * classes * math.prod(grid)  # the mean, cut back
    writing = read + prepared + 4 * classes * cells + 12 * voxels
    writing += 8 * classes * voxels if probabilities else 0
    return Cost(
        shape=shape,
        grid=grid,
        passes=count_passes(grid, tiling, members),
        bytes=max(reading, running, writing),
        waiting_bytes=max(reading, writing),
    )


def header_of(path: Path, spec: VolumeInput) -> tuple[Shape3, Spacing] | None:
    """(shape, spacing) as (z, y, x) in the reader's order, without reading voxels; None for forms not looked into."""
    if spec.reader == "image-2d":
        from PIL import Image

        with Image.open(path) as picture:
            return (1, picture.height, picture.width), PICTURE_SPACING
    if spec.reader == "tiff-3d" or not path.name.lower().endswith((".nii", ".nii.gz")):
        return None
    with path.open("rb") as raw:
        first = raw.read(2)
    if first == b"\x1f\x8b":
        import gzip

        with gzip.open(path) as packed:
            block = packed.read(544)
    else:
        with path.open("rb") as raw:
            block = raw.read(544)
    header = parse_header(block, path.name)
    sides, zooms = list(header.shape[:3]), list(header.zooms[:3])
    if len(sides) == 2:
        return (1, sides[1], sides[0]), (max(zooms) * 999, zooms[1], zooms[0])
    target = spec.orientation or ("RAS" if spec.reader.endswith("-reorient") else None)
    if target is not None:
        from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

        there = ornt_transform(io_orientation(header.affine), axcodes2ornt(tuple(target)))
        order = np.argsort(there[:, 0])
        sides, zooms = [sides[int(i)] for i in order], [zooms[int(i)] for i in order]
    return (sides[2], sides[1], sides[0]), (zooms[2], zooms[1], zooms[0])


def _grid(shape: Shape3, spacing: Spacing, recipe: Recipe) -> Shape3:
    for step in recipe.preprocess:
        if isinstance(step, Transpose):
            a, b, c = step.axes
            shape, spacing = (shape[a], shape[b], shape[c]), (spacing[a], spacing[b], spacing[c])
        elif isinstance(step, Resample):
            target = tuple(
                have if want is None else want for have, want in zip(spacing, step.spacing_mm_zyx, strict=True)
            )
            wanted = (target[0], target[1], target[2])
            shape, spacing = resampled_shape(shape, spacing, wanted, step.shape_rule), wanted
        elif isinstance(step, Pad):
            least = step.minimum or (1, 1, 1)
            sides = [max(side, low) for side, low in zip(shape, least, strict=True)]
            sides = [-(-side // step.multiple_of) * step.multiple_of for side in sides]
            shape = (sides[0], sides[1], sides[2])
    return shape


def parse_bytes(text: str | int | None) -> int | None:
    """'6G', '800MB' or a number of bytes. UsageError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(text), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--memory takes a size such as 6G or 800M, not '{text}'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def in_words(size: int) -> str:
    """'1.2 GB'"""
    return f"{size / (1 << 30):.1f} GB" if size >= 1 << 30 else f"{max(1, round(size / (1 << 20)))} MB"


def process_peak() -> int:
    """The most memory that this process has held so far, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
