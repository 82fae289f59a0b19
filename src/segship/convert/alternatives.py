"""Readings that a checkpoint leaves open, each scored on the user's own data: shown, never acted upon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segship.convert import checks, onnx_graph
from segship.convert.source_graph import FP32, first_manifest, free_size, to_onnx
from segship.datasets import open_dataset
from segship.families import Source
from segship.inference.predictor import Predictor
from segship.metrics.evaluation import evaluate_cases

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class AlternativeScore:
    """What one reading of the checkpoint scored on the validation images. Shown, never acted upon."""

    name: str
    chosen: bool
    metric: str
    value: float
    cases: int
    dataset_sha256: str


def score_alternatives(
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
    last, graph = None, b""
    for name, chosen, load in readings or [("as exported", True, None)]:
        reading = source if load is None else _sized_like(load(), source)
        if last is None or reading.network is not last.network:  # readings that differ in their use alone share it
            last, graph = reading, onnx_graph.serialise(to_onnx(reading, batch))
        manifest = first_manifest(reading.recipe, graph, batch, [engine], ())
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


def _sized_like(reading: Source, source: Source) -> Source:
    """The reading with its size free where the export's is."""
    return free_size(reading) if source.recipe.network.size is None else reading
