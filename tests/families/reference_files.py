"""The reference cases beside the repository: seeded weights, and the arrays that the originals computed with them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from seeded import State


def seeded_fill(shared: Path) -> Callable[..., State]:
    """``fill(state_dict, gain)``: a copy with every float entry replaced by its seeded array."""
    spec = importlib.util.spec_from_file_location("seeded_weights", shared / "reference" / "seeded_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fill


def read_case(shared: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A case's json and its arrays."""
    about = json.loads((shared / "reference" / f"{name}.json").read_text())
    with np.load(shared / "reference" / f"{name}.npz") as arrays:
        return about, {key: arrays[key] for key in arrays.files}
