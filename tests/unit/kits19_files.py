"""Small KiTS19-like cases for tests: random numbers as CT, two boxes as kidney and tumour."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

IPL = np.array([[0, 0, -0.9, 5], [0, -1.1, 0, 7], [-2.0, 0, 0, 9], [0, 0, 0, 1.0]])


def write_case(
    folder: Path,
    shape: tuple[int, int, int] = (20, 24, 22),
    spacing: tuple[float, float, float] = (2.0, 1.1, 0.9),
    *,
    seed: int = 0,
    affine: np.ndarray | None = None,
    label_type: str = "u1",
) -> tuple[np.ndarray, np.ndarray]:
    """imaging.nii.gz and segmentation.nii.gz in ``folder``; returns both arrays as stored."""
    rng = np.random.default_rng(seed)
    image = rng.integers(-200, 400, shape).astype(np.int16)
    labels = np.zeros(shape, label_type)
    a, b, c = (n // 4 for n in shape)
    labels[a : 3 * a, b : 2 * b + 2, c : 3 * c] = 1
    labels[a : 2 * a, b : b + 4, c : 2 * c] = 2
    if affine is None:
        affine = IPL.copy()
        affine[[2, 1, 0], [0, 1, 2]] = [-mm for mm in spacing]
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("imaging", image), ("segmentation", labels)):
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    return image, labels
