"""Bad packages, bad files, bad arguments: the same exit code as Python's and one line that says the same thing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
from cpp_cases import ARGMAX, graph, labels, picture, picture_package, tiling, volume_package, write_pictures
from cpp_compare import Runner, same

from segship.manifest import Divide

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_package(tmp_path_factory.mktemp("package") / "net.segship").path


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("in"), ((40, 50),))[0]


def contents(package: Path) -> Files:
    with zipfile.ZipFile(package) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path: Path, files: Files, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def summed(files: Files) -> Files:
    """With hashes that fit, so that only what the files say is wrong."""
    names = sorted(name for name in files if name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in names]
    return files | {"SHA256SUMS": "".join(lines).encode()}


def edited(package: Path, path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The package with another manifest, hashes put right."""
    files = contents(package)
    manifest = json.loads(files["manifest.json"])
    change(manifest)
    return zipped(path, summed(files | {"manifest.json": json.dumps(manifest).encode()}))


# ------------------------------------------------------------------------------------------------- packages

NO_PACKAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", ""),
    "text": (b"hello, this is no package", ""),
    "a zip's first bytes": (b"PK\x03\x04" + bytes(60), ""),
    "a picture": (cv2.imencode(".png", picture(20, 20))[1].tobytes(), ""),
}


@pytest.mark.parametrize("name", NO_PACKAGE)
def test_what_is_no_package(name: str, cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.segship"
    path.write_bytes(NO_PACKAGE[name][0])
    same(run_cpp(path, cell), python(path, cell), "x.segship is not a .segship package", "segship export")


def test_a_package_that_is_not_there(cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    path = tmp_path / "none.segship"
    same(run_cpp(path, cell), python(path, cell), "none.segship", "does not exist", "segship export")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:\\evil", "a//b", ".hidden"])
def test_unsafe_names(name: str, cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.segship", {name: b"x", "manifest.json": b"{}"})
    same(run_cpp(path, cell), python(path, cell), "unsafe file name")
    assert not (tmp_path.parent / "evil").exists()


def test_a_bomb(cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.segship", {"graphs/fp32.onnx": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    same(run_cpp(path, cell), python(path, cell), "would unpack")


def test_too_many_files(cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.segship", {f"f{i}": b"" for i in range(10_001)})
    same(run_cpp(path, cell), python(path, cell), "limits")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name(package: Path, cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    files = contents(package)
    path = tmp_path / "x.segship"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in [*files.items(), ("manifest.json", b"{}")]:
            archive.writestr(name, data)
    same(run_cpp(path, cell), python(path, cell), "two files of the same name")


def test_an_encrypted_file(package: Path, cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    data = bytearray(package.read_bytes())
    place = data.index(b"PK\x01\x02")
    data[place + 8] |= 1  # the flag in the central directory
    path = tmp_path / "x.segship"
    path.write_bytes(data)
    same(run_cpp(path, cell), python(path, cell), "encrypted")


@pytest.mark.parametrize("name", ["manifest.json", "provenance.json", "SHA256SUMS"])
def test_a_needed_file_is_missing(
    name: str, package: Path, cell: Path, run_cpp: Runner, python: Any, tmp_path: Path
) -> None:
    path = zipped(tmp_path / "x.segship", {k: v for k, v in contents(package).items() if k != name})
    same(run_cpp(path, cell), python(path, cell), f"{name} is missing")


@pytest.mark.parametrize("name", ["manifest.json", "graphs/fp32.model.onnx"])
def test_a_changed_byte(
    name: str, package: Path, cell: Path, run_cpp: Runner, python: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = contents(package)
    data = bytearray(files[name])
    data[len(data) // 2] ^= 1
    path = zipped(tmp_path / "x.segship", files | {name: bytes(data)})
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))  # where no good copy of the graph lies
    same(run_cpp(path, cell), python(path, cell), name, "was changed after the package was written")


def test_a_file_that_is_not_in_the_sums(
    package: Path, cell: Path, run_cpp: Runner, python: Any, tmp_path: Path
) -> None:
    path = zipped(tmp_path / "x.segship", contents(package) | {"extra.txt": b"x"})
    same(run_cpp(path, cell), python(path, cell), "extra.txt")


@pytest.mark.parametrize("sums", [b"", b"nonsense\n", b"0" * 64 + b"  ../evil\n", b"\xff\xfe\x00"])
def test_damaged_sums(sums: bytes, package: Path, cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.segship", contents(package) | {"SHA256SUMS": sums})
    same(run_cpp(path, cell), python(path, cell), "x.segship")


def test_the_manifests_hash_of_a_graph(package: Path, cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["variants"][0]["sha256"]["model"] = "1" * 64

    path = edited(package, tmp_path / "x.segship", change)
    same(run_cpp(path, cell), python(path, cell), "graphs/fp32.model.onnx", "manifest")


def test_a_folder_with_a_link(package: Path, cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder)
    assert run_cpp(folder, cell).code == 0
    (folder / "link").symlink_to("/etc/passwd")
    same(run_cpp(folder, cell), python(folder, cell), "link")


def test_a_folder_that_is_no_package(cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pth").write_bytes(b"x")
    same(run_cpp(tmp_path / "run", cell), python(tmp_path / "run", cell), "segship export")


def test_a_checkpoint_where_a_package_belongs(cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    path = zipped(tmp_path / "net.pth", {"archive/data.pkl": b"x", "archive/version": b"3"})
    same(run_cpp(path, cell), python(path, cell), "PyTorch file", "segship export")


def test_a_package_cut_short_or_changed_anywhere(package: Path, cell: Path, run_cpp: Runner, tmp_path: Path) -> None:
    """Never a crash: an error of one line, or the right answer where the byte did not matter."""
    whole = package.read_bytes()
    path = tmp_path / "x.segship"
    for place in range(40, len(whole), max(1, len(whole) // 23)):
        path.write_bytes(whole[:place])
        assert run_cpp(path, cell, trace=False).error
    for place in range(7, len(whole), max(1, len(whole) // 41)):
        data = bytearray(whole)
        data[place] ^= 0x10
        path.write_bytes(data)
        ran = run_cpp(path, cell, trace=False)
        assert ran.code in (0, 1, 3), ran.err
        assert ran.code == 0 or ran.error


# ------------------------------------------------------------------------------------------------ manifests


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def without(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], None], tuple[str, ...]]] = {
    "a newer version": (put("manifest_version", value=2), ("manifest version 2",)),
    "an unknown key": (put("surprise", value=1), ("surprise",)),
    "an unknown key inside": (put("network", "surprise", value=1), ("surprise",)),
    "no labels": (put("labels", value=[]), ("labels",)),
    "a field less": (without("decode"), ("decode",)),
    "a number for a word": (put("decode", "activation", value=3), ("activation",)),
    "a word for a number": (put("network", "input_channels", value="three"), ("input_channels",)),
    "an unknown step": (put("preprocess", 0, "step", value="shuffle"), ("preprocess",)),
    "an unknown method": (put("decode", "restore_method", value="opencv:cubic"), ("restore_method",)),
    "an unknown reader": (put("input", "reader", value="exr"), ("input",)),
    "a negative size": (put("network", "size_multiple", value=[0, 16]), ("size_multiple",)),
    "a layout that does not fit": (put("network", "layout", value="NCDHW"), ()),
    "no fp32": (put("variants", 0, "precision", value="int8"), ("fp32",)),
    "a graph for another member": (put("network", "members", value=["a", "b"]), ()),
    "a path that leads out": (put("variants", 0, "graphs", "model", value="../fp32.onnx"), ()),
    "a division by zero": (put("preprocess", 0, "by", value=0), ("by",)),
    "a window of nothing": (
        put("tiling", value={"window": [0, 8], "step": [4, 4], "positions": "flush-last", "weighting": "uniform",
                             "pad_mode": "none", "average": "logits"}), ("window",),
    ),
    "a step of nothing": (
        put("tiling", value={"window": [8, 8], "step": [0, 4], "positions": "flush-last", "weighting": "uniform",
                             "pad_mode": "none", "average": "logits"}), ("step",),
    ),
    "a channel that is not there": (put("preprocess", 0, value={"step": "divide", "by": 2.0, "channel": 7}), ("channel",)),
    "a volume's step": (put("preprocess", 0, value={"step": "transpose", "axes": [2, 1, 0]}), ("transpose",)),
    "more planes than there are": (put("preprocess", 0, value={"step": "channels", "count": 9}), ("9",)),
    "another count of outputs": (put("network", "outputs", 0, "channels", value=4), ()),
    "another count of inputs": (put("network", "input_channels", value=4), ("4",)),
    "an input of another name": (put("network", "outputs", 0, "stride", value=2), ()),
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(name: str, package: Path, cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    change, words = MANIFESTS[name]
    path = edited(package, tmp_path / "x.segship", change)
    ours, theirs = run_cpp(path, cell), python(path, cell)
    assert theirs[0] != 0, "this manifest is fine"
    same(ours, theirs, *words)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"manifest_version": 1e400}']
)
def test_a_manifest_that_is_none(
    text: bytes, package: Path, cell: Path, run_cpp: Runner, python: Any, tmp_path: Path
) -> None:
    path = zipped(tmp_path / "x.segship", summed(contents(package) | {"manifest.json": text}))
    same(run_cpp(path, cell), python(path, cell), "manifest")


GRAPHS = {"nothing": b"", "text": b"not a graph", "half": graph()[: len(graph()) // 2]}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_is_none(
    name: str, package: Path, cell: Path, run_cpp: Runner, python: Any, tmp_path: Path
) -> None:
    files = contents(package)
    files["graphs/fp32.model.onnx"] = GRAPHS[name]
    manifest = json.loads(files["manifest.json"])
    manifest["variants"][0]["sha256"]["model"] = hashlib.sha256(GRAPHS[name]).hexdigest()
    files["manifest.json"] = json.dumps(manifest).encode()
    path = zipped(tmp_path / "x.segship", summed(files))
    ours = run_cpp(path, cell)
    same(ours, python(path, cell))
    said = ours.err.splitlines()[-1]  # OpenVINO's own readers may have said something before
    assert said.startswith("error: ")
    assert "onnx" in said


def test_a_network_that_gives_nan(cell: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    package = picture_package(tmp_path / "net.segship", Divide(by=1e-37)).path
    same(run_cpp(package, cell), python(package, cell), "NaN or infinite")


# ------------------------------------------------------------------------------------------------- pictures


def huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_broken_pictures_are_named_and_the_others_are_done(
    package: Path, run_cpp: Runner, python: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    good = write_pictures(folder, ((30, 40), (25, 25)))
    png = cv2.imencode(".png", picture(60, 80))[1].tobytes()
    jpeg = cv2.imencode(".jpg", picture(60, 80))[1].tobytes()
    changed = bytearray(png)
    changed[len(png) // 2] ^= 0xFF
    sums = bytearray(png)
    sums[-13] ^= 0xFF  # of the pixels, before the end's twelve bytes
    bad = {
        "text.png": b"this is no picture at all",
        "empty.png": b"",
        "cut.png": png[: len(png) * 2 // 3],
        "cut_late.png": png[:-14],
        "cut.jpg": jpeg[: len(jpeg) * 2 // 3],
        "cut_early.jpg": jpeg[:30],
        "huge.png": huge_png(),
        "changed.png": bytes(changed),
        "sums.png": bytes(sums),
        "header.png": png[:20],
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    ours, theirs = run_cpp(package, folder), python(package, folder)
    assert ours.code == theirs[0] == 1
    failures = {line.split(":")[1].strip() for line in ours.err.splitlines() if line.startswith("failed:")}
    assert len(failures) == len(bad), ours.err
    for name in bad:
        said = ours.failure(name)
        kind = {"empty": "empty", "cut": "cut short", "huge": "40,000"}.get(name.split(".")[0].split("_")[0])
        for word in [kind] if kind else []:
            assert word in said, said
            assert word in theirs[1]
    for path in good:
        assert (ours.folder / path.name).is_file()
        assert path.stem in ours.stages


def test_pictures_cut_anywhere(package: Path, run_cpp: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for suffix in (".png", ".jpg"):
        whole = cv2.imencode(suffix, picture(24, 31))[1].tobytes()
        for end in range(1, len(whole) - 12, 37):
            (folder / f"{end}{suffix}").write_bytes(whole[:end])
    ours = run_cpp(package, folder, trace=False)
    assert ours.code == 1
    assert len([line for line in ours.err.splitlines() if line.startswith("failed:")]) == len(list(folder.iterdir()))
    assert not list(ours.folder.rglob("*.png"))


def test_an_input_that_is_not_there(package: Path, run_cpp: Runner, python: Any, tmp_path: Path) -> None:
    same(run_cpp(package, tmp_path / "none.png"), python(package, tmp_path / "none.png"), "none.png")
    (tmp_path / "empty").mkdir()
    same(run_cpp(package, tmp_path / "empty"), python(package, tmp_path / "empty"), "holds no image")


def test_an_input_is_never_overwritten(package: Path, run_cpp: Runner, tmp_path: Path) -> None:
    inputs = write_pictures(tmp_path / "in", ((20, 20),))
    before = inputs[0].read_bytes()
    ran = run_cpp.words(str(package), str(inputs[0]), "-o", str(tmp_path / "in"))
    assert ran.code == 2
    assert "overwrite" in ran.error
    assert inputs[0].read_bytes() == before


def test_output_that_is_a_file(package: Path, cell: Path, run_cpp: Runner, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    ran = run_cpp.words(str(package), str(cell), "-o", str(tmp_path / "out"))
    assert ran.code in (1, 2)
    assert str(tmp_path / "out") in ran.err
    assert (tmp_path / "out").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_an_output_that_may_not_be_written(package: Path, cell: Path, run_cpp: Runner, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    ran = run_cpp.words(str(package), str(cell), "-o", str(tmp_path / "locked" / "out"))
    assert ran.code == 1
    assert "denied" in ran.error.lower()


def test_channels_that_do_not_fit(run_cpp: Runner, python: Any, cell: Path, tmp_path: Path) -> None:
    package = picture_package(tmp_path / "net.segship", planes=5).path
    same(run_cpp(package, cell), python(package, cell), "channel")


def test_a_size_that_the_network_does_not_take(run_cpp: Runner, python: Any, cell: Path, tmp_path: Path) -> None:
    package = picture_package(tmp_path / "net.segship", multiple=16).path
    same(run_cpp(package, cell), python(package, cell), "multiples of 16x16", "40x50")


# ------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["PACKAGE"],
        ["PACKAGE", "PICTURE"],
        ["PACKAGE", "-o", "OUT"],
        ["PACKAGE", "PICTURE", "-o"],
        ["PACKAGE", "PICTURE", "-o", "OUT", "--nonsense"],
        ["PACKAGE", "PICTURE", "-o", "OUT", "--precision"],
        ["PACKAGE", "PICTURE", "-o", "OUT", "--threads", "0"],
        ["PACKAGE", "PICTURE", "-o", "OUT", "--threads", "many"],
        ["PACKAGE", "PICTURE", "-o", "OUT", "--streams", "0"],
        ["PACKAGE", "PICTURE", "-o", "OUT", "--streams", "999999999999999999999"],
    ],
)
def test_unusable_arguments(arguments: list[str], package: Path, cell: Path, run_cpp: Runner, tmp_path: Path) -> None:
    named = {"PACKAGE": str(package), "PICTURE": str(cell), "OUT": str(tmp_path / "out")}
    ran = run_cpp.words(*[named.get(word, word) for word in arguments])
    assert ran.code == 2, ran.err
    assert ran.error
    assert not (tmp_path / "out").exists()


def test_precisions_that_there_are_not(package: Path, cell: Path, run_cpp: Runner) -> None:
    ran = run_cpp(package, cell, precision="bf16")
    assert ran.code == 1
    assert "segship compile --precision bf16" in ran.error
    ran = run_cpp(package, cell, precision="fp7")
    assert ran.code in (1, 2)
    assert "fp7" in ran.error


@pytest.mark.parametrize(
    "words",
    [
        {"tta": "1.x"},
        {"output": "cityscapes"},
        {"output": "color", "palette": True},
        {"output": "color", "format": "npz"},
        {"output": "cutout", "grid": "network"},
        {"output": "composite", "background": "no-colour"},
        {"rgb_mask": True, "output": "cutout"},
        {"output": "color", "palette": True, "format": "npz"},
        {"threshold": "1.5"},
    ],
    ids=lambda words: "-".join(map(str, words.values())),
)
def test_what_a_package_cannot_give_is_said_in_pythons_words(
    words: dict[str, Any],
    package: Path,
    cell: Path,
    run_cpp: Runner,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is read: one line, exit code 2."""
    from segship.cli import run

    ours = run_cpp(package, cell, trace=False, **words)
    options = [part for name, value in words.items() for part in (f"--{name.replace('_', '-')}", value)]
    given = [part for part in options if part is not True]
    code = run(["predict", str(package), str(cell), "-o", str(tmp_path / "python"), *given])
    assert ours.code == code == 2, ours.err
    assert ours.error == capsys.readouterr().err.strip()


def test_an_overlay_beside_another_output_is_checked_too(
    cell: Path, run_cpp: Runner, python: Any, tmp_path: Path
) -> None:
    """A cutout of labels can be smoothed, an overlay of them cannot: nothing is written."""
    from segship.cli import run

    named = tuple(label.model_copy(update={"name": "background"}) if label.id == 0 else label for label in labels(3))
    package = picture_package(tmp_path / "net.segship", decode=ARGMAX, classes=3, labels=named).path
    words = ["--output", "cutout", "--clean-mask", "--overlay", "-o", str(tmp_path / "out")]
    assert run(["predict", str(package), str(cell), *words]) == 2
    ran = run_cpp.words(str(package), str(cell), *words)
    assert ran.code == 2
    assert "clean_mask" in ran.error
    assert not list(tmp_path.glob("out/*.png"))


def test_options_of_the_other_kind(package: Path, cell: Path, run_cpp: Runner, tmp_path: Path) -> None:
    ran = run_cpp(package, cell, folds="0")
    assert ran.code == 2
    assert "folds" in ran.error
    volumes = volume_package(tmp_path / "volume.segship", windows=tiling()).path
    ran = run_cpp(volumes, cell)
    assert ran.code in (1, 2)
    assert cell.name in ran.err


def test_nothing_is_left_behind(package: Path, cell: Path, run_cpp: Runner, tmp_path: Path) -> None:
    """No temporary file in the output or beside it, whether all went well or not."""
    (tmp_path / "in").mkdir()
    shutil.copy(cell, tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"x")
    ran = run_cpp(package, tmp_path / "in")
    assert ran.code == 1
    left = [path.name for path in ran.folder.rglob("*") if path.is_file()]
    assert not [name for name in left if name.startswith(".") or name.endswith((".tmp", ".part"))]
    assert "good.png" in left
