"""`segship report`: one self-contained HTML page of a run folder (see rundir.py for what lies there).

No script, no network, no second file: pictures are data URIs, plots inline SVG. It opens by mail and in ten years.
What was not measured is said to be so; nothing is filled in.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segship.errors import InputError, SegshipError, UsageError
from segship.inference.writers import write_bytes
from segship.measure import curves, figures, label_report, story
from segship.measure.rundir import BENCHMARK, EVALUATION, PACKAGE, REPORT, SUMMARY
from segship.metrics import SCORERS, get_scorer
from segship.package import Package, open_package

TEMPLATE = "report.html"
PICTURE_QUALITY = 82
SHORT_ID = 14
LOWER_IS_BETTER = ("MAE", "HD95")
Cases = dict[str, dict[str, float]]
"""case -> metric -> value"""


_ABSENT: dict[str, Any] = {
    "device": None,
    "executed": None,
    "value": None,
    "drop": None,
    "drop_detail": None,
    "label_agreement": None,
    "map_difference": None,
    "latency_ms": {},
    "images_per_second": {},
    "files_per_second": {},
    "failed": [],
}
"""what a row holds of a variant that was only scored, or only timed"""


def report(run_dir: Path | str, output: Path | str | None = None) -> Path:
    """Write the page of a run folder to ``RUN/report.html`` (or ``output``); returns its path.

    A folder that only `segship evaluate -o` wrote will do. Raises UsageError when there is nothing to show or the
    report extra is not installed, InputError for a file of the run that is damaged.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise UsageError(f"there is no run folder {folder}; `segship run` or `segship evaluate -o` makes one")
    page = render(gather(folder))
    target = Path(output) if output is not None else folder / REPORT
    return write_bytes(target, page.encode())


def gather(folder: Path) -> dict[str, Any]:
    """All that the page shows, as plain data. See report.html for the names."""
    evaluation_folder = folder / EVALUATION if (folder / EVALUATION).is_dir() else folder
    summary = _read_json(folder / SUMMARY) or _read_json(evaluation_folder / SUMMARY)
    if not summary or "variants" not in summary:
        raise UsageError(f"{folder} has no {SUMMARY} of a run; `segship run` or `segship evaluate -o` writes one")
    package = _open_package(folder)
    variants = [_ABSENT | row for row in summary["variants"]]
    shown = story.shown_variant(variants)
    cases = {v["precision"]: _read_cases(evaluation_folder / v["precision"] / "cases.csv") for v in variants}
    metric = summary["metric"]
    dataset = summary.get("dataset")
    if isinstance(dataset, str):  # the summary of an evaluation alone
        dataset = {key: summary.get(key) for key in ("dataset", "dataset_sha256", "split", "split_sha256", "cases")}
    data = {
        "metric": metric,
        "scorer": summary.get("scorer") or (package.manifest.metric.scorer if package else None),
        "variants": variants,
        "reference": next((v for v in variants if v["precision"] == "fp32"), variants[0] if variants else None),
        "shown": shown,
        "parity": summary.get("parity") or (package.provenance().get("parity") if package else None) or [],
        "dataset": dataset,
        "unit": summary.get("unit") or (_read_json(folder / BENCHMARK) or {}).get("unit") or "image",
        "benchmark": summary.get("benchmark") or (_read_json(folder / BENCHMARK) or {}).get("options"),
        "environment": summary.get("environment") or {},
        "notes": summary.get("notes") or [],
        "package": story.about_package(package),
        "pictures": _pictures(evaluation_folder),
        "batches": sorted({int(b) for v in variants for b in v.get("latency_ms") or {}}),
        "file_batches": sorted({int(b) for v in variants for b in v.get("files_per_second") or {}}),
    }
    precisions = list(dict.fromkeys(v["precision"] for v in variants))
    data["classes"] = label_report.class_table(evaluation_folder, precisions, package)
    data["confusions"] = label_report.confusions(evaluation_folder, precisions[0]) if precisions else []
    data["heat"] = label_report.heat_map(evaluation_folder, precisions[0]) if precisions else None
    data["published"] = summary.get("reference") or []
    data["scores"] = _score_table(data)
    data["batch_table"] = _batch_table(data)
    data["plots"] = _plots(data, cases) | _curve_plots(data, evaluation_folder)
    data["names"] = [story.name_of(v, variants) for v in variants if v.get("executed")]
    data["sentences"] = story.sentences(data)
    data["tiles"] = story.tiles(data)
    data["limits"] = story.limits(data)
    return data


def render(data: Mapping[str, Any]) -> str:
    """The page as text. Raises UsageError without jinja2."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise UsageError("the report needs jinja2 and matplotlib; type: pip install 'segship[report]'") from None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        {
            "ran_as": story.ran_as,
            "signed": story.signed,
            "short": _short,
            "rate": story.rate_text,
            "seconds": story.seconds_text,
            "share": story.share_text,
            "percent": story.percent_text,
            "agreement": story.agreement_text,
            "small": story.small_text,
        }
    )
    source = resources.files("segship.measure").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(**data)


def _short(text: str) -> str:
    return text if len(text) <= SHORT_ID else f"{text[: SHORT_ID - 2]}…"


# ------------------------------------------------------------------------------------------------- plots


def _plots(data: Mapping[str, Any], cases: Mapping[str, Cases]) -> dict[str, dict[str, str] | None]:
    metric = data["metric"]["name"]
    points, label = _points(data)
    shown, reference = data["shown"], data["reference"]
    scores = {p: {case: float(row[metric]) for case, row in rows.items() if metric in row} for p, rows in cases.items()}
    before = scores.get(reference["precision"], {}) if reference else {}
    after = scores.get(shown["precision"], {}) if shown else {}
    both = [case for case in before if case in after]
    higher = data["metric"]["higher_is_better"]
    sign = 1 if higher else -1
    drops = [sign * (before[case] - after[case]) for case in both] if shown is not reference else []
    return {
        "speed": figures.speed_plot(points, metric=metric, speed_label=label, higher_is_better=higher)
        if len(points) > 1
        else None,
        "histogram": figures.score_histogram(list(before.values()), metric=metric, higher_is_better=higher)
        if len(before) > 1
        else None,
        "drops": figures.drop_plot(drops, metric=metric, precision=shown["precision"], higher_is_better=higher)
        if len(drops) > 1
        else None,
    }


def _curve_plots(data: Mapping[str, Any], folder: Path) -> dict[str, dict[str, str] | None]:
    """Precision over recall and F over thresholds, of every precision that was evaluated on the first engine."""
    found = {v["precision"]: curves.read_csv(folder / v["precision"] / curves.CSV) for v in data["variants"]}
    shown = {name: values for name, values in found.items() if curves.has_curves(values)}
    return dict(figures.curve_plots(shown)) if shown else {"pr": None, "f": None}


def _score_table(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Every metric of every evaluated precision, for worlds that publish several; None for the others."""
    if data["scorer"] not in SCORERS:
        return None
    scorer = get_scorer(data["scorer"])
    rows = [row for row in data["variants"] if row.get("metrics")]
    if not rows or not (hasattr(scorer, "mean_curves") or hasattr(scorer, "TABLE")):
        return None
    order = {name: place for place, name in enumerate(scorer.METRICS)}  # JSON keeps names in alphabetic order
    names = [name for name in rows[0]["metrics"] if "." not in name]  # classes have a table of their own
    found = sorted(names, key=lambda name: (order.get(name, len(order)), name))
    return {
        "names": [story.name_of(row, data["variants"]) for row in rows],
        "lower": next((name for name in LOWER_IS_BETTER if name in found), None),
        "rows": [(name, scorer.explain(name), [row["metrics"].get(name) for row in rows]) for name in found],
    }


def _batch_table(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """One row a precision and batch with the world's main numbers, where the world is reported so."""
    if data["scorer"] not in SCORERS:
        return None
    scorer = get_scorer(data["scorer"])
    names = getattr(scorer, "TABLE", ())
    rows = [
        (story.name_of(row, data["variants"]), batch, [values.get(name) for name in names])
        for row in data["variants"]
        if row.get("metrics")
        for batch, values in (row.get("metrics_by_batch") or {"own": row["metrics"]}).items()
    ]
    if not names or not rows:
        return None
    return {"names": names, "rows": rows, "published": getattr(scorer, "PUBLISHED", None)}


def _points(data: Mapping[str, Any]) -> tuple[list[figures.Point], str]:
    """Variants with a measured value and speed; files → masks where that was measured, else the bare network."""
    key, batch, label = story.speed_key(data)
    points = []
    for row in data["variants"]:
        speed = (row.get(key) or {}).get(str(batch))
        if speed is None or row.get("value") is None:
            continue
        detail = row.get("drop_detail")
        bounds = [detail["fp32"] - edge for edge in detail["interval95"]] if detail else [None, None]
        if not data["metric"]["higher_is_better"] and detail:
            bounds = [detail["fp32"] + edge for edge in detail["interval95"]]
        points.append(
            figures.Point(
                name=story.name_of(row, data["variants"]),
                speed=speed,
                value=row["value"],
                low=bounds[1],
                high=bounds[0],
            )
        )
    return points, label


# ------------------------------------------------------------------------------------------------ reading


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); run that step again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a summary; run that step again")
    return found


def _read_cases(path: Path) -> Cases:
    """case -> metric -> value; empty where the precision was not evaluated."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {row.pop("case"): {name: float(text) for name, text in row.items() if text} for row in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate again") from None


def _open_package(folder: Path) -> Package | None:
    try:
        return open_package(folder / PACKAGE) if (folder / PACKAGE).exists() else None
    except SegshipError as error:
        raise InputError(f"{folder / PACKAGE}: {error}") from None


def _pictures(folder: Path) -> dict[str, Any]:
    """pictures.json with every panel as a data URI."""
    about = _read_json(folder / "pictures.json") or {}
    found: dict[str, Any] = {"precision": about.get("precision"), "kind": about.get("kind", "labels")}
    found["exclusive"] = bool(about.get("exclusive"))
    for kind in ("examples", "worst", "disagreements"):
        found[kind] = [
            {**entry, "panels": {n: _data_uri(folder / "pictures" / Path(f).name) for n, f in entry["panels"].items()}}
            for entry in about.get(kind, [])
        ]
    return found


def _data_uri(path: Path) -> dict[str, Any]:
    """{'uri', 'width', 'height'} of a picture, as WebP; the page reserves its room before it is drawn."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise InputError(f"{path} is missing or damaged; evaluate again")
    _, data = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, PICTURE_QUALITY])
    uri = "data:image/webp;base64," + base64.b64encode(np.asarray(data).tobytes()).decode()
    return {"uri": uri, "height": pixels.shape[0], "width": pixels.shape[1]}
