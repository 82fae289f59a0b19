"""Open a PyTorch checkpoint without trusting it: tensors come out, no code of the file runs.

Three ways in, tried in this order:

1. ``torch.load(weights_only=True)``.
2. A restricted unpickler whose allow-list stands below by name (numpy scalars, argparse.Namespace … beside
   tensors); anything else is ``UnsafePickle`` with the refused name and the flag that overrides it. In the training
   checkpoints of OpenMMLab, which hold the state of their hooks, what is not on the list becomes an empty placeholder.
3. TorchScript archives: the weights are read from the zip, objects become inert holders of their attributes,
   the program inside is kept as text and never run.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
import re
import types
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor, nn

from segship.errors import SourceError, SourceMissing, UnsafePickle

SUFFIXES = (".pth", ".pt", ".ckpt", ".ts", ".ptc", ".pkl", ".bin")
RUN_FOLDER_FILE = "model.pth"
RUN_FOLDER_FILES = (RUN_FOLDER_FILE, "checkpoint.pth")
"""what the trainers here call the weights of a run"""
SIDE_FILES = ("config.yml", "segship.yml", "args.pkl")
MAX_BYTES = 8 << 30
MAX_CODE_BYTES = 4 << 20
OPENMMLAB = ("mmengine.", "mmcv.", "mmseg.")
"""modules whose objects stand in the training checkpoints of MMSegmentation"""
WRAPPERS = (
    "state_dict", "model_state_dict", "best_model_state_dict", "last_model_state_dict", "model", "net", "network"
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""DataParallel, torch.compile, and what Lightning modules commonly call their network"""

_NAMES: dict[str, tuple[str, ...]] = {
    "collections": ("OrderedDict", "defaultdict", "Counter"),
    "builtins": ("set", "frozenset", "bytearray", "complex", "slice", "range", "int", "float", "bool", "str", "list",
                 "dict", "tuple"),
    "_codecs": ("encode",),
    "argparse": ("Namespace",),
    "torch": ("Size", "device"),
    "torch.nn.parameter": ("Parameter",),
    "torch.serialization": ("_get_layout",),
    "torch.storage": ("UntypedStorage", "TypedStorage"),
    "torch._utils": ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"),
    "numpy": ("dtype", "ndarray", "bool_", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
    "numpy.core.numeric": ("_frombuffer",),
}  # fmt: skip
ALLOWED = frozenset(f"{module}.{name}" for module, names in _NAMES.items() for name in names)
"""what the restricted unpickler hands out, beside torch's and numpy's number types"""

_DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
_STORAGES = {"FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "LongStorage": "int64",
             "BFloat16Storage": "bfloat16", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
             "ByteStorage": "uint8", "BoolStorage": "bool"}  # fmt: skip
_PATHS: dict[str, type] = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint's tensors and what stands beside it. Nothing of the file was executed."""

    path: Path
    """the weights file"""
    given: Path
    """what the user named: the file, or its run folder"""
    sha256: str
    state_dict: dict[str, Tensor]
    """by the network's own names: wrappers and prefixes such as ``module.`` removed"""
    wrapper: str
    """the key the tensors stood under; '' for a bare state dict"""
    prefix: str
    read_by: str
    """'weights_only', 'restricted unpickler', 'trusted pickle' or 'TorchScript'"""
    side_files: dict[str, Path]
    """those of SIDE_FILES that lie beside the weights"""
    code: str = ""
    """a TorchScript archive's program as text, for families to read; never run"""
    others: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """further state dicts of the same file by the key they stood under: of the last epoch beside the best …"""
    about: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """plain values that stand beside the tensors: epoch, scores, seed …"""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """plain values of an entry ``meta`` beside the tensors, nested: config text, class names …"""

    def record(self) -> dict[str, Any]:
        """For provenance: content and way of reading, no path of this machine."""
        return {
            "file": self.path.name,
            "sha256": self.sha256,
            "bytes": self.path.stat().st_size,
            "tensors": len(self.state_dict),
            "wrapper": self.wrapper,
            "prefix": self.prefix,
            "read_by": self.read_by,
            "beside_it": sorted(self.side_files),
        }


def open_checkpoint(path: Path | str, *, trust_pickle: bool = False) -> Checkpoint:
    """Open a checkpoint file, or the one in a run folder. Raises SourceError, or UnsafePickle naming what was refused."""
    given = Path(path)
    file = _weights_file(given)
    digest = _checked_digest(file)
    code = ""
    if _is_torchscript(file):
        loaded, code = _read_torchscript(file)
        read_by = "TorchScript"
    else:
        loaded, read_by = _load_pickle(file, trust_pickle)
    tensors, wrapper, beside = _find_tensors(loaded, file)
    state_dict, prefix = _without_prefix(tensors)
    _check_sizes(file, state_dict)
    side_files = {name: file.parent / name for name in SIDE_FILES if (file.parent / name).is_file()}
    return Checkpoint(
        path=file, given=given, sha256=digest, state_dict=state_dict, wrapper=wrapper, prefix=prefix, read_by=read_by,
        side_files=side_files, code=code, others=_other_states(beside, wrapper.rsplit(".", 1)[-1]), about=_plain_values(beside),
        meta=_plain_meta(beside.get("meta")),
    )  # fmt: skip


def take_other(checkpoint: Checkpoint, key: str) -> Checkpoint:
    """The same file with the state dict that stands under ``key``. KeyError where there is none."""
    state_dict, prefix = _without_prefix(dict(checkpoint.others[key]))
    others = {**checkpoint.others, checkpoint.wrapper: checkpoint.state_dict}
    del others[key]
    return replace(checkpoint, state_dict=state_dict, prefix=prefix, wrapper=key, others=others)


# ----------------------------------------------------------------------------------------- finding the file


def _weights_file(given: Path) -> Path:
    if not given.exists():
        raise SourceMissing(f"{given} does not exist; give a checkpoint file or a run folder with a {RUN_FOLDER_FILE}")
    if given.is_file():
        return given
    for name in RUN_FOLDER_FILES:
        if (given / name).is_file():
            return given / name
    found = sorted(p for p in given.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES and p.name != "args.pkl")
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(p.name for p in found[:5])
        raise SourceError(f"{given} holds several checkpoints ({names}) and no {RUN_FOLDER_FILE}; name one of them")
    names = ", ".join(sorted(p.name for p in given.iterdir())[:5]) or "nothing"
    raise SourceError(
        f"{given} holds no checkpoint: looked for {RUN_FOLDER_FILE} or one {'/'.join(SUFFIXES)}, found {names}"
    )


def _checked_digest(file: Path) -> str:
    try:
        size = file.stat().st_size
        if size == 0:
            raise SourceError(f"{file} is empty; copy or download it again")
        if size > MAX_BYTES:
            raise SourceError(
                f"{file} has {size >> 30} GiB; no checkpoint of a known network is over {MAX_BYTES >> 30} GiB"
            )
        with file.open("rb") as stream:
            start = stream.read(16)
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(
            f"{file} cannot be read ({error.strerror or error}); check the path and its rights"
        ) from error
    if file.suffix.lower() == ".onnx":
        raise SourceError(
            f"{file} is an ONNX file, whose weights no longer carry their names; export from the checkpoint"
        )
    if start.startswith(b"PK"):
        _check_zip(file)
    return digest


def _check_zip(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise SourceError(f"{file} is cut short or damaged ({error}); copy or download it again") from None
    names = {info.filename for info in infos}
    if {"manifest.json", "SHA256SUMS"} <= names:
        raise SourceError(f"{file} is a .segship package already; use `segship predict` or `segship compile` on it")
    if not any(PurePosixPath(name).name == "data.pkl" for name in names):
        raise SourceError(
            f"{file} is a zip archive but no PyTorch checkpoint (there is no data.pkl inside); unpack it first"
        )
    for info in infos:
        if info.file_size > 1000 * max(info.compress_size, 1) + (1 << 20) or info.file_size > MAX_BYTES:
            raise SourceError(f"{file}: {info.filename} would unpack to {info.file_size} bytes; do not use this file")


def _check_sizes(file: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Refuse tensors that claim more values than the file can hold (a stride of 0 makes them cheap to claim)."""
    limit = 1000 * file.stat().st_size + (1 << 20)
    if sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values()) > limit:
        raise SourceError(f"{file}: its tensors claim more values than the file can hold; do not use this file")


# ------------------------------------------------------------------------------------------------- pickles


def open_pickle(file: Path, *, trust_pickle: bool = False) -> tuple[Any, str]:
    """A torch file's whole content, not only tensors, and how it was read. Raises SourceError, UnsafePickle."""
    if not file.is_file():
        raise SourceError(f"{file} does not exist; copy the whole model folder")
    _checked_digest(file)
    return _load_pickle(file, trust_pickle)


def restricted_load(file: Path, markers: Mapping[str, Any] | None = None) -> Any:
    """A plain pickle through the restricted unpickler; ``markers`` stand in for named functions, which are not run.

    Raises UnsafePickle naming the refused global, SourceError for damage.
    """

    class Unpickler(_RestrictedUnpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{module}.{name}"
            return markers[full] if markers and full in markers else super().find_class(module, name)

    try:
        with file.open("rb") as stream:
            return Unpickler(stream).load()
    except UnsafePickle as error:
        raise UnsafePickle(
            f"{file} wants to run '{error}', which a plans file does not need; do not use this file"
        ) from None
    except OSError as error:
        raise SourceError(
            f"{file} cannot be read ({error.strerror or error}); check the path and its rights"
        ) from error
    except Exception as error:  # pickle raises nearly anything on hostile bytes
        raise _unreadable(file, error) from error


def _load_pickle(file: Path, trust: bool) -> tuple[Any, str]:
    try:
        return _torch_load(file, weights_only=True), "weights_only"
    except MemoryError as error:
        raise SourceError(f"{file} does not fit into memory; convert it on a larger machine") from error
    except Exception:  # torch raises many kinds for a file that it refuses or cannot read
        pass
    if trust:
        try:
            return _torch_load(file, weights_only=False), "trusted pickle"
        except Exception as error:
            raise _unreadable(file, error) from error
    try:
        return _torch_load(file, weights_only=False, pickle_module=_restricted()), "restricted unpickler"
    except UnsafePickle as error:
        if str(error).startswith(OPENMMLAB):
            return _load_inert(file)
        raise UnsafePickle(
            f"{file} wants to run '{error}', which tensors do not need; save `model.state_dict()` instead, "
            "or pass --trust-pickle if you know who made the file"
        ) from None
    except Exception as error:
        raise _unreadable(file, error) from error


def _load_inert(file: Path) -> tuple[Any, str]:
    """What `_RestrictedUnpickler` refuses becomes a placeholder that holds nothing and does nothing."""
    try:
        content = _torch_load(file, weights_only=False, pickle_module=_restricted(_InertUnpickler))
    except Exception as error:  # pickle raises nearly anything on hostile bytes
        raise _unreadable(file, error) from error
    return content, "restricted unpickler, the rest left inert"


def _torch_load(file: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", **options)


def _unreadable(file: Path, error: BaseException) -> SourceError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return SourceError(
        f"{file} is no readable PyTorch checkpoint ({lines[0][:120]}); it is cut short, damaged, or another kind of file"
    )


class _RestrictedUnpickler(pickle.Unpickler):
    """Hands out the names of ALLOWED and nothing else; raises UnsafePickle carrying the refused name."""

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{name}"
        if full in ALLOWED:
            return getattr(importlib.import_module(module), name)
        if module == "torch" and name in _DTYPES:
            return getattr(torch, name)
        if module == "pathlib" and name in _PATHS:
            return _PATHS[name]  # a pure path: a path of another system can be held, never opened
        if module == "numpy.dtypes" and re.fullmatch(r"[A-Za-z0-9]+DType", name):
            return getattr(importlib.import_module(module), name)
        raise UnsafePickle(full)


class _Placeholder:
    """Stands for an object whose class is not on the list. It takes whatever a pickle does to it and keeps none of it."""

    def __new__(cls, *_: Any, **__: Any) -> _Placeholder:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __setstate__(self, _: Any) -> None: ...
    def __setitem__(self, _: Any, __: Any) -> None: ...
    def append(self, _: Any) -> None: ...
    def extend(self, _: Any) -> None: ...
    def __call__(self, *_: Any, **__: Any) -> _Placeholder:
        return self


class _InertUnpickler(_RestrictedUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except UnsafePickle:
            return type("Placeholder", (_Placeholder,), {})


def _restricted(unpickler: type[_RestrictedUnpickler] = _RestrictedUnpickler) -> types.ModuleType:
    """A stand-in for the pickle module, as torch.load takes one."""
    module = types.ModuleType("segship_restricted_pickle")

    def load(stream: Any, **options: Any) -> Any:
        return unpickler(stream, **options).load()

    module.Unpickler = unpickler  # type: ignore[attr-defined]
    module.load = load  # type: ignore[attr-defined]
    module.UnpicklingError = pickle.UnpicklingError  # type: ignore[attr-defined]
    return module


# --------------------------------------------------------------------------------------------- TorchScript


class _Inert:
    """A TorchScript object with its program left out: only the attributes that were stored."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ScriptUnpickler(pickle.Unpickler):
    """Tensors from the archive's own records; every class of the program becomes ``_Inert``."""

    def __init__(self, stream: io.BytesIO, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(stream, encoding="utf-8")
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return type(name, (_Inert,), {})
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.jit._pickle":
            return lambda value, *_: value  # typed lists
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")):
            return _rebuild
        if (module, name) in (("collections", "OrderedDict"), ("torch", "device")):
            return getattr(importlib.import_module(module), name)
        raise UnsafePickle(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key = pid[:3]
        if kind != "storage" or not isinstance(dtype, str) or not re.fullmatch(r"\w+", str(key)):
            raise pickle.UnpicklingError("unknown storage")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            kind_of_number = getattr(torch, dtype)
            self._storages[key] = (
                torch.frombuffer(data, dtype=kind_of_number) if data else torch.empty(0, dtype=kind_of_number)
            )
        return self._storages[key]


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())


def _read_torchscript(file: Path) -> tuple[dict[str, Tensor], str]:
    try:
        with zipfile.ZipFile(file) as archive:
            root = next(n for n in archive.namelist() if n.endswith("/data.pkl")).rsplit("/", 1)[0]
            top = _ScriptUnpickler(io.BytesIO(archive.read(f"{root}/data.pkl")), archive, root).load()
            program = [n for n in archive.namelist() if n.startswith(f"{root}/code/") and n.endswith(".py")]
            code = "\n".join(archive.read(n)[:MAX_CODE_BYTES].decode("utf-8", "replace") for n in program)
        tensors = dict(_attributes(top, "", 0))
    except UnsafePickle as error:
        raise UnsafePickle(
            f"{file} asks for '{error}', which no TorchScript archive of a network needs; do not use it"
        ) from None
    except Exception as error:
        raise _unreadable(file, error) from error
    if not tensors:
        raise SourceError(f"{file} is a frozen TorchScript archive without named weights; export from the checkpoint")
    return tensors, code[:MAX_CODE_BYTES]


def _attributes(item: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(item, Tensor):
        yield name, item
    elif isinstance(item, _Inert) and isinstance(item.state, dict) and depth < 50:
        for key, value in item.state.items():
            yield from _attributes(value, f"{name}.{key}" if name else str(key), depth + 1)


# ------------------------------------------------------------------------------------- down to the tensors


def _find_tensors(loaded: Any, file: Path) -> tuple[dict[str, Tensor], str, Mapping[Any, Any]]:
    """The mapping of names to tensors inside the usual wrappers, the keys it stood under, and what stands beside it."""
    wrapper: list[str] = []
    beside: Mapping[Any, Any] = {}
    for _ in range(4):
        if isinstance(loaded, nn.Module):
            loaded = loaded.state_dict()
        if not isinstance(loaded, Mapping):
            break
        tensors = {k: v.detach() for k, v in loaded.items() if isinstance(k, str) and isinstance(v, Tensor)}
        inner = next((k for k in WRAPPERS if isinstance(loaded.get(k), Mapping | nn.Module)), None)
        if inner is None:
            if tensors:
                return tensors, ".".join(wrapper), beside
            break
        wrapper.append(inner)
        beside = loaded
        loaded = loaded[inner]
    found = ", ".join(str(k) for k in list(loaded)[:5]) if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
    raise SourceError(
        f"{file} holds no named tensors: looked for a state dict, bare or under {'/'.join(WRAPPERS)}, found {found}"
    )


def _other_states(beside: Mapping[Any, Any], taken: str) -> dict[str, dict[str, Tensor]]:
    names = [name for name in WRAPPERS if name != taken and isinstance(beside.get(name), Mapping)]
    states = {
        name: {k: v.detach() for k, v in beside[name].items() if isinstance(k, str) and isinstance(v, Tensor)}
        for name in names
    }
    return {name: state for name, state in states.items() if state}


def _plain_values(beside: Mapping[Any, Any]) -> dict[str, str | int | float | bool]:
    return {k: v for k, v in beside.items() if isinstance(k, str) and isinstance(v, str | int | float | bool)}


def _plain_meta(meta: Any) -> dict[str, Any]:
    found = _plain(meta, 0)
    return found if isinstance(found, dict) else {}


def _plain(value: Any, depth: int) -> Any:
    """Numbers, words, and lists and mappings of them; None in the place of anything else."""
    if isinstance(value, str | int | float | bool):
        return value
    if depth < 8 and isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if depth < 8 and isinstance(value, Mapping):
        return {key: _plain(item, depth + 1) for key, item in value.items() if isinstance(key, str)}
    return None


def _without_prefix(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    removed = ""
    while (prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None)) is not None:
        tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
        removed += prefix
    return tensors, removed
