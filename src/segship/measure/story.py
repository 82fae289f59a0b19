"""What the report says in words: the three sentences at its head, the key figures, and the limits of the numbers.

Every sentence is built from measured numbers only. A sentence is a list of (kind, text) pieces; kind "b" is a
number that stands out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segship.inference.cutout import has_background
from segship.inference.precision import AUTO_MAX_DROP
from segship.manifest import Executed
from segship.metrics import SCORERS, get_scorer
from segship.package import Package

Row = Mapping[str, Any]
Piece = tuple[str, str]
PREFERRED_BATCH = 8
FEW_CASES = 30

# what the convolutions of a precision should have run in; anything else is said
_NATIVE = {"fp32": ("f32",), "fp16": ("f16",), "bf16": ("bf16",), "int8": ("i8",), "int16": ("i16",)}
_INSTEAD = {
    "fp16": "fp16 was asked for and ran as {ran} on this processor: a smaller file, not a faster run",
    "bf16": "bf16 was asked for and ran as {ran} on this processor",
    "int16": "int16 here is 16-bit rounding around {ran} arithmetic: a format for accuracy and size, not for speed",
    "int8": "int8 was asked for, but {share} of convolution time ran as {ran}",
    "fp32": "fp32 was asked for, but {share} of convolution time ran as {ran}",
}


# --------------------------------------------------------------------------------------- choosing and naming


def shown_variant(variants: Sequence[Row]) -> Row | None:
    """The variant that the page is about: the fastest whose measured loss is within `auto`'s budget, else fp32."""
    main = variants[0]["engine"] if variants else None
    good = [
        v
        for v in variants
        if v["engine"] == main and v.get("drop") is not None and v["drop"] <= AUTO_MAX_DROP and best_speed(v)
    ]
    if good:
        return max(good, key=best_speed)
    measured = [v for v in variants if v["engine"] == main and v.get("value") is not None]
    return next((v for v in measured if v["precision"] == "fp32"), measured[0] if measured else None)


def best_speed(row: Row) -> float:
    """The greatest images per second of a row, files → masks where that was measured; 0 without any."""
    return max([0.0, *(row.get("files_per_second") or row.get("images_per_second") or {}).values()])


def speed_key(data: Row) -> tuple[str, int, str]:
    """(row key, batch, axis label) of the rate that stands for speed."""
    volumes = data.get("unit") == "window"
    if data["file_batches"]:
        batch = PREFERRED_BATCH if PREFERRED_BATCH in data["file_batches"] else data["file_batches"][-1]
        what = "cases per second, files to label file" if volumes else "images per second, files to masks"
        return "files_per_second", batch, f"{what}, batch {batch}"
    batches = data["batches"]
    batch = PREFERRED_BATCH if PREFERRED_BATCH in batches else batches[-1] if batches else 1
    return "images_per_second", batch, f"{'windows' if volumes else 'images'} per second, network alone, batch {batch}"


def _speed(data: Row, key: str, rate: float) -> tuple[str, str, str, str]:
    """(verb, number, its unit, from where to where)"""
    whole = key == "files_per_second"
    if data.get("unit") != "window":
        return "does", rate_text(rate), "images/s", "from files to masks" if whole else _ALONE
    if whole:
        case = (data.get("benchmark") or {}).get("inputs")
        return "takes", seconds_text(1 / rate), "a case", f"from files to label file{f' ({case})' if case else ''}"
    return "does", rate_text(rate), "windows/s", _ALONE


_ALONE = "in the network alone"


def name_of(row: Row, variants: Sequence[Row]) -> str:
    """The precision; with its engine where that is not the first row's."""
    return str(row["precision"]) if row["engine"] == variants[0]["engine"] else f"{row['precision']}, {row['engine']}"


# -------------------------------------------------------------------------------------------------- sentences


def sentences(data: Row) -> list[list[Piece]]:
    """Is it the same network, how good is it, how fast is it."""
    return [_about_parity(data), _about_accuracy(data), _about_speed(data)]


def _about_parity(data: Row) -> list[Piece]:
    package = data["package"]
    who = (
        f"{package['architecture'][:1].upper()}{package['architecture'][1:]} ({millions(package['parameters'])} parameters)"
        if package
        else "The network"
    )
    rows = data["parity"]
    if not rows:
        return [("", f"{who}: agreement with its source was not measured in this run.")]
    agreement = [row["label_agreement"] for row in rows if row.get("label_agreement") is not None]
    logits = [row["max_abs"] for row in rows if row["stage"].startswith("network") and row.get("max_abs") is not None]
    pieces: list[Piece] = [("", f"{who} gives the trained network’s answers: ")]
    if data["scorer"] == "sod":
        return [*pieces, *_map_parity(rows, max(logits, default=None)), ("", ".")]
    if agreement:
        least = min(agreement)
        pieces += (
            [("b", "every label is equal")] if least == 1 else [("", "labels agree "), ("b", agreement_text(least))]
        )
    if logits:
        pieces += [("", ", largest difference of a logit " if agreement else "largest difference of a logit ")]
        pieces += [("b", small_text(max(logits)))]
    return [*pieces, ("", ".")]


def _map_parity(rows: Sequence[Row], largest: float | None) -> list[Piece]:
    """Of networks whose answer is a map of grey levels."""
    decoded = [row["max_abs"] for row in rows if row["stage"] == "decoded" and row.get("max_abs") is not None]
    pieces: list[Piece] = []
    if decoded:
        same = max(decoded) == 0
        pieces = [("b", "every level of the map is equal")] if same else [("", "the map differs by at most "), ("b", small_text(max(decoded)))]  # fmt: skip
    if largest is not None:
        start = (
            ", largest difference of the network’s output " if pieces else "largest difference of the network’s output "
        )
        pieces += [("", start), ("b", small_text(largest))]
    return pieces or [("", "no stage was compared")]


def _about_accuracy(data: Row) -> list[Piece]:
    reference, dataset = data["reference"], data["dataset"]
    if reference is None or reference.get("value") is None or dataset is None:
        return [("", "Its accuracy was not measured in this run.")]
    split = f", split {dataset['split']}" if dataset.get("split") else ""
    return [
        ("", f"At {reference['precision']} it scores "),
        ("b", f"{data['metric']['name']} {reference['value']:.4f}"),
        ("", f" on {dataset['dataset']}{split} ({dataset['cases']} cases)."),
    ]


def _about_speed(data: Row) -> list[Piece]:
    shown, reference = data["shown"], data["reference"]
    key, batch, _ = speed_key(data)
    fast = (shown.get(key) or {}).get(str(batch)) if shown else None
    if shown is None or fast is None:
        return [("", "Its speed was not measured in this run.")]
    verb, number, unit, how = _speed(data, key, fast)
    slow = (reference.get(key) or {}).get(str(batch)) if reference else None
    if shown is reference or not slow:
        return [
            ("", f"At {shown['precision']} it {verb} "),
            ("b", f"{number} {unit}"),
            ("", f" {how} at batch {batch}."),
        ]
    pieces: list[Piece] = [
        ("", f"In {shown['precision']} it {verb} "),
        ("b", f"{number} {unit}"),
        ("", f" {how} at batch {batch}, "),
        ("b", f"{fast / slow:.1f}×"),
        ("", f" the rate of {reference['precision']}"),
    ]
    detail = shown.get("drop_detail")
    if detail is None:
        return [*pieces, ("", "; what it loses was not measured.")]
    low, high = detail["interval95"]
    name, size = data["metric"]["name"], f"{abs(detail['drop']):.4f}"
    if data["metric"]["higher_is_better"]:
        effect, change = ", and loses " if detail["drop"] >= 0 else ", and gains ", f"{size} {name}"
        bounds = f" (95 % interval of the loss {signed(low)} to {signed(high)})."
    else:
        effect, change = f", and its {name} {'rises' if detail['drop'] >= 0 else 'falls'} by ", size
        bounds = f" (95 % interval of the rise {signed(low)} to {signed(high)})."
    return [*pieces, ("", effect), ("b", change), ("", bounds)]


def tiles(data: Row) -> list[tuple[str, str]]:
    """(number, what it is) for the strip below the sentences."""
    shown, reference = data["shown"], data["reference"]
    key, batch, _ = speed_key(data)
    found: list[tuple[str, str]] = []
    if reference and reference.get("value") is not None:
        found.append((f"{reference['value']:.4f}", f"{data['metric']['name']} at {reference['precision']}"))
    if shown and shown is not reference and shown.get("drop") is not None:
        change = -shown["drop"] if data["metric"]["higher_is_better"] else shown["drop"]
        found.append(
            (signed(change), f"{data['metric']['name']} from {reference['precision']} to {shown['precision']}")
        )
    fast = (shown.get(key) or {}).get(str(batch)) if shown else None
    slow = (reference.get(key) or {}).get(str(batch)) if reference else None
    if fast:
        _, number, unit, how = _speed(data, key, fast)
        found.append((number, f"{unit} in {shown['precision']}, {how.removeprefix('from ').removeprefix('in the ')}"))
    if fast and slow and shown is not reference:
        found.append((f"{fast / slow:.1f}×", f"{shown['precision']} against {reference['precision']}"))
    return found


# ------------------------------------------------------------------------------------------------------ limits


def limits(data: Row) -> list[str]:
    """What the numbers do not say."""
    found = [*_metric_limit(data), *_case_limits(data)]
    for row in data["variants"]:
        text = executed_instead(row)
        if text is not None:
            found.append(text + (f" ({row['engine']})." if row["engine"] != data["variants"][0]["engine"] else "."))
    unmeasured = [name_of(v, data["variants"]) for v in data["variants"] if v.get("value") is None]
    if unmeasured:
        found.append(
            f"Accuracy was not measured here for {'; '.join(unmeasured)}: only their speed stands in the table."
        )
    about = data["environment"]
    if data["batches"] and about.get("processor"):
        found.append(
            f"Times are those of {about['processor']} with {about.get('cores', '?')} cores. Ratios carry over to other "
            "machines better than times do; measure on yours with `segship benchmark`."
        )
    package = data["package"]
    if package and package["golden_bundled"]:
        found.append("The package’s own check sample is segship’s bundled picture, not one of the owner’s images.")
    return found


def _metric_limit(data: Row) -> list[str]:
    name = data["metric"]["name"]
    if data["scorer"] not in SCORERS:
        return []
    scorer = get_scorer(data["scorer"])
    meaning = scorer.METRICS.get(name)
    if meaning is None:
        return []
    remarks = list(getattr(scorer, "REMARKS", ()))
    if remarks:
        return [f"{name} is {meaning}.", *remarks]
    return [f"{name} is {meaning[0].lower() if meaning[1:2].islower() else meaning[0]}{meaning[1:]}. Other poolings of the "
            "same masks differ by several points, so compare it only with the same metric on the same split."]  # fmt: skip


def _case_limits(data: Row) -> list[str]:
    found = []
    dataset = data["dataset"]
    if dataset and dataset["cases"] < FEW_CASES:
        found.append(f"{dataset['cases']} cases are few: single images move these numbers.")
    failed = sum(len(v.get("failed") or ()) for v in data["variants"])
    if failed:
        found.append(f"{failed} inputs could not be predicted and are in no number.")
    if any(v.get("drop_detail") for v in data["variants"]):
        found.append("Intervals are over images like these; they say nothing about images of another kind.")
    return found


def executed_instead(row: Row) -> str | None:
    """A sentence where the convolutions ran mostly in another number type than was asked for; else None."""
    executed = row.get("executed")
    wanted = _NATIVE.get(row["precision"])
    if not executed or wanted is None:
        return None
    share = executed["convolution_share"]
    own = sum(share.get(kind, 0.0) for kind in wanted)
    if own >= 0.5:
        return None
    ran = max(share, key=lambda kind: share[kind])
    return _INSTEAD[row["precision"]].format(ran=ran, share=f"{share[ran]:.0%}")


def ran_as(executed: Mapping[str, Any]) -> str:
    """'i8 97% · f32 3%' of convolution time; of int16 'f32 100%, weights alone rounded to int16'; what ran elsewhere."""
    record = Executed.model_validate(executed)
    shares = " · ".join(f"{kind} {share_text(share)}" for kind, share in record.convolution_share.items())
    return "; ".join(filter(None, [", ".join(filter(None, [shares, record.rounded])), record.elsewhere]))


# ------------------------------------------------------------------------------------------------ the package


def about_package(package: Package | None) -> dict[str, Any] | None:
    """Name, origin, chain and calibration, as plain data."""
    if package is None:
        return None
    manifest, provenance = package.manifest, package.provenance()
    golden = package.golden()
    return {
        "name": manifest.name,
        "description": manifest.description,
        "sha256": package.sha256,
        "architecture": manifest.network.architecture,
        "parameters": manifest.network.parameters,
        "options": dict(manifest.options),
        "scorer": manifest.metric.scorer,
        "labels": [
            {"name": label.name, "color": label.color}
            for label in manifest.labels
            if label.id != 0 or not has_background(manifest)
        ],
        "source": _source(provenance.get("source") or {}),
        "calibration": provenance.get("calibration") or {},
        "warnings": list(provenance.get("warnings") or ()),
        "golden_bundled": golden is not None and golden.bundled,
        "variants": [
            {
                "precision": variant.precision,
                "bytes": sum(package.size_bytes(name) for name in variant.graphs.values()),
                "quantization": variant.quantization.model_dump(mode="json") if variant.quantization else None,
            }
            for variant in manifest.variants
        ],
    }


def _source(record: Mapping[str, Any]) -> dict[str, Any]:
    """File, hash and framework of what was exported."""
    checkpoint = record.get("checkpoint") or record
    found = {"file": checkpoint.get("file"), "sha256": checkpoint.get("sha256"), "framework": record.get("framework")}
    return {key: value for key, value in found.items() if value}


# -------------------------------------------------------------------------------------------------- numbers


def signed(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}".replace(",", "\u202f")


def rate_text(value: float) -> str:
    """Three digits that mean something: 0.42, 8.1, 93, 1 240."""
    if value >= 99.5:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def seconds_text(value: float) -> str:
    """Three digits that mean something: 0.042 s, 3.1 s, 93 s, 12 min."""
    if value >= 300:
        return f"{value / 60:.0f} min"
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"


def agreement_text(value: float) -> str:
    """Never rounded up to 1: 0.999996 is 0.99999, only equality is 1."""
    return "1" if value == 1 else f"{int(value * 1e5) / 1e5:.5f}"


def small_text(value: float) -> str:
    """1.5e-05 as 1.5 × 10⁻⁵."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1000:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def share_text(value: float) -> str:
    return f"{value:.0%}" if value >= 0.01 else "<1%"


def percent_text(value: float) -> str:
    """Rounded down: 99.96 % of equal pixels is 99.9 %."""
    return f"{int(value * 1000) / 10:.1f} %"
