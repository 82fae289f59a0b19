"""From a cold process to one mask on disk: `segship predict` beside importing torch and loading the checkpoint.

    python benchmarks/start_time.py net.segship models/dsb2018_96/model.pth cell.png

Each run is a process of its own, in alternating turns; the first run of each is not counted (file caches and
segship's compiled-model cache are warm then). The masks are compared before the times are shown.
Target: at most 1 s, at least 3× faster.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from segship.measure.environment import environment

TARGET_SECONDS, TARGET_RATIO = 1.0, 3.0

# What a script with the training framework does at least: import, build, load, predict one picture, write the mask.
WITH_TORCH = """
import sys
import cv2, numpy as np, torch
from segship.networks.unetplusplus import NestedUNet
checkpoint, image, output, upsample = sys.argv[1:]
state = torch.load(checkpoint, map_location="cpu", weights_only=True)
deep = "final4.weight" in state
network = NestedUNet(state["final4.weight" if deep else "final.weight"].shape[0], 3, deep, upsample=upsample)
network.load_state_dict(state)
network.eval()
picture = cv2.imread(image)
x = cv2.resize(picture, (96, 96)).astype(np.float32)
x = (x - np.float32([0.485, 0.456, 0.406]) * 255) / (np.float32([0.229, 0.224, 0.225]) * 255) / 255
with torch.no_grad():
    logits = network(torch.from_numpy(x.transpose(2, 0, 1)[None]))
logits = logits[-1] if isinstance(logits, list) else logits
probability = cv2.resize(torch.sigmoid(logits)[0, 0].numpy(), picture.shape[1::-1])
cv2.imwrite(output, (probability > 0.5).astype(np.uint8) * 255)
"""


def timed(command: Sequence[str]) -> float:
    """Seconds of one process; its own words are shown when it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} … failed:\n{done.stderr}")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("checkpoint", type=Path, help="model.pth of the same network")
    parser.add_argument("image", type=Path)
    parser.add_argument("--upsample", choices=("bilinear", "nearest"), default="bilinear")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--require", action="store_true", help="exit with 3 when a target is missed")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="segship-start-") as folder:
        ours, theirs = Path(folder, "ours"), Path(folder, "torch.png")
        commands = {
            "segship predict": [
                sys.executable, "-m", "segship", "predict", str(options.package), str(options.image),
                "-o", str(ours), "--precision", options.precision, "--overwrite", "-q",
            ],
            "torch, checkpoint": [
                sys.executable, "-c", WITH_TORCH, str(options.checkpoint), str(options.image), str(theirs), options.upsample,
            ],
        }  # fmt: skip
        for command in commands.values():
            timed(command)
        mine = cv2.imread(str(ours / f"{options.image.stem}.png"), cv2.IMREAD_GRAYSCALE)
        other = cv2.imread(str(theirs), cv2.IMREAD_GRAYSCALE)
        equal = float(np.mean(np.asarray(mine) == np.asarray(other)))
        print(f"pixels equal: {equal:.6f} ({options.precision} against PyTorch fp32)")
        if options.precision == "fp32" and equal < 0.999:
            sys.exit("the two masks differ; is the package made from this checkpoint, with this --upsample?")
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.repeat):
            for name, command in commands.items():
                seconds[name].append(timed(command))
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:<18} {value:.2f} s  (of {options.repeat}: {', '.join(f'{s:.2f}' for s in seconds[name])})")
    about = environment()
    print(f"{about['processor']}, {about['cores']} cores, load {about['load_average']}")
    ratio = medians["torch, checkpoint"] / medians["segship predict"]
    met = medians["segship predict"] <= TARGET_SECONDS and ratio >= TARGET_RATIO
    print(f"{'reached' if met else 'MISSED '}  {ratio:.1f}× (targets: ≤ {TARGET_SECONDS:g} s, ≥ {TARGET_RATIO:g}×)")
    return 3 if options.require and not met else 0


if __name__ == "__main__":
    sys.exit(main())
