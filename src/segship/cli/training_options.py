"""Command-line options made from a trainer's dataclass of options."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


class _Word(click.ParamType):
    """true/false in any case, also 1/0, yes/no."""

    name = "true|false"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word in ("true", "1", "yes"):
            return True
        if word in ("false", "0", "no"):
            return False
        self.fail(f"'{value}' is neither true nor false", param, ctx)


class _Choice(click.ParamType):
    """One of a few names, in any case."""

    def __init__(self, choices: tuple[str, ...]) -> None:
        self.choices = choices
        self.name = "choice"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        for choice in self.choices:
            if str(value).lower() == choice.lower() or str(value).lower() == choice.lower().removesuffix("lr"):
                return choice
        self.fail(f"'{value}' is not one of {', '.join(self.choices)}", param, ctx)


class _Numbers(click.ParamType):
    """Several numbers, as words or with commas: 128 128 128, 128,128,128."""

    name = "N …"

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in re.split(r"[,\s]+", str(value).strip()) if part)
        except ValueError:
            self.fail(f"'{value}' are not numbers such as 128 128 128", param, ctx)


class TrainingCommand(click.Command):
    """A command whose options of several numbers take them as words: ``--input_shape 64 64 64``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = {flag for p in self.params if isinstance(p.type, _Numbers) for flag in p.opts}
        return super().parse_args(ctx, _joined(args, several))


def _joined(args: Sequence[str], several: set[str]) -> list[str]:
    out: list[str] = []
    place = 0
    while place < len(args):
        word = args[place]
        place += 1
        out.append(word)
        if word in several:
            values: list[str] = []
            while place < len(args) and (_NUMBER.fullmatch(args[place]) or (not values and "," in args[place])):
                values.append(args[place])
                place += 1
            out.append(" ".join(values))  # none is an empty list, not the next option
    return out


def options_from(dataclass_type: type) -> list[click.Option]:
    """One click option per field: both `--input_w` and `--input-w`, the field's further flags, its help and default."""
    types_of = typing.get_type_hints(dataclass_type)
    return [_option(entry, types_of[entry.name]) for entry in fields(dataclass_type)]


def _option(entry: Any, kind: Any) -> click.Option:
    flags = [f"--{entry.name.replace('_', '-')}", f"--{entry.name}", *_both(entry.metadata["flags"])]
    arguments: dict[str, Any] = {"help": entry.metadata["help"], "default": entry.default, "show_default": True}
    inner = typing.get_args(kind)
    plain = next((t for t in inner if t is not types.NoneType), kind)
    if entry.metadata["switch"]:
        arguments |= {"is_flag": True, "show_default": False}
    elif entry.metadata["choices"]:
        arguments |= {"type": _Choice(entry.metadata["choices"]), "metavar": "|".join(entry.metadata["choices"])}
    elif kind == tuple[str, ...]:
        arguments |= {"multiple": True, "type": str, "show_default": False}
    elif typing.get_origin(kind) is tuple:
        shown = " ".join(str(value) for value in entry.default)
        arguments |= {"type": _Numbers(inner[0]), "show_default": shown or False}
    else:
        paths = click.Path(path_type=Path)
        arguments["type"] = {bool: _Word(), int: int, float: float, Path: paths}.get(plain, str)
    return click.Option([entry.name, *dict.fromkeys(flags)], **arguments)


def _both(flags: tuple[str, ...]) -> list[str]:
    return [spelling for flag in flags for spelling in (flag, flag[:2] + flag[2:].replace("_", "-"))]
