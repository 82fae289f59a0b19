"""`segship ensemble`: several networks' probabilities to one answer."""

from __future__ import annotations

from typing import Any

import click

from segship.cli.many import Many, ManyCommand
from segship.cli.options import print_json, progress_bar, with_output


@click.command(cls=ManyCommand)
@click.option(
    "-i",
    "--inputs",
    "folders",
    cls=Many,
    required=True,
    type=click.Path(),
    help="Folders of <case>.npz, as predict --save-probabilities leaves them: -i A B C.",
)
@click.option("-o", "--out", "output", required=True, type=click.Path(), help="Folder for the labels.")
@click.option(
    "--dataset",
    "-djfile",
    "dataset",
    type=click.Path(),
    help="dataset.json: what the classes are [in the first folder].",
)
@click.option("--package", type=click.Path(), help="A package that says what the classes are, in place of --dataset.")
@click.option(
    "--save-probabilities", "--save_npz", "save_probabilities", is_flag=True, help="Also write the mean probabilities."
)
@click.option("-np", "processes", type=int, hidden=True, help="Taken for nnU-Net's scripts; one case runs at a time.")
@with_output
def ensemble(as_json: bool, quiet: bool, verbose: bool, processes: int | None, **rest: Any) -> int:
    """Average nnU-Net probability files (v2's npz) case by case, then decide labels or regions.

    \b
    segship predict a.segship -i cases -o A --save-probabilities
    segship predict b.segship -i cases -o B --save-probabilities
    segship ensemble -i A B -o both
    """
    from segship.measure.ensemble import ensemble as run_ensemble

    with progress_bar(quiet, unit="case") as progress:
        found = run_ensemble(progress=progress, **rest)
    for case, message in found.failed:
        click.echo(f"failed: {case}: {message}", err=True)
    if as_json:
        print_json(found.as_dict())
    elif not quiet:
        click.echo(f"{found.done} cases, mean of {found.folders} folders, in {found.output}")
        for note in found.notes:
            click.echo(f"note: {note}")
    return 1 if found.failed else 0
