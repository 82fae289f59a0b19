"""`segship verify --runner cpp`: which binary it takes, what it gives it, and what it makes of the answer.

A script of a few lines that answers by Python's own chain stands in for the binary; tests/cpp runs the real one.
"""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_package
from tiny_mmseg import graph as street_graph
from tiny_mmseg import slide, street_manifest

from segship.cli import run
from segship.errors import EngineMissing, SegshipError
from segship.inference import cpp_runner
from segship.inference.cpp_runner import RunnerOptions, find_runner, run_stages
from segship.inference.predictor import Predictor
from segship.inference.verify import verify_with_runner
from segship.manifest import ResizeKeepRatio
from segship.package import Package, golden_files, update_package, write_package

STAND_IN = """#!{python}
import json, os, sys
import numpy as np
from pathlib import Path
from segship.inference.predictor import Predictor
package, picture = sys.argv[1:3]
given = dict(zip(sys.argv[3:], sys.argv[4:], strict=False))
Path(os.environ["SAID"]).write_text(json.dumps(sys.argv[1:]))
if os.environ.get("FAIL"):
    sys.exit(os.environ["FAIL"])
with Predictor.open(package, precision=given["--precision"], cache_dir=given.get("--cache-dir")) as predictor:
    stages = predictor.trace(picture)
stages["network"] = stages["network"] + float(os.environ.get("OFF", "0"))
Path(given["--save-stages"]).mkdir(parents=True)
np.savez(Path(given["--save-stages"], Path(picture).stem + ".npz"), **stages)
"""


@pytest.fixture
def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bin" / "segship-run"
    path.parent.mkdir()
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("SAID", str(tmp_path / "said.json"))
    monkeypatch.setenv("SEGSHIP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SEGSHIP_RUN", raising=False)
    return path


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """The bright-is-nucleus package with a golden sample of all its stages."""
    made = tiny_package.tiny_package(tmp_path / "net.segship", int8=False, size=64)
    sample = cv2.imencode(".png", tiny_package.cell_picture(3)[0])[1].tobytes()
    return with_golden(made, sample)


def with_golden(package: Package, sample: bytes) -> Package:
    with Predictor.open(package) as predictor:
        stages = {name: (array, 1e-4) for name, array in predictor.golden_trace(sample).items()}
    return update_package(package, add=golden_files("sample.png", sample, False, stages))


def said(tmp_path: Path) -> list[str]:
    return json.loads((tmp_path / "said.json").read_text())


def test_the_sample_goes_through_the_binary(binary: Path, package: Package, tmp_path: Path) -> None:
    rows = verify_with_runner(package.path, binary=binary, threads=2, cache_dir=tmp_path / "c")
    assert {row.stage for row in rows} == {"read", "preprocessed", "network", "decoded"}
    assert all(row.passed for row in rows)
    words = said(tmp_path)
    assert words[0] == str(package.path)
    assert words[1].endswith("sample.png")
    for given in (["--precision", "fp32"], ["--threads", "2"], ["--cache-dir", str(tmp_path / "c")]):
        assert " ".join(given) in " ".join(words)
    assert "--disable-tta" not in words, "that is for volumes"


def test_an_answer_that_is_off_fails(
    binary: Path, package: Package, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OFF", "0.5")
    assert run(["verify", str(package.path), "--runner", "cpp", "--binary", str(binary)]) == 3
    assert "golden sample FAILED" in capsys.readouterr().out
    assert run(["verify", str(package.path), "--runner", "cpp", "--binary", str(binary), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["passed"], told["runner"]) == (False, "cpp")
    assert [row["stage"] for row in told["rows"] if not row["passed"]] == ["network"]


def test_what_the_binary_says_is_passed_on(
    binary: Path, package: Package, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIL", "error: the sky fell; look up")
    assert run(["verify", str(package.path), "--runner", "cpp", "--binary", str(binary)]) == 1
    assert "error: segship-run: the sky fell; look up" in capsys.readouterr().err
    monkeypatch.setenv("FAIL", "failed: sample.png: cut short")
    with pytest.raises(SegshipError, match=r"segship-run: sample\.png: cut short"):
        run_stages(binary, package.path, ["sample.png"])


def test_a_changed_byte_is_found_before_the_binary_runs(binary: Path, package: Package, tmp_path: Path) -> None:
    data = bytearray(package.path.read_bytes())
    place = data.index(b"golden/expected.npz") + 200
    data[place] ^= 1
    package.path.write_bytes(data)
    assert run(["verify", str(package.path), "--runner", "cpp", "--binary", str(binary)]) == 3
    assert not (tmp_path / "said.json").exists()


def test_a_package_proved_at_a_smaller_size(binary: Path, tmp_path: Path) -> None:
    """It works at 64x128 and is checked at 16x32: the binary gets a package that says so."""
    data = street_graph()
    manifest = street_manifest(data)
    steps = (ResizeKeepRatio(long_side=128, short_side=64, method="opencv:linear"), *manifest.preprocess)
    network = manifest.network.model_copy(update={"check_size": (16, 32)})
    manifest = manifest.model_copy(update={"preprocess": steps, "network": network, "tiling": slide()})
    made = write_package(tmp_path / "street.segship", manifest, {"graphs/fp32.onnx": data}, {})
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    made = with_golden(made, cv2.imencode(".png", pixels)[1].tobytes())
    rows = verify_with_runner(made.path, binary=binary)
    assert all(row.passed for row in rows)
    assert said(tmp_path)[0] != str(made.path)
    assert not Path(said(tmp_path)[0]).exists(), "the copy is gone afterwards"


def test_no_golden_sample(binary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = street_graph()
    made = write_package(tmp_path / "street.segship", street_manifest(data), {"graphs/fp32.onnx": data}, {})
    assert run(["verify", str(made.path), "--runner", "cpp", "--binary", str(binary)]) == 1
    assert "has no golden sample" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- which binary


def test_the_order_of_places(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_runner, "_CHECKOUT", tmp_path / "checkout")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(EngineMissing, match=r"make cpp.*--binary.*SEGSHIP_RUN"):
        find_runner()
    monkeypatch.setenv("PATH", str(binary.parent))
    assert find_runner() == binary
    built = tmp_path / "checkout" / "cpp" / "build" / "segship-run"
    built.parent.mkdir(parents=True)
    built.write_text("")
    assert find_runner() == built
    other = tmp_path / "other"
    other.write_bytes(binary.read_bytes())
    other.chmod(0o755)
    monkeypatch.setenv("SEGSHIP_RUN", str(other))
    assert find_runner() == other
    assert find_runner(binary) == binary


@pytest.mark.parametrize("place", ["--binary", "SEGSHIP_RUN"])
def test_a_named_file_that_is_no_program(
    place: str, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("x")
    words = ["verify", str(package.path), "--runner", "cpp"]
    if place == "--binary":
        words += ["--binary", str(tmp_path / "text")]
    else:
        monkeypatch.setenv("SEGSHIP_RUN", str(tmp_path / "text"))
    assert run(words) == 2
    said = capsys.readouterr().err
    assert place in said
    assert "make cpp" in said


def test_a_file_that_cannot_be_started(package: Package, tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"\x7fELF no program")
    (tmp_path / "odd").chmod(0o755)
    with pytest.raises(EngineMissing, match="cannot be started"):
        run_stages(tmp_path / "odd", package.path, ["x.png"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--binary", "x"], "say --runner cpp"),
        (["--runner", "cpp", "--engine", "onnxruntime"], "computes with OpenVINO"),
        (["--runner", "cpp", "--device", "gpu"], "computes with OpenVINO"),
        (["--runner", "rust"], "rust"),
    ],
)
def test_options_that_do_not_fit(
    words: list[str], message: str, package: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(package.path), *words]) == 2
    assert message in capsys.readouterr().err


def test_arguments() -> None:
    assert RunnerOptions().arguments() == ["--precision", "fp32"]
    given = RunnerOptions(precision="int8", threads=3, streams=2, cache_dir="c", mirror=False).arguments()
    assert given == [
        "--precision", "int8", "--threads", "3", "--streams", "2", "--cache-dir", "c", "--disable-tta",
    ]  # fmt: skip
