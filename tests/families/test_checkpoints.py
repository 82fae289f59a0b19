"""Checkpoints are untrusted: what is read, what is refused, and that nothing in them runs."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segship.errors import SourceError, UnknownSource, UnsafePickle, UsageError
from segship.families import checkpoint as module
from segship.families import load_source, recognise
from segship.families.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return OrderedDict({"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "n": torch.tensor(3)})


def save(tmp_path: Path, content: Any, name: str = "net.pth", **options: Any) -> Path:
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_bare_state_dict_is_read(tmp_path: Path, weights: dict[str, torch.Tensor], legacy: bool) -> None:
    found = open_checkpoint(save(tmp_path, weights, _use_new_zipfile_serialization=not legacy))
    assert same(found.state_dict, weights)
    assert (found.wrapper, found.prefix, found.read_by) == ("", "", "weights_only")


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict"])
def test_wrappers_and_prefixes_are_removed(tmp_path: Path, weights: dict[str, torch.Tensor], key: str) -> None:
    wrapped = {"epoch": 3, key: {f"module.{name}": value for name, value in weights.items()}}
    found = open_checkpoint(save(tmp_path, wrapped))
    assert same(found.state_dict, weights)
    assert (found.wrapper, found.prefix) == (key, "module.")


@pytest.mark.parametrize("legacy", [False, True])
def test_numpy_scalars_and_namespaces_pass_the_restricted_unpickler(
    tmp_path: Path, weights: dict[str, torch.Tensor], legacy: bool
) -> None:
    more = {
        "state_dict": weights,
        "best": np.float64(0.5),
        "history": np.arange(3),
        "args": argparse.Namespace(lr=0.1, folder=Path("x")),
    }
    found = open_checkpoint(save(tmp_path, more, _use_new_zipfile_serialization=not legacy))
    assert found.read_by == "restricted unpickler"
    assert same(found.state_dict, weights)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_and_never_runs(
    tmp_path: Path, weights: dict[str, torch.Tensor], legacy: bool
) -> None:
    mark = tmp_path / "mark"
    path = save(tmp_path, {"state_dict": weights, "x": Evil(mark)}, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafePickle, match=r"system.*--trust-pickle") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    assert same(open_checkpoint(path, trust_pickle=True).state_dict, weights)
    assert mark.exists(), "the pickle of this test does nothing, so refusing it proved nothing"


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "torch.hub.load", "numpy.load", "torch.load"])
def test_names_outside_the_list_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "net.pth"
    place, _, leaf = name.rpartition(".")
    path.write_bytes(f"c{place}\n{leaf}\n(S'1'\ntR.".encode())
    with pytest.raises(UnsafePickle, match=name):
        open_checkpoint(path)


def test_a_whole_model_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    with pytest.raises(UnsafePickle, match=r"torch.nn.*state_dict"):
        open_checkpoint(save(tmp_path, nn.Sequential(nn.Conv2d(3, 4, 3))))
    trusted = open_checkpoint(save(tmp_path, nn.Sequential(nn.Conv2d(3, 4, 3))), trust_pickle=True)
    assert list(trusted.state_dict) == ["0.weight", "0.bias"]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.body(x))


@pytest.mark.parametrize("how", ["trace", "script"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_weights_are_read_without_running_it(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Small().eval()
    scripted = torch.jit.trace(network, torch.zeros(1, 3, 8, 8)) if how == "trace" else torch.jit.script(network)
    scripted.save(str(tmp_path / "net.pt"))
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("the program was loaded"))
    found = open_checkpoint(tmp_path / "net.pt")
    assert found.read_by == "TorchScript"
    assert "upsample_nearest2d" in found.code or "interpolate" in found.code
    assert {k: v.shape for k, v in found.state_dict.items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert all(torch.equal(found.state_dict[k], v) for k, v in network.state_dict().items())


def test_a_torchscript_archive_with_a_foreign_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
        archive.writestr("net/constants.pkl", pickle.dumps(()))
    with pytest.raises(UnsafePickle, match=r"os.system|posix.system"):
        open_checkpoint(tmp_path / "net.pt")


def png() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def test_files_that_are_no_checkpoints(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    whole = save(tmp_path, weights).read_bytes()
    contents = {
        "empty.pth": (b"", "empty"),
        "cut.pth": (whole[: len(whole) // 2], "cut short"),
        "picture.pth": (png(), "no readable PyTorch checkpoint"),
        "text.pth": (b"hello world\n", "no readable PyTorch checkpoint"),
        "number.pth": (pickle.dumps(3), "no readable PyTorch checkpoint"),
        "net.onnx": (b"\x08\x09", "ONNX"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=message) as caught:
            open_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def test_other_content_is_named(tmp_path: Path) -> None:
    for content, message in (([1, 2], "a list"), ({"lr": 0.1}, "lr"), ({"state_dict": {}}, "no named tensors")):
        with pytest.raises(SourceError, match=message):
            open_checkpoint(save(tmp_path, content))


def test_a_zip_or_package_is_told_from_a_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(SourceError, match=r"no data\.pkl"):
        open_checkpoint(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr("SHA256SUMS", "")
    with pytest.raises(SourceError, match=r"already"):
        open_checkpoint(tmp_path / "b.zip")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.pth").open("wb") as stream:
        stream.truncate(module.MAX_BYTES + (2 << 30))  # sparse: takes no room
    with pytest.raises(SourceError, match="10 GiB"):
        open_checkpoint(tmp_path / "huge.pth")


def test_a_bomb_inside_the_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"x")
        archive.writestr("net/data/0", bytes(40 << 20))
    with pytest.raises(SourceError, match="would unpack"):
        open_checkpoint(tmp_path / "net.pth")


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="claim more"):
        open_checkpoint(save(tmp_path, {"a": torch.zeros(1).expand(1 << 16, 1 << 12)}))


def test_run_folders(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(SourceError, match="found nothing"):
        open_checkpoint(tmp_path)
    save(tmp_path, weights, "best.pth")
    (tmp_path / "args.pkl").write_bytes(b"never opened")
    found = open_checkpoint(tmp_path)
    assert found.path.name == "best.pth"
    assert list(found.side_files) == ["args.pkl"]
    save(tmp_path, weights, "last.pth")
    with pytest.raises(SourceError, match=r"several.*best.pth, last.pth"):
        open_checkpoint(tmp_path)
    save(tmp_path, weights, "model.pth")
    assert open_checkpoint(tmp_path).path.name == "model.pth"
    with pytest.raises(SourceError, match="does not exist"):
        open_checkpoint(tmp_path / "none.pth")


def test_an_unknown_network_lists_what_was_looked_for_and_found(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    path = save(tmp_path, weights)
    with pytest.raises(UnknownSource, match=r"conv0_4.*found a\.weight \(2, 3\)"):
        recognise(open_checkpoint(path))
    with pytest.raises(UsageError, match="no family is called 'unknown'"):
        load_source(path, family="unknown")
