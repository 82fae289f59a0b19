"""Measure what a variant loses, on one engine, and search for layers to put back where it is too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from segship.convert import checks, fidelity, gate, layers, quantize
from segship.convert.base import Base
from segship.convert.builder import Builder, with_variant
from segship.convert.fidelity import Pictures
from segship.datasets import Dataset
from segship.inference.predictor import Predictor
from segship.inference.volume_predictor import VolumePredictor
from segship.manifest import Drop, Fidelity, Manifest
from segship.metrics.evaluation import drop_against, evaluate_cases

Progress = Callable[[int, int, str], None]
RANKING_PIXELS = 1 << 19
RANKING_IMAGES = 32
"""a ranking of layers runs each candidate on at most so many pictures, and pixels of the network's input"""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a variant is judged by: cases with ground truth, pictures to compare maps on, or both."""

    dataset: Dataset | None = None
    pictures: Pictures | None = None
    max_drop: float | None = None
    force: bool = False
    """write although maps differ by more than ``fidelity.LIMIT``"""

    @property
    def bars(self) -> gate.Bars:
        limited = self.pictures is not None and not self.force
        return gate.Bars(max_drop=self.max_drop, max_mask_mae=fidelity.LIMIT if limited else None)


def judge(builder: Builder, evidence: Evidence, engine: str, progress: Progress | None) -> gate.GateResult:
    """The accepted candidate. Raises BarMissed, DatasetError (see ``fidelity.reference``), InputError."""
    base, calibration, dataset = builder.base, builder.calibration, evidence.dataset
    hashes = frozenset(calibration.pixel_sha256 if calibration else ())
    with _opened(base, base.manifest, base.files(), "fp32", engine, progress) as fp32:
        scored = evaluate_cases(fp32, dataset, calibration=hashes, progress=progress) if dataset else None
        maps = None
        if evidence.pictures is not None:
            maps = fidelity.reference(fp32, evidence.pictures, calibration)
            maps = maps or fidelity.reference(fp32, fidelity.golden_pictures(base), None)

    def measure(kept: tuple[str, ...]) -> gate.Measured:
        files = builder.files(builder.graphs(kept))
        variant = builder.variant(files, shapes=base.shapes("dynamic"), batches=base.batches or (1,), engines=(engine,))
        everything = {**base.files(), **dict(files.values())}
        manifest = with_variant(base.manifest, variant)
        with _opened(base, manifest, everything, builder.precision, engine, progress) as predictor:
            drop: Drop | None = None
            found: Fidelity | None = None
            if dataset is not None and scored is not None:
                drop = drop_against(scored, evaluate_cases(predictor, dataset, calibration=hashes, progress=progress))
            if maps is not None:
                found = fidelity.measure(predictor, maps, forced=evidence.force, progress=progress)
            return gate.Measured(drop=drop, fidelity=found)

    def rank(kept: tuple[str, ...]) -> dict[str, float]:
        member = next(iter(base.graphs))
        assert calibration is not None
        size = int(np.prod(calibration.inputs.shape[2:]))
        count = max(4, min(RANKING_IMAGES, RANKING_PIXELS // size))
        x = np.stack(quantize.spread_evenly(calibration.inputs, count))

        def logits(layers: tuple[str, ...]) -> np.ndarray:
            return base.run(builder.graphs(layers)[member], x, engine, builder.precision)

        expected = base.run(base.graphs[member], x, engine, "fp32")
        ranked = gate.rank_groups(builder.groups(), logits, expected, kept, progress)
        return {name: ranked[name] for name in sorted(ranked, key=lambda name: name != layers.HEADS)}

    return gate.search(
        measure,
        evidence.bars,
        groups=builder.groups(),
        rank=rank,
        kept=builder.kept,
        what=builder.precision,
        progress=progress,
    )


@contextmanager
def _opened(
    base: Base, manifest: Manifest, files: Mapping[str, bytes], precision: str, engine: str, progress: Progress | None
) -> Iterator[Predictor]:
    with (
        checks.temporary_package(manifest, dict(files)) as package,
        Predictor.open(package, precision=precision, engine=engine, cache_dir=package.path / ".cache") as predictor,
    ):
        if isinstance(predictor, VolumePredictor):
            predictor.progress = progress
            if manifest.previous_stage is not None:  # a cascade's first stage lies beside the package itself
                predictor.previous_package = base.package.path.parent / manifest.previous_stage.file
        yield predictor
