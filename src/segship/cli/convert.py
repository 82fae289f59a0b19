"""`segship export` and `segship compile`: a checkpoint becomes a package, a package gains a precision."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from segship.cli.options import IntList, NameList, Size, print_json, progress_bar, with_output
from segship.cli.upstream_words import EXPORT, UpstreamWords


def family_options() -> list[click.Option]:
    """What checkpoints of the known families do not say, as command-line options; imports no torch."""
    from segship import families

    return [_click_option(option) for option in families.all_options().values()]


def _click_option(option: Any) -> click.Option:
    names = [option.name, option.flag]
    if option.kind == "flag":
        return click.Option(names, is_flag=True, default=None, help=option.help)
    return click.Option(names, default=None, type=str, help=option.help, metavar=_metavar(option))


def _metavar(option: Any) -> str:
    words = {"size": "HxW", "floats": "A,B,…", "text": "TEXT"}
    return "|".join(option.choices) if option.kind == "choice" else words[option.kind]


def _takers() -> dict[str, list[str]]:
    """The names of the families that take an option, by its name."""
    from segship import families

    takers: dict[str, list[str]] = {}
    for family, options in families.family_options().items():
        for option in options:
            takers.setdefault(option.name, []).append(family)
    return takers


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def split_family_options(values: dict[str, Any]) -> dict[str, Any]:
    """Take the families' own options out of a command's values and return them."""
    from segship import families

    names = families.all_options()
    return {name: values.pop(name) for name in list(values) if name in names}


class WithFamilyOptions(UpstreamWords):
    """A command that gains the families' options when it is parsed or shown, not when it is imported."""

    words = EXPORT

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = list(super().get_params(ctx))
        known = {parameter.name for parameter in params}
        help_last = params.pop() if params and params[-1].name == "help" else None
        params += [option for option in family_options() if option.name not in known]
        return [*params, help_last] if help_last is not None else params

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options first, then those of each family under its name: nobody needs all of them."""
        takers = _takers()
        rows: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None and row[1]:
                families = takers.get(parameter.name or "", [])
                rows.setdefault(f"For {_listed(families)}" if families else "Options", []).append(row)
        for title, lines in sorted(rows.items(), key=lambda row: " and " in row[0]):
            with formatter.section(title):
                formatter.write_dl(lines)


def print_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        click.secho(f"warning: {warning}", err=True, fg="yellow" if sys.stderr.isatty() else None)


@click.command(cls=WithFamilyOptions)
@click.argument("source", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The package to write.")
@click.option("--sample", type=click.Path(), help="A real input for the parity proof [a bundled one].")
@click.option("--family", default=None, help="Take the source for this family [recognised from its content].")
@click.option(
    "--shape", type=click.Choice(["fixed", "dynamic"]), default="fixed", show_default=True, help="Height and width."
)
@click.option("--batch", type=click.IntRange(1), default=None, help="Fix the batch size [free].")
@click.option("--folder", is_flag=True, help="Write a folder instead of a zip.")
@click.option(
    "--engine", "engines", type=NameList(), default=None, help="Prove parity on these engines [segship's own]."
)
@click.option("--validate", type=click.Path(), help="Data set to score every reading that the weights leave open.")
@click.option("--split", default=None, help="Which part of --validate: default, ascend, or a file of ids.")
@click.option("--layout", default=None, help="Layout of --validate [recognised].")
@click.option("--trust-pickle", is_flag=True, help="Unpickle a checkpoint that holds more than tensors. Runs its code!")
@click.option("--force", is_flag=True, help="Keep options that contradict the weights.")
@with_output
def export(
    source: str,
    output: Path,
    engines: tuple[str, ...] | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **rest: Any,
) -> None:
    """Turn SOURCE (checkpoint file, run or model folder, its zip, TorchScript or ONNX file) into a package, proved stage by stage.

    Nothing is written when an engine's answer differs from the source's beyond tolerance (exit code 3).
    """
    from segship import families

    try:
        from segship.convert import parity
        from segship.convert.export import export as run_export
    except ImportError as error:
        raise families.needs_convert(error) from None

    options = split_family_options(rest)
    with progress_bar(quiet, unit="step") as progress:
        result = run_export(source, output, options=options, engines=engines, progress=progress, **rest)
    print_warnings(result.warnings)
    if as_json:
        print_json(result.as_dict())
    elif not quiet:
        for note in result.notes:
            click.echo(note)
        click.echo(parity.table(result.parity))
        for score in result.alternatives:
            chosen = "  (chosen)" if score.chosen else ""
            click.echo(f"{score.name}: {score.metric} {score.value:.4f} over {score.cases} cases{chosen}")
        click.echo(f"{result.package.path}  sha256 {result.package.sha256[:16]}…")


@click.command()
@click.argument("package", type=click.Path())
@click.option(
    "--precision",
    required=True,
    help="fp16, bf16, int8 or int16 (16-bit rounding around float32 arithmetic: accuracy and file size, not speed).",
)
@click.option(
    "--calibrate",
    type=click.Path(),
    help="int8, int16: folder, list.txt, array.npz or data set of training images.",
)
@click.option("--calibrate-split", default=None, help="Take the training side of this split of --calibrate.")
@click.option(
    "--subset", type=click.IntRange(1), default=128, show_default=True, help="Calibrate on so many images at most."
)
@click.option(
    "--batch", "batches", type=IntList(), default="1", show_default=True, help="Batch sizes to compile and check."
)
@click.option("--shape", type=click.Choice(["static", "dynamic"]), default="dynamic", show_default=True)
@click.option(
    "--input-size", type=Size(), default=None, help="Another network size (graphs with free height and width)."
)
@click.option(
    "--dynamic-range", type=float, nargs=2, default=None, help="int8: fixed range LOW HIGH of the network's input."
)
@click.option("--weights", type=click.Choice(["per-channel", "per-tensor"]), default="per-channel", show_default=True)
@click.option(
    "--activations", type=click.Choice(["symmetric", "asymmetric"]), default=None, help="int8 [the preset's]."
)
@click.option("--preset", type=click.Choice(["performance", "mixed"]), default="performance", show_default=True)
@click.option(
    "--keep-in-float",
    type=NameList(),
    default=None,
    help="int8, int16: convolutions to keep in float32 [int8: the first and the last; int16: none].",
)
@click.option("--algorithm", type=click.Choice(["min-max", "percentile"]), default="min-max", show_default=True)
@click.option("--bias-correction", type=click.Choice(["fast", "accurate", "none"]), default="none", show_default=True)
@click.option(
    "--fold-normalization", is_flag=True, help="Put the normalisation into the graph: it then takes 0..255 pixels."
)
@click.option(
    "--max-drop", type=float, default=None, help="Write only if the metric drops by at most this; needs --validate."
)
@click.option(
    "--validate",
    type=click.Path(),
    help="Data set to measure the drop on; for saliency packages also a folder of pictures without masks.",
)
@click.option(
    "--force", is_flag=True, help="Saliency packages: write although masks differ from fp32's by more than 0.02."
)
@click.option("--split", default=None, help="Validation part of --validate: default, ascend, or a file of ids.")
@click.option("--layout", default=None, help="Layout of --validate [recognised].")
@click.option("--engine", default=None, help="Engine to measure on [openvino].")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help="Write another package [in place].")
@with_output
def compile(package: str, precision: str, as_json: bool, quiet: bool, verbose: bool, **rest: Any) -> None:
    """Add a precision to PACKAGE, check it on every installed engine and record what executed.

    With --max-drop the variant is written only when the metric holds; layers that hurt are put back to float, one
    group at a time. If that does not suffice nothing is written and the exit code is 3.

    Masks of a saliency package need no ground truth for that: they are compared with fp32's on the pictures of
    --validate, else on pictures held out of --calibrate, and may differ by 0.02 of full scale on average.

    int16 rounds to 16 bits around convolutions that compute in float32 (OpenVINO keeps the rounding of weights alone):
    numerics of 16-bit fixed point and half the file, not speed.
    """
    from segship import families

    try:
        from segship.convert.precision import compile_package
    except ImportError as error:
        raise families.needs_convert(error) from None

    with progress_bar(quiet, unit="step") as progress:
        result = compile_package(package, precision, progress=progress, **rest)
    print_warnings(result.warnings)
    if as_json:
        print_json(result.as_dict())
    elif not quiet:
        click.echo(result.as_text())
