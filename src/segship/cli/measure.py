"""`segship evaluate`, `score`, `benchmark`, `report`: numbers, each with its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segship.cli.many import Many, ManyCommand
from segship.cli.options import (
    FloatList,
    IntList,
    Labels,
    NameList,
    Size,
    folder_options,
    print_json,
    progress_bar,
    with_engine,
    with_label_maps,
    with_output,
)
from segship.errors import UsageError

if TYPE_CHECKING:
    from segship.inference.volume_network import TileOptions

_METRICS = click.option("--metrics", type=NameList(), default=None, help="mmseg: mIoU, mDice, mFscore [mIoU].")
_UNKNOWN = click.option(
    "--unknown",
    type=click.Choice(["error", "upstream", "ignore"]),
    help="mmseg: label ids that are no class: an error [default], counted as MMSegmentation does, or ignored.",
)
_STEP_SIZE = click.option(
    "--step-size", "-step_size", type=click.FloatRange(0, 1, min_open=True), help="Volumes: the windows' step."
)
_DISABLE_TTA = click.option("--disable-tta", "--no-tta", "--disable_tta", is_flag=True, help="Volumes: no mirroring.")


def _tiles(step_size: float | None, disable_tta: bool) -> TileOptions | None:
    """How windows of volumes are run; None where nothing was asked: as the package says."""
    if step_size is None and not disable_tta:
        return None
    from segship.inference.volume_network import TileOptions

    return TileOptions(step_size=step_size, mirror=not disable_tta)


@click.command()
@click.argument("package", type=click.Path())
@click.argument("dataset", type=click.Path())
@click.option(
    "--layout",
    default=None,
    help="dsb2018, prepared, folders, sod, nnunet, msd, cityscapes, mmseg or kits19 [recognised].",
)
@click.option(
    "--split",
    default=None,
    help="Validation part of a named split (default, ascend), of a fold (fold_0) or of a file of ids; test: imagesTs. "
    "Cityscapes and mmseg folders: train, val [default] ….",
)
@click.option("--exclude", multiple=True, help="Leave this case out.")
@click.option("--precision", type=NameList(), default="fp32", show_default=True, help="One or several, e.g. fp32,int8.")
@click.option(
    "--batch",
    type=IntList(),
    default=None,
    help="Pictures a call [8; label maps 1], of volumes windows a call; several (1,4,8) are each scored.",
)
@_STEP_SIZE
@_DISABLE_TTA
@click.option("--surface", is_flag=True, help="Volumes: also surface Dice (NSD) and HD95.")
@click.option("--previous-stage", type=click.Path(), help="Cascades: the first stage's package [beside this one].")
@click.option(
    "--tolerance", type=click.FloatRange(0), default=1.0, help="Millimetres that surfaces may be apart in NSD [1]."
)
@click.option("--splits", type=click.Path(), help="nnU-Net's splits_final.json or .pkl [beside the data].")
@click.option(
    "--format",
    type=click.Choice(["v1", "v2", "0.x", "1.x"]),
    help="nnU-Net: whose summary.json is written [the package's own]; mmseg: whose table is printed [1.x].",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder for summary.json, cases and worst-case pictures."
)
@click.option(
    "--record/--no-record", default=True, show_default=True, help="Write the numbers into the package's provenance."
)
@_METRICS
@_UNKNOWN
@click.option(
    "--score",
    type=click.Choice(["mlperf-full", "mlperf", "kits"]),
    help="kits19: on the resampled grid [mlperf-full], there after MLPerf's crop, or on each case's own grid.",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first so many cases.")
@click.option(
    "--out", "predictions", type=click.Path(path_type=Path), help="mmseg: folder for label maps, <image stem>.png."
)
@click.option(
    "--tta",
    type=click.Choice(["1.x", "0.x"]),
    is_flag=False,
    flag_value="1.x",
    help="mmseg: scales 0.5 to 1.75 and flips, of the picture's size (1.x) or of the pipeline's (0.x: --aug-test).",
)
@click.option("--tta-ratios", type=FloatList(), help="mmseg: the sizes of --tta, such as 0.5,1,1.5 [the package's].")
@with_label_maps
@with_engine
@with_output
def evaluate(
    package: str,
    dataset: str,
    precision: tuple[str, ...],
    step_size: float | None,
    disable_tta: bool,
    surface: bool,
    tolerance: float,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **rest: Any,
) -> int:
    """Score PACKAGE on DATASET in its world's own metrics. Images that a variant was calibrated on are refused."""
    from segship.measure.evaluate import evaluate as run_evaluation

    rest["streams"] = rest["streams"] or 1
    rest["tiles"] = _tiles(step_size, disable_tta)
    rest["surface_mm"] = tolerance if surface else None
    if rest["tta_ratios"] and not rest["tta"]:
        raise UsageError("--tta-ratios are the sizes of --tta; add that")
    rest["folders"] = folder_options(rest)
    rest["metrics"] = rest["metrics"] or ()
    with progress_bar(quiet) as progress:
        result = run_evaluation(package, dataset, precision=precision, progress=progress, **rest)
    if as_json:
        print_json(result.as_dict())
    elif not quiet:
        click.echo(result.as_text())
    return 1 if result.failed else 0


@click.command(cls=ManyCommand)
@click.argument("world", type=str)
@click.argument("gt", type=click.Path())
@click.argument("preds", metavar="PRED...", nargs=-1, required=True, type=click.Path())
@click.option("--layout", default=None, help="Layout of the ground truth [recognised].")
@click.option("--split", default=None, help="Only this split's cases.")
@click.option("--size", "size_hw", type=Size(), help="dsb2018: the network's size, for raw logits [96x96].")
@click.option("--resize", default=None, help="sod: how a map is brought to its label's size [pillow:bilinear].")
@click.option("--compat", default=None, help="sod: also the numbers of another tool: magicmind or author.")
@click.option(
    "-l",
    "--labels",
    cls=Many,
    pattern=r"\d[\d+,]*",
    type=Labels(),
    help="nnunet: the labels to score, -l 1 2; 1+2 is a region of both.",
)
@click.option(
    "--dataset",
    "-djfile",
    "dataset",
    type=click.Path(),
    help="nnunet: dataset.json, which names labels, regions and the ignore label [beside GT or PRED].",
)
@click.option("--plans", "-pfile", "plans", type=click.Path(), help="nnunet: plans.json; not needed.")
@click.option(
    "--ignore", "-il", "ignore", type=click.IntRange(0), help="nnunet: leave out voxels with this label in GT."
)
@click.option("--surface", is_flag=True, default=None, help="nnunet: also surface Dice (NSD) and HD95.")
@click.option(
    "--tolerance", type=click.FloatRange(0), help="nnunet: millimetres that surfaces may be apart in NSD [1]."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="nnunet: write the world's own summary.json here."
)
@_METRICS
@_UNKNOWN
@click.option(
    "--classes",
    help="mmseg: cityscapes, names (road,car), their number, or a package [cityscapes by file names, else counted].",
)
@click.option("--values", help="mmseg: what PRED holds: train-ids, ids or color [found out].")
@click.option("--beta", type=click.FloatRange(0, min_open=True), help="mmseg: weight of recall in Fscore [1].")
@click.option("--nan-to-num", type=float, help="mmseg: a number in the place of classes that have none.")
@click.option("--format", "--form", "form", help="mmseg: whose table is printed, 0.x or 1.x [1.x].")
@with_label_maps
@click.option(
    "--allow-missing", "--chill", "allow_missing", is_flag=True, help="Score only the cases that have a prediction."
)
@click.option("--per-image", type=click.Path(path_type=Path), help="Write every case's numbers to this CSV file.")
@with_output
def score(
    world: str,
    gt: str,
    preds: tuple[str, ...],
    per_image: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **rest: Any,
) -> None:
    """Metrics of PRED against GT in WORLD's terms (dsb2018: masks or raw logits; sod: saliency maps; nnunet, nnunet-v1:
    label files; mmseg: label maps, Cityscapes; kits19: labels of KiTS19's cases); no package is needed. Several folders
    PRED stand side by side.
    """
    from segship.measure.scoring import as_csv, as_dict, as_text, score_sets

    rest["labels"] = [key for keys in rest["labels"] for key in keys]
    if world == "mmseg":
        rest["folders"] = folder_options(rest)
    options = {name: value for name, value in rest.items() if value not in (None, []) and value is not False}
    with progress_bar(quiet) as progress:
        found = score_sets(world, gt, preds, progress=progress, **options)
    if per_image is not None:
        from segship.inference.writers import write_bytes

        write_bytes(per_image, as_csv(found).encode())
    if as_json:
        print_json(as_dict(found))
    elif not quiet:
        click.echo(as_text(found))


@click.command()
@click.argument("package", type=click.Path())
@click.option("--inputs", "-i", multiple=True, help="Images to run [the package's golden sample].")
@click.option("--precision", type=NameList(), default=None, help="One or several [all of the package].")
@click.option("--batch", type=IntList(), default="1,4,8", show_default=True)
@click.option("--engine", default=None, help="openvino (default), onnxruntime, pytorch.")
@click.option(
    "--against", type=NameList(), default=(), help="Further engines in the same run, e.g. pytorch,onnxruntime."
)
@click.option("--device", type=NameList(), default="cpu", show_default=True)
@click.option("--threads", type=IntList(), default=None, help="Thread counts to try [the engine's own].")
@click.option("--streams", type=IntList(), default="1", show_default=True)
@click.option("--iterations", type=click.IntRange(1), default=10, show_default=True, help="Calls a turn.")
@click.option("--duration", "duration_s", type=float, default=None, help="Seconds a turn, instead of --iterations.")
@click.option("--warmup", type=click.IntRange(0), default=2, show_default=True)
@click.option(
    "--repeat", type=click.IntRange(1), default=3, show_default=True, help="Turns each, interleaved: A B C A B C …"
)
@click.option("--files/--network-only", default=True, show_default=True, help="Also time files -> masks.")
@_STEP_SIZE
@_DISABLE_TTA
@click.option("--cache-dir", type=click.Path(file_okay=False), default=None)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the result as JSON to this file.")
@with_output
def benchmark(
    package: str,
    inputs: tuple[str, ...],
    threads: tuple[int, ...] | None,
    step_size: float | None,
    disable_tta: bool,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **rest: Any,
) -> None:
    """Time PACKAGE: the bare network and files -> masks, interleaved, answers compared before times are.

    Of volumes a batch is one of windows, and one case (the first of --inputs, or the golden sample) is timed whole.
    """
    from segship.measure.benchmark import benchmark as run_benchmark

    rest["tiles"] = _tiles(step_size, disable_tta)
    with progress_bar(quiet, unit="turn") as progress:
        result = run_benchmark(package, list(inputs) or None, threads=threads or (None,), progress=progress, **rest)
    if output is not None:
        from segship.inference.writers import write_bytes
        from segship.package import dump_json

        write_bytes(output, dump_json(result.as_dict()))
    if as_json:
        print_json(result.as_dict())
    elif not quiet:
        click.echo(result.as_text())


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@with_output
def report(run_dir: Path, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Make RUN_DIR/report.html: one self-contained page with pictures and plots."""
    from segship.measure.report import report as make_report

    path = make_report(run_dir)
    if as_json:
        print_json({"report": str(path)})
    elif not quiet:
        click.echo(str(path))
