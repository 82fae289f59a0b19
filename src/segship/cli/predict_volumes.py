"""`segship predict` for packages that take volumes: options of their own, and the run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from segship.cli.options import progress_bar
from segship.errors import UsageError

if TYPE_CHECKING:
    from segship.inference.journal import PredictSummary
    from segship.inference.predictor import Predictor
    from segship.inference.volume_batch import Plan
    from segship.inference.volume_predictor import VolumePredictor

F = TypeVar("F", bound=Callable[..., Any])
COMPATS = ("fp16-accumulators",)
NAMES = (
    "step_size", "no_tta", "folds", "preview", "postprocessing", "compat", "memory", "prev_stage_predictions",
    "previous_stage", "time_budget",
)  # fmt: skip
_ACCEPTED = ("npp", "nps")


def with_volumes(function: F) -> F:
    """The options that only volumes have."""
    options = [
        click.option("--step-size", type=float, help="Volumes: window step as a part of the window [the package's]."),
        click.option("--no-tta", is_flag=True, help="Volumes: no mirroring; a half to an eighth of the time."),
        click.option("-f", "--folds", help="Volumes: use these members alone, e.g. --folds 0 1 2 [all]."),
        click.option("--preview", is_flag=True, help="Volumes: also three planes with the labels, as PNG."),
        click.option("--postprocessing", type=click.Choice(["auto", "none"]), help="Volumes: the package's own rules [auto]."),
        click.option("--compat", type=click.Choice(COMPATS), help="Volumes: reproduce a quirk of the original's files."),
        click.option("--memory", metavar="SIZE", help="Volumes: refuse cases that need more, e.g. 6G."),
        click.option(
            "--prev-stage-predictions", metavar="FOLDER", type=click.Path(path_type=Path),
            help="Volumes: labels of a cascade's first stage [run its package].",
        ),
        click.option(
            "--previous-stage", metavar="PACKAGE", type=click.Path(path_type=Path),
            help="Volumes: the package of a cascade's first stage [beside this one].",
        ),
        click.option(
            "--time-budget", metavar="SECONDS", type=float,
            help="Volumes: a case may take so long; gives up mirroring, then folds, then overlap, and says what.",
        ),
        click.option("--npp", type=int, hidden=True),
        click.option("--nps", type=int, hidden=True),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def take_options(rest: dict[str, Any]) -> dict[str, Any]:
    """Those of ``with_volumes`` out of a command's values. nnU-Net's numbers of processes are taken and not needed."""
    for name in _ACCEPTED:
        rest.pop(name)
    return {name: rest.pop(name) for name in NAMES}


def refuse_for_pictures(given: dict[str, Any]) -> None:
    """UsageError where an option of volumes was given for a package that takes pictures."""
    for name, value in given.items():
        if value not in (None, False):
            raise UsageError(f"--{name.replace('_', '-')} is for packages of volumes, and this one takes pictures")


def refuse_for_volumes(given: dict[str, Any]) -> None:
    """UsageError where an option of pictures was given for a package that takes volumes."""
    for name, value in given.items():
        if value not in (None, False):
            raise UsageError(f"--{name.replace('_', '-')} is for packages of pictures, and this one takes volumes")


def run(
    predictor: Predictor,
    wanted: list[str],
    out: Path,
    given: dict[str, Any],
    *,
    probabilities: bool,
    num_parts: int,
    part_id: int,
    resume: bool,
    quiet: bool,
    silent: bool,
) -> PredictSummary:
    """Predict cases with the command line's options; ``silent``: no plan on stderr either."""
    from segship.inference.volume_batch import CaseOptions, predict_cases
    from segship.inference.volume_budget import NothingFits
    from segship.inference.volume_cost import parse_bytes
    from segship.inference.volume_network import TileOptions
    from segship.inference.volume_predictor import VolumePredictor

    assert isinstance(predictor, VolumePredictor)
    _set_previous(predictor, given)
    tiles = TileOptions(
        step_size=given["step_size"],
        mirror=not given["no_tta"],
        members=_members(given["folds"], predictor.manifest.network.members),
        half_sums=given["compat"] == "fp16-accumulators",
    )
    options = CaseOptions(
        tiles=tiles,
        probabilities=probabilities,
        preview=given["preview"],
        postprocess=given["postprocessing"] != "none",
        previous=given["prev_stage_predictions"],
        time_budget=given["time_budget"],
        memory=parse_bytes(given["memory"]),
        num_parts=num_parts,
        part_id=part_id,
        resume=resume,
    )

    def announce(plan: Plan) -> None:
        if plan.budget is not None:  # what is given up is told even when little else is
            click.echo(str(plan.budget) if not quiet and not silent else plan.budget.line, err=True)
        if not quiet and not silent:
            click.echo(str(plan), err=True)

    try:
        with progress_bar(quiet, unit="window") as progress:
            return predict_cases(predictor, wanted, out, options, progress, announce)
    except NothingFits as missed:
        if not quiet:
            click.echo(missed.table, err=True)
        raise


def _set_previous(predictor: VolumePredictor, given: dict[str, Any]) -> None:
    """--previous-stage, checked before the first case is read."""
    path = given["previous_stage"]
    if path is None:
        return
    if predictor.manifest.previous_stage is None:
        raise UsageError(f"package '{predictor.manifest.name}' continues no other; leave out --previous-stage")
    if given["prev_stage_predictions"] is not None:
        raise UsageError("choose one of --previous-stage (its package runs) and --prev-stage-predictions (its labels)")
    if not path.exists():
        raise UsageError(f"there is no package {path}; --previous-stage names the first stage's")
    predictor.previous_package = path


def _members(folds: str | None, members: tuple[str, ...]) -> tuple[str, ...] | None:
    """'0 2' as ('fold_0', 'fold_2'); a member's full name is taken too."""
    if folds is None or folds.strip() == "auto":
        return None
    names = [name for name in re.split(r"[\s,]+", folds.strip()) if name]
    found = []
    for name in dict.fromkeys(names):
        match = next((member for member in members if member in (name, f"fold_{name}")), None)
        if match is None:
            there = ", ".join(member.removeprefix("fold_") for member in members)
            raise UsageError(f"the package has no fold '{name}'; it has: {there}")
        found.append(match)
    if not found:
        raise UsageError("--folds takes numbers such as 0 1 2")
    return tuple(found)
