"""`segship prepare kits19 --synthetic N`: a small labelled set that looks like KiTS19's, for trying everything at once.

Each case is a drawn abdomen: body, fat, spine, liver, spleen and vessels as distractions, two kidneys with a notch, and
one to three tumours that grow out of them, darker than the kidney and partly dead inside; blurred, with CT-like noise,
in Hounsfield units, at a spacing of its own, stored as the published files are (I,P,L). Nothing of it is a patient's.
The same seed gives the same files.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.datasets.kits19_steps import SPACING
from segship.errors import OutputError, UsageError
from segship.inference.writers import write_bytes
from segship.package import dump_json

Progress = Callable[[int, int, str], None]
Mask = NDArray[np.bool_]
MARK = "synthetic.json"
SIZE = 128
LEAST_SIZE = 32
MOST_CASES = 210
"""ids beyond are not in the published split"""
FULL_SIZE = 128
"""at this size kidneys and tumours have their natural extent; in smaller cases they shrink with it"""


def make_kits19(
    root: Path | str, cases: int, *, size: int = SIZE, seed: int = 0, progress: Progress | None = None
) -> list[str]:
    """Write ``cases`` cases under ``root`` in the published layout; returns their ids, case_00000 and on.

    ``size``: how many voxels a side has at least once it is prepared (1.6 × 1.2 × 1.2 mm each), up to a seventh more.
    Raises UsageError for numbers that mean nothing, OutputError for a folder that holds other cases or cannot be
    written.
    """
    root = Path(root)
    if not 1 <= cases <= MOST_CASES or size < LEAST_SIZE or seed < 0:
        raise UsageError(
            f"--synthetic makes 1 to {MOST_CASES} cases of at least {LEAST_SIZE} voxels a side, with a seed from 0 on"
        )
    if any(root.glob("case_*")) and not (root / MARK).is_file():
        raise OutputError(f"{root} holds cases that were not made here; name another folder for the synthetic ones")
    ids = [f"case_{number:05d}" for number in range(cases)]
    about = {"about": "drawn by segship, not patients", "cases": cases, "size": size, "seed": seed}
    write_bytes(root / MARK, dump_json(about))
    for number, name in enumerate(ids):
        image, labels, spacing = drawn_case(np.random.default_rng([seed, number]), size)
        write_bytes(root / name / "imaging.nii.gz", _nifti(image, spacing))
        write_bytes(root / name / "segmentation.nii.gz", _nifti(labels, spacing))
        if progress is not None:
            progress(number + 1, cases, name)
    return ids


def _nifti(array: NDArray[np.generic], spacing: tuple[float, ...]) -> bytes:
    """A .nii.gz of an array whose axes run down, to the back and to the left; equal input gives equal bytes."""
    import nibabel

    slices, rows, columns = spacing
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = -slices, -rows, -columns, 1
    image: Any = nibabel.Nifti1Image(array, affine)
    image.header.set_zooms(spacing)
    return gzip.compress(image.to_bytes(), 6, mtime=0)


# ------------------------------------------------------------------------------------------------ drawing


@dataclass(frozen=True, kw_only=True)
class _Space:
    """Where the voxels lie, in millimetres from the middle: one line an axis."""

    lines: tuple[NDArray[np.float32], ...]
    half: tuple[float, float, float]
    """half the extent of each axis"""
    scale: float
    """of organs: 1 where there is room for them as they are"""

    def ellipsoid(self, centre: Any, radii: Any) -> Mask:
        parts = [((line - c) / r) ** 2 for line, c, r in zip(self.lines, centre, radii, strict=True)]
        return parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None, :] <= 1

    def tube(self, centre: tuple[float, float], radius: float) -> Mask:
        """Along the first axis."""
        parts = [((line - c) / radius) ** 2 for line, c in zip(self.lines[1:], centre, strict=True)]
        plane = parts[0][:, None] + parts[1][None, :] <= 1
        return np.broadcast_to(plane, tuple(len(line) for line in self.lines))


def drawn_case(
    rng: np.random.Generator, size: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8], tuple[float, float, float]]:
    """(CT numbers, labels, spacing in mm) of one case; axes down, back, left."""
    space, spacing = _space(rng, size)
    ct, labels = _body(space, rng)
    for side in (-1.0, 1.0):
        _kidney(space, rng, side, ct, labels)
    for number in range(int(rng.integers(1, 4))):
        _tumour(space, rng, ct, labels, first=number == 0)
    return _scanned(ct, spacing, rng), labels, spacing


def _space(rng: np.random.Generator, size: int) -> tuple[_Space, tuple[float, float, float]]:
    in_plane = float(rng.uniform(0.75, 1.1))
    spacing = tuple(float(np.float32(mm)) for mm in (rng.uniform(1.4, 3.2), in_plane, in_plane))
    lines, half = [], []
    for mm, target in zip(spacing, SPACING, strict=True):
        # one more than needed, as the prepared side is truncated
        count = int(np.ceil(size * rng.uniform(1.0, 1.12) * target / mm)) + 1
        lines.append(((np.arange(count) - (count - 1) / 2) * mm).astype(np.float32))
        half.append(count * mm / 2)
    space = _Space(lines=tuple(lines), half=(half[0], half[1], half[2]), scale=min(1.0, size / FULL_SIZE))
    return space, (spacing[0], spacing[1], spacing[2])


def _body(space: _Space, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Everything but the kidneys, painted from outside in."""
    down, back, left = space.half
    s = space.scale
    shape = tuple(len(line) for line in space.lines)
    ct = np.full(shape, -1000, np.float32)
    wide = (9 * down, 0.97 * back, 0.97 * left)
    ct[space.ellipsoid((0, 0, 0), wide)] = -100
    ct[space.ellipsoid((0, 0, 0), (9 * down, 0.88 * back, 0.88 * left))] = 45
    ct[space.ellipsoid((-0.55 * down, -0.15 * back, -0.45 * left), (0.5 * down, 0.5 * back, 0.38 * left))] = (
        rng.uniform(95, 120)
    )
    ct[space.ellipsoid((-0.6 * down, 0.2 * back, 0.5 * left), (0.32 * down, 0.28 * back, 0.24 * left))] = rng.uniform(
        100, 135
    )
    ct[space.tube((0.62 * back, 0.0), 17 * s)] = rng.uniform(180, 350)
    ct[space.tube((0.3 * back, 0.06 * left), 9 * s)] = rng.uniform(150, 210)
    ct[space.tube((0.3 * back, -0.12 * left), 9 * s)] = rng.uniform(120, 160)
    return ct, np.zeros(shape, np.uint8)


def _kidney(
    space: _Space, rng: np.random.Generator, side: float, ct: NDArray[np.float32], labels: NDArray[np.uint8]
) -> None:
    down, back, left = space.half
    centre = np.array([0.12 * down, 0.34 * back, side * 0.5 * left]) + rng.uniform(-5, 5, 3) * space.scale
    radii = np.array([48, 25, 25]) * rng.uniform(0.85, 1.1, 3) * space.scale
    around = space.ellipsoid(centre, radii + 9 * space.scale)
    ct[around & (ct > -200)] = -90  # the fat that a kidney lies in
    notch = centre - np.array([0, 0.3 * radii[1], side * radii[2]])
    organ = space.ellipsoid(centre, radii) & ~space.ellipsoid(notch, radii * (0.45, 0.7, 0.6))
    ct[organ] = rng.uniform(150, 200)
    labels[organ] = 1


def _tumour(
    space: _Space, rng: np.random.Generator, ct: NDArray[np.float32], labels: NDArray[np.uint8], *, first: bool
) -> None:
    """A ball around a voxel of kidney, with a dead core; later ones are smaller."""
    kidney = np.flatnonzero(labels == 1)
    if not len(kidney):
        return
    place = np.unravel_index(int(rng.choice(kidney)), labels.shape)
    centre = np.array([line[i] for line, i in zip(space.lines, place, strict=True)])
    radius = (rng.uniform(18, 28) if first else rng.uniform(10, 15)) * space.scale
    radii = radius * rng.uniform(0.85, 1.15, 3)
    ball = space.ellipsoid(centre, radii) & (ct > -200)
    ct[ball] = rng.uniform(60, 100)
    if first:
        ct[space.ellipsoid(centre + rng.uniform(-0.2, 0.2, 3) * radius, radii * 0.45) & ball] = rng.uniform(15, 40)
    labels[ball] = 2


def _scanned(
    ct: NDArray[np.float32], spacing: tuple[float, float, float], rng: np.random.Generator
) -> NDArray[np.int16]:
    """Blurred by about a millimetre, with noise that is smooth in the plane, in whole Hounsfield units."""
    from scipy import ndimage

    blurred = ndimage.gaussian_filter(ct, [1.0 / mm for mm in spacing], output=np.float32)
    noise = rng.standard_normal(ct.shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, (0.0, 0.7, 0.7), output=np.float32)
    return np.clip(np.rint(blurred + noise * (15 / float(noise.std()))), -1024, 3071).astype(np.int16)
