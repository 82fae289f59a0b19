"""Options that take several values after one flag, as argparse's ``nargs="+"`` does: ``-l 1 2``, ``-i A B C``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click


class Many(click.Option):
    """Takes the words behind its flag as long as they match ``pattern``; click sees one flag a word."""

    def __init__(self, *args: Any, pattern: str = r"(?!-).*", **kwargs: Any) -> None:
        kwargs["multiple"] = True
        super().__init__(*args, **kwargs)
        self.pattern = re.compile(pattern, re.DOTALL)


class ManyCommand(click.Command):
    """A command with options of class `Many`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args, [p for p in self.params if isinstance(p, Many)]))


def spread(args: Sequence[str], options: Sequence[Many]) -> list[str]:
    """``-l 1 2 out`` as ``-l 1 -l 2 out``. What stands behind ``--`` is left alone."""
    flags = {flag: option for option in options for flag in (*option.opts, *option.secondary_opts)}
    out: list[str] = []
    position = 0
    while position < len(args):
        word = args[position]
        position += 1
        if word == "--":
            return [*out, word, *args[position:]]
        out.append(word)
        option = flags.get(word)
        if option is None or position >= len(args):
            continue
        out.append(args[position])
        position += 1
        while position < len(args) and option.pattern.fullmatch(args[position]):
            out += [word, args[position]]
            position += 1
    return out
