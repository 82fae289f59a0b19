"""`segship predict`: images in, masks, cutouts or composites on each image's own grid out; volumes in, labels out."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segship.cli import predict_volumes
from segship.cli.options import PRECISION_HELP, FloatList, print_json, progress_bar, with_engine, with_output
from segship.cli.predict_volumes import with_volumes
from segship.cli.upstream_words import UpstreamWords
from segship.errors import UsageError

if TYPE_CHECKING:
    from segship.inference.batch import PredictSummary
    from segship.inference.images import Limits
    from segship.inference.options import OutputOptions
    from segship.inference.outputs import PredictOptions
    from segship.inference.predictor import Predictor

PIPE = "-"
KINDS = ("mask", "ids", "color", "cityscapes", "cutout", "composite", "overlay")
NAMES_IN_A_NOTE = 3


class OutputKind(click.Choice):
    """The kind of output; says where the folder goes when one is given here."""

    def __init__(self) -> None:
        super().__init__(KINDS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value not in KINDS:
            self.fail(f"'{value}' is no kind of output ({', '.join(KINDS)}); a folder is named with -o", param, ctx)
        return value


MANY = 4
"""from so many pictures on, two inferences in flight gain more than opening the second stream costs"""


LARGE = 1 << 20
"""pixels of one network input from which on one inference fills the processor, and two would double the memory"""


def streams_for(inputs: int, pixels: int | None = None) -> int:
    """How many inferences to keep in flight: the answers are the same bytes, many pictures are done sooner with two."""
    from segship.engines.processor import processor

    return 2 if inputs >= MANY and processor().cores > 1 and (pixels or 0) <= LARGE else 1


@click.command(cls=UpstreamWords)
@click.argument("package", type=click.Path())
@click.argument("inputs", nargs=-1, type=str)
@click.option("-i", "--input", "more_inputs", multiple=True, help="A further file, folder or pattern.")
@click.option("-o", "--out", required=True, type=str, help="Folder for the results; - writes one image to stdout.")
@click.option(
    "--output",
    "kind",
    type=OutputKind(),
    help="What each image becomes: mask [default; class numbers where they exclude each other], ids (the data set's own "
    "numbers), color, cityscapes (ids to hand in), cutout (RGBA), composite (with --background) or overlay.",
)
@click.option("--background", help="Of composites: white, #rrggbb, r,g,b[,a], or an image that is resized to cover.")
@click.option("--threshold", type=float, help="Decide at this value, 0 to 1, instead of grey levels or the package's.")
@click.option("--clean-mask", is_flag=True, help="Smooth the mask's edges and drop specks.")
@click.option("--matting", is_flag=True, help="Hair-fine edges by pymatting; slow, seconds a megapixel.")
@click.option("--foreground-threshold", type=int, help="Matting: mask levels above are surely the object [240].")
@click.option("--background-threshold", type=int, help="Matting: mask levels below are surely not [10].")
@click.option("--erode", type=int, help="Matting: shrink both by a square of so many pixels [10].")
@click.option(
    "--cutout-style", type=click.Choice(["straight", "rembg"]), help="rembg: colours times alpha, as rembg writes them."
)
@click.option("--rgb-mask", is_flag=True, help="Masks with three equal planes instead of one.")
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
@click.option("--part-id", type=int, default=None, help="… and do this part, counted from 0.")
@click.option(
    "--tta",
    type=click.Choice(["1.x", "0.x"]),
    is_flag=False,
    flag_value="1.x",
    help="mmseg: average several sizes and mirrorings, sizes of the picture (1.x) or of the test pipeline (0.x: --aug-test).",
)
@click.option("--tta-ratios", type=FloatList(), help="mmseg: the sizes of --tta, such as 0.5,1,1.5 [the package's].")
@click.option(
    "--max-pixels", type=click.IntRange(1), default=None, help="Refuse larger images before decoding [250 million]."
)
@click.option("--max-bytes", type=click.IntRange(1), default=None, help="Refuse larger files [1 GiB].")
@with_volumes
@with_engine
@with_output
def predict(
    package: str,
    inputs: tuple[str, ...],
    more_inputs: tuple[str, ...],
    out: str,
    precision: str,
    batch: int,
    format_: str,
    jpeg: bool,
    probabilities: bool,
    probability_images: bool,
    tta: str | None,
    tta_ratios: tuple[float, ...] | None,
    max_pixels: int | None,
    max_bytes: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **rest: Any,
) -> int:
    """Write a mask, cutout or composite for each of INPUTS (files, folders or patterns) into a folder.

    A broken file is listed at the end and the others are done (exit code 1). Run again, finished files are skipped.

    \b
    segship predict net.segship photos/ -o cutouts --output cutout
    cat photo.jpg | segship predict net.segship - -o - --output cutout > photo.png
    """
    from segship.inference.batch import predict_files
    from segship.inference.images import DEFAULT_LIMITS, find_inputs
    from segship.inference.outputs import PredictOptions
    from segship.inference.predictor import Predictor
    from segship.inference.views import pixels_at_once
    from segship.package import open_package

    if probabilities and probability_images:
        raise UsageError("choose one of --save-probabilities (npz) and --probability-images (PNG)")
    wanted = [*inputs, *more_inputs]
    rest["part_id"] = _part_id(rest["num_parts"], rest["part_id"])
    if not wanted:
        raise UsageError("name at least one image, folder or pattern: segship predict PACKAGE INPUT... -o FOLDER")
    engine = {k: rest.pop(k) for k in ("engine", "device", "threads", "streams", "cache_dir")}
    changed = {k: v for k, v in (("max_pixels", max_pixels), ("max_bytes", max_bytes)) if v}
    limits = replace(DEFAULT_LIMITS, **changed) if changed else DEFAULT_LIMITS  # volumes have larger ones of their own
    for_volumes = predict_volumes.take_options(rest)
    opened = open_package(package)
    if opened.manifest.input.kind == "volume":
        for_pictures = {"output" if k == "kind" else k: rest.get(k) for k in (*_OUTPUT_OPTIONS, *_PICTURE_FLAGS)}
        predict_volumes.refuse_for_volumes(
            for_pictures
            | {"probability_images": probability_images, "jpeg": jpeg, "tta": tta, "tta_ratios": tta_ratios}
        )
        if PIPE in wanted or out == PIPE:
            raise UsageError("volumes are read from files and written into a folder; name both instead of -")
        engine["streams"] = engine["streams"] or 1
        with Predictor.open(opened, precision=precision, limits=limits, **engine) as predictor:
            found = predict_volumes.run(
                predictor, wanted, Path(out), for_volumes, probabilities=probabilities, num_parts=rest["num_parts"],
                part_id=rest["part_id"], resume=rest["resume"], quiet=quiet, silent=as_json,
            )  # fmt: skip
        return _say(found, out, as_json, quiet, unit="cases")
    predict_volumes.refuse_for_pictures(for_volumes)
    if tta_ratios and tta is None:
        raise UsageError("--tta-ratios are the sizes of --tta; add that")
    if tta and rest["stages"] is not None:
        raise UsageError(
            "--save-stages keeps what stands between the stages of one view, and --tta has several; leave one out"
        )
    engine |= {"tta": tta, "tta_ratios": tta_ratios}
    output = _output_options({name: rest.pop(name) for name in _OUTPUT_OPTIONS})
    options = PredictOptions(
        batch=batch,
        format="jpeg" if jpeg else format_,  # type: ignore[arg-type]
        probabilities="npz" if probabilities else "png" if probability_images else "none",
        output=output,
        **rest,
    )
    piped = PIPE in wanted or out == PIPE
    if piped:
        _check_pipe(wanted, out, options, as_json)
    paths = [] if PIPE in wanted else find_inputs(wanted)
    if piped:
        batch = 1
    engine["streams"] = engine["streams"] or streams_for(len(paths), pixels_at_once(opened.manifest))
    with Predictor.open(opened, precision=precision, batch=batch, limits=limits, **engine) as predictor:
        if precision == "auto" and not quiet:
            click.echo(f"{predictor.precision}: {predictor.choice.reason}", err=True)
        if piped:
            return _through_pipe(predictor, paths, options, limits, quiet)
        with progress_bar(quiet) as progress:
            summary = predict_files(predictor, paths, Path(out), options, progress, named=wanted)
    return _say(summary, out, as_json, quiet)


def _part_id(num_parts: int, part_id: int | None) -> int:
    """Part 0 of one; of several the part has to be named, or the others would be left out in silence."""
    if part_id is None and num_parts > 1:
        raise UsageError(
            f"--num-parts {num_parts} divides the inputs; say which part this is: --part-id 0 to {num_parts - 1}"
        )
    return part_id or 0


def _say(summary: PredictSummary, out: str, as_json: bool, quiet: bool, unit: str = "images") -> int:
    """Print how the run ended; the exit code."""
    if as_json:
        print_json(summary.as_dict())
    for name, message in summary.failed:
        click.echo(f"failed: {message if name in message else f'{name}: {message}'}", err=True)
    if not quiet and not as_json:
        _say_notes(summary.notes)
        click.echo(f"{_in_words(summary, unit)} -> {out}")
    return 1 if summary.failed else 0


# ------------------------------------------------------------------------------------------- kinds of output

_MATTING = ("foreground_threshold", "background_threshold", "erode")
_PICTURE_FLAGS = ("palette", "overlay", "instances", "stages", "raw")
_OUTPUT_OPTIONS = ("kind", "background", "threshold", "clean_mask", "matting", *_MATTING, "cutout_style", "rgb_mask")


def _output_options(given: dict[str, Any]) -> OutputOptions:
    """From the command line's options; UsageError for those that would have no effect."""
    from segship.inference.options import OutputOptions

    given = {name: value for name, value in given.items() if value is not None}
    kind = given.setdefault("kind", "composite" if "background" in given else "mask")
    if "background" in given and kind != "composite":
        raise UsageError(f"--background lies behind a composite, not behind a {kind}; say --output composite")
    if given["rgb_mask"] and kind != "mask":
        raise UsageError(f"--rgb-mask is a form of masks, not of a {kind}; leave one of them out")
    if "cutout_style" in given and kind not in ("cutout", "composite"):
        raise UsageError(f"--cutout-style is for cutouts and composites, not for a {kind}")
    if given["matting"] and kind == "overlay":
        raise UsageError("--matting is for cutouts, composites and masks; an overlay does not show it")
    alone = [name for name in _MATTING if name in given]
    if alone and not given["matting"]:
        raise UsageError(f"--{alone[0].replace('_', '-')} is a setting of --matting; add that")
    return OutputOptions(**given)


def _in_words(summary: PredictSummary, unit: str = "images") -> str:
    speed = (
        f", {summary.images_per_second:.{1 if unit == 'images' else 2}f} {unit}/s" if summary.images_per_second else ""
    )
    skipped = f", {summary.skipped} already there" if summary.skipped else ""
    failed = f", {len(summary.failed)} failed" if summary.failed else ""
    return f"{summary.done} done{skipped}{failed} in {summary.seconds:.1f} s{speed}"


def _say_notes(notes: tuple[tuple[str, str], ...]) -> None:
    """One line on stderr for each kind of note, however many inputs it is about."""
    for text in dict.fromkeys(text for _, text in notes):
        names = [name for name, said in notes if said == text]
        shown = ", ".join(names[:NAMES_IN_A_NOTE])
        more = f" and {len(names) - NAMES_IN_A_NOTE} more" if len(names) > NAMES_IN_A_NOTE else ""
        click.echo(f"note: {shown}{more}: {text}", err=True)


# ------------------------------------------------------------------------------------------- stdin and stdout


def _check_pipe(wanted: list[str], out: str, options: PredictOptions, as_json: bool) -> None:
    if out != PIPE:
        raise UsageError("the image from stdin is written to stdout; say -o - and redirect: -o - > mask.png")
    if len(wanted) != 1:
        raise UsageError("-o - writes one image, so it takes one input: a file, or - for stdin")
    beside = {"json": as_json, "num-parts": options.num_parts > 1, "save-stages": options.stages is not None}
    beside |= {"format": options.format != "png", "probabilities": options.probabilities != "none"}
    beside |= {name: getattr(options, name) for name in ("palette", "overlay", "instances")}
    asked = [name for name, value in beside.items() if value]
    if asked:
        hint = "; for the overlay itself: --output overlay" if asked == ["overlay"] else ""
        raise UsageError(f"-o - writes one PNG and nothing beside it; leave out '{asked[0]}' or name a folder{hint}")
    if sys.stdout.isatty():
        raise UsageError("-o - would write a PNG to the terminal; redirect it: -o - > mask.png")
    if wanted[0] == PIPE and sys.stdin.isatty():
        raise UsageError(
            "input - reads an image from a pipe: cat photo.jpg | segship predict PACKAGE - -o - > mask.png"
        )


def _through_pipe(predictor: Predictor, paths: list[Path], options: PredictOptions, limits: Limits, quiet: bool) -> int:
    """One image from a file or stdin to stdout; only its bytes are written there."""
    if len(paths) > 1:
        raise UsageError(f"-o - writes one image, and there are {len(paths)} inputs; name a folder with -o")
    options.check(predictor.manifest)
    if paths:
        image = predictor.read(paths[0], paths[0].name)
    else:
        # a byte more than allowed: reading stops there and the limit is named
        image = predictor.read(sys.stdin.buffer.read(limits.max_bytes + 1), "stdin")
    rendered = predictor(image, grid=options.grid, keep_scores=False).render(options.output)
    stdout = sys.stdout.buffer
    stdout.write(rendered.encode())
    stdout.flush()
    if not quiet:
        _say_notes(tuple((image.name, note) for note in rendered.notes))
    return 0
