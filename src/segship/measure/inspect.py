"""What a package says of itself: for `segship inspect`. Reads the package only; no engine is imported."""

from __future__ import annotations

from typing import Any

from segship.manifest import Executed, Fidelity, Variant
from segship.package import Package


def describe(package: Package) -> dict[str, Any]:
    """Everything worth showing, as plain data: identity, input, chain, variants, accuracy, origin."""
    manifest = package.manifest
    provenance = package.provenance()
    return {
        "name": manifest.name,
        "description": manifest.description,
        "sha256": package.sha256,
        "family": manifest.family,
        "architecture": manifest.network.architecture,
        "parameters": manifest.network.parameters,
        "options": manifest.options,
        "input": manifest.input.model_dump(mode="json"),
        "preprocess": [step.model_dump(mode="json", exclude_none=True) for step in manifest.preprocess],
        "network_size": manifest.network.size,
        "size_multiple": manifest.network.size_multiple,
        "decode": manifest.decode.model_dump(mode="json"),
        "postprocess": [rule.model_dump(mode="json", exclude_none=True) for rule in manifest.postprocess],
        "labels": [label.model_dump(mode="json") for label in manifest.labels],
        "metric": manifest.metric.model_dump(mode="json"),
        "variants": [_variant(package, variant) for variant in manifest.variants],
        "accuracy": provenance.get("accuracy", []),
        "source": provenance.get("source", {}),
        "warnings": provenance.get("warnings", []),
        "files": {name: package.size_bytes(name) for name in package.names()},
    }


def _variant(package: Package, variant: Variant) -> dict[str, Any]:
    data: dict[str, Any] = variant.model_dump(mode="json", exclude_none=True)
    data["bytes"] = sum(package.size_bytes(name) for name in variant.graphs.values())
    return data


def describe_text(package: Package) -> str:
    """The same for people: a short page of plain text."""
    about = describe(package)
    size = "x".join(map(str, about["network_size"])) if about["network_size"] else "any"
    channels = " ".join(channel["name"] for channel in about["input"]["channels"])
    lines = [
        f"{about['name']}  ({about['architecture']}, {about['parameters']:,} parameters)",
        f"  package   {package.path}  sha256 {about['sha256'][:16]}…",
        f"  input     {about['input']['kind']}, channels {channels}, read as {about['input']['reader']}{_turned(about)}",
        f"  network   {(about['network_size'] and size) or 'any size'} (multiples of {'x'.join(map(str, about['size_multiple']))})",
        "  steps     " + " → ".join(_step_text(step) for step in about["preprocess"]),
        f"  decode    {about['decode']['activation']} → {_decision_text(about['decode'])}",
        "  labels    " + ", ".join(f"{label['id']} {label['name']}" for label in about["labels"]),
    ]
    if about["options"]:
        lines.append("  options   " + ", ".join(f"{k}={v}" for k, v in sorted(about["options"].items())))
    if about["source"]:
        lines.append("  from      " + _source_text(about["source"]))
    lines += ["", "  variant  size      executed                         drop"]
    for variant in about["variants"]:
        lines.append(
            f"  {variant['precision']:<8} {_megabytes(variant['bytes']):>8}  {_executed_text(variant):<32} {_drop_text(variant)}"
        )
        lines += [f"{'':<21}{text}" for text in _further(variant)]
    if about["accuracy"]:
        lines += ["", "  accuracy, as measured"]
        lines += [f"  {_accuracy_text(record)}" for record in about["accuracy"]]
    for warning in about["warnings"]:
        lines.append(f"  warning: {warning}")
    return "\n".join(lines)


def _source_text(source: dict[str, Any]) -> str:
    """File, hash and framework of what was exported, as far as they are recorded."""
    checkpoint = source.get("checkpoint") or source
    name = checkpoint.get("file") or source.get("source")
    found = [str(name)] if name else []
    found += [f"sha256 {checkpoint['sha256'][:16]}…"] if checkpoint.get("sha256") else []
    found += [f"({source['framework']})"] if source.get("framework") else []
    return "  ".join(found) or "a network in memory"


def _step_text(step: dict[str, Any]) -> str:
    if step["step"] == "resize":
        return f"resize {step['height']}x{step['width']} ({step['method']})"
    if step["step"] == "divide":
        return f"divide {step['by']:g}"
    return str(step["step"])


def _decision_text(decode: dict[str, Any]) -> str:
    decision = decode["decision"]
    text = f"> {decision['threshold']}" if decision["rule"] == "threshold" else decision["rule"]
    return f"{text}; {decode['restore_what']} back to the input's grid with {decode['restore_method']}"


def _executed_text(variant: dict[str, Any]) -> str:
    return next(iter(_executed(variant)), "not measured")


def _executed(variant: dict[str, Any]) -> list[str]:
    """What ran, a text for each engine that it was checked on."""
    records = [Executed.model_validate(record) for record in variant.get("executed", ())]
    return [f"{record.engine}: {record.text}" for record in records]


def _further(variant: dict[str, Any]) -> list[str]:
    """Of int16, what the other engines round, because they differ; of a saliency map, how far it is from fp32's."""
    found = _executed(variant)[1:] if variant["precision"] == "int16" else []
    if variant.get("fidelity"):
        found.append(Fidelity.model_validate(variant["fidelity"]).text)
    return found


def _drop_text(variant: dict[str, Any]) -> str:
    drop = variant.get("drop")
    if not drop:
        return "" if variant["precision"] == "fp32" or variant.get("fidelity") else "not measured"
    low, high = drop["interval95"]
    return f"{drop['metric']} {drop['value']:.4f}, drop {drop['drop']:+.4f} [{low:+.4f}, {high:+.4f}] over {drop['cases']} cases"


def _turned(about: dict[str, Any]) -> str:
    target = about["input"].get("orientation")
    return f", turned to {','.join(target)}" if target else ""


def _accuracy_text(record: dict[str, Any]) -> str:
    split = f", split {record['split']}" if record.get("split") else ""
    split += f", score {record['score']}" if record.get("score") else ""
    return (
        f"{record.get('precision', '?'):<5} {record.get('metric', '?')} {record.get('value', float('nan')):.4f}"
        f" on {record.get('dataset', '?')}{split}"
        f" ({record.get('cases', '?')} cases, {str(record.get('dataset_sha256', ''))[:12]}…)"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
