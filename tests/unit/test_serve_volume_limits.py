"""What a server of volumes does not take, whatever is sent to it, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import gzip
import struct
import zlib
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import stub_engine
from serving_volumes import (
    SHAPE,
    VolumeServer,
    bright,
    case_bytes,
    nothing_left,
    open_volumes,
    said,
    stub_volumes,
    written,
)

from segship.errors import UsageError
from segship.inference import nifti
from segship.inference.predictor import Predictor
from segship.manifest import VolumeInput
from segship.serve import memory
from segship.serve.options import VolumeServeOptions
from segship.serve.volume_service import VolumeService

CASE = case_bytes(1)
FILE = {"file": ("a.nii.gz", CASE)}


@pytest.fixture
def predictor(tmp_path, monkeypatch):
    stub_engine.install(monkeypatch, bright)
    with open_volumes(tmp_path / "net") as predictor:
        yield predictor


# ------------------------------------------------------------------------------------- memory, voxels, bytes


def test_a_case_that_would_not_fit_is_refused_with_numbers(predictor):
    with VolumeServer(predictor) as server:
        bounds = server.service.bounds
        server.service.bounds = replace(bounds, memory=bounds.base + (12 << 20))
        large = case_bytes(1, (200, 200, 100), packed=False)
        error = said(server.ask("POST", "/v1/jobs", files={"file": ("big.nii", large)}), 413)
        assert error.startswith("big needs about ")
        assert " for a grid of 100 x 200 x 200), and this server may use " in error
        assert nothing_left(server)
        assert server.submit(("small.nii.gz", CASE))["memory_bytes"] < server.service.bounds.memory
        with_them = {"file": ("a.nii", case_bytes(1, (100, 100, 50), packed=False))}
        assert server.ask("POST", "/v1/jobs", files=with_them).status_code == 202
        assert "needs about" in said(
            server.ask("POST", "/v1/jobs", files=with_them, data={"probabilities": "true"}), 413
        )


def test_without_a_limit_the_machine_s_memory_is_it(predictor):
    found = memory.usable()
    if found is None:
        pytest.skip("this system does not tell")
    with VolumeServer(predictor) as server:
        assert server.service.bounds.memory == pytest.approx(found, rel=0.5)
        assert server.service.bounds.base < server.service.bounds.memory


def test_too_many_voxels_are_refused_by_the_header(predictor):
    with VolumeServer(predictor, max_pixels=1500) as server:
        error = said(server.ask("POST", "/v1/jobs", files=FILE), 413)
        assert error == "a.nii.gz has 1,512 voxels (14 x 12 x 9), the limit is 1,500"
    with VolumeServer(predictor, max_pixels=1512) as server:
        assert server.ask("POST", "/v1/jobs", files=FILE).status_code == 202


def promising(shape):
    """The first bytes of a NIfTI file of that shape, its voxels left out."""
    data = bytearray(gzip.decompress(CASE)[:352])
    data[40 : 40 + 16] = np.array([3, *shape, 1, 1, 1, 1], "<i2").tobytes()
    return bytes(data)


def test_bombs_are_stopped_before_they_are_unpacked(predictor, monkeypatch):
    huge = gzip.compress(promising((30_000, 30_000, 30_000)))
    with VolumeServer(predictor) as server:
        error = said(server.ask("POST", "/v1/jobs", files={"file": ("bomb.nii.gz", huge)}), 413)
        assert error.startswith("bomb.nii.gz has 27,000,000,000,000 voxels")
        long = gzip.compress(gzip.decompress(CASE) + bytes(80 << 20))
        error = said(server.ask("POST", "/v1/jobs", files={"file": ("long.nii.gz", long)}), 422)
        assert error == "long.nii.gz unpacks to far more than its header declares"
        assert nothing_left(server)


def test_pictures_are_bounded_by_their_headers_too(tmp_path, monkeypatch):
    """A package whose volumes are single pictures: 3.6 thousand million pixels are no internal error."""
    stub_engine.install(monkeypatch, bright)
    spec = VolumeInput(reader="image-2d", channels=({"name": "grey"},), file_ending=".png", channel_files="one-file")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b""))
    )
    with open_volumes(tmp_path / "net", input=spec) as predictor, VolumeServer(predictor) as server:
        error = said(server.ask("POST", "/v1/jobs", files={"file": ("a.png", bomb)}), 413)
        assert error.startswith("a.png has 3,600,000,000 voxels (60000 x 60000)")
        assert "not an image" in said(server.ask("POST", "/v1/jobs", files={"file": ("a.png", b"text")}), 422)
        good = cv2.imencode(".png", np.full((20, 30), 200, np.uint8))[1].tobytes()
        job = server.done(("a.png", good))
        assert (job["case"], job["file_name"], list(job["planes"])) == ("a", "a.png", ["axial"])
        assert server.ask("GET", job["links"]["labels"]).headers["content-type"] == "image/png"


class Pieces:
    """A body in pieces that counts how many were taken."""

    def __init__(self, data, times, pause=0.0):
        self.data, self.times, self.pause, self.taken = data, times, pause, 0

    async def __aiter__(self):
        for _ in range(self.times):
            self.taken += 1
            await asyncio.sleep(self.pause)
            yield self.data


def test_bytes_are_counted_while_they_arrive(predictor):
    raw = {"content-type": "application/octet-stream"}
    form = {"content-type": "multipart/form-data; boundary=b"}
    with VolumeServer(predictor, max_bytes=5000) as server:
        pieces = Pieces(bytes(1000), 50)
        announced = server.ask("POST", "/v1/jobs", content=pieces, headers=raw | {"content-length": "50000"})
        assert said(announced, 413) == "the file is larger than 5,000 bytes"
        pieces = Pieces(bytes(1000), 500)
        assert said(server.ask("POST", "/v1/jobs", content=pieces, headers=raw), 413)
        assert pieces.taken <= 17
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'
        assert said(server.ask("POST", "/v1/jobs", content=head + bytes(6000), headers=form), 413)
        assert nothing_left(server)


def test_a_slow_upload_is_given_up(predictor):
    with VolumeServer(predictor, upload_timeout=0.2) as server:
        answer = server.ask("POST", "/v1/jobs", content=Pieces(b"x", 100, pause=0.02))
        assert said(answer, 408) == "the files did not arrive within 0.2 seconds"
        assert nothing_left(server)


def test_the_disk_is_bounded_too(predictor):
    with VolumeServer(predictor, max_bytes=len(CASE), max_held_bytes=len(CASE)) as server:
        error = said(server.ask("POST", "/v1/jobs", files=FILE), 507)
        assert error.startswith("the results of a") or error.startswith("the uploads")
        assert nothing_left(server)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"junk", "the form cannot be read"),
        (b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.nii.gz"\r\n\r\nhalf', "no part 'file'"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\n1\r\n--b--\r\n", "the form cannot be read"),
        (b'--b\r\nContent-Disposition: form-data; name="scan"; filename="a"\r\n\r\n1\r\n--b--\r\n', "no file field"),
        (b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n1\r\n--b--\r\n', "it has no file name"),
        (b"--b--\r\n", "no part 'file'"),
    ],
)
def test_malformed_forms(predictor, body, says):
    headers = {"content-type": "multipart/form-data; boundary=b"}
    with VolumeServer(predictor) as server:
        assert says in said(server.ask("POST", "/v1/jobs", content=body, headers=headers), 400)
        assert nothing_left(server)


def test_a_client_that_goes_away_while_it_uploads_leaves_nothing(predictor):
    async def half(server):
        sent = iter([{"type": "http.request", "body": CASE[:400], "more_body": True}, {"type": "http.disconnect"}])
        answers = []

        async def receive():
            return next(sent)

        async def send(message):
            answers.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/octet-stream")]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/jobs", "raw_path": b"/v1/jobs", "query_string": b"",
            "headers": headers, "scheme": "http", "server": ("localhost", 80), "client": ("127.0.0.1", 9), "root_path": "",
            "http_version": "1.1",
        }  # fmt: skip
        await server.app(scope, receive, send)
        return answers[0]["status"]

    with VolumeServer(predictor) as server:
        assert server.run(lambda _: half(server)) == 499
        assert nothing_left(server)


# ----------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "this machine's memory does not hold what this case needs"),
        (OSError(28, "No space left on device"), "the server's disk cannot be written (No space left on device)"),
        (ValueError("odd"), "internal error (ValueError)"),
    ],
)
def test_whatever_happens_in_a_job_is_a_line(predictor, monkeypatch, error, says):
    from segship.serve import volume_service

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(volume_service, "write_case", fail)
    with VolumeServer(predictor) as server:
        job = server.until(server.submit(("a.nii.gz", CASE)), "failed")
        assert job["error"] == says
        assert "labels" not in job["links"]
        monkeypatch.undo()


def test_the_reader_s_own_bound_on_surplus_is_the_server_s():
    from segship.serve import volume_orders

    assert volume_orders._SLACK == nifti._SLACK


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "wrong",
    [{"keep": 0}, {"keep_seconds": 0}, {"memory": 0}, {"max_bytes": 1 << 40}, {"upload_timeout": float("nan")},
     {"queue": -1}, {"port": 70_000}],
)  # fmt: skip
def test_options_that_cannot_work(wrong):
    with pytest.raises(UsageError):
        VolumeServeOptions(**wrong)


def test_packages_that_are_not_served_say_why(tmp_path, monkeypatch):
    stub_engine.install(monkeypatch, bright)
    tiff = VolumeInput(
        reader="tiff-3d", channels=({"name": "EM"},), file_ending=".tif", channel_files="suffix-0000",
    )  # fmt: skip
    cases = {
        "NIfTI files and single pictures": {"input": tiff},
    }
    for number, (says, changes) in enumerate(cases.items()):
        with (
            Predictor.open(stub_volumes(tmp_path / str(number), **changes), engine=stub_engine.NAME) as predictor,
            pytest.raises(UsageError, match=says),
        ):
            VolumeService(predictor, VolumeServeOptions())
    picture = SimpleNamespace(manifest=SimpleNamespace(name="cells", input=SimpleNamespace(kind="image")))
    with pytest.raises(UsageError, match="takes pictures"):
        VolumeService(picture, VolumeServeOptions())  # type: ignore[arg-type]


def test_labels_are_what_the_stub_says(predictor):
    """The tests above would pass with empty labels; they are not empty."""
    with VolumeServer(predictor) as server:
        job = server.done(("a.nii.gz", CASE))
        labels = written(server.ask("GET", job["links"]["labels"]).content)
    assert labels.shape == SHAPE
    assert set(np.unique(labels)) == {0, 1}
