"""Are prepared KiTS19 arrays the published ones? Against a list of md5 sums, or against another folder of arrays.

Every mismatch is told, extra files and missing cases are no fault. An image's bytes depend on the last bit of the
arithmetic that made it: where its md5 differs and its source is at hand, its values are compared instead.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segship.datasets.kits19 import facts, prepared_files
from segship.errors import DatasetError, DatasetMissing, UsageError

TOLERANCE = 1e-5
"""of an image's values, in standard deviations of its CT numbers"""
_FORMS = "it is JSON (file name -> md5), or what md5sum prints"
_MD5SUM = re.compile(r"^([0-9a-fA-F]{32}) [ *](.+)$", re.MULTILINE)
Recompute = Callable[[str], NDArray[np.float32] | None]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was compared, and every file that differs."""

    against: str
    checked: int
    by_value: tuple[str, ...]
    """images whose bytes differ from the list's while their values are those of their source"""
    mismatches: tuple[tuple[str, str], ...]
    unlisted: tuple[str, ...]
    absent: int
    """listed files that are not there"""

    @property
    def passed(self) -> bool:
        return not self.mismatches and self.checked > 0

    def as_dict(self) -> dict[str, object]:
        return {
            "against": self.against,
            "checked": self.checked,
            "by_value": list(self.by_value),
            "mismatches": [{"file": name, "reason": text} for name, text in self.mismatches],
            "unlisted": list(self.unlisted),
            "absent": self.absent,
            "passed": self.passed,
        }

    def __str__(self) -> str:
        lines = [f"mismatch: {name}: {text}" for name, text in self.mismatches]
        equal = self.checked - len(self.mismatches)
        words = [f"verified against {self.against}: {equal} of {self.checked} files agree"]
        if self.by_value:
            words.append(f"{len(self.by_value)} of them by their values (≤ {TOLERANCE:g}) and not byte by byte")
        if self.absent:
            words.append(f"{self.absent} listed files are not there")
        if self.unlisted:
            words.append(f"{len(self.unlisted)} files are not listed ({self.unlisted[0]})")
        return "\n".join([*lines, "; ".join(words)])


def verify_kits19(folder: Path, reference: Path | None = None, *, recompute: Recompute | None = None) -> Verification:
    """Compare the arrays in ``folder`` with ``reference``: None for the published md5 sums, a file of others (JSON, or
    what md5sum prints), or a folder of arrays made elsewhere.

    ``recompute`` gives a case's image from its source, for images whose md5 differs. Raises DatasetError where there is
    nothing to compare, UsageError for a reference that cannot be read.
    """
    if not folder.is_dir():
        raise DatasetMissing(f"there is no folder of prepared cases at {folder}; check the path")
    files = [path for case in prepared_files(folder) for path in (case.image, case.labels) if path is not None]
    if not files:
        raise DatasetError(f"{folder} holds no prepared case (case_00000_x.npy and _y.npy); prepare it first")
    if reference is not None and not reference.exists():
        raise UsageError(f"there is no list or folder {reference} to verify against; check the path")
    if reference is not None and reference.is_dir():
        return _against_folder(files, reference)
    wanted = _read_list(reference)
    mismatches: list[tuple[str, str]] = []
    by_value: list[str] = []
    listed = [path for path in files if path.name in wanted]
    for path in listed:
        found = _md5(path)
        if found == wanted[path.name]:
            continue
        if path.name.endswith("_x.npy") and _same_values(path, recompute):
            by_value.append(path.name)
            continue
        mismatches.append((path.name, f"its md5 is {found}, the list has {wanted[path.name]}"))
    return Verification(
        against="the published list" if reference is None else reference.name,
        checked=len(listed),
        by_value=tuple(by_value),
        mismatches=tuple(mismatches),
        unlisted=tuple(path.name for path in files if path.name not in wanted),
        absent=len(set(wanted) - {path.name for path in files}),
    )


def _read_list(path: Path | None) -> Mapping[str, str]:
    if path is None:
        found: Mapping[str, str] = facts()["md5"]
        return found
    try:
        text = path.read_text(encoding="utf-8")
        lines = {Path(name).name: digest for digest, name in _MD5SUM.findall(text)}
        loaded = lines or json.loads(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a list of md5 sums ({error}); {_FORMS}") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, str) for value in loaded.values()):
        raise UsageError(f"{path} is no list of md5 sums; {_FORMS}")
    return {str(name): value.lower() for name, value in loaded.items()}


def _md5(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error


def _same_values(path: Path, recompute: Recompute | None) -> bool:
    made = recompute(path.name[:-6]) if recompute is not None else None
    return made is not None and _difference(path, made) is None


def _against_folder(files: list[Path], reference: Path) -> Verification:
    there = [path for path in files if (reference / path.name).is_file()]
    mismatches = []
    for path in there:
        text = _difference(path, _load(reference / path.name))
        if text is not None:
            mismatches.append((path.name, text))
    others = {path.name for path in reference.glob("case_*_[xy].npy")}
    return Verification(
        against=f"the arrays in {reference.name}",
        checked=len(there),
        by_value=(),
        mismatches=tuple(mismatches),
        unlisted=tuple(path.name for path in files if path.name not in others),
        absent=len(others - {path.name for path in files}),
    )


def _load(path: Path) -> NDArray[np.generic]:
    try:
        loaded: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path} is no array that numpy reads ({error}); prepare that case again") from None
    return loaded


def _difference(path: Path, wanted: NDArray[np.generic]) -> str | None:
    """What differs, in words; None: nothing beyond the tolerance."""
    try:
        found = _load(path)
    except DatasetError as error:
        return str(error)
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{found.dtype} of shape {found.shape}, not {wanted.dtype} of {wanted.shape}"
    if found.dtype != np.float32:
        wrong = int(np.count_nonzero(found != wanted))
        return f"{wrong} voxels have another label" if wrong else None
    most = max(float(np.abs(a - b).max()) for a, b in zip(found[0], wanted[0], strict=True))
    return f"values differ by up to {most:.1e}" if not most <= TOLERANCE else None
