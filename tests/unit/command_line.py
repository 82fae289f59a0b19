"""What a call of the command line came to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that an error is. Fails when it is a traceback or more than one line."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.strip().splitlines() if line.startswith(("error:", "Error:"))]
        assert len(lines) == 1, self.err
        return lines[0]


Call = Callable[..., Outcome]
