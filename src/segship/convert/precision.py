"""A package gains a precision: built from its fp32 graph, measured, checked on every installed engine, then stored.

fp16 keeps its convolution weights in half the space, bf16 runs the fp32 graph in another arithmetic, int8 and int16
are QDQ graphs calibrated on pictures. What an engine really executed is recorded beside what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import onnx

from segship.convert import checks, fidelity, gate, int16, layers
from segship.convert.base import Base, Shape, open_base
from segship.convert.builder import Builder, with_variant
from segship.convert.calibration import DEFAULT_SUBSET, Calibration, load_calibration, without_overlap
from segship.convert.judge import Evidence, judge
from segship.convert.quantize import Activations, Algorithm, BiasCorrection, QuantizeOptions, Weights
from segship.convert.variants import CheckRow, check_variant
from segship.datasets import Dataset, default_split, is_mmseg_like, is_sod, open_dataset, recognise_layout
from segship.engines import DEFAULT_ENGINE
from segship.errors import DatasetError, PrecisionMissing, UsageError
from segship.inference.precision import canonical_precision
from segship.manifest import Precision, Recipe, Variant
from segship.package import Package, update_package

Progress = Callable[[int, int, str], None]
Preset = Literal["performance", "mixed"]
OFFERED = ("fp32", "fp16", "bf16", "int8", "int16")
CALIBRATED = ("int8", "int16")


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
            lines.append(f"{record.engine} {record.version} executed {self.variant.precision} as {record.text}")
        if self.variant.precision == "int16":
            lines.append(f"int16: {int16.MEANING}")
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
    force: bool = False,
    engine: str | None = None,
    engines: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> CompileResult:
    """Add ``precision`` (or an alias of it) to a package, in its place or as ``output``.

    int8 and int16 need ``calibrate``: pictures of the training side, see ``load_calibration``; ``calibrate_split``
    takes the training side of a data set's split. Of int8, ``preset`` performance makes activations symmetric, mixed
    asymmetric, ``activations`` says it outright; ``dynamic_range`` fixes the range of the network's input, in its own
    units. ``keep_in_float`` names convolutions that stay float32; None keeps those of ``layers.edge_layers`` in int8
    and none in int16. ``batches`` are the sizes that are opened and checked; ``shape`` static compiles for exactly
    these at load. ``input_size`` changes the size of a package exported with free height and width.

    With ``validate`` the metric's drop against fp32 is measured on ``engine``; with ``max_drop`` the variant must
    keep to it, see ``gate``. Of a saliency package the maps' distance from fp32's is measured too, and must keep to
    ``fidelity.LIMIT`` unless ``force``: on the pictures of ``validate`` (a data set, or a folder without masks),
    else on pictures held out of calibration, else on the golden sample. Raises UsageError, PrecisionMissing,
    InputError, DatasetError (calibration pictures that also stand in the evaluation data), EngineMissing, and
    BarMissed; on any of them nothing is written.
    """
    name = _precision(precision)
    _check_arguments(name, calibrate, max_drop, validate, batches, dynamic_range)
    base = open_base(package, input_size=input_size)
    if name == "int8" and base.manifest.input.kind == "image":
        base = base.with_joins()  # a sum of pictures' integers is held in float32: more memory and time than the join
    maps = fidelity.concerns(base.manifest) and name != "fp32"
    if force and not maps:
        raise UsageError("--force overrides the limit on a saliency package's masks; here there is none")
    target = Path(output) if output is not None else base.package.path
    checks.check_output(target)
    warnings = list(base.warnings)
    names = checks.checking_engines(engines, name)
    engine = engine or (DEFAULT_ENGINE if DEFAULT_ENGINE in names else names[0])
    given = _validation(validate, layout, split, base, max_drop)
    dataset = given if isinstance(given, Dataset) else None
    calibration: Calibration | None = None
    options: QuantizeOptions | None = None
    if name in CALIBRATED:
        assert calibrate is not None
        recipe = base.manifest.recipe
        hold_out = maps and given is None
        calibration = load_calibration(calibrate, recipe, subset=subset, split=calibrate_split, hold_out=hold_out)
        calibration = without_overlap(calibration, dataset, recipe, drop=calibrate_split is not None)
        warnings += calibration.warnings
        options = QuantizeOptions(
            weights=weights,
            activations=activations or _activations(preset, recipe),
            algorithm=algorithm,
            bias_correction=bias_correction,
            input_range=dynamic_range,
            keep_in_float=_kept(keep_in_float, base.graphs, dynamic_range),
        )
        options = options if name == "int8" else _int16_options(options, activations, keep_in_float)
    builder = Builder(base, name, calibration, options, progress)
    pictures = fidelity.choose_pictures(base, given, calibration) if maps else None
    result: gate.GateResult | None = None
    if dataset is not None or pictures is not None:
        evidence = Evidence(dataset=dataset, pictures=pictures, max_drop=max_drop, force=force)
        result = judge(builder, evidence, engine, progress)
        builder.kept = result.kept_in_float
        warnings += _doubts(result, name)
    return _finish(builder, target, fold_normalization, tuple(batches), shape, names, result, warnings, progress)


def _validation(
    validate: Dataset | Path | str | None,
    layout: str | None,
    split: str | Path | None,
    base: Base,
    max_drop: float | None,
) -> Dataset | Path | None:
    """What ``--validate`` names: a data set, or for a saliency package a folder (or file) of pictures without masks."""
    if validate is None or isinstance(validate, Dataset):
        return validate
    path = Path(validate)
    if layout is None and base.manifest.metric.scorer == "sod" and is_sod(path):
        layout = "sod"  # images/ + masks/ is one of its layouts too
    if layout is None and base.manifest.metric.scorer == "mmseg" and is_mmseg_like(path):
        layout = "mmseg"  # and of these
    if layout is None and split is None and fidelity.concerns(base.manifest) and path.exists():
        try:
            recognise_layout(path)
        except DatasetError:
            if max_drop is not None:
                raise UsageError(
                    f"--max-drop needs images with masks, and {path} has none; without it the masks are compared with fp32's"
                ) from None
            return path
    split = split or default_split(path, layout)
    return open_dataset(path, layout, split, num_classes=base.manifest.network.outputs[0].channels)


def _doubts(result: gate.GateResult, precision: str) -> list[str]:
    """What to say of a saliency package's comparison with fp32."""
    found = result.fidelity
    if found is None:
        return []
    doubts = []
    if found.forced:
        doubts.append(
            f"{precision} masks differ from fp32's by {found.value:.4f} of full scale on average, more than "
            f"{found.limit:g}; written because of --force"
        )
    if found.source == "golden sample":
        doubts.append(
            "masks were compared with fp32's on the package's golden sample alone; give pictures with --validate FOLDER"
        )
    return doubts


def _activations(preset: Preset, recipe: Recipe) -> Activations:
    """Networks for volumes are symmetric by either preset: values behind their leaky ReLUs are negative too, and OpenVINO
    computes a convolution whose input has a zero point in float32 (measured: int8 0 % against 98 % of the time)."""
    return "symmetric" if preset == "performance" or recipe.input.kind == "volume" else "asymmetric"


def _kept(
    asked: Sequence[str] | None, graphs: dict[str, onnx.ModelProto], dynamic_range: tuple[float, float] | None
) -> tuple[str, ...]:
    if asked is not None:
        return tuple(asked)
    edges = layers.edge_layers(graphs)
    # A range for the input means that the input is to be quantised, and so the layer that reads it.
    return edges if dynamic_range is None else edges[1:]


def _int16_options(
    options: QuantizeOptions, activations: Activations | None, keep_in_float: Sequence[str] | None
) -> QuantizeOptions:
    """int16 has one definition; UsageError for an option that asks for another."""
    asked = (options.weights, activations or "symmetric", options.algorithm, options.bias_correction)
    if asked != ("per-channel", "symmetric", "min-max", "none"):
        raise UsageError(
            "int16 is symmetric, per output channel, min-max, without bias correction; "
            "--weights, --activations, --algorithm and --bias-correction belong to int8"
        )
    return QuantizeOptions(activations="symmetric", keep_in_float=tuple(keep_in_float or ()))


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
    if name in CALIBRATED and calibrate is None:
        raise UsageError(f"{name} needs --calibrate with training images (folder, list.txt, array.npz or data set)")
    if name not in CALIBRATED and calibrate is not None:
        raise UsageError(f"--calibrate belongs to int8 and int16; {name} needs no calibration")
    if dynamic_range is not None and (name != "int8" or not dynamic_range[0] < dynamic_range[1]):
        raise UsageError("--dynamic-range takes LOW HIGH with LOW below HIGH, and belongs to int8")
    if max_drop is not None and validate is None:
        raise UsageError("--max-drop needs --validate with images and masks to measure the drop on")
    if max_drop is not None and not max_drop >= 0:
        raise UsageError(f"--max-drop must be 0 or more, not {max_drop}")
    if not batches or min(batches) < 1:
        raise UsageError("--batch takes sizes of 1 or more, such as 1,4,8")


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
        files, shapes=base.shapes(shape), batches=base.checked_batches(batches), engines=tuple(engines),
        drop=judged.drop if judged else None, fidelity=judged.fidelity if judged else None,
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
            "held_out": [name for name, _ in builder.calibration.held_out],
        }
        if builder.precision == "int16":
            provenance["calibration"]["int16"]["headroom"] = int16.HEADROOM
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
