"""Many cases to label files: names, order, resume, and what else is written for a case.

Beside ``<case><ending>`` the output folder holds ``<case>.npz`` and ``<case>.pkl`` where probabilities are asked for (in
nnU-Net v2's form, which its ensembling reads), ``previews/<case>.png``, and the journal and record of `journal`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from segship.errors import InputError, OutputError, SegshipError, UsageError
from segship.inference.journal import (
    Journal,
    Note,
    PredictSummary,
    journal_writer,
    read_journal,
    record_name,
    relative,
    write_record,
)
from segship.inference.predictor import Failure
from segship.inference.volume_budget import Budget, choose_setting
from segship.inference.volume_cases import Case, find_cases
from segship.inference.volume_cost import Cost, cost_of, in_words, peak_of, process_peak
from segship.inference.volume_files import file_names, write_case
from segship.inference.volume_network import TileOptions, first_tiles
from segship.inference.volume_prediction import VOLUME_SUFFIXES
from segship.inference.volume_predictor import CaseItem, VolumePredictor
from segship.manifest import VolumeInput

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class CaseOptions:
    """What `predict_cases` does and writes."""

    tiles: TileOptions = field(default_factory=TileOptions)
    probabilities: bool = False
    """also ``<case>.npz`` (float32, classes first) and ``<case>.pkl``, as nnU-Net v2 writes them"""
    preview: bool = False
    """also three planes as a PNG, in ``previews/``"""
    postprocess: bool = True
    """apply the package's own component rules"""
    suffix: str | None = None
    """form of the label files; None: the package's own file ending"""
    previous: Path | None = None
    """folder with the labels of a cascade's first stage, under the cases' names; None: its package runs"""
    time_budget: float | None = None
    """seconds that a case may take; the best setting that keeps to it runs, see `volume_budget`"""
    memory: int | None = None
    """bytes; a case that needs more is refused, with the numbers"""
    num_parts: int = 1
    part_id: int = 0
    resume: bool = True

    def __post_init__(self) -> None:
        if self.num_parts < 1 or not 0 <= self.part_id < self.num_parts:
            raise UsageError(f"part_id counts from 0 to num_parts - 1, got part {self.part_id} of {self.num_parts}")
        if self.suffix is not None and self.suffix not in VOLUME_SUFFIXES:
            raise UsageError(f"labels are written as {', '.join(VOLUME_SUFFIXES)}, not '{self.suffix}'")

    def content(self) -> dict[str, object]:
        """The options that decide what the files hold."""
        tiles = self.tiles
        some = {} if tiles.mirror_axes is None else {"mirror_axes": list(tiles.mirror_axes)}
        return some | {
            "step_size": tiles.step_size,
            "mirror": tiles.mirror,
            "members": None if tiles.members is None else list(tiles.members),
            "half_sums": tiles.half_sums,
            "probabilities": self.probabilities,
            "preview": self.preview,
            "postprocess": self.postprocess,
            "suffix": self.suffix,
            "previous": None if self.previous is None else str(self.previous),
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is going to do, told before it starts."""

    cases: int
    skipped: int
    passes: int
    """of the network over all cases, at most"""
    about: str
    """where the largest case's passes come from: tiles x mirrorings x members"""
    memory: int | None
    """bytes at the peak; None where no header could be read, or nobody asked"""
    overlap: bool
    base: int = 0
    """bytes of it that process, engine and network take"""
    budget: Budget | None = None
    """what a time budget made of the settings"""

    def __str__(self) -> str:
        there = f" ({self.skipped} already there)" if self.skipped else ""
        if not self.passes:
            return f"{self.cases} case(s){there}"
        memory = "" if self.memory is None else f"; memory about {in_words(self.memory)}"
        return f"{self.cases} case(s){there}, at most {self.passes:,} passes of the network ({self.about}){memory}"


@dataclass(frozen=True, kw_only=True)
class _Job:
    case: Case
    key: str
    """the first file as given; the case's name in the journal"""
    size: int
    mtime_ns: int
    cost: Cost | None


def predict_cases(
    predictor: VolumePredictor,
    inputs: Sequence[Path | str],
    output: Path,
    options: CaseOptions | None = None,
    progress: Progress | None = None,
    announce: Callable[[Plan], None] | None = None,
) -> PredictSummary:
    """Predict folders and files of cases into a folder. A broken case is listed in the summary, the others go on.

    ``progress`` is told windows done, windows of the case under way, and its name with its place among the others;
    ``announce`` is told the plan before the first case is read. Raises UsageError when a result would overwrite an
    input or options do not fit the package, OutputError as soon as something cannot be written. Ctrl-C leaves no
    half-written file; what was done is recorded and skipped the next time.
    """
    options = options or CaseOptions()
    output = Path(output)
    _check(predictor, options)
    start, started = time.perf_counter(), datetime.now(UTC)
    spec = _input(predictor)
    cases, problems = find_cases(inputs, spec)
    options, budget = _within_budget(predictor, cases, options, output)
    recipe_key = _recipe_key(predictor, options)
    jobs = [_job(case, predictor, options) for case in cases][options.part_id :: options.num_parts]
    _refuse_overwriting(jobs, output, _ending(predictor, options))
    journal = read_journal(output)
    todo = [
        job for job in jobs if not (options.resume and journal.is_done(job.key, job.size, job.mtime_ns, recipe_key))
    ]
    measure = announce is not None or options.memory is not None
    if measure:
        todo = _after_first_stage(predictor, todo, options)
    failed: list[tuple[str, str]] = [(problem, problem) for problem in problems] if options.part_id == 0 else []
    plan = replace(_plan(predictor, todo, len(jobs) - len(todo), options, measure=measure), budget=budget)
    if announce is not None:
        announce(plan)
    fitting = []
    for job in todo:
        refusal = _too_much(job, plan, options)
        if refusal is None:
            fitting.append(job)
        else:
            failed.append((job.key, refusal))
    notes: list[tuple[str, str]] = []
    done = 0
    finished = False
    record = output / record_name(options.num_parts, options.part_id)
    places = {job.case.name: f"{job.case.name} ({n} of {len(fitting)})" for n, job in enumerate(fitting, 1)}
    with journal_writer(output) as note:

        def finish(item: CaseItem) -> SegshipError | tuple[str, ...]:
            return _finish(predictor, item, fitting[item.number], journal, options, recipe_key, note)

        results = predictor.run_cases(
            (job.case for job in fitting),
            finish,
            tiles=options.tiles,
            previous=_previous(fitting, spec, options),
            progress=None if progress is None else lambda d, t, name: progress(d, t, places.get(name, name)),
            overlap=plan.overlap,
            keep_image=options.preview,
        )
        try:
            for job, outcome in zip(fitting, results, strict=True):
                if isinstance(outcome, SegshipError):
                    failed.append((job.key, str(outcome)))
                else:
                    done += 1
                    notes += [(job.key, text) for text in outcome]
            finished = True
        finally:
            results.close()
            summary = PredictSummary(
                done=done,
                skipped=len(jobs) - len(todo),
                failed=tuple(failed),
                seconds=time.perf_counter() - start,
                record=record,
                interrupted=not finished,
                notes=tuple(notes),
                time_budget=None if budget is None else budget.as_dict(),
            )
            told = options.content() | {"num_parts": options.num_parts, "part_id": options.part_id}
            if predictor.previous_package is not None:
                told["previous_stage"] = str(predictor.previous_package)
            write_record(record, predictor, told, summary, started, batch=options.tiles.batch, raises=finished)
    return summary


def _within_budget(
    predictor: VolumePredictor, cases: Sequence[Case], options: CaseOptions, output: Path
) -> tuple[CaseOptions, Budget | None]:
    """The options with the setting that a time budget chose. Of all cases, so that every part of a run chooses alike."""
    if options.time_budget is None:
        return options, None
    budget = choose_setting(predictor, cases, options.tiles, options.time_budget, output, options.previous)
    if budget is None:
        return options, None
    return replace(options, tiles=budget.applied(options.tiles, predictor.manifest.recipe)), budget


def plan_cases(predictor: VolumePredictor, inputs: Sequence[Path | str], options: CaseOptions | None = None) -> Plan:
    """What `predict_cases` would do, journal aside. Runs one window to measure the network's memory."""
    options = options or CaseOptions()
    _check(predictor, options)
    cases, _ = find_cases(inputs, _input(predictor))
    jobs = [_job(case, predictor, options) for case in cases][options.part_id :: options.num_parts]
    return _plan(predictor, _after_first_stage(predictor, jobs, options), 0, options, measure=True)


# ------------------------------------------------------------------------------------------------- planning


def _input(predictor: VolumePredictor) -> VolumeInput:
    spec = predictor.manifest.input
    assert isinstance(spec, VolumeInput)
    return spec


def _ending(predictor: VolumePredictor, options: CaseOptions) -> str:
    return options.suffix or _input(predictor).file_ending


def _check(predictor: VolumePredictor, options: CaseOptions) -> None:
    members = predictor.manifest.network.members
    unknown = [name for name in options.tiles.members or () if name not in members]
    if unknown:
        raise UsageError(f"the package has no member '{unknown[0]}'; it has: {', '.join(members)}")
    if options.previous is not None and predictor.manifest.previous_stage is None:
        raise UsageError(f"package '{predictor.manifest.name}' continues no other; leave out --prev-stage-predictions")
    if options.previous is not None and not options.previous.is_dir():
        raise UsageError(
            f"there is no folder {options.previous}; --prev-stage-predictions names the first stage's results"
        )


def _job(case: Case, predictor: VolumePredictor, options: CaseOptions) -> _Job:
    size = mtime = 0
    for file in case.files:
        try:
            status = file.stat()
            size, mtime = size + status.st_size, max(mtime, status.st_mtime_ns)
        except OSError:
            size, mtime = -1, -1  # reading it will say why
            break
    cost = cost_of(
        case.files, predictor.manifest, options.tiles, probabilities=options.probabilities, image=options.preview
    )
    return _Job(case=case, key=str(case.files[0]), size=size, mtime_ns=mtime, cost=cost)


def _after_first_stage(predictor: VolumePredictor, jobs: Sequence[_Job], options: CaseOptions) -> list[_Job]:
    """With the memory of a cascade's first stage, where that runs on each case before this one."""
    if predictor.manifest.previous_stage is None or options.previous is not None or not jobs:
        return list(jobs)
    try:
        first = predictor.first_stage()
    except SegshipError:  # each case will say why
        return list(jobs)
    tiles = first_tiles(options.tiles)
    first.run_one_window(tiles)
    costs = [cost_of(job.case.files, first.manifest, tiles) for job in jobs]
    return [
        job if job.cost is None or cost is None else replace(job, cost=job.cost.after(cost))
        for job, cost in zip(jobs, costs, strict=True)
    ]


def _plan(
    predictor: VolumePredictor, jobs: Sequence[_Job], skipped: int, options: CaseOptions, *, measure: bool
) -> Plan:
    """``measure``: run one window for the network's memory."""
    known = [job.cost for job in jobs if job.cost is not None]
    manifest = predictor.manifest
    assert manifest.tiling is not None
    tiling = options.tiles.applied(manifest.tiling)
    mirrors, members = 2 ** len(tiling.mirror_axes), len(options.tiles.members or manifest.network.members)
    tiles = max((cost.passes for cost in known), default=0) // (mirrors * members)
    memory, overlap, base = None, True, 0
    if known and measure:
        base = predictor.measured_memory(options.tiles, max(cost.passes for cost in known) // members)
        memory = max(process_peak(), base + peak_of(known))
        if options.memory is not None and memory > options.memory:
            memory, overlap = max(process_peak(), base + max(cost.bytes for cost in known)), False
    return Plan(
        base=base,
        cases=len(jobs) + skipped,
        skipped=skipped,
        passes=sum(cost.passes for cost in known),
        about=f"up to {tiles} windows x {mirrors} mirrorings x {members} folds a case",
        memory=memory,
        overlap=overlap,
    )


def _too_much(job: _Job, plan: Plan, options: CaseOptions) -> str | None:
    """Why a case is refused, or None."""
    if options.memory is None or job.cost is None:
        return None
    base = plan.base
    need = base + job.cost.bytes
    if need <= options.memory:
        return None
    grid = "x".join(map(str, job.cost.grid))
    return (
        f"{job.case.name} needs about {in_words(need)} ({in_words(base)} for the network, {in_words(job.cost.bytes)} for "
        f"a grid of {grid}), and --memory allows {in_words(options.memory)}; raise it, or leave out probabilities"
    )


def _refuse_overwriting(jobs: Sequence[_Job], output: Path, ending: str) -> None:
    sources = {os.path.realpath(file) for job in jobs for file in job.case.files}
    for job in jobs:
        result = output / f"{job.case.name}{ending}"
        if os.path.realpath(result) in sources:
            raise UsageError(f"the labels of {job.case.name} would overwrite the input {result}; choose another -o")


def _recipe_key(predictor: VolumePredictor, options: CaseOptions) -> str:
    """Hash of all that decides a label file besides the case: package, precision, engine, options."""
    parts = [predictor.package.sha256, predictor.precision, predictor.engine, predictor.options.device]
    parts += [json.dumps(options.content(), sort_keys=True)]
    if predictor.previous_package is not None:
        parts.append(str(predictor.previous_package))
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def _previous(jobs: Sequence[_Job], spec: VolumeInput, options: CaseOptions) -> Callable[[int], Path | None]:
    def find(number: int) -> Path | None:
        if options.previous is None:
            return None
        file = options.previous / f"{jobs[number].case.name}{spec.file_ending}"
        if not file.is_file():
            raise InputError(f"{file} is missing: the first stage's labels of {jobs[number].case.name}")
        return file

    return find


# -------------------------------------------------------------------------------------------------- writing


def _finish(
    predictor: VolumePredictor,
    item: CaseItem,
    job: _Job,
    journal: Journal,
    options: CaseOptions,
    recipe_key: str,
    note: Note,
) -> SegshipError | tuple[str, ...]:
    """The case's notes, or why it could not be done."""
    output, ending = journal.output, _ending(predictor, options)
    entry = {"input": job.key, "size": job.size, "mtime_ns": job.mtime_ns, "made_by": recipe_key}
    try:
        found = predictor.case_result(item)
        if isinstance(found, Failure):
            return found.error
        found = found if options.postprocess else replace(found, clean=False)
        journal.void(entry, file_names(job.case.name, ending, options.probabilities, options.preview), note)
        files = write_case(
            found, output, job.case.name, ending, probabilities=options.probabilities, preview=options.preview
        )
    except OutputError:
        raise  # a full disk or a read-only folder: the next case would fare no better
    except SegshipError as error:
        return error
    except MemoryError:
        return InputError(f"{job.case.name} does not fit into memory while it is written; leave out probabilities")
    told = {"notes": list(found.notes), "constant_output": found.constant_output}
    note(entry | told | {"outputs": [relative(path, output) for path in files]})
    return found.notes
