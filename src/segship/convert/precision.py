"""A package gains a precision: built from its fp32 graph, measured, checked on every installed engine, then stored.

fp16 keeps its convolution weights in half the space, bf16 runs the fp32 graph in another arithmetic, int8 is a
QDQ graph calibrated on pictures. What an engine really executed is recorded beside what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx

from segship.convert import checks, gate, onnx_graph, quantize
from segship.convert.base import open_base
from segship.convert.builder import Builder, with_variant
from segship.convert.calibration import DEFAULT_SUBSET, Calibration, load_calibration, without_overlap
from segship.convert.quantize import Activations, Algorithm, BiasCorrection, QuantizeOptions, Weights
from segship.convert.variants import CheckRow, check_variant
from segship.datasets import Dataset, open_dataset
from segship.engines import DEFAULT_ENGINE
from segship.errors import PrecisionMissing, UsageError
from segship.inference.precision import canonical_precision
from segship.inference.predictor import Predictor
from segship.manifest import Drop, Manifest, Precision, Variant
from segship.metrics.evaluation import Evaluation, drop_against, evaluate_cases
from segship.package import Package, update_package

Progress = Callable[[int, int, str], None]
Shape = Literal["static", "dynamic"]
Preset = Literal["performance", "mixed"]
OFFERED = ("fp32", "fp16", "bf16", "int8")
RANKING_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class CompileResult:
    package: Package
    variant: Variant
    checks: tuple[CheckRow, ...]
    gate: gate.GateResult | None
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "package": str(self.package.path),
            "sha256": self.package.sha256,
            "variant": self.variant.model_dump(mode="json"),
            "checks": [row.as_dict() for row in self.checks],
            "gate": self.gate.as_dict() if self.gate else None,
            "warnings": list(self.warnings),
        }

    def as_text(self) -> str:
        lines = [CheckRow.header(), *(row.as_text() for row in self.checks)]
        for record in self.variant.executed:
            shares = ", ".join(f"{kind} {share:.0%}" for kind, share in record.convolution_share.items())
            lines.append(f"{record.engine} {record.version} executed {self.variant.precision} as {shares}")
        if self.gate:
            lines += ["tried:", gate.table(self.gate.trials)]
        return "\n".join([*lines, f"{self.package.path}  sha256 {self.package.sha256[:16]}…"])


def compile_package(
    package: Package | Path | str,
    precision: str,
    *,
    output: Path | str | None = None,
    calibrate: Path | str | None = None,
    calibrate_split: str | Path | None = None,
    subset: int = DEFAULT_SUBSET,
    batches: Sequence[int] = (1,),
    shape: Shape = "dynamic",
    input_size: tuple[int, int] | None = None,
    preset: Preset = "mixed",
    weights: Weights = "per-channel",
    activations: Activations | None = None,
    algorithm: Algorithm = "min-max",
    bias_correction: BiasCorrection = "none",
    dynamic_range: tuple[float, float] | None = None,
    keep_in_float: Sequence[str] | None = None,
    fold_normalization: bool = False,
    max_drop: float | None = None,
    validate: Dataset | Path | str | None = None,
    split: str | Path | None = None,
    layout: str | None = None,
    engine: str | None = None,
    engines: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> CompileResult:
    """Add ``precision`` (or an alias of it) to a package, in its place or as ``output``.

    int8 needs ``calibrate``: pictures of the training side, see ``load_calibration``; ``calibrate_split`` takes
    the training side of a data set's split. ``preset`` performance makes activations symmetric, mixed asymmetric,
    ``activations`` says it outright. ``dynamic_range`` fixes the range of the network's input, in its own units.
    ``keep_in_float`` names convolutions that stay float32; None keeps the first and the last ones (see
    ``edge_layers``). ``batches`` are the sizes that are opened and checked; ``shape`` static compiles for exactly
    these at load. ``input_size`` changes the size of a package exported with free height and width.

    With ``validate`` the metric's drop against fp32 is measured on ``engine``; with ``max_drop`` the variant must
    keep to it, see ``gate``. Raises UsageError, PrecisionMissing, InputError, DatasetError (calibration pictures
    that also stand in the evaluation data), EngineMissing, and BarMissed; on any of them nothing is written.
    """
    name = _precision(precision)
    _check_arguments(name, calibrate, max_drop, validate, batches, dynamic_range)
    base = open_base(package, input_size=input_size)
    target = Path(output) if output is not None else base.package.path
    checks.check_output(target)
    warnings = list(base.warnings)
    names = checks.checking_engines(engines, name)
    judge = engine or (DEFAULT_ENGINE if DEFAULT_ENGINE in names else names[0])
    dataset = validate if validate is None or isinstance(validate, Dataset) else open_dataset(
        validate, layout, split, num_classes=base.manifest.network.outputs[0].channels
    )  # fmt: skip
    calibration: Calibration | None = None
    options: QuantizeOptions | None = None
    if name == "int8":
        assert calibrate is not None
        calibration = load_calibration(calibrate, base.manifest.recipe, subset=subset, split=calibrate_split)
        calibration = without_overlap(calibration, dataset, base.manifest.recipe, drop=calibrate_split is not None)
        warnings += calibration.warnings
        options = QuantizeOptions(
            weights=weights,
            activations=activations or ("symmetric" if preset == "performance" else "asymmetric"),
            algorithm=algorithm,
            bias_correction=bias_correction,
            input_range=dynamic_range,
            keep_in_float=_kept(keep_in_float, base.graphs, dynamic_range),
        )
    builder = Builder(base, name, calibration, options, progress)
    result = _judge(builder, dataset, max_drop, judge, progress) if dataset is not None else None
    if result is not None:
        builder.kept = result.kept_in_float
    return _finish(builder, target, fold_normalization, tuple(batches), shape, names, result, warnings, progress)


def edge_layers(graphs: dict[str, onnx.ModelProto]) -> tuple[str, ...]:
    """The convolutions that stay float32 unless told otherwise: the first and the last of the graph.

    Together they are well under 1 % of a network's arithmetic, and their rounding is the one that shows most: the
    first sees inputs whose grey levels are hardly further apart than int8's steps, the last writes the logits.
    """
    found: list[str] = []
    for graph in graphs.values():
        names = onnx_graph.convolution_names(graph)
        found += [name for name in (names[:1] + names[-1:] if len(names) > 4 else []) if name not in found]
    return tuple(found)


def _kept(
    asked: Sequence[str] | None, graphs: dict[str, onnx.ModelProto], dynamic_range: tuple[float, float] | None
) -> tuple[str, ...]:
    if asked is not None:
        return tuple(asked)
    edges = edge_layers(graphs)
    # A range for the input means that the input is to be quantised, and so the layer that reads it.
    return edges if dynamic_range is None else edges[1:]


def _precision(name: str) -> Precision:
    found = canonical_precision(name)
    if found not in OFFERED:
        raise PrecisionMissing(f"compile makes {', '.join(OFFERED)}, not {found}")
    return cast(Precision, found)


def _check_arguments(
    name: str,
    calibrate: Any,
    max_drop: float | None,
    validate: Any,
    batches: Sequence[int],
    dynamic_range: tuple[float, float] | None,
) -> None:
    if name == "int8" and calibrate is None:
        raise UsageError("int8 needs --calibrate with training images (folder, list.txt, array.npz or data set)")
    if name != "int8" and calibrate is not None:
        raise UsageError(f"--calibrate belongs to int8; {name} needs no calibration")
    if dynamic_range is not None and (name != "int8" or not dynamic_range[0] < dynamic_range[1]):
        raise UsageError("--dynamic-range takes LOW HIGH with LOW below HIGH, and belongs to int8")
    if max_drop is not None and validate is None:
        raise UsageError("--max-drop needs --validate with images and masks to measure the drop on")
    if max_drop is not None and not max_drop >= 0:
        raise UsageError(f"--max-drop must be 0 or more, not {max_drop}")
    if not batches or min(batches) < 1:
        raise UsageError("--batch takes sizes of 1 or more, such as 1,4,8")


# ------------------------------------------------------------------------------------------------- the gate


def _judge(
    builder: Builder, dataset: Dataset, max_drop: float | None, engine: str, progress: Progress | None
) -> gate.GateResult:
    """Measure the drop on one engine; search for layers to put back where it is too large."""
    hashes = frozenset(builder.calibration.pixel_sha256 if builder.calibration else ())
    reference = _evaluate(builder.base.manifest, builder.base.files(), "fp32", dataset, engine, hashes, progress)

    def measure(kept: tuple[str, ...]) -> Drop:
        files = builder.files(builder.graphs(kept))
        variant = builder.variant(files, shapes="dynamic", batches=builder.base.batches or (1,), engines=(engine,))
        if builder.base.batches:
            variant = variant.model_copy(update={"shapes": "static"})
        manifest = with_variant(builder.base.manifest, variant)
        found = _evaluate(
            manifest,
            {**builder.base.files(), **dict(files.values())},
            builder.precision,
            dataset,
            engine,
            hashes,
            progress,
        )
        return drop_against(reference, found)

    def rank(kept: tuple[str, ...]) -> dict[str, float]:
        member = next(iter(builder.base.graphs))
        assert builder.calibration is not None
        x = np.stack(quantize.spread_evenly(builder.calibration.inputs, RANKING_IMAGES))

        def logits(layers: tuple[str, ...]) -> np.ndarray:
            return builder.base.run(builder.graphs(layers)[member], x, engine, "int8")

        expected = builder.base.run(builder.base.graphs[member], x, engine, "fp32")
        return gate.rank_groups(builder.groups(), logits, expected, kept, progress)

    return gate.search(
        measure,
        max_drop,
        groups=builder.groups(),
        rank=rank,
        kept=builder.kept,
        what=builder.precision,
        progress=progress,
    )


def _evaluate(
    manifest: Manifest,
    files: dict[str, bytes],
    precision: str,
    dataset: Dataset,
    engine: str,
    calibration: frozenset[str],
    progress: Progress | None,
) -> Evaluation:
    with (
        checks.temporary_package(manifest, dict(files)) as package,
        Predictor.open(package, precision=precision, engine=engine, cache_dir=package.path / ".cache") as predictor,
    ):
        return evaluate_cases(predictor, dataset, calibration=calibration, progress=progress)


# ------------------------------------------------------------------------------------------- check and write


def _finish(
    builder: Builder,
    target: Path,
    fold: bool,
    batches: tuple[int, ...],
    shape: Shape,
    engines: Sequence[str],
    judged: gate.GateResult | None,
    warnings: list[str],
    progress: Progress | None,
) -> CompileResult:
    base = builder.base
    files = builder.files(builder.graphs())
    variant = builder.variant(
        files, shapes=shape, batches=base.checked_batches(batches, shape), engines=tuple(engines),
        drop=judged.drop if judged else None,
    )  # fmt: skip
    manifest = with_variant(base.manifest, variant)
    everything = {**base.files(), **dict(files.values())}
    if fold:
        manifest, everything = base.folded(manifest, everything)
    rows, executed = check_variant(
        base, manifest, everything, builder.precision, engines, builder.calibration, progress
    )
    variant = cast(Variant, manifest.variant(builder.precision)).model_copy(update={"executed": tuple(executed)})
    manifest = with_variant(manifest, variant)
    warnings += [row.warning for row in rows if row.warning]
    provenance = base.provenance()
    provenance.setdefault("compile", {})[builder.precision] = {
        "environment": checks.environment(),
        "checks": [row.as_dict() for row in rows],
        "gate": judged.as_dict() if judged else None,
        "warnings": warnings,
    }
    provenance.setdefault("calibration", {}).pop(builder.precision, None)
    if builder.calibration is not None and builder.options is not None:
        provenance["calibration"][builder.precision] = {
            **builder.calibration.record(),
            "algorithm": builder.options.algorithm,
            "input_range": builder.options.input_range,
        }
    # What was measured of an earlier variant of this precision says nothing about this one.
    same = base.manifest.variant(builder.precision)
    if same is None or same.sha256 != variant.sha256:
        records = provenance.get("accuracy", [])
        provenance["accuracy"] = [r for r in records if r.get("precision") != builder.precision]
    written = update_package(
        base.package,
        manifest=manifest,
        add={**everything, **base.golden(manifest, everything)},
        remove=[n for n in base.package.names() if n.startswith(("graphs/", "golden/"))],
        provenance=provenance,
        output=target,
    )
    return CompileResult(
        package=written,
        variant=variant,
        checks=tuple(rows),
        gate=judged,
        warnings=tuple(dict.fromkeys(warnings)),
    )
