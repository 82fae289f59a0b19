"""Engines that other packages bring, through the entry point group ``segship.engines``.

They are another's code. Whatever is wrong with one (it cannot be imported, lacks a name, raises what it should not,
answers something else than it promises) is said in one line that names its package, and no other engine notices.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from segship import plugins
from segship.engines import BUILT_IN, MODULE_NAMES, Session, SessionOptions
from segship.errors import EngineError, SegshipError
from segship.manifest import Executed

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "segship.engines"
SESSION_NAMES = ("options", "engine", "version", "device", "run", "executed", "close")

_CALLS = {"availability": (), "open_session": ("graph", "options")}


def entries() -> list[EntryPoint]:
    """Every installed package's entry points of engines."""
    return plugins.entries(GROUP)


def names() -> list[str]:
    """Names of engines, without those that are built in: another package cannot take these over."""
    return sorted({entry.name for entry in entries()} - set(BUILT_IN))


def origin(name: str) -> str:
    """'package 1.0' of each package that brings the engine."""
    return plugins.origins([entry for entry in entries() if entry.name == name])


def unused() -> list[str]:
    """In words, which packages bring an engine under a built-in one's name."""
    taken = [entry for entry in entries() if entry.name in BUILT_IN]
    return [f"{plugins.origin(entry)} brings an engine called '{entry.name}'; segship's own is used" for entry in taken]


def load(name: str) -> ModuleType | None:
    """The engine's module, checked; None where no package brings one. Raises EngineError naming the package."""
    return plugins.load(GROUP, name, "engine", MODULE_NAMES, faults, EngineError)


def faults(module: Any) -> str:
    """What is wrong with a module that has all names of an engine, in words; '' when it is one."""
    if not isinstance(module.PRECISIONS, tuple | list) or not all(isinstance(p, str) for p in module.PRECISIONS):
        return "has PRECISIONS that are no tuple of names"
    if not module.PRECISIONS:
        return "has no PRECISIONS"
    without = [p for p in module.PRECISIONS if not isinstance(module.TOLERANCE, Mapping) or p not in module.TOLERANCE]
    if without:
        return f"has no TOLERANCE for {', '.join(without)}"
    unfit = [f"{call}({', '.join(given)})" for call, given in _CALLS.items() if not _takes(module, call, len(given))]
    return f"cannot be called as {' or '.join(unfit)}" if unfit else ""


def _takes(module: ModuleType, call: str, count: int) -> bool:
    import inspect

    function = getattr(module, call)
    try:
        inspect.signature(function).bind(*[None] * count)
    except ValueError:  # a compiled function that tells no signature
        return True
    except TypeError:  # not callable, or not with so many arguments
        return False
    return True


def open_session(name: str, module: ModuleType, graph: Path, options: SessionOptions) -> Session:
    """Open a graph on the engine. Raises what the engine raises of segship's errors, EngineError for all else."""
    where = origin(name)
    try:
        session = module.open_session(graph, options)
    except SegshipError:
        raise
    except Exception as error:
        raise _failed(name, where, "open_session", error) from None
    lacking = [wanted for wanted in SESSION_NAMES if not hasattr(session, wanted)]
    if lacking:
        raise EngineError(f"engine '{name}' of {where}: its session lacks {', '.join(lacking)}; update its package")
    return OutsideSession(name, where, session)


def _failed(name: str, where: str, call: str, error: BaseException) -> EngineError:
    return EngineError(
        f"engine '{name}' of {where} failed in {call} ({plugins.said(error)}); tell its makers, or choose another --engine"
    )


class OutsideSession:
    """Another package's session, held to what `Session` promises."""

    def __init__(self, name: str, where: str, session: Any) -> None:
        self._name, self._where, self._session = name, where, session
        self.options: SessionOptions = session.options
        self.engine = str(session.engine)
        self.version = str(session.version)
        self.device = str(session.device)

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """As `Session.run`. Raises EngineError for an answer that is no list of float32 arrays of x's batch."""
        answer = self._call("run", x)
        arrays = list(answer) if isinstance(answer, list | tuple) else []
        if not arrays or not all(_fits(array, x) for array in arrays):
            told = ", ".join(map(_shown, arrays)) or type(answer).__name__
            raise self._broken(f"run returned {told}", f"a list of float32 arrays of {len(x)} images")
        return arrays

    def executed(self, x: np.ndarray) -> Executed:
        answer = self._call("executed", x)
        if not isinstance(answer, Executed):
            raise self._broken(f"executed returned {type(answer).__name__}", "segship's Executed")
        return answer

    def close(self) -> None:
        self._call("close")

    def _call(self, what: str, *arguments: Any) -> Any:
        try:
            return getattr(self._session, what)(*arguments)
        except SegshipError:
            raise
        except Exception as error:
            raise _failed(self._name, self._where, what, error) from None

    def _broken(self, got: str, wanted: str) -> EngineError:
        return EngineError(
            f"engine '{self._name}' of {self._where}: {got} where {wanted} was due; tell its makers, or choose "
            "another --engine"
        )


def _fits(array: Any, x: np.ndarray) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.float32 and array.ndim > 1 and len(array) == len(x)


def _shown(array: Any) -> str:
    return f"{array.dtype}{array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
