"""`segship predict`: images in, masks on each image's own grid out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from segship.cli.options import PRECISION_HELP, print_json, progress_bar, with_engine, with_output
from segship.errors import UsageError


@click.command()
@click.argument("package", type=click.Path())
@click.argument("inputs", nargs=-1, type=str)
@click.option("-i", "--input", "more_inputs", multiple=True, help="A further file, folder or pattern.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--precision", default="fp32", show_default=True, help=PRECISION_HELP)
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Images per inference.")
@click.option("--format", "format_", type=click.Choice(["png", "npz", "jpeg"]), default="png", show_default=True)
@click.option("--jpeg", is_flag=True, help="Same as --format jpeg: upstream val.py's lossy files.")
@click.option(
    "--grid", type=click.Choice(["input", "network"]), default="input", show_default=True, help="Whose size masks have."
)
@click.option("--palette", is_flag=True, help="One indexed PNG in the package's colours.")
@click.option("--save-probabilities", "probabilities", is_flag=True, help="Also float32 probabilities (npz).")
@click.option("--probability-images", is_flag=True, help="Also 8-bit probability images (PNG).")
@click.option("--overlay", is_flag=True, help="Also the picture with its mask drawn on it.")
@click.option("--instances", is_flag=True, help="Also connected components, numbered 1, 2, 3 …")
@click.option(
    "--save-stages", "stages", type=click.Path(path_type=Path), help="Folder for what stands between the stages."
)
@click.option("--raw", is_flag=True, help="Stages as raw float32: <id>.bin and <id>_0.bin.")
@click.option(
    "--resume/--overwrite", default=True, show_default=True, help="Skip inputs that are done already, or do all again."
)
@click.option("--num-parts", type=int, default=1, help="Divide the inputs among this many jobs …")
@click.option("--part-id", type=int, default=0, help="… and do this part, counted from 0.")
@click.option(
    "--max-pixels", type=click.IntRange(1), default=None, help="Refuse larger images before decoding [250 million]."
)
@click.option("--max-bytes", type=click.IntRange(1), default=None, help="Refuse larger files [1 GiB].")
@with_engine
@with_output
def predict(
    package: str,
    inputs: tuple[str, ...],
    more_inputs: tuple[str, ...],
    output: Path,
    precision: str,
    batch: int,
    format_: str,
    jpeg: bool,
    probabilities: bool,
    probability_images: bool,
    max_pixels: int | None,
    max_bytes: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **rest: Any,
) -> int:
    """Write a mask for each of INPUTS (files, folders or patterns) into a folder.

    A broken file is listed at the end and the others are done (exit code 1). Run again, finished files are skipped.
    """
    from segship.inference.batch import predict_files
    from segship.inference.images import DEFAULT_LIMITS, find_inputs
    from segship.inference.outputs import PredictOptions
    from segship.inference.predictor import Predictor

    if probabilities and probability_images:
        raise UsageError("choose one of --save-probabilities (npz) and --probability-images (PNG)")
    wanted = [*inputs, *more_inputs]
    if not wanted:
        raise UsageError("name at least one image, folder or pattern: segship predict PACKAGE INPUT... -o FOLDER")
    engine = {k: rest.pop(k) for k in ("engine", "device", "threads", "streams", "cache_dir")}
    options = PredictOptions(
        batch=batch,
        format="jpeg" if jpeg else format_,  # type: ignore[arg-type]
        probabilities="npz" if probabilities else "png" if probability_images else "none",
        **rest,
    )
    paths = find_inputs(wanted)
    engine["streams"] = engine["streams"] or 1
    limits = replace(DEFAULT_LIMITS, **{k: v for k, v in (("max_pixels", max_pixels), ("max_bytes", max_bytes)) if v})
    with Predictor.open(package, precision=precision, batch=batch, limits=limits, **engine) as predictor:
        if precision == "auto" and not quiet:
            click.echo(f"{predictor.precision}: {predictor.choice.reason}", err=True)
        with progress_bar(quiet) as progress:
            summary = predict_files(predictor, paths, output, options, progress)
    if as_json:
        print_json(summary.as_dict())
    for name, message in summary.failed:
        click.echo(f"failed: {message if name in message else f'{name}: {message}'}", err=True)
    if not quiet and not as_json:
        speed = f", {summary.images_per_second:.1f} images/s" if summary.images_per_second else ""
        skipped = f", {summary.skipped} already there" if summary.skipped else ""
        failed = f", {len(summary.failed)} failed" if summary.failed else ""
        click.echo(f"{summary.done} done{skipped}{failed} in {summary.seconds:.1f} s{speed} -> {output}")
    return 1 if summary.failed else 0
