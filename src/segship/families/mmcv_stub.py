"""A stand-in for ``mmcv._ext``, so that mmseg imports beside mmcv-lite.

mmseg 1.2.2 imports ``mmcv.ops`` whether or not a network needs one of its compiled operators, and mmcv-lite has none
(open-mmlab/mmsegmentation issue 3563); the full mmcv has no wheels for newer versions of torch. With this module in the
place of the compiled one everything imports, and only a network that really calls such an operator fails, by name.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

NAME = "mmcv._ext"


class MissingOperator:
    """What the stand-in hands out for any operator: it can be imported and held, not called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(
            f"this network calls mmcv's compiled operator '{self.name}', which mmcv-lite does not have; install the full mmcv"
        )


class _Operators(ModuleType):
    def __getattr__(self, name: str) -> MissingOperator:
        if name.startswith("__"):
            raise AttributeError(name)
        return MissingOperator(name)


class _Loader(Loader):
    """mmengine asks the module's spec for a loader (mmengine/utils/dl_utils/misc.py); it has nothing left to load."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return sys.modules.get(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return None


def install_stub() -> bool:
    """Put the stand-in where mmcv has no compiled operators of its own; True where it stands afterwards.

    Raises ImportError where mmcv itself is not installed.
    """
    if NAME in sys.modules:
        return isinstance(sys.modules[NAME], _Operators)
    if importlib.util.find_spec("mmcv") is None:
        raise ImportError("mmcv is not installed; type: pip install mmcv-lite==2.1.0", name="mmcv")
    if importlib.util.find_spec(NAME) is not None:
        return False
    module = _Operators(NAME)
    module.__spec__ = ModuleSpec(NAME, _Loader())
    sys.modules[NAME] = module
    import mmcv

    mmcv._ext = module
    return True
