"""The record of a run over many files, for pictures and volumes: what is done, by what, into which files.

``predictions.jsonl`` has one line an input done; resume reads it. A line whose ``made_by`` is empty or of another program
names files that are no longer what earlier lines say. ``segship-run.json`` has versions, engine, options, hashes and
failures.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from segship.engines.processor import processor
from segship.errors import OutputError
from segship.inference.predictor import Predictor
from segship.inference.writers import write_bytes
from segship.package import dump_json

Note = Callable[[dict[str, Any]], None]
JOURNAL = "predictions.jsonl"


@dataclass(frozen=True, kw_only=True)
class PredictSummary:
    """How a run over files ended. ``failed`` is (input, message) of those that could not be done."""

    done: int
    skipped: int
    failed: tuple[tuple[str, str], ...]
    seconds: float
    record: Path
    interrupted: bool = False
    notes: tuple[tuple[str, str], ...] = ()
    """(input, what to know about its result): a first frame used, a constant output, no matting …"""
    time_budget: Mapping[str, Any] | None = None
    """volumes: what a time budget measured, chose and gave up"""

    @property
    def images_per_second(self) -> float | None:
        """Files to masks, reading and writing included; None when nothing was done."""
        return self.done / self.seconds if self.done and self.seconds > 0 else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "skipped": self.skipped,
            "failed": [{"input": name, "error": message} for name, message in self.failed],
            "notes": [{"input": name, "note": note} for name, note in self.notes],
            "seconds": round(self.seconds, 3),
            "images_per_second": None if self.images_per_second is None else round(self.images_per_second, 3),
            "interrupted": self.interrupted,
            **({} if self.time_budget is None else {"time_budget": self.time_budget}),
        }


def relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.absolute().as_posix()


@dataclass(frozen=True, kw_only=True)
class Journal:
    """What earlier runs into a folder noted."""

    output: Path
    entries: Mapping[str, Mapping[str, Any]]
    """input -> its last line"""
    owners: Mapping[str, str]
    """every file that a line names, relative to ``output`` -> the input of the last line that names it"""

    def is_done(self, key: str, size: int, mtime_ns: int, recipe_key: str) -> bool:
        """Whether the input's last line tells of this very input, made by this very recipe, and its files are there.

        Files that a later line names for another input are that input's now.
        """
        entry = self.entries.get(key)
        if entry is None or (entry["size"], entry["mtime_ns"], entry["made_by"]) != (size, mtime_ns, recipe_key):
            return False
        return all(self.owners[name] == key and (self.output / name).is_file() for name in entry["outputs"])

    def void(self, entry: Mapping[str, Any], names: Iterable[str], note: Note) -> None:
        """Before files are written: no earlier line that names one of them counts, should the run end in between."""
        taken = [name for name in names if name in self.owners]
        if taken:
            note({**entry, "made_by": "", "outputs": taken})


def read_journal(output: Path) -> Journal:
    """What is noted in the folder. A line that was cut off (a killed run) or damaged counts as not written."""
    entries: dict[str, dict[str, Any]] = {}
    owners: dict[str, str] = {}
    try:
        text = (output / JOURNAL).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        text = ""
    for line in text.split("\n"):  # not splitlines: file names may hold other ends of lines, such as U+2028
        try:
            found = json.loads(line)
            entry: dict[str, Any] = {
                "size": int(found["size"]),
                "mtime_ns": int(found["mtime_ns"]),
                "made_by": str(found["made_by"]),
                "outputs": [_file_name(name) for name in found["outputs"]],
            }
            key = str(found["input"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
        entries[key] = entry
        owners |= dict.fromkeys(entry["outputs"], key)
    return Journal(output=output, entries=entries, owners=owners)


def _file_name(name: object) -> str:
    """Raises ValueError for what no file can be called."""
    if b"\0" in os.fsencode(str(name)):
        raise ValueError(name)
    return str(name)


@contextmanager
def journal_writer(output: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Append whole lines; several parts of one run may write to the same journal."""
    path = output / JOURNAL
    try:
        output.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab", buffering=0)
    except OSError as error:
        raise OutputError(
            f"cannot write into {output}: {error.strerror or error}; choose another folder with -o"
        ) from error

    def note(entry: dict[str, Any]) -> None:
        # One write a line keeps lines whole among threads and processes; the leading newline ends a cut-off one.
        # ASCII, as a file's name may be no UTF-8: its odd bytes are lone surrogates then, \udcXX.
        line = json.dumps(entry, sort_keys=True) + "\n"
        try:
            stream.write(line.encode("ascii"))
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}; free some room") from error

    with stream:
        if stream.tell() and not _ends_with_newline(path):
            stream.write(b"\n")
        yield note


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def record_name(num_parts: int, part_id: int) -> str:
    part = "" if num_parts == 1 else f"-{part_id}-of-{num_parts}"
    return f"segship-run{part}.json"


def write_record(
    path: Path,
    predictor: Predictor,
    options: Mapping[str, Any],
    summary: PredictSummary,
    started: datetime,
    *,
    batch: int | None,
    raises: bool,
) -> None:
    """``options`` are those of the command; ``raises`` False where another error is on its way."""
    session = predictor.sessions[0]
    record = {
        "started": started.isoformat(timespec="seconds"),
        "package": {
            "name": predictor.manifest.name,
            "path": str(predictor.package.path),
            "sha256": predictor.package.sha256,
        },
        "precision": {"name": predictor.precision, "why": predictor.choice.reason, "executed": _executed(predictor)},
        "engine": {
            "name": predictor.engine,
            "version": session.version,
            "device": session.device,
            "threads": predictor.options.threads,
            "streams": predictor.options.streams,
            "batch": batch or predictor.batch,
        },
        "machine": {"processor": processor().label, "cores": processor().cores, "system": platform.platform()},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
        "options": dict(options),
        "result": summary.as_dict(),
    }
    try:
        write_bytes(path, dump_json(record))
    except OutputError:
        if raises:  # else another error is on its way and says more
            raise


def _executed(predictor: Predictor) -> dict[str, Any] | None:
    """What ran, where the package holds a measurement of it for this engine and processor."""
    for executed in predictor.variant.executed:
        if executed.engine == predictor.engine and executed.processor == processor().label:
            return executed.model_dump(mode="json")
    return None


_LIBRARIES = ("segship", "numpy", "opencv-python-headless", "pillow")


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
