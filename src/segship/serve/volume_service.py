"""What a server for volumes holds: the opened package, the jobs, their folder, the counts; and how a job is done."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segship.errors import SegshipError, UsageError
from segship.inference.predictor import Predictor
from segship.inference.volume_cases import Case
from segship.inference.volume_cost import process_memory
from segship.inference.volume_files import write_case
from segship.inference.volume_network import first_tiles
from segship.inference.volume_predictor import VolumePredictor, open_previous
from segship.inference.volumes import Volume
from segship.manifest import VolumeInput
from segship.measure.environment import recorded
from segship.measure.inspect import describe
from segship.serve import memory
from segship.serve.metrics import VolumeMetrics
from segship.serve.options import VolumeServeOptions
from segship.serve.running import running
from segship.serve.volume_jobs import Job, JobStore
from segship.serve.volume_orders import READERS, Bounds, Order
from segship.serve.volume_planes import Plane, count_labels, write_planes
from segship.serve.volume_space import Space, size_of

RESULTS = "results"
_IMPORTED_LATE = ("nibabel.imageglobals", "nibabel.nifti1", "nibabel.nifti2", "nibabel.orientations", "scipy.ndimage")
"""by functions that prediction calls. Two threads that import one of them for the first time at once, as two uploads
would, can get half of it: nibabel's modules import each other in circles"""
_NAME = "labels"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a job that is done left in its folder."""

    labels: Path
    preview: Path
    probabilities: Path | None
    planes: tuple[Plane, ...]
    voxels: dict[int, int]
    """of each label's id"""
    voxel_ml: float
    notes: tuple[str, ...]


class VolumeService:
    """Opened once. The predictor stays the caller's to close."""

    def __init__(self, predictor: Predictor, options: VolumeServeOptions) -> None:
        """Runs the network on one empty window, so that a package that cannot work fails now and its memory shows.

        Raises what that run raises, and UsageError for packages that are not served.
        """
        _check_package(predictor)
        assert isinstance(predictor, VolumePredictor)
        for module in _IMPORTED_LATE:
            importlib.import_module(module)
        self.predictor = predictor
        self.options = options
        self.name = predictor.manifest.name
        self.sha256 = predictor.package.sha256
        self.precision = predictor.precision
        self.engine = predictor.engine
        self.first = _first_stage(predictor)
        for one in (predictor, *([self.first] if self.first else [])):
            one.run_one_window()
        self.bounds = Bounds(
            voxels=options.max_pixels, base=process_memory(),
            memory=memory.usable() if options.memory is None else options.memory,
        )  # fmt: skip
        self.space = Space(options.max_held_bytes)
        self.jobs = JobStore(
            self._work, lambda job: self.space.remove(job.held), queue=options.queue, keep=options.keep,
            keep_seconds=options.keep_seconds, watch=self._ended,
        )  # fmt: skip
        self.metrics = VolumeMetrics(self.jobs, self.space, self)
        self.about = self._describe()

    @property
    def input(self) -> VolumeInput:
        spec = self.predictor.manifest.input
        assert isinstance(spec, VolumeInput)
        return spec

    def close(self) -> None:
        """End what is at work after its window, and delete everything."""
        self.jobs.close()
        self.space.close()

    def _ended(self, result: str, job: Job) -> None:
        self.metrics.ended(result, job)

    # ------------------------------------------------------------------------------------------------- a job

    def _work(self, job: Job) -> Found:
        """In the store's thread. Raises Cancelled, and SegshipError with the client's names for its files."""
        try:
            return self._predict(job)
        except SegshipError as error:
            raise type(error)(job.order.plain(str(error), job.folder)) from error
        finally:
            for path in job.order.files:
                path.unlink(missing_ok=True)
            self._count(job)
            memory.give_back()

    def _predict(self, job: Job) -> Found:
        order: Order = job.order
        volume = self.predictor.read(Case(name=order.case, files=order.files))
        job.check()
        first = None if self.first is None else self._first_labels(self.first, volume, job)
        done = job.done

        def progress(more: int, total: int, _: str) -> None:
            job.progress(done + more, done + total)

        found = self.predictor(volume, previous=first, tiles=order.tiles, progress=progress)
        job.stage = "writing"
        job.check()
        results = job.folder / RESULTS
        ending = self.input.file_ending
        write_case(found, results, _NAME, ending, probabilities=order.probabilities, preview=True)
        job.check()
        planes = write_planes(found, job.folder)
        z, y, x = found.spacing
        return Found(
            labels=results / f"{_NAME}{ending}",
            preview=results / "previews" / f"{_NAME}.png",
            probabilities=results / f"{_NAME}.npz" if order.probabilities else None,
            planes=planes,
            voxels=count_labels(found.labels, [label.id for label in self.predictor.manifest.labels]),
            voxel_ml=z * y * x / 1000,
            notes=found.notes,
        )

    def _first_labels(self, first: VolumePredictor, volume: Volume, job: Job) -> np.ndarray:
        """What a cascade's first stage says; the second stage's windows are still to come."""
        order: Order = job.order

        def progress(done: int, total: int, _: str) -> None:
            job.progress(done, total + order.cost.passes)

        labels = first(volume, tiles=first_tiles(order.tiles), progress=progress).labels
        job.check()
        return labels

    def _count(self, job: Job) -> None:
        """Correct the estimate of a job's bytes on disk by what they came to."""
        size = size_of(job.folder)
        self.space.remove(job.held - size)
        job.held = size

    # ------------------------------------------------------------------------------------------------- about

    def _describe(self) -> dict[str, Any]:
        tiling = self.predictor.manifest.tiling
        assert tiling is not None
        return {
            **describe(self.predictor.package),
            "tiling": tiling.model_dump(mode="json"),
            # a profiled run of this graph would take a second copy in memory: only what is known is told
            "serving": running(self.predictor, recorded(self.predictor)) | {"network_memory_bytes": self.bounds.base},
            "outputs": ["labels", "preview", "planes", "probabilities"],
            "limits": self.options.limits() | {"memory_bytes": self.bounds.memory},
        }


def _first_stage(predictor: VolumePredictor) -> VolumePredictor | None:
    """The opened first stage of a cascade's package, found now and not by the first request. The predictor closes it."""
    if predictor.manifest.previous_stage is None:
        return None
    if predictor.previous is None:
        predictor.previous = open_previous(predictor)
    first = predictor.previous
    assert isinstance(first, VolumePredictor)
    if first.manifest.previous_stage is not None or first.manifest.tiling is None:
        raise UsageError(f"package '{first.manifest.name}' cannot be a first stage here; use segship predict")
    return first


def _check_package(predictor: Predictor) -> None:
    recipe = predictor.manifest
    spec = recipe.input
    if not isinstance(spec, VolumeInput):
        raise UsageError(f"package '{recipe.name}' takes pictures; this server is for volumes")
    if spec.reader not in READERS:
        raise UsageError(
            f"package '{recipe.name}' reads {spec.file_ending} files ({spec.reader}), and the server takes NIfTI files "
            "and single pictures; use segship predict"
        )
    if recipe.tiling is None:
        raise UsageError(
            f"package '{recipe.name}' has no windows; the server shows progress by them, use segship predict"
        )
