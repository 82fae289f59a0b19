"""What `segship evaluate` writes into the package: each number with everything that it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from segship.datasets import Dataset
from segship.errors import OutputError
from segship.manifest import Manifest
from segship.metrics.scores import without_nan
from segship.package import Package, update_package

if TYPE_CHECKING:
    from segship.measure.evaluate import VariantScore


def accuracy_record(data: Dataset, variant: VariantScore, score: str | None = None) -> dict[str, Any]:
    """One entry of ``provenance.json``'s ``accuracy``: a number with everything that it depends on."""
    found = variant.evaluation
    return {
        "precision": found.precision,
        "engine": found.engine,
        "device": variant.device,
        "metric": found.metric,
        "value": without_nan(found.metrics)[found.metric],
        "metrics": without_nan(found.metrics),
        **({"score": score} if score else {}),
        "dataset": data.name,
        "dataset_sha256": found.dataset_sha256,
        "split": data.split,
        "split_sha256": data.split_sha256,
        "cases": len(found.scores),
        "failed": len(found.failures),
        "executed": variant.executed.model_dump(mode="json") if variant.executed else None,
    }


_SAME = ("precision", "engine", "device", "metric", "dataset_sha256", "split_sha256", "score")


def record_accuracy(
    package: Package, data: Dataset, variants: Sequence[VariantScore], notes: list[str], score: str | None
) -> Package:
    """The package with each variant's numbers in its provenance and its drop in the manifest. One that cannot be written
    stays as it is, and ``notes`` say so."""
    provenance = package.provenance()
    new = [accuracy_record(data, variant, score) for variant in variants]
    replaced = [{key: record.get(key) for key in _SAME} for record in new]
    kept = [r for r in provenance.get("accuracy", []) if {key: r.get(key) for key in _SAME} not in replaced]
    provenance["accuracy"] = kept + new
    try:
        return update_package(package, manifest=_with_measurements(package.manifest, variants), provenance=provenance)
    except OutputError as error:
        notes.append(f"the numbers were not recorded in the package: {error}")
        return package


def _with_measurements(manifest: Manifest, variants: Sequence[VariantScore]) -> Manifest:
    """Drop and execution of each evaluated variant; a drop measured on more cases is not replaced by one on fewer."""
    measured = {v.precision: v for v in variants}
    updated = []
    for variant in manifest.variants:
        found = measured.get(variant.precision)
        changes: dict[str, Any] = {}
        if found is not None and found.drop and (variant.drop is None or found.drop.cases >= variant.drop.cases):
            changes["drop"] = found.drop
        if found is not None and found.executed is not None and found.executed not in variant.executed:
            changes["executed"] = (*variant.executed, found.executed)
        updated.append(variant.model_copy(update=changes))
    return manifest.model_copy(update={"variants": tuple(updated)})
