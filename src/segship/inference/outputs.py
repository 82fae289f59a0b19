"""Which files a folder run writes for one input, under which names, and the options that choose them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from segship.errors import UsageError
from segship.inference import matting, writers
from segship.inference.cutout import check, draw
from segship.inference.items import Item
from segship.inference.journal import relative
from segship.inference.options import OutputOptions
from segship.inference.prediction import GRIDS, Grid, Prediction, class_path
from segship.manifest import Recipe, Saliency, Threshold

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
    output: OutputOptions = field(default_factory=OutputOptions)
    """the one image a case has: its mask, cutout or composite, and how it is made"""
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
        plain = self.output.kind == "mask" and not self.output.rgb_mask and not self.output.matting
        if not plain and (self.format != "png" or self.palette):
            form = "palette" if self.palette else f"format {self.format}"
            raise UsageError(
                f"{form} is a form of plain masks; leave it out for cutouts, composites, matting, rgb masks"
            )
        if self.output.needs_picture and self.grid == "network":
            raise UsageError("cutouts, composites and matting lie on the picture's own grid; leave out grid network")

    def check(self, recipe: Recipe) -> None:
        """Raise UsageError now for what would fail on every picture: a package it does not suit, a missing library."""
        check(recipe, self.output)
        if self.overlay:
            check(recipe, replace(self.output, kind="overlay"))
        decision = recipe.decode.decision
        undecided = isinstance(decision, Saliency) and decision.threshold is None and self.output.threshold is None
        if undecided and (self.instances or self.palette):
            raise UsageError("a saliency map is no decision; give a threshold too, --threshold 0.5 for example")
        if self.output.rgb_mask and self.output.kind == "mask" and _several(recipe):
            raise UsageError("rgb_mask is for packages of one mask; this one writes a mask for each of its classes")
        if self.output.kind == "composite":
            _ = self.output.backdrop
        if self.output.estimates_alpha:
            matting.require()

    def content(self) -> dict[str, object]:
        """The options that decide what the files hold."""
        return {
            "grid": self.grid,
            "format": self.format,
            "palette": self.palette,
            "probabilities": self.probabilities,
            "overlay": self.overlay,
            "instances": self.instances,
            "output": self.output.content(),
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


def file_names(name: str, output: Path, options: PredictOptions, recipe: Recipe) -> list[str]:
    """Every file that `write_case` may write for one input, relative to ``output``; some are of other kinds of answers."""
    channels = recipe.network.outputs[0].channels
    classes = range(channels if channels > 1 or options.format == "jpeg" else 0)
    places = [("", SUFFIX[options.format])]
    if options.probabilities != "none":
        places.append(("probabilities/", f".{options.probabilities}"))
    if options.overlay:
        places.append(("overlays/", ".png"))
    if options.instances:
        places += [("instances/", ".png"), ("instances/", ".npz")]
    if options.stages is not None:
        stages = f"{relative(options.stages, output)}/"
        raw = [".bin", *(f"_{index}.bin" for index in range(len(recipe.network.outputs)))]
        places += [(stages, suffix) for suffix in (raw if options.raw else [".npz"])]
    head, slash, stem = name.rpartition("/")
    within = [head + slash, *(f"{head}{slash}{k}/" for k in classes)]  # as `class_path`
    return [f"{place}{folder}{stem}{suffix}" for place, suffix in places for folder in within]


def _all_unlike(names: Sequence[str]) -> bool:
    return len({name.casefold() for name in names}) == len(names)


def _several(recipe: Recipe) -> bool:
    """Whether a case has one mask file for each class."""
    return isinstance(recipe.decode.decision, Threshold) and recipe.network.outputs[0].channels > 1


@dataclass(frozen=True, kw_only=True)
class Written:
    """The files of one case, and what the user should know about them."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]


def write_case(found: Prediction, item: Item, name: str, output: Path, options: PredictOptions) -> Written:
    """Write all that ``options`` ask for of one prediction. Raises OutputError."""
    found = found.decided(options.output)
    written, notes = _write_decision(found, name, output, options)
    if options.probabilities == "npz" and options.format != "npz":
        path = output / "probabilities" / f"{name}.npz"
        written.append(writers.write_npz(path, {"probabilities": found.probabilities}))
    elif options.probabilities == "png":
        path = output / "probabilities" / f"{name}.png"
        maps = found.probabilities
        for k, values in enumerate(maps):
            written.append(writers.write_probability_png(path if len(maps) == 1 else class_path(path, k), values))
    if options.overlay:
        drawn = draw(found, replace(options.output, kind="overlay"))
        written.append(writers.write_bytes(output / "overlays" / f"{name}.png", drawn.encode()))
    if options.instances:
        written += _write_instances(found, output / "instances" / f"{name}.png")
    if options.stages is not None:
        written += _write_stages(found, item, name, options.stages, options.raw)
    return Written(files=tuple(written), notes=notes)


def _write_decision(
    found: Prediction, name: str, output: Path, options: PredictOptions
) -> tuple[list[Path], tuple[str, ...]]:
    path = output / f"{name}{SUFFIX[options.format]}"
    if options.format == "jpeg":
        maps = found.on_grid("network").probabilities
        # truncated, not rounded: 4uiiurz1/pytorch-nested-unet, val.py
        levels = [(values * 255).astype(np.uint8) for values in maps]
        return [writers.write_jpeg(class_path(path, k), values) for k, values in enumerate(levels)], found.notes
    plain = options.output.kind == "mask" and not options.output.estimates_alpha
    if options.format == "npz" or options.palette or (plain and _several(found.recipe)):
        return found.save(path, palette=options.palette, probabilities=options.probabilities == "npz"), found.notes
    image = draw(found, options.output)
    return [writers.write_bytes(path, image.encode())], image.notes


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


def needs_scores(options: PredictOptions) -> bool:
    """Whether the files hold more of an answer than what was decided."""
    return options.format == "jpeg" or options.probabilities != "none" or options.stages is not None


def keeps_pictures(options: PredictOptions) -> bool:
    return options.overlay or options.output.needs_picture or (options.stages is not None and not options.raw)
