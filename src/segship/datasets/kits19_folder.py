"""What `segship prepare kits19` does with its two folders: draw cases, prepare them, verify arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from segship.datasets import kits19_synthetic
from segship.datasets.kits19_prepare import Preparation, prepare_kits19
from segship.datasets.kits19_verify import verify_kits19
from segship.errors import UsageError

Progress = Callable[[int, int, str], None]


def prepare_folders(
    source: Path | str,
    out: Path | str | None = None,
    *,
    workers: int | None = None,
    reorient: bool = False,
    minimum: int = 128,
    verify: bool | str | Path = False,
    synthetic: int | None = None,
    size: int = kits19_synthetic.SIZE,
    seed: int = 0,
    progress: Progress | None = None,
) -> Preparation:
    """Prepare ``source`` into ``out`` (see `prepare_kits19`); ``synthetic`` cases are drawn into ``source`` first.

    Without ``out`` either cases are drawn alone, or, with ``verify``, the arrays that lie in ``source`` are compared.
    """
    notes: tuple[str, ...] = ()
    if synthetic is not None:
        made = kits19_synthetic.make_kits19(source, synthetic, size=size, seed=seed, progress=progress)
        notes = (f"{len(made)} synthetic cases in {source} ({made[0]} to {made[-1]}, seed {seed})",)
    if out is None:
        if verify and synthetic is None:
            reference = None if isinstance(verify, bool) else Path(verify)
            checked = verify_kits19(Path(source), reference)
            return Preparation(cases=(), failed=(), notes=(), seconds=0.0, verification=checked)
        if synthetic is None:
            raise UsageError("name the folder for the prepared arrays: segship prepare kits19 SOURCE OUT")
        return Preparation(cases=(), failed=(), notes=notes, seconds=0.0)
    found = prepare_kits19(
        source, out, workers=workers, reorient=reorient, minimum=minimum, verify=verify, progress=progress
    )
    return replace(found, notes=(*notes, *found.notes))
