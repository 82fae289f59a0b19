"""What a precision is built from: a package's fp32 graphs and manifest, at another size or with folded normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from segship.convert import checks, onnx_graph, parity
from segship.convert.onnx_join import join_again
from segship.engines import SessionOptions, get_engine, open_session
from segship.errors import PackageError, UsageError
from segship.inference.predictor import Predictor
from segship.manifest import Divide, Manifest, Normalize, Recipe, Step, Variant
from segship.package import Package, golden_files, open_package, sha256_bytes

Shape = Literal["static", "dynamic"]

AT_ONCE = 1 << 21
"""pixels or voxels that go through a graph in one batch, about"""


@dataclass(frozen=True, kw_only=True)
class Base:
    """An opened package, ready to gain a variant. ``manifest`` may differ from the package's own (another size)."""

    package: Package
    manifest: Manifest
    graphs: dict[str, onnx.ModelProto]
    """member -> fp32 graph"""
    batches: tuple[int, ...]
    """the batch that is fixed in the graph; empty where it is free"""
    warnings: tuple[str, ...] = ()

    def files(self) -> dict[str, bytes]:
        """Every graph of the manifest's variants by its name in the package."""
        return {name: self.package.read(name) for variant in self.manifest.variants for name in variant.graphs.values()}

    def provenance(self) -> dict[str, Any]:
        return self.package.provenance()

    def with_joins(self) -> Base:
        """The same with sums over joined channels written as one convolution (`onnx_join.join_again`)."""
        return replace(self, graphs={member: join_again(graph) for member, graph in self.graphs.items()})

    def shapes(self, wanted: Shape) -> Shape:
        """``wanted`` of a variant of these graphs; "static" where their batch is fixed."""
        return "static" if self.batches else wanted

    def checked_batches(self, batches: Sequence[int]) -> tuple[int, ...]:
        """The batches to check, sorted. UsageError where the graph's own fixed batch is another."""
        wanted = tuple(sorted(set(batches)))
        if self.batches and wanted != self.batches:
            raise UsageError(
                f"the package was exported with the batch fixed to {self.batches[0]}; use --batch {self.batches[0]} or export again"
            )
        return wanted

    def run(self, graph: onnx.ModelProto, x: np.ndarray, engine: str, precision: str) -> np.ndarray:
        """First output of a graph for x (N, C, h, w), one session opened for it."""
        size = self.batches[0] if self.batches else max(1, min(8, AT_ONCE // int(np.prod(x.shape[2:]))))
        with TemporaryDirectory(prefix="segship-") as folder:
            path = onnx_graph.save(graph, Path(folder) / "graph.onnx")
            session = open_session(engine, path, SessionOptions(precision=precision))
            try:
                parts = []
                for start in range(0, len(x), size):
                    part = x[start : start + size]
                    filled = np.resize(part, (size, *part.shape[1:])) if self.batches else part
                    parts.append(session.run(filled)[0][: len(part)])
                return np.concatenate(parts)
            finally:
                session.close()

    def folded(self, manifest: Manifest, files: Mapping[str, bytes]) -> tuple[Manifest, dict[str, bytes]]:
        """The same package with the normalisation inside every graph: the network then takes pixel values 0..255."""
        kept, operations = split_normalisation(manifest.recipe)
        changed: dict[str, bytes] = {}
        for variant in manifest.variants:
            for name in variant.graphs.values():
                if name not in changed:
                    graph = onnx_graph.with_normalisation(read_graph(files[name], name), operations)
                    changed[name] = onnx_graph.serialise(graph)
        variants = tuple(
            variant.model_copy(
                update={"sha256": {member: sha256_bytes(changed[name]) for member, name in variant.graphs.items()}}
            )
            for variant in manifest.variants
        )
        recipe = manifest.recipe.model_copy(
            update={"preprocess": kept, "options": {**manifest.options, "fold_normalization": True}}
        )
        return Manifest(**recipe.model_dump(), variants=variants), {**files, **changed}

    def golden(self, manifest: Manifest, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The golden sample's files, recomputed on the fp32 graph where size or normalisation changed."""
        golden = self.package.golden()
        if golden is None:
            return {}
        names = [n for n in self.package.names() if n.startswith("golden/")]
        if manifest.preprocess == self.package.manifest.preprocess:
            return {name: self.package.read(name) for name in names}
        engine = checks.checking_engines(None, "fp32")[0]
        with (
            checks.temporary_package(manifest, dict(files)) as package,
            Predictor.open(package, engine=engine, cache_dir=package.path / ".cache", compile_now=False) as predictor,
        ):
            stages = predictor.golden_trace(golden.input_bytes)
        tolerance = max(get_engine(name).TOLERANCE["fp32"] for name in checks.checking_engines(None, "fp32"))
        kept = parity.golden_stages(stages, manifest, tolerance)
        return golden_files(golden.input_name, golden.input_bytes, golden.bundled, kept)


def open_base(package: Package | Path | str, *, input_size: tuple[int, int] | None = None) -> Base:
    """Open a package to build on. ``input_size`` needs a graph whose height and width are free."""
    opened = package if isinstance(package, Package) else open_package(package)
    manifest = opened.manifest
    fp32 = manifest.variant("fp32")
    assert fp32 is not None  # every manifest has one
    graphs = {member: read_graph(opened.read(name), name) for member, name in fp32.graphs.items()}
    first = next(iter(graphs.values())).graph.input[0].type.tensor_type.shape.dim[0]
    batches = (int(first.dim_value),) if first.dim_value else ()
    warnings: tuple[str, ...] = ()
    if input_size is not None and tuple(input_size) != checks.network_size(manifest):
        manifest, warnings = _resized(manifest, fp32, input_size)
    return Base(package=opened, manifest=manifest, graphs=graphs, batches=batches, warnings=warnings)


def _resized(manifest: Manifest, fp32: Variant, size: tuple[int, int]) -> tuple[Manifest, tuple[str, ...]]:
    if manifest.network.size is not None:
        had = "x".join(map(str, manifest.network.size))
        raise UsageError(
            f"the package was exported for {had} alone; export with --shape dynamic, or with --input-size {size[0]}x{size[1]}"
        )
    recipe = checks.with_size(manifest.recipe, *size)
    recipe = recipe.model_copy(update={"options": {**recipe.options, "input_size": f"{size[0]}x{size[1]}"}})
    # Accuracy at another size is another accuracy, so what was measured, and other precisions, do not come along.
    dropped = [v.precision for v in manifest.variants if v.precision != "fp32"]
    warnings = [f"the network was trained at another size than {size[0]}x{size[1]}: measure it with --validate"]
    if dropped:
        warnings.append(f"{', '.join(dropped)} belonged to the former size and was left out; compile it again")
    variants = (fp32.model_copy(update={"drop": None}),)
    return Manifest(**recipe.model_dump(), variants=variants), tuple(warnings)


def read_graph(data: bytes, name: str) -> onnx.ModelProto:
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise PackageError(f"{name} is no ONNX graph ({error}); export the package again") from None
    return model


def split_normalisation(recipe: Recipe) -> tuple[tuple[Step, ...], list[tuple[str, Sequence[float]]]]:
    """(steps that stay outside, ONNX operations for those that go in). UsageError where they cannot be folded."""
    steps = list(recipe.preprocess)
    inside: list[Step] = []
    while steps and isinstance(steps[-1], Normalize | Divide):
        inside.insert(0, steps.pop())
    if not inside:
        raise UsageError(f"'{recipe.name}' ends in no normalisation that could be folded into the graph")
    if recipe.input.kind != "image" or not recipe.input.reader.startswith(("opencv:", "pillow:")):
        raise UsageError(f"'{recipe.name}' does not read 8-bit pictures; its normalisation stays outside the graph")
    operations: list[tuple[str, Sequence[float]]] = []
    for step in inside:
        if isinstance(step, Normalize):
            operations += [("Sub", step.subtract), ("Mul", step.multiply)]
        elif isinstance(step, Divide):
            operations.append(("Div", (step.by,)))
    return tuple(steps), operations
