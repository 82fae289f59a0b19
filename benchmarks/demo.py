"""`make demo`: from the shipped checkpoint to a report, on real nuclei images that any machine can get.

Without --data the images are the one real fluorescence image with ground truth that the stardist package on
PyPI carries (from the 2018 Data Science Bowl), cut into four tiles of 256 x 256 pixels: two calibrate int8,
two are scored. That is a taste, not a measurement; --data stage1_train.zip scores the full validation split.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CHECKPOINT = REPOSITORY / "models" / "unetplusplus-dsb2018" / "model.pth"
STARDIST = "stardist==0.9.2"
TILE = 256


def stardist_file(name: str) -> Path:
    """The path of a data file inside the stardist wheel, installed when missing; the package is never imported."""
    try:
        entries = files("stardist") or []
    except PackageNotFoundError:
        print(f"fetching the demo's image from PyPI ({STARDIST}, data only)", flush=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", STARDIST], check=True)
        entries = files("stardist") or []
    return Path(str(next(entry for entry in entries if entry.name == name).locate()))


def cut_tiles(out: Path) -> tuple[Path, Path]:
    """Write ``calibration/`` (two tiles) and ``data/{images,masks}`` (the other two); returns both folders."""
    import numpy as np
    from PIL import Image

    # The file holds 8-bit values in 16-bit pixels; the mask numbers the nuclei.
    pixels = np.asarray(Image.open(stardist_file("img2d.tif"))).astype(np.uint8)
    nuclei = np.asarray(Image.open(stardist_file("mask2d.tif")))
    places = {
        "calibration": out / "calibration",
        "images": out / "data" / "images",
        "masks": out / "data" / "masks",
    }
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    corners = [(y, x) for y in (0, TILE) for x in (0, TILE)]
    for number, (y, x) in enumerate(corners):
        box = (slice(y, y + TILE), slice(x, x + TILE))
        name = f"nuclei_{y}_{x}.png"
        if number in (1, 2):
            Image.fromarray(pixels[box]).save(places["calibration"] / name)
        else:
            Image.fromarray(pixels[box]).save(places["images"] / name)
            Image.fromarray(((nuclei[box] > 0) * 255).astype(np.uint8)).save(places["masks"] / name)
    return places["calibration"], out / "data"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="stage1_train.zip of the 2018 Data Science Bowl, or its folder")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    options = parser.parse_args()
    command = [sys.executable, "-m", "segship", "run", str(CHECKPOINT.parent), "-o", str(options.out)]
    if options.data:
        command += ["--data", str(options.data), "--split", "ascend"]
    else:
        calibration, data = cut_tiles(options.out / "input")
        command += ["--data", str(data), "--calibrate", str(calibration)]
    code = subprocess.run(command).returncode
    if code == 0 and not options.data:
        print(
            "Two tiles are a taste. The score on 133 validation images stands in models/unetplusplus-dsb2018/README.md;\n"
            "to measure it yourself: make demo DATA=path/to/stage1_train.zip OUT=out/full"
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
