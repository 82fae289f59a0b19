"""Verbs of the command line that need more than one call, as functions: predict, inspect, prepare, train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segship.errors import EngineMissing, UsageError
from segship.inference.predictor import Predictor
from segship.package import Package, open_package

if TYPE_CHECKING:
    from segship.datasets.cityscapes_prepare import CityscapesPreparation
    from segship.datasets.dsb2018 import Preparation
    from segship.datasets.kits19_prepare import Preparation as KitsPreparation
    from segship.inference.batch import PredictSummary
    from segship.inference.outputs import PredictOptions
    from segship.inference.volume_batch import CaseOptions
    from segship.training.unet3d_mlperf import Unet3dResult
    from segship.training.unetplusplus import TrainingResult

Progress = Callable[[int, int, str], None]

TRAINERS = {
    "unetplusplus": "UNet++ and U-Net on 2D images (needs segship[train])",
    "unet3d_mlperf": "the MLPerf 3D U-Net on KiTS19 (needs segship[train])",
}
DATA_SETS = ("dsb2018", "cityscapes", "kits19")
BATCH = 8
"""images per inference where the options leave it open"""


def predict(
    package: Package | Path | str,
    inputs: Path | str | Sequence[Path | str],
    output: Path | str,
    options: PredictOptions | CaseOptions | None = None,
    *,
    precision: str = "fp32",
    progress: Progress | None = None,
    **engine: Any,
) -> PredictSummary:
    """Files, folders or patterns into a folder of results: `inference.batch.predict_files` with a predictor of its own.

    Of a package that takes volumes, folders and files of cases into label files: `volume_batch.predict_cases` with
    `CaseOptions`. ``engine``: engine, device, threads, streams, cache_dir and limits, as `segship.load` takes them. Raises what
    opening raises, UsageError for inputs that are not there, OutputError where nothing can be written; a broken
    input is listed in the summary.
    """
    from segship.inference.batch import predict_files
    from segship.inference.images import find_inputs
    from segship.inference.outputs import PredictOptions
    from segship.inference.volume_batch import CaseOptions, predict_cases
    from segship.inference.volume_predictor import VolumePredictor

    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    opened = package if isinstance(package, Package) else open_package(package)
    if opened.manifest.input.kind == "volume":
        if options is not None and not isinstance(options, CaseOptions):
            raise UsageError("this package takes volumes; give CaseOptions (segship.inference.volume_batch)")
        with Predictor.open(opened, precision=precision, **engine) as cases:
            assert isinstance(cases, VolumePredictor)
            return predict_cases(cases, given, Path(output), options, progress)
    if isinstance(options, CaseOptions):
        raise UsageError("this package takes pictures; give PredictOptions (segship.inference.outputs)")
    options = options or PredictOptions()
    paths = find_inputs(given)
    with Predictor.open(opened, precision=precision, batch=options.batch or BATCH, **engine) as predictor:
        return predict_files(predictor, paths, Path(output), options, progress, named=given)


def inspect(package: Package | Path | str) -> dict[str, Any]:
    """What a package says of itself, as plain data. No engine is imported. Raises PackageError."""
    from segship.measure.inspect import describe

    return describe(package if isinstance(package, Package) else open_package(package))


def prepare(
    name: str,
    source: Path | str,
    out: Path | str | None = None,
    *,
    size: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Preparation | CityscapesPreparation | KitsPreparation:
    """Write the public data set ``name`` (DATA_SETS) in its world's own layout; dsb2018 with ``size`` × ``size`` pixels
    [96]. kits19 takes the options of `datasets.kits19_folder.prepare_folders`, and may do without ``out``.

    Raises UsageError for a data set that is not known, DatasetError for what cannot be read, OutputError.
    """
    if name not in DATA_SETS:
        raise UsageError(f"no data set is called '{name}'; there are: {', '.join(DATA_SETS)}")
    if name == "kits19":
        from segship.datasets.kits19_folder import prepare_folders

        if size is not None:
            options["size"] = size
        return prepare_folders(source, out, **options, progress=progress)
    if options:
        raise UsageError(f"'prepare {name}' has no option '{next(iter(options))}'; leave it out")
    if out is None:
        raise UsageError(f"name the folder to write: segship prepare {name} SOURCE OUT")
    if name == "cityscapes":
        from segship.datasets.cityscapes_prepare import prepare as prepare_cityscapes

        return prepare_cityscapes(source, out, progress=progress)
    size = 96 if size is None else size
    if size < 1:
        raise UsageError(f"the size must be positive, got {size}")
    from segship.datasets.dsb2018 import prepare as prepare_dsb2018

    return prepare_dsb2018(source, out, size=size, progress=progress)


def train(world: str, *, progress: bool = True, **options: Any) -> TrainingResult | Unet3dResult:
    """Train a network of ``world`` (see TRAINERS); ``options`` are the fields of ``training_options(world)``.

    Raises UsageError, DatasetError or OutputError with what to do, EngineMissing where torch is not installed.
    """
    kind = training_options(world)
    unknown = sorted(set(options) - {entry.name for entry in fields(kind)})
    if unknown:
        raise UsageError(f"training has no option '{unknown[0]}'; `segship train {world} --help` lists them")
    return _trainer(world)(kind(**options), progress=progress)


def _trainer(world: str) -> Callable[..., TrainingResult | Unet3dResult]:
    try:
        if world == "unet3d_mlperf":
            from segship.training.unet3d_mlperf import train_unet3d

            return train_unet3d
        from segship.training.unetplusplus import train_unetplusplus
    except ModuleNotFoundError as error:
        raise EngineMissing(f"training needs {error.name}; type: pip install 'segship[train]'") from None
    return train_unetplusplus


def training_options(world: str) -> type[Any]:
    """The options of a world's trainer, a dataclass; needs no torch. UsageError for a world that does not train here."""
    if world not in TRAINERS:
        raise UsageError(f"no world that trains here is called '{world}'; there are: {', '.join(TRAINERS)}")
    if world == "unet3d_mlperf":
        from segship.training.mlperf_options import Unet3dOptions

        return Unet3dOptions
    from segship.training.options import UnetPlusPlusOptions

    return UnetPlusPlusOptions
