"""`segship run`: one command from a checkpoint to a report; run again it takes what is there."""

from __future__ import annotations

import json

import pytest
from made_pictures import write_dataset, write_pictures

torch = pytest.importorskip("torch")
pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A seeded UNet++ run folder. Its first head alone is exported, so that the test is quick."""
    from segship.networks.unetplusplus import NestedUNet

    folder = tmp_path_factory.mktemp("run") / "seeded"
    folder.mkdir()
    torch.manual_seed(0)
    network = NestedUNet(1, deep_supervision=True)
    with torch.no_grad():
        network.get_submodule("conv0_0").bn1.running_var.fill_(2e-6)
        network.get_submodule("conv0_0").bn1.running_mean.zero_()
    torch.save(network.state_dict(), folder / "model.pth")
    (folder / "config.yml").write_text("name: seeded\ndeep_supervision: true\ninput_h: 32\ninput_w: 32\n")
    return folder


def test_from_checkpoint_to_report_and_again(segship, checkpoint, tmp_path):
    data = write_dataset(tmp_path / "data", 3)
    write_pictures(tmp_path / "calibration", 4, first=100)
    command = [
        "run", checkpoint, "--data", data, "--calibrate", tmp_path / "calibration", "-o", tmp_path / "out", "--head", "1",
        "--batch", "1,2", "--iterations", 1, "--repeat", 1, "--against", "onnxruntime",
    ]  # fmt: skip
    first = segship(*command)
    assert first.code == 0, first.err
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["metric"] == {"name": "iou", "higher_is_better": True}
    assert {"stage", "max_abs", "mean_abs", "label_agreement"} <= set(summary["parity"][0])
    rows = {(row["precision"], row["engine"]): row for row in summary["variants"]}
    assert {("fp32", "openvino"), ("fp16", "openvino"), ("int8", "openvino")} <= set(rows)
    assert rows["fp32", "openvino"]["value"] is not None
    assert rows["fp32", "openvino"]["latency_ms"].keys() == {"1", "2"}
    assert rows["int8", "openvino"]["executed"]["convolution_share"]["i8"] > 0
    assert summary["environment"]
    assert len(list((out / "predictions").glob("*.png"))) == 3
    assert (out / "predictions" / "summary.json").exists()
    html = (out / "report.html").read_text()
    assert "<script" not in html
    assert 'src="http' not in html
    assert str(out / "report.html") in first.out

    package = (out / "net.segship").read_bytes()
    again = segship(*command)
    assert again.code == 0, again.err
    for step in ("export", "fp16", "int8", "evaluate", "benchmark"):
        assert f"{step}: already there" in again.out + again.err
    assert (out / "net.segship").read_bytes() == package
    assert segship("verify", out / "net.segship").code == 0


def test_data_is_divided_by_a_hash_when_nothing_else_is_said(tmp_path):
    from segship.workflow import RunOptions, _divide, _Folder

    data = write_dataset(tmp_path / "data", 12)
    options = RunOptions(data=data, output=tmp_path / "out")
    evaluation, calibration, notes = _divide(options, _Folder(options.output, False), lambda _: None)
    record = json.loads((tmp_path / "out" / "division.json").read_text())
    assert evaluation is not None
    assert calibration is not None
    assert not set(record["calibration"]) & set(record["evaluation"])
    assert len(record["calibration"]) + len(record["evaluation"]) == 12
    assert evaluation.ids == record["evaluation"]
    assert len(calibration.read_text().split()) == len(record["calibration"])
    assert "hash" in notes[0]


def test_no_data_says_so(segship, checkpoint, tmp_path):
    outcome = segship("run", checkpoint, "--data", tmp_path / "none", "-o", tmp_path / "out")
    assert outcome.code == 2
    assert "--data" in outcome.error
