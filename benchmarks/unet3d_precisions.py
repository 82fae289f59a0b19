"""What fp16, bf16 and int8 change in the labels of a trained MLPerf 3D U-Net.

    python benchmarks/train_unet3d.py -o out/train_unet3d --quick            # a trained network, and cases
    python benchmarks/unet3d_precisions.py out/train_unet3d -o out/precisions

Exports the run's checkpoint, compiles it (int8 calibrated on training cases alone) and predicts the held-out cases with each
precision. Printed: the Dice between a precision's labels and fp32's, class by class, mean and worst case, beside the Dice of
both against the drawn truth, and what ran in which number type. Passes where fp16 agrees to 0.999, bf16 and int8 to 0.99.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segship.convert.export import export
from segship.convert.precision import compile_package
from segship.inference.predictor import Predictor
from segship.inference.volume_predictor import VolumePredictor
from segship.inference.writers import write_bytes
from segship.measure.environment import environment
from segship.metrics.kits19 import dice_scores
from segship.training.mlperf_data import find_cases, split_cases

AGREES = {"fp16": 0.999, "bf16": 0.99, "int8": 0.99}
CLASSES = ("kidney", "tumour")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="what benchmarks/train_unet3d.py left")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--precisions", nargs="+", default=list(AGREES), choices=list(AGREES))
    parser.add_argument("--borders", default="flush", choices=("pad", "flush"))
    parser.add_argument("--data", type=Path, help="prepared cases where the run did not draw its own")
    given = parser.parse_args(arguments)
    result = run(given)
    write_bytes(given.out / "precisions.json", (json.dumps(result, indent=1) + "\n").encode())
    print(table(result))
    return 0 if result["passed"] else 1


def run(given: argparse.Namespace) -> dict[str, Any]:
    data = given.data or given.trained / "prepared"
    package = given.out / "net.segship"
    given.out.mkdir(parents=True, exist_ok=True)
    if not package.exists():
        export(given.trained / "run", package, options={"borders": given.borders})
    for precision in given.precisions:
        made = given.out / f"{precision}.segship"
        if not made.exists():
            compile_package(package, precision, calibrate=data if precision == "int8" else None, output=made)
    held_out = split_cases(find_cases(data))[1]
    truth = {case.id: np.load(case.label)[0] for case in held_out}
    labels, executed = {}, {}
    for precision in ("fp32", *given.precisions):
        path = package if precision == "fp32" else given.out / f"{precision}.segship"
        with Predictor.open(path, precision=precision) as predictor:
            assert isinstance(predictor, VolumePredictor)
            labels[precision] = {case.id: predictor(case.image).labels for case in held_out}
            executed[precision] = predictor.variant.executed[0].convolution_share
    rows: dict[str, dict[str, Any]] = {
        precision: {
            "executed": executed[precision],
            "agreement": dice_of(labels[precision], labels["fp32"]),
            "truth": dice_of(labels[precision], truth),
        }
        for precision in labels
    }
    worst = {p: min(one["mean"] for one in rows[p]["agreement"].values()) for p in given.precisions}
    return {
        "cases": list(truth), "borders": given.borders, "rows": rows, "environment": environment(),
        "passed": all(worst[p] >= AGREES[p] for p in given.precisions),
    }  # fmt: skip


def dice_of(labels: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean over cases and the worst of them, class by class."""
    found = np.array([dice_scores(labels[name], wanted[name]) for name in labels])
    return {c: {"mean": float(v.mean()), "worst": float(v.min())} for c, v in zip(CLASSES, found.T, strict=True)}


def table(result: dict[str, Any]) -> str:
    lines = [
        "| | ran as | Dice with fp32's labels: kidney (worst case) | tumour (worst case) | Dice with the truth: kidney, tumour |"
    ]
    lines.append("|---|---|---|---|---|")
    for precision, row in result["rows"].items():
        ran = ", ".join(f"{kind} {share:.0%}" for kind, share in row["executed"].items())
        same = [f"{row['agreement'][c]['mean']:.4f} ({row['agreement'][c]['worst']:.4f})" for c in CLASSES]
        true = ", ".join(f"{row['truth'][c]['mean']:.4f}" for c in CLASSES)
        lines.append(f"| {precision} | {ran} | {same[0]} | {same[1]} | {true} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
