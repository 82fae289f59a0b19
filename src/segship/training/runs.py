"""The folder of a training run: config.yml, log.csv, model.pth, the state to resume from.

config.yml, log.csv and model.pth are what 4uiiurz1/pytorch-nested-unet writes; segship.yml holds our further
options, validation.csv both validation IoUs by name, result.json the end of the run. Every file is written under a
temporary name and renamed, so a killed run leaves whole files.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml

from segship.errors import OutputError, SourceError, UsageError
from segship.inference.writers import write_bytes
from segship.package import replacing
from segship.training.options import RESUMABLE, UPSTREAM_FIELDS, UnetPlusPlusOptions

LOG_HEADER = ("epoch", "lr", "loss", "iou", "val_loss", "val_iou")
"""upstream's columns; both IoUs are pooled over batches, as upstream's are"""
VALIDATION_HEADER = ("epoch", "val_loss", "validation iou", "validation iou-batch16")
MODEL, STATE, CONFIG, EXTRA = "model.pth", "state.pt", "config.yml", "segship.yml"
LOG, VALIDATION, RESULT = "log.csv", "validation.csv", "result.json"


def config_text(options: UnetPlusPlusOptions) -> str:
    """Upstream's config.yml for these options, byte for byte."""
    values = {name: getattr(options, name) for name in UPSTREAM_FIELDS} | {"name": options.run_name}
    return str(yaml.safe_dump(values, default_flow_style=False))


def extra_text(options: UnetPlusPlusOptions) -> str:
    """segship.yml: every option that upstream does not know and that belongs to the run, not to this machine."""
    names = [entry.name for entry in fields(options) if entry.name not in {*UPSTREAM_FIELDS, *RESUMABLE}]
    return str(yaml.safe_dump({name: plain(getattr(options, name)) for name in names}, default_flow_style=False))


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """(known options, names of unknown keys) of a config.yml, upstream's or ours.

    The known ones can be given to ``UnetPlusPlusOptions``. Raises SourceError for a file that is no mapping.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SourceError(f"{path} cannot be read as YAML ({error}); give the options by hand instead") from error
    if not isinstance(loaded, dict):
        raise SourceError(f"{path} is not a mapping of options; expected upstream's config.yml")
    known = {key: value for key, value in loaded.items() if key in UPSTREAM_FIELDS}
    return known, sorted(str(key) for key in loaded.keys() - known.keys())


def start_folder(folder: Path, options: UnetPlusPlusOptions) -> None:
    """Create the run's folder and write its options; refuse one that already holds a run."""
    if (folder / STATE).exists() or (folder / MODEL).exists():
        raise UsageError(f"{folder} already holds a run; go on with --resume, or choose another --name or --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the run's folder {folder} cannot be made ({error}); choose another --output") from error
    write_bytes(folder / CONFIG, config_text(options).encode())
    write_bytes(folder / EXTRA, extra_text(options).encode())


def options_record(options: Any, free: Collection[str] = RESUMABLE) -> dict[str, Any]:
    """The options (a dataclass) that decide a run's numbers, as plain values, for the state file: all but the ``free``."""
    return {entry.name: plain(getattr(options, entry.name)) for entry in fields(options) if entry.name not in free}


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """torch.save, atomically. OutputError where the disk is full or the folder read-only."""
    try:
        with replacing(path) as temporary:
            torch.save(state, temporary)
    except (OutputError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        raise OutputError(f"{path} cannot be written ({error}); free some space and use --resume") from error


def load_state(path: Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an interrupted run; UsageError where its options differ from ``now``, their record at present."""
    if not path.is_file():
        raise UsageError(f"there is nothing to resume: {path} does not exist; start without --resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        then = state["options"]
    except Exception as error:  # torch raises many kinds for a broken file
        raise SourceError(f"{path} is no state of a run ({error}); start again without --resume") from error
    differing = sorted(name for name in now if then.get(name) != now[name])
    if differing:
        pairs = ", ".join(f"{name} was {then.get(name)!r}, is {now[name]!r}" for name in differing)
        raise UsageError(f"the run in {path.parent} was started with other options: {pairs}; give the same ones")
    return state


def write_log(path: Path, rows: Sequence[Mapping[str, Any]], header: Sequence[str] = LOG_HEADER) -> None:
    """Rewrite the whole table, as upstream does after each epoch. A missing value is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
