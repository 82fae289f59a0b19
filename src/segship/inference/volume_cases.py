"""Which files make a case: `liver_0000.nii.gz`, `liver_0001.nii.gz` … are the channels of the case `liver`."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from segship.errors import UsageError
from segship.manifest import VolumeInput

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    """of its label file, without ending"""
    files: tuple[Path, ...]
    """one a channel, in order; one alone where a file holds all channels"""


def group_cases(inputs: Iterable[str | Path], spec: VolumeInput) -> list[Case]:
    """As `find_cases`, but missing and surplus channels and two cases of one name are a UsageError, as is nothing found."""
    cases, problems = find_cases(inputs, spec)
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise UsageError(f"{'; '.join(problems[:5])}{more}; {_rule(spec)}")
    return cases


def find_cases(inputs: Iterable[str | Path], spec: VolumeInput) -> tuple[list[Case], list[str]]:
    """The cases in folders and files, sorted by name, and what is wrong with others, a line each.

    Folders are not searched below their first level, but for cases that are folders (``spec.folder_file``). Files are
    matched by ``<case>_<4 digits><ending>``; where a case is one file, those without a number count too, unless the
    folder has some with. Raises UsageError for a path that is not there, or nothing found.
    """
    found: dict[str, Case] = {}
    problems: list[str] = []
    groups: dict[Path, list[Path]] = {}  # channels of a case lie in one folder
    for item in inputs:
        path = Path(item)
        if not path.exists():
            raise UsageError(f"there is no file or folder {path}; check the path")
        if path.is_dir():
            groups.setdefault(path, []).extend(_folder_files(path, spec) or _below(path, spec))
        else:
            groups.setdefault(path.parent, []).append(path)
    for files in groups.values():
        for case in _grouped(dict.fromkeys(files), spec, problems):
            if case.name in found and found[case.name].files != case.files:
                problems.append(f"two cases are called {case.name}")
            found[case.name] = case
    if not found and not problems:
        raise UsageError(f"no case found; {_rule(spec)}")
    return [found[name] for name in sorted(found)], problems


def case_name(path: Path, ending: str, folder_file: str | None = None) -> str:
    """'liver' of 'liver_0000.nii.gz', and of 'liver.nii.gz'; a ``folder_file`` is called by its folder."""
    if _is_folder_file(path, folder_file):
        return path.absolute().parent.name
    stem = _stem(path, ending)
    numbered = re.fullmatch(r"(.+)_\d{4}", stem)
    return numbered[1] if numbered else stem


def _is_folder_file(path: Path, folder_file: str | None) -> bool:
    return folder_file is not None and path.name in (folder_file, folder_file.removesuffix(".gz"))


def _stem(path: Path, ending: str) -> str:
    lower = path.name.lower()
    for suffix in (ending.lower(), ".nii.gz"):
        if lower.endswith(suffix) and len(lower) > len(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def _folder_files(folder: Path, spec: VolumeInput) -> list[Path]:
    """The images of a folder of cases that are folders, or of such a case; [] where it is none."""
    if spec.folder_file is None:
        return []
    places = [folder, *sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())]
    names = (spec.folder_file, spec.folder_file.removesuffix(".gz"))
    found = [next((p / name for name in names if (p / name).is_file()), None) for p in places]
    return [file for file in found if file is not None]


def _below(folder: Path, spec: VolumeInput) -> list[Path]:
    ending = spec.file_ending.lower()
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    endings = (ending, "_x.npy") if spec.reader == "nibabel-stored" else (ending,)  # prepared cases
    files = [folder / name for name in names if name.lower().endswith(endings)]
    numbered = [file for file in files if re.fullmatch(r".+_\d{4}", _stem(file, spec.file_ending))]
    if not numbered:
        if files and _files_a_case(spec) > 1:
            raise UsageError(f"{folder}: no file has a channel number; {_rule(spec)}")
        return files
    left_out = [file.name for file in files if file not in set(numbered)]
    if left_out:
        shown = ", ".join(left_out[:3]) + (" …" if len(left_out) > 3 else "")
        _log.warning("%s: without a channel number and left out: %s", folder, shown)
    return numbered


def _files_a_case(spec: VolumeInput) -> int:
    return 1 if spec.channel_files == "one-file" else len(spec.channels)


def _grouped(files: Iterable[Path], spec: VolumeInput, problems: list[str]) -> list[Case]:
    count = _files_a_case(spec)
    numbered: dict[str, dict[int, Path]] = {}
    cases = []
    for file in files:
        if _is_folder_file(file, spec.folder_file):
            cases.append(Case(name=case_name(file, spec.file_ending, spec.folder_file), files=(file,)))
            continue
        match = re.fullmatch(r"(.+)_(\d{4})", _stem(file, spec.file_ending))
        if match:
            numbered.setdefault(match[1], {})[int(match[2])] = file
        elif count == 1:
            cases.append(Case(name=case_name(file, spec.file_ending), files=(file,)))
        else:
            problems.append(f"{file.name} has no channel number")
    for name, channels in numbered.items():
        lacking = [number for number in range(count) if number not in channels]
        surplus = [channels[number].name for number in sorted(channels) if number >= count]
        problems += [f"{name}{_number(n)}{spec.file_ending} ({spec.channels[n].name}) is missing" for n in lacking]
        problems += [f"{file} is one channel too many" for file in surplus]
        if not lacking and not surplus:
            cases.append(Case(name=name, files=tuple(channels[number] for number in range(count))))
    return cases


def _number(channel: int) -> str:
    return f"_{channel:04d}"


def _rule(spec: VolumeInput) -> str:
    names = ", ".join(channel.name for channel in spec.channels)
    if spec.folder_file is not None:
        return (
            f"a case is a folder CASE with {spec.folder_file} in it, or one file CASE{spec.file_ending}, with {names}"
        )
    if _files_a_case(spec) == 1:
        return f"a case is one file CASE_0000{spec.file_ending} (or CASE{spec.file_ending}) with {names}"
    last = _number(len(spec.channels) - 1)
    return f"a case is CASE_0000{spec.file_ending} to CASE{last}{spec.file_ending}: {names}"
