"""The MLPerf 3D U-Net over one case, sliding window: segship beside the reference's loop in PyTorch.

    python benchmarks/unet3d_mlperf.py -o out/unet3d                              # full network, untrained weights
    python benchmarks/unet3d_mlperf.py -o out/unet3d --checkpoint checkpoint.pth  # trained: int8's labels mean something

Draws KiTS-like cases, exports the network, adds bf16 and int8 (calibrated on training cases), and runs every contestant
over the same prepared case with the same windows (the reference's plan: remainders cut, overlap 0.5, Gaussian), each in a
process of its own, in alternating turns (what ``turns.json`` has is not run again: stop at any time). First labels are compared, then times. "PyTorch as run" is the loop that the
reference has, written here from its description: one window at a time, float32 sums, eager; "tuned" adds inference_mode and
channels_last_3d, and bf16 beside it. Memory is the largest resident set of the process.

Then the share of a training step that waits for data: the time for which the loop found no batch ready.

Targets: fp32 at least 2×, int8 at least 6× the better PyTorch fp32 row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORLD_TARGETS = (("fp32", 2.0), ("int8", 6.0))
SAME_LABELS = 0.9999
CASE, CALIBRATION_CASES = "case_00000", 4
PRECISIONS = ("fp32", "bf16", "int8")
TORCH = {"PyTorch as run": ("eager", False), "PyTorch tuned": ("tuned", False), "PyTorch tuned bf16": ("tuned", True)}


# ---------------------------------------------------------------------------------------- one contestant


def worker(given: argparse.Namespace) -> None:
    """Warm up with one window, then the case; prints seconds, MiB and windows, leaves the labels."""
    image = np.load(given.out / "prepared" / f"{CASE}_x.npy")
    run = torch_run(given, *TORCH[given.worker]) if given.worker in TORCH else our_run(given)
    run(image[:, : given.window, : given.window, : given.window])
    started = time.perf_counter()
    labels = run(image)
    seconds = time.perf_counter() - started
    np.save(given.out / "labels" / f"{given.worker.replace(' ', '-')}.npy", labels)
    print("RESULT " + json.dumps({"seconds": seconds, "peak_mib": peak_mib()}))


def peak_mib() -> float:
    """The largest resident set so far; getrusage would also count what the parent had before it started this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def torch_run(given: argparse.Namespace, way: str, bf16: bool) -> Callable[[np.ndarray], np.ndarray]:
    """The reference's inference.py in spirit: pad, each window in turn, weighted sums, divide, argmax."""
    import torch

    from segship.families import load_source

    torch.set_num_threads(given.threads)
    network = load_source(given.out / "net.pth", options={}).network.eval()
    tuned = way == "tuned"
    if tuned:
        network = network.to(memory_format=torch.channels_last_3d)

    def answer(window: torch.Tensor) -> torch.Tensor:
        if not tuned:
            with torch.no_grad():
                return network(window)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return network(window.contiguous(memory_format=torch.channels_last_3d)).float()

    side, stride = given.window, given.window // 2
    line = torch.exp(-((torch.arange(side, dtype=torch.float64) - (side - 1) / 2) ** 2) / (2 * (0.125 * side) ** 2))
    weight = (line[:, None, None] * line[:, None] * line) ** (1 / 3)
    weight = (weight / weight.max()).float()

    def run(image: np.ndarray) -> np.ndarray:
        kept = [slice(c // 2, n - (c - c // 2)) for n, c in ((n, _cut(n, stride)) for n in image.shape[1:])]
        inner = torch.from_numpy(np.ascontiguousarray(image[(slice(None), *kept)]))[None]
        pads = [_pad(n, side, stride) for n in inner.shape[2:]]
        widths = [w for p in reversed(pads) for w in (p // 2, p - p // 2)]
        padded = torch.nn.functional.pad(inner, widths, value=-2.2)
        total = torch.zeros((1, 3, *padded.shape[2:]))
        seen = torch.zeros_like(total)
        for z in range(0, padded.shape[2] - side + 1, stride):
            for y in range(0, padded.shape[3] - side + 1, stride):
                for x in range(0, padded.shape[4] - side + 1, stride):
                    box: Any = (slice(None), slice(None), slice(z, z + side), slice(y, y + side), slice(x, x + side))
                    total[box] += answer(padded[box]) * weight
                    seen[box] += weight
        total /= seen
        back = tuple(slice(p // 2, p // 2 + n) for p, n in zip(pads, inner.shape[2:], strict=True))
        labels = np.zeros(image.shape[1:], np.uint8)
        labels[tuple(kept)] = total[(0, slice(None), *back)].argmax(0).numpy()
        return labels

    return run


def _cut(size: int, stride: int) -> int:
    return size % stride if size % stride < stride // 2 else 0


def _pad(size: int, window: int, stride: int) -> int:
    missing = (stride - size % stride) % stride
    return missing if size + missing >= window else missing + stride


def our_run(given: argparse.Namespace) -> Callable[[np.ndarray], np.ndarray]:
    """A package's own windows over the prepared case, by one precision ("segship int8")."""
    import segship
    from segship.inference.volume_network import TileOptions, scores

    precision = given.worker.split()[-1]
    model: Any = segship.load(given.out / "net.segship", precision=precision, threads=given.threads)
    tiles = TileOptions(crop_remainder=True)
    passes = model.passes(tiles)
    return lambda image: scores(image, model.manifest, passes, tiles).argmax(0).astype(np.uint8)


# ---------------------------------------------------------------------------------------- data and package


def make_everything(given: argparse.Namespace) -> None:
    """Cases, checkpoint and package; what is there already is kept."""
    from segship.convert.export import export
    from segship.convert.precision import compile_package
    from segship.datasets.kits19_folder import prepare_folders

    (given.out / "labels").mkdir(parents=True, exist_ok=True)
    prepare_folders(
        given.out / "synthetic", given.out / "prepared", synthetic=CALIBRATION_CASES, size=given.size,
        minimum=min(128, given.size), workers=1,
    )  # fmt: skip
    if not (given.out / "net.pth").exists():
        write_weights(given)
    package = given.out / "net.segship"
    if package.exists():
        return
    export(given.out / "net.pth", package, options={"window": str(given.window), "pad_to": str(min(128, given.size))})
    for precision in PRECISIONS[1:]:
        calibrate = given.out / "synthetic" if precision == "int8" else None
        compile_package(package, precision, calibrate=calibrate, subset=given.subset)


def write_weights(given: argparse.Namespace) -> None:
    import torch

    from segship.networks.unet3d_mlperf import Unet3D

    if given.checkpoint is not None:
        (given.out / "net.pth").write_bytes(given.checkpoint.read_bytes())
        return
    torch.manual_seed(1)
    torch.save(Unet3D(filters=given.filters).state_dict(), given.out / "net.pth")


# ------------------------------------------------------------------------------------------- all in turns


def race(given: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """name -> seconds and MiB of every turn; turns that ``turns.json`` has are not run again."""
    names = [*TORCH, *(f"segship {precision}" for precision in PRECISIONS)]
    done = given.out / "turns.json"
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "peak_mib": []} for name in names}
    if done.exists():
        found.update(json.loads(done.read_text()))
    for turn in range(given.repeat):
        for name in names:
            if len(found[name]["seconds"]) > turn:
                continue
            for key, value in turn_of(given, name).items():
                found[name][key].append(value)
            done.write_text(json.dumps(found, indent=1) + "\n")
            print(f"turn {turn + 1}/{given.repeat} {name}: {found[name]['seconds'][-1]:.1f} s", file=sys.stderr)
    return found


def turn_of(given: argparse.Namespace, name: str) -> dict[str, float]:
    command = [sys.executable, __file__, "-o", str(given.out), "--worker", name, "--threads", str(given.threads)]
    command += ["--window", str(given.window)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": str(given.threads)}, capture_output=True, text=True, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(line.removeprefix("RESULT "))
    return result


def agreement(given: argparse.Namespace, names: Sequence[str]) -> dict[str, float]:
    """Share of voxels with the label of "PyTorch as run"."""
    labels = {name: np.load(given.out / "labels" / f"{name.replace(' ', '-')}.npy") for name in names}
    first = labels["PyTorch as run"]
    return {name: float((found == first).mean()) for name, found in labels.items()}


def loading(given: argparse.Namespace) -> dict[str, float]:
    """Seconds of training steps, and for how long they waited for a batch (threads work ahead, as in training)."""
    import torch

    from segship.networks.unet3d_mlperf import Unet3D
    from segship.training.mlperf_data import Items, batches, find_cases, shares, split_cases
    from segship.training.mlperf_losses import dice_ce_loss
    from segship.training.mlperf_recipe import epoch_order

    torch.set_num_threads(given.threads)
    patch = (given.patch,) * 3
    cases = split_cases(find_cases(given.out / "prepared"))[0]
    items = Items(cases=cases, patch=patch, oversampling=0.4, seed=1)
    network = Unet3D(filters=given.filters)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True)
    waited, steps = [], []
    for epoch in range(1, given.steps + 2):
        order = shares(epoch_order(1, epoch, len(cases)), 2, 0, 1)
        loader = iter(batches(items, order * 2, epoch=epoch, workers=2))
        while True:
            before = time.perf_counter()
            batch = next(loader, None)
            if batch is None:
                break
            ready = time.perf_counter()
            dice_ce_loss(network(batch[0]), batch[1]).backward()
            optimizer.step()
            optimizer.zero_grad()
            waited.append(ready - before)
            steps.append(time.perf_counter() - before)
    made = time.perf_counter()
    for index in range(len(items)):
        items.item(given.steps + 5, index)
    one = (time.perf_counter() - made) / len(items)
    # the first two steps find every component of a case for the first time
    return {
        "step_seconds": float(np.mean(steps[2:])), "waiting_seconds": float(np.mean(waited[2:])),
        "waiting_share": float(np.sum(waited[2:]) / np.sum(steps[2:])), "item_seconds": one,
    }  # fmt: skip


def report(given: argparse.Namespace, found: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    from segship.measure.environment import environment
    from segship.measure.tables import columns

    same = agreement(given, list(found))
    seconds = {name: float(np.median(of["seconds"])) for name, of in found.items()}
    base = min(seconds["PyTorch as run"], seconds["PyTorch tuned"])
    rows = [
        [
            name,
            f"{seconds[name]:.2f}",
            f"{base / seconds[name]:.2f}×",
            f"{same[name]:.6f}",
            f"{max(of['peak_mib']):.0f}",
        ]
        for name, of in found.items()
    ]
    print(columns(["one case", "s", "of PyTorch fp32", "labels equal", "peak MiB"], rows))
    targets = {name: base / seconds[f"segship {name}"] for name, _ in WORLD_TARGETS}
    for name, wanted in WORLD_TARGETS:
        verdict = "reached" if targets[name] >= wanted else "missed"
        print(f"segship {name}: {targets[name]:.2f}× PyTorch fp32 (target {wanted:g}×): {verdict}")
    if same["segship fp32"] < SAME_LABELS:
        print(f"labels of fp32 differ: {same['segship fp32']:.6f} < {SAME_LABELS}; the times compare nothing")
    return {"turns": found, "labels_equal": same, "speedup": targets, "environment": environment()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--size", type=int, default=160, help="voxels a side of the case, at least")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--patch", type=int, default=128, help="of the training steps")
    parser.add_argument("--filters", type=int, nargs=5, default=[32, 64, 128, 256, 320])
    parser.add_argument("--subset", type=int, default=8, help="windows to calibrate on")
    parser.add_argument("--steps", type=int, default=1, help="epochs of the loading measurement; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        worker(given)
        return 0
    make_everything(given)
    result = report(given, race(given))
    if given.steps:
        result["loading"] = loading(given)
        said = result["loading"]
        print(
            f"training step {said['step_seconds']:.2f} s, waiting for data {100 * said['waiting_share']:.1f} %", end=""
        )
        print(f"; one item takes a thread {said['item_seconds']:.3f} s")
    (given.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["labels_equal"]["segship fp32"] >= SAME_LABELS else 1


if __name__ == "__main__":
    sys.exit(main())
