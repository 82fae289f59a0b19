"""The server on a real socket: what lies below HTTP, and how it starts and ends. In this process, in a thread."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import stub_engine
from serving import png

from segship.errors import UsageError
from segship.serve import connection, server
from segship.serve.options import ServeOptions
from segship.serve.service import Service


@pytest.fixture
def predictor(tmp_path, monkeypatch):
    stub_engine.install(monkeypatch)
    with stub_engine.open_stub(tmp_path / "package") as predictor:
        yield predictor


@contextmanager
def running(predictor, **options):
    """(host, port) of a server in a thread; stopped by what a signal would do."""
    service = Service(predictor, ServeOptions(port=0, **options))
    sock = server.bind("127.0.0.1", 0)
    ready = threading.Event()
    stop: list = []

    async def run():
        stop.append((asyncio.get_running_loop(), event := asyncio.Event()))
        await server.run(service, sock, lambda _: ready.set(), event)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(20)
        yield sock.getsockname()[:2]
    finally:
        loop, event = stop[0]
        loop.call_soon_threadsafe(event.set)
        thread.join(20)
        assert not thread.is_alive()
        service.close()


def talk(address, *pieces, pause=0.0):
    """Send bytes, read until the server closes; (head, body)."""
    with socket.create_connection(address, timeout=10) as client:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(pause)
        received = b""
        while data := client.recv(65536):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    return head.decode(), body


def test_what_is_no_http_is_answered_as_json(predictor):
    with running(predictor) as address:
        head, body = talk(address, b"\x16\x03\x01 hello\r\n\r\n")
    assert head.startswith("HTTP/1.1 400")
    assert set(json.loads(body)) == {"error", "hint"}


def test_headers_are_bounded(predictor):
    with running(predictor) as address:
        head, body = talk(address, b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 40_000)
    assert head.startswith("HTTP/1.1 400")
    assert "32 KiB" in json.loads(body)["hint"]


def test_a_client_that_never_finishes_its_headers_is_closed(predictor, monkeypatch):
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.2)
    with running(predictor) as address:
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            talk(address, *[b"G"] * 100, pause=0.05)
        assert time.monotonic() - began < 4


def test_a_request_under_way_is_not_idle(predictor, monkeypatch):
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.1)
    data = png(1)
    head = b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: image/png\r\n"
    with running(predictor) as address:
        half = len(data) // 2
        pieces = (head + b"content-length: %d\r\n\r\n" % len(data), data[:half], data[half:])
        answer, body = talk(address, *pieces, pause=0.3)
    assert answer.startswith("HTTP/1.1 200")
    assert body.startswith(b"\x89PNG")


def test_a_refused_upload_still_reads_its_answer(predictor):
    """The client sends all before it reads: closing at once would reset the connection under it."""
    head = b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: image/png\r\n"
    size = 3_000_000
    with running(predictor, max_bytes=2_000_000) as address:
        answer, body = talk(address, head + b"content-length: %d\r\n\r\n" % size, bytes(size))
        assert answer.startswith("HTTP/1.1 413")
        assert "2,000,000" in json.loads(body)["error"]


def test_a_client_that_asks_first_is_told_before_it_sends(predictor):
    head = (
        b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: image/png\r\n"
        b"expect: 100-continue\r\ncontent-length: 3000000\r\n\r\n"
    )
    with running(predictor, max_bytes=2_000_000) as address:
        began = time.monotonic()
        answer, _ = talk(address, head)
        assert answer.startswith("HTTP/1.1 413")
        assert time.monotonic() - began < 3


def test_a_port_that_is_taken_is_said():
    with server.bind("127.0.0.1", 0) as sock, pytest.raises(UsageError, match="choose another with --host and --port"):
        server.bind(*sock.getsockname()[:2])


def test_a_host_that_is_none_is_said():
    with pytest.raises(UsageError, match="cannot listen on"):
        server.bind("no.such.host.invalid", 8000)


def test_addresses_are_written_as_browsers_take_them():
    with server.bind("127.0.0.1", 0) as sock:
        assert server.address(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
