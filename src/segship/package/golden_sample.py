"""The small input that a package carries, with sub-sampled values expected after each stage."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segship.package.files import EPOCH, dump_json

GOLDEN_INDEX = "golden/golden.json"
GOLDEN_VALUES = "golden/expected.npz"


@dataclass(frozen=True, kw_only=True)
class GoldenStage:
    """Sub-sampled values of one stage: ``values[i]`` is the flattened array's element ``index[i]``."""

    values: np.ndarray
    index: np.ndarray
    shape: tuple[int, ...]
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class Golden:
    input_name: str
    input_bytes: bytes
    bundled: bool
    """True when segship's own sample was used because the exporter was given none"""
    stages: dict[str, GoldenStage]


def golden_files(
    input_name: str,
    input_bytes: bytes,
    bundled: bool,
    stages: Mapping[str, tuple[np.ndarray, float]],
    *,
    samples: int = 4096,
) -> dict[str, bytes]:
    """The ``golden/`` files for ``write_package``: at most ``samples`` evenly spread values a stage."""
    arrays: dict[str, np.ndarray] = {}
    index: dict[str, Any] = {}
    for stage, (array, tolerance) in stages.items():
        flat = np.asarray(array, dtype=np.float32).ravel()
        chosen = np.unique(np.linspace(0, flat.size - 1, min(samples, flat.size)).round().astype(np.int64))
        arrays[f"{stage}.values"] = flat[chosen]
        arrays[f"{stage}.index"] = chosen
        index[stage] = {"shape": list(np.shape(array)), "tolerance": tolerance}
    name = "golden/input" + Path(input_name).suffix.lower()
    return {
        GOLDEN_INDEX: dump_json({"input": name, "input_name": input_name, "bundled": bundled, "stages": index}),
        GOLDEN_VALUES: _npz_bytes(arrays),
        name: input_bytes,
    }


def _npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An .npz with fixed timestamps (numpy's own carries the time of writing)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for key in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(arrays[key]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy", EPOCH), member.getvalue())
    return buffer.getvalue()
