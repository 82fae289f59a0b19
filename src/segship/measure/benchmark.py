"""`segship benchmark`: how fast a package is here, its variants and other engines side by side in one run.

Two rates are measured, never mixed: the bare network on prepared arrays, and files → mask files, which is what a
user waits for (reading, preprocessing, inference, decoding, writing PNG). Before any time is taken, every setting's
answer to the same real inputs is compared with the first fp32 setting's; a fast wrong answer shows.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from segship.engines import DEFAULT_ENGINE, get_engine
from segship.errors import EngineError, PackageError, UsageError
from segship.inference.batch import predict_files
from segship.inference.images import find_inputs
from segship.inference.outputs import PredictOptions
from segship.inference.precision import canonical_precision
from segship.inference.predictor import Predictor
from segship.inference.volume_network import TileOptions
from segship.manifest import Manifest
from segship.measure import benchmark_volumes
from segship.measure.agreement import Reference, kind_of
from segship.measure.environment import environment, executed_by, load_average
from segship.measure.rows import Answer, BenchmarkResult, Row, Setting, Unit
from segship.measure.timing import Call, Plan, Timing, measure
from segship.package import Package, open_package

Progress = Callable[[int, int, str], None]
COMPARED = 8
"""real inputs whose answers are compared before times are taken"""
FILES = 64
"""files of one files → masks turn, at most"""
FILES_TURNS = 4
"""as many turns of the bare network one of files → masks may take, where turns have an end"""


def benchmark(
    package: Package | Path | str,
    inputs: Sequence[Path | str] | Path | str | None = None,
    *,
    precision: str | Sequence[str] | None = None,
    batch: Sequence[int] = (1, 4, 8),
    threads: Sequence[int | None] = (None,),
    streams: Sequence[int] = (1,),
    device: Sequence[str] = ("cpu",),
    engine: str | None = None,
    against: Sequence[str] = (),
    iterations: int = 10,
    duration_s: float | None = None,
    at_most_s: float | None = None,
    warmup: int = 2,
    repeat: int = 3,
    files: bool = True,
    cache_dir: Path | str | None = None,
    tiles: TileOptions | None = None,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Time every combination of precision × device × threads × streams on ``engine``, then each engine of ``against``.

    ``precision`` None takes all of the package's variants. ``inputs`` are image files or folders; None takes the
    package's golden sample. Of volumes a batch is one of windows, and one case is timed from its files to its label
    file, run as ``tiles`` says [the package's own way]; see `benchmark_volumes`. ``iterations`` calls (or ``duration_s`` seconds; at most ``at_most_s``) a turn, ``repeat`` turns
    each. An engine of ``against`` skips precisions that it does not run, and says so. Raises UsageError, PackageError, EngineError.
    """
    if min(*batch, *streams) < 1:
        raise UsageError("batch and streams must be positive")
    plan = Plan(warmup=warmup, iterations=iterations, duration_s=duration_s, repeat=repeat, at_most_s=at_most_s)
    opened = package if isinstance(package, Package) else open_package(package)
    notes: list[str] = []
    settings = _settings(opened.manifest, precision, engine or DEFAULT_ENGINE, against, device, threads, streams, notes)
    before = load_average()
    cores = environment()["cores"]
    if before is not None and before > 0.5 * cores:
        notes.append(f"the machine was busy before the start (load {before} on {cores} cores): times are not at rest")
    network: dict[Setting, dict[int, Timing]] = {setting: {} for setting in settings}
    whole: dict[Setting, dict[int, Timing]] = {setting: {} for setting in settings}
    answers: dict[Setting, Answer] = {}
    cases: dict[Setting, dict[int, Timing]] = {setting: {} for setting in settings}
    volumes = opened.manifest.input.kind == "volume"
    if tiles is not None and not volumes:
        raise UsageError("--step-size and --disable-tta are for packages of volumes, and this one takes pictures")
    sizes = list(dict.fromkeys(batch))
    with tempfile.TemporaryDirectory(prefix="segship-benchmark-") as folder:
        scratch = Path(folder)
        if volumes:
            case, about = benchmark_volumes.one_case(opened, inputs, scratch / "inputs")
            notes += benchmark_volumes.remarks(opened.manifest)
        else:
            paths, about = _inputs(opened, inputs, scratch / "inputs", max(sizes))
        for number, size in enumerate(sizes):
            tell = _part(progress, number, len(sizes), f"batch {size}")
            with ExitStack() as stack:
                predictors = _open(stack, opened, settings, size, cache_dir, notes)
                once = Plan(warmup=min(warmup, 1), iterations=1, repeat=repeat, at_most_s=at_most_s)
                if volumes:
                    work = benchmark_volumes.Work(predictors, case, size, tiles or TileOptions(), scratch)
                    answers = answers or work.answers()
                    calls = work.network_calls()
                    _take(cases, size, measure(work.case_calls(), once, tell) if files else {})
                else:
                    answers = answers or _compare(predictors, paths)
                    calls = _network_calls(predictors, size, paths)
                _take(network, size, measure(calls, plan, tell))
                if files:
                    if volumes:
                        calls = work.file_calls()
                    else:
                        few = _few(paths, size, [network[setting][size] for setting in predictors], at_most_s)
                        calls = _file_calls(predictors, size, few, scratch)
                    _take(whole, size, measure(calls, once, tell))
    unit: Unit = "window" if volumes else "image"
    rows = [
        _row(opened, setting, answer, network[setting], whole[setting], cases[setting], unit)
        for setting, answer in answers.items()
    ]
    return BenchmarkResult(
        rows=tuple(rows),
        architecture=opened.manifest.network.architecture,
        environment=environment(),
        options={"batch": sizes, **asdict(plan), "interleaved": True},
        inputs=about,
        notes=tuple(dict.fromkeys(notes)),
        unit=unit,
    )


def _take(into: dict[Setting, dict[int, Timing]], batch: int, found: Mapping[Setting, Timing]) -> None:
    for setting, timing in found.items():
        into[setting][batch] = timing


# ----------------------------------------------------------------------------------------------- settings


def _settings(
    manifest: Manifest,
    precision: str | Sequence[str] | None,
    engine: str,
    against: Sequence[str],
    devices: Sequence[str],
    threads: Sequence[int | None],
    streams: Sequence[int],
    notes: list[str],
) -> list[Setting]:
    """All combinations on ``engine``; of each other engine those that it runs."""
    named = [precision] if isinstance(precision, str) else precision
    wanted = [canonical_precision(p) for p in named or [v.precision for v in manifest.variants]]
    settings = []
    for name in dict.fromkeys([engine, *against]):
        offered = get_engine(name).PRECISIONS
        for kind, device, count, parallel in itertools.product(dict.fromkeys(wanted), devices, threads, streams):
            if name != engine and kind not in offered:
                notes.append(f"{name} does not run {kind}: left out")
                continue
            settings.append(Setting(engine=name, precision=kind, device=device, threads=count, streams=parallel))
    return list(dict.fromkeys(settings))


def _open(
    stack: ExitStack,
    package: Package,
    settings: Sequence[Setting],
    batch: int,
    cache_dir: Path | str | None,
    notes: list[str],
) -> dict[Setting, Predictor]:
    """A predictor for each setting. Those of the first setting's engine must open; another's failure is a note."""
    opened = {}
    for setting in settings:
        try:
            predictor = Predictor.open(
                package,
                precision=setting.precision,
                engine=setting.engine,
                device=setting.device,
                threads=setting.threads,
                streams=setting.streams,
                batch=batch,
                cache_dir=cache_dir,
            )
        except (EngineError, PackageError) as error:
            if setting.engine == settings[0].engine:
                raise
            notes.append(f"{setting.label} is left out: {error}")
            continue
        opened[setting] = stack.enter_context(predictor)
        compiled = predictor.members.fixed_batch(batch)
        if compiled not in (None, batch):
            notes.append(f"{setting.label}: batch {batch} runs in a graph compiled for batch {compiled}, filled up")
    return opened


def _inputs(
    package: Package, inputs: Sequence[Path | str] | Path | str | None, scratch: Path, batch: int
) -> tuple[list[Path], str]:
    """At least 4 batches of files, at most FILES or 4 batches; fewer files are taken several times over."""
    if inputs is None:
        golden = package.golden()
        if golden is None:
            raise UsageError("the package has no golden sample; name image files or a folder to run")
        scratch.mkdir()
        source = scratch / f"golden{Path(golden.input_name).suffix.lower() or '.png'}"
        source.write_bytes(golden.input_bytes)
        found, about = [source], "the package's golden sample, repeated"
    else:
        found = find_inputs([inputs] if isinstance(inputs, str | Path) else inputs)
        about = f"{len(found)} files"
    wanted = max(4 * batch, min(len(found), FILES))
    if len(found) > wanted:
        return found[:wanted], f"{wanted} of {about}"
    return list(itertools.islice(itertools.cycle(found), wanted)), about


# ------------------------------------------------------------------------------------------- comparing, timing


def _compare(predictors: dict[Setting, Predictor], paths: Sequence[Path]) -> dict[Setting, Answer]:
    sample = list(dict.fromkeys(paths))[:COMPARED]
    reference = next((s for s in predictors if s.precision == "fp32"), next(iter(predictors)))
    expected = [predictors[reference](path) for path in sample]
    kept = Reference()
    for number, prediction in enumerate(expected):
        kept.keep(str(number), prediction)
    answers = {}
    for setting, predictor in predictors.items():
        found = [predictor(path) for path in sample]
        differences = [np.abs(a.outputs[0] - b.outputs[0]).max() for a, b in zip(expected, found, strict=True)]
        alike = [kept.agreement(str(number), prediction) for number, prediction in enumerate(found)]
        answers[setting] = Answer(
            executed=executed_by(predictor, sample[0]),
            max_abs=float(max(differences)),
            likeness=float(np.mean([value for value in alike if value is not None])),
        )
    return answers


def _network_calls(predictors: dict[Setting, Predictor], batch: int, paths: Sequence[Path]) -> dict[Setting, Call]:
    first = next(iter(predictors.values()))
    shapes: dict[tuple[int, ...], list[np.ndarray]] = {}
    for path in paths:
        x = first.prepare(path).x
        shapes.setdefault(x.shape, []).append(x)
    # networks of free input size: the most common prepared size stands for all
    same = max(shapes.values(), key=len)
    x = np.stack(list(itertools.islice(itertools.cycle(same), batch)))
    return {
        setting: Call(run=lambda p=predictor: p.network(x), items=batch, streams=setting.streams)  # type: ignore[misc]
        for setting, predictor in predictors.items()
    }


def _file_calls(
    predictors: dict[Setting, Predictor], batch: int, paths: Sequence[Path], scratch: Path
) -> dict[Setting, Call]:
    options = PredictOptions(batch=batch, resume=False)
    unlike = _unlike(paths, scratch)

    def run(predictor: Predictor, some: list[Path]) -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as output:
            summary = predict_files(predictor, some, Path(output), options)
        if summary.failed:
            name, message = summary.failed[0]
            raise UsageError(f"{len(summary.failed)} inputs cannot be predicted ({name}: {message}); leave them out")

    def warm(predictor: Predictor) -> list[Path]:
        """A whole batch and the rest: an engine prepares each shape once. Of pictures of any size, all of them."""
        return unlike[: batch + len(unlike) % batch] if predictor.manifest.network.size else unlike

    return {
        setting: Call(
            run=partial(run, predictor, unlike), items=len(unlike), warm=partial(run, predictor, warm(predictor))
        )
        for setting, predictor in predictors.items()
    }


def _few(paths: Sequence[Path], batch: int, timed: Sequence[Timing], at_most_s: float | None) -> Sequence[Path]:
    """As many of the files as the slowest network takes ``FILES_TURNS`` turns for, at least a batch, the same for all."""
    if at_most_s is None:
        return paths
    return paths[: max(batch, int(FILES_TURNS * at_most_s * min(timing.rate for timing in timed)))]


def _unlike(paths: Sequence[Path], scratch: Path) -> list[Path]:
    """The paths; a repeated one as a link of another name, so that each has a result of its own."""
    folder = scratch / "repeated"
    folder.mkdir(exist_ok=True)
    seen: set[Path] = set()
    unlike = []
    for number, path in enumerate(paths):
        if path in seen:
            link = folder / f"{path.stem}-{number}{path.suffix}"
            if not link.exists():
                _link(path, link)
            path = link
        seen.add(path)
        unlike.append(path)
    return unlike


def _link(path: Path, link: Path) -> None:
    try:
        link.symlink_to(path.resolve())
    except OSError:  # systems or users without the right to make links
        shutil.copyfile(path, link)


def _row(
    package: Package,
    setting: Setting,
    answer: Answer,
    network: dict[int, Timing],
    files: dict[int, Timing],
    cases: dict[int, Timing],
    unit: Unit,
) -> Row:
    name, variant = package.manifest.metric.name, package.manifest.variant(setting.precision)
    maps = kind_of(package.manifest) == "maps"
    # accuracy measured on another engine is another number: it is not shown for this one
    found = variant.drop if variant is not None and variant.drop and variant.drop.engine == setting.engine else None
    same = {"metric": name, "precision": setting.precision, "engine": setting.engine}
    records = [r for r in package.provenance().get("accuracy", []) if {key: r.get(key) for key in same} == same]
    return Row(
        setting=setting,
        executed=answer.executed,
        metric=name,
        value=found.value if found else float(records[-1]["value"]) if records else None,
        drop=found.drop if found else None,
        max_abs=answer.max_abs,
        label_agreement=None if maps else answer.likeness,
        map_difference=1 - answer.likeness if maps else None,
        network=network,
        files=files,
        cases=cases,
        unit=unit,
    )


def _part(progress: Progress | None, number: int, parts: int, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, text: progress(number * total + done, parts * total, f"{name}, {text}")
