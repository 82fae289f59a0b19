"""Which variant of a package to run: names that users type, and what `auto` chooses on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from segship.engines import get_engine
from segship.errors import PrecisionMissing, UsageError
from segship.manifest import Manifest, Precision, Variant

PRECISIONS: tuple[str, ...] = get_args(Precision)
PRECISION_ALIASES = {
    "force_float32": "fp32",
    "force_float16": "fp16",
    "qint8_mixed_float16": "int8",
    "qint8_mixed_float32": "int8",
    "qint16_mixed_float32": "int16",
    "qint16_mixed_float16": "int16",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "half": "fp16",
}
AUTO_MAX_DROP = 0.002
"""`auto` takes a variant whose recorded loss of the package's own metric is at most this"""

_FASTEST_FIRST = ("int8", "bf16", "fp16")
_NOT_FASTER_ON_CPU = ("fp16",)
"""native on some processors and still 1.5 times slower than fp32 there (docs/performance.md)"""


@dataclass(frozen=True, kw_only=True)
class Choice:
    precision: str
    reason: str


def canonical_precision(name: str) -> str:
    """'fp32' … for any name or alias; 'auto' stays. Raises UsageError for an unknown name."""
    found = PRECISION_ALIASES.get(name.lower(), name.lower())
    if found not in (*PRECISIONS, "auto"):
        aliases = ", ".join(PRECISION_ALIASES)
        raise UsageError(
            f"no precision is called '{name}'; there are {', '.join(PRECISIONS)} and auto (aliases: {aliases})"
        )
    return found


def choose_precision(
    manifest: Manifest, wanted: str, *, engine: str, device: str, max_drop: float = AUTO_MAX_DROP
) -> Choice:
    """The variant to run. Raises PrecisionMissing when the package or the engine does not have the one asked for."""
    precision = canonical_precision(wanted)
    if precision == "auto":
        return _automatic(manifest, engine, device, max_drop)
    if manifest.variant(precision) is None:
        have = ", ".join(variant.precision for variant in manifest.variants)
        raise PrecisionMissing(
            f"package '{manifest.name}' has no {precision} variant (it has {have}); "
            f"make one with `segship compile --precision {precision}`"
        )
    offered = get_engine(engine).PRECISIONS
    if precision not in offered:
        raise PrecisionMissing(f"engine '{engine}' does not run {precision}; it runs {', '.join(offered)}")
    return Choice(precision=precision, reason="asked for")


def _automatic(manifest: Manifest, engine: str, device: str, max_drop: float) -> Choice:
    module = get_engine(engine)
    found = [d for d in module.availability().devices if _is_called(d.name, device)]
    native = found[0].precisions if found else ()
    passed_over = []
    for precision in _FASTEST_FIRST:
        variant = manifest.variant(precision)
        if variant is None:
            continue
        if device.lower() == "cpu" and precision in _NOT_FASTER_ON_CPU:
            passed_over.append(f"{precision}: no faster than fp32 on a cpu")
        elif precision not in module.PRECISIONS:
            passed_over.append(f"{precision}: not run by {engine}")
        elif precision not in native:
            passed_over.append(f"{precision}: this {device} does not compute in it")
        elif (loss := _known_loss(manifest, variant)) is None:
            passed_over.append(f"{precision}: its accuracy was never measured")
        elif loss[0] > max_drop:
            passed_over.append(f"{precision}: {loss[1]}, allowed {max_drop}")
        else:
            return Choice(precision=precision, reason=f"fastest within budget: {loss[1]}, allowed {max_drop}")
    if manifest.variant("int16") is not None:
        passed_over.append("int16: for accuracy and file size, not faster than fp32")
    why = "; ".join(passed_over) if passed_over else "the package has no faster variant"
    return Choice(precision="fp32", reason=why)


def _is_called(name: str, asked: str) -> bool:
    """Is a listed device the one that was asked for? 'cuda' is 'cuda:0'; engines that list no numbers mean each."""
    name, asked = name.lower(), asked.lower()
    return asked in (name, name.removesuffix(":0")) or (":" not in name and asked.partition(":")[0] == name)


def _known_loss(manifest: Manifest, variant: Variant) -> tuple[float, str] | None:
    """What a variant loses of the package's own metric, at most, and how that is known; None where it is not."""
    drop, fidelity = variant.drop, variant.fidelity
    if drop is not None:
        return drop.drop, f"loses {drop.drop:.4f} {drop.metric} on {drop.cases} cases"
    if fidelity is not None and manifest.metric.name == "MAE":
        # the distance of two maps is the most that their MAE against anything can differ by
        return fidelity.value, f"masks differ from fp32's by {fidelity.value:.4f} on {fidelity.pictures} pictures"
    return None
