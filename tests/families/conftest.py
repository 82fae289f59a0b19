"""Networks filled with reference weights, and small packages, for the family tests."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seeded import State


@pytest.fixture(scope="session")
def fill(shared: Path) -> Callable[..., State]:
    """``fill(state_dict, gain)``: a copy with every float entry replaced by its seeded array."""
    spec = importlib.util.spec_from_file_location("seeded_weights", shared / "reference" / "seeded_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fill


@pytest.fixture(scope="session")
def reference_case(shared: Path) -> Callable[[str], tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """``reference_case(name)``: a case's json and its arrays."""

    def read(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        about = json.loads((shared / "reference" / f"{name}.json").read_text())
        with np.load(shared / "reference" / f"{name}.npz") as arrays:
            return about, {key: arrays[key] for key in arrays.files}

    return read
