"""Families that other packages bring, through the entry point group ``segship.families``.

They are another's code. One that cannot be imported or lacks a name is said to be so in one line that names its
package, and no other family notices.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from segship import plugins
from segship.errors import SourceError
from segship.families import BUILT_IN
from segship.families.options import Option

GROUP = "segship.families"
MODULE_NAMES = ("NAME", "LOOKS_FOR", "OPTIONS", "recognise", "load")


def names() -> list[str]:
    """Names of families, without those that are built in: another package cannot take these over."""
    return sorted({entry.name for entry in plugins.entries(GROUP)} - set(BUILT_IN))


def load(name: str) -> ModuleType | None:
    """The family's module, checked; None where no package brings one. Raises SourceError naming the package."""
    return plugins.load(GROUP, name, "family", MODULE_NAMES, faults, SourceError)


def sound() -> Iterator[ModuleType]:
    """The modules of all that can be had. What is wrong with another is a warning."""
    for name in names():
        try:
            module = load(name)
        except SourceError as error:
            plugins.warn_once(str(error))
            continue
        if module is not None:
            yield module


def faults(module: Any) -> str:
    """What is wrong with a module that has all names of a family, in words; '' when it is one."""
    if not isinstance(module.OPTIONS, tuple | list) or not all(isinstance(o, Option) for o in module.OPTIONS):
        return "has OPTIONS that are no tuple of Option"
    return ""
