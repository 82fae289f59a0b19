"""What `segship run` does otherwise where the network takes volumes: cases of several files, labels kept beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from segship.datasets import Case, Dataset
from segship.datasets.label_files import ending_of
from segship.errors import OutputError, SegshipError
from segship.inference.predictor import Predictor
from segship.inference.volume_batch import CaseOptions, predict_cases
from segship.inference.volume_predictor import VolumePredictor
from segship.inference.writers import write_bytes

Progress = Callable[[int, int, str], None]


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
                _link(file, folder / "imagesTr" / f"{case.id}_{number:04d}{ending_of(file.name)}")
            if case.label_file is not None:
                _link(case.label_file.resolve(), folder / "labelsTr" / f"{case.id}{ending_of(case.label_file.name)}")
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror or error}; choose another folder with -o"
        ) from error
    return folder


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
