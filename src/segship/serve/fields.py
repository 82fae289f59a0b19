"""The words of a request: which there are, what they mean, and how each is read. Nothing is taken from a path."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from segship.serve.refused import Refused

_TRUE = ("true", "1", "on", "yes", "t", "y")
_FALSE = ("false", "0", "off", "no", "f", "n")


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a form or query."""

    name: str
    about: str
    kind: Literal["choice", "flag", "number", "whole", "text"]
    default: Any = None
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0

    def parse(self, text: str) -> Any:
        """The value of a word. Raises Refused 400 naming the field."""
        if self.kind == "text":
            return text
        if self.kind == "choice":
            if text not in self.choices:
                raise self._refused(text, f"one of {', '.join(self.choices)}")
            return text
        if self.kind == "flag":
            if text.lower() not in _TRUE + _FALSE:
                raise self._refused(text, "true or false")
            return text.lower() in _TRUE
        try:
            value = int(text) if self.kind == "whole" else float(text)
        except ValueError:
            value = self.low - 1
        if not self.low <= value <= self.high:  # also NaN
            kind = "a whole number" if self.kind == "whole" else "a number"
            raise self._refused(text, f"{kind} from {self.low:g} to {self.high:g}")
        return value

    def _refused(self, text: str, wanted: str) -> Refused:
        shown = text if len(text) <= 40 else text[:40] + "…"
        return Refused(400, f"field '{self.name}' is '{shown}'", f"give {wanted}: {self.about}")

    def schema(self) -> dict[str, Any]:
        """As OpenAPI describes it."""
        types = {"choice": "string", "text": "string", "flag": "boolean", "number": "number", "whole": "integer"}
        schema: dict[str, Any] = {"type": types[self.kind], "description": self.about}
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.kind in ("number", "whole"):
            schema |= {"minimum": self.low, "maximum": self.high}
        return schema if self.default is None else schema | {"default": self.default}


def parse_fields(words: Mapping[str, str], table: tuple[Field, ...], files: Mapping[str, bytes]) -> dict[str, Any]:
    """Every field's value or default. An empty word counts as not given; a name that is not in the table is refused,
    because it would have no effect."""
    known = {field.name: field for field in table}
    for name in words:
        if name not in known:
            shown = name if len(name) <= 40 else name[:40] + "…"
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(known)}"
            raise Refused(400, f"there is no field '{shown}' here", hint)
        if name in files:
            raise Refused(400, f"field '{name}' is given twice, as text and as a picture", "give one of them")
    given = {name: word.strip() for name, word in words.items() if word.strip()}
    return {name: field.parse(given[name]) if name in given else field.default for name, field in known.items()}
