"""Pickles that hold plain data: splits_final.pkl and the properties beside nnU-Net's probabilities.

Numbers, texts, lists, dicts, tuples and numpy arrays come out; a file that names anything else is refused before it
could run. No torch is needed here (checkpoints have a reader of their own).
"""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

from segship.errors import InputError, UnsafePickle

_ARRAYS = ("core.multiarray", "_core.multiarray")
_ALLOWED = frozenset(
    {("collections", "OrderedDict"), ("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")}
    | {(f"numpy.{module}", name) for module in _ARRAYS for name in ("_reconstruct", "scalar")}
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED or (module == "numpy.dtypes" and name.isidentifier() and name.endswith("DType")):
            module = module.replace("numpy.core.", "numpy._core.")  # where numpy 2 keeps what numpy 1 wrote
            return getattr(importlib.import_module(module), name)
        raise UnsafePickle(f"{module}.{name}")


def read_plain_pickle(path: Path) -> Any:
    """The content. UnsafePickle names what was refused, InputError damage."""
    try:
        with path.open("rb") as stream:
            return _Unpickler(stream).load()
    except UnsafePickle as error:
        raise UnsafePickle(
            f"{path} wants to run '{error}', which plain data does not need; do not use this file"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check the path and its rights") from error
    except Exception as error:  # pickle raises nearly anything on hostile bytes
        raise InputError(f"{path} is no pickle of plain data ({type(error).__name__}); make it again") from error
