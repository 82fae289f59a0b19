"""The queue: how many it takes, when it gives up, and that nothing is lost or mixed up."""

from __future__ import annotations

import asyncio

import cv2
import numpy as np
import pytest
import stub_engine
from serving import Server, png

IMAGE = {"content-type": "image/png"}


@pytest.fixture
def gate(monkeypatch):
    gate = stub_engine.Gate()
    stub_engine.install(monkeypatch, gate)
    yield gate
    gate.open.set()


@pytest.fixture
def served(gate, tmp_path):
    """``served(queue=…)`` starts a server whose network waits for the gate."""
    opened = []

    def start(**options) -> Server:
        gate.open.set()  # the service's own first picture
        opened.append(stub_engine.open_stub(tmp_path / f"package{len(opened)}"))
        server = Server(opened[-1], **options)
        gate.open.clear()
        gate.calls = 0
        return server

    yield start
    gate.open.set()
    for predictor in opened:
        predictor.close()


def post(client, seed=1):
    return asyncio.create_task(client.post("/v1/predict", content=png(seed), headers=IMAGE))


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("never true")


def test_what_does_not_fit_is_refused_at_once(gate, served):
    async def crowd(client):
        jobs = server.service.jobs
        here = [post(client, seed) for seed in range(jobs.places)]
        await until(lambda: jobs.taken == jobs.places and jobs.running == jobs.workers)
        assert jobs.waiting == 3
        gauges = (await client.get("/metrics")).text
        assert "segship_queue_length 3.0" in gauges
        assert "segship_requests_in_flight 2.0" in gauges
        too_many = await post(client)
        gate.open.set()
        answers = await asyncio.gather(*here)
        await until(lambda: jobs.running == jobs.waiting == jobs.taken == 0)
        return too_many, answers

    with served(queue=3) as server:
        too_many, answers = server.run(crowd)
    assert too_many.status_code == 429
    assert too_many.headers["retry-after"] == "1"
    assert "the limit" in too_many.json()["error"]
    assert [answer.status_code for answer in answers] == [200] * 5
    expected = [server.predictor(png(seed)).encode() for seed in range(5)]
    assert [answer.content for answer in answers] == expected
    assert len(set(expected)) == 5


def test_too_late_is_503_and_keeps_its_place_until_the_thread_is_free(gate, served):
    async def late(client):
        jobs = server.service.jobs
        answers = await asyncio.gather(*(post(client) for _ in range(3)))
        assert jobs.taken == 2  # two threads still work on pictures that nobody waits for; the third never began
        assert jobs.waiting == 0
        gate.open.set()
        await until(lambda: jobs.taken == jobs.running == 0)
        return answers

    with served(queue=1, timeout=0.3) as server:
        answers = server.run(late)
        assert gate.calls == 2
    assert [answer.status_code for answer in answers] == [503] * 3
    texts = " ".join(answer.json()["error"] for answer in answers)
    assert "still being worked on" in texts
    assert "still waiting" in texts
    assert {answer.headers["retry-after"] for answer in answers} == {"5"}


def test_a_client_that_goes_away_frees_its_place(gate, served):
    """Driven below httpx, whose transport cannot hang up: an ASGI server says so with http.disconnect."""

    async def call(gone):
        sent = []
        messages = [{"type": "http.request", "body": png(1), "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"image/png"), (b"host", b"localhost")]
        scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/predict", "raw_path": b"/v1/predict",
                 "query_string": b"", "headers": headers, "scheme": "http", "root_path": "", "server": ("x", 1),
                 "client": ("y", 2)}  # fmt: skip
        await server.app(scope, receive, send)
        return sent[0]["status"]

    async def leave(client):
        jobs = server.service.jobs
        here = [post(client) for _ in range(2)]
        await until(lambda: jobs.running == 2)
        gone = asyncio.Event()
        leaving = asyncio.create_task(call(gone))
        await until(lambda: jobs.waiting == 1)
        gone.set()
        assert await leaving == 499
        assert (jobs.waiting, jobs.taken) == (0, 2)
        gate.open.set()
        await asyncio.gather(*here)
        return (await client.get("/metrics")).text

    with served(queue=4) as server:
        counts = server.run(leave)
        assert gate.calls == 2
    assert 'segship_requests_total{method="POST",route="/v1/predict",status="499"} 1.0' in counts


def test_half_an_upload_frees_its_place(served):
    async def cut(client):
        async def receive():
            return messages.pop(0)

        sent = []

        async def send(message):
            sent.append(message)

        messages = [{"type": "http.request", "body": b"12", "more_body": True}, {"type": "http.disconnect"}]
        scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/predict", "query_string": b"",
                 "headers": [(b"content-type", b"image/png"), (b"host", b"localhost"), (b"content-length", b"9")],
                 "scheme": "http", "root_path": "", "server": ("x", 1), "client": ("y", 2)}  # fmt: skip
        await server.app(scope, receive, send)
        return sent[0]["status"]

    with served() as server:
        assert server.run(cut) == 499
        assert server.service.jobs.taken == 0
        assert server.service.held.total == 0


def test_stopping_finishes_what_is_here_and_refuses_what_comes(gate, served):
    async def stop(client):
        jobs = server.service.jobs
        here = [post(client, seed) for seed in range(4)]
        await until(lambda: jobs.taken == 4)
        jobs.stop()
        refused = await post(client)
        health = await client.get("/healthz")
        drained = asyncio.create_task(jobs.drained())
        await asyncio.sleep(0.05)
        assert not drained.done()
        gate.open.set()
        await drained
        return refused, health, await asyncio.gather(*here)

    with served() as server:
        refused, health, answers = server.run(stop)
    assert refused.status_code == 503
    assert "shutting down" in refused.json()["error"]
    assert (health.status_code, health.json()) == (503, {"status": "stopping"})
    assert [answer.status_code for answer in answers] == [200] * 4


def test_many_at_once_get_each_their_own(gate, served):
    def one(client, seed):
        return client.post("/v1/predict", params={"output": "probabilities"}, content=png(seed), headers=IMAGE)

    async def all_at_once(client):
        return await asyncio.gather(*(one(client, seed) for seed in range(40)))

    async def one_by_one(client):
        return [await one(client, seed) for seed in range(40)]

    with served() as server:
        gate.open.set()
        answers = [answer.content for answer in server.run(all_at_once)]
        assert answers == [answer.content for answer in server.run(one_by_one)]
    assert len(set(answers)) == 40


@pytest.mark.parametrize("fault", [RuntimeError("secret of the machine"), MemoryError()])
def test_a_fault_of_ours_is_said_without_its_inside(monkeypatch, tmp_path, fault, caplog):
    faults = []

    def network(x):
        if faults:
            raise faults[0]
        return [x[:, :1].copy()]

    stub_engine.install(monkeypatch, network)
    with stub_engine.open_stub(tmp_path / "package") as predictor, Server(predictor) as server:
        faults.append(fault)
        answer = server.ask("POST", "/v1/predict", content=png(1), headers=IMAGE)
        assert answer.status_code == (503 if isinstance(fault, MemoryError) else 500)
        assert set(answer.json()) == {"error", "hint"}
        assert "secret" not in answer.text
        faults.clear()
        assert server.ask("POST", "/v1/predict", content=png(1), headers=IMAGE).status_code == 200
        assert server.service.jobs.taken == 0


def test_masks_are_images_of_the_picture_s_size(served, gate):
    with served() as server:
        gate.open.set()
        answer = server.ask("POST", "/v1/predict", content=png(3, 41, 67), headers=IMAGE)
    mask = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (41, 67)
