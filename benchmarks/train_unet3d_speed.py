"""Training and scoring speed of the MLPerf 3D U-Net: segship's loop beside a plain PyTorch loop, with and without AMP.

    python benchmarks/train_unet3d_speed.py -o out/unet3d_speed.json              # full network, a CUDA device if there is one
    python benchmarks/train_unet3d_speed.py -o out/tiny.json --filters 4 4 8 8 8 --patch 64 --steps 4 --device cpu

Plain loop: forward, the same loss, backward, step, on a batch that lies on the device already. Ours: `segship train
unet3d_mlperf --loader synthetic --benchmark`, batches made by threads and moved to the device as in training. Then a sliding
window over one volume, ours beside MONAI's where MONAI is installed (same window, overlap, Gaussian weights).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from segship.measure.environment import environment
from segship.measure.tables import columns
from segship.networks.unet3d_mlperf import FILTERS, Unet3D
from segship.training.distributed import pick_device
from segship.training.mlperf_evaluation import mixed, sliding_window
from segship.training.mlperf_losses import dice_ce_loss
from segship.training.mlperf_options import Unet3dOptions
from segship.training.unet3d_mlperf import train_unet3d

BATCH, WARMUP, EPOCH_STEPS = 2, 4, 32
"""--loader synthetic has 64 items, so 32 steps an epoch"""


def plain_loop(given: argparse.Namespace, device: torch.device, amp: bool) -> float:
    """Samples a second."""
    network = Unet3D(filters=given.filters).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler("cuda", enabled=amp and device.type == "cuda")
    image = torch.rand(BATCH, 1, *(given.patch,) * 3, device=device)
    label = torch.randint(0, 2, image.shape, device=device)
    started = 0.0
    for step in range(given.steps + WARMUP):
        if step == WARMUP:
            synchronise(device)
            started = time.perf_counter()
        with mixed(amp, device):
            logits = network(image)
        scaler.scale(dice_ce_loss(logits, label)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    synchronise(device)
    return BATCH * given.steps / (time.perf_counter() - started)


def our_loop(given: argparse.Namespace, device: torch.device, amp: bool) -> float:
    """Samples a second of the real command."""
    with tempfile.TemporaryDirectory() as folder:
        options = Unet3dOptions(
            loader="synthetic", benchmark=True, batch_size=BATCH, filters=tuple(given.filters), amp=amp,
            epochs=max(1, round((given.steps + WARMUP) / EPOCH_STEPS)), input_shape=(given.patch,) * 3,
            warmup_steps=WARMUP, output=Path(folder) / "run", device=device.type,
        )  # fmt: skip
        return train_unet3d(options, progress=False).speed["throughput_train"]


def windows(given: argparse.Namespace, device: torch.device, amp: bool) -> dict[str, float]:
    """Seconds for one volume of 1.5 windows a side."""
    network = Unet3D(filters=given.filters).to(device).eval()
    image = torch.rand(1, *(given.patch * 3 // 2,) * 3, device=device)
    tiling = Unet3dOptions(val_input_shape=(given.patch,) * 3).tiling
    found = {"segship": seconds(lambda: sliding_window(network, image, tiling), device, amp)}
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        return found
    side = (given.patch,) * 3
    found["MONAI"] = seconds(
        lambda: sliding_window_inference(image[None], side, 1, network, overlap=0.5, mode="gaussian"), device, amp
    )
    return found


def seconds(call: Callable[[], Any], device: torch.device, amp: bool) -> float:
    with torch.inference_mode(), mixed(amp, device):
        call()
        synchronise(device)
        started = time.perf_counter()
        call()
        synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--filters", type=int, nargs=5, default=list(FILTERS))
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    given = parser.parse_args(arguments)
    device = pick_device(given.device)
    rows: list[list[str]] = []
    result: dict[str, Any] = {}
    for amp in (False, True):
        plain, ours, volume = plain_loop(given, device, amp), our_loop(given, device, amp), windows(given, device, amp)
        name = "AMP" if amp else "fp32"
        result[name] = {"plain": plain, "segship": ours, "sliding_window_seconds": volume}
        monai = f"{volume['MONAI']:.3f}" if "MONAI" in volume else "not installed"
        rows.append([name, f"{plain:.3f}", f"{ours:.3f}", f"{ours / plain:.2f}×", f"{volume['segship']:.3f}", monai])
    header = ["", "plain, samples/s", "segship, samples/s", "of plain", "window sweep, s", "MONAI, s"]
    print(columns(header, rows))
    about = {"device": str(device), "name": torch.cuda.get_device_name() if device.type == "cuda" else "CPU"}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result | about | {"environment": environment()}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
