"""mmseg's own tools/test.py, unchanged, scores a package on a toy Cityscapes tree and prints what segship computes.

Needs the environment of `make interop-mmseg`; skipped where it is not there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_mmseg import cityscapes_tree, slide, street_package

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = REPOSITORY / ".interop" / "mmseg" / "bin" / "python"
NETWORK = "unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="mmseg is not installed beside; type: make interop-mmseg"),
]


def mim(part: str) -> Path:
    """What mmseg's wheel brings beside its code: its configs and tools."""
    return next((REPOSITORY / ".interop" / "mmseg" / "lib").glob(f"python*/site-packages/mmseg/.mim/{part}"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A config that an mmseg user would have: theirs, with the data's place, a small scale and no further processes."""
    folder = tmp_path_factory.mktemp("toy")
    root = cityscapes_tree(folder / "cityscapes", count=3)
    ratios = [{"type": "Resize", "scale_factor": r, "keep_ratio": True} for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]
    flips = [{"type": "RandomFlip", "prob": p, "direction": "horizontal"} for p in (0.0, 1.0)]
    tta = {
        "type": "TestTimeAug",
        "transforms": [ratios, flips, [{"type": "LoadAnnotations"}], [{"type": "PackSegInputs"}]],
    }
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
    loader = {"num_workers": 0, "persistent_workers": False, "dataset": {"data_root": str(root), "pipeline": pipeline}}
    (folder / "net.py").write_text(
        f"_base_ = [{str(mim('configs') / NETWORK)!r}]\n"
        f"test_dataloader = {loader!r}\n"
        f"tta_pipeline = [{{'type': 'LoadImageFromFile'}}, {tta!r}]\n"
        "model = dict(decode_head=dict(num_classes=19))\n"
    )
    return folder


def run_tester(config: Path, checkpoint: Path, folder: Path, *flags: str) -> dict[str, float]:
    """Run tools/test.py; the summary that it prints."""
    command = [
        str(PYTHON),
        str(mim("tools") / "test.py"),
        str(config),
        str(checkpoint),
        "--work-dir",
        str(folder / "work"),
    ]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "SEGSHIP_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run([*command, *flags], env=settings, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(text for text in (done.stdout + done.stderr).splitlines() if "mIoU:" in text and "aAcc:" in text)
    return {name: float(value) for name, value in re.findall(r"(aAcc|mIoU|mAcc): +([\d.]+)", line)}


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_the_tester_prints_what_evaluate_computes(segship, toy, tmp_path, mode):
    tiling = slide() if mode == "slide" else None
    package = street_package(tmp_path / "street.segship", tiling=tiling).path
    assert segship("mmseg-eval-config", toy / "net.py", package, "-o", tmp_path / "eval.py", "--threads", 1).code == 0
    printed = run_tester(tmp_path / "eval.py", tmp_path / "eval.pth", tmp_path, "--out", str(tmp_path / "theirs"))
    done = segship("evaluate", package, toy / "cityscapes", "--layout", "cityscapes", "--json", "--threads", 1)
    assert done.code == 0, done.err
    metrics = json.loads(done.out)["metrics"]
    assert printed.keys() == {"aAcc", "mIoU", "mAcc"}
    for name, value in printed.items():
        assert value == pytest.approx(metrics[name], abs=0.01), name
    assert segship("predict", package, toy / "cityscapes" / "leftImg8bit", "-o", tmp_path / "ours").code == 0
    written = sorted((tmp_path / "theirs").glob("*.png"))
    assert len(written) == 3
    for path in written:
        ours = next((tmp_path / "ours").rglob(path.name))
        a, b = (cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in (path, ours))
        assert a.shape == b.shape
        assert float(np.mean(a == b)) >= 0.9999


def test_test_time_augmentation_is_mmsegs_own(segship, toy, tmp_path):
    package = street_package(tmp_path / "street.segship").path
    assert segship("mmseg-eval-config", toy / "net.py", package, "-o", tmp_path / "eval.py").code == 0
    plain = run_tester(tmp_path / "eval.py", tmp_path / "eval.pth", tmp_path)
    augmented = run_tester(tmp_path / "eval.py", tmp_path / "eval.pth", tmp_path, "--tta")
    assert augmented != plain
    done = segship(
        "evaluate", package, toy / "cityscapes", "--layout", "cityscapes", "--tta", "1.x", "--json", "--threads", 1
    )
    assert done.code == 0, done.err
    metrics = json.loads(done.out)["metrics"]
    for name, value in augmented.items():
        assert value == pytest.approx(metrics[name], abs=0.02), name


def test_a_config_that_normalises_otherwise_is_refused(segship, toy, tmp_path):
    package = street_package(tmp_path / "street.segship").path
    (tmp_path / "other.py").write_text(
        f"_base_ = [{str(toy / 'net.py')!r}]\nmodel = dict(data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255, 255]))\n"
    )
    assert segship("mmseg-eval-config", tmp_path / "other.py", package, "-o", tmp_path / "eval.py").code == 0
    with pytest.raises(AssertionError, match="not of one network"):
        run_tester(tmp_path / "eval.py", tmp_path / "eval.pth", tmp_path)
