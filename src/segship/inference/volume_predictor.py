"""A package for volumes opened on an engine: the same methods as `Predictor`, cases in the place of pictures.

A case is a file, a list of files (one a channel), an array (C, z, y, x) or (z, y, x) with its spacing, or a `Volume`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segship.errors import EngineError, InputError, PackageError, SegshipError, UsageError
from segship.inference.pipeline import ordered_map
from segship.inference.predictor import Failure, Predictor
from segship.inference.volume_cases import Case
from segship.inference.volume_chain import PreparedVolume, prepare_volume
from segship.inference.volume_cost import process_memory
from segship.inference.volume_network import Progress, TileOptions, batch_of, first_tiles, scores
from segship.inference.volume_prediction import VolumePrediction
from segship.inference.volumes import Volume, read_labels, read_volume, sample_volume
from segship.manifest import VolumeInput

_WORTH_A_BATCH = 4
"""batches of a case from which on one more, of empty windows, is little"""
_IMPORTED_LATER = 48 << 20
"""bytes of libraries that a case's way imports (scipy's filters, nibabel), and of threads"""
VolumeSource = Any
"""str | Path, a sequence of them (one file a channel), (array, spacing), or a Volume"""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseItem:
    """One case on its way through `VolumePredictor.run_cases`."""

    number: int
    name: str
    volume: Volume | None = None
    prepared: PreparedVolume | None = None
    scores: np.ndarray | None = None
    error: SegshipError | None = None


class VolumePredictor(Predictor):
    """Use ``segship.load`` or `Predictor.open`: either gives this class for a package that takes volumes."""

    tiles = TileOptions()
    """how windows are run unless a call says otherwise"""
    progress: Progress | None = None
    """told windows done, windows of the case and its name, where a call has no progress of its own"""
    previous: Predictor | None = None
    """the package of a cascade's first stage, opened"""
    previous_package: Path | None = None
    """where that package lies; None: beside this one, under the name that the manifest gives"""
    _opening = threading.Lock()

    # ------------------------------------------------------------------------------------------ one case

    def __call__(  # type: ignore[override]
        self,
        source: VolumeSource,
        *,
        probabilities: bool = False,
        previous: np.ndarray | Path | str | None = None,
        tiles: TileOptions | None = None,
        progress: Progress | None = None,
    ) -> VolumePrediction:
        """Predict one case. Labels and probabilities are computed when first read.

        ``previous`` holds the labels of a cascade's first stage on the case's own grid, or names their file; without
        it the first stage's package runs. Raises InputError for a case that cannot be read.
        """
        volume = self.read(source)
        before = self._previous_labels(volume, previous, tiles)
        prepared = prepare_volume(volume, self.manifest, before)
        found = self.predicted(volume, prepared, self.scores(prepared, tiles, progress))
        if probabilities:
            _ = found.probabilities
        return found

    def read(self, source: VolumeSource, name: str | None = None) -> Volume:  # type: ignore[override]
        """Read one case by the package's reading rules. Raises InputError."""
        if isinstance(source, Volume):
            return source
        if isinstance(source, Case):
            return read_volume(list(source.files), self._input(), self.limits, name=source.name)
        return read_volume(source, self._input(), self.limits, name=name)

    def prepare(  # type: ignore[override]
        self, source: VolumeSource, previous: np.ndarray | Path | str | None = None
    ) -> PreparedVolume:
        """Read and preprocess one case: what windows are cut from. ``previous`` as in `__call__`."""
        volume = self.read(source)
        return prepare_volume(volume, self.manifest, self._previous_labels(volume, previous))

    def scores(
        self, prepared: PreparedVolume, tiles: TileOptions | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """The network's answer for a prepared case, (K, z', y', x') on the network's grid. EngineError for NaN."""
        options = tiles or self.tiles
        progress = progress or _named(self.progress, prepared.frame.name)
        found = scores(prepared.x, self.manifest, self.passes(options), options, progress)
        if not np.isfinite(found.sum(dtype=np.float64)):
            raise EngineError(
                f"{prepared.frame.name}: the network's output holds NaN or infinite values; try --precision fp32"
            )
        return found

    def predicted(self, volume: Volume, prepared: PreparedVolume, found: np.ndarray) -> VolumePrediction:
        """The answer for a case from its `scores`; nothing is decided before it is asked for."""
        tiling = self.manifest.tiling
        return VolumePrediction(
            scores=found,
            frame=prepared.frame,
            recipe=self.manifest,
            volume=volume,
            activated=tiling is not None and tiling.average == "probabilities",
        )

    def run_one_window(self, tiles: TileOptions | None = None, most: int | None = None) -> tuple[int, int]:
        """Run the network once on a batch of empty windows, so that its memory shows.

        ``most`` is how many windows, mirrored ones counted too, the largest case has. Returns how many were run and how
        many a case's batches hold: a case of few windows is not made to wait for a full batch of empty ones.
        """
        options = tiles or self.tiles
        tiling = self.manifest.tiling
        assert tiling is not None
        batch = ran = batch_of(options, tiling)
        if most is not None:
            batch = min(batch, max(1, most))
            ran = batch if most >= _WORTH_A_BATCH * batch else min(batch, 2 ** len(options.applied(tiling).mirror_axes))
        x = np.zeros((ran, self.manifest.network.input_channels, *tiling.window), np.float32)
        for one in self.passes(options):
            one(x)
        return ran, batch

    def measured_memory(self, tiles: TileOptions | None = None, most: int | None = None) -> int:
        """Bytes of this process with its engine once a batch of windows has run (`run_one_window`), before any case; what a
        larger batch takes is reckoned from that one."""
        before = process_memory()
        ran, batch = self.run_one_window(tiles, most)
        after = process_memory()
        return after + _IMPORTED_LATER + int(max(0, after - before) * (batch / ran - 1))

    def golden_trace(self, sample: bytes) -> dict[str, np.ndarray]:
        """`trace` of a package's golden sample, without mirroring: eight times the work would prove nothing more."""
        volume, previous = sample_volume(sample)
        return self._trace(volume, previous, replace(self.tiles, mirror=False))

    def trace(self, source: VolumeSource) -> dict[str, np.ndarray]:  # type: ignore[override]
        """One case, stage by stage:

        read           (C, z, y, x) float32 as read
        preprocessed   (C, z', y', x') float32 on the network's grid
        network        (K, z', y', x') the mean over windows, mirrorings and members
        decoded        labels (z, y, x) on the case's own grid, masks (K, z, y, x) for independent classes
        """
        volume = self.read(source)
        return self._trace(volume, self._previous_labels(volume, None), self.tiles)

    def _trace(self, volume: Volume, previous: np.ndarray | None, tiles: TileOptions) -> dict[str, np.ndarray]:
        prepared = prepare_volume(volume, self.manifest, previous)
        found = self.predicted(volume, prepared, self.scores(prepared, tiles))
        return {
            "read": volume.channels,
            "preprocessed": prepared.x,
            "network": np.asarray(found.scores, np.float32),
            "decoded": found.decoded,
        }

    # --------------------------------------------------------------------------------------- many cases

    def stream(  # type: ignore[override]
        self, sources: Iterable[VolumeSource], *, tiles: TileOptions | None = None, **_: Any
    ) -> Generator[VolumePrediction | Failure, None, None]:
        """Predict many cases in order; the next one is read while one runs. A broken one comes as a `Failure`."""
        return self.run_cases(sources, self.case_result, tiles=tiles)

    def case_result(self, item: CaseItem) -> VolumePrediction | Failure:
        """What `stream` gives for an item of `run_cases`."""
        if item.error is not None:
            return Failure(name=item.name, error=item.error)
        assert item.volume is not None
        assert item.prepared is not None
        assert item.scores is not None
        return self.predicted(item.volume, item.prepared, item.scores)

    def run_cases(
        self,
        sources: Iterable[VolumeSource],
        finish: Callable[[CaseItem], Any],
        *,
        tiles: TileOptions | None = None,
        previous: Callable[[int], np.ndarray | Path | str | None] | None = None,
        progress: Progress | None = None,
        overlap: bool = True,
        keep_image: bool = True,
    ) -> Generator[Any, None, None]:
        """The chain under `stream`: the next case is read and the last one finished while one runs.

        Three cases are in memory at most, one without ``overlap``. ``previous`` gives the first stage's labels for the case of a
        number, or None for the first stage to run. ``progress`` is told windows done, windows of this case, its name.
        Without ``keep_image`` the values of cases read from files are let go once they are prepared.
        """

        def read(numbered: tuple[int, VolumeSource]) -> CaseItem:
            return self._read_case(*numbered, previous, tiles, keep_image)

        def infer(item: CaseItem) -> CaseItem:
            if item.error is not None or item.prepared is None:
                return item
            try:
                found = self.scores(item.prepared, tiles, _named(progress, item.name))
                return replace(item, scores=found, prepared=item.prepared.without_values())
            except SegshipError as error:
                return replace(item, error=error)
            except MemoryError:
                return replace(item, error=_too_large(item.name))

        ahead = 2 if overlap else 1
        items = ordered_map(read, enumerate(sources), workers=1, ahead=ahead)
        found = ordered_map(infer, items, workers=1, ahead=1)
        return ordered_map(finish, found, workers=1, ahead=ahead)

    def _read_case(
        self,
        number: int,
        source: VolumeSource,
        previous: Callable[[int], np.ndarray | Path | str | None] | None,
        tiles: TileOptions | None,
        keep_image: bool = True,
    ) -> CaseItem:
        name = case_name(source)
        keep = keep_image or not isinstance(source, Case | str | Path)  # arrays are the caller's
        try:
            volume = self.read(source)
            before = self._previous_labels(volume, previous(number) if previous else None, tiles)
            prepared = prepare_volume(volume, self.manifest, before, keep=keep)
            volume = volume if keep else volume.without_values()
            return CaseItem(number=number, name=volume.name, volume=volume, prepared=prepared)
        except SegshipError as error:
            return CaseItem(number=number, name=name, error=error)
        except MemoryError:
            return CaseItem(number=number, name=name, error=_too_large(name))

    # ------------------------------------------------------------------------------------------- parts

    def _input(self) -> VolumeInput:
        spec = self.manifest.input
        if spec.kind != "volume":
            raise PackageError(f"package '{self.manifest.name}' takes pictures; open it with segship.load")
        return spec

    def passes(self, options: TileOptions) -> list[Callable[[np.ndarray], np.ndarray]]:
        """One function a chosen member: (N, C, *window) float32 to raw logits (N, K, *window)."""
        members = self.manifest.network.members
        wanted = options.members or members
        unknown = [name for name in wanted if name not in members]
        if unknown:
            raise UsageError(f"the package has no member '{unknown[0]}'; it has: {', '.join(members)}")

        def run(index: int) -> Callable[[np.ndarray], np.ndarray]:
            return lambda x: self.members.run_member(index, np.ascontiguousarray(x, np.float32))[0]

        return [run(members.index(name)) for name in wanted]

    def _previous_labels(
        self, volume: Volume, given: np.ndarray | Path | str | None, tiles: TileOptions | None = None
    ) -> np.ndarray | None:
        if self.manifest.previous_stage is None:
            return None
        if given is not None:
            return given if isinstance(given, np.ndarray) else read_labels(Path(given), self._input())
        return np.asarray(self.first_stage()(volume, tiles=first_tiles(tiles or self.tiles)).labels)

    def first_stage(self) -> VolumePredictor:
        """The package of a cascade's first stage, opened. Raises as `open_previous`."""
        with self._opening:
            if self.previous is None:
                self.previous = open_previous(self)
        assert isinstance(self.previous, VolumePredictor)
        return self.previous

    def close(self) -> None:
        if self.previous is not None:
            self.previous.close()
            self.previous = None
        super().close()


def open_previous(predictor: VolumePredictor) -> VolumePredictor:
    """The first stage of a cascade's package on the same engine. Raises InputError where it is not there, PackageError
    for another package than the one it continues."""
    link = predictor.manifest.previous_stage
    name = predictor.manifest.name
    if link is None:
        raise PackageError(f"package '{name}' continues no other")
    path = predictor.previous_package or predictor.package.path.parent / link.file
    if not path.exists():
        raise InputError(
            f"package '{name}' continues another: put {link.file} beside it, name it with --previous-stage, or give its "
            "labels with --prev-stage-predictions"
        )
    options = predictor.options
    opened = Predictor.open(
        path, engine=predictor.engine, device=options.device, threads=options.threads, cache_dir=options.cache_dir
    )
    if not isinstance(opened, VolumePredictor):
        opened.close()
        raise PackageError(f"{path} takes pictures; it is not the first stage of '{name}'")
    known = (opened.package.sha256, opened.package.network_sha256)
    if link.sha256 is not None and link.sha256 not in known:
        opened.close()
        raise PackageError(
            f"{path} is not the package that '{name}' was made to continue; export '{name}' again with --previous-stage"
        )
    return opened


def case_name(source: VolumeSource) -> str:
    """A case's name in messages: the first file's, without its channel number."""
    if isinstance(source, Case):
        return source.name
    first = source[0] if isinstance(source, Sequence) and not isinstance(source, str) and source else source
    if isinstance(first, Volume):
        return first.name
    return str(first) if isinstance(first, str | Path) else "array"


def _named(progress: Progress | None, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, _: progress(done, total, name)


def _too_large(name: str) -> InputError:
    return InputError(f"{name} does not fit into this machine's memory; use fewer classes, folds or a larger machine")
