"""What the U²-Net benchmarks share: seeded weights in every form that a contestant takes, worker processes, tables."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
INTEROP = REPOSITORY / ".interop"
WORKERS = REPOSITORY / "benchmarks" / "interop"
ARCHITECTURES = {"u2netp": "U2NETP", "u2net": "U2NET"}
SIZE = 320
STEPS, CROP = 40, 128
KEPT_IN_FLOAT = "stage1.rebnconvin.conv_s1,outconv"
"""by int8; not the side convolutions: one channel at full size, in float32 they make the whole 1.4 times slower"""


def seeded_checkpoint(net: str, photos: Sequence[Path], folder: Path) -> Path:
    """A ``.pth`` of ``u2netp`` or ``u2net`` with seeded weights, made once and the same on every start.

    Random weights alone would do for the times, but not for comparing masks: a deep random network blows the
    smallest rounding up. So the seeded network takes a few steps towards "brighter than the photo's median".
    """
    path = folder / f"{net}.pth"
    if path.exists():
        return path
    import torch

    from segship.networks import u2net

    print(f"{net}: seeded weights, {STEPS} steps", file=sys.stderr, flush=True)
    torch.manual_seed(0)
    network = getattr(u2net, ARCHITECTURES[net])().to(memory_format=torch.channels_last)
    images = torch.stack([_seen(photo) for photo in photos])
    brightness = images.mean(1, keepdim=True)
    bright = (brightness > brightness.flatten(1).median(1).values[:, None, None, None]).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(STEPS):
        some = torch.randint(len(photos), (4,))
        top, left = (int(offset) for offset in torch.randint(SIZE - CROP + 1, (2,)))
        box = (some, slice(None), slice(top, top + CROP), slice(left, left + CROP))
        maps = network.train()(images[box].contiguous(memory_format=torch.channels_last))
        loss = torch.stack([torch.nn.functional.binary_cross_entropy(found, bright[box]) for found in maps]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # from here on the plain mean over all that it is shown: the whole photos
    with torch.no_grad():
        for image in images:
            network(image[None].contiguous(memory_format=torch.channels_last))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.contiguous() for name, value in network.state_dict().items()}, path.with_suffix(".tmp"))
    return path.with_suffix(".tmp").replace(path)


def _seen(photo: Path) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    pixels = np.asarray(Image.open(photo).convert("RGB").resize((SIZE, SIZE)), np.float32)
    pixels = pixels / max(float(pixels.max()), 1.0)
    return torch.from_numpy((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).permute(2, 0, 1).float()


def rembg_file(net: str, checkpoint: Path, folder: Path) -> Path:
    """The ONNX file that rembg's session takes: seven outputs, the fused map first, 1 × 3 × 320 × 320 as its own are."""
    path = folder / f"{net}-{_digest(checkpoint)}.onnx"
    if path.exists():
        return path
    import torch

    from segship.networks import u2net

    network = getattr(u2net, ARCHITECTURES[net])()
    network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        torch.onnx.export(
            network.eval(), (torch.zeros(1, 3, SIZE, SIZE),), str(path), opset_version=17, dynamo=False, verbose=False
        )
    return path


def package(
    checkpoint: Path, recipe: str, precisions: Sequence[str], calibration: Path, folder: Path, split: str | None = None
) -> Path:
    """The ``.segship`` of a checkpoint with these precisions, by the commands that a user types; made once."""
    path = folder / f"{checkpoint.stem}-{recipe}-{_digest(checkpoint)}.segship"
    if not path.exists():
        segship("export", str(checkpoint), "-o", str(path), "--recipe", recipe)
    from segship.package import open_package

    held = {variant.precision for variant in open_package(path).manifest.variants}
    for precision in precisions:
        if precision in held:
            continue
        command = ["compile", str(path), "--precision", precision]
        if precision in ("int8", "int16"):
            command += ["--calibrate", str(calibration)] + (["--calibrate-split", split] if split else [])
            command += ["--force"]  # a seeded network is no basis for the gate; what is timed here is speed
        if precision == "int8":
            command += ["--keep-in-float", KEPT_IN_FLOAT]
        segship(*command)
    return path


def segship(*command: str) -> None:
    """Run a command of the command line; its own words are shown when it fails."""
    print("segship", *command, file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "segship", *command, "-q"], check=False)
    if done.returncode:
        sys.exit(f"segship {command[0]} ended with {done.returncode}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def find_photos(folder: Path) -> list[Path]:
    """The photos of a folder by name; says so where there is none."""
    entries = folder.iterdir() if folder.is_dir() else ()
    found = sorted(path for path in entries if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return found or sys.exit(f"there are no photos (.jpg, .jpeg, .png) in {folder}")


def lay_photos(photos: Path, folder: Path, times: int) -> list[Path]:
    """Links to the photos, each ``times`` times under names of their own."""
    found = find_photos(photos)
    folder.mkdir(parents=True, exist_ok=True)
    laid = []
    for number in range(times):
        for photo in found:
            link = folder / f"{photo.stem}-{number}{photo.suffix}"
            link.symlink_to(photo.resolve())
            laid.append(link)
    return laid


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Which networks, their weights, and where what is made of them is kept."""
    parser.add_argument("--nets", default="u2netp,u2net")
    parser.add_argument("--u2netp", type=Path, metavar="PTH", help="its weights [seeded ones]")
    parser.add_argument("--u2net", type=Path, metavar="PTH", help="its weights [seeded ones]")
    parser.add_argument("--work", type=Path, default=Path("runs/u2net_benchmark"), help="weights and packages are kept")


class Worker:
    """A contestant in a process and an environment of its own; one JSON request a line, one JSON answer a line."""

    def __init__(self, environment: str, script: str, threads: int, **variables: str) -> None:
        python = INTEROP / environment / "bin" / "python"
        if not python.exists():
            sys.exit(f"{python} is missing; type: make interop")
        self.name = environment
        settings = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(REPOSITORY / "src")} | variables
        self.process = subprocess.Popen(
            [str(python), str(WORKERS / script)], env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, do: str, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do} | request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the worker ended; its words stand above"}
        if "error" in answer:
            sys.exit(f"{self.name}: {do}: {answer['error']}")
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()  # the worker's loop ends with its input
        self.process.wait(timeout=60)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for docs/performance.md."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
