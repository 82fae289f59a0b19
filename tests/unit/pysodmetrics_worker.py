"""PySODMetrics as a worker process: one JSON request a line in ({"pred", "gt": rows of 0..255}), one answer out.

Runs in an environment of its own (`make interop`), as the library cannot be installed beside segship.
"""

import json
import math
import sys
import warnings

import numpy as np

warnings.simplefilter("ignore")
from py_sod_metrics import (  # noqa: E402
    MAE,
    DICEHandler,
    Emeasure,
    Fmeasure,
    FmeasureHandler,
    FmeasureV2,
    IOUHandler,
    PrecisionHandler,
    RecallHandler,
    Smeasure,
    WeightedFmeasure,
)


def handlers():
    kind = {"with_dynamic": True, "with_adaptive": False, "with_binary": True, "sample_based": True}
    return {
        "F": FmeasureHandler(beta=0.3, **kind),
        "IoU": IOUHandler(**kind),
        "Dice": DICEHandler(**kind),
        "precision": PrecisionHandler(**kind),
        "recall": RecallHandler(**kind),
    }


def answer(pred, gt):
    tools = {
        "m": MAE(),
        "f": Fmeasure(),
        "s": Smeasure(),
        "e": Emeasure(),
        "w": WeightedFmeasure(),
        "v": FmeasureV2(handlers()),
    }
    for tool in tools.values():
        tool.step(pred, gt)
    f, e, v = (tools[key].get_results() for key in "fev")
    found = {
        "MAE": tools["m"].get_results()["mae"],
        "S": tools["s"].get_results()["sm"],
        "wF": tools["w"].get_results()["wfm"],
        "adpF": f["fm"]["adp"],
        "maxF": f["fm"]["curve"].max(),
        "meanF": f["fm"]["curve"].mean(),
        "adpE": e["em"]["adp"],
        "maxE": e["em"]["curve"].max(),
        "meanE": e["em"]["curve"].mean(),
        "maxIoU": v["IoU"]["dynamic"].max(),
        **{name: v[name]["binary"] for name in ("F", "IoU", "Dice", "precision", "recall")},
    }
    return {name: None if math.isnan(value) else float(value) for name, value in found.items()}


for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps(answer(*(np.array(request[key], np.uint8) for key in ("pred", "gt")))), flush=True)
