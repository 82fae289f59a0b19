"""The cases that each fold was validated on, as its own evaluation in the model folder lists them.

Source: MIC-DKFZ/nnUNet: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py (perform_actual_validation) and v1's
network_training/nnUNetTrainer.py (validate).
"""

from __future__ import annotations

from typing import Any

from segship.errors import SourceError
from segship.families.nnunet_folder import ModelFolder, read_json

PLACES = ("validation", "validation_raw")
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".bmp", ".tiff", ".tif")


def validation_cases(model: ModelFolder) -> dict[str, list[str]]:
    """Fold -> ids, of the folds that hold such a list. A damaged one is as good as none: nothing depends on it."""
    found = {}
    for fold in model.folds:
        for place in PLACES:
            file = model.fold_folder(fold) / place / "summary.json"
            try:
                ids = _ids(read_json(file)) if file.is_file() else []
            except (SourceError, KeyError, TypeError, AttributeError):
                continue
            if ids:
                found[fold] = ids
                break
    return found


def _ids(summary: dict[str, Any]) -> list[str]:
    if "metric_per_case" in summary:
        files = [entry["prediction_file"] for entry in summary["metric_per_case"]]
    else:
        files = [entry["test"] for entry in summary["results"]["all"]]
    return sorted({_stem(str(file)) for file in files})


def _stem(file: str) -> str:
    name = file.replace("\\", "/").rsplit("/", 1)[-1]
    return next((name[: -len(ending)] for ending in ENDINGS if name.lower().endswith(ending)), name)
