"""Does the MLPerf 3D U-Net learn here? From scratch on synthetic KiTS-like cases, on a CPU, in minutes.

    python benchmarks/train_unet3d.py -o out/train_unet3d            # at most 20 minutes on 2 cores
    python benchmarks/train_unet3d.py -o out/quick --quick           # two minutes: smaller cases, fewer filters

Draws a labelled set (`segship prepare kits19 --synthetic`), scores the untrained network on the held-out cases, trains one
with the five levels but fewer filters by `segship train unet3d_mlperf` (bf16; Adam, as a few hundred steps are too few for
the recipe's SGD), and writes curve.svg and result.json. Passes when the mean Dice over held-out cases goes from below 0.1
to above 0.8 within the time. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from segship.datasets.kits19_folder import prepare_folders
from segship.inference.writers import write_bytes
from segship.measure.environment import environment
from segship.training.mlperf_data import find_cases, split_cases
from segship.training.mlperf_options import Unet3dOptions
from segship.training.mlperf_recipe import make_seeds
from segship.training.unet3d_mlperf import build_network, score_network, train_unet3d

START, GOAL = 0.1, 0.8
CASES, SIZE, EPOCHS = 20, 96, 250
FILTERS, RATE = (8, 16, 32, 64, 80), 3e-3
QUICK_CASES, QUICK_SIZE, QUICK_EPOCHS = 16, 64, 60
QUICK_FILTERS, QUICK_RATE = (8, 8, 16, 16, 16), 1e-2
"""at 3e-3 the tumour is not found yet when these epochs end"""
WIDTH, HEIGHT, MARGIN = 640, 320, 44


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="smaller cases, fewer filters, two minutes")
    parser.add_argument("--data", type=Path, help="prepared cases to train on instead of drawn ones")
    parser.add_argument("--cases", type=int, help="synthetic cases")
    parser.add_argument("--size", type=int, help="voxels a side, at least")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--filters", type=int, nargs=5)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--optimizer", default="adam", choices=("sgd", "adam"))
    parser.add_argument("--rate", type=float, help="learning rate")
    parser.add_argument("--goal", type=float, default=0.85, help="stop at this mean Dice")
    parser.add_argument("--fp32", action="store_true", help="not bf16")
    parser.add_argument("--minutes", type=float, default=20.0, help="the most that passes")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    given.cases = given.cases or (QUICK_CASES if given.quick else CASES)
    given.size = given.size or (QUICK_SIZE if given.quick else SIZE)
    given.epochs = given.epochs or (QUICK_EPOCHS if given.quick else EPOCHS)
    given.filters = given.filters or (QUICK_FILTERS if given.quick else FILTERS)
    given.rate = given.rate or (QUICK_RATE if given.quick else RATE)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    result = run(given)
    write_bytes(given.out / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps({key: value for key, value in result.items() if key != "curve"}, indent=1))
    return 0 if result["passed"] else 1


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Data, the untrained network's score, training, curve."""
    data = given.data or given.out / "prepared"
    if given.data is None:
        raw, least = given.out / "synthetic", min(128, given.size)
        prepare_folders(raw, data, synthetic=given.cases, size=given.size, minimum=least, workers=2)
    patch = (given.patch,) * 3
    options = Unet3dOptions(
        data_dir=data, output=given.out / "run", epochs=given.epochs, filters=tuple(given.filters), input_shape=patch,
        val_input_shape=patch, optimizer=given.optimizer, learning_rate=given.rate, lr_warmup_epochs=max(1, given.epochs // 10), start_eval_at=1,
        evaluate_every=max(1, given.epochs // 20), quality_threshold=given.goal,
        num_workers=2, amp=not given.fp32, resume=(given.out / "run" / "state.pt").exists(), seed=given.seed, diverged_below=0.0, device="cpu",
    )  # fmt: skip
    training, held_out = split_cases(find_cases(data))
    untrained = build_network(options, make_seeds(given.seed).workers[0])
    before = score_network(options, untrained, held_out, torch.device("cpu")).mean_dice
    logging.info("untrained: mean Dice %.4f over %d held-out cases", before, len(held_out))
    found = train_unet3d(options)
    curve = [(0, before), *read_curve(given.out / "run" / "log.csv")]
    write_bytes(given.out / "curve.svg", drawing(curve, found.minutes).encode())
    best = float(found.value or 0.0)
    return {
        "before": before, "best": best, "kidney": found.l1, "tumour": found.l2, "epoch": found.epoch,
        "epochs": found.epochs, "minutes": round(found.minutes, 2), "training_cases": len(training),
        "held_out_cases": len(held_out), "filters": list(given.filters), "patch": list(patch), "amp": not given.fp32,
        "threads": torch.get_num_threads(), "curve": curve, "environment": environment(),
        "passed": before < START and best > GOAL and found.minutes <= given.minutes,
    }  # fmt: skip


def read_curve(path: Path) -> list[tuple[int, float]]:
    """(epoch, mean Dice) of every scored epoch in a log.csv."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(int(row["epoch"]), float(row["mean_dice"])) for row in csv.DictReader(file) if row["mean_dice"]]


def drawing(curve: Sequence[tuple[int, float]], minutes: float) -> str:
    """The curve as an SVG of a few hundred bytes."""
    last = max(epoch for epoch, _ in curve) or 1
    wide, high = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN

    def place(epoch: float, value: float) -> tuple[float, float]:
        return round(MARGIN + wide * epoch / last, 1), round(HEIGHT - MARGIN - high * value, 1)

    points = " ".join(f"{x},{y}" for x, y in (place(*point) for point in curve))
    lines = []
    for value in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        _, y = place(0, value)
        lines.append(
            f'<path d="M{MARGIN} {y}H{WIDTH - MARGIN}" stroke="#ddd"/><text x="10" y="{y + 4}">{value:.1f}</text>'
        )
    threads = torch.get_num_threads()
    text = (
        f"mean Dice of held-out cases, {last} epochs, {minutes:.1f} minutes, {threads} CPU thread{'s' * (threads > 1)}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(lines)}'
        f'<polyline points="{points}" fill="none" stroke="#1769aa" stroke-width="2"/>'
        f'<text x="{MARGIN}" y="{HEIGHT - 12}">epoch 0 … {last}</text><text x="{MARGIN}" y="24">{text}</text></svg>\n'
    )


if __name__ == "__main__":
    sys.exit(main())
