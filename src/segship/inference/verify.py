"""`segship verify`: does this package give, on this machine, what it gave where it was made?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segship import engines
from segship.errors import PackageError
from segship.inference.predictor import Predictor
from segship.manifest import Saliency
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
        with Predictor.open(package, precision=precision, engine=engine, **options) as predictor:
            stages = predictor.golden_trace(golden.input_bytes)
            module = engines.get_engine(predictor.engine)
            rule = package.manifest.decode.decision
            scale = (1.0 if rule.to_uint8 == "none" else 255.0) if isinstance(rule, Saliency) else None
            rows += _compare(golden, stages, precision, module.TOLERANCE[precision], scale)
    return rows


def _compare(
    golden: Golden, stages: dict[str, np.ndarray], precision: str, tolerance: float, map_scale: float | None
) -> list[VerifyRow]:
    """``map_scale`` is the full scale of a saliency map, None for a package that decides."""
    rows = []
    for name, expected in golden.stages.items():
        got = np.asarray(stages[name], dtype=np.float32)
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
