"""Networks filled with reference weights, and the cases they belong to, for the family tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference_files import read_case, seeded_fill
from seeded import State


@pytest.fixture(scope="session")
def fill(shared: Path) -> Callable[..., State]:
    """``fill(state_dict, gain)``: a copy with every float entry replaced by its seeded array."""
    return seeded_fill(shared)


@pytest.fixture(scope="session")
def reference_case(shared: Path) -> Callable[[str], tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """``reference_case(name)``: a case's json and its arrays."""
    return partial(read_case, shared)
