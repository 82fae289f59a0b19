"""What becomes of the numbers in label maps before they are scored: mmseg's ``reduce_zero_label`` and ``label_map``.

Source: open-mmlab/mmsegmentation 1.2.2: mmseg/datasets/transforms/loading.py. The first makes 0 the ignored 255 and takes
one from every other class; the second replaces numbers by others, all at once. They apply in this order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segship.errors import UsageError

IGNORE = 255
OF_NO_CLASS = 65535


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """How numbers of label maps are replaced. UsageError for numbers that are none."""

    label_map: Mapping[int, int] = field(default_factory=dict)
    """number in the file -> number that it counts as; others stay"""
    reduce_zero_label: bool = False

    def __post_init__(self) -> None:
        wrong = [n for pair in self.label_map.items() for n in pair if not 0 <= n <= 65535]
        if wrong:
            raise UsageError(f"a label map has numbers from 0 to 65535, not {wrong[0]}")

    def __bool__(self) -> bool:
        return bool(self.label_map) or self.reduce_zero_label

    def before(self, behind: LabelRules) -> LabelRules:
        """Rules to apply before ``behind`` for what these alone would give, zero ignored where either says so; of 8-bit
        numbers. What ``behind`` cannot give becomes OF_NO_CLASS."""
        numbers = np.arange(256, dtype=np.uint16)
        reduce = self.reduce_zero_label or behind.reduce_zero_label
        wanted = LabelRules(label_map=self.label_map, reduce_zero_label=reduce).apply(numbers)
        from_number = {int(new): old for old, new in reversed(list(enumerate(behind.apply(numbers))))}
        return LabelRules(label_map={old: from_number.get(int(new), OF_NO_CLASS) for old, new in enumerate(wanted)})

    def apply(self, values: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        """The same picture with its numbers replaced; a new array where anything changes."""
        if not self:
            return values
        top = max(int(values.max(initial=0)), IGNORE)
        table = np.arange(top + 1, dtype=np.uint16)
        if self.reduce_zero_label:
            table = np.where((table == 0) | (table == IGNORE), IGNORE, table - np.uint16(1)).astype(np.uint16)
        replaced = table.copy()
        for old, new in self.label_map.items():
            replaced[table == old] = new
        made = replaced[values]
        return made.astype(np.uint8) if int(replaced.max()) <= 255 else made


def parse_label_map(text: str) -> dict[int, int]:
    """'0:255,1:0' -> {0: 255, 1: 0}; a list '255,0,1' gives the new number of 0, 1, 2 …. UsageError for other text."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        if all(part.count(":") == 1 for part in parts) and parts:
            pairs = [(int(part.partition(":")[0]), int(part.partition(":")[2])) for part in parts]
            if len(dict(pairs)) == len(pairs):
                return dict(pairs)
        elif parts and not any(":" in part for part in parts):
            return {old: int(new) for old, new in enumerate(parts)}
    except ValueError:
        pass
    raise UsageError(f"a label map is written OLD:NEW,OLD:NEW …, each OLD once, not '{text}'")


def rules_in(options: Mapping[str, str | int | float | bool]) -> LabelRules:
    """How a package reads its data set's label maps: ``reduce_zero_label`` and ``label_map`` (as text) among its metric's
    options."""
    text = str(options.get("label_map") or "")
    return LabelRules(
        label_map=parse_label_map(text) if text else {}, reduce_zero_label=bool(options.get("reduce_zero_label"))
    )
