"""What is known of each world of training: one module a world, found by name, used at export time only.

A family module provides

    NAME: str                                  'unetplusplus'
    LOOKS_FOR: str                             what it looks for in a checkpoint, in words, for the error that lists it
    OPTIONS: tuple[Option, ...]                what the weights do not say; the command line is generated from it.
                                               Built in: from ``<family>_options.py``, which imports no torch
    recognise(checkpoint) -> bool              by content, never by file name
    load(checkpoint, options, force=False) -> Source
    tiny() -> Source                           a small network with seeded weights, for the contract suite

and, where ready-made ONNX files of its networks are about, what ``onnx_source`` names; where its networks come as
folders, ``recognise_path(path)`` and ``load_path(path, options, trust_pickle, force)``.

Families of other packages are found through the entry point group ``segship.families`` (entry point name =
family name, value = module), see `outside`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from segship.errors import SourceError, UnknownSource, UsageError
from segship.families.options import Option, OptionValue, parse_size
from segship.manifest import Recipe

if TYPE_CHECKING:
    from torch import nn

    from segship.families.checkpoint import Checkpoint
    from segship.families.onnx_source import OnnxFile, OnnxNetwork

__all__ = ["BUILT_IN", "Alternative", "Option", "OptionValue", "Source", "parse_size"]

BUILT_IN = ("unetplusplus", "u2net", "nnunet", "unet3d_mlperf", "mmseg")

_LATE = {
    "Checkpoint": "checkpoint",
    "open_checkpoint": "checkpoint",
    "OnnxFile": "onnx_source",
    "OnnxNetwork": "onnx_source",
    "is_onnx": "onnx_source",
    "open_onnx": "onnx_source",
}
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """What other packages' families take from here and brings torch: imported when it is asked for."""
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another reading of the same checkpoint, which only a score on images can tell from the chosen one."""

    name: str
    """what differs, as the user would type it: 'upsample=nearest'"""
    chosen: bool
    load: Callable[[], Source]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trained network together with everything needed to use it."""

    network: nn.Module | OnnxNetwork
    """in eval mode, float32; takes (N, C, H, W) and returns a tensor or a sequence of tensors. Or a ready-made graph"""
    recipe: Recipe
    input_example_shape: tuple[int, ...]
    """(C, H, W) or (C, z, y, x) of one network input"""
    members: Mapping[str, nn.Module] = field(default_factory=dict)
    """every network of an ensemble by its member name; empty where ``network`` is alone"""
    provenance: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """what was recognised, where that is worth a line to the user"""
    engine_tolerance: float = 0.0
    """volumes: what engines may differ by in fp32, relative to the outputs' spread above 1; 0: as engines promise"""
    unable: Mapping[str, str] = field(default_factory=dict)
    """engine -> why it cannot run this network, known before trying"""
    alternatives: tuple[Alternative, ...] = ()
    relative_tolerance: float = 0.0
    """how far an engine's logits may differ as a share of their spread, where that is more than the engine's own tolerance"""
    sum_joins: bool = False
    """pictures: convolutions over joined channels become sums (``convert.onnx_join``); for networks that are smaller so"""
    at_one_size: Callable[[], Source] | None = None
    """the same with its size fixed, for networks of which nobody knows whether their graph holds at other sizes"""


def family_names() -> tuple[str, ...]:
    """Built-in families first, then those that installed packages bring."""
    from segship.families import outside  # reads every installed package's metadata: only where it is needed

    return (*BUILT_IN, *outside.names())


def get_family(name: str) -> ModuleType:
    """The family's module. Raises UsageError for a name that nothing provides, SourceError for a broken package."""
    if name in BUILT_IN:
        return importlib.import_module(f"segship.families.{name}")
    from segship.families import outside

    module = outside.load(name)
    if module is None:
        raise UsageError(f"no family is called '{name}'; there are: {', '.join(family_names())}")
    return module


def _families() -> Iterator[ModuleType]:
    """Every family whose module can be had; a broken package is named in a warning and left out."""
    from segship.families import outside

    for name in BUILT_IN:
        yield get_family(name)
    yield from outside.sound()


def family_options() -> dict[str, tuple[Option, ...]]:
    """Each family's options by its name. Those built in are read without their networks: no torch is imported."""
    from segship.families import outside

    found = {name: importlib.import_module(f"segship.families.{name}_options").OPTIONS for name in BUILT_IN}
    return {**found, **{module.NAME: tuple(module.OPTIONS) for module in outside.sound()}}


def all_options() -> dict[str, Option]:
    """Every family's options by name; families that share a name share its meaning."""
    return {option.name: option for options in family_options().values() for option in options}


def recognise(checkpoint: Checkpoint) -> ModuleType:
    """The family whose marks the checkpoint carries. Raises UnknownSource with what was looked for and found."""
    looked_for = []
    for family in _families():
        if family.recognise(checkpoint):
            return family
        looked_for.append(f"{family.NAME}: {family.LOOKS_FOR}")
    raise UnknownSource(
        f"{checkpoint.path} holds no network that segship knows; looked for {'; '.join(looked_for)}; "
        f"found {describe_keys(checkpoint)}; --family names one by hand"
    )


def recognise_onnx(file: OnnxFile) -> ModuleType:
    """The family whose marks the graph carries. Raises UnknownSource with what was looked for and found."""
    looked_for = []
    for family in _families():
        if not hasattr(family, "recognise_onnx"):
            continue
        if family.recognise_onnx(file):
            return family
        looked_for.append(f"{family.NAME}: {family.LOOKS_FOR_ONNX}")
    raise UnknownSource(
        f"{file.path} is an ONNX graph of no network that segship knows; looked for {'; '.join(looked_for)}; "
        f"found {file.describe()}; export from the checkpoint instead, or name the family with --family"
    )


def load_source(
    path: Path | str,
    *,
    family: str | None = None,
    options: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
    force: bool = False,
) -> Source:
    """Read a checkpoint file, run folder, TorchScript archive or ONNX file, recognise its family, build its network.

    ``force`` turns a contradiction between an option and the weights into a warning. Raises SourceError
    (UnknownSource, UnsafePickle) for what cannot be taken or where torch is missing, and UsageError for options that do not fit.
    """
    try:
        from segship.families.checkpoint import open_checkpoint
        from segship.families.onnx_source import is_onnx, open_onnx
    except ImportError as error:
        raise needs_convert(error) from None
    if is_onnx(Path(path)):
        return _load_onnx(open_onnx(path), family, options or {}, force)
    module = _folder_family(Path(path), family)
    if module is not None:
        given = parse_options(module, options or {})
        found: Source = module.load_path(Path(path), given, trust_pickle=trust_pickle, force=force)
        return found
    checkpoint = open_checkpoint(path, trust_pickle=trust_pickle)
    module = get_family(family) if family else recognise(checkpoint)
    source: Source = module.load(checkpoint, parse_options(module, options or {}), force=force)
    return source


def needs_convert(error: ImportError) -> SourceError:
    """What to install where torch or another library that converting needs is missing."""
    return SourceError(f"converting needs {error.name}; type: pip install 'segship[convert]'")


def _folder_family(path: Path, family: str | None) -> ModuleType | None:
    """The family whose model folder lies there, where it keeps networks in folders."""
    for module in [get_family(family)] if family else _families():
        if hasattr(module, "recognise_path") and path.exists() and module.recognise_path(path):
            return module
    return None


def _load_onnx(file: OnnxFile, family: str | None, options: Mapping[str, Any], force: bool) -> Source:
    module = get_family(family) if family else recognise_onnx(file)
    if not hasattr(module, "load_onnx"):
        raise SourceError(
            f"{file.path} is an ONNX file, and {module.NAME} networks are taken from checkpoints only: their weights no "
            "longer carry their names there; export from the checkpoint"
        )
    source: Source = module.load_onnx(file, parse_options(module, options), force=force)
    return source


def parse_options(family: ModuleType, options: Mapping[str, Any]) -> dict[str, OptionValue]:
    """Checked values for the given options; those not given are absent. UsageError names one the family lacks."""
    known = {option.name: option for option in family.OPTIONS}
    unknown = [name for name, value in options.items() if value is not None and name not in known]
    if unknown:
        raise UsageError(f"{family.NAME} has no option '{unknown[0]}'; it has {', '.join(known) or 'none'}")
    return {name: known[name].parse(value) for name, value in options.items() if value is not None}


def describe_keys(checkpoint: Checkpoint, limit: int = 5) -> str:
    """A few of the checkpoint's keys with their shapes, for an error message."""
    items = list(checkpoint.state_dict.items())
    shown = [f"{key} {tuple(tensor.shape)}" for key, tensor in items[:limit]]
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return (", ".join(shown) + more) if shown else "no tensors"
