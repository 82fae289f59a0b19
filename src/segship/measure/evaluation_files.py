"""What `segship evaluate -o` leaves in its folder; evaluate.py lists the files."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segship.inference.writers import write_bytes
from segship.measure import curves, label_maps
from segship.measure.environment import environment
from segship.measure.gallery import choose_pictures, write_pictures
from segship.measure.volume_pictures import VolumeGallery
from segship.metrics import get_scorer
from segship.package import dump_json

if TYPE_CHECKING:
    from segship.measure.evaluate import EvaluateResult, VariantScore


def write_evaluation(
    result: EvaluateResult, output: Path, options: dict[str, Any], gallery: VolumeGallery | None
) -> None:
    write_bytes(output / "summary.json", dump_json({**result.as_dict(), "environment": environment()}))
    for variant in result.variants:
        write_bytes(output / variant.precision / "cases.csv", _csv(variant).encode())
        if variant.evaluation.curves:
            curves.write_csv(output / variant.precision / curves.CSV, variant.evaluation.curves)
        if variant.evaluation.pooled is not None:
            label_maps.write_classes(output / variant.precision, variant)
    curves.write_picture(output / curves.PICTURE, {v.precision: v.evaluation.curves for v in result.variants})
    chosen = choose_pictures(
        {v.precision: v.evaluation for v in result.variants}, {v.precision: v.agreement for v in result.variants}
    )
    if gallery is not None:
        gallery.write(output, chosen)
    else:
        write_pictures(output, result.package, result.dataset, chosen, options)


def write_nnunet_summary(result: EvaluateResult, output: Path, version: str | None) -> None:
    """summary.json of each precision as nnU-Net writes it; a package made from v1 gets v1's unless told otherwise."""
    manifest = result.package.manifest
    scorer = get_scorer(manifest.metric.scorer)
    version = version or ("v1" if manifest.options.get("version") == 1 else "v2")
    ending = getattr(manifest.input, "file_ending", ".png")
    references = {case.id: str(case.label_file or case.id) for case in result.dataset.cases}
    for variant in result.variants:
        files = [(f"{score.id}{ending}", references[score.id]) for score in variant.evaluation.scores]
        data = scorer.summary_file(variant.evaluation.scores, files, version, manifest.name)
        write_bytes(output / variant.precision / "summary.json", data)


def _csv(variant: VariantScore) -> str:
    """id, every per-case metric, and how near fp32's answer is where there is one."""
    names = list(variant.evaluation.scores[0].values)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    maps = variant.kind == "maps"
    writer.writerow(["case", *names, "map_difference_from_fp32" if maps else "label_agreement_with_fp32"])
    for score in variant.evaluation.scores:
        agreed = variant.agreement.get(score.id)
        row = ["" if math.isnan(score.values[name]) else f"{score.values[name]:.6f}" for name in names]
        writer.writerow([score.id, *row, "" if agreed is None else f"{1 - agreed if maps else agreed:.6f}"])
    return text.getvalue()
