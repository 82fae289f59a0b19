"""nnU-Net's postprocessing files as rules of the manifest.

v2 keeps the chosen functions in postprocessing.pkl, with a readable twin in JSON; the only function there is keeps the
largest component of a set of labels (full connectivity). v1's postprocessing.json names classes or joint regions and
minimum sizes in cubic millimetres (face connectivity). Source: MIC-DKFZ/nnUNet:
nnunetv2/postprocessing/remove_connected_components.py; tag v1.7.1: nnunet/postprocessing/connected_components.py.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segship.errors import SourceError
from segship.families.checkpoint import restricted_load
from segship.families.nnunet_folder import ModelFolder, read_json
from segship.manifest import KeepLargest

_FUNCTION = "remove_all_but_largest_component_from_segmentation"
_MODULE = "nnunetv2.postprocessing.remove_connected_components"


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    file: str
    rules: tuple[KeepLargest, ...]


def find_postprocessing(model: ModelFolder, file: Path | None = None) -> Postprocessing | None:
    """What ``file`` or the folder says, or None. SourceError for a file that says something else."""
    chosen = file or _beside(model)
    if chosen is None:
        return None
    if not chosen.is_file():
        raise SourceError(f"{chosen} does not exist; --postprocessing takes auto, none or a file")
    if chosen.suffix == ".pkl":
        functions, arguments = _read_pickle(chosen)
        return Postprocessing(file=chosen.name, rules=_v2_rules(functions, arguments, chosen))
    content = read_json(chosen)
    if "for_which_classes" in content:
        return Postprocessing(file=chosen.name, rules=_v1_rules(content, chosen))
    if "postprocessing_fns" in content:
        functions = [str(name) for name in content["postprocessing_fns"]]
        return Postprocessing(
            file=chosen.name, rules=_v2_rules(functions, content.get("postprocessing_kwargs", []), chosen)
        )
    raise SourceError(f"{chosen} has neither 'for_which_classes' (v1) nor 'postprocessing_fns' (v2)")


def _beside(model: ModelFolder) -> Path | None:
    if model.version == 1:
        file = model.path / "postprocessing.json"
        return file if file.is_file() else None
    name = f"crossval_results_folds_{'_'.join(model.folds)}"
    found = [model.path / name / f"postprocessing.{suffix}" for suffix in ("json", "pkl")]
    return next((file for file in found if file.is_file()), None)


def _read_pickle(path: Path) -> tuple[list[str], Sequence[Any]]:
    loaded = restricted_load(path, markers={f"{_MODULE}.{_FUNCTION}": _FUNCTION})
    if not isinstance(loaded, Sequence) or len(loaded) != 2:
        raise SourceError(f"{path} is not (functions, arguments), which nnU-Net v2 writes")
    return [str(function) for function in loaded[0]], loaded[1]


def _v2_rules(functions: Sequence[str], arguments: Sequence[Any], path: Path) -> tuple[KeepLargest, ...]:
    rules = []
    for function, given in zip(functions, arguments, strict=True):
        if not function.endswith(_FUNCTION):
            raise SourceError(f"{path}: postprocessing function '{function}' is unknown; nnU-Net has {_FUNCTION} only")
        if int(given.get("background_label", 0)) != 0:
            raise SourceError(f"{path}: background_label is {given['background_label']}; only 0 is background")
        labels = _labels(given.get("labels_or_regions", given.get("labels")), path)
        rules.append(KeepLargest(labels=labels, joint=True, connectivity="full"))
    return tuple(rules)


def _v1_rules(content: Mapping[str, Any], path: Path) -> tuple[KeepLargest, ...]:
    least = content.get("min_valid_object_sizes")
    try:
        sizes = ast.literal_eval(least) if isinstance(least, str) else least
    except (ValueError, SyntaxError):
        raise SourceError(f"{path}: min_valid_object_sizes is no Python literal: {str(least)[:60]}") from None
    rules = []
    for entry in content["for_which_classes"] or ():
        labels = _labels(entry, path)
        key = labels if len(labels) > 1 else labels[0]
        minimum = None if not isinstance(sizes, Mapping) else sizes.get(key, sizes.get(str(key)))
        rules.append(
            KeepLargest(
                labels=labels, joint=True, minimum_mm3=None if minimum is None else float(minimum), connectivity="face"
            )
        )
    return tuple(rules)


def _labels(given: Any, path: Path) -> tuple[int, ...]:
    values = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    flat = [v for value in values for v in (value if isinstance(value, Sequence) else [value])]
    try:
        return tuple(int(v) for v in flat)
    except (TypeError, ValueError):
        raise SourceError(f"{path}: {given!r} names no labels") from None
