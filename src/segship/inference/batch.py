"""Many files to many files: names, resume, and the record of the run.

The output folder holds the results, ``predictions.jsonl`` (one line an input done: from which file, by what, into
which files; resume reads it) and ``segship-run.json`` (versions, engine, options, hashes, failures).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segship.engines.processor import processor
from segship.errors import OutputError, SegshipError, UsageError
from segship.inference.images import Image
from segship.inference.outputs import SUFFIX, PredictOptions, keeps_pictures, output_names, write_case
from segship.inference.prediction import class_path
from segship.inference.predictor import Failure, Item, Predictor
from segship.inference.writers import write_bytes
from segship.package import dump_json

Progress = Callable[[int, int, str], None]

JOURNAL = "predictions.jsonl"
KEPT_BYTES = 256 << 20
"""decoded pictures that wait for their masks at once; those beyond are read a second time"""


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
        }


@dataclass(frozen=True, kw_only=True)
class _Job:
    path: Path
    name: str
    """of the results, without suffix"""
    key: str
    """path as given; the input's name in the journal"""
    size: int
    mtime_ns: int


def predict_files(
    predictor: Predictor,
    inputs: Sequence[Path],
    output: Path,
    options: PredictOptions | None = None,
    progress: Progress | None = None,
) -> PredictSummary:
    """Predict files into a folder. A broken input is listed in the summary, the others go on.

    Raises UsageError when a result would overwrite an input, OutputError as soon as something cannot be written.
    Ctrl-C (KeyboardInterrupt) leaves no half-written file; what was done is recorded and skipped the next time.
    """
    options = options or PredictOptions()
    options.check(predictor.manifest)
    output = Path(output)
    start, started = time.perf_counter(), datetime.now(UTC)
    recipe_key = _recipe_key(predictor, options)
    journal = _read_journal(output)
    sources = _without_results(inputs, journal, output)
    jobs = _jobs(sources)[options.part_id :: options.num_parts]
    _refuse_overwriting(jobs, sources, output, predictor, options)
    made = journal if options.resume else {}
    todo = [job for job in jobs if not _is_done(job, made.get(job.key), recipe_key, output)]
    skipped = len(jobs) - len(todo)
    failed: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    kept = _Kept(KEPT_BYTES)
    done = 0
    finished = False
    record = output / _record_name(options)
    with _journal_writer(output) as note:

        def finish(item: Item) -> SegshipError | tuple[str, ...]:
            try:
                return _finish(predictor, item, todo[item.number], output, options, recipe_key, note)
            finally:
                kept.give_back(item.image)

        results = predictor.run(
            (job.path for job in todo),
            finish,
            batch=options.batch,
            keep_images=kept.takes if keeps_pictures(options) else False,
            keep_inputs=options.stages is not None,
        )
        try:
            if progress is not None:
                progress(skipped, len(jobs), "")
            for job, outcome in zip(todo, results, strict=True):
                if isinstance(outcome, SegshipError):
                    failed.append((job.key, str(outcome)))
                else:
                    done += 1
                    notes += [(job.key, text) for text in outcome]
                if progress is not None:
                    progress(skipped + done + len(failed), len(jobs), job.path.name)
            finished = True
        finally:
            results.close()  # what is being written is written and noted before the journal closes
            summary = PredictSummary(
                done=done,
                skipped=skipped,
                failed=tuple(failed),
                seconds=time.perf_counter() - start,
                record=record,
                interrupted=not finished,
                notes=tuple(notes),
            )
            _write_record(record, predictor, options, summary, started, raises=finished)
    return summary


def _finish(
    predictor: Predictor,
    item: Item,
    job: _Job,
    output: Path,
    options: PredictOptions,
    recipe_key: str,
    note: Callable[[dict[str, Any]], None],
) -> SegshipError | tuple[str, ...]:
    """The case's notes, or why it could not be done."""
    try:
        if item.error is None and item.image is None and keeps_pictures(options):
            item = replace(item, image=predictor.read(job.path))
        found = predictor.result(item, options.grid)
        if isinstance(found, Failure):
            return found.error
        written = write_case(found, item, job.name, output, options)
    except OutputError:
        raise  # a full disk or a read-only folder: the next file would fare no better
    except SegshipError as error:
        return error
    entry = {"input": job.key, "size": job.size, "mtime_ns": job.mtime_ns, "made_by": recipe_key}
    told = {"notes": list(written.notes), "constant_output": found.constant_output}
    note(entry | told | {"outputs": [_relative(path, output) for path in written.files]})
    return written.notes


class _Kept:
    """How many bytes of decoded pictures wait for their masks: memory stays flat whatever the pictures' size."""

    def __init__(self, most: int) -> None:
        self.free = most
        self.lock = threading.Lock()

    def takes(self, image: Image) -> bool:
        with self.lock:
            fits = image.pixels.nbytes <= self.free
            self.free -= image.pixels.nbytes if fits else 0
        return fits

    def give_back(self, image: Image | None) -> None:
        with self.lock:
            self.free += 0 if image is None else image.pixels.nbytes


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.absolute().as_posix()


# ---------------------------------------------------------------------------------------------- planning


def _jobs(inputs: Sequence[Path]) -> list[_Job]:
    jobs = []
    for path, name in zip(inputs, output_names(inputs), strict=True):
        try:
            status = path.stat()
            size, mtime_ns = status.st_size, status.st_mtime_ns
        except OSError:
            size, mtime_ns = -1, -1  # reading it will say why
        jobs.append(_Job(path=path, name=name, key=str(path), size=size, mtime_ns=mtime_ns))
    return jobs


def _without_results(inputs: Sequence[Path], journal: dict[str, dict[str, Any]], output: Path) -> list[Path]:
    """The inputs less what an earlier run wrote: results often lie below the folder that is given as input."""
    results = {os.path.realpath(output / name) for entry in journal.values() for name in entry["outputs"]}
    return [path for path in map(Path, inputs) if os.path.realpath(path) not in results]


def _refuse_overwriting(
    jobs: Sequence[_Job], inputs: Sequence[Path], output: Path, predictor: Predictor, options: PredictOptions
) -> None:
    sources = {os.path.realpath(path) for path in inputs}
    classes = range(predictor.manifest.network.outputs[0].channels)
    for job in jobs:
        result = Path(os.path.realpath(output)) / f"{job.name}{SUFFIX[options.format]}"
        for path in (result, *(class_path(result, k) for k in classes)):
            if str(path) in sources:
                raise UsageError(
                    f"the result of {job.path} would overwrite the input {path}; choose another folder with -o"
                )


def _recipe_key(predictor: Predictor, options: PredictOptions) -> str:
    """Hash of all that decides an output's content besides the input: package, precision, engine, options."""
    parts = [predictor.package.sha256, predictor.precision, predictor.engine, predictor.options.device]
    parts += [predictor.array_order, json.dumps(options.content(), sort_keys=True)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _is_done(job: _Job, entry: dict[str, Any] | None, recipe_key: str, output: Path) -> bool:
    if entry is None or entry["made_by"] != recipe_key:
        return False
    if (entry["size"], entry["mtime_ns"]) != (job.size, job.mtime_ns):
        return False
    return all((output / name).is_file() for name in entry["outputs"])


# --------------------------------------------------------------------------------------------- the record


def _read_journal(output: Path) -> dict[str, dict[str, Any]]:
    """Input -> its last entry. A line that was cut off (a killed run) counts as not written."""
    try:
        lines = (output / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    entries = {}
    for line in lines:
        try:
            entry = json.loads(line)
            entries[str(entry["input"])] = {
                "size": int(entry["size"]),
                "mtime_ns": int(entry["mtime_ns"]),
                "made_by": str(entry["made_by"]),
                "outputs": [str(name) for name in entry["outputs"]],
            }
        except (ValueError, KeyError, TypeError):
            continue
    return entries


@contextmanager
def _journal_writer(output: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
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
        line = json.dumps(entry, sort_keys=True, ensure_ascii=False) + "\n"
        try:
            stream.write(line.encode())
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


def _record_name(options: PredictOptions) -> str:
    part = "" if options.num_parts == 1 else f"-{options.part_id}-of-{options.num_parts}"
    return f"segship-run{part}.json"


def _write_record(
    path: Path, predictor: Predictor, options: PredictOptions, summary: PredictSummary, started: datetime, raises: bool
) -> None:
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
            "batch": options.batch or predictor.batch,
        },
        "machine": {"processor": processor().label, "cores": processor().cores, "system": platform.platform()},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
        "options": options.content() | {"num_parts": options.num_parts, "part_id": options.part_id},
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
