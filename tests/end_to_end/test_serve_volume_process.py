"""`segship serve` of volumes as a process: files equal to the command line's, many clients, broken ones, its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from nnunet_data import blob, write_nifti
from phantom import chest_package, write_chest
from test_serve_process import DOCS, counts, serving
from tiny_volume import volume_package

CLIENTS = 16
ROUNDS = 4
GROWTH = 24 << 20
"""bytes that a server may grow by between its second round and its last"""


def write_case(path: Path, seed: int) -> Path:
    import numpy as np

    noise = np.random.default_rng(seed).normal(0, 25, (5, 12, 14))
    return write_nifti(path, (blob(seed) * 60 + noise).astype(np.int16))


@pytest.fixture(scope="module")
def liver(tmp_path_factory) -> Path:
    return volume_package(tmp_path_factory.mktemp("liver") / "liver.segship").path


@pytest.fixture(scope="module")
def served(liver, tmp_path_factory):
    """(address, folder for temporary files) of a server that several tests use."""
    folder = tmp_path_factory.mktemp("tmp")
    with serving(liver, TMPDIR=folder) as (address, _):
        yield address, folder


def finished(address: str, path: Path, client: object = httpx, **fields: object) -> dict:
    files = {"file": (path.name, path.read_bytes())}
    while (answer := client.post(f"{address}/v1/jobs", files=files, data=fields)).status_code == 429:
        time.sleep(0.02)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    while job["status"] in ("queued", "running"):
        job = client.get(f"{address}{job['links']['self']}", params={"wait": 20}, timeout=30).json()
    assert job["status"] == "done", job
    return job


def predicted(segship, package: Path, folder: Path, *options: object) -> Path:
    outcome = segship("predict", package, "-i", folder / "in", "-o", folder / "out", "-q", *options)
    assert outcome.code == 0, outcome.err
    return folder / "out"


@pytest.mark.parametrize(("kind", "precision"), [("labels", "fp32"), ("regions", "fp32"), ("labels", "int8")])
def test_files_are_the_bytes_that_predict_writes(segship, tmp_path, kind, precision):
    package = volume_package(tmp_path / "net.segship", kind).path
    paths = [write_case(tmp_path / "in" / f"case{seed}_0000.nii.gz", seed) for seed in range(2)]
    out = predicted(segship, package, tmp_path, "--precision", precision, "--save_probabilities", "--preview")
    with serving(package, "--precision", precision) as (address, _):
        for seed, path in enumerate(paths):
            job = finished(address, path, probabilities="true")
            names = {"labels": f"case{seed}.nii.gz", "probabilities": f"case{seed}.npz"}
            for link, name in (names | {"preview": f"previews/case{seed}.png"}).items():
                assert httpx.get(f"{address}{job['links'][link]}").content == (out / name).read_bytes(), name
            assert sum(label["voxels"] for label in job["labels"]) > 0


def test_sixteen_clients_lose_nothing_mix_nothing_up_and_memory_stays(segship, liver, tmp_path):
    paths = [write_case(tmp_path / "in" / f"case{seed}_0000.nii.gz", seed) for seed in range(CLIENTS)]
    out = predicted(segship, liver, tmp_path)
    expected = [(out / f"case{seed}.nii.gz").read_bytes() for seed in range(CLIENTS)]
    assert len(set(expected)) == CLIENTS
    wrong: list[str] = []
    memory: list[float] = []
    with serving(liver, "--queue", "8", "--keep", "20", TMPDIR=tmp_path) as (address, process):
        rounds = threading.Barrier(CLIENTS, action=lambda: memory.append(resident(address)))

        def client(number: int) -> None:
            with httpx.Client(timeout=60) as session:
                for turn in range(ROUNDS):
                    try:
                        job = finished(address, paths[number], session)
                    except BaseException as error:
                        wrong.append(str(error))
                        rounds.abort()
                        return
                    labels = session.get(f"{address}{job['links']['labels']}").content
                    if labels != expected[number] or job["case"] != f"case{number}":
                        wrong.append(f"{number} in round {turn}")
                    if turn % 2:
                        session.delete(f"{address}{job['links']['self']}")
                    with contextlib.suppress(threading.BrokenBarrierError):
                        rounds.wait(60)

        threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert wrong == []
        assert not any(thread.is_alive() for thread in threads)
        late = counts(address)
        assert late['segship_jobs_total{result="done"}'] == CLIENTS * ROUNDS
        assert late['segship_jobs_total{result="failed"}'] == 0
        assert late["segship_places_taken"] == 0
        assert late["segship_jobs_kept"] <= 20
        if memory[0]:  # where the system tells
            assert memory[-1] - memory[1] < GROWTH, memory
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not list(tmp_path.glob("segship-serve-*"))


def resident(address: str) -> float:
    return counts(address).get("process_resident_memory_bytes", 0.0)


def test_stopped_in_mid_job_it_ends_with_the_window_and_deletes_everything(tmp_path):
    case = write_chest(tmp_path / "large_0000.nii.gz", (160, 160, 120))
    (tmp_path / "tmp").mkdir()
    with serving(chest_package(tmp_path / "slow.segship", step=16), TMPDIR=tmp_path / "tmp") as (address, process):
        for _ in range(3):
            answer = httpx.post(f"{address}/v1/jobs", files={"file": (case.name, case.read_bytes())})
            assert answer.status_code == 202
        first = httpx.get(f"{address}/v1/jobs").json()["jobs"][0]
        while first["windows"]["done"] == 0:
            first = httpx.get(f"{address}{first['links']['self']}").json()
            assert first["status"] in ("queued", "running")
            time.sleep(0.02)
        assert list((tmp_path / "tmp").glob("segship-serve-*/*/0000.nii.gz"))
        told = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert time.monotonic() - told < 10
        assert first["windows"]["done"] < first["windows"]["total"] / 2
    assert not list((tmp_path / "tmp").glob("segship-serve-*"))


def talk(address: str, *pieces: bytes, end: bool = False) -> bytes:
    """Send bytes as they are; what comes back, or nothing where this side hangs up."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        for piece in pieces:
            client.sendall(piece)
        if end:
            return b""
        received = b""
        while data := client.recv(65536):
            received += data
    return received


HEAD = b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
FORM = HEAD + b"content-type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.nii.gz"\r\n\r\n'


def test_a_client_that_hangs_up_in_mid_upload_leaves_nothing(served, tmp_path):
    address, folder = served
    before = counts(address)
    data = write_case(tmp_path / "a_0000.nii.gz", 1).read_bytes()
    for head in (HEAD + b"content-length: 900000\r\n\r\n", FORM + b"content-length: 900000\r\n\r\n" + PART):
        talk(address, head, data[:600], end=True)
    deadline = time.monotonic() + 10
    gone = 'segship_requests_total{method="POST",route="/v1/jobs",status="499"}'
    while counts(address).get(gone, 0) < before.get(gone, 0) + 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    after = counts(address)
    assert after["segship_places_taken"] == after["segship_uploads"] == 0
    assert after["segship_held_bytes"] == before["segship_held_bytes"]
    assert not list(folder.glob("segship-serve-*/*/part_*"))
    assert finished(address, tmp_path / "a_0000.nii.gz")


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        (FORM + b"content-length: 4\r\n\r\njunk", 400, "the form cannot be read"),
        (FORM + b"content-length: %d\r\n\r\n" % len(PART + b"half") + PART + b"half", 400, "no part 'file'"),
        (HEAD + b"content-length: 4\r\n\r\njunk", 422, "is no NIfTI file"),
        (HEAD + b"content-length: 99999999999\r\n\r\n", 413, "the file is larger than"),
        (HEAD + b"content-type: text/plain\r\ncontent-length: 1\r\n\r\nx", 415, "is not read here"),
    ],
)
def test_broken_requests_are_one_line(served, request_, status, says):
    head, _, body = talk(served[0], request_).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status)
    said = json.loads(body)
    assert set(said) == {"error", "hint"}
    assert says in said["error"]


def test_broken_files_are_one_line(served, tmp_path):
    address, _ = served
    whole = write_case(tmp_path / "a_0000.nii.gz", 1).read_bytes()
    for files, says in (
        ([("cut_0000.nii.gz", whole[:-60])], "cut_0000.nii.gz cannot be unpacked"),
        ([("a_0000.nii.gz", whole), ("a_0001.nii.gz", whole)], "has 1 file, and the form has more"),
        ([("a_0003.nii.gz", whole)], "is one channel too many"),
    ):
        answer = httpx.post(f"{address}/v1/jobs", files=[("file", one) for one in files])
        assert answer.status_code in (400, 422)
        assert says in answer.json()["error"]
        assert "\n" not in answer.json()["error"]
    answer = httpx.post(f"{address}/v1/predict", files={"file": ("a_0000.nii.gz", whole)})
    assert answer.status_code == 404
    assert "POST /v1/jobs" in answer.json()["hint"]


BLOCKS = re.findall(r"```sh\n(.*?)```", (DOCS / "serve.md").read_text().partition("\n## Volumes")[2], re.S)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_examples_in_the_documentation_work(served, tmp_path):
    """One after the other in one shell: a block may use the ID of the one before."""
    write_case(tmp_path / "ct_0000.nii.gz", 3)
    lines = [line for block in BLOCKS for line in block.splitlines() if not line.startswith(("pip", "segship", "#"))]
    assert len([line for line in lines if "curl" in line]) >= 10
    script = "set -e\n" + "\n".join(lines).replace("http://127.0.0.1:8000", served[0])
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout
    for name, begin in (
        ("ct.nii.gz", b"\x1f\x8b"),
        ("ct.npz", b"PK"),
        ("ct.png", b"\x89PNG"),
        ("plane.png", b"\x89PNG"),
    ):
        assert (tmp_path / name).read_bytes().startswith(begin), name


def test_options_of_the_other_kind_are_refused(segship, liver, package):
    assert "--timeout is for packages of pictures" in segship("serve", liver, "--timeout", "3").error
    assert "--keep is for packages of volumes" in segship("serve", package, "--keep", "3").error
    assert "--memory takes a size" in segship("serve", liver, "--memory", "much").error
    assert "--keep is above 0" in segship("serve", liver, "--keep", "0").error
    assert "continues no other" in segship("serve", liver, "--previous-stage", liver).error
    assert "continues no other" in segship("serve", package, "--previous-stage", liver).error


def test_a_case_beyond_the_memory_is_refused_with_numbers(liver, tmp_path):
    case = write_chest(tmp_path / "chest_0000.nii.gz", (160, 160, 120))
    with serving(liver, "--memory", "64M") as (address, _):
        answer = httpx.post(f"{address}/v1/jobs", files={"file": (case.name, case.read_bytes())})
        assert answer.status_code == 413
        assert re.fullmatch(
            r"chest needs about .* of memory \(.* for the network, .* for a grid of 120 x 160 x 160\), and this server "
            r"may use 64 MB",
            answer.json()["error"],
        )


def test_serving_volumes_imports_nothing_heavy(liver, tmp_path):
    case = write_case(tmp_path / "a_0000.nii.gz", 1)
    code = f"""
import os, signal, sys, threading, httpx
from segship.cli import run
from segship.serve import server
sys.path.insert(0, {str(Path(__file__).parent)!r})
serve = server.serve
def talk(address):
    files = {{"file": ("a_0000.nii.gz", open({str(case)!r}, "rb").read())}}
    job = httpx.post(address + "/v1/jobs", files=files).json()
    print(httpx.get(address + job["links"]["self"], params={{"wait": 20}}, timeout=30).json()["status"])
    os.kill(os.getpid(), signal.SIGTERM)
server.serve = lambda *given: serve(*given[:2], lambda a: threading.Thread(target=talk, args=(a,)).start())
assert run(["serve", {str(liver)!r}, "--port", "0"]) == 0
print([m for m in ("torch", "matplotlib", "pandas", "onnx", "nncf", "jinja2", "skimage", "SimpleITK") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.stdout.split("\n")[:2] == ["done", "[]"], done.stderr
