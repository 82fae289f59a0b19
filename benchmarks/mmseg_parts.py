"""What the mmseg benchmarks share: the frame, configs, seeded checkpoints, packages, and a child process's peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import u2net_parts as parts

ENVIRONMENT = "mmseg"
CONFIGS = {
    "unet_narrow": "unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py",
    "unet": "unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py",
    "ocrnet_hr18": "ocrnet/ocrnet_hr18_4xb2-160k_cityscapes-512x1024.py",
    "deeplabv3_r101": "deeplabv3/deeplabv3_r101-d16-mg124_4xb2-80k_cityscapes-512x1024.py",
}
NARROW = {
    "backbone": {"base_channels": 8},
    "decode_head": {"in_channels": 8, "channels": 8},
    "auxiliary_head": {"in_channels": 16, "channels": 8},
}
"""of the case that only tries the program out"""
CROP = (512, 1024)
STRIDE = (512, 512)
"""of the slide cases: six windows on a frame of 1024 × 2048"""
CALIBRATION_SIZE = (512, 512)


@dataclass(frozen=True, kw_only=True)
class Case:
    net: str
    size: tuple[int, int]
    """height, width of the frame"""
    mode: str
    minutes: int
    """about how long it takes on two cores at rest once it is prepared"""
    repeat: int = 2
    """timed frames of each contestant"""


CASES = {
    "try": Case(net="unet_narrow", size=(256, 512), mode="whole", minutes=1),
    "unet-half": Case(net="unet", size=(512, 1024), mode="whole", minutes=2, repeat=3),
    "unet": Case(net="unet", size=(1024, 2048), mode="whole", minutes=7),
    "unet-slide": Case(net="unet", size=(1024, 2048), mode="slide", minutes=8, repeat=1),
    "ocrnet": Case(net="ocrnet_hr18", size=(1024, 2048), mode="whole", minutes=3, repeat=3),
    "ocrnet-slide": Case(net="ocrnet_hr18", size=(1024, 2048), mode="slide", minutes=4),
    "deeplabv3": Case(net="deeplabv3_r101", size=(1024, 2048), mode="whole", minutes=4),
}


def mmseg_python() -> Path:
    python = parts.INTEROP / ENVIRONMENT / "bin" / "python"
    return python if python.exists() else sys.exit(f"{python} is missing; type: make interop-mmseg")


def bundled_config(name: str) -> Path:
    """A config that mmseg's own wheel brings."""
    found = sorted((parts.INTEROP / ENVIRONMENT / "lib").glob(f"python*/site-packages/mmseg/.mim/configs/{name}"))
    return found[0] if found else sys.exit(f"mmseg's config {name} is missing; type: make interop-mmseg")


def frame_file(picture: Path, size: tuple[int, int], folder: Path) -> Path:
    """The picture at height × width as a PNG, which is what every contestant reads."""
    path = folder / "frames" / f"{picture.stem}_{size[0]}x{size[1]}.png"
    if not path.exists():
        pixels = cv2.imread(str(picture), cv2.IMREAD_COLOR)
        if pixels is None:
            sys.exit(f"{picture} is no picture that OpenCV reads")
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR))
    return path


def config_file(case: Case, folder: Path) -> Path:
    """The net's own config without the resize of its test pipeline (the frame has its size already), whole or slide."""
    path = folder / "configs" / f"{case.net}_{case.mode}.py"
    mode = {"mode": "whole"} if case.mode == "whole" else {"mode": "slide", "crop_size": CROP, "stride": STRIDE}
    model = {"test_cfg": {"_delete_": True, **mode}} | (NARROW if case.net == "unet_narrow" else {})
    lines = [
        f"_base_ = [{str(bundled_config(CONFIGS[case.net]))!r}]",
        "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]",
        "test_dataloader = dict(dataset=dict(pipeline=test_pipeline))",
        f"model = {model!r}",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def checkpoint(case: Case, frame: Path, folder: Path, threads: int) -> Path:
    """Seeded weights of a net, made once by mmseg itself."""
    path = folder / f"{case.net}.pth"
    if not path.exists():
        print(f"{case.net}: seeded weights", file=sys.stderr, flush=True)
        temporary = path.with_suffix(".tmp")
        with Mmseg(threads) as worker:
            worker("make", config=str(config_file(case, folder)), checkpoint=str(temporary), picture=str(frame))
        temporary.replace(path)
    return path


def package(case: Case, weights: Path, precisions: Sequence[str], calibration: Path, folder: Path) -> Path:
    """The case's .segship, by the commands that a user types; made once, further precisions added."""
    path = folder / f"{case.net}_{case.mode}.segship"
    config = config_file(case, folder)
    if not path.exists():
        parts.segship("export", str(weights), "--config", str(config), "-o", str(path), "--shape", "dynamic")
    from segship.package import open_package

    held = {variant.precision for variant in open_package(path).manifest.variants}
    for precision in precisions:
        if precision not in held:
            more = ["--calibrate", str(calibration)] if precision == "int8" else []
            parts.segship("compile", str(path), "--precision", precision, *more)
    return path


def calibration_folder(photos: Path, folder: Path, count: int) -> Path:
    """``count`` crops of the photos at one size, turned and lightened, seeded: a stand-in for frames of the training set."""
    target = folder / f"calibration_{count}"
    if target.is_dir():
        return target
    pictures = [cv2.imread(str(path), cv2.IMREAD_COLOR) for path in parts.find_photos(photos)]
    rng = np.random.default_rng(0)
    height, width = CALIBRATION_SIZE
    temporary = target.with_suffix(".tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = pictures[number % len(pictures)]
        assert pixels is not None
        scale = max(height / pixels.shape[0], width / pixels.shape[1], 0.6 + 0.8 * rng.random())
        pixels = cv2.resize(pixels, None, fx=scale + 0.01, fy=scale + 0.01)
        top, left = (
            int(rng.integers(0, whole - side + 1)) for whole, side in zip(pixels.shape, CALIBRATION_SIZE, strict=False)
        )
        crop = pixels[top : top + height, left : left + width]
        crop = cv2.convertScaleAbs(crop[:, :: -1 if rng.random() < 0.5 else 1], alpha=0.8 + 0.4 * rng.random())
        cv2.imwrite(str(temporary / f"{number:03d}.png"), crop)
    return temporary.rename(target)


class Mmseg(parts.Worker):
    """mmseg in its own process and environment."""

    def __init__(self, threads: int) -> None:
        mmseg_python()
        super().__init__(ENVIRONMENT, "mmseg_worker.py", threads)


def mmseg_peak(config: Path, weights: Path, frame: Path, output: Path, threads: int) -> float:
    """MiB at most that a process takes which opens the net and infers one frame as mmseg's users do."""
    with Mmseg(threads) as worker:
        worker("open", name="net", config=str(config), checkpoint=str(weights))
        worker("run", name="net", files=[str(frame)], output=str(output))
        return float(worker("peak")["mib"])


# The process tells its own peak: what a parent reads of a child that has ended holds the parent's size at the fork too.
TELLS_PEAK = (
    "import sys; from segship.cli import run; code = run(sys.argv[1:]); "
    "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))); sys.exit(code)"
)


def segship_peak(package: Path, precision: str, engine: str, frame: Path, output: Path, threads: int) -> float:
    """MiB at most that ``segship predict`` takes for one frame."""
    words = ["predict", str(package), str(frame), "-o", str(output), "-q", "--precision", precision, "--engine", engine,
             "--threads", str(threads), "--batch", "1"]  # fmt: skip
    settings = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-c", TELLS_PEAK, *words], env=settings, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"segship predict ended with {done.returncode}")
    return int(done.stdout.split()[-1]) / 1024


def merged(path: Path | None, found: dict[str, Any]) -> dict[str, Any]:
    """``found`` with the cases of a former run's JSON that were not run again."""
    if path is None or not path.exists():
        return found
    former = json.loads(path.read_text())
    return found | {"cases": former["cases"] | found["cases"]}
