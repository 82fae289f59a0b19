"""Command-line words of nnU-Net's own tools, taken beside ours: ``-f 0 1 2``, ``-step_size 0.5``, ``--disable_tta``."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

EXPORT = {"-c": "--configuration", "-f": "--folds", "-chk": "--checkpoint", "-step_size": "--step-size"}
PREDICT = {
    "-f": "--folds",
    "-step_size": "--step-size",
    "--step_size": "--step-size",
    "--disable_tta": "--no-tta",
    "--disable-tta": "--no-tta",
    "--save_probabilities": "--save-probabilities",
    "--continue": "--resume",
    "--continue_prediction": "--resume",
    "-num_parts": "--num-parts",
    "-part_id": "--part-id",
    "-prev_stage_predictions": "--prev-stage-predictions",
    "-npp": "--npp",
    "-nps": "--nps",
    "-device": "--device",
}
_FOLD = re.compile(r"\d+|all|auto")


def translated(args: Sequence[str], words: dict[str, str]) -> list[str]:
    """Our words for theirs; the numbers that follow ``--folds`` become one value."""
    out: list[str] = []
    place = 0
    while place < len(args):
        word, equals, value = args[place].partition("=")
        place += 1
        if word == "--":
            return [*out, *args[place - 1 :]]
        ours = words.get(word, word)
        if ours != "--folds":
            out.append(f"{ours}{equals}{value}")
            continue
        folds = [value] if equals else []
        while place < len(args) and (_FOLD.fullmatch(args[place]) or not folds):
            folds.append(args[place])
            place += 1
        out += ["--folds", " ".join(folds)] if folds else ["--folds"]
    return out


class UpstreamWords(click.Command):
    """A command that takes them; ``words`` says which."""

    words: dict[str, str] = PREDICT

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, translated(args, self.words))
