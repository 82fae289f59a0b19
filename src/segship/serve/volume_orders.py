"""From a request's files and words to an order: which file is which channel, what it will cost, whether it fits.

All that can be said before the case's turn comes is said now: names, headers, check sums, limits, memory.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segship.errors import InputError
from segship.inference.containers import inspect_container
from segship.inference.nifti import NiftiHeader, parse_header
from segship.inference.volume_cost import Cost, cost_of, in_words
from segship.inference.volume_network import TileOptions, first_tiles
from segship.manifest import Recipe, VolumeInput
from segship.serve.fields import Field
from segship.serve.refused import Refused
from segship.serve.volume_planes import disk_bytes

_GZIP = b"\x1f\x8b"
_HEADER_BYTES = 544
_CHUNK = 1 << 20
_SLACK = 64 << 20
"""bytes that may follow the voxels in an unpacked file"""
_COPY_AGAIN = "it is damaged or cut short, copy or download that file again"
NIFTI_READERS = ("simpleitk", "simpleitk-reorient", "nibabel", "nibabel-reorient", "nibabel-stored")
READERS = (*NIFTI_READERS, "image-2d")

JOB_FIELDS = (
    Field(name="name", kind="text", about="of the case [the file's own]"),
    Field(name="disable_tta", kind="flag", default=False, about="no mirroring: a half to an eighth of the time"),
    Field(name="step_size", kind="number", low=0.1, high=1, about="window step as a part of the window [the package's]"),
    Field(name="folds", kind="text", about="use these members alone, e.g. 0,2 [all]"),
    Field(name="probabilities", kind="flag", default=False, about="also keep float32 probabilities, as .npz"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One file of a request, as it lies on disk."""

    name: str
    """the client's, only ever shown"""
    path: Path


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a job is to do. Its files are checked."""

    case: str
    files: tuple[Path, ...]
    """one a channel"""
    shown: tuple[str, ...]
    """the names that the client gave them"""
    tiles: TileOptions
    probabilities: bool
    cost: Cost
    passes: int
    """of the networks over windows, at most: of a cascade's first stage too"""
    memory: int
    """bytes at the peak, about"""
    disk: int
    """bytes of uploads and results, at most"""

    def about(self) -> dict[str, Any]:
        """As a client sees it."""
        return {
            "case": self.case,
            "files": list(self.shown),
            "shape": list(self.cost.shape),
            "grid": list(self.cost.grid),
            "memory_bytes": self.memory,
            "options": {
                "disable_tta": not self.tiles.mirror,
                "step_size": self.tiles.step_size,
                "folds": None if self.tiles.members is None else list(self.tiles.members),
                "probabilities": self.probabilities,
            },
        }

    def plain(self, text: str, folder: Path) -> str:
        """A message about the files as their client knows them, without this machine's paths."""
        known = {path.name: name for path, name in zip(self.files, self.shown, strict=True)}
        pattern = "|".join(map(re.escape, known))
        return re.sub(pattern, lambda match: known[match[0]], text.replace(f"{folder}/", ""))


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a server allows."""

    voxels: int
    base: int
    """bytes that the process takes with its network, before any case"""
    memory: int | None


def tiles_of(values: Mapping[str, Any], members: Sequence[str]) -> TileOptions:
    """Raises Refused 400 for a fold that is not there."""
    return TileOptions(
        step_size=values["step_size"], mirror=not values["disable_tta"], members=_folds(values["folds"], members)
    )


def _folds(text: str | None, members: Sequence[str]) -> tuple[str, ...] | None:
    if text is None:
        return None
    found = []
    for name in dict.fromkeys(re.split(r"[\s,]+", text.strip())):
        match = next((member for member in members if member in (name, f"fold_{name}")), None)
        if match is None:
            there = ", ".join(member.removeprefix("fold_") for member in members)
            raise Refused(400, f"the package has no fold '{name[:40]}'", f"it has: {there}")
        found.append(match)
    return tuple(found)


def make_order(
    sent: Sequence[Sent], values: Mapping[str, Any], recipe: Recipe, bounds: Bounds, first: Recipe | None = None
) -> Order:
    """Check everything and rename the files to what the reader expects. Takes a while for large files.

    ``first`` is the recipe of a cascade's first stage, which runs before.
    Raises Refused for what does not fit the package or the limits, InputError for a file that is damaged.
    """
    spec = recipe.input
    assert isinstance(spec, VolumeInput)
    tiles = tiles_of(values, recipe.network.members)
    case, ordered = channels_of(sent, spec)
    case = _stem(shown_name(values["name"]), spec.file_ending) if values["name"] else case
    files = []
    held = 0
    for number, one in enumerate(ordered):
        path = one.path.with_name(f"{number:04d}{_ending(one.path, spec)}")
        one.path.rename(path)
        held += path.stat().st_size
        files.append(path)
    names = tuple(one.name for one in ordered)
    if spec.reader in NIFTI_READERS:
        headers = [check_nifti(path, name, bounds.voxels) for path, name in zip(files, names, strict=True)]
        _check_channels(headers, names, spec)
    else:
        for path, name in zip(files, names, strict=True):
            _check_picture(path, name, bounds.voxels)
    cost = cost_of(files, recipe, tiles, probabilities=values["probabilities"])
    if cost is None:
        raise InputError(
            f"{names[0]} cannot be read: its header names no grid that this package can take; {_COPY_AGAIN}"
        )
    _check_voxels(names[0], cost.shape, bounds.voxels)
    before = None if first is None else cost_of(files, first, first_tiles(tiles))
    need = cost.bytes
    if before is not None:  # its labels wait for the second stage as 32-bit numbers, twice while they are resampled
        need = max(before.bytes, need + 8 * math.prod(cost.shape))
    if bounds.memory is not None and bounds.base + need > bounds.memory:
        grid = " x ".join(map(str, cost.grid))
        raise Refused(
            413, f"{case} needs about {in_words(bounds.base + need)} of memory ({in_words(bounds.base)} for the network, "
            f"{in_words(need)} for a grid of {grid}), and this server may use {in_words(bounds.memory)}",
            "crop it to what you need, leave out probabilities, or start the server with a larger --memory",
        )  # fmt: skip
    voxels, classes = math.prod(cost.shape), recipe.network.outputs[0].channels
    disk = held + disk_bytes(len(spec.channels), voxels) + 2 * voxels + (1 << 20)
    disk += 4 * classes * voxels if values["probabilities"] else 0
    return Order(
        case=case, files=tuple(files), shown=names, tiles=tiles, probabilities=values["probabilities"], cost=cost,
        passes=cost.passes + (0 if before is None else before.passes), memory=bounds.base + need, disk=disk,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- names


def files_a_case(spec: VolumeInput) -> int:
    return 1 if spec.channel_files == "one-file" else len(spec.channels)


def rule(spec: VolumeInput) -> str:
    """What to send, in a line."""
    names = [channel.name for channel in spec.channels]
    if files_a_case(spec) == 1:
        return f"send one file with {', '.join(names)}: curl -F file=@CASE_0000{spec.file_ending} …"
    listed = ", ".join(f"CASE_{number:04d}{spec.file_ending} ({name})" for number, name in enumerate(names))
    return f"send {listed}, each as a part named 'file'"


def channels_of(sent: Sequence[Sent], spec: VolumeInput) -> tuple[str, list[Sent]]:
    """The case's name, and its files in the order of channels, which their numbers say. Raises Refused 400."""
    count = files_a_case(spec)
    if len(sent) != count:
        came = "1 file" if len(sent) == 1 else f"{len(sent)} files"
        raise Refused(400, f"{came} came, and a case of this package has {count}", rule(spec))
    found: dict[int, Sent] = {}
    cases = []
    for one in sent:
        stem = _stem(one.name, spec.file_ending)
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        if match is None and count > 1:
            raise Refused(400, f"{one.name} has no channel number", rule(spec))
        number = int(match[2]) if match else 0
        if number in found:
            raise Refused(400, f"two files are channel {number:04d}: {found[number].name} and {one.name}", rule(spec))
        if number >= count:
            raise Refused(400, f"{one.name} is one channel too many", rule(spec))
        found[number] = one
        cases.append(match[1] if match else stem)
    if len(set(cases)) > 1:
        raise Refused(400, f"the files belong to two cases, {cases[0]} and {cases[1]}", rule(spec))
    return cases[0], [found[number] for number in range(count)]


def _stem(name: str, ending: str) -> str:
    lower = name.lower()
    for suffix in (ending.lower(), ".nii.gz", ".nii"):
        if lower.endswith(suffix) and len(lower) > len(suffix):
            return name[: -len(suffix)]
    return name.rsplit(".", 1)[0] or name


def shown_name(name: str | None, fallback: str = "case") -> str:
    """A client's file name as it may be shown and given back in a header: no folders, plain letters, not endless."""
    last = re.split(r"[/\\]", name or "")[-1]
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", last).lstrip(".")
    return plain[-100:] or fallback


def _ending(path: Path, spec: VolumeInput) -> str:
    if spec.reader not in NIFTI_READERS:
        return spec.file_ending
    with path.open("rb") as file:
        return ".nii.gz" if file.read(2) == _GZIP else ".nii"


# ------------------------------------------------------------------------------------------------- files


def check_nifti(path: Path, name: str, max_voxels: int) -> NiftiHeader:
    """Read a NIfTI file from end to end, holding a megabyte of it: header, length, check sum.

    Raises InputError for a damaged one, Refused 413 for more than ``max_voxels``, judged by the header.
    """
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            first = file.read(_HEADER_BYTES)
            header = parse_header(first, name)
            _check_voxels(name, header.shape, max_voxels)
            if not all(math.isfinite(zoom) and zoom > 0 for zoom in header.zooms[:3]):
                spacing = ", ".join(f"{zoom:g}" for zoom in header.zooms[:3])
                raise InputError(f"{name} has the spacing ({spacing}); it must be positive, correct the file's header")
            _check_length(file, len(first), header.offset + header.payload, name)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{name} cannot be unpacked ({error}); {_COPY_AGAIN}") from None
    return header


def _check_picture(path: Path, name: str, max_pixels: int) -> None:
    """The same of a single picture, without decoding it."""
    found = inspect_container(path.read_bytes(), name)
    _check_voxels(name, (found.height, found.width), max_pixels)


def _check_length(file: Any, done: int, wanted: int, name: str) -> None:
    while part := file.read(_CHUNK):
        done += len(part)
        if done > wanted + _SLACK:
            raise InputError(f"{name} unpacks to far more than its header declares; do not use this file")
    if done < wanted:
        raise EOFError(f"its header declares {wanted:,} bytes, it has {done:,}")


def _check_voxels(name: str, shape: Sequence[int], limit: int) -> None:
    voxels = math.prod(shape)
    if voxels > limit:
        raise Refused(
            413, f"{name} has {voxels:,} voxels ({' x '.join(map(str, shape))}), the limit is {limit:,}",
            "crop it, or start the server with a larger --max-pixels",
        )  # fmt: skip


def _check_channels(headers: Sequence[NiftiHeader], names: Sequence[str], spec: VolumeInput) -> None:
    inside = [math.prod(header.shape[3:]) for header in headers]
    wanted = len(spec.channels)
    if sum(inside) != wanted:
        listed = ", ".join(channel.name for channel in spec.channels)
        more = next((name for name, count in zip(names, inside, strict=True) if count > 1), names[0])
        raise InputError(
            f"{more}: the case has {sum(inside)} channels, the network takes {wanted}: {listed}; {rule(spec)}"
        )
    first = headers[0].shape[:3]
    for name, header in zip(names[1:], headers[1:], strict=True):
        if header.shape[:3] != first:
            raise InputError(
                f"{name} has {header.shape[:3]} voxels and {names[0]} has {first}; the channels of a case lie on one grid"
            )
