"""`segship prepare` and `segship train`: data sets and networks of the worlds that also train here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from segship import verbs
from segship.cli.options import print_json, progress_bar, with_output
from segship.cli.prepare_kits19 import prepare_kits19
from segship.cli.training_options import TrainingCommand, options_from
from segship.verbs import TRAINERS


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


_ABOUT = {
    "unetplusplus": "Train UNet++ or U-Net. Flags and defaults are those of 4uiiurz1/pytorch-nested-unet's train.py "
    "(underscores or dashes), then ours. Booleans are words: true, false.",
    "unet3d_mlperf": "Train the MLPerf 3D U-Net on cases that `segship prepare kits19` wrote, or score a checkpoint "
    "(--load_ckpt_path). Flags are those of mlcommons/training's retired_benchmarks/unet3d, defaults those of its "
    "run_and_time.sh, then ours. Several devices: --devices N, or start it with torchrun.",
}


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
        TrainingCommand(
            world, callback=callback, params=list(options_from(verbs.training_options(world))), help=_ABOUT[world]
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


prepare.add_command(prepare_kits19)


@prepare.command("cityscapes", short_help="Cityscapes: leftImg8bit and gtFine, zips or unpacked")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@with_output
def prepare_cityscapes(source: Path, out: Path, as_json: bool, quiet: bool, verbose: bool) -> None:
    """SOURCE (a folder of leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, or unpacked) -> OUT/leftImg8bit and
    OUT/gtFine/…_gtFine_labelTrainIds.png. OUT may be SOURCE. Run again, finished files are kept."""
    with progress_bar(quiet) as progress:
        summary = verbs.prepare("cityscapes", source, out, progress=progress)
    if as_json:
        print_json(vars(summary))
    elif not quiet:
        click.echo(str(summary))
