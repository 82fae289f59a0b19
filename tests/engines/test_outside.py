"""Engines of other packages: the example of docs/engines.md, really installed, and packages that are broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from engine_contract import EngineContract
from engine_graphs import PRECISIONS, Graphs, images
from outside_packages import OutsidePackages
from tiny_package import cell_picture, tiny_package

from segship import engines
from segship.convert import checks
from segship.engines import SessionOptions, doctor, outside
from segship.errors import DeviceMissing, EngineError, UsageError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "segship-engine-example"
CHOSEN = os.environ.get("SEGSHIP_TEST_ENGINE", "")

# --------------------------------------------------------------------------- the example, installed


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of its own that pip has installed the example into, from a copy: building leaves files behind."""
    folder = tmp_path_factory.mktemp("outside")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    pip += ["--no-build-isolation", "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture
def example(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(site)
    yield
    sys.modules.pop("segship_engine_example", None)


@pytest.mark.usefixtures("example")
class TestExample(EngineContract):
    """What every engine must do, done by another package's."""

    engine = "opencv"
    library = "cv2"
    evidence = ("settings",)
    kinds = {"fp32": {"f32"}}  # noqa: RUF012


if CHOSEN:

    class TestChosen(EngineContract):
        """Any installed engine on any of its devices: SEGSHIP_TEST_ENGINE=magicmind SEGSHIP_TEST_DEVICE=mlu:0"""

        engine = CHOSEN
        library = None
        device = os.environ.get("SEGSHIP_TEST_DEVICE", "cpu")
        evidence = ("profile", "settings")
        kinds = {p: {"f32", "f16", "bf16", "i8", "i16", "unknown"} for p in PRECISIONS}  # noqa: RUF012


@pytest.mark.usefixtures("example")
def test_the_example_is_found_by_its_entry_point(site: Path):
    assert engines.engine_names() == (*engines.BUILT_IN, "opencv")
    module = engines.get_engine("opencv")
    assert module.__file__ is not None
    assert Path(module.__file__).parent == site
    (found,) = engines.availabilities(["opencv"])
    assert (found.engine, found.version, found.origin) == ("opencv", cv2.__version__, "segship-engine-example 0.1.0")
    assert "opencv comes with segship-engine-example 0.1.0" in doctor.as_text()


@pytest.mark.usefixtures("example")
def test_the_example_gives_a_package_s_masks(tmp_path: Path):
    import segship

    package = tiny_package(tmp_path / "net.segship", int8=False)
    picture = cell_picture(3)[0]
    labels = [segship.load(package, engine=engine)(picture).labels for engine in ("opencv", "openvino")]
    np.testing.assert_array_equal(*labels)
    with pytest.raises(DeviceMissing, match=r"opencv has no device 'cuda' here, only cpu; .*--engine onnxruntime"):
        segship.load(package, engine="opencv", device="cuda")


def test_the_example_in_a_fresh_process(site: Path, tmp_path: Path):
    package = tiny_package(tmp_path / "net.segship", int8=False)
    cv2.imwrite(str(tmp_path / "cell.png"), cell_picture(3)[0])

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "segship", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(site)})

    told = run("doctor", "--json")
    entry = next(e for e in json.loads(told.stdout)["engines"] if e["engine"] == "opencv")
    assert (entry["installed"], entry["origin"]) == (True, "segship-engine-example 0.1.0")
    done = run(
        "predict", str(package.path), str(tmp_path / "cell.png"), "-o", str(tmp_path / "out"), "--engine", "opencv"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "cell.png").is_file()
    refused = run(
        "predict", str(package.path), str(tmp_path / "cell.png"), "-o", str(tmp_path / "no"), "--device", "cann"
    )
    assert refused.returncode == 1
    lines = refused.stderr.strip().splitlines()
    assert len(lines) == 1
    assert "openvino has no device 'cann' here, only cpu" in lines[0]
    assert "--engine onnxruntime" in lines[0]
    assert not (tmp_path / "no").exists()


def test_the_docs_show_the_example_as_it_is():
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    for name, language in (("segship_engine_example.py", "python"), ("pyproject.toml", "toml")):
        content = (EXAMPLE / name).read_text(encoding="utf-8")
        assert f"```{language}\n{content}```\n" in page, f"copy {EXAMPLE / name} into docs/engines.md"
    lines = [line for line in (EXAMPLE / "segship_engine_example.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 48


# ------------------------------------------------------------------------------------- broken packages

GOOD = """
import numpy as np
from segship.engines import Availability, Device, common
NAME, INSTALL, PRECISIONS, TOLERANCE = "theirs", "pip install theirs", ("fp32",), {"fp32": 1e-4}
def availability():
    return Availability(engine=NAME, version="3", devices=(Device(name="tpu", description="", precisions=PRECISIONS),))
def open_session(graph, options):
    return Session(graph, options)
class Session:
    engine, version, device = NAME, "3", "TPU"
    def __init__(self, graph, options): self.options = options
    def run(self, x): return [x]
    def executed(self, x): return common.executed_record(self, {"f32": 1.0}, "settings")
    def close(self): pass
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OutsidePackages]:
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield OutsidePackages(folder, "segship.engines", GOOD)
    for name in [name for name in sys.modules if name.startswith("module_of_")]:
        del sys.modules[name]


def one_line(error: Exception) -> str:
    assert "\n" not in str(error)
    return str(error)


BROKEN = {
    "an import that fails": ("import no_such_library", "cannot be loaded (ModuleNotFoundError: No module named"),
    "no Python": ("def (", "cannot be loaded (SyntaxError"),
    "an exit": ("raise SystemExit('no licence\\nbuy one')", "cannot be loaded (SystemExit: buy one)"),
    "an error of several lines": ("raise OSError('libacl.so\\nnot found')", "(OSError: not found)"),
    "an empty module": ("", "lacks NAME, INSTALL, PRECISIONS, TOLERANCE, availability, open_session"),
    "another name": (GOOD + "NAME = 'ours'", "calls itself 'ours'"),
    "a name of precisions": (GOOD + "PRECISIONS = 'fp32'", "PRECISIONS that are no tuple"),
    "no precision": (GOOD + "PRECISIONS = ()", "has no PRECISIONS"),
    "no tolerance": (GOOD + "TOLERANCE = {}", "has no TOLERANCE for fp32"),
    "one tolerance": (GOOD + "TOLERANCE = 0.1", "has no TOLERANCE for fp32"),
    "other arguments": (
        GOOD + "def open_session(graph): pass\ndef availability(verbose): pass",
        "cannot be called as availability() or open_session(graph, options)",
    ),
    "no function": (GOOD + "open_session = None", "cannot be called as open_session(graph, options)"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_package_is_told_in_one_line_and_hurts_no_other(packages: OutsidePackages, what: str):
    code, wrong = BROKEN[what]
    before = engines.availabilities()
    packages.add(code)
    packages.add(GOOD.replace('"theirs"', '"good"'), package="good", entry="good = {module}")
    with pytest.raises(EngineError) as caught:
        engines.get_engine("theirs")
    told = one_line(caught.value)
    assert told.startswith("engine 'theirs' of theirs 1.0 ")
    assert wrong in told
    assert told.endswith("its package")
    found = {entry.engine: entry for entry in doctor.diagnose()}
    assert (found["theirs"].version, found["theirs"].note) == (None, told)
    assert [found[entry.engine] for entry in before] == before
    assert found["good"].version == "3"
    assert f"problem: theirs: {told}" in doctor.as_text(list(found.values()))
    assert "theirs" not in checks.checking_engines(None, "fp32")


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("def availability(): raise RuntimeError('driver\\non fire')", "RuntimeError"),
        ("def availability(): return None", "availability() returned NoneType"),
        ("def availability(): return {'version': '3'}", "availability() returned dict"),
    ],
)
def test_an_availability_that_fails_is_a_note(packages: OutsidePackages, code: str, wrong: str):
    packages.add(GOOD + code)
    (found,) = engines.availabilities(["theirs"])
    assert found.version is None
    assert wrong in found.note
    assert found.origin == "theirs 1.0"
    row = next(line for line in doctor.as_text([found]).splitlines() if line.startswith("theirs"))
    assert "broken" in row


@pytest.mark.parametrize(
    ("entry", "wrong"), [("theirs = {module}:Session", "is a type"), ("theirs = absent", "absent")]
)
def test_an_entry_point_that_names_no_module(packages: OutsidePackages, entry: str, wrong: str):
    packages.add(entry=entry)
    with pytest.raises(EngineError, match=wrong):
        engines.get_engine("theirs")


def test_damaged_metadata_of_one_package_leaves_the_others(packages: OutsidePackages):
    packages.add(package="damaged", entry="this line has no sign of equality")
    packages.add()
    assert engines.engine_names() == (*engines.BUILT_IN, "theirs")
    assert engines.get_engine("theirs").NAME == "theirs"
    with pytest.raises(UsageError, match="openvino, onnxruntime, pytorch, fake, theirs"):
        engines.get_engine("damaged")


def test_two_packages_of_one_name(packages: OutsidePackages):
    packages.add()
    packages.add(package="copy")
    with pytest.raises(EngineError, match=r"two packages bring an engine called 'theirs' \(copy 1.0 and theirs 1.0\)"):
        engines.get_engine("theirs")


def test_a_built_in_name_cannot_be_taken(packages: OutsidePackages):
    packages.add("raise RuntimeError('imported')", package="greedy", entry="openvino = {module}")
    assert engines.engine_names() == engines.BUILT_IN
    assert engines.get_engine("openvino").__name__ == "segship.engines.openvino"
    told = "greedy 1.0 brings an engine called 'openvino'; segship's own is used"
    assert outside.unused() == [told]
    assert f"problem: {told}" in doctor.as_text()


def opened(graph: Path) -> engines.Session:
    return engines.open_session("theirs", graph, SessionOptions())


def test_a_good_session_is_passed_through(packages: OutsidePackages, bilinear: Graphs):
    packages.add()
    session = opened(bilinear.files["fp32"])
    x = images(2)
    assert (session.engine, session.version, session.device) == ("theirs", "3", "TPU")
    assert session.run(x)[0] is x
    assert session.executed(x).device == "TPU"
    session.close()
    with pytest.raises(DeviceMissing, match="'tpu' may be a device of --engine theirs"):
        engines.open_session("openvino", bilinear.files["fp32"], SessionOptions(device="tpu:1"))


@pytest.mark.parametrize(
    ("code", "call", "wrong"),
    [
        (
            "def open_session(graph, options): raise ValueError('bad\\ngraph')",
            "open",
            "open_session (ValueError: graph)",
        ),
        ("Session.run = None; del Session.run", "open", "its session lacks run"),
        ("def open_session(graph, options): return None", "open", "its session lacks options, engine, version"),
        ("Session.run = lambda self, x: 1 / 0", "run", "failed in run (ZeroDivisionError"),
        ("Session.run = lambda self, x: None", "run", "run returned NoneType"),
        ("Session.run = lambda self, x: []", "run", "run returned list"),
        ("Session.run = lambda self, x: [x.astype(float)]", "run", "run returned float64(2, 3, 32, 32)"),
        ("Session.run = lambda self, x: [x, x[:1]]", "run", "float32(1, 3, 32, 32)"),
        ("Session.run = lambda self, x: [x.tolist()]", "run", "run returned list"),
        ("Session.executed = lambda self, x: {'f32': 1.0}", "executed", "executed returned dict"),
        ("Session.executed = lambda self: None", "executed", "failed in executed (TypeError"),
    ],
)
def test_a_session_that_breaks_its_promise(
    packages: OutsidePackages, bilinear: Graphs, code: str, call: str, wrong: str
):
    packages.add(GOOD + code)

    def do() -> None:
        session = opened(bilinear.files["fp32"])
        assert call != "open"
        getattr(session, call)(images(2))

    with pytest.raises(EngineError) as caught:
        do()
    told = one_line(caught.value)
    assert "engine 'theirs' of theirs 1.0" in told
    assert wrong in told


def test_segship_s_own_errors_pass_as_they_are(packages: OutsidePackages, bilinear: Graphs):
    packages.add(GOOD + "def open_session(graph, options): raise common.no_device(NAME, options.device, ['tpu'])")
    with pytest.raises(DeviceMissing, match="theirs has no device 'cpu' here, only tpu; choose --device tpu"):
        opened(bilinear.files["fp32"])
