"""`segship prepare` and `segship train`: data sets and networks of the worlds that also train here."""

from __future__ import annotations

import logging
import types
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from segship import verbs
from segship.cli.options import print_json, progress_bar, with_output
from segship.verbs import TRAINERS


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


# `--resume` alone reads better than `--resume true`; upstream's own booleans stay words.
_SWITCHES = frozenset({"resume", "hard_targets"})


def options_from(dataclass_type: type) -> list[click.Option]:
    """One click option per field: both `--input_w` and `--input-w`, the field's further flags, its help and default."""
    types_of = typing.get_type_hints(dataclass_type)
    options = []
    for entry in fields(dataclass_type):
        flags = list(
            dict.fromkeys([f"--{entry.name.replace('_', '-')}", f"--{entry.name}", *_both(entry.metadata["flags"])])
        )
        kind = types_of[entry.name]
        plain = (
            next((t for t in typing.get_args(kind) if t is not types.NoneType), kind) if typing.get_args(kind) else kind
        )
        arguments: dict[str, Any] = {"help": entry.metadata["help"], "default": entry.default, "show_default": True}
        if entry.name in _SWITCHES:
            arguments |= {"is_flag": True, "show_default": False}
        elif entry.metadata["choices"]:
            arguments |= {"type": _Choice(entry.metadata["choices"]), "metavar": "|".join(entry.metadata["choices"])}
        elif kind == tuple[str, ...]:
            arguments |= {"multiple": True, "type": str, "show_default": False}
        else:
            arguments["type"] = {bool: _Word(), int: int, float: float, Path: click.Path(path_type=Path)}.get(
                plain, str
            )
        options.append(click.Option([entry.name, *flags], **arguments))
    return options


def _both(flags: tuple[str, ...]) -> list[str]:
    return [spelling for flag in flags for spelling in (flag, flag[:2] + flag[2:].replace("_", "-"))]


class _Named(click.Group):
    """A group whose error for an unknown name lists the names that there are."""

    noun = "world that trains here"

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            raise click.UsageError(f"no {self.noun} is called '{args[0]}'; there are: {', '.join(names)}", ctx)
        return super().resolve_command(ctx, args)


class _Trainers(_Named):
    """Each world's trainer is imported only when it is called: it brings in torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(TRAINERS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _trainer(cmd_name) if cmd_name in TRAINERS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Worlds"):
            formatter.write_dl(list(TRAINERS.items()))


class _DataSets(_Named):
    noun = "data set that segship prepares"


@click.group(cls=_Trainers)
def train() -> None:
    """Train a network of one of the worlds that also train here."""


def _trainer(world: str) -> click.Command:
    def callback(as_json: bool, quiet: bool, verbose: bool, **values: Any) -> int:
        logging.getLogger().setLevel(logging.WARNING if quiet else logging.INFO)
        result = verbs.train(world, progress=not quiet, **values)
        if as_json:
            print_json(result.as_dict())
        return 0

    command = with_output(
        click.Command(
            world,
            callback=callback,
            params=list(options_from(verbs.training_options(world))),
            help="Train UNet++ or U-Net. Flags and defaults are those of 4uiiurz1/pytorch-nested-unet's train.py "
            "(underscores or dashes), then ours. Booleans are words: true, false.",
        )
    )
    command.params.sort(key=lambda p: p.name in ("as_json", "quiet", "verbose"))
    return command


@click.group(cls=_DataSets)
def prepare() -> None:
    """Prepare a public data set in its world's own layout."""


@prepare.command("dsb2018", short_help="2018 Data Science Bowl: stage1_train.zip or its folder")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--size", type=click.IntRange(1), default=96, show_default=True, help="Height and width in pixels.")
@with_output
def prepare_dsb2018(source: Path, out: Path, size: int, as_json: bool, quiet: bool, verbose: bool) -> None:
    """SOURCE (stage1_train.zip or its folder) -> OUT/images and OUT/masks/0, as upstream's preprocessing writes them."""
    with progress_bar(quiet) as progress:
        summary = verbs.prepare("dsb2018", source, out, size=size, progress=progress)
    if as_json:
        print_json(vars(summary))
    elif not quiet:
        click.echo(str(summary))
