"""Read an MMSegmentation configuration without running it.

A configuration is a Python file of assignments. Here its syntax tree is read: literals, ``dict(...)``, lists, names
assigned before, arithmetic, a few harmless functions and comprehensions over them. What needs more is left out with a
note; nothing is imported and no code of the file runs. Inheritance is open-mmlab/mmengine's (config/config.py): the files
of ``_base_`` first, then this one merged over them, dictionaries key by key, ``_delete_=True`` replacing one whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from segship.errors import SourceError, SourceMissing
from segship.families.mmseg_syntax import Unreadable, read_assignments

BASE, DELETE = "_base_", "_delete_"
MAX_BYTES = 4 << 20
MAX_DEPTH = 20
SECTION = re.compile(r"^\S*[\w-]+\.py$")
"""a line of its own in the text that old versions stored: the path of the file that follows"""
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A configuration's values as plain Python, bases merged in."""

    values: Values
    origin: str
    """for messages and the record: 'config unet.py', 'config text in the checkpoint' …"""
    source: Literal["config", "meta", "name", "flag"] = "config"
    """a file given, the checkpoint itself, its released name, or --arch"""
    notes: tuple[str, ...] = ()
    """what was left out"""

    def get(self, path: str, default: Any = None) -> Any:
        """'model.decode_head.channels': the value there; ``default`` where there is none, or None."""
        found: Any = self.values
        for part in path.split("."):
            if not isinstance(found, Mapping) or found.get(part) is None:
                return default
            found = found[part]
        return found


def read_config(path: Path, *, trust: bool = False) -> Config:
    """A configuration file with all that it inherits. ``trust`` lets mmengine run it instead.

    Raises SourceError for a file that is missing, is no configuration, or inherits what is not there.
    """
    if trust:
        return _run_with_mmengine(path)
    notes: list[str] = []
    return Config(values=_read_file(path, notes, ()), origin=f"config {path.name}", notes=tuple(notes))


def parse_text(text: str, origin: str) -> Config | None:
    """A configuration from its text, as checkpoints hold it; None where it inherits files that are not in it."""
    if len(text) > MAX_BYTES:
        return None
    notes: list[str] = []
    merged: Values = {}
    sections = _sections(text)
    for section in sections:
        try:
            values, skipped = read_assignments(section, merged)
        except Unreadable:
            return None
        bases = values.pop(BASE, None)
        if bases is not None and len(sections) == 1:
            return None
        notes += skipped
        merged = merge(values, merged, origin)
    return Config(values=merged, origin=origin, source="meta", notes=tuple(notes)) if merged else None


def merge(child: Values, base: Values, where: str) -> Values:
    """``child`` over ``base``: a new dictionary. Raises SourceError where a dictionary would fall on something else."""
    found = dict(base)
    for key, value in child.items():
        if not isinstance(value, dict):
            found[key] = value
            continue
        if key in found and not value.get(DELETE, False):
            below = found[key]
            if not isinstance(below, dict):
                raise SourceError(
                    f"{where}: '{key}' is a dict here and a {type(below).__name__} in the file it inherits; add _delete_=True"
                )
            found[key] = merge(value, below, where)
        else:
            found[key] = _without_delete(value)
    return found


# -------------------------------------------------------------------------------------------------- files


def _read_file(path: Path, notes: list[str], above: tuple[Path, ...]) -> Values:
    here = path.resolve()
    if here in above or len(above) >= MAX_DEPTH:
        raise SourceError(f"{path} inherits itself through {BASE}; correct the configuration")
    text = _text(path, above)
    if path.suffix in (".json", ".yml", ".yaml"):
        values = _plain(path, text)
        skipped: list[str] = []
        bases = values.pop(BASE, None)
        base = _read_bases(path, bases, notes, (*above, here))
    else:
        try:
            bases = read_assignments(text, {}, only=BASE)[0].get(BASE)
            base = _read_bases(path, bases, notes, (*above, here))
            values, skipped = read_assignments(text, base)
        except Unreadable as error:
            raise SourceError(f"{path} is no configuration that can be read ({error}); correct it") from None
        values.pop(BASE, None)
    notes += [f"{path.name}: {note}" for note in skipped]
    return merge(values, base, str(path))


def _read_bases(path: Path, bases: Any, notes: list[str], above: tuple[Path, ...]) -> Values:
    if bases is None:
        return {}
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise SourceError(f"{path}: {BASE} is not a file name or a list of them; correct it")
    found: Values = {}
    for name in names:
        if "::" in name or "://" in name:
            raise SourceError(
                f"{path} inherits {name} from an installed package; give the flattened configuration (mmseg writes one "
                "into the work folder), or --trust-config with mmengine installed"
            )
        values = _read_file(path.parent / name, notes, above)
        twice = sorted(values.keys() & found.keys())
        if twice:
            raise SourceError(f"{path}: two of its {BASE} files set '{twice[0]}'; MMSegmentation refuses that too")
        found |= values
    return found


def _text(path: Path, above: tuple[Path, ...]) -> str:
    wanted = f", which {above[-1].name} inherits," if above else ""
    if not path.is_file():
        hint = f"keep {above[-1].name} in its folder of configurations" if above else "check --config"
        kind = SourceError if above else SourceMissing
        raise kind(f"the configuration {path}{wanted} is not there; {hint}, or give the flattened one")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SourceError(f"{path} is larger than any configuration; check --config")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as a configuration ({error}); check --config") from error


def _plain(path: Path, text: str) -> Values:
    try:
        loaded = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read ({str(error).splitlines()[0]}); correct it") from error
    if not isinstance(loaded, dict):
        raise SourceError(f"{path} is not a mapping of settings; check --config")
    return {str(key): value for key, value in loaded.items()}


def _sections(text: str) -> list[str]:
    """The files of a text that old versions made by joining files, each behind a line with its path."""
    sections: list[list[str]] = [[]]
    for line in text.splitlines():
        if SECTION.match(line):
            sections.append([])
        else:
            sections[-1].append(line)
    return [joined for lines in sections if (joined := "\n".join(lines)).strip()]


def _without_delete(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_delete(item) for key, item in value.items() if key != DELETE}
    return value


def _run_with_mmengine(path: Path) -> Config:
    try:
        from mmengine.config import Config as Runner  # type: ignore[import-not-found]
    except ImportError:
        raise SourceError("--trust-config runs the configuration with mmengine; type: pip install mmengine") from None
    try:
        loaded = Runner.fromfile(str(path))
        values = loaded.to_dict()
    except Exception as error:  # the file's own code may raise anything
        raise SourceError(f"mmengine cannot load {path} ({str(error).splitlines()[0]}); correct it") from error
    return Config(values=values, origin=f"config {path.name} (run by mmengine)")
