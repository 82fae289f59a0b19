"""Whatever is handed in: one line that says what is wrong and what to do, the right exit code, and nothing lost."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_pictures import huge_png, picture, write_dataset, write_pictures

from segship.package import open_package


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("text.png", b"this is no picture at all", "text.png"),
        ("empty.png", b"", "empty.png"),
        ("cut.png", None, "cut.png"),
        ("cut.jpg", None, "cut.jpg"),
        ("huge.png", None, "40,000"),
    ],
)
def test_a_broken_file_is_named_and_the_others_are_done(segship, package, tmp_path, name, content, says):
    good = write_pictures(tmp_path / "in", 3)
    bad = tmp_path / "in" / name
    if name == "huge.png":
        huge_png(bad)
    elif content is None:
        whole = cv2.imencode(bad.suffix, picture(9))[1].tobytes()
        bad.write_bytes(whole[: len(whole) * 2 // 3])
    else:
        bad.write_bytes(content)
    outcome = segship("predict", package, tmp_path / "in", "-o", tmp_path / "out")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    failures = [line for line in outcome.err.splitlines() if line.startswith("failed:")]
    assert len(failures) == 1
    assert says in failures[0]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == [p.name for p in good]


def test_a_directory_without_images(segship, package, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    outcome = segship("predict", package, tmp_path / "in", "-o", tmp_path / "out")
    assert outcome.code == 2
    assert str(tmp_path / "in") in outcome.error


def test_an_input_that_is_not_there(segship, package, tmp_path):
    outcome = segship("predict", package, tmp_path / "none.png", "-o", tmp_path / "out")
    assert outcome.code == 2
    assert "none.png" in outcome.error


def test_wrong_checkpoint(segship, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"layer.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    outcome = segship("export", tmp_path / "other.pth", "-o", tmp_path / "net.segship")
    assert outcome.code == 1
    assert "conv0_4.conv1.weight" in outcome.error
    assert "layer.weight" in outcome.error
    assert not (tmp_path / "net.segship").exists()


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_malicious_pickle_is_refused_and_not_run(segship, tmp_path, form):
    torch = pytest.importorskip("torch")
    trap, path = tmp_path / "trapped", tmp_path / "evil.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"conv0_4.conv1.weight": _Malicious(trap)}))
    else:
        torch.save({"conv0_4.conv1.weight": _Malicious(trap)}, path)
    outcome = segship("export", path, "-o", tmp_path / "net.segship")
    assert outcome.code == 1
    assert "system" in outcome.error
    assert "--trust-pickle" in outcome.error
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04broken"])
def test_a_checkpoint_that_is_none(segship, tmp_path, content):
    (tmp_path / "net.pth").write_bytes(content)
    outcome = segship("export", tmp_path / "net.pth", "-o", tmp_path / "net.segship")
    assert outcome.code == 1
    assert "net.pth" in outcome.error


@pytest.mark.parametrize("verb", ["predict", "inspect", "verify"])
def test_a_checkpoint_where_a_package_belongs(segship, tmp_path, verb):
    torch = pytest.importorskip("torch")
    torch.save({"layer.weight": torch.zeros(3, 3)}, tmp_path / "net.pth")
    further = [write_pictures(tmp_path / "in", 1)[0], "-o", tmp_path / "out"] if verb == "predict" else []
    outcome = segship(verb, tmp_path / "net.pth", *further)
    assert outcome.code == 1
    assert "PyTorch file" in outcome.error
    assert "segship export" in outcome.error


def test_a_run_folder_where_a_package_belongs(segship, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pth").write_bytes(b"x")
    outcome = segship("inspect", tmp_path / "run")
    assert outcome.code == 1
    assert "segship export" in outcome.error


def test_free_sizes_and_a_fixed_batch_do_not_go_together(segship, tmp_path):
    pytest.importorskip("torch")
    outcome = segship("export", tmp_path / "any.pth", "-o", tmp_path / "n.segship", "--shape", "dynamic", "--batch", 4)
    assert outcome.code == 2
    assert "--shape static" in outcome.error


@pytest.mark.parametrize(("verb", "known"), [("train", "unetplusplus"), ("prepare", "dsb2018")])
def test_an_unknown_world_lists_those_that_there_are(segship, verb, known):
    outcome = segship(verb, "nonsense")
    assert outcome.code == 2
    assert known in outcome.error


def test_training_without_torch_says_what_to_install(segship, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("segship.training", "segship.networks"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch raises ModuleNotFoundError
    for world, rate in (("unetplusplus", "--lr"), ("unet3d_mlperf", "--learning_rate")):
        outcome = segship("train", world)
        assert outcome.code == 1
        assert "segship[train]" in outcome.error
        outcome = segship("train", world, "--help")
        assert outcome.code == 0
        assert rate in outcome.out


def test_an_empty_folder_stops_a_run_before_its_export(segship, tmp_path):
    (tmp_path / "data").mkdir()
    outcome = segship("run", tmp_path / "none.pth", "--data", tmp_path / "data", "-o", tmp_path / "out")
    assert outcome.code == 2
    assert "holds no image" in outcome.error
    assert "export" not in outcome.err


@pytest.mark.parametrize(
    ("verb", "says"),
    [("predict", "--resume"), ("train", "--resume"), ("run", "same command goes on"), ("export", "starts over")],
)
def test_an_interruption_says_how_to_go_on(segship, monkeypatch, verb, says):
    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("segship.cli.cli.main", interrupt)
    outcome = segship(verb, "x")
    assert outcome.code == 130
    assert says in outcome.err


def _rewritten(package: Path, target: Path, change) -> Path:
    with zipfile.ZipFile(package) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target


@pytest.mark.parametrize("verb", ["predict", "verify", "inspect", "evaluate", "compile", "benchmark"])
def test_a_changed_byte_in_the_package(segship, package, tmp_path, verb):
    def flip(files):
        data = bytearray(files["manifest.json"])
        data[len(data) // 2] ^= 1
        files["manifest.json"] = bytes(data)

    changed = _rewritten(package, tmp_path / "changed.segship", flip)
    picture_path = write_pictures(tmp_path / "in", 1)[0]
    arguments = {
        "predict": [picture_path, "-o", tmp_path / "out"],
        "evaluate": [write_dataset(tmp_path / "data", 1)],
        "compile": ["--precision", "fp16"],
    }
    outcome = segship(verb, changed, *arguments.get(verb, []))
    assert outcome.code == 3
    assert "manifest.json was changed" in outcome.error


def test_a_changed_graph_is_found_before_it_runs(segship, package, tmp_path):
    def flip(files):
        files["graphs/fp32.onnx"] = files["graphs/fp32.onnx"][:-1] + b"\0"

    changed = _rewritten(package, tmp_path / "changed.segship", flip)
    outcome = segship("predict", changed, write_pictures(tmp_path / "in", 1)[0], "-o", tmp_path / "out")
    assert outcome.code == 3
    assert "graphs/fp32.onnx" in outcome.error


def test_a_zip_slip_package(segship, tmp_path):
    with zipfile.ZipFile(tmp_path / "slip.segship", "w") as archive:
        archive.writestr("../../evil", b"x")
    outcome = segship("verify", tmp_path / "slip.segship")
    assert outcome.code == 1
    assert "unsafe file name" in outcome.error


def test_an_unknown_manifest_key(segship, package, tmp_path):
    import hashlib

    def add(files):
        data = json.loads(files["manifest.json"])
        data["network"]["surprise"] = 1
        files["manifest.json"] = json.dumps(data).encode()
        files["SHA256SUMS"] = "".join(
            f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files) if name != "SHA256SUMS"
        ).encode()

    outcome = segship("inspect", _rewritten(package, tmp_path / "odd.segship", add))
    assert outcome.code == 1
    assert "network.surprise" in outcome.error


def test_calibration_images_that_are_also_validation_images(segship, package, tmp_path):
    pytest.importorskip("nncf")
    data = write_dataset(tmp_path / "data", 4)
    folder = tmp_path / "calibration"
    write_pictures(folder, 3, first=100)
    # the same picture under another name and in another format
    cv2.imwrite(str(folder / "renamed.bmp"), cv2.imread(str(data / "images" / "cell_002.png")))
    before = package.read_bytes()
    outcome = segship(
        "compile", package, "--precision", "int8", "--calibrate", folder, "--validate", data, "--max-drop", "0.5",
        "-o", tmp_path / "int8.segship",
    )  # fmt: skip
    assert outcome.code == 1
    assert "renamed.bmp" in outcome.error
    assert package.read_bytes() == before
    assert not (tmp_path / "int8.segship").exists()


def _unwritable(monkeypatch, error: OSError) -> None:
    def refuse(self, *_args, **_kwargs):
        raise error

    monkeypatch.setattr(Path, "write_bytes", refuse)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied"),
        OSError(30, "Read-only file system"),
        OSError(28, "No space left on device"),
    ],
)
def test_output_folder_that_cannot_be_written_or_a_full_disk(segship, package, tmp_path, monkeypatch, error):
    inputs = write_pictures(tmp_path / "in", 2)
    segship(
        "predict", package, *inputs, "-o", tmp_path / "warm"
    )  # the model cache is written, so only results are left
    _unwritable(monkeypatch, error)
    outcome = segship("predict", package, *inputs, "-o", tmp_path / "out")
    assert outcome.code == 1
    assert error.strerror in outcome.error
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_output_that_is_a_file(segship, package, tmp_path):
    (tmp_path / "out").write_text("in the way")
    outcome = segship("predict", package, write_pictures(tmp_path / "in", 1)[0], "-o", tmp_path / "out")
    assert outcome.code in (1, 2)
    assert str(tmp_path / "out") in outcome.error


def test_an_input_is_never_overwritten(segship, package, tmp_path):
    inputs = write_pictures(tmp_path / "in", 2)
    before = inputs[0].read_bytes()
    outcome = segship("predict", package, *inputs, "-o", tmp_path / "in")
    assert outcome.code == 2
    assert "overwrite" in outcome.error
    assert inputs[0].read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_keeps_what_is_done_and_resume_goes_on(package, tmp_path):
    count = 1500  # seconds of work, so that the signal arrives while there is some left
    write_pictures(tmp_path / "in", count)
    environment = {**os.environ, "SEGSHIP_CACHE_DIR": str(tmp_path / "cache")}
    command = [
        sys.executable,
        "-m",
        "segship",
        "predict",
        str(package),
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
    ]
    # where the tests run in the background of a script, Ctrl-C is ignored, and a new process takes that over
    process = subprocess.Popen(
        [*command, "--batch", "1"], env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("*.png"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "resume" in err
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert 5 <= len(done) < count
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.endswith(".tmp")]
    for name in done:
        assert cv2.imread(str(tmp_path / "out" / name), cv2.IMREAD_UNCHANGED) is not None
    again = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} already there" in again.stdout
    assert len(list((tmp_path / "out").glob("*.png"))) == count
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time_ns for name, time_ns in done.items())


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        ["predict", "PACKAGE", "-o", "out"],
        ["predict", "PACKAGE", "x.png"],
        ["nonsense"],
        ["score", "nonsense", "a", "b"],
        ["benchmark", "PACKAGE", "--batch", "x"],
        ["compile", "PACKAGE", "--precision", "fp7"],
        ["compile", "PACKAGE", "--precision", "int8"],
        ["predict", "PACKAGE", "x.png", "-o", "out", "--engine", "nonsense"],
    ],
)
def test_unusable_arguments_are_exit_code_2(segship, package, arguments):
    outcome = segship(*[package if a == "PACKAGE" else a for a in arguments])
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("device", ["cuda", "gpu:7", "tpu"])
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "pytorch"])
def test_a_device_that_is_not_there_is_refused(segship, package, tmp_path, engine, device):
    if device == "cuda" and engine == "pytorch":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
    picture_path = write_pictures(tmp_path / "in", 1)[0]
    outcome = segship("predict", package, picture_path, "-o", tmp_path / "out", "--engine", engine, "--device", device)
    assert outcome.code in (1, 2)
    assert device.split(":")[0] in outcome.error.lower()
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_precision_the_package_lacks_names_the_command_that_makes_it(segship, package, tmp_path):
    picture_path = write_pictures(tmp_path / "in", 1)[0]
    outcome = segship("predict", package, picture_path, "-o", tmp_path / "out", "--precision", "bf16")
    assert outcome.code == 1
    assert "segship compile --precision bf16" in outcome.error


def test_nan_in_an_array_is_refused(package):
    import segship as library

    with library.load(package) as model, pytest.raises(library.SegshipError):
        model(np.full((8, 8, 3), np.nan, np.float32))


def test_the_package_itself_is_left_alone_by_all_of_this(package):
    open_package(package, verify=True)
