"""What a number was measured on. A time without its machine, threads and versions is no number."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import numpy as np

from segship.engines.processor import processor
from segship.inference.predictor import Predictor
from segship.manifest import Executed

_PACKAGES = {
    "segship": "segship",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "torch": "torch",
    "nncf": "nncf",
    "onnx": "onnx",
    "numpy": "numpy",
    "opencv": "opencv-python-headless",
}


def environment() -> dict[str, Any]:
    """Processor, instruction sets, cores, memory, versions and the load right now; imports no runtime."""
    about = processor()
    return {
        "processor": about.name,
        "instruction_sets": list(about.instruction_sets),
        "cores": about.cores,
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
        "load_average": load_average(),
        "thread_settings": {k: os.environ[k] for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if k in os.environ},
    }


def load_average() -> float | None:
    """Runnable processes over the last minute; None where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def executed_by(predictor: Predictor, source: Any) -> Executed:
    """Which number types the convolutions of this predictor's graph really ran in, from a profiled run of ``source``.

    The record that the package already holds is taken as it is, see `recorded`.
    """
    known = recorded(predictor)
    if known is not None:
        return known
    x = example_input(predictor, source)
    compiled = predictor.members.fixed_batch(predictor.batch)
    session = predictor.members.sessions(predictor.batch, x.shape[2:])[0]  # which takes this very size
    return session.executed(x if compiled is None else x.repeat(compiled, axis=0))


def recorded(predictor: Predictor) -> Executed | None:
    """The package's own record of what executed in this engine, version, device and processor; None where it has none."""
    session = predictor.sessions[0]
    for known in predictor.variant.executed:
        same = (known.engine, known.version, known.device) == (session.engine, session.version, session.device)
        if same and known.processor == processor().label and known.evidence == "profile":
            return known
    return None


def example_input(predictor: Predictor, source: Any) -> np.ndarray:
    """(1, C, *size) as the network gets it of ``source``; of a volume the window in its middle."""
    x, tiling = predictor.prepare(source).x, predictor.manifest.tiling
    if predictor.manifest.input.kind == "image" or tiling is None:
        return np.asarray(x[None])
    if len(tiling.window) < x.ndim - 1:
        x = x[:, x.shape[1] // 2]
    gaps = [max(0, side - have) for side, have in zip(tiling.window, x.shape[1:], strict=True)]
    x = np.pad(x, [(0, 0), *((gap // 2, gap - gap // 2) for gap in gaps)])
    starts = [(have - side) // 2 for side, have in zip(tiling.window, x.shape[1:], strict=True)]
    box = tuple(slice(start, start + side) for start, side in zip(starts, tiling.window, strict=True))
    return np.ascontiguousarray(x[(slice(None), *box)][None])
