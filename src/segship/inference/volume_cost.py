"""What a case will cost, from its files' headers alone: passes of the network, and memory.

The grid is that of the whole case: what a crop will take away is not known before the voxels are read, so both numbers
are upper bounds. The memory of engine and network is measured on one window, not guessed.
"""

from __future__ import annotations

import os
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segship.errors import SegshipError, UsageError
from segship.inference.nifti import parse_header
from segship.inference.resample import Shape3, Spacing
from segship.inference.volume_chain import resampled_shape
from segship.inference.volume_formats import PICTURE_SPACING
from segship.inference.volume_memory import Extent, Memory, memory_of
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
    memory: Memory

    @property
    def bytes(self) -> int:
        """At the peak, where the case is alone."""
        return self.memory.peak

    def after(self, first: Cost) -> Cost:
        """With a cascade's first stage, which runs while the case is read."""
        return replace(self, memory=replace(self.memory, reading=max(self.memory.reading, first.bytes)))


def cost_of(
    files: Sequence[Path], recipe: Recipe, tiles: TileOptions, *, probabilities: bool = False, image: bool = True
) -> Cost | None:
    """The cost of a case, or None where its header does not tell (reading it will say why).

    ``image`` says that the voxels as read are kept until the labels are written, as a preview needs them.
    """
    spec = recipe.input
    assert isinstance(spec, VolumeInput)
    try:
        found = header_of(files[0], spec)
        if found is None:
            return None
        largest = max(file.stat().st_size for file in files)
        return cost_of_extent(
            replace(found, file_bytes=largest), recipe, tiles, probabilities=probabilities, image=image
        )
    except (SegshipError, OSError, EOFError, zlib.error, ValueError, ZeroDivisionError, OverflowError):
        return None


def cost_of_extent(
    case: Extent, recipe: Recipe, tiles: TileOptions, *, probabilities: bool = False, image: bool = True
) -> Cost:
    """The same of a case whose grid is known. Raises InputError for a grid without extent."""
    assert recipe.tiling is not None
    grid = _grid(case.shape, case.spacing, recipe)
    members = len(tiles.members or recipe.network.members)
    return Cost(
        shape=case.shape,
        grid=grid,
        passes=count_passes(grid, tiles.applied(recipe.tiling), members),
        memory=memory_of(case, recipe, tiles, probabilities=probabilities, image=image),
    )


def peak_of(costs: Sequence[Cost]) -> int:
    """Bytes that cases take at the peak where each is read while the one before it runs and the one before that is
    written, in this order."""
    found = 0
    for number, cost in enumerate(costs):
        after, before = costs[number + 1 : number + 2], costs[max(0, number - 1) : number]
        beside = sum(max(one.memory.reading, one.memory.waiting) for one in after)
        beside += sum(one.memory.writing for one in before)
        alone = max(cost.memory.running, cost.memory.reading, cost.memory.writing)
        found = max(found, cost.memory.running + beside, alone)
    return found


def header_of(path: Path, spec: VolumeInput) -> Extent | None:
    """What a file says before its voxels are read, in the reader's order; None for forms not looked into."""
    if spec.reader == "image-2d":
        from PIL import Image

        try:
            with Image.open(path) as picture:
                return Extent(shape=(1, picture.height, picture.width), spacing=PICTURE_SPACING, stored_bytes=2)
        except Exception:  # Pillow raises nearly anything on hostile bytes
            return None
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
    size = header.dtype.itemsize
    if len(sides) == 2:
        return Extent(shape=(1, sides[1], sides[0]), spacing=(max(zooms) * 999, zooms[1], zooms[0]), stored_bytes=size)
    target = spec.orientation or ("RAS" if spec.reader.endswith("-reorient") else None)
    turned = spec.reader == "nibabel-stored"  # the slowest axis last
    if target is not None:
        from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

        there = ornt_transform(io_orientation(header.affine), axcodes2ornt(tuple(target)))
        order = np.argsort(there[:, 0])
        sides, zooms = [sides[int(i)] for i in order], [zooms[int(i)] for i in order]
        turned = True
    if spec.reader == "nibabel-stored":
        shape, spacing = (sides[0], sides[1], sides[2]), (zooms[0], zooms[1], zooms[2])
    else:
        shape, spacing = (sides[2], sides[1], sides[0]), (zooms[2], zooms[1], zooms[0])
    return Extent(shape=shape, spacing=spacing, stored_bytes=size, turned=turned)


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
    try:  # getrusage also counts what the parent held when it started this process
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def process_memory() -> int:
    """What this process holds now, in bytes; the most it held so far where the system does not tell.

    Compiling a network takes more than running it, and that is over before the first case is read.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return process_peak()
