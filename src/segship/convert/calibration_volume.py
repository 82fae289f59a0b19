"""Calibration windows for networks that take volumes: cut from real cases, prepared by the package's own steps.

Every other window lies around foreground, as nnU-Net draws its training patches (MIC-DKFZ/nnUNet:
nnunetv2/training/dataloading/data_loader.py, get_bbox): a voxel of a label where ``labelsTr`` lies beside
``imagesTr`` (or a segmentation beside a KiTS19 image), else a voxel on the brighter side of Otsu's threshold. The others lie anywhere. One seed, so that the same
folder gives the same windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from segship.convert.quantize import spread_evenly
from segship.datasets import Case as DatasetCase
from segship.datasets import kits19
from segship.errors import UsageError
from segship.inference import tiling as windows
from segship.inference.images import pixel_sha256
from segship.inference.volume_cases import Case, group_cases
from segship.inference.volume_chain import PreparedVolume, prepare_volume
from segship.inference.volumes import Volume, read_labels, read_volume, sample_volume
from segship.manifest import Recipe, VolumeInput

MOST_CASES = 64
MOST_VALUES = 1 << 27
"""of all windows together: 512 MB of float32; a window of 128x128x128 has 2 million a channel"""
LEAST = 8
IMAGES, LABELS = ("imagesTr", "images"), {"imagesTr": "labelsTr", "images": "labels"}


def cut_windows(
    source: Path, recipe: Recipe, subset: int
) -> tuple[list[np.ndarray], list[str], list[str], int, list[str]]:
    """(windows (C, *window) float32, their names, the hash of each one's case, cases there are, warnings)."""
    spec = recipe.input
    tiling = recipe.tiling
    assert isinstance(spec, VolumeInput)
    assert tiling is not None
    found, labels = _cases(source, spec)
    values = recipe.network.input_channels * int(np.prod(tiling.window))
    most = max(1, min(subset, max(LEAST, MOST_VALUES // values)))
    cases = spread_evenly(found, min(MOST_CASES, most))
    rng = np.random.default_rng(0)
    out: list[np.ndarray] = []
    names: list[str] = []
    hashes: list[str] = []
    for number, case in enumerate(cases):
        share = most // len(cases) + (number < most % len(cases))
        for where, window, digest in _from_case(case, labels.get(case.name), recipe, share, rng):
            out.append(window)
            names.append(f"{case.name}@{','.join(map(str, where))}")
            hashes.append(digest)
    warnings = []
    if most < subset:
        warnings.append(f"calibrated on {most} windows, not {subset}: windows of this size fill the memory set aside")
    if not labels:
        warnings.append("no labels beside the calibration cases: windows were drawn around what is bright in them")
    return out, names, hashes, len(found), warnings


def _cases(source: Path, spec: VolumeInput) -> tuple[list[Case], dict[str, Path]]:
    """The cases of a folder or file, and label files by case name where they lie beside them."""
    if not source.exists():
        raise UsageError(f"there is no calibration data at {source}; give a folder of training cases")
    if (known := kits19.calibration_cases(source)) is not None:
        found = [Case(name=case.id, files=tuple(_files_of(case))) for case in known.cases]
        return found, dict(kits19.label_paths(known))
    images = next((source / name for name in IMAGES if (source / name).is_dir()), source)
    cases = group_cases([images], spec)
    folder = images.parent / LABELS.get(images.name, "labelsTr")
    files = {case.name: folder / f"{case.name}{spec.file_ending}" for case in cases}
    return cases, {name: file for name, file in files.items() if file.is_file()}


def _files_of(case: DatasetCase) -> list[Path]:
    source = case.read_image()
    return [file for file in (source if isinstance(source, list) else [source]) if isinstance(file, Path)]


def _from_case(
    case: Case, labels: Path | None, recipe: Recipe, count: int, rng: np.random.Generator
) -> Iterator[tuple[tuple[int, ...], np.ndarray, str]]:
    """``count`` windows of one case: their starts, values, and the hash of the case."""
    spec, tiling = recipe.input, recipe.tiling
    assert isinstance(spec, VolumeInput)
    assert tiling is not None
    volume = read_volume(list(case.files), spec, name=case.name)
    truth = None if labels is None else read_labels(labels, spec)
    prepared = prepare_volume(volume, recipe, _previous(volume, truth, recipe))
    points = foreground_points(prepared, truth)
    digest = pixel_sha256(volume.channels)
    for number in range(count):
        around = points[rng.integers(len(points))] if len(points) and number % 2 == 0 else None
        start, window = _window(prepared.x, around, recipe, rng)
        yield start, window, digest


def _previous(volume: Volume, truth: np.ndarray | None, recipe: Recipe) -> np.ndarray | None:
    if recipe.previous_stage is None:
        return None
    if truth is None:
        raise UsageError(f"{volume.name}: a cascade is calibrated with labels in the place of its first stage's; "
                         "give a folder with imagesTr and labelsTr")  # fmt: skip
    return truth


def foreground_points(prepared: PreparedVolume, truth: np.ndarray | None, most: int = 4096) -> np.ndarray:
    """(N, 3) voxels of the network's grid in the foreground: of the labels ``truth`` (z, y, x), else bright ones."""
    if truth is not None:
        found = np.argwhere(truth > 0)
        return _on_grid(found[:: max(1, len(found) // most)], prepared)
    import cv2

    image = prepared.x[0]
    low, high = float(image.min()), float(image.max())
    if high <= low:
        return np.empty((0, 3), np.int64)
    levels = ((image - low) * (255 / (high - low))).astype(np.uint8)
    threshold, _ = cv2.threshold(levels.reshape(-1, 1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    found = np.argwhere(levels > threshold)
    return np.asarray(found[:: max(1, len(found) // most)])


def _on_grid(points: np.ndarray, prepared: PreparedVolume) -> np.ndarray:
    """Voxels of the case's own grid as those of the network's."""
    for step in prepared.frame.moved:
        if step.kind == "transpose":
            points = points[:, list(step.axes)]
        elif step.kind == "crop":
            points = points - np.array(step.start)
        elif step.kind == "pad":
            points = points + np.array(step.start)
        else:
            points = (points * (np.array(step.after) / np.array(step.before))).astype(np.int64)
    inside = ((points >= 0) & (points < np.array(prepared.x.shape[1:]))).all(axis=1)
    return points[inside]


def _window(
    x: np.ndarray, around: np.ndarray | None, recipe: Recipe, rng: np.random.Generator
) -> tuple[tuple[int, ...], np.ndarray]:
    """A window of (C, z, y, x) around a voxel, or anywhere; of a 2D network from that voxel's slice."""
    tiling = recipe.tiling
    assert tiling is not None
    centre = [int(rng.integers(side)) for side in x.shape[1:]] if around is None else [int(c) for c in around]
    if len(tiling.window) == 2:
        plane = x[:, centre[0]]
        start, window = _cut(plane, centre[1:], recipe)
        return (centre[0], *start), window
    return _cut(x, centre, recipe)


def _cut(x: np.ndarray, centre: list[int], recipe: Recipe) -> tuple[tuple[int, ...], np.ndarray]:
    tiling = recipe.tiling
    assert tiling is not None
    widths = windows.padding(x.shape[1:], tiling)
    padded, _ = windows.pad(np.ascontiguousarray(x), tiling)
    starts = tuple(
        int(np.clip(c + before - side // 2, 0, size - side))
        for c, (before, _), side, size in zip(centre, widths, tiling.window, padded.shape[1:], strict=True)
    )
    return starts, np.ascontiguousarray(windows.cut(padded, starts, tiling))


def golden_windows(sample: bytes, recipe: Recipe) -> list[np.ndarray]:
    """The middle window of a package's golden sample, and its reflections."""
    assert recipe.tiling is not None
    volume, previous = sample_volume(sample)
    x = prepare_volume(volume, recipe, previous).x
    middle = [side // 2 for side in x.shape[1:]]
    flat = len(recipe.tiling.window) == 2
    _, window = _cut(x[:, middle[0]], middle[1:], recipe) if flat else _cut(x, middle, recipe)
    turns: list[tuple[int, ...]] = [(), (1,), (2,), (1, 2)]
    return [np.ascontiguousarray(np.flip(window, axes)) if axes else window for axes in turns]
