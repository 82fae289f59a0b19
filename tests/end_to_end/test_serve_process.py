"""`segship serve` as a process: many clients at once, what they get, what it takes, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import httpx
import pytest
from made_pictures import picture, write_pictures
from tiny_labels import label_package
from tiny_saliency import saliency_package

DOCS = Path(__file__).parents[2] / "docs"
CLIENTS = 12
SECONDS = 3.0
GROWTH = 48 << 20
"""bytes that a server may grow by under load: buffers and threads, not one picture after the other"""


@contextmanager
def serving(package: Path, *options: object, **variables: object):
    """(address, process) of a server on a free port; ``variables`` of its environment."""
    command = [sys.executable, "-m", "segship", "serve", str(package), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        [*command, *map(str, options)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in variables.items()}},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + process.stderr.read()
        yield found.group(), process
    finally:
        process.terminate()  # a server for volumes deletes its folder then
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
        process.stderr.close()


@pytest.fixture(scope="module")
def served(package):
    """The address of a server that several tests use."""
    with serving(package) as (address, _):
        yield address


def with_masks(package: Path, folder: Path, paths: list[Path]) -> list[tuple[bytes, bytes]]:
    """(picture, mask) of each path, the mask as `segship predict` writes it; no two are alike."""
    from segship.cli import run

    assert run(["predict", str(package), *map(str, paths), "-o", str(folder), "-q"]) == 0
    pairs = [(path.read_bytes(), (folder / path.name).read_bytes()) for path in paths]
    assert len({mask for _, mask in pairs}) == len(pairs)
    return pairs


@dataclass
class Client(threading.Thread):
    """Sends its own pictures, one after the other, until told to stop."""

    address: str
    pairs: list[tuple[bytes, bytes]]
    stop: threading.Event
    done: int = 0
    told: list[tuple[float, int]] = field(default_factory=list)
    """(when it was asked, status)"""
    took: list[tuple[float, float]] = field(default_factory=list)
    """(when it was asked, seconds)"""
    wrong: list[str] = field(default_factory=list)
    cut: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        with httpx.Client(base_url=self.address, timeout=30) as client:
            while not self.stop.is_set():
                data, mask = self.pairs[self.done % len(self.pairs)]
                asked = time.monotonic()
                try:
                    answer = client.post("/v1/predict", files={"file": ("a.png", data)})
                except httpx.TransportError as error:
                    self.cut.append((asked, repr(error)))
                    return
                self.told.append((asked, answer.status_code))
                self.took.append((asked, time.monotonic() - asked))
                if answer.status_code == 503:
                    return
                if answer.content != mask:
                    self.wrong.append(f"{answer.status_code}: {answer.text[:80]}")
                self.done += 1


def crowd(address, pairs, stop):
    """Clients under way: each has its first answer."""
    each = len(pairs) // CLIENTS
    clients = [Client(address=address, pairs=pairs[each * i : each * (i + 1)], stop=stop) for i in range(CLIENTS)]
    for client in clients:
        client.start()
    deadline = time.monotonic() + 30
    while not all(client.done or client.cut for client in clients) and time.monotonic() < deadline:
        time.sleep(0.02)
    return clients


def counts(address: str) -> dict[str, float]:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_twelve_clients_get_each_their_own_masks_and_memory_stays(package, tmp_path):
    expected = with_masks(package, tmp_path / "out", write_pictures(tmp_path / "in", 2 * CLIENTS))
    with serving(package) as (address, process):
        stop = threading.Event()
        clients = crowd(address, expected, stop)
        time.sleep(SECONDS / 3)
        early = counts(address)
        time.sleep(2 * SECONDS / 3)
        stop.set()
        for client in clients:
            client.join(30)
        late = counts(address)
        assert [client.wrong + client.cut for client in clients] == [[]] * CLIENTS
        done = sum(client.done for client in clients)
        assert all(client.done > 0 for client in clients)
        assert late['segship_requests_total{method="POST",route="/v1/predict",status="200"}'] == done
        assert late["segship_requests_in_flight"] == late["segship_queue_length"] == late["segship_held_bytes"] == 0
        if "process_resident_memory_bytes" in late:  # where the system tells
            assert late["process_resident_memory_bytes"] - early["process_resident_memory_bytes"] < GROWTH
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_stopped_in_mid_load_every_request_that_was_begun_is_answered(package, tmp_path):
    """Pictures that take long enough for every client to have one waiting when the signal comes."""
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / f"{number}.png" for number in range(CLIENTS)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), cv2.resize(picture(number), (2600, 2000)))
    pairs = with_masks(package, tmp_path / "out", paths)
    with serving(package) as (address, process):
        stop = threading.Event()
        clients = crowd(address, pairs, stop)
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert process.wait(30) == 0
        stop.set()
        for client in clients:
            client.join(30)
    surely_before = told - 0.2
    begun = 0
    for client in clients:
        assert client.wrong == []
        assert {status for _, status in client.told} <= {200, 503}
        assert {status for asked, status in client.told if asked < surely_before} == {200}
        assert [error for asked, error in client.cut if asked < surely_before] == []
        begun += sum(asked < surely_before and asked + took > told for asked, took in client.took)
    assert begun > 0


def test_every_kind_of_output_is_what_predict_writes(served, package, segship, tmp_path):
    path = write_pictures(tmp_path / "in", 1)[0]
    kinds = {
        "mask": [],
        "cutout": [],
        "overlay": [],
        "composite": ["--background", "12,200,30"],
    }
    for kind, more in kinds.items():
        out = tmp_path / kind
        assert segship("predict", package, path, "-o", out, "--output", kind, *more, "-q").code == 0
        written = next(p for p in out.rglob("*.png"))
        fields = {"output": kind} | ({"background": "12,200,30"} if more else {})
        answer = httpx.post(f"{served}/v1/predict", files={"file": ("a.png", path.read_bytes())}, data=fields)
        assert answer.content == written.read_bytes(), kind


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_picture_through_curl_is_the_same(served, package, tmp_path):
    path = write_pictures(tmp_path / "in", 1)[0]
    _, mask = with_masks(package, tmp_path / "out", [path])[0]
    raw = ["-H", "Content-Type: image/png", "--data-binary", f"@{path}"]
    for how in (["-F", f"file=@{path}"], raw):
        done = subprocess.run(["curl", "-sf", *how, f"{served}/v1/predict"], capture_output=True, check=True)
        assert done.stdout == mask


PICTURES = (DOCS / "serve.md").read_text().partition("\n## Volumes")[0]
EXAMPLES = [line for line in PICTURES.splitlines() if line.startswith("curl ")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_examples_in_the_documentation_work(tmp_path):
    package = saliency_package(tmp_path / "object.segship", size=64)
    street = label_package(tmp_path / "street.segship", int8=False)
    for name in ("photo.jpg", "beach.jpg", "frame.png"):
        cv2.imwrite(str(tmp_path / name), picture(len(name)))
    assert len(EXAMPLES) > 14
    with serving(package.path) as (address, _), serving(street.path) as (for_streets, _):
        for line in EXAMPLES:
            server = for_streets if "frame.png" in line else address
            command = shlex.split(line.replace("http://127.0.0.1:8000", server))
            done = subprocess.run([*command, "-s"], cwd=tmp_path, capture_output=True)
            assert done.returncode == 0, line
            if "-o" in command:
                data = (tmp_path / command[command.index("-o") + 1]).read_bytes()
                assert data.startswith((b"\x89PNG", b"PK")), line
            else:
                assert done.stdout, line


def test_the_command_line_says_what_is_wrong(served, segship, package, tmp_path):
    assert "--port is 0 to 65535" in segship("serve", package, "--port", "70000").error
    assert segship("serve", tmp_path / "nothing.segship").code == 2
    outcome = segship("serve", package, "--port", served.rsplit(":", 1)[1])
    assert outcome.code == 2
    assert "choose another with --host and --port" in outcome.error


def test_without_its_libraries_the_server_says_how_to_get_them(package, tmp_path):
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')")
    done = subprocess.run(
        [sys.executable, "-m", "segship", "serve", str(package)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "the server needs fastapi; type: pip install 'segship[serve]'" in done.stderr


def test_a_server_for_others_warns(package):
    command = [sys.executable, "-m", "segship", "serve", str(package), "--port", "0", "--host", "0.0.0.0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "can be reached from other machines" in process.stderr.readline()
        address = re.search(r"http://\S+", process.stderr.readline())
        assert address is not None
        port = address.group().rsplit(":", 1)[1]
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", headers={"host": "any"}).json() == {"status": "ok"}
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stderr.close()


def test_serving_imports_nothing_heavy(package):
    """No torch, no training tools: the server runs where prediction runs."""
    code = f"""
import os, signal, sys
from segship.cli import run
from segship.serve import server
serve = server.serve
server.serve = lambda *given: serve(*given[:2], lambda _: os.kill(os.getpid(), signal.SIGTERM))
assert run(["serve", {str(package)!r}, "--port", "0"]) == 0
print([m for m in ("torch", "matplotlib", "pandas", "onnx", "nncf", "jinja2", "pymatting") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_model_names_what_runs(package):
    with serving(package, "--precision", "int8") as (address, _):
        about = httpx.get(f"{address}/v1/model").json()
        assert (about["serving"]["precision"], about["serving"]["threads"]) == ("int8", 1)
        assert json.dumps(about["serving"]["executed"])
        ran = httpx.post(f"{address}/v1/predict", content=b"x" + picture(0).tobytes())
        assert ran.status_code == 422
