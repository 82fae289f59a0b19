"""Ship a trained segmentation network as one verified package: same answers, faster, no training framework.

    import segship
    model = segship.load("nuclei.segship", precision="int8", threads=2)
    result = model("cell.png")
    result.labels                      # (H, W), on the input's own grid
    result.save("cell_mask.png")

Every verb of the command line but `serve` is a function of the same name; what it needs is imported when it is
called, so ``import segship`` is quick and brings no training framework with it.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from segship.errors import SegshipError

if TYPE_CHECKING:
    from segship.convert.export import export
    from segship.convert.precision import compile_package as compile
    from segship.engines.doctor import as_dict as doctor
    from segship.inference.options import OutputOptions
    from segship.inference.outputs import PredictOptions
    from segship.inference.prediction import Prediction
    from segship.inference.predictor import Predictor
    from segship.inference.verify import verify_package as verify
    from segship.integrations.mmseg_config import write_eval_config as mmseg_eval_config
    from segship.measure.benchmark import benchmark
    from segship.measure.ensemble import ensemble
    from segship.measure.evaluate import evaluate
    from segship.measure.report import report
    from segship.metrics.files import score_files as score
    from segship.package import Package, open_package
    from segship.verbs import inspect, predict, prepare, train
    from segship.workflow import RunOptions, run

    load = Predictor.open

_LAZY = {
    "load": "segship.inference.predictor:Predictor.open",
    "Predictor": "segship.inference.predictor:Predictor",
    "Package": "segship.package:Package",
    "Prediction": "segship.inference.prediction:Prediction",
    "PredictOptions": "segship.inference.outputs:PredictOptions",
    "OutputOptions": "segship.inference.options:OutputOptions",
    "RunOptions": "segship.workflow:RunOptions",
    "CaseOptions": "segship.inference.volume_batch:CaseOptions",
    "TileOptions": "segship.inference.volume_network:TileOptions",
    "open_package": "segship.package:open_package",
    "export": "segship.convert.export:export",
    "compile": "segship.convert.precision:compile_package",
    "ensemble": "segship.measure.ensemble:ensemble",
    "evaluate": "segship.measure.evaluate:evaluate",
    "benchmark": "segship.measure.benchmark:benchmark",
    "report": "segship.measure.report:report",
    "verify": "segship.inference.verify:verify_package",
    "run": "segship.workflow:run",
    "predict": "segship.verbs:predict",
    "score": "segship.metrics.files:score_files",
    "inspect": "segship.verbs:inspect",
    "doctor": "segship.engines.doctor:as_dict",
    "prepare": "segship.verbs:prepare",
    "train": "segship.verbs:train",
    "mmseg_eval_config": "segship.integrations.mmseg_config:write_eval_config",
}

__all__ = [
    "CaseOptions",
    "OutputOptions",
    "Package",
    "PredictOptions",
    "Prediction",
    "Predictor",
    "RunOptions",
    "SegshipError",
    "TileOptions",
    "benchmark",
    "compile",
    "doctor",
    "ensemble",
    "evaluate",
    "export",
    "inspect",
    "load",
    "mmseg_eval_config",
    "open_package",
    "predict",
    "prepare",
    "report",
    "run",
    "score",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("segship")
    if name not in _LAZY:
        raise AttributeError(f"module 'segship' has no attribute '{name}'")
    module, attribute = _LAZY[name].split(":")
    value = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
