"""A trained checkpoint becomes a package: read, converted, proved against its source, then written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from segship.convert import checks, onnx_graph, onnx_import, parity
from segship.convert.onnx_sizes import settle_sizes
from segship.convert.parity import ParityRow, Reference
from segship.datasets import open_dataset
from segship.engines import SessionOptions, get_engine, open_session
from segship.errors import EngineError, InputError, UsageError
from segship.families import Source, load_source, onnx_source
from segship.families.onnx_source import OnnxNetwork
from segship.inference.predictor import Predictor
from segship.inference.preprocess import prepare
from segship.manifest import Executed, Manifest, Recipe, Variant
from segship.metrics.evaluation import evaluate_cases
from segship.package import Package, golden_files, sha256_bytes, write_package

Progress = Callable[[int, int, str], None]
Shape = Literal["fixed", "dynamic"]
FP32 = "graphs/fp32.onnx"
BATCHES = (1, 3)
"""sizes that a dynamic batch is tried at"""
BATCH_TOLERANCE = 1e-3
"""far above rounding, far below what a wrong batch does"""


@dataclass(frozen=True, kw_only=True)
class AlternativeScore:
    """What one reading of the checkpoint scored on the validation images. Shown, never acted upon."""

    name: str
    chosen: bool
    metric: str
    value: float
    cases: int
    dataset_sha256: str


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    package: Package
    parity: tuple[ParityRow, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """what was recognised, where that is worth a line"""
    alternatives: tuple[AlternativeScore, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "package": str(self.package.path),
            "sha256": self.package.sha256,
            "parity": [row.as_dict() for row in self.parity],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "alternatives": [asdict(score) for score in self.alternatives],
        }


def export(
    source: Path | str | Source,
    output: Path | str,
    *,
    family: str | None = None,
    options: Mapping[str, Any] | None = None,
    sample: Path | str | None = None,
    shape: Shape = "fixed",
    batch: int | None = None,
    folder: bool = False,
    engines: Sequence[str] | None = None,
    validate: Path | str | None = None,
    split: str | Path | None = None,
    layout: str | None = None,
    trust_pickle: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Convert a checkpoint file, run folder, TorchScript archive or ONNX file to a package with its fp32 variant.

    ``options`` are the family's own (``families.all_options``). ``sample`` is a real picture for the proof, a
    bundled one without it. ``shape`` "fixed" keeps the recipe's input size in the graph, "dynamic" frees height
    and width; ``batch`` None frees the batch. ``validate`` scores every reading of the checkpoint that the
    weights leave open. ``force`` keeps options that contradict the weights.

    Raises SourceError, UsageError, InputError (the sample), EngineMissing, OutputError, and BarMissed when an
    engine's answer differs from the source's by more than its tolerance: then nothing is written.
    """
    target = Path(output)
    checks.check_output(target)
    if batch is not None and batch < 1:
        raise UsageError(f"--batch must be 1 or more, got {batch}")
    if batch is not None and shape == "dynamic":
        raise UsageError(
            f"--shape dynamic frees height and width, --batch {batch} fixes every size; leave one out, or fix "
            f"both later: segship compile --shape static --batch {batch} --input-size HxW"
        )
    names = checks.checking_engines(engines, "fp32")
    steps = _Steps(progress, total=3 + len(names))
    steps.next("reading the checkpoint")
    taken = source if isinstance(source, Source) else load_source(
        source, family=family, options=options, trust_pickle=trust_pickle, force=force
    )  # fmt: skip
    picture, picture_name, bundled = _sample(sample)
    if shape == "dynamic":
        taken = _free_size(taken)
    names, left_out = _able(taken, names, engines)
    expected = parity.reference(taken.network, taken.recipe, picture, picture_name)
    steps.next("converting to ONNX")
    model, batch, about_batch = _convert(taken, batch)
    graph = onnx_graph.serialise(model)
    warnings = (*taken.warnings, *left_out, *about_batch)
    manifest = _manifest(taken.recipe, graph, batch, names, ())
    rows, executed = _prove(taken, manifest, graph, expected, picture, names, steps)
    parity.require(rows, f"{taken.recipe.name} differs from its source")
    scores = _score_alternatives(taken, batch, validate, split, layout, names[0], progress) if validate else ()
    steps.next("writing the package")
    provenance = {
        "command": "export",
        "source": taken.provenance,
        "environment": checks.environment(),
        "warnings": list(warnings),
        "parity": [row.as_dict() for row in rows],
        "sample": {"name": picture_name, "bundled": bundled, "sha256": sha256_bytes(picture)},
        "alternatives": [asdict(score) for score in scores],
    }
    tolerance = max(get_engine(name).TOLERANCE["fp32"] for name in names)
    golden = golden_files(
        picture_name, picture, bundled, parity.golden_stages(expected.stages(), taken.recipe, tolerance)
    )
    package = write_package(
        target,
        _manifest(taken.recipe, graph, batch, names, executed),
        {FP32: graph, **golden},
        provenance,
        folder=folder,
    )
    return ExportResult(package=package, parity=tuple(rows), warnings=warnings, notes=taken.notes, alternatives=scores)


def to_onnx(source: Source, batch: int | None = None) -> Any:
    """The source's network as an ``onnx.ModelProto`` with the manifest's names; free where the recipe says so."""
    network = source.recipe.network
    names = [output.name for output in network.outputs]
    if isinstance(source.network, OnnxNetwork):
        return onnx_import.import_graph(
            source.network.model,
            input_name=network.input_name,
            outputs=source.network.outputs,
            output_names=names,
            layer_names=source.network.layer_names,
            size=network.size,
            batch=batch,
        )
    graph = onnx_graph.from_torch(
        source.network,
        source.input_example_shape,
        input_name=network.input_name,
        output_names=names,
        batch=batch,
        size_multiple=network.size_multiple if network.size is None else None,
    )
    return settle_sizes(graph)


def _convert(source: Source, batch: int | None) -> tuple[Any, int | None, tuple[str, ...]]:
    """The graph, its fixed batch (None: free) and what is to be said about it.

    A ready-made graph may have its batch of one written into its inside; then it keeps it. UsageError where the user
    asked for another.
    """
    graph = to_onnx(source, batch)
    if not isinstance(source.network, OnnxNetwork) or _takes_batch(source, graph, batch or 2):
        return graph, batch, ()
    fixed = source.network.file.input.shape[0] or 1
    if batch not in (None, fixed):
        raise UsageError(
            f"the graph is made for a batch of {fixed} and does not work with --batch {batch}; leave it out"
        )
    about = f"the graph is made for a batch of {fixed}, and other batches are run piece by piece"
    return to_onnx(source, fixed), fixed, (about,)


def _takes_batch(source: Source, graph: Any, batch: int) -> bool:
    """Whether a graph with its batch changed answers for each input as the original does."""
    network = source.network
    assert isinstance(network, OnnxNetwork)
    x = np.random.default_rng(0).uniform(-2, 2, (batch, *source.input_example_shape)).astype(np.float32)
    with TemporaryDirectory(prefix="segship-") as folder:
        path = onnx_graph.save(graph, Path(folder) / "graph.onnx")
        try:
            session = open_session(onnx_source.ENGINE, path, SessionOptions(precision="fp32"))
            found = session.run(x)
        except EngineError:
            return False
    pairs = list(zip(network(x), found, strict=True))
    return all(a.shape == b.shape and float(np.abs(a - b).max()) <= BATCH_TOLERANCE for a, b in pairs)


def bundled_sample() -> bytes:
    """The PNG that stands in for a real picture where none is given: drawn blobs on a dark ground, 168×120."""
    return resources.files("segship.convert").joinpath("sample.png").read_bytes()


# --------------------------------------------------------------------------------------------------- parts


class _Steps:
    """Counts the stages of an export for a progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def next(self, text: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, text)
        self._done += 1


def _sample(path: Path | str | None) -> tuple[bytes, str, bool]:
    if path is None:
        return bundled_sample(), "sample.png", True
    try:
        return Path(path).read_bytes(), Path(path).name, False
    except OSError as error:
        raise InputError(
            f"the sample {path} cannot be read ({error.strerror}); give a picture the network knows"
        ) from error


def _free_size(source: Source) -> Source:
    network = source.network
    if isinstance(network, OnnxNetwork) and None not in network.size:
        raise UsageError(
            f"the graph is made for {network.size[0]}x{network.size[1]} alone; leave --shape dynamic out, or export from "
            "the checkpoint"
        )
    recipe = source.recipe
    free = recipe.model_copy(update={"network": recipe.network.model_copy(update={"size": None})})
    return replace(source, recipe=free)


def _able(source: Source, names: list[str], wanted: Sequence[str] | None) -> tuple[list[str], tuple[str, ...]]:
    """The engines that can run this network, and a warning for each other. UsageError where one was asked for."""
    refused = [name for name in names if name in source.unable]
    if wanted and refused:
        raise UsageError(f"{source.unable[refused[0]]}; choose another --engine or --input-size")
    able = [name for name in names if name not in refused]
    if not able:
        raise UsageError(f"{source.unable[refused[0]]}, and no other engine is installed: pip install onnxruntime")
    return able, tuple(f"{source.unable[name]}; left out, run it with --engine {able[0]}" for name in refused)


def _manifest(
    recipe: Recipe, graph: bytes, batch: int | None, engines: Sequence[str], executed: Sequence[Executed]
) -> Manifest:
    variant = Variant(
        precision="fp32",
        graphs={"model": FP32},
        sha256={"model": sha256_bytes(graph)},
        shapes="dynamic" if batch is None else "static",
        batches=BATCHES if batch is None else (batch,),
        engines=tuple(engines),
        executed=tuple(executed),
    )
    return Manifest(**recipe.model_dump(), variants=(variant,))


def _prove(
    source: Source,
    manifest: Manifest,
    graph: bytes,
    expected: Reference,
    picture: bytes,
    engines: Sequence[str],
    steps: _Steps,
) -> tuple[list[ParityRow], list[Executed]]:
    """Every stage on every engine; batches and, where free, two more sizes for the network alone."""
    rows: list[ParityRow] = []
    executed: list[Executed] = []
    with checks.temporary_package(manifest, {FP32: graph}) as package:
        for name in engines:
            steps.next(f"comparing with {name}")
            tolerance = get_engine(name).TOLERANCE["fp32"]
            cache = package.path / ".cache"
            with Predictor.open(package, engine=name, cache_dir=cache, profile=True) as predictor:
                rows += parity.compare_trace(name, expected, predictor.trace(picture), tolerance, source.recipe)
                for label, x in _further_inputs(source.recipe, expected, picture):
                    rows += _compare_network(source, predictor, name, label, x, tolerance)
                executed.append(_executed(predictor, expected.prepared.x[None]))
    return rows, executed


def _executed(predictor: Predictor, x: np.ndarray) -> Executed:
    static = predictor.members.fixed_batch(1)
    return predictor.sessions[0].executed(np.repeat(x, static or 1, axis=0))


def _compare_network(
    source: Source, predictor: Predictor, engine: str, label: str, x: np.ndarray, tolerance: float
) -> list[ParityRow]:
    """One row an output, for one input array."""
    outputs = predictor.network(x, all_outputs=True)
    rows = []
    for about, wanted, got in zip(
        source.recipe.network.outputs, parity.run_source(source.network, x), outputs, strict=True
    ):
        stage = f"network, {label}" if about is source.recipe.network.outputs[0] else f"{about.name}, {label}"
        allowed = parity.network_tolerance(tolerance, wanted)
        rows.append(parity.difference_row(engine, stage, wanted, got, allowed, shared_code=False))
    return rows


def _further_inputs(recipe: Recipe, expected: Reference, picture: bytes) -> list[tuple[str, np.ndarray]]:
    """A batch of different inputs, and the picture at other sizes where the graph takes them."""
    x = expected.prepared.x
    several = np.stack([x, x[:, ::-1], x[:, :, ::-1]][: BATCHES[-1]])
    found = [(f"batch {len(several)}", np.ascontiguousarray(several))]
    if recipe.network.size is None:
        assert recipe.input.kind == "image"
        from segship.inference.images import read_image

        image = read_image(picture, recipe.input)
        for height, width in checks.other_sizes(recipe):
            found.append((f"{height}x{width}", prepare(image, checks.with_size(recipe, height, width)).x[None]))
    return found


def _score_alternatives(
    source: Source,
    batch: int | None,
    validate: Path | str,
    split: str | Path | None,
    layout: str | None,
    engine: str,
    progress: Progress | None,
) -> tuple[AlternativeScore, ...]:
    """The package's own metric for each reading that the weights leave open, on one engine at fp32."""
    dataset = open_dataset(validate, layout, split, num_classes=source.recipe.network.outputs[0].channels)
    readings = [(a.name, a.chosen, None if a.chosen else a.load) for a in source.alternatives]
    scores = []
    for name, chosen, load in readings or [("as exported", True, None)]:
        reading = source if load is None else replace(load(), recipe=source.recipe)
        graph = onnx_graph.serialise(to_onnx(reading, batch))
        manifest = _manifest(reading.recipe, graph, batch, [engine], ())
        with (
            checks.temporary_package(manifest, {FP32: graph}) as package,
            Predictor.open(package, engine=engine, cache_dir=package.path / ".cache") as predictor,
        ):
            found = evaluate_cases(predictor, dataset, progress=progress)
        scores.append(
            AlternativeScore(
                name=name,
                chosen=chosen,
                metric=found.metric,
                value=found.value,
                cases=len(found.scores),
                dataset_sha256=found.dataset_sha256,
            )
        )
    return tuple(scores)
