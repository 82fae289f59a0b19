"""Which files a folder run writes for one input, under which names, and the options that choose them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from segship.errors import UsageError
from segship.inference import writers
from segship.inference.prediction import GRIDS, Grid, Prediction, class_path
from segship.inference.predictor import Item

Format = Literal["png", "npz", "jpeg"]
ProbabilityFormat = Literal["none", "npz", "png"]
SUFFIX: dict[str, str] = {"png": ".png", "npz": ".npz", "jpeg": ".jpg"}


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What `predict_files` writes. Checked when built: raises UsageError for values that cannot work together."""

    batch: int | None = None
    """pictures per inference; None: as the predictor was opened"""
    grid: Grid = "input"
    """'input': masks of each picture's own size; 'network': of the network's output size"""
    format: Format = "png"
    """'jpeg' is a compatibility form: ``<class>/<name>.jpg``, probability x 255 truncated, network size, lossy"""
    palette: bool = False
    """one indexed PNG with the manifest's colours instead of 0/255"""
    probabilities: ProbabilityFormat = "none"
    """'npz': float32 values; 'png': 8 bits for looking at; in ``probabilities/``"""
    overlay: bool = False
    """the picture with its masks tinted and outlined, in ``overlays/``"""
    instances: bool = False
    """connected components numbered 1, 2, 3 …, in ``instances/``"""
    stages: Path | None = None
    """a folder for what stands between the stages, one npz an input with the keys of `Predictor.trace`"""
    raw: bool = False
    """stages as float32 files without header: ``<name>.bin`` (network input), ``<name>_0.bin`` (first output) …"""
    num_parts: int = 1
    part_id: int = 0
    """do only every ``num_parts``-th input, beginning with number ``part_id`` (from 0): for clusters"""
    resume: bool = True
    """skip inputs whose outputs are there and were made from the same file by the same package and options"""

    def __post_init__(self) -> None:
        if self.grid not in GRIDS:
            raise UsageError(f"grid is one of {', '.join(GRIDS)}, not {self.grid!r}")
        if self.format not in get_args(Format):
            raise UsageError(f"format is one of {', '.join(get_args(Format))}, not {self.format!r}")
        if self.probabilities not in get_args(ProbabilityFormat):
            raise UsageError(
                f"probabilities is one of {', '.join(get_args(ProbabilityFormat))}, not {self.probabilities!r}"
            )
        if self.num_parts < 1 or not 0 <= self.part_id < self.num_parts:
            raise UsageError(f"part_id counts from 0 to num_parts - 1, got part {self.part_id} of {self.num_parts}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"batch is at least 1, got {self.batch}")
        if self.raw and self.stages is None:
            raise UsageError("raw is the form of the saved stages; give a folder for them too (--save-stages DIR)")
        if self.palette and self.format != "png":
            raise UsageError(f"palette is a form of PNG and does not go with format {self.format}")

    def content(self) -> dict[str, object]:
        """The options that decide what the files hold."""
        return {
            "grid": self.grid,
            "format": self.format,
            "palette": self.palette,
            "probabilities": self.probabilities,
            "overlay": self.overlay,
            "instances": self.instances,
            "stages": None if self.stages is None else str(self.stages),
            "raw": self.raw,
        }


def output_names(inputs: Sequence[Path]) -> list[str]:
    """Names for the inputs' results, without suffix: unlike each other also where case does not count.

    The stem, where all stems differ. Else the path below the inputs' common folder; and where two files of a folder
    differ in their suffix alone, that suffix becomes part of the name (``cell_jpg``).
    """
    stems = [path.stem for path in inputs]
    if _all_unlike(stems):
        return stems
    absolute = [Path(os.path.abspath(path)) for path in inputs]
    common = Path(os.path.commonpath([path.parent for path in absolute]))
    names = [path.relative_to(common).with_suffix("").as_posix() for path in absolute]
    often = Counter(name.casefold() for name in names)
    names = [
        name if often[name.casefold()] == 1 else f"{name}_{path.suffix.lstrip('.')}"
        for name, path in zip(names, absolute, strict=True)
    ]
    if not _all_unlike(names):
        raise UsageError("two inputs would be written under the same name; give them in separate runs")
    return names


def _all_unlike(names: Sequence[str]) -> bool:
    return len({name.casefold() for name in names}) == len(names)


def write_case(found: Prediction, item: Item, name: str, output: Path, options: PredictOptions) -> list[Path]:
    """Write all that ``options`` ask for of one prediction; returns the files. Raises OutputError."""
    written = _write_decision(found, name, output, options)
    if options.probabilities == "npz" and options.format != "npz":
        path = output / "probabilities" / f"{name}.npz"
        written.append(writers.write_npz(path, {"probabilities": found.probabilities}))
    elif options.probabilities == "png":
        path = output / "probabilities" / f"{name}.png"
        maps = found.probabilities
        for k, values in enumerate(maps):
            written.append(writers.write_probability_png(path if len(maps) == 1 else class_path(path, k), values))
    if options.overlay:
        written.append(writers.write_png(output / "overlays" / f"{name}.png", found.overlay()))
    if options.instances:
        written += _write_instances(found, output / "instances" / f"{name}.png")
    if options.stages is not None:
        written += _write_stages(found, item, name, options.stages, options.raw)
    return written


def _write_decision(found: Prediction, name: str, output: Path, options: PredictOptions) -> list[Path]:
    if options.format == "jpeg":
        path = output / f"{name}{SUFFIX[options.format]}"
        maps = found.on_grid("network").probabilities
        # truncated, not rounded: 4uiiurz1/pytorch-nested-unet, val.py
        return [
            writers.write_jpeg(class_path(path, k), (values * 255).astype(np.uint8)) for k, values in enumerate(maps)
        ]
    path = output / f"{name}{SUFFIX[options.format]}"
    return found.save(path, palette=options.palette, probabilities=options.probabilities == "npz")


def _write_instances(found: Prediction, path: Path) -> list[Path]:
    numbered = found.instances()
    if numbered.dtype != np.uint16:  # more than 65535 components: beyond a PNG
        return [writers.write_npz(path.with_suffix(".npz"), {"instances": numbered})]
    if numbered.ndim == 2:
        return [writers.write_label_png(path, numbered)]
    return [writers.write_label_png(class_path(path, k), one) for k, one in enumerate(numbered)]


def _write_stages(found: Prediction, item: Item, name: str, folder: Path, raw: bool) -> list[Path]:
    assert item.x is not None
    if raw:
        written = [writers.write_raw(folder / f"{name}.bin", item.x)]
        for index, array in enumerate(found.outputs):
            written.append(writers.write_raw(folder / f"{name}_{index}.bin", array))
        return written
    assert item.image is not None
    arrays = {"read": item.image.pixels, "preprocessed": item.x, "network": found.outputs[0], "decoded": found.decoded}
    arrays |= {f"network_{index}": array for index, array in enumerate(found.outputs) if index}
    return [writers.write_npz(folder / f"{name}.npz", arrays)]


def keeps_pictures(options: PredictOptions) -> bool:
    return options.overlay or (options.stages is not None and not options.raw)
