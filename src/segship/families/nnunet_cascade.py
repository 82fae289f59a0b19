"""A cascade's link to the package of its first stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segship.errors import SourceError, UsageError
from segship.families import OptionValue
from segship.manifest import PreviousStage
from segship.package import open_package


def previous_stage(configuration: str | None, labels: Sequence[int], given: OptionValue) -> PreviousStage | None:
    """The link for a second stage whose plans name ``configuration`` as the first; None for a network without one.

    ``given`` is the first stage's package, whose name and network are recorded; without it only the name that the first
    stage is expected under. Raises UsageError where there is nothing to continue, SourceError for a package that gives
    other labels than the ``labels`` which the second stage takes as channels.
    """
    if configuration is None:
        if given is not None:
            raise UsageError("this configuration continues no other; leave out --previous-stage")
        return None
    if given is None:
        return PreviousStage(file=f"{configuration}.segship")
    package = open_package(Path(str(given)))
    there = sorted(label.id for label in package.manifest.labels if label.id != 0)
    if package.manifest.input.kind != "volume" or there != sorted(labels):
        raise SourceError(
            f"{given} gives the labels {there}, and the second stage takes {sorted(labels)} as channels; give the package "
            f"of {configuration} that was trained on the same data set"
        )
    return PreviousStage(file=package.path.name, sha256=package.network_sha256)
