"""`segship run` on a toy Cityscapes: a U-Net of mmseg's from its checkpoint to a report, val scored, train calibrated on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from tiny_labels import TRAIN, VAL, cityscapes_tree

from segship.package import open_package
from segship.workflow import RunOptions, _divide, _Folder

torch = pytest.importorskip("torch")
pytest.importorskip("nncf")


CONFIG = """
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
                           bgr_to_rgb=True, pad_val=0),
    backbone=dict(type='UNet', in_channels=3, base_channels=8, num_stages=5, strides=(1, 1, 1, 1, 1),
                  enc_num_convs=(2, 2, 2, 2, 2), dec_num_convs=(2, 2, 2, 2), downsamples=(True, True, True, True),
                  enc_dilations=(1, 1, 1, 1, 1), dec_dilations=(1, 1, 1, 1), norm_cfg=dict(type='SyncBN')),
    decode_head=dict(type='FCNHead', in_channels=8, in_index=4, channels=8, num_convs=1, concat_input=False,
                     num_classes=19, norm_cfg=dict(type='SyncBN'), align_corners=False),
    test_cfg=dict(mode='whole'))
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 48), keep_ratio=True), dict(type='PackSegInputs')]
test_dataloader = dict(dataset=dict(type='CityscapesDataset', pipeline=test_pipeline))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """FCN-UNet-S5-D16 with 8 channels in the place of 64, seeded, its configuration inside."""
    from segship.families.mmseg import build_network
    from segship.networks.mmseg_segmentor import HeadShape, NetworkShape
    from segship.networks.mmseg_unet import UNetShape

    backbone = UNetShape(base=8, encoder=(2, 2, 2, 2, 2), decoder=(2, 2, 2, 2))
    head = HeadShape(kind="fcn", inputs=8, channels=8, classes=19, maps=(4,))
    torch.manual_seed(0)
    network = build_network(NetworkShape(backbone=backbone, heads=(head,)))
    path = tmp_path_factory.mktemp("unet") / "small-unet.pth"
    torch.save({"meta": {"cfg": CONFIG}, "state_dict": network.state_dict()}, path)
    return path


@pytest.mark.slow
def test_from_checkpoint_to_report(segship, checkpoint, tmp_path):
    tree = cityscapes_tree(tmp_path / "cs", train_ids=False, ids=True)
    out = tmp_path / "out"
    done = segship(
        "run", checkpoint, "--data", tree, "-o", out, "--precision", "int8", "--batch", "1", "--iterations", 1,
        "--repeat", 1, "--against", "onnxruntime",
    )  # fmt: skip
    assert done.code == 0, done.err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["dataset"] | {"dataset_sha256": "", "split_sha256": ""} == {
        "cases": 4, "dataset": "cs", "layout": "cityscapes", "split": "val", "dataset_sha256": "", "split_sha256": "",
    }  # fmt: skip
    rows = {row["precision"]: row for row in summary["variants"] if row["engine"] == "openvino"}
    assert rows["int8"]["executed"]["convolution_share"]["i8"] > 0
    assert 0 <= rows["fp32"]["value"] < 0.5, "seeded, not trained"
    assert rows["int8"]["drop_detail"]["cases"] == 4
    package = open_package(out / "net.segship")
    assert package.provenance()["calibration"]["int8"]["images"] == len(TRAIN)
    assert [label.file_value for label in package.manifest.labels][:3] == [7, 8, 11]
    assert {path.stem for path in (out / "predictions").glob("*.png")} == {f"{name}_leftImg8bit" for name in VAL}
    page = (out / "report.html").read_text()
    assert "Class by class" in page
    assert "FCN-UNet-S5-D16 160k" in page
    assert "69.10" in page
    scored = segship("score", "mmseg", tree, out / "predictions", "--json")
    assert json.loads(scored.out)["metrics"] == json.loads((out / "evaluation" / "summary.json").read_text())["metrics"]


def test_val_alone_is_divided_by_pixels(tmp_path):
    tree = cityscapes_tree(tmp_path / "cs")
    for path in (tree / "leftImg8bit" / "train").rglob("*.png"):
        path.unlink()
    options = RunOptions(data=tree, output=tmp_path / "out")
    evaluation, calibration, notes = _divide(options, _Folder(options.output, False), lambda _: None)
    assert evaluation is not None
    assert calibration is not None
    assert set(evaluation.ids) < set(VAL)
    assert "divided by a hash" in notes[0]


def test_train_is_calibrated_on_and_val_scored(tmp_path):
    tree = cityscapes_tree(tmp_path / "cs")
    options = RunOptions(data=tree, output=tmp_path / "out")
    evaluation, calibration, notes = _divide(options, _Folder(options.output, False), lambda _: None)
    assert evaluation is not None
    assert (evaluation.ids, evaluation.split, notes) == (list(VAL), "val", [])
    assert calibration == tree
