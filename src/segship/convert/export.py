"""A trained checkpoint becomes a package: read, converted, proved against its source, then written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segship.convert import checks, onnx_graph, parity
from segship.convert.alternatives import AlternativeScore, score_alternatives
from segship.convert.parity import ParityRow, Reference
from segship.convert.source_graph import BATCHES, FP32, able, convert, first_manifest, free_size, to_onnx
from segship.engines import get_engine
from segship.errors import BarMissed, EngineError, InputError, PackageError, SourceError, UsageError
from segship.families import Source, load_source
from segship.families.onnx_source import OnnxNetwork
from segship.inference.predictor import Predictor
from segship.inference.preprocess import prepare
from segship.inference.views import check_recipe
from segship.manifest import Executed, Manifest, Recipe
from segship.package import Package, golden_files, sha256_bytes, write_package

__all__ = ["FP32", "ExportResult", "bundled_sample", "export", "to_onnx"]

Progress = Callable[[int, int, str], None]
Shape = Literal["fixed", "dynamic"]


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
    """Convert a checkpoint file, run or model folder, its zip, TorchScript or ONNX file to a package with its fp32 variant.

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
    if taken.recipe.input.kind == "volume":
        return _export_volume(
            taken, target, sample=sample, shape=shape, batch=batch, folder=folder, engines=names, validate=validate,
            steps=steps,
        )  # fmt: skip
    picture, picture_name, bundled = _sample(sample)
    if shape == "dynamic":
        taken = free_size(taken)
    try:
        made = _make(taken, batch, names, engines, picture, picture_name, steps)
    except (SourceError, BarMissed, EngineError, PackageError) as error:
        if taken.at_one_size is None or shape == "dynamic":
            raise
        taken = taken.at_one_size()
        made = _make(taken, batch, names, engines, picture, picture_name, steps)
        why = str(error).removesuffix("; nothing was written")
        taken = replace(taken, notes=(*taken.notes, f"with height and width free {why}"))
    warnings = (*taken.warnings, *made.warnings)
    scores = score_alternatives(taken, made.batch, validate, split, layout, made.names[0], progress) if validate else ()
    steps.next("writing the package")
    provenance = {
        "command": "export",
        "source": taken.provenance,
        "environment": checks.environment(),
        "warnings": list(warnings),
        "parity": [row.as_dict() for row in made.rows],
        "sample": {"name": picture_name, "bundled": bundled, "sha256": sha256_bytes(picture)},
        "alternatives": [asdict(score) for score in scores],
    }
    tolerance = max(_tolerance(made.source, name, made.expected) for name in made.names)
    golden = golden_files(
        picture_name, picture, bundled, parity.golden_stages(made.expected.stages(), taken.recipe, tolerance)
    )
    package = write_package(
        target,
        first_manifest(taken.recipe, made.graph, made.batch, made.names, made.executed),
        {FP32: made.graph, **golden},
        provenance,
        folder=folder,
    )
    return ExportResult(
        package=package, parity=tuple(made.rows), warnings=warnings, notes=taken.notes, alternatives=scores
    )


def _export_volume(
    source: Source,
    target: Path,
    *,
    sample: Path | str | None,
    shape: Shape,
    batch: int | None,
    folder: bool,
    engines: Sequence[str],
    validate: Path | str | None,
    steps: _Steps,
) -> ExportResult:
    from segship.convert.export_volume import export_volume

    if shape == "dynamic":
        raise UsageError("the window of a volume network is part of its training and stays fixed; leave --shape out")
    if validate is not None:
        raise UsageError(
            "the model folder leaves nothing open to score; leave --validate out, and see segship evaluate"
        )
    package, rows = export_volume(
        source, target, sample=sample, batch=batch, folder=folder, engines=engines,
        environment=checks.environment(), step=steps.next,
    )  # fmt: skip
    return ExportResult(package=package, parity=tuple(rows), warnings=source.warnings, notes=source.notes)


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


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A graph that was proved, and what was found on the way."""

    source: Source
    """with the tolerance that the proof was held to"""
    graph: bytes
    batch: int | None
    names: list[str]
    expected: Reference
    rows: list[ParityRow]
    executed: list[Executed]
    warnings: tuple[str, ...]


def _make(
    source: Source,
    batch: int | None,
    names: list[str],
    engines: Sequence[str] | None,
    picture: bytes,
    picture_name: str,
    steps: _Steps,
) -> _Made:
    """Convert and prove. Raises SourceError where torch cannot export, BarMissed where an engine answers otherwise."""
    names, left_out = able(source, names, engines)
    expected = parity.reference(source.network, check_recipe(source.recipe), picture, picture_name)
    steps.next("converting to ONNX")
    model, batch, about_batch = convert(source, batch)
    graph = onnx_graph.serialise(model)
    manifest = first_manifest(source.recipe, graph, batch, names, ())
    rows, executed = _prove(source, manifest, graph, expected, picture, names, steps)
    about_rounding: tuple[str, ...] = ()
    if source.relative_tolerance and not all(row.passed for row in rows):
        source, about_rounding = _wider(source, expected)
        if about_rounding:
            rows, executed = _prove(source, manifest, graph, expected, picture, names, _Steps(None, 0))
    parity.require(rows, f"{source.recipe.name} differs from its source")
    return _Made(
        source=source, graph=graph, batch=batch, names=names, expected=expected, rows=rows, executed=executed,
        warnings=(*left_out, *about_batch, *about_rounding),
    )  # fmt: skip


def _wider(source: Source, expected: Reference) -> tuple[Source, tuple[str, ...]]:
    """The source with the tolerance that its own rounding asks for, and a word on it; as it was where that is not more."""
    assert not isinstance(source.network, OnnxNetwork)
    own = parity.rounding_tolerance(source.network, _several(check_recipe(source.recipe), expected))
    if own <= source.relative_tolerance:
        return source, ()
    about = (
        f"rounding alone moves this network's logits in PyTorch itself, so engines were held to {own:.1e} of the logits' spread "
        f"in place of {source.relative_tolerance:.1e}"
    )
    return replace(source, relative_tolerance=own), (about,)


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
            tolerance = _tolerance(source, name, expected)
            cache = package.path / ".cache"
            # compiled when the sample is run, at its size: at a street scene's it would take seconds and gigabytes for nothing
            with Predictor.open(package, engine=name, cache_dir=cache, profile=True, compile_now=False) as predictor:
                rows += parity.compare_trace(name, expected, predictor.golden_trace(picture), tolerance, source.recipe)
                for label, x in _further_inputs(check_recipe(source.recipe), expected, picture):
                    rows += _compare_network(source, predictor, name, label, x, tolerance)
                bare = checks.bare_input(expected.prepared.x, check_recipe(source.recipe))
                executed.append(_executed(predictor, bare[None]))
    return rows, executed


def _tolerance(source: Source, engine: str, expected: Reference) -> float:
    """An engine's own, or the source's where that is more; in the units of `parity.network_tolerance`."""
    spread = min(1.0, float(np.std(expected.outputs[0], dtype=np.float64)))
    return float(max(get_engine(engine).TOLERANCE["fp32"], source.relative_tolerance * spread))


def _executed(predictor: Predictor, x: np.ndarray) -> Executed:
    static = predictor.members.fixed_batch(1)
    session = predictor.members.sessions(1, x.shape[2:])[0]  # a large package's usual graph takes its usual size alone
    return session.executed(np.repeat(x, static or 1, axis=0))


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
    several = _several(recipe, expected)
    found = [(f"batch {len(several)}", several)]
    if recipe.network.size is None:
        assert recipe.input.kind == "image"
        from segship.inference.images import read_image

        image = read_image(picture, recipe.input)
        for height, width in checks.other_sizes(recipe):
            sized = checks.with_size(recipe, height, width)
            other = checks.bare_input(prepare(image, sized).x, recipe)
            found.append((f"{other.shape[1]}x{other.shape[2]}", other[None]))
    return found


def _several(recipe: Recipe, expected: Reference) -> np.ndarray:
    """A batch of different inputs (N, C, h, w) of the bare network: the picture, flipped either way."""
    x = checks.bare_input(expected.prepared.x, recipe)
    return np.ascontiguousarray(np.stack([x, x[:, ::-1], x[:, :, ::-1]][: BATCHES[-1]]))
