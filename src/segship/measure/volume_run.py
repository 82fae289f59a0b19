"""What `segship run` does otherwise where the network takes volumes: cases of several files, labels kept beside them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segship.datasets import Case, Dataset
from segship.datasets.label_files import ending_of
from segship.errors import OutputError, SegshipError
from segship.inference.predictor import Predictor
from segship.inference.volume_batch import CaseOptions, predict_cases
from segship.inference.volume_predictor import VolumePredictor
from segship.inference.writers import write_bytes
from segship.manifest import Manifest
from segship.package import Package

Progress = Callable[[int, int, str], None]
BATCH_VOXELS = 1 << 22
"""of all windows of a batch: activations of a usual network are hundreds of times as large"""


def window_batches(manifest: Manifest, batches: Sequence[int]) -> tuple[tuple[int, ...], list[str]]:
    """(those of ``batches`` whose windows fit into a usual memory at once, the least of them at any rate; a note on the
    others). Nothing for pictures."""
    if manifest.tiling is None or manifest.input.kind != "volume":
        return (), []
    window = math.prod(manifest.tiling.window)
    kept = tuple(b for b in batches if b == min(batches) or b * window <= BATCH_VOXELS)
    left = [str(b) for b in batches if b not in kept]
    shape = "x".join(map(str, manifest.tiling.window))
    return kept, [f"batch {', '.join(left)} was left out: so many windows of {shape} at once are large"] if left else []


def sample_case(package: Package, data: Dataset | None) -> list[Path] | None:
    """What is timed: the package's golden sample (None), or the first case for a cascade, whose first stage has to run."""
    if package.manifest.previous_stage is None or data is None:
        return None
    return files_of(data.cases[0])


def bring_previous(given: Any, folder: Path) -> None:
    """The first stage's package of a cascade, beside the package that continues it: a link, or a copy."""
    if given is None:
        return
    source = Path(str(given))
    place = folder / source.name
    try:
        if place.exists() or place.is_symlink():
            if place.resolve() == source.resolve():
                return
            place.unlink()
        _link(source.resolve(), place)
    except OSError as error:
        raise OutputError(f"cannot write {place}: {error.strerror or error}; choose another folder with -o") from error


def files_of(case: Case) -> list[Path]:
    """A case's image files, one a channel."""
    source = case.read_image()
    return [
        Path(file).resolve() for file in (source if isinstance(source, list) else [source]) if isinstance(file, Path)
    ]


def link_cases(dataset: Dataset, folder: Path) -> Path:
    """``imagesTr`` and ``labelsTr`` under ``folder`` that lead to the cases' own files; their links, or copies where the
    system has none. Labels beside the images tell calibration where the foreground is."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
        for case in dataset.cases:
            for number, file in enumerate(files_of(case)):
                _link(file, folder / "imagesTr" / f"{case.id}_{number:04d}{_ending(file)}")
            if case.label_file is not None:
                _link(case.label_file.resolve(), folder / "labelsTr" / f"{case.id}{_ending(case.label_file)}")
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror or error}; choose another folder with -o"
        ) from error
    return folder


def _ending(file: Path) -> str:
    return ending_of(file.name) or file.suffix


def _link(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(file)
    except OSError:
        shutil.copyfile(file, place)


def predict_volumes(
    predictor: Predictor, inputs: Sequence[Path], target: Path, evaluation: Path, progress: Progress | None
) -> None:
    """Label files and previews in ``target``, and nnU-Net's own summary of them where they were scored."""
    assert isinstance(predictor, VolumePredictor)
    done = predict_cases(predictor, inputs, target, CaseOptions(preview=True), progress)
    if done.failed:
        name, message = done.failed[0]
        raise SegshipError(f"{len(done.failed)} cases could not be predicted; first {name}: {message}")
    scored = evaluation / predictor.precision / "summary.json"
    if scored.exists():
        write_bytes(target / "summary.json", scored.read_bytes())
