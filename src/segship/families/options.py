"""What a checkpoint does not say: one `Option` each, the command line's flags are made of them.

Those that several families share, with one meaning, stand here; a family's own in ``<family>_options.py``, which
imports no torch, so that the command line can show and read them without loading any network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from segship.errors import UsageError

OptionValue = str | int | float | bool | tuple[int, ...] | tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True)
class Option:
    """One thing that a checkpoint does not say. ``kind`` says how a word from the command line is read."""

    name: str
    help: str
    kind: Literal["choice", "size", "floats", "text", "flag"]
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def parse(self, value: Any) -> OptionValue:
        """The value of a word (or an already typed value). Raises UsageError naming the flag."""
        if value is None:
            return None
        if self.kind == "choice":
            if str(value) not in self.choices:
                raise UsageError(f"{self.flag} must be one of {', '.join(self.choices)}, not '{value}'")
            return str(value)
        if self.kind == "flag":
            return bool(value)
        if self.kind == "size":
            return parse_size(value, self.flag)
        if self.kind == "floats":
            return _parse_floats(value, self.flag)
        return str(value)


def parse_size(value: Any, flag: str) -> tuple[int, int]:
    """(height, width) from '96x128', '96' or a pair. Raises UsageError naming the flag."""
    try:
        parts = value.lower().split("x") if isinstance(value, str) else list(value) if _is_pair(value) else [value]
        sides = [int(part) for part in parts]
        if len(sides) == 1:
            sides = sides * 2
        if len(sides) == 2 and 1 <= min(sides) <= max(sides) <= 65536:
            return sides[0], sides[1]
    except (TypeError, ValueError):
        pass
    raise UsageError(f"{flag} takes HEIGHTxWIDTH such as 96x128, not '{value}'")


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _parse_floats(value: Any, flag: str) -> tuple[float, ...]:
    try:
        parts = value.split(",") if isinstance(value, str) else list(value) if _is_pair(value) else [value]
        return tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise UsageError(
            f"{flag} takes numbers separated by commas, such as 0.485,0.456,0.406, not '{value}'"
        ) from None


# ------------------------------------------------------------ shared by several families, with one meaning

INPUT_SIZE = Option(
    name="input_size",
    kind="size",
    help="network input, HEIGHTxWIDTH in pixels (UNet++: config.yml's, else 96x96; U²-Net: 320x320, portrait 512x512)",
)
MEAN = Option(name="mean", kind="floats", help="mean per channel in 0..1, comma-separated (default ImageNet's)")
STD = Option(
    name="std", kind="floats", help="standard deviation per channel in 0..1, comma-separated (default ImageNet's)"
)
CLASS_NAMES = Option(name="class_names", kind="text", help="names of the classes, comma-separated")
ALL_OUTPUTS = Option(
    name="all_outputs",
    kind="flag",
    help="keep every output in the package, the answer first (UNet++: all heads; U²-Net: d0 to d6), not the answer alone",
)
