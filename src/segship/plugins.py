"""Entry points of other packages, read so that one damaged package harms no other.

Engines (`segship.engines`) and families (`segship.families`) of other distributions are found through them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from segship.errors import SegshipError, last_line

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_log = logging.getLogger(__name__)
_warned: set[str] = set()


def entries(group: str) -> list[EntryPoint]:
    """The group's entry points of every installed package, those of damaged metadata left out with a warning."""
    from importlib import metadata  # reads every installed package's metadata: only where it is needed

    try:
        return list(metadata.entry_points(group=group))
    except Exception:  # one package's damaged entry_points.txt stops the reading of all
        return [entry for distribution in metadata.distributions() for entry in _of(distribution, group)]


def _of(distribution: Any, group: str) -> list[EntryPoint]:
    try:
        return list(distribution.entry_points.select(group=group))
    except Exception as error:
        warn_once(f"the entry points of an installed package cannot be read ({last_line(error)})")
        return []


def warn_once(text: str) -> None:
    """Entry points are read again wherever a name is looked up: what is wrong with one is said the first time."""
    if text not in _warned:
        _warned.add(text)
        _log.warning("%s", text)


def origin(entry: EntryPoint) -> str:
    """'package 1.0' that brings the entry point; where that is not known, what it points at."""
    distribution = getattr(entry, "dist", None)
    return entry.value if distribution is None else f"{distribution.name} {distribution.version}"


def origins(found: list[EntryPoint]) -> str:
    """'a 1.0 and b 2.0', each package once."""
    return " and ".join(sorted({origin(entry) for entry in found}))


def load(
    group: str,
    name: str,
    kind: str,
    wanted: Sequence[str],
    faults: Callable[[Any], str],
    raised: type[SegshipError],
) -> ModuleType | None:
    """The module that an installed package brings under ``name``; None where none does.

    ``kind`` is what it is called in messages, 'engine'; it must have the names ``wanted``, NAME among
    them, and ``faults`` says what else is wrong with it, '' where nothing.
    Raises ``raised`` naming the package, where two bring it, where it cannot be loaded or lacks something.
    """
    found = [entry for entry in entries(group) if entry.name == name]
    if not found:
        return None
    where = origins(found)
    if len({entry.value for entry in found}) > 1:
        article = "an" if kind[0] in "aeiou" else "a"
        raise raised(f"two packages bring {article} {kind} called '{name}' ({where}); remove one of them")
    try:
        module = found[0].load()
    except (Exception, SystemExit) as error:
        needed = _to_convert(error)
        if needed:
            raise raised(f"{kind} '{name}' of {where} needs {needed}; type: pip install 'segship[convert]'") from None
        raise raised(
            f"{kind} '{name}' of {where} cannot be loaded ({said(error)}); update, reinstall or remove its package"
        ) from None
    wrong = _faults(name, module, wanted) or faults(module)
    if wrong:
        raise raised(f"{kind} '{name}' of {where} {wrong}; update or remove its package")
    assert isinstance(module, ModuleType)
    return module


def _to_convert(error: BaseException) -> str:
    """The library that is missing, where it is one that only converting needs: nothing is wrong with the package then."""
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return missing if missing in ("torch", "onnx") else ""


def _faults(name: str, module: Any, wanted: Sequence[str]) -> str:
    """What anything lacks to be what ``name`` calls, in words; '' when it lacks nothing."""
    if not isinstance(module, ModuleType):
        return f"is a {type(module).__name__}, not a module: its entry point must name one"
    lacking = [one for one in wanted if not hasattr(module, one)]
    if lacking:
        return f"lacks {', '.join(lacking)}"
    return "" if name == module.NAME else f"calls itself {module.NAME!r}"


def said(error: BaseException) -> str:
    """'ModuleNotFoundError: No module named …', in one line."""
    return f"{type(error).__name__}: {last_line(error)}"
