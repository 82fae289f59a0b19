"""`segship prepare kits19`: MLPerf's arrays from KiTS19's files, or a small synthetic set of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segship import verbs
from segship.cli.options import print_json, progress_bar, with_output

PUBLISHED = "published"


@click.command("kits19", short_help="KiTS19: case_00000/imaging.nii.gz + segmentation.nii.gz; --synthetic N draws some")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option(
    "--verify",
    is_flag=False,
    flag_value=PUBLISHED,
    default=None,
    metavar="[LIST]",
    help="Compare with the published md5 sums, with a checksum.json, or with a folder of arrays made elsewhere.",
)
@click.option("--workers", type=click.IntRange(1), default=None, help="Cases at a time [one a core, four at most].")
@click.option(
    "--reorient", is_flag=True, help="Turn files that are stored otherwise than KiTS19's (I,P,L) [taken as they are]."
)
@click.option(
    "--pad-to", "minimum", type=click.IntRange(1), default=128, show_default=True, help="Least size of every side."
)
@click.option("--synthetic", type=click.IntRange(1), metavar="N", help="Draw N cases into SOURCE first.")
@click.option(
    "--size", type=click.IntRange(1), default=128, show_default=True, help="--synthetic: voxels a side, once prepared."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="--synthetic: other seed, other cases."
)
@with_output
def prepare_kits19(
    source: Path, out: Path | None, verify: str | None, as_json: bool, quiet: bool, verbose: bool, **rest: Any
) -> int:
    """SOURCE (case_00000/imaging.nii.gz + segmentation.nii.gz …) -> OUT/case_00000_x.npy + case_00000_y.npy, as MLPerf
    Training's preprocessing writes them. Run again, it goes on where it stopped.

    Without OUT: with --synthetic the cases are drawn and not prepared; with --verify SOURCE is a prepared folder.
    """
    with progress_bar(quiet, unit="case") as progress:
        checked = True if verify == PUBLISHED else verify or False
        found: Any = verbs.prepare("kits19", source, out, verify=checked, progress=progress, **rest)
    if as_json:
        print_json(found.as_dict())
    elif not quiet:
        click.echo(str(found))
    verification = found.verification
    if found.failed:
        return 1
    return 3 if verification is not None and not verification.passed else 0
