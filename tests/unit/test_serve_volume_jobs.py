"""How jobs of volumes wait, end, are kept and deleted, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stub_engine
from serving_volumes import VolumeServer, bright, case_bytes, nothing_left, open_volumes, said, until

from segship.serve.volume_space import Space

CASE = case_bytes(1)
FILE = {"file": ("a.nii.gz", CASE)}
WINDOWS = 480


@pytest.fixture
def predictor(tmp_path, monkeypatch):
    stub_engine.install(monkeypatch, bright)
    with open_volumes(tmp_path / "net") as predictor:
        yield predictor


@pytest.fixture
def gate():
    gate = stub_engine.Gate(bright)
    yield gate
    gate.open.set()


@pytest.fixture
def gated(gate, tmp_path, monkeypatch):
    """``gated(queue=…)`` is a server whose network waits for the gate."""
    stub_engine.install(monkeypatch, gate)
    opened = []

    def start(**options):
        gate.open.set()  # the service's own first window
        opened.append(open_volumes(tmp_path / f"net{len(opened)}"))
        server = VolumeServer(opened[-1], **options)
        gate.open.clear()
        gate.calls = 0
        return server

    yield start
    gate.open.set()
    for one in opened:
        one.close()


# --------------------------------------------------------------------------------------------------- queue


def test_jobs_wait_in_order_and_what_does_not_fit_is_refused(gate, gated):
    with gated(queue=2) as server:
        jobs = [server.submit((f"case{n}.nii.gz", case_bytes(n))) for n in range(3)]
        until(lambda: gate.calls > 0)
        states = [server.ask("GET", job["links"]["self"]).json() for job in jobs]
        assert [(one["status"], one["position"]) for one in states] == [("running", None), ("queued", 1), ("queued", 2)]
        assert states[0]["stage"] in ("reading", "network")
        refused = server.ask("POST", "/v1/jobs", files=FILE)
        assert said(refused, 429) == "3 jobs are at work, waiting or uploading, and that is the limit"
        assert int(refused.headers["retry-after"]) > 0
        early = server.ask("GET", f"{jobs[1]['links']['self']}/labels")
        assert said(early, 409) == f"this job is queued: 0 of {WINDOWS} windows are done"
        text = server.ask("GET", "/metrics").text
        for line in ("segship_jobs_running 1.0", "segship_queue_length 2.0", "segship_places_taken 3.0"):
            assert line in text
        gate.open.set()
        done = [server.until(job, "done") for job in jobs]
        assert [one["case"] for one in done] == ["case0", "case1", "case2"]
        assert done[0]["waited_seconds"] <= done[1]["waited_seconds"] <= done[2]["waited_seconds"]


def test_a_job_that_waits_is_deleted_at_once_and_one_at_work_after_its_window(gate, gated):
    with gated() as server:
        first, second = (server.submit((f"{n}.nii.gz", CASE)) for n in "ab")
        until(lambda: gate.calls > 0)
        assert server.ask("DELETE", second["links"]["self"]).json()["was"] == "queued"
        assert server.service.jobs.waiting == 0
        assert server.ask("DELETE", first["links"]["self"]).json()["was"] == "running"
        assert server.service.jobs.running == 1
        said(server.ask("GET", first["links"]["self"]), 404)
        calls = gate.calls
        gate.open.set()
        assert nothing_left(server)
        assert gate.calls == calls  # the batch under way was the last
        assert 'segship_jobs_total{result="cancelled"} 2.0' in server.ask("GET", "/metrics").text
        assert server.done(("c.nii.gz", CASE))["status"] == "done"


def test_closing_in_mid_job_ends_it_with_its_window_and_deletes_everything(gate, gated):
    server = gated()
    folder = server.service.space.folder
    running, waiting = (server.submit((f"{n}.nii.gz", CASE)) for n in "ab")
    until(lambda: gate.calls > 0)
    calls = gate.calls
    server.service.jobs.stop()
    assert server.ask("GET", "/healthz").status_code == 503
    assert said(server.ask("POST", "/v1/jobs", files=FILE), 503) == "this server is shutting down"
    said(server.ask("GET", waiting["links"]["self"]), 404)
    assert server.service.jobs.taken == 1
    gate.open.set()
    server.run(lambda _: asyncio.wait_for(server.service.jobs.drained(), 10))
    assert gate.calls == calls
    said(server.ask("GET", running["links"]["self"]), 404)
    server.__exit__()
    assert not folder.exists()


def test_sixteen_clients_get_each_their_own_labels_and_none_is_lost(predictor):
    cases = {n: case_bytes(n) for n in range(16)}
    expected = {}
    with VolumeServer(predictor, queue=16) as server:

        async def one(client, number):
            files = {"file": (f"case{number}.nii.gz", cases[number])}
            while (answer := await client.post("/v1/jobs", files=files)).status_code == 429:
                await asyncio.sleep(0.02)
            assert answer.status_code == 202, answer.text
            job = answer.json()
            while (job := (await client.get(job["links"]["self"], params={"wait": 20})).json())["status"] != "done":
                assert job["status"] in ("queued", "running")
            labels = (await client.get(job["links"]["labels"])).content
            await client.delete(job["links"]["self"])
            return number, job["case"], labels

        async def all_of_them(client):
            return await asyncio.gather(*(one(client, number) for number in cases))

        answers = server.run(all_of_them)
        assert nothing_left(server)
    for number, data in cases.items():
        file = Path(predictor.package.path.parent / f"{number}.nii.gz")
        file.write_bytes(data)
        expected[number] = predictor(file).encode()
    assert len(set(expected.values())) == 16
    for number, case, labels in answers:
        assert case == f"case{number}"
        assert labels == expected[number]


# -------------------------------------------------------------------------------------------------- keeping


def test_finished_jobs_are_kept_for_their_time(predictor):
    with VolumeServer(predictor, keep_seconds=0.4) as server:
        job = server.done(("a.nii.gz", CASE))
        assert 0 <= job["expires_in_seconds"] <= 0.4
        time.sleep(0.45)
        assert "there is no such job" in said(server.ask("GET", job["links"]["labels"]), 404)
        assert server.ask("GET", "/v1/jobs").json() == {"jobs": []}
        assert nothing_left(server)


def test_finished_jobs_are_kept_up_to_their_number(predictor):
    with VolumeServer(predictor, keep=2) as server:
        jobs = [server.done((f"{n}.nii.gz", case_bytes(n))) for n in range(4)]
        until(lambda: server.service.jobs.kept == 2)
        assert [server.ask("GET", job["links"]["labels"]).status_code for job in jobs] == [404, 404, 200, 200]


def test_a_download_goes_on_when_its_job_is_deleted(predictor):
    with VolumeServer(predictor) as server:
        job = server.done(("a.nii.gz", CASE), probabilities="true")

        async def fetch(client):
            async with client.stream("GET", job["links"]["probabilities"]) as answer:
                await client.delete(job["links"]["self"])
                return int(answer.headers["content-length"]), await answer.aread()

        length, data = server.run(fetch)
        assert len(data) == length
        assert data[:2] == b"PK"


def test_what_a_killed_server_left_is_removed_by_the_next_and_what_is_in_use_is_not(tmp_path):
    code = f"""
import os, sys
from pathlib import Path
from segship.serve.volume_space import Space
space = Space(1000, Path({str(tmp_path)!r}))
(space.new_folder() / "patient.nii.gz").write_bytes(b"x")
print(space.folder, flush=True)
os._exit(9)
"""
    left = Path(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())
    assert list(left.rglob("patient.nii.gz"))
    (tmp_path / "segship-serve-of-something-else").mkdir()
    first = Space(1000, tmp_path)
    assert not left.exists()
    second = Space(1000, tmp_path)
    assert first.folder.exists()
    assert (tmp_path / "segship-serve-of-something-else").exists()
    if os.name == "posix":
        assert first.folder.stat().st_mode & 0o077 == 0
    for space in (first, second):
        space.close()
        assert not space.folder.exists()
