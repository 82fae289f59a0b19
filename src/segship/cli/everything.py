"""`segship run`: everything in one go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from segship.cli.convert import WithFamilyOptions, split_family_options
from segship.cli.options import IntList, NameList, print_json, progress_bar, with_output


@click.command(cls=WithFamilyOptions)
@click.argument("source", type=click.Path())
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Images, with masks to be scored: folder or archive."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--calibrate", type=click.Path(path_type=Path), help="Calibration images for int8 [a part of --data].")
@click.option(
    "--split", default=None, help="Score this split's validation part, calibrate on the rest: default, ascend, FILE."
)
@click.option(
    "--layout", default=None, help="Of --data: dsb2018, sod, nnunet, cityscapes … as in evaluate [recognised]."
)
@click.option("--precision", "precisions", type=NameList(), default="fp16,int8", show_default=True, help="Beside fp32.")
@click.option("--max-drop", type=float, default=None, help="Refuse an int8 that loses more than this of the metric.")
@click.option("--engine", default=None, help="openvino (default), onnxruntime or pytorch.")
@click.option("--against", type=NameList(), default=None, help="Engines to benchmark beside it [all installed].")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=None)
@click.option("--batch", "batches", type=IntList(), default="1,8", show_default=True, help="Batch sizes to benchmark.")
@click.option("--iterations", type=click.IntRange(1), default=5, show_default=True, help="Benchmark calls a turn.")
@click.option("--repeat", type=click.IntRange(1), default=2, show_default=True, help="Benchmark turns.")
@click.option("--sample", type=click.Path(path_type=Path), help="Input for the parity proof [a bundled one].")
@click.option("--family", default=None, help="Take the source for this family [recognised].")
@click.option("--trust-pickle", is_flag=True, help="Unpickle a checkpoint that holds more than tensors. Runs its code!")
@click.option("--force", is_flag=True, help="Keep options that contradict the weights.")
@click.option("--again", is_flag=True, help="Do every step again [finished ones are kept].")
@with_output
def run(source: str, as_json: bool, quiet: bool, verbose: bool, **rest: Any) -> None:
    """Export SOURCE, prove parity, make the precisions, score and time them, and end in OUT/report.html.

    Interrupted, it goes on where it stopped when it is run again.
    """
    from segship.workflow import RunOptions, require_data
    from segship.workflow import run as run_all

    require_data(rest["data"])
    options = RunOptions(family_options=split_family_options(rest), **rest)

    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=as_json or not sys.stdout.isatty())

    with progress_bar(quiet, unit="step") as progress:
        result = run_all(source, options, say=say, progress=progress)
    if as_json:
        print_json(result.summary)
        return
    for line in result.lines():
        click.echo(line)
    click.echo(f"report: {result.report}")
