"""`segship verify`: does this package give, on this machine, what it gave where it was made?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segship import engines
from segship.errors import PackageError
from segship.inference.predictor import Predictor
from segship.manifest import Manifest, Saliency
from segship.package import Golden, GoldenStage, open_package

DECODED_SHARE = {"fp32": 0.001, "fp16": 0.005, "bf16": 0.02, "int16": 0.005, "int8": 0.02}
"""share of decoded pixels that may differ: those that lie on the decision's edge"""
DECODED_MEAN = {"fp32": 0.001, "fp16": 0.005, "bf16": 0.02, "int16": 0.005, "int8": 0.05}
"""mean difference of a saliency map, of its full scale: rounding moves many of its pixels, each by very little"""


@dataclass(frozen=True, kw_only=True)
class VerifyRow:
    precision: str
    stage: str
    max_abs: float
    """largest difference; for the network of another precision than fp32 the root mean square one (its largest
    follows single extreme logits, which decide nothing); for the decoded stage the share of differing pixels, for a
    saliency map the mean difference of its full scale"""
    allowed: float
    passed: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify_package(
    path: Path | str, *, precisions: Sequence[str] | None = None, engine: str | None = None, **options: Any
) -> list[VerifyRow]:
    """Check every hash, then run the golden sample through each variant, stage by stage.

    Raises PackageTampered for a changed byte and PackageError when there is no golden sample. A stage that
    differs too much is a row with ``passed`` False.
    """
    package = open_package(path, verify=True)
    golden = package.golden()
    if golden is None:
        raise PackageError(f"{path} has no golden sample; export it again")
    wanted = tuple(precisions or (variant.precision for variant in package.manifest.variants))
    rows: list[VerifyRow] = []
    for precision in wanted:
        with Predictor.open(package, precision=precision, engine=engine, compile_now=False, **options) as predictor:
            stages = predictor.golden_trace(golden.input_bytes)
            rows += compare_stages(golden, stages, package.manifest, precision, predictor.engine)
    return rows


def verify_with_runner(
    path: Path | str, *, binary: Path | str | None = None, precisions: Sequence[str] | None = None, **options: Any
) -> list[VerifyRow]:
    """The same by the C++ runner: `verify_package`'s hashes here, the golden sample through the binary.

    ``options`` are those of `RunnerOptions`. Raises EngineMissing where there is no binary, and what it says itself.
    """
    from segship.inference import cpp_runner

    runner = cpp_runner.find_runner(binary)
    package = open_package(path, verify=True)
    golden = package.golden()
    if golden is None:
        raise PackageError(f"{path} has no golden sample; export it again")
    mirrored = package.manifest.input.kind == "image"  # of a volume's sample as `VolumePredictor.golden_trace` has it
    rows: list[VerifyRow] = []
    with cpp_runner.golden_case(package, golden) as case:
        for precision in precisions or [variant.precision for variant in package.manifest.variants]:
            settings = cpp_runner.RunnerOptions(precision=precision, mirror=mirrored, **options)
            stages = cpp_runner.golden_stages(runner, case, settings)
            rows += compare_stages(golden, stages, package.manifest, precision, cpp_runner.ENGINE)
    return rows


def compare_stages(
    golden: Golden, stages: Mapping[str, np.ndarray], manifest: Manifest, precision: str, engine: str
) -> list[VerifyRow]:
    """A row for each stage of the golden sample; one that is absent, or of another shape, does not pass."""
    rule, tolerance = manifest.decode.decision, engines.get_engine(engine).TOLERANCE[precision]
    map_scale = (1.0 if rule.to_uint8 == "none" else 255.0) if isinstance(rule, Saliency) else None
    rows = []
    for name, expected in golden.stages.items():
        got = np.asarray(stages.get(name, np.zeros(0)), dtype=np.float32)
        if got.shape != expected.shape:
            rows.append(VerifyRow(precision=precision, stage=name, max_abs=float("inf"), allowed=0.0, passed=False))
            continue
        difference = np.abs(got.ravel()[expected.index] - expected.values)
        if name == "decoded" and map_scale is not None:
            worst, allowed = float(difference.mean()) / map_scale, DECODED_MEAN[precision]
        elif name == "decoded":
            worst, allowed = float(np.mean(difference > 0.5)), DECODED_SHARE[precision]
        else:
            lossy = name == "network" and precision != "fp32"
            worst = float(np.sqrt(np.mean(np.square(difference))) if lossy else difference.max(initial=0.0))
            allowed = _allowed(name, expected, precision, tolerance)
        passed = bool(worst <= allowed)  # NaN compares false, as it must
        rows.append(VerifyRow(precision=precision, stage=name, max_abs=worst, allowed=allowed, passed=passed))
    return rows


def _allowed(stage: str, expected: GoldenStage, precision: str, tolerance: float) -> float:
    if stage != "network":
        return expected.tolerance
    spread = max(1.0, float(expected.values.std()))
    return max(expected.tolerance, tolerance * spread)
