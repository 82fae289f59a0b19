"""`segship export --generic` with mmseg installed: the network that mmseg builds, beside the one that segship defines.

Needs the environment of `make interop-mmseg`; skipped where it is not there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segship.families import mmseg
from segship.inference.predictor import Predictor
from segship.networks.mmseg_segmentor import HeadShape, NetworkShape
from segship.networks.mmseg_unet import UNetShape

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = REPOSITORY / ".interop" / "mmseg" / "bin" / "python"
BASE = 4
NAMES = ("ground", "wall", "tree", "sky", "person")
CONFIG = f"""
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder', pretrained='open-mmlab://not_fetched',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[120, 110, 100], std=[60, 50, 55], bgr_to_rgb=True, pad_val=0,
                           seg_pad_val=255),
    backbone=dict(type='UNet', in_channels=3, base_channels={BASE}, num_stages=5, norm_cfg=norm_cfg),
    decode_head=dict(type='FCNHead', in_channels={BASE}, in_index=4, channels={BASE}, num_convs=1, concat_input=False,
                     num_classes={len(NAMES)}, norm_cfg=norm_cfg, align_corners=False),
    auxiliary_head=dict(type='FCNHead', in_channels={2 * BASE}, in_index=3, channels={BASE}, num_convs=1,
                        concat_input=False, num_classes={len(NAMES)}, norm_cfg=norm_cfg, align_corners=False),
    train_cfg=dict(), test_cfg=dict(mode='slide', crop_size=(64, 96), stride=(48, 64)))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(160, 96), keep_ratio=True),
                 dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
test_dataloader = dict(dataset=dict(type='BaseSegDataset', metainfo=dict(classes={NAMES}), pipeline=test_pipeline))
"""

needs_mmseg = pytest.mark.skipif(
    not PYTHON.exists(), reason="mmseg is not installed beside; type: make .interop/mmseg/.ready"
)


@pytest.fixture
def trained(tmp_path) -> tuple[Path, Path]:
    """A checkpoint with seeded weights and its config."""
    head = HeadShape(kind="fcn", inputs=BASE, channels=BASE, classes=len(NAMES), maps=(4,))
    shape = NetworkShape(backbone=UNetShape(base=BASE, encoder=(2,) * 5, decoder=(2,) * 4), heads=(head,))
    network = mmseg.build_network(shape)
    generator = torch.Generator().manual_seed(3)
    state = network.state_dict()
    for key, value in state.items():
        if value.ndim == 4:
            state[key] = torch.randn(value.shape, generator=generator) * (2.0 / value[0].numel()) ** 0.5
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "net.pth")
    (tmp_path / "net.py").write_text(CONFIG)
    return tmp_path / "net.pth", tmp_path / "net.py"


def in_mmsegs_environment(folder: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    settings = os.environ | {"OMP_NUM_THREADS": "1", "SEGSHIP_CACHE_DIR": str(folder / "cache")}
    command = [str(PYTHON), "-m", "segship", *map(str, arguments)]
    return subprocess.run(command, env=settings, capture_output=True, text=True, cwd=folder)


@needs_mmseg
@pytest.mark.slow
def test_mmsegs_network_and_ours_become_the_same_package(segship, trained, tmp_path):
    weights, config = trained
    wanted = ("export", weights, "--config", config, "--engine", "onnxruntime", "--json")
    done = in_mmsegs_environment(tmp_path, *wanted, "--generic", "-o", tmp_path / "theirs.segship")
    assert done.returncode == 0, done.stderr
    assert {row["passed"] for row in json.loads(done.stdout)["parity"]} == {True}
    assert segship(*wanted, "-o", tmp_path / "ours.segship").code == 0
    x = np.random.default_rng(0).normal(size=(1, 3, 80, 112)).astype(np.float32)
    with (
        Predictor.open(tmp_path / "theirs.segship", engine="onnxruntime", threads=1) as theirs,
        Predictor.open(tmp_path / "ours.segship", engine="onnxruntime", threads=1) as ours,
    ):
        np.testing.assert_allclose(theirs.network(x), ours.network(x), atol=1e-4)
        a, b = (predictor.manifest.recipe.model_dump() for predictor in (theirs, ours))
    for recipe in (a, b):  # what may differ is what is told of the network, in words
        recipe["network"].pop("architecture")
        recipe["options"].pop("align_corners", None)
        recipe.pop("description")
    assert a == b
    assert a["network"]["size"] is None
    assert a["network"]["size_multiple"] == (16, 16)


@needs_mmseg
def test_weights_of_another_network_are_refused(trained, tmp_path):
    weights, config = trained
    content = torch.load(weights, weights_only=True)
    key = "backbone.encoder.3.1.convs.0.conv.weight"
    state = {name: value for name, value in content["state_dict"].items() if name != key}
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "less.pth")
    done = in_mmsegs_environment(
        tmp_path, "export", tmp_path / "less.pth", "--config", config, "--family", "mmseg", "--generic",
        "-o", tmp_path / "net.segship",
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "1 missing" in done.stderr
    assert key in done.stderr
    assert not (tmp_path / "net.segship").exists()


@pytest.mark.skipif(importlib.util.find_spec("mmseg") is not None, reason="mmseg is installed here")
def test_without_mmseg_the_error_says_what_to_install(segship, trained, tmp_path):
    weights, config = trained
    done = segship("export", weights, "--config", config, "--generic", "-o", tmp_path / "net.segship")
    assert done.code == 1
    assert "pip install mmsegmentation==1.2.2" in done.error
