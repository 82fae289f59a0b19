from __future__ import annotations

import hashlib
import json
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packages import GRAPH, manifest_data, tiny_package

from segship.errors import OutputError, PackageError, PackageTampered
from segship.manifest import Manifest
from segship.package import golden_files, open_package, update_package, write_package


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("folder", [False, True])
def test_written_package_opens_and_gives_back_its_bytes(tmp_path, folder):
    package = tiny_package(tmp_path / "net.segship", folder=folder)
    again = open_package(package.path, verify=True)
    assert again.manifest == package.manifest
    assert again.read("graphs/fp32.onnx") == GRAPH
    assert again.graph_path("fp32").read_bytes() == GRAPH
    assert again.provenance()["source"]["sha256"] == "0" * 64
    golden = again.golden()
    assert golden is not None
    assert golden.bundled
    assert golden.input_bytes == b"png bytes"


def test_equal_content_is_an_equal_file_and_an_equal_name(tmp_path):
    one = tiny_package(tmp_path / "a.segship")
    two = tiny_package(tmp_path / "sub" / "b.segship")
    folder = tiny_package(tmp_path / "c.segship", folder=True)
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.sha256 == two.sha256 == folder.sha256


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_folder_form_is_checked_by_sha256sum(tmp_path):
    package = tiny_package(tmp_path / "net", folder=True)
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=package.path, check=True)


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("name", ["graphs/fp32.onnx", "manifest.json", "provenance.json", "golden/input.png"])
def test_a_changed_byte_is_found(tmp_path, folder, name):
    package = tiny_package(tmp_path / "net", folder=folder)
    if folder:
        target = package.path / name
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
    else:
        with zipfile.ZipFile(package.path) as archive:
            files = {n: archive.read(n) for n in archive.namelist()}
        changed = bytearray(files[name])
        changed[len(changed) // 2] ^= 1
        files[name] = bytes(changed)
        with zipfile.ZipFile(package.path, "w") as archive:  # valid checksums of the zip itself, so only ours can tell
            for n, data in files.items():
                archive.writestr(n, data)
    with pytest.raises(PackageTampered, match=name):
        open_package(package.path, verify=True)


def test_every_single_flipped_byte_of_the_zip_is_an_error_or_harmless(tmp_path):
    package = tiny_package(tmp_path / "net.segship", golden=False)
    good = package.path.read_bytes()
    want = {name: package.read(name) for name in package.names()}
    for position in range(0, len(good), 61):
        data = bytearray(good)
        data[position] ^= 0x10
        package.path.write_bytes(data)
        try:
            again = open_package(package.path, verify=True)
            assert {name: again.read(name) for name in again.names()} == want
        except PackageError as error:
            lines = str(error).splitlines()
            if len(lines) != 1:
                pytest.fail(f"byte {position}: not one line: {error}")


def _zip(path: Path, names: dict[str, bytes], compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:\\evil", "a//b", ".hidden"])
def test_zip_slip_is_refused(tmp_path, name):
    path = _zip(tmp_path / "x.segship", {name: b"x", "manifest.json": b"{}"})
    with pytest.raises(PackageError, match="unsafe file name"):
        open_package(path)
    assert not (tmp_path.parent / "evil").exists()


def test_zip_bomb_is_refused_without_unpacking(tmp_path):
    path = _zip(tmp_path / "x.segship", {"graphs/fp32.onnx": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(PackageError, match="would unpack"):
        open_package(path)


def test_too_many_files_are_refused(tmp_path):
    path = _zip(tmp_path / "x.segship", {f"f{i}": b"" for i in range(10_001)})
    with pytest.raises(PackageError, match="limits"):
        open_package(path)


def test_extra_file_in_a_folder_is_noticed(tmp_path):
    package = tiny_package(tmp_path / "net", folder=True)
    (package.path / "extra.txt").write_text("x")
    with pytest.raises(PackageTampered, match=r"extra\.txt"):
        open_package(package.path)


def test_link_in_a_folder_is_refused(tmp_path):
    package = tiny_package(tmp_path / "net", folder=True)
    (package.path / "link").symlink_to("/etc/passwd")
    with pytest.raises(PackageError, match="link"):
        open_package(package.path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + b"\0" * 50])
def test_not_a_package(tmp_path, content):
    path = tmp_path / "x.segship"
    path.write_bytes(content)
    with pytest.raises(PackageError, match=r"not a \.segship package"):
        open_package(path)


def test_missing_package_names_export(tmp_path):
    with pytest.raises(PackageError, match="segship export"):
        open_package(tmp_path / "none.segship")


def test_unknown_variant_names_compile(tmp_path):
    with pytest.raises(PackageError, match="segship compile --precision int8"):
        tiny_package(tmp_path / "net.segship").graph_path("int8")


def test_graph_path_works_when_the_cache_cannot_be_written(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the cache folder should be")
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(blocked))
    package = tiny_package(tmp_path / "net.segship")
    assert package.graph_path("fp32").read_bytes() == GRAPH


def test_a_poisoned_cache_is_not_used(tmp_path):
    package = tiny_package(tmp_path / "net.segship")
    path = package.graph_path("fp32")
    path.write_bytes(b"something else")
    assert package.graph_path("fp32").read_bytes() == GRAPH


def test_update_keeps_the_rest_and_is_atomic(tmp_path, monkeypatch):
    package = tiny_package(tmp_path / "net.segship")
    updated = update_package(package, add={"graphs/extra.onnx": b"more"}, provenance={"note": "x"})
    assert updated.read("graphs/extra.onnx") == b"more"
    assert updated.read("graphs/fp32.onnx") == GRAPH
    before = package.path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OutputError, match="No space left"):
        update_package(updated, add={"graphs/another.onnx": b"more"})
    assert package.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def test_read_only_folder_is_an_output_error(tmp_path, monkeypatch):
    # Permissions do not stop root, so the refusal itself is simulated.
    def refused(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", refused)
    with pytest.raises(OutputError, match="Permission denied"):
        tiny_package(tmp_path / "net.segship", golden=False)


def test_manifest_hash_must_match_the_graph(tmp_path):
    data = manifest_data()
    data["variants"][0]["sha256"]["model"] = "1" * 64
    with pytest.raises(PackageTampered):
        write_package(tmp_path / "x.segship", Manifest.model_validate(data), {"graphs/fp32.onnx": GRAPH}, {})


def test_unknown_manifest_key_is_refused(tmp_path):
    package = tiny_package(tmp_path / "net", folder=True)
    data = json.loads((package.path / "manifest.json").read_text())
    data["surprise"] = True
    text = json.dumps(data).encode()
    (package.path / "manifest.json").write_bytes(text)
    sums = (package.path / "SHA256SUMS").read_text().splitlines()
    sums = [f"{hashlib.sha256(text).hexdigest()}  manifest.json" if s.endswith(" manifest.json") else s for s in sums]
    (package.path / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    with pytest.raises(PackageError, match="surprise"):
        open_package(package.path)


def test_golden_values_are_spread_over_the_array():
    array = np.arange(100_000, dtype=np.float32).reshape(10, 100, 100)
    files = golden_files("a.PNG", b"x", False, {"network": (array, 1e-3)}, samples=100)
    assert "golden/input.png" in files
    assert len(files["golden/expected.npz"]) < 5000


def test_zip_members_are_readable_by_everybody(tmp_path):
    package = tiny_package(tmp_path / "net.segship")
    with zipfile.ZipFile(package.path) as archive:
        for info in archive.infolist():
            assert info.external_attr >> 16 & stat.S_IROTH
            assert info.compress_type == zipfile.ZIP_STORED
