"""What is known of each world of training: one module a world, found by name, used at export time only.

A family module provides

    NAME: str                                  'unetplusplus'
    LOOKS_FOR: str                             what it looks for in a checkpoint, in words, for the error that lists it
    OPTIONS: tuple[Option, ...]                what the weights do not say; the command line is generated from it
    recognise(checkpoint) -> bool              by content, never by file name
    load(checkpoint, options, force=False) -> Source
    tiny() -> Source                           a small network with seeded weights, for the contract suite

and, where ready-made ONNX files of its networks are about, what ``onnx_source`` names; where its networks come as
folders, ``recognise_path(path)`` and ``load_path(path, options, trust_pickle, force)``.

Families of other packages are found through the entry point group ``segship.families`` (entry point name =
family name, value = module).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from segship.errors import SourceError, UnknownSource, UsageError
from segship.families.checkpoint import Checkpoint, open_checkpoint
from segship.families.onnx_source import OnnxFile, OnnxNetwork, is_onnx, open_onnx
from segship.manifest import Recipe

if TYPE_CHECKING:
    from torch import nn

BUILT_IN = ("unetplusplus", "u2net", "nnunet", "unet3d_mlperf", "mmseg")

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
    at_one_size: Callable[[], Source] | None = None
    """the same with its size fixed, for networks of which nobody knows whether their graph holds at other sizes"""


def family_names() -> tuple[str, ...]:
    """Built-in families first, then those that installed packages bring."""
    outside = sorted(e.name for e in metadata.entry_points(group="segship.families") if e.name not in BUILT_IN)
    return (*BUILT_IN, *outside)


def get_family(name: str) -> ModuleType:
    """The family's module. Raises UsageError for a name that nothing provides."""
    if name in BUILT_IN:
        return importlib.import_module(f"segship.families.{name}")
    for entry in metadata.entry_points(group="segship.families"):
        if entry.name == name:
            module = entry.load()
            assert isinstance(module, ModuleType)
            return module
    raise UsageError(f"no family is called '{name}'; there are: {', '.join(family_names())}")


def all_options() -> dict[str, Option]:
    """Every family's options by name; families that share a name share its meaning."""
    return {option.name: option for name in family_names() for option in get_family(name).OPTIONS}


def recognise(checkpoint: Checkpoint) -> ModuleType:
    """The family whose marks the checkpoint carries. Raises UnknownSource with what was looked for and found."""
    looked_for = []
    for name in family_names():
        family = get_family(name)
        if family.recognise(checkpoint):
            return family
        looked_for.append(f"{name}: {family.LOOKS_FOR}")
    raise UnknownSource(
        f"{checkpoint.path} holds no network that segship knows; looked for {'; '.join(looked_for)}; "
        f"found {describe_keys(checkpoint)}; --family names one by hand"
    )


def recognise_onnx(file: OnnxFile) -> ModuleType:
    """The family whose marks the graph carries. Raises UnknownSource with what was looked for and found."""
    looked_for = []
    for name in family_names():
        family = get_family(name)
        if not hasattr(family, "recognise_onnx"):
            continue
        if family.recognise_onnx(file):
            return family
        looked_for.append(f"{name}: {family.LOOKS_FOR_ONNX}")
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
    (UnknownSource, UnsafePickle) for what cannot be taken and UsageError for options that do not fit.
    """
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


def _folder_family(path: Path, family: str | None) -> ModuleType | None:
    """The family whose model folder lies there, where it keeps networks in folders."""
    for name in (family,) if family else family_names():
        module = get_family(name)
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
