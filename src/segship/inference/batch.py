"""Many files to many files: names, resume, and the record of the run.

The output folder holds the results, ``predictions.jsonl`` (one line an input done: from which file, by what, into
which files; resume reads it) and ``segship-run.json`` (versions, engine, options, hashes, failures).
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from segship.errors import OutputError, SegshipError, UsageError
from segship.inference.images import Image
from segship.inference.journal import (
    JOURNAL,
    Journal,
    Note,
    PredictSummary,
    journal_writer,
    read_journal,
    record_name,
    relative,
    write_record,
)
from segship.inference.outputs import PredictOptions, file_names, keeps_pictures, needs_scores, output_names, write_case
from segship.inference.predictor import Failure, Item, Predictor

__all__ = ["JOURNAL", "PredictSummary", "predict_files"]

Progress = Callable[[int, int, str], None]

KEPT_BYTES = 256 << 20
"""decoded pictures that wait for their masks at once; those beyond are read a second time"""


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
    named: Iterable[Path | str] = (),
) -> PredictSummary:
    """Predict files into a folder. A broken input is listed in the summary, the others go on.

    Inputs that an earlier run wrote into the folder are left out; not so files that are ``named``, as a user names
    one outright. Raises UsageError when a result would overwrite an input or nothing but such results is left,
    OutputError as soon as something cannot be written.
    Ctrl-C (KeyboardInterrupt) leaves no half-written file; what was done is recorded and skipped the next time.
    """
    options = options or PredictOptions()
    options.check(predictor.manifest)
    output = Path(output)
    start, started = time.perf_counter(), datetime.now(UTC)
    recipe_key = _recipe_key(predictor, options)
    journal = read_journal(output)
    sources = _without_results(inputs, named, journal)
    jobs = _jobs(sources)[options.part_id :: options.num_parts]
    _refuse_overwriting(jobs, sources, output, predictor, options)
    todo = [
        job for job in jobs if not (options.resume and journal.is_done(job.key, job.size, job.mtime_ns, recipe_key))
    ]
    skipped = len(jobs) - len(todo)
    failed: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    kept = _Kept(KEPT_BYTES)
    done = 0
    finished = False
    record = output / record_name(options.num_parts, options.part_id)
    with journal_writer(output) as note:

        def finish(item: Item) -> SegshipError | tuple[str, ...]:
            try:
                return _finish(predictor, item, todo[item.number], journal, options, recipe_key, note)
            finally:
                kept.give_back(item.image)

        results = predictor.run(
            (job.path for job in todo),
            finish,
            batch=options.batch,
            keep_images=kept.takes if keeps_pictures(options) else False,
            keep_inputs=options.stages is not None,
            keep_scores=needs_scores(options),
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
            told = options.content() | {"num_parts": options.num_parts, "part_id": options.part_id}
            if predictor.views:
                told["augmentation"] = [
                    view.model_dump(mode="json", include={"preprocess"}) for view in predictor.views
                ]
            write_record(record, predictor, told, summary, started, batch=options.batch, raises=finished)
    return summary


def _finish(
    predictor: Predictor,
    item: Item,
    job: _Job,
    journal: Journal,
    options: PredictOptions,
    recipe_key: str,
    note: Note,
) -> SegshipError | tuple[str, ...]:
    """The case's notes, or why it could not be done."""
    output = journal.output
    entry = {"input": job.key, "size": job.size, "mtime_ns": job.mtime_ns, "made_by": recipe_key}
    try:
        if item.error is None and item.image is None and keeps_pictures(options):
            item = replace(item, image=predictor.read(job.path))
        found = predictor.result(item, options.grid)
        if isinstance(found, Failure):
            return found.error
        journal.void(entry, file_names(job.name, output, options, predictor.manifest), note)
        written = write_case(found, item, job.name, output, options)
    except OutputError:
        raise  # a full disk or a read-only folder: the next file would fare no better
    except SegshipError as error:
        return error
    told = {"notes": list(written.notes), "constant_output": found.constant_output}
    note(entry | told | {"outputs": [relative(path, output) for path in written.files]})
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


def _without_results(inputs: Sequence[Path], named: Iterable[Path | str], journal: Journal) -> list[Path]:
    """The inputs less what earlier runs wrote: results often lie below the folder that is given as input."""
    results = {os.path.realpath(journal.output / name) for name in journal.owners}
    outright = {Path(item) for item in named}
    sources = [path for path in map(Path, inputs) if path in outright or os.path.realpath(path) not in results]
    if inputs and not sources:
        raise UsageError(
            f"all inputs are results of an earlier run into {journal.output}; choose another folder with -o"
        )
    return sources


def _refuse_overwriting(
    jobs: Sequence[_Job], inputs: Sequence[Path], output: Path, predictor: Predictor, options: PredictOptions
) -> None:
    sources = {os.path.realpath(path) for path in inputs}
    folder = os.path.realpath(output)
    for job in jobs:
        for name in file_names(job.name, output, options, predictor.manifest):
            path = os.path.normpath(os.path.join(folder, name))
            if path in sources:
                raise UsageError(
                    f"the result of {job.path} would overwrite the input {path}; choose another folder with -o"
                )


def _recipe_key(predictor: Predictor, options: PredictOptions) -> str:
    """Hash of all that decides an output's content besides the input: package, precision, engine, options."""
    parts = [predictor.package.sha256, predictor.precision, predictor.engine, predictor.options.device]
    parts += [predictor.array_order, json.dumps(options.content(), sort_keys=True)]
    parts += [view.model_dump_json(include={"preprocess"}) for view in predictor.views]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
