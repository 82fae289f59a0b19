"""What a server does not take: too much, too slow, too many, from the wrong place."""

from __future__ import annotations

import asyncio
import struct
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import stub_engine
from serving import Server, png

from segship.errors import UsageError
from segship.serve import memory
from segship.serve.options import ServeOptions
from segship.serve.service import Service

PICTURE = png(1)
FILE = {"file": ("a.png", PICTURE, "image/png")}
IMAGE = {"content-type": "image/png"}


@pytest.fixture
def predictor(tmp_path, monkeypatch):
    stub_engine.install(monkeypatch)
    with stub_engine.open_stub(tmp_path / "package") as predictor:
        yield predictor


def said(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


class Pieces:
    """A body in pieces that counts how many were taken."""

    def __init__(self, data: bytes, times: int, pause: float = 0) -> None:
        self.data = data
        self.times = times
        self.pause = pause
        self.taken = 0

    async def __aiter__(self):
        for _ in range(self.times):
            self.taken += 1
            await asyncio.sleep(self.pause)
            yield self.data


# -------------------------------------------------------------------------------------------------- bytes


def test_an_announced_length_is_enough_to_refuse(predictor):
    with Server(predictor, max_bytes=1000, max_held_bytes=1000) as server:
        pieces = Pieces(bytes(1000), 50)
        headers = IMAGE | {"content-length": "50000"}
        assert "larger than 1,000 bytes" in said(
            server.ask("POST", "/v1/predict", content=pieces, headers=headers), 413
        )
        assert pieces.taken <= 2  # thrown away, so that the client comes to read the answer


def test_a_body_of_unknown_length_is_cut_where_it_is_too_long(predictor):
    with Server(predictor, max_bytes=5000, max_held_bytes=5000) as server:
        pieces = Pieces(bytes(1000), 500)
        assert "larger than 5,000 bytes" in said(server.ask("POST", "/v1/predict", content=pieces, headers=IMAGE), 413)
        assert pieces.taken <= 17
        assert server.service.held.total == 0


def test_a_part_of_a_form_is_cut_too(predictor):
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}

    async def body():
        yield head
        for _ in range(500):
            taken.append(1)
            yield bytes(1000)

    taken = []
    with Server(predictor, max_bytes=5000, max_held_bytes=200_000) as server:
        assert "larger than 5,000" in said(server.ask("POST", "/v1/predict", content=body(), headers=headers), 413)
        assert len(taken) <= 17
        assert server.service.held.total == 0


def test_a_picture_of_exactly_the_limit_is_taken(predictor):
    with Server(predictor, max_bytes=len(PICTURE)) as server:
        assert server.ask("POST", "/v1/predict", content=PICTURE, headers=IMAGE).status_code == 200
        assert server.ask("POST", "/v1/predict", files=FILE).status_code == 200
    with Server(predictor, max_bytes=len(PICTURE) - 1) as server:
        assert server.ask("POST", "/v1/predict", content=PICTURE, headers=IMAGE).status_code == 413
        assert server.ask("POST", "/v1/predict", files=FILE).status_code == 413


def test_all_bodies_together_are_bounded(predictor):
    """Two uploads that would fit alone: the one that would go over is told to come back."""

    async def both(client):
        slow = Pieces(bytes(600), 10, pause=0.02)
        first = asyncio.create_task(client.post("/v1/predict", content=slow, headers=IMAGE))
        await asyncio.sleep(0.15)
        second = await client.post("/v1/predict", content=bytes(6000), headers=IMAGE)
        return await first, second

    with Server(predictor, max_bytes=7000, max_held_bytes=7000) as server:
        first, second = server.run(both)
        assert first.status_code == 422  # it came through, and is no picture
        assert "7,000 bytes kept for them" in said(second, 429)
        assert second.headers["retry-after"] == "1"
        assert server.service.held.total == 0
        assert server.service.jobs.taken == 0


def test_a_slow_body_is_given_up(predictor):
    with Server(predictor, upload_timeout=0.2) as server:
        answer = server.ask("POST", "/v1/predict", content=Pieces(b"x", 100, pause=0.02), headers=IMAGE)
        assert "did not arrive within 0.2 seconds" in said(answer, 408)
        assert server.service.jobs.taken == 0


@pytest.mark.parametrize(
    ("request_", "status", "error"),
    [
        ({"content": b""}, 400, "0 bytes"),
        ({"files": {"file": ("a.png", b"")}}, 400, "0 bytes"),
        ({"files": {"picture": ("a.png", PICTURE)}}, 400, "no picture field 'picture'"),
        ({"files": [("file", ("a.png", PICTURE)), ("file", ("b.png", PICTURE))]}, 400, "two parts called 'file'"),
        ({"files": [("file", ("a.png", b"x"))] * 3}, 400, "Too many files"),
        ({"data": {"output": "mask"}, "files": {"background": ("b.png", PICTURE)}}, 400, "no part 'file'"),
        ({"files": {"file": (None, "text")}}, 400, "has no file name"),
        ({"files": FILE, "data": {f"f{i}": "1" for i in range(40)}}, 400, "Too many fields"),
        ({"files": FILE, "data": {"output": "x" * 100_000}}, 400, "maximum size"),
        ({"content": PICTURE, "params": {f"f{i}": "1" for i in range(40)}}, 400, "more than 32 fields"),
        ({"content": b"--b", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"junk", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, "cannot be read"),
        ({"content": b"a=1", "headers": {"content-type": "application/x-www-form-urlencoded"}}, 415, "urlencoded"),
        ({"json": {"url": "http://127.0.0.1/"}}, 415, "application/json"),
    ],
)
def test_bodies_that_are_no_picture(predictor, request_, status, error):
    with Server(predictor) as server:
        assert error in said(server.ask("POST", "/v1/predict", **request_), status)
        assert server.service.held.total == 0


def test_part_headers_are_bounded(predictor):
    headers = {"content-type": "multipart/form-data; boundary=b"}
    many = b"".join(b"X-%d: 1\r\n" % i for i in range(50))
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n' + many + b"\r\n1\r\n--b--\r\n"
    with Server(predictor) as server:
        assert "cannot be read" in said(server.ask("POST", "/v1/predict", content=body, headers=headers), 400)


# ------------------------------------------------------------------------------------------------- pixels


def bomb(height, width):
    """A PNG whose header promises that many pixels, in a few dozen bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_too_many_pixels_are_refused_before_decoding(predictor):
    with Server(predictor, max_pixels=8000) as server:
        assert "the limit is 8,000" in said(
            server.ask("POST", "/v1/predict", files={"file": ("a", bomb(1, 8001))}), 413
        )
        assert server.ask("POST", "/v1/predict", files=FILE).status_code == 200  # 80 x 100
        both = {**FILE, "background": ("b", bomb(60_000, 60_000))}
        assert "the background has 60,000 x" in said(server.ask("POST", "/v1/predict", files=both), 413)


def test_matting_has_a_limit_of_its_own(predictor):
    with Server(predictor, max_matting_pixels=7999) as server:
        fields = {"output": "cutout", "matting": "true"}
        assert "matting is limited" in said(server.ask("POST", "/v1/predict", files=FILE, data=fields), 413)


def test_a_large_picture_s_memory_goes_back_to_the_system(predictor, monkeypatch):
    returned = []
    monkeypatch.setattr(memory, "_trim", lambda: returned.append)
    with Server(predictor) as server:
        assert server.ask("POST", "/v1/predict", files=FILE).status_code == 200
        assert returned == []
        large = cv2.imencode(".png", np.zeros((2000, 2000, 3), np.uint8))[1].tobytes()
        assert server.ask("POST", "/v1/predict", files={"file": ("a.png", large)}).status_code == 200
        assert returned == [0]


def test_giving_memory_back_works_or_does_nothing():
    memory.give_back()


# -------------------------------------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:8000", "", "127.0.0.1.evil.example", "[::1", "localhost@x"]
)
def test_loopback_answers_to_its_own_names_only(predictor, name):
    with Server(predictor) as server:
        assert "does not answer to the name" in said(server.ask("GET", "/v1/model", headers={"host": name}), 421)


@pytest.mark.parametrize("name", ["127.0.0.1:8000", "localhost", "[::1]:8000", "box.lan", "LOCALHOST:1"])
def test_names_that_are_known(predictor, name):
    with Server(predictor, allow_hosts=("Box.lan",)) as server:
        assert server.ask("GET", "/healthz", headers={"host": name}).status_code == 200


def test_a_server_for_others_answers_to_any_name(predictor):
    with Server(predictor, host="0.0.0.0") as server:
        assert server.ask("GET", "/healthz", headers={"host": "any.example"}).status_code == 200


def test_other_pages_may_not_call(predictor):
    with Server(predictor) as server:
        for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "http://[", "127.0.0.1:8000"):
            answer = server.ask("POST", "/v1/predict", files=FILE, headers={"origin": origin})
            assert "may not call this server" in said(answer, 403)
            assert "access-control-allow-origin" not in answer.headers
        own = server.ask("POST", "/v1/predict", files=FILE, headers={"origin": "http://127.0.0.1:8000"})
        assert own.status_code == 200
        assert own.headers["cross-origin-resource-policy"] == "same-origin"


def test_pages_that_are_named_may_call(predictor):
    with Server(predictor, allow_origins=("https://app.example",)) as server:
        answer = server.ask("POST", "/v1/predict", files=FILE, headers={"origin": "https://app.example"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
        assert server.ask("OPTIONS", "/v1/predict", headers=asked).status_code == 200
        assert server.ask("POST", "/v1/predict", files=FILE, headers={"origin": "https://b.example"}).status_code == 403


def test_header_lines_are_counted(predictor):
    with Server(predictor) as server:
        many = {f"x-{i}": "1" for i in range(120)}
        assert "header lines" in said(server.ask("GET", "/healthz", headers=many), 431)


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "wrong",
    [{"port": 70_000}, {"queue": -1}, {"timeout": 0}, {"max_bytes": 0}, {"max_pixels": -5}, {"upload_timeout": -1.0},
     {"max_bytes": 1 << 40}, {"allow_origins": ("example.org",)}, {"timeout": float("nan")}],
)  # fmt: skip
def test_options_that_cannot_work(wrong):
    with pytest.raises(UsageError):
        ServeOptions(**wrong)


def test_a_package_of_volumes_is_refused():
    about = SimpleNamespace(name="brain", input=SimpleNamespace(kind="volume"))
    with pytest.raises(UsageError, match="takes volumes"):
        Service(SimpleNamespace(manifest=about), ServeOptions())


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.4", False), ("box.lan", False)],
)  # fmt: skip
def test_which_addresses_only_this_machine_reaches(host, loopback):
    assert ServeOptions(host=host).loopback is loopback
