"""What `segship doctor` tells: engines, versions, devices, and what each computes on this machine."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from segship.engines import Availability, availabilities, outside
from segship.engines.processor import Processor, processor

PRECISIONS = ("fp32", "bf16", "fp16", "int8")


def diagnose() -> list[Availability]:
    """Every engine, those of other packages too; one that is missing or broken says so in its own entry."""
    return availabilities()


def as_dict(engines: Sequence[Availability] | None = None) -> dict[str, Any]:
    """The same as data: processor, Python, engines, problems."""
    machine, engines = processor(), diagnose() if engines is None else engines
    return {
        "processor": {
            "name": machine.name,
            "instruction_sets": list(machine.instruction_sets),
            "cores": machine.cores,
            "computes": {precision: machine.computes(precision) for precision in PRECISIONS},
        },
        "python": platform.python_version(),
        "system": platform.platform(),
        "engines": [{**asdict(engine), "installed": engine.version is not None} for engine in engines],
        "problems": problems(engines),
    }


def problems(engines: Sequence[Availability]) -> list[str]:
    """What hinders: a broken installation, two ONNX Runtime wheels in one environment, no engine at all.

    And of other packages' engines: those that cannot be used.
    """
    found = [
        f"{e.engine}: {e.note}"
        for e in engines
        if e.note and e.engine != "fake" and (e.version is not None or e.origin)
    ]
    found += outside.unused()
    if all(e.version is None for e in engines if e.engine != "fake"):
        found.append("no engine is installed; type: pip install openvino")
    return found


def as_text(engines: Sequence[Availability] | None = None) -> str:
    """The same as a table for a terminal."""
    machine, engines = processor(), diagnose() if engines is None else engines
    lines = [
        f"processor  {machine.name}, {machine.cores} core{'s' if machine.cores != 1 else ''}",
        f"           instruction sets: {', '.join(machine.instruction_sets) or 'not told by this system'}",
        f"           {_speed(machine)}",
        f"python     {platform.python_version()} on {platform.platform()}",
        "",
    ]
    rows = [("engine", "version", "device", "computes natively", "")]
    for engine in engines:
        rows.extend(_rows(engine))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines += [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    ]
    lines += ["", "Another precision that an engine accepts runs in float32 there, and its record says so.", ""]
    lines += [f"for {e.engine} on {device}: {what}" for e in engines for device, what in e.missing.items()]
    lines += [f"{e.engine} comes with {e.origin}" for e in engines if e.origin and e.version is not None]
    lines += [f"problem: {problem}" for problem in problems(engines)]
    return "\n".join(lines)


def _rows(engine: Availability) -> list[tuple[str, str, str, str, str]]:
    if engine.version is None and engine.origin and not engine.install:
        return [(engine.engine, "broken", "", "", f"see below; of {engine.origin}")]
    if engine.version is None:
        return [(engine.engine, "missing", "", "", engine.note or f"type: {engine.install}")]
    if not engine.devices:
        return [(engine.engine, engine.version, "none", "", engine.note)]
    return [
        (
            engine.engine if i == 0 else "",
            engine.version if i == 0 else "",
            device.name,
            " ".join(device.precisions),
            device.description,
        )
        for i, device in enumerate(engine.devices)
    ]


def _speed(machine: Processor) -> str:
    def those(wanted: bool | None) -> str:
        return ", ".join(p for p in PRECISIONS if machine.computes(p) is wanted)

    if not machine.instruction_sets:
        return "which precisions are fast here: run `segship benchmark`"
    slow = those(False)
    return f"has instructions for {those(True)}" + (f"; none for {slow}" if slow else "")
