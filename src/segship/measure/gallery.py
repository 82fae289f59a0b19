"""Which cases are shown, and their panels: examples over the whole range of scores, the worst, the least agreed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segship.datasets import Case, Dataset
from segship.inference.prediction import Prediction
from segship.inference.predictor import Predictor
from segship.inference.writers import write_bytes
from segship.manifest import Argmax
from segship.measure import pictures
from segship.measure.agreement import kind_of
from segship.metrics import mmseg
from segship.metrics.evaluation import Evaluation
from segship.package import Package, dump_json

EXAMPLES = 6
WORST = 4
DISAGREEMENTS = 4
PICTURES = "pictures.json"


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Case ids to show, and the numbers that stand below their panels."""

    metric: str
    precision: str
    """whose predictions the examples and worst cases show"""
    examples: tuple[tuple[str, float], ...]
    worst: tuple[tuple[str, float], ...]
    disagreements: tuple[tuple[str, str, float], ...] = ()
    """(case, precision, share of equal labels)"""


def choose_pictures(
    evaluations: Mapping[str, Evaluation], agreement: Mapping[str, Mapping[str, float]], counts: Sequence[int] = ()
) -> Chosen:
    """Examples evenly over the ranking, not the best ones: what a reader would meet. Ties go by case id."""
    examples, worst, disagreements = counts or (EXAMPLES, WORST, DISAGREEMENTS)
    precision = "fp32" if "fp32" in evaluations else next(iter(evaluations))
    shown = evaluations[precision]
    sign = 1 if shown.higher_is_better else -1
    ranked = sorted(shown.per_case().items(), key=lambda item: (-sign * item[1], item[0]))
    if not ranked:  # no case has the number, as none has any foreground
        return Chosen(metric=shown.metric, precision=precision, examples=(), worst=())
    places = np.unique(np.linspace(0, len(ranked) - 1, min(examples + 2, len(ranked))).round().astype(int))
    inner = places[1:-1] if len(places) > examples else places  # neither the very best nor the very worst
    least = sorted(
        ((share, case, name) for name, shares in agreement.items() for case, share in shares.items() if share < 1),
    )
    return Chosen(
        metric=shown.metric,
        precision=precision,
        examples=tuple(ranked[i] for i in inner),
        worst=tuple(reversed(ranked[-worst:])),
        disagreements=tuple((case, name, share) for share, case, name in least[:disagreements]),
    )


def write_pictures(
    output: Path, package: Package, dataset: Dataset, chosen: Chosen, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Predict the chosen cases once more and write ``pictures/*.png`` and ``pictures.json``; returns the latter."""
    wanted: dict[str, set[str]] = {chosen.precision: {i for i, _ in (*chosen.examples, *chosen.worst)}}
    for case, precision, _ in chosen.disagreements:
        wanted.setdefault(precision, set()).add(case)
        wanted[chosen.precision].add(case)
    by_id = {case.id: case for case in dataset.cases}
    found: dict[tuple[str, str], Prediction] = {}
    for precision, ids in wanted.items():
        with Predictor.open(package, precision=precision, **options) as predictor:
            for case_id in sorted(ids):
                found[precision, case_id] = predictor(by_id[case_id].read_image())
    folder = output / "pictures"
    about: dict[str, Any] = {
        "metric": chosen.metric,
        "precision": chosen.precision,
        "kind": kind_of(package.manifest),
        "exclusive": isinstance(package.manifest.decode.decision, Argmax),
    }
    for kind, entries in (("examples", chosen.examples), ("worst", chosen.worst)):
        about[kind] = [
            _against_truth(folder, f"{kind}-{n + 1}", by_id[case], found[chosen.precision, case], score)
            for n, (case, score) in enumerate(entries)
        ]
    about["disagreements"] = [
        _against_other(
            folder, f"disagreement-{n + 1}", case, found[chosen.precision, case], found[name, case], name, share
        )
        for n, (case, name, share) in enumerate(chosen.disagreements)
    ]
    write_bytes(output / PICTURES, dump_json(about))
    return about


def _against_truth(folder: Path, stem: str, case: Case, prediction: Prediction, score: float) -> dict[str, Any]:
    assert prediction.image is not None
    rgb = prediction.image.rgb8()
    panels = {"input": pictures.input_panel(rgb)}
    if kind_of(prediction.recipe) == "maps":
        truth_map, found = case.target_grey()[0], prediction.saliency
        panels |= {
            "truth": pictures.grey_panel(rgb, truth_map),
            "prediction": pictures.grey_panel(rgb, found),
            "heat": pictures.heat_panel(rgb, found),
            "difference": pictures.map_difference_panel(rgb, truth_map, found),
        }
    elif isinstance(prediction.recipe.decode.decision, Argmax):
        truth_map, void = _truth_of(case, prediction)
        panels |= {
            "prediction": pictures.label_panel(rgb, prediction.labels, prediction.classes),
            "truth": pictures.label_panel(rgb, truth_map, prediction.classes, void),
            "difference": pictures.label_difference_panel(rgb, truth_map, prediction.labels, void),
        }
    else:
        truth = case.target()
        panels |= {
            "prediction": pictures.overlay_panel(rgb, prediction.masks, prediction.classes),
            "truth": pictures.overlay_panel(rgb, truth, prediction.classes[: len(truth)]),
            "difference": pictures.difference_panel(rgb, truth, prediction.masks),
        }
    return _entry(folder, stem, case.id, prediction, panels) | {"score": score}


def _truth_of(case: Case, prediction: Prediction) -> tuple[np.ndarray, int]:
    """(class numbers of the ground truth, the number of pixels that are not scored)."""
    ignored = prediction.recipe.metric.options.get("ignore_index", mmseg.IGNORE)
    return mmseg.truth_of(case, prediction.recipe), int(ignored)


def _against_other(
    folder: Path, stem: str, case: str, fp32: Prediction, other: Prediction, precision: str, share: float
) -> dict[str, Any]:
    assert fp32.image is not None
    rgb = fp32.image.rgb8()
    panels = {"input": pictures.input_panel(rgb)}
    about: dict[str, Any] = {"precision": precision, "agreement": share}
    if kind_of(fp32.recipe) == "maps":
        before, after = (p.probabilities[0] for p in (fp32, other))
        largest = float(np.abs(before - after).max())
        panels |= {
            "reference": pictures.grey_panel(rgb, before),
            "variant": pictures.grey_panel(rgb, after),
            # small differences would be black: the largest of the picture is drawn in full
            "difference": pictures.map_difference_panel(rgb, before, after, 1 / max(largest, 1e-6)),
        }
        about["largest"] = largest
    elif isinstance(fp32.recipe.decode.decision, Argmax):
        panels |= {
            "reference": pictures.label_panel(rgb, fp32.labels, fp32.classes),
            "variant": pictures.label_panel(rgb, other.labels, other.classes),
            "difference": pictures.label_difference_panel(rgb, fp32.labels, other.labels),
        }
    else:
        panels |= {
            "reference": pictures.overlay_panel(rgb, fp32.masks, fp32.classes),
            "variant": pictures.overlay_panel(rgb, other.masks, other.classes),
            "difference": pictures.difference_panel(rgb, fp32.masks, other.masks),
        }
    return _entry(folder, stem, case, fp32, panels) | about


def _entry(folder: Path, stem: str, case: str, prediction: Prediction, panels: dict[str, Any]) -> dict[str, Any]:
    return {
        "case": case,
        "size_hw": list(prediction.frame.original_hw),
        "panels": pictures.write_panels(folder, stem, panels),
    }
