"""Find an nnU-Net model folder in what the user named: a folder, one of its folds, a checkpoint in it, or a zip.

    v2  DatasetXXX_NAME/Trainer__Plans__configuration/{plans.json, dataset.json, fold_0/checkpoint_final.pth …}
    v1  configuration/TaskXXX_NAME/Trainer__Plans/{plans.pkl, fold_0/model_final_checkpoint.model(.pkl) …}

Source: MIC-DKFZ/nnUNet documentation/how_to_use_nnunet.md, nnunetv2/model_sharing/model_import.py.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Literal

from segship.errors import SourceError, SourceMissing, UsageError

MAX_JSON_BYTES = 64 << 20
MAX_ZIP_BYTES = 32 << 30
CHECKPOINTS = {2: "checkpoint_final.pth", 1: "model_final_checkpoint.model"}


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """One configuration's folder and the folds that are to be used."""

    version: Literal[1, 2]
    path: Path
    configuration: str
    trainer: str
    plans: str
    dataset: str
    folds: tuple[str, ...]
    """as folders are called without 'fold_': '0', '1', 'all'"""
    checkpoint: str

    def fold_folder(self, fold: str) -> Path:
        return self.path / ("all" if self.version == 1 and fold == "all" else f"fold_{fold}")

    def weights(self, fold: str) -> Path:
        return self.fold_folder(fold) / self.checkpoint


def looks_like(path: Path) -> bool:
    """Whether a path is, holds, or lies in an nnU-Net model folder; looks at names only."""
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name) for name in archive.namelist()]
        return any(name.name in ("plans.json", "plans.pkl") and "__" in name.parent.name for name in names)
    start = path.parent if path.is_file() else path
    return any(_is_model(folder) for folder in (start, start.parent)) or bool(path.is_dir() and _below(path))


@contextmanager
def opened(
    path: Path,
    *,
    configuration: str | None = None,
    folds: Sequence[str] | None = None,
    checkpoint: str | None = None,
) -> Iterator[ModelFolder]:
    """The model folder, unpacked for the time of the block where it came as a zip.

    ``folds`` None takes every numbered fold that has the checkpoint ('all' where there is nothing else). Raises
    SourceError saying what was looked for, UsageError where a choice is left open.
    """
    if _is_zip(path):
        with TemporaryDirectory(prefix="segship-") as place:
            _unpack(path, Path(place))
            yield _find(Path(place), path, configuration, folds, checkpoint)
    else:
        yield _find(path, path, configuration, folds, checkpoint)


def _find(
    path: Path, given: Path, configuration: str | None, folds: Sequence[str] | None, checkpoint: str | None
) -> ModelFolder:
    if not path.exists():
        raise SourceMissing(f"{given} does not exist; give an nnU-Net model folder, its zip, or one of its folds")
    start = path.parent if path.is_file() else path
    if path.is_file():
        checkpoint = checkpoint or path.name
    if _is_fold(start) and _is_model(start.parent):
        folds = folds or [start.name.removeprefix("fold_")]
        start = start.parent
    candidates = [start] if _is_model(start) else _below(start)
    if configuration is not None:
        candidates = [folder for folder in candidates if _about(folder)[0] == configuration]
    if not candidates:
        wanted = f" of configuration '{configuration}'" if configuration else ""
        raise SourceError(
            f"{given} holds no nnU-Net model{wanted}: looked for plans.json (v2) or plans.pkl (v1) in a folder called "
            "Trainer__Plans__configuration"
        )
    if len(candidates) > 1:
        names = ", ".join(sorted(f"{_about(folder)[0]} ({folder.name})" for folder in candidates))
        raise UsageError(f"{given} holds several models: {names}; choose one with --configuration, or name its folder")
    return _described(candidates[0], folds, checkpoint)


def _described(folder: Path, folds: Sequence[str] | None, checkpoint: str | None) -> ModelFolder:
    configuration, trainer, plans, dataset = _about(folder)
    version: Literal[1, 2] = 2 if (folder / "plans.json").is_file() else 1
    name = _checkpoint_name(checkpoint, version)
    model = ModelFolder(
        version=version, path=folder, configuration=configuration, trainer=trainer, plans=plans, dataset=dataset,
        folds=(), checkpoint=name,
    )  # fmt: skip
    there = _folds_with(model)
    if not there:
        raise SourceError(
            f"{folder.name} has no fold with {name}; found {_names_below(folder)}; --checkpoint names another"
        )
    wanted = tuple(folds) if folds else tuple(f for f in there if f != "all") or ("all",)
    missing = [fold for fold in wanted if fold not in there]
    if missing:
        raise SourceError(f"{folder.name} has no {name} in fold {', '.join(missing)}; there is: {', '.join(there)}")
    return ModelFolder(**{**model.__dict__, "folds": wanted})


def _checkpoint_name(given: str | None, version: int) -> str:
    if given is None:
        return CHECKPOINTS[version]
    if "/" in given or "\\" in given:
        raise UsageError(f"--checkpoint takes a file name such as {CHECKPOINTS[version]}, not '{given}'")
    if version == 2:
        return given if given.endswith(".pth") else f"checkpoint_{given}.pth"
    name = given.removesuffix(".pkl")
    if name.endswith(".model"):
        return name
    return f"model_{name}_checkpoint.model" if name == "final" else f"model_{name}.model"


def _folds_with(model: ModelFolder) -> list[str]:
    names = [f.name.removeprefix("fold_") for f in sorted(model.path.iterdir()) if _is_fold(f)]
    return [name for name in names if model.weights(name).is_file()]


def _names_below(folder: Path) -> str:
    found = sorted(str(p.relative_to(folder)) for p in folder.glob("*/*") if p.suffix in (".pth", ".model"))
    return ", ".join(found[:6]) or "no checkpoint at all"


def _is_zip(path: Path) -> bool:
    """A zip of folders; PyTorch's own files are zips too, by other names."""
    return path.suffix.lower() == ".zip" and path.is_file() and zipfile.is_zipfile(path)


def _is_fold(folder: Path) -> bool:
    return folder.is_dir() and bool(re.fullmatch(r"fold_(\d+|all)|all", folder.name))


def _is_model(folder: Path) -> bool:
    return folder.is_dir() and ((folder / "plans.json").is_file() or (folder / "plans.pkl").is_file())


def _below(folder: Path) -> list[Path]:
    """Model folders up to three levels down: data set / configuration, as zips and result folders have them."""
    found = [p.parent for pattern in ("*", "*/*", "*/*/*") for p in folder.glob(f"{pattern}/plans.*")]
    return sorted({p for p in found if _is_model(p) and "__" in p.name})


def _about(folder: Path) -> tuple[str, str, str, str]:
    """(configuration, trainer, plans, data set) from the folder's name and those above it."""
    parts = folder.name.split("__")
    if (folder / "plans.json").is_file():
        if len(parts) == 3:
            return parts[2], parts[0], parts[1], folder.parent.name
        raise SourceError(
            f"{folder} has plans.json but is not called Trainer__Plans__configuration, so its configuration is unknown; "
            "rename it as nnU-Net had it"
        )
    grand = folder.parent.parent.name
    configuration = grand if grand in ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres") else ""
    return configuration, parts[0], parts[1] if len(parts) > 1 else "nnUNetPlansv2.1", folder.parent.name


# ---------------------------------------------------------------------------------------------- reading files


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, its keys in the file's order. SourceError for anything else."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise SourceError(f"{path} has more than {MAX_JSON_BYTES >> 20} MiB; no plans file is that large")
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path.parent} lacks {path.name}; copy the whole model folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} is no readable JSON ({str(error).splitlines()[0]}); copy it again") from None
    if not isinstance(loaded, Mapping):
        raise SourceError(f"{path} is no JSON object; copy the model folder again")
    return dict(loaded)


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unpack(path: Path, place: Path) -> None:
    """Every regular file of the zip below ``place``; names that lead elsewhere are refused before anything is written."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            for info in members:
                _check_member(path, info)
            if sum(info.file_size for info in members) > MAX_ZIP_BYTES:
                raise SourceError(f"{path} would unpack to more than {MAX_ZIP_BYTES >> 30} GiB; do not use this file")
            for info in members:
                target = place.joinpath(*PurePosixPath(info.filename).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, target.open("wb") as out:
                    while block := source.read(1 << 20):
                        out.write(block)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, OSError) as error:
        raise SourceError(f"{path} cannot be unpacked ({error}); copy or download it again") from None


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    name = PurePosixPath(info.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in info.filename or ":" in info.filename:
        raise SourceError(f"{path}: the member '{info.filename}' would be written outside; do not use this file")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise SourceError(f"{path}: the member '{info.filename}' is a link; do not use this file")
    if info.file_size > 1000 * max(info.compress_size, 1) + (1 << 20):
        raise SourceError(f"{path}: '{info.filename}' would unpack to {info.file_size} bytes; do not use this file")
