"""A package opened on an engine: the object that the Python API, the command line, the server, `evaluate` and
`benchmark` all hold. It is opened once and used for any number of pictures, from any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from segship.engines import DEFAULT_ENGINE, Session, SessionOptions
from segship.errors import InputError, PackageError, SegshipError, UsageError
from segship.inference.bands import Band, restored_bands, restored_stream
from segship.inference.decode import decides_in_bands, labels_alone
from segship.inference.images import DEFAULT_LIMITS, ArrayOrder, Image, Limits, Source, read_image
from segship.inference.items import Failure, Item, source_name
from segship.inference.members import Members
from segship.inference.pipeline import batches, helper_threads, in_order, ordered_map
from segship.inference.precision import AUTO_MAX_DROP, Choice, choose_precision
from segship.inference.prediction import Grid, Prediction, decide, decode
from segship.inference.preprocess import Frame, Prepared, check_input_shape, prepare
from segship.inference.views import (
    Augmenting,
    affordable_batch,
    augmented,
    check_recipe,
    mean_probabilities,
    pixels_at_once,
)
from segship.inference.volume_network import lone_window
from segship.inference.windows import picture_bands, run_picture
from segship.manifest import Manifest, Recipe, Variant
from segship.package import Package, cache_folder, open_package

R = TypeVar("R")


class Predictor:
    """Use `Predictor.open` or ``segship.load``. A context manager; `close` frees the engine's memory."""

    def __init__(
        self,
        package: Package,
        *,
        engine: str,
        choice: Choice,
        options: SessionOptions,
        batch: int,
        limits: Limits,
        array_order: ArrayOrder,
        tta: Augmenting | None = None,
        tta_ratios: tuple[float, ...] | None = None,
    ) -> None:
        self.package = package
        self.manifest: Manifest = package.manifest
        self.engine = engine
        self.choice = choice
        """which precision runs, and why"""
        self.precision = choice.precision
        self.options = options
        self.batch = batch
        self.limits = limits
        self.array_order: ArrayOrder = array_order
        self.tta = tta
        """whose test-time augmentation runs; None without"""
        self.views: list[Recipe] = []
        """the recipes whose probabilities are averaged, with test-time augmentation; none without"""
        if tta is not None:
            self.views = augmented(package.manifest, tta, tta_ratios)
        variant = self.manifest.variant(choice.precision)
        assert variant is not None
        self.variant: Variant = variant
        self.members = Members(package, variant, engine, options)

    @classmethod
    def open(
        cls,
        package: Package | Path | str,
        *,
        precision: str = "fp32",
        engine: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        streams: int = 1,
        batch: int = 1,
        cache_dir: Path | str | None = None,
        static_shape: tuple[int, ...] | None = None,
        max_drop: float = AUTO_MAX_DROP,
        limits: Limits = DEFAULT_LIMITS,
        array_order: ArrayOrder = "rgb",
        profile: bool = False,
        tta: Augmenting | None = None,
        tta_ratios: tuple[float, ...] | None = None,
        compile_now: bool = True,
    ) -> Predictor:
        """Open a package (or its path) on an engine; the graph is compiled now, so that errors show now.

        ``compile_now`` False leaves that to the first use: for those who run the golden sample alone, which a package
        of large pictures is checked by at a smaller size than the one that its graph would be compiled for.

        ``precision`` is fp32, fp16, bf16, int8, int16, one of their aliases, or "auto" (the fastest variant whose
        recorded drop is at most ``max_drop`` and that this processor computes in natively). ``streams`` is how many
        batches may be in the engine at once, ``batch`` the default of `stream`. ``static_shape`` (N, C, h, w)
        compiles for that input shape alone. ``tta`` "1.x" or "0.x" averages the probabilities of several sizes and
        mirrorings, as that version of mmseg does (``tta_ratios``: other sizes than the package's). Raises PackageError, PrecisionMissing, EngineMissing, DeviceMissing.
        """
        if batch < 1 or streams < 1 or (threads is not None and threads < 1):
            raise UsageError(f"batch, streams and threads are at least 1, got {batch}, {streams}, {threads}")
        engine = engine or DEFAULT_ENGINE
        opened = package if isinstance(package, Package) else open_package(package)
        choice = choose_precision(opened.manifest, precision, engine=engine, device=device, max_drop=max_drop)
        options = SessionOptions(
            precision=choice.precision,
            device=device,
            threads=threads,
            streams=streams,
            cache_dir=cache_folder() / "compiled" / engine if cache_dir is None else Path(cache_dir),
            static_shape=static_shape or lone_window(opened.manifest),
            profile=profile,
        )
        self = _class_for(cls, opened.manifest)(
            opened, engine=engine, choice=choice, options=options, batch=batch, limits=limits, array_order=array_order,
            tta=tta, tta_ratios=tta_ratios,
        )  # fmt: skip
        if compile_now:
            self.members.sessions(batch)
        return self

    def close(self) -> None:
        self.members.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def sessions(self) -> list[Session]:
        """The engine's session of each ensemble member, as used for the default batch."""
        return self.members.sessions(self.batch)

    # ----------------------------------------------------------------------------------------- one input

    def __call__(
        self, source: Source, *, probabilities: bool = False, grid: Grid = "input", keep_scores: bool = True
    ) -> Prediction:
        """Predict one picture: a path, encoded bytes, a PIL image, or an array (H, W[, 1|3|4]), RGB unless opened otherwise.

        Masks and probabilities are computed when first read; ``probabilities=True`` computes them now.
        ``keep_scores=False`` is for those who want labels alone: where windows make a picture's scores as large as the
        picture itself (160 MB of a street scene) they are given up row by row, and asking for them raises UsageError.
        Raises InputError for an input that cannot be read.
        """
        image = self.read(source)
        item = self._inferred(Item(number=0, name=image.name, image=image), self.batch, keep_scores or probabilities)
        assert item.frame is not None
        found = self._decode(item, item.frame, grid)
        if probabilities:
            _ = found.probabilities
        return found

    def read(self, source: Source, name: str | None = None) -> Image:
        """Decode one picture by the package's reading rules. Raises InputError."""
        spec = self.manifest.input
        if spec.kind != "image":
            raise PackageError(
                f"package '{self.manifest.name}' takes volumes; this version of segship runs packages for pictures"
            )
        return read_image(source, spec, self.limits, self.array_order, name)

    def prepare(self, source: Source) -> Prepared:
        """Read and preprocess one picture: what the network would get."""
        return prepare(self.read(source), self.manifest)

    def trace(self, source: Source, recipe: Recipe | None = None) -> dict[str, np.ndarray]:
        """One picture, stage by stage (``recipe``: by other steps than the package's own):

        read           (H, W, C) pixels as decoded, in the network's channel order
        preprocessed   (C, h, w) float32
        network        (K, h, w) float32, the first output
        decoded        on the picture's grid: masks (K, H, W) bool for independent classes, labels (H, W) for
                       exclusive ones, the map (H, W) for saliency
        """
        image = self.read(source)
        recipe = recipe or self.manifest
        prepared = prepare(image, recipe)
        outputs = self._run_picture(prepared.x, recipe, self.batch)
        found = self._decode(Item(number=0, name=image.name, outputs=outputs), prepared.frame, "input")
        return {
            "read": image.pixels,
            "preprocessed": prepared.x,
            "network": found.outputs[0],
            "decoded": found.decoded,
        }

    def golden_trace(self, sample: bytes) -> dict[str, np.ndarray]:
        """`trace` of a package's golden sample, at the size that the package is checked at."""
        return self.trace(sample, check_recipe(self.manifest))

    def network(self, x: np.ndarray, *, all_outputs: bool = False) -> Any:
        """The bare network: preprocessed (N, C, h, w) float32 in, the first raw output (N, K, h', w') out.

        ``all_outputs`` gives a list of all of them. Members of an ensemble are averaged as the manifest says.
        Raises InputError for a wrong type, channel count or size.
        """
        x = np.asarray(x)
        axes = len(self.manifest.network.layout)
        if x.ndim != axes or x.shape[0] == 0:
            raise InputError(f"the network takes {self.manifest.network.layout} arrays, got shape {x.shape}")
        if x.dtype.kind not in "fiu" or not np.isfinite(x).all():
            raise InputError(
                f"the network takes finite float32 values, got {x.dtype}; preprocess with .prepare(source).x"
            )
        check_input_shape(x.shape[1:], self.manifest, "array")
        outputs = self.members(np.ascontiguousarray(x, dtype=np.float32))
        return outputs if all_outputs else outputs[0]

    # --------------------------------------------------------------------------------------- many inputs

    def stream(
        self,
        sources: Iterable[Source],
        *,
        batch: int | None = None,
        grid: Grid = "input",
        keep_images: bool = False,
        keep_scores: bool = True,
    ) -> Iterator[Prediction | Failure]:
        """Predict many pictures in order; reading and inference overlap. A broken one comes as a `Failure`.

        Inputs of equal prepared size share a batch. Memory is bounded by a few batches, whatever the number of
        inputs; ``keep_images`` keeps each decoded picture with its prediction, for overlays; ``keep_scores`` as in a call.
        """
        return self.run(
            sources, lambda item: self.result(item, grid), batch=batch, keep_images=keep_images, threads=1,
            keep_scores=keep_scores,
        )  # fmt: skip

    def result(self, item: Item, grid: Grid = "input") -> Prediction | Failure:
        """What `stream` gives for an item of `run`."""
        error = item.error
        if error is None and item.frame is not None:
            try:
                return self._decode(item, item.frame, grid)
            except SegshipError as raised:
                error = raised
        assert error is not None
        return Failure(name=item.name, error=error)

    def run(
        self,
        sources: Iterable[Source],
        finish: Callable[[Item], R],
        *,
        batch: int | None = None,
        keep_images: bool | Callable[[Image], bool] = False,
        keep_inputs: bool = False,
        keep_scores: bool = True,
        threads: int | None = None,
    ) -> Generator[R, None, None]:
        """The chain under `stream`: ``finish`` is called in threads of its own with each item, results come in order.

        An item that failed has ``error`` set and no outputs. ``finish`` must not raise for a single input's fault:
        whatever it raises ends the run. ``keep_images`` may be a question asked of each picture.
        """
        size = self.batch if batch is None else batch
        if size < 1:
            raise UsageError(f"batch is at least 1, got {size}")
        fixed = self.members.fixed_batch(size)
        size = fixed or affordable_batch(size, pixels_at_once(self.manifest))

        def most(shape: tuple[int, ...]) -> int:
            free = fixed is None and self.manifest.network.size is None
            return affordable_batch(size, shape[1] * shape[2]) if free else size

        def read(numbered: tuple[int, Source]) -> Item:
            return self._read_item(*numbered, keep_image=keep_images)

        def infer(group: list[Item]) -> list[Item]:
            found = self._infer_items(group, size, keep_scores)
            return found if keep_inputs else [replace(item, x=None) for item in found]

        readers = helper_threads()
        streams = self.options.streams
        items = ordered_map(read, enumerate(sources), workers=readers, ahead=size * (streams + 1) + readers)
        groups = ordered_map(infer, batches(items, most), workers=streams, ahead=streams + 1)
        writers = threads or helper_threads()
        return ordered_map(finish, in_order(groups), workers=writers, ahead=size + writers)

    def _read_item(self, number: int, source: Source, *, keep_image: bool | Callable[[Image], bool]) -> Item:
        name = source_name(source)
        try:
            image = self.read(source)
            if self.views:  # each view is prepared when its turn comes: together they are many times the picture
                keep = keep_image(image) if callable(keep_image) else keep_image
                return Item(number=number, name=name, image=image, keep=keep)
            prepared = prepare(image, self.manifest)
        except SegshipError as error:
            return Item(number=number, name=name, error=error)
        except MemoryError:
            too_large = InputError(f"{name} does not fit into this machine's memory; cut it into tiles")
            return Item(number=number, name=name, error=too_large)
        keep = keep_image(image) if callable(keep_image) else keep_image
        return Item(number=number, name=name, frame=prepared.frame, x=prepared.x, image=image if keep else None)

    def _run_picture(self, x: np.ndarray, recipe: Recipe, batch: int) -> tuple[np.ndarray, ...]:
        """All outputs for one prepared picture; its windows, where it has them, go ``batch`` at a time."""
        count = None if recipe.tiling is None else batch
        return run_picture(lambda parts: self.members(parts, count), x, recipe, batch)

    def _bands(self, x: np.ndarray, recipe: Recipe, batch: int) -> Iterator[Band]:
        """The first output for one prepared picture of windows, in bands of rows on its own grid."""
        return picture_bands(lambda parts: self.members(parts, batch), x, recipe, batch)

    def _scores_on_picture(self, prepared: Prepared, recipe: Recipe, batch: int) -> Iterator[Band]:
        """The first output on the picture's own grid, in bands of rows."""
        rule = (prepared.frame, recipe.decode.restore_method, recipe.decode.restore_path)
        if recipe.tiling is None:
            return restored_bands(self._run_picture(prepared.x, recipe, batch)[0], *rule)
        sides = (prepared.x.shape[1], prepared.x.shape[2])
        return restored_stream(self._bands(prepared.x, recipe, batch), sides, *rule)

    def _inferred(self, item: Item, batch: int, keep_scores: bool) -> Item:
        """An item that shares no batch: of several views, or of windows, which fill batches themselves. Raises SegshipError."""
        if self.views:
            assert item.image is not None
            activation = "none" if self.members.averages_probabilities else self.manifest.decode.activation
            mean = mean_probabilities(
                self.views, item.image, activation, lambda one, recipe: self._scores_on_picture(one, recipe, batch)
            )
            size, notes = item.image.size_hw, item.image.notes
            frame = Frame(name=item.image.name, original_hw=size, prepared_hw=size, geometry=(), notes=notes)
            return replace(item, outputs=(mean,), frame=frame, image=item.image if item.keep else None)
        if item.x is None or item.frame is None:
            assert item.image is not None
            prepared = prepare(item.image, self.manifest)
        else:
            prepared = Prepared(x=item.x, frame=item.frame)
        x, frame = prepared.x, prepared.frame
        if keep_scores or not decides_in_bands(self.manifest):
            return replace(item, outputs=self._run_picture(x, self.manifest, batch), frame=frame)
        sides = (x.shape[1], x.shape[2])
        found = labels_alone(self._bands(x, self.manifest, batch), sides, frame, self.manifest.decode)
        return replace(item, labels=found, frame=frame)

    def _infer_items(self, group: list[Item], batch: int, keep_scores: bool) -> list[Item]:
        if group[0].error is not None:
            return group
        if self.views or self.manifest.tiling is not None:
            return [self._or_failed(item, batch, keep_scores) for item in group]
        try:
            outputs = self.members(np.stack([item.x for item in group if item.x is not None]), batch)
        except SegshipError as error:
            return [replace(item, x=None, error=error) for item in group]
        return [replace(item, outputs=tuple(array[i] for array in outputs)) for i, item in enumerate(group)]

    def _or_failed(self, item: Item, batch: int, keep_scores: bool) -> Item:
        try:
            return self._inferred(item, batch, keep_scores)
        except SegshipError as error:
            return replace(item, error=error)

    def _decode(self, item: Item, frame: Frame, grid: Grid) -> Prediction:
        if item.labels is not None:
            return decide(item.labels, frame, self.manifest, grid=grid, image=item.image)
        activated = self.members.averages_probabilities or bool(self.views)
        return decode(item.outputs, frame, self.manifest, grid=grid, activated=activated, image=item.image)


def _class_for(asked: type[Predictor], manifest: Manifest) -> type[Predictor]:
    """Packages for volumes are run by `VolumePredictor`, which has the same methods."""
    if asked is not Predictor or manifest.input.kind != "volume":
        return asked
    from segship.inference.volume_predictor import VolumePredictor

    return VolumePredictor
