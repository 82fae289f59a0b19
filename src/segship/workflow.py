"""`segship run`: the verbs in their order, from a checkpoint and a folder of images to a report.

    divide the data -> export and prove -> precisions -> evaluate -> predictions -> benchmark -> report

Each step leaves its result in the run folder, and ``steps.json`` says what it was made from: run again after an
interruption, finished steps are taken as they are; after a change only what depends on it is done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segship.datasets import Case, Dataset, default_split, divide_by_pixels, open_dataset, recognise_layout
from segship.engines import get_engine
from segship.errors import BarMissed, DatasetError, OutputError, PrecisionMissing, SegshipError, UsageError
from segship.inference.images import find_inputs
from segship.inference.writers import write_bytes
from segship.measure import rundir
from segship.measure.rundir import StepsFolder as _Folder
from segship.measure.volume_run import (
    bring_previous,
    files_of,
    link_cases,
    predict_volumes,
    sample_case,
    window_batches,
)
from segship.package import Package, dump_json, open_package

Progress = Callable[[int, int, str], None]
Say = Callable[[str], None]

DIVISION = "division.json"
CALIBRATION = "calibration"
CALIBRATION_LIMIT = 300
BENCHMARK_FILES = 16
TURN_SECONDS = 1.0
"""after so long a benchmark's turn ends early: networks that take a second a call would be timed for an hour"""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `segship run` may be told; everything has a default but the data."""

    data: Path
    output: Path
    calibrate: Path | None = None
    """calibration images; without it the data set is divided by ``split``, else by a hash of each image"""
    layout: str | None = None
    split: str | None = None
    precisions: tuple[str, ...] = ("fp16", "int8")
    max_drop: float | None = None
    engine: str | None = None
    against: tuple[str, ...] | None = None
    """engines to benchmark beside; None: those that are installed"""
    device: str = "cpu"
    threads: int | None = None
    batches: tuple[int, ...] = (1, 8)
    iterations: int = 5
    repeat: int = 2
    sample: Path | None = None
    family: str | None = None
    family_options: Mapping[str, Any] = field(default_factory=dict)
    trust_pickle: bool = False
    force: bool = False
    again: bool = False
    """do everything again, whatever is there"""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    package: Package
    report: Path
    summary: dict[str, Any]

    def lines(self) -> list[str]:
        """The run in a few lines of text, each number with its name."""
        rows = [row for row in self.summary["variants"] if row["value"] is not None] or self.summary["variants"]
        metric = self.summary["metric"]["name"]
        cases = (self.summary["dataset"] or {}).get("cases")
        timed = (self.summary.get("benchmark") or {}).get("inputs", "a case")
        return [rundir.variant_line(row, metric, cases, timed) for row in rows]


def run(
    source: Path | str, options: RunOptions, *, say: Say | None = None, progress: Progress | None = None
) -> RunResult:
    """Do everything, step by step. Raises what the steps raise; finished steps stay for the next call."""
    say = say or (lambda _: None)
    folder = _Folder(options.output, options.again)
    data, calibration, notes = _divide(options, folder, say)
    package = _export(Path(source), options, folder, say, progress)
    package, skipped = _compile(package, options, data, calibration, folder, say, progress)
    evaluation = _evaluate(package, options, data, folder, say, progress) if data else None
    package = open_package(package.path)
    _predict(package, options, data, folder, say, progress)
    timed = _benchmark(package, options, data, folder, say, progress)
    skipped += window_batches(package.manifest, options.batches)[1]
    summary = rundir.write_run_summary(
        options.output,
        package,
        evaluation=evaluation,
        benchmark=timed,
        parity=package.provenance().get("parity", []),
        notes=[*notes, *skipped],
    )
    from segship.measure.report import report

    say("report")
    return RunResult(package=package, report=report(options.output), summary=summary)


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------- steps


def _divide(options: RunOptions, folder: _Folder, say: Say) -> tuple[Dataset | None, Path | None, list[str]]:
    """(evaluation cases, where calibration images are, notes). Images without masks give no evaluation."""
    if options.output.exists() and not options.output.is_dir():
        raise OutputError(f"{options.output} is a file; name a folder with -o")
    try:
        layout = options.layout or recognise_layout(options.data)
    except DatasetError:
        if options.split or not options.data.is_dir():
            raise
        find_inputs([options.data])  # an empty folder is said now, not after the export
        return None, options.calibrate, ["the data has no masks that segship reads: accuracy was not measured"]
    own = default_split(options.data, layout)
    whole = open_dataset(options.data, layout, options.split or own)
    if options.calibrate is not None:
        return whole, options.calibrate, []
    if own is not None and options.split is None:
        return whole, *_training_side(options.data, layout, own)
    if options.split is not None:
        rest = open_dataset(options.data, options.layout, options.split, part="training")
        return whole, _keep_calibration(rest, folder, say), []
    calibration, evaluation = divide_by_pixels(whole)
    write_bytes(
        folder.path / DIVISION,
        dump_json({"rule": "sha256 of decoded pixels", "calibration": calibration.ids, "evaluation": evaluation.ids}),
    )
    say(f"data divided by a hash of each image: {len(calibration.ids)} to calibrate on, {len(evaluation.ids)} to score")
    note = f"the data was divided by a hash of each image: {len(evaluation.ids)} of {len(whole.ids)} cases are scored"
    return evaluation, _keep_calibration(calibration, folder, say), [note]


def _training_side(data: Path, layout: str, split: str) -> tuple[Path | None, list[str]]:
    """Where to calibrate of a data set that divides itself: the data set, whose training cases are taken there."""
    try:
        open_dataset(data, layout, split, part="training")
    except DatasetError as error:
        return None, [f"nothing to calibrate on: {error}"]
    return data, []


def _keep_calibration(dataset: Dataset, folder: _Folder, say: Say) -> Path:
    """The calibration side as a list of files; images out of an archive are written into the run folder. Of cases with
    label files: a folder of both."""
    if any(case.label_file is not None for case in dataset.cases):
        return link_cases(dataset, folder.path / CALIBRATION)
    step = max(1, len(dataset.cases) // CALIBRATION_LIMIT)
    chosen = dataset.cases[::step][:CALIBRATION_LIMIT]
    target = folder.path / CALIBRATION
    lines = [str(_as_file(case, target)) for case in chosen]
    listing = folder.path / f"{CALIBRATION}.txt"
    write_bytes(listing, ("\n".join(lines) + "\n").encode())
    return listing


def _as_file(case: Case, folder: Path) -> Path:
    source = case.read_image()
    if not isinstance(source, bytes):
        return files_of(case)[0]
    path = folder / f"{case.id}.png"
    if not path.exists():
        write_bytes(path, source)
    return path.resolve()


def _export(source: Path, options: RunOptions, folder: _Folder, say: Say, progress: Progress | None) -> Package:
    path = folder.path / rundir.PACKAGE
    key = _key(rundir.identity(source), dict(options.family_options), options.family, options.sample, options.force)
    if folder.has("export", key, path):
        say("export: already there")
        return open_package(path)
    from segship.convert.export import export

    say("export and parity")
    result = export(
        source,
        path,
        family=options.family,
        options=options.family_options,
        sample=options.sample,
        trust_pickle=options.trust_pickle,
        force=options.force,
        progress=progress,
    )
    for warning in result.warnings:
        say(f"warning: {warning}")
    folder.finished("export", key)
    bring_previous(options.family_options.get("previous_stage"), folder.path)
    return result.package


def _compile(
    package: Package,
    options: RunOptions,
    data: Dataset | None,
    calibration: Path | None,
    folder: _Folder,
    say: Say,
    progress: Progress | None,
) -> tuple[Package, list[str]]:
    """The package with every precision that can be had, and a note for each that cannot."""
    from segship.convert.precision import CALIBRATED, compile_package

    notes = []
    offered = get_engine(options.engine or "openvino").PRECISIONS
    for precision in options.precisions:
        if precision == "fp32":
            continue
        if precision in CALIBRATED and calibration is None:
            notes.append(f"{precision} was left out: there are no calibration images (--calibrate)")
            continue
        if precision not in offered:
            notes.append(f"{precision} was left out: {options.engine or 'openvino'} does not run it")
            continue
        graph = package.manifest.variants[0].sha256
        key = _key(
            precision, graph, str(calibration), options.max_drop, data.ids if data and options.max_drop else None
        )
        if folder.has(f"compile-{precision}", key) and package.manifest.variant(precision):
            say(f"{precision}: already there")
            continue
        say(f"compile {precision}")
        gated = data is not None and options.max_drop is not None
        try:
            result = compile_package(
                package,
                precision,
                calibrate=calibration if precision in CALIBRATED else None,
                batches=options.batches,
                max_drop=options.max_drop if gated else None,
                validate=data if gated else None,
                engine=options.engine,
                progress=progress,
            )
        except PrecisionMissing as error:
            notes.append(f"{precision} was left out: {error}")
            continue
        except BarMissed as error:
            if gated:
                raise
            # nobody named a bar: masks too far from fp32's cost this precision alone, not the run
            notes.append(f"{precision} was left out: {str(error).splitlines()[0]}")
            continue
        for warning in result.warnings:
            say(f"warning: {warning}")
        notes += result.warnings
        package = result.package
        folder.finished(f"compile-{precision}", key)
    return package, notes


def _evaluate(
    package: Package, options: RunOptions, data: Dataset, folder: _Folder, say: Say, progress: Progress | None
) -> dict[str, Any]:
    """`evaluation/summary.json`: every variant on the same cases, recorded in the package."""
    target = folder.path / rundir.EVALUATION
    summary = target / "summary.json"
    batches = window_batches(package.manifest, options.batches)[0]
    key = _key([v.sha256 for v in package.manifest.variants], data.ids, options.engine, options.device, *batches)
    if folder.has("evaluate", key, summary):
        say("evaluate: already there")
        return _load(summary)
    from segship.measure.evaluate import evaluate

    say(f"evaluate on {len(data.ids)} images")
    result = evaluate(
        package,
        data,
        precision=[v.precision for v in package.manifest.variants],
        engine=options.engine,
        device=options.device,
        threads=options.threads,
        batch=batches or max(options.batches),
        output=target,
        progress=progress,
    )
    folder.finished("evaluate", key)
    return _load(summary) if summary.exists() else result.as_dict()


def _load(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SegshipError(f"{path} cannot be read ({error}); run again with --again") from None
    return data


def _predict(
    package: Package, options: RunOptions, data: Dataset | None, folder: _Folder, say: Say, progress: Progress | None
) -> None:
    """`predictions/`: masks of the evaluated images (or of all, without ground truth), and the scores beside them."""
    from segship.inference.batch import predict_files
    from segship.inference.images import find_inputs
    from segship.inference.outputs import PredictOptions
    from segship.inference.predictor import Predictor

    target = folder.path / rundir.PREDICTIONS
    volumes = package.manifest.input.kind == "volume"
    if volumes:
        paths = [file for case in data.cases for file in files_of(case)] if data else [options.data]
    else:
        paths = [_as_file(case, folder.path / "inputs") for case in data.cases] if data else find_inputs([options.data])
    say(f"predictions for {len(data.cases) if data else len(paths)} {'cases' if volumes else 'images'}")
    with Predictor.open(
        package, engine=options.engine, device=options.device, threads=options.threads, batch=max(options.batches)
    ) as predictor:
        if volumes:
            return predict_volumes(predictor, paths, target, folder.path / rundir.EVALUATION, progress)
        summary = predict_files(predictor, paths, target, PredictOptions(overlay=True), progress)
    if summary.failed:
        name, message = summary.failed[0]
        raise SegshipError(
            f"{len(summary.failed)} of {len(paths)} images could not be predicted; first {name}: {message}"
        )
    scores = folder.path / rundir.EVALUATION / "summary.json"
    if scores.exists():
        write_bytes(target / "summary.json", scores.read_bytes())


def _benchmark(
    package: Package, options: RunOptions, data: Dataset | None, folder: _Folder, say: Say, progress: Progress | None
) -> dict[str, Any]:
    """`benchmark.json`: every variant, the engine of choice first, the other installed ones beside it."""
    path = folder.path / rundir.BENCHMARK
    own = options.engine or "openvino"
    volumes = package.manifest.input.kind == "volume"
    against = options.against if options.against is not None else () if volumes else _others(own)
    settings = [options.batches, own, against, options.device, options.threads, options.iterations, options.repeat]
    key = _key([v.sha256 for v in package.manifest.variants], settings)
    if folder.has("benchmark", key, path):
        say("benchmark: already there")
        return _load(path)
    from segship.measure.benchmark import benchmark

    say("benchmark")
    inputs: list[Path] | None = [options.data]
    if volumes:  # a case of one window: those of a data set may take minutes each
        inputs = sample_case(package, data)
    elif data:
        inputs = [_as_file(case, folder.path / "inputs") for case in data.cases[:BENCHMARK_FILES]]
    result = benchmark(
        package,
        inputs,
        batch=window_batches(package.manifest, options.batches)[0] or options.batches,
        engine=own,
        against=against,
        device=[options.device],
        threads=[options.threads],
        iterations=options.iterations,
        at_most_s=TURN_SECONDS,
        repeat=options.repeat,
        progress=progress,
    ).as_dict()
    write_bytes(path, dump_json(result))
    folder.finished("benchmark", key)
    return result


def _others(own: str) -> tuple[str, ...]:
    names = [name for name in ("onnxruntime", "pytorch") if name != own]
    return tuple(name for name in names if get_engine(name).availability().version is not None)


def require_data(path: Path | None) -> Path:
    """The data folder or archive. Raises UsageError when it is not there."""
    if path is None or not path.exists():
        raise UsageError(
            f"there is no data at {path}; --data takes a folder or archive of images, with masks to be scored"
        )
    return path
