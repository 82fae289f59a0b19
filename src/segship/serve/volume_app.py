"""The application for packages that take volumes: a case is a job, submitted, asked after, fetched, deleted."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from segship.serve.answers import NPZ, PNG
from segship.serve.app import PAGE_FILES, body_schema, guarded, new_app
from segship.serve.fields import Field, parse_fields
from segship.serve.refused import Refused
from segship.serve.volume_body import FileIntake
from segship.serve.volume_jobs import Job
from segship.serve.volume_orders import JOB_FIELDS, Order, files_a_case, make_order, rule
from segship.serve.volume_planes import PLANES, cut
from segship.serve.volume_service import Found, VolumeService

PAGE = {
    "/": ("volume.html", "text/html; charset=utf-8"),
    "/page.css": PAGE_FILES["/page.css"],
    "/common.js": PAGE_FILES["/common.js"],
    "/volume.css": ("volume.css", "text/css; charset=utf-8"),
    "/volume.js": ("volume.js", "text/javascript; charset=utf-8"),
    "/planes.js": ("planes.js", "text/javascript; charset=utf-8"),
}
KNOWN = (
    "GET /, /v1/model, /healthz, /metrics, /openapi.json; POST and GET /v1/jobs; GET and DELETE /v1/jobs/{id}; "
    "GET /v1/jobs/{id}/labels, …/preview, …/probabilities, …/planes/{axial, coronal or sagittal}/{slice}"
)
HEADERS = ("location", "segship-package", "segship-precision", "content-disposition", "retry-after")
WAIT = Field(name="wait", kind="whole", low=0, high=60, default=0, about="seconds to wait for the job's end")
CHANNEL = Field(name="channel", kind="whole", low=0, high=65535, default=0, about="whose brightness is shown")
_LOOK_SECONDS = 0.1
_CHUNK = 1 << 18
_MEDIA = {"png": PNG, "bmp": "image/bmp", "tif": "image/tiff", "gz": "application/gzip"}
"""of a label file, by the last part of its name"""


def build_volume_app(service: VolumeService) -> ASGIApp:
    """The ASGI application of an opened service for volumes, behind its guard."""
    app = new_app(service, PAGE, KNOWN, what="case")
    _add_submission(app, service)
    _add_jobs(app, service)
    _add_results(app, service)
    return guarded(app, service, ["GET", "POST", "DELETE"], HEADERS)


# ------------------------------------------------------------------------------------------------ submitting


def _add_submission(app: FastAPI, service: VolumeService) -> None:
    @app.post(
        "/v1/jobs",
        status_code=202,
        summary="A case in (one file a channel); a job out, to be asked after",
        openapi_extra=body_schema(
            JOB_FIELDS, "a NIfTI file; one part for each channel", several=True, bare="application/octet-stream"
        ),
    )
    async def submit(request: Request) -> Response:
        with service.jobs.place() as place:
            job = await _received(service, request)
            try:
                place.submit(job)
            except Refused:
                _drop(service, job.folder, job.held)
                raise
        return JSONResponse(about(service, job), 202, {"location": f"/v1/jobs/{job.id}"})

    @app.post("/v1/predict", include_in_schema=False)
    async def predict() -> Response:
        raise Refused(
            404, f"package '{service.name}' takes volumes, which take longer than a request should wait",
            "POST /v1/jobs with the same files, then GET /v1/jobs/{id}?wait=60, then GET /v1/jobs/{id}/labels",
        )  # fmt: skip


async def _received(service: VolumeService, request: Request) -> Job:
    """Files on disk, checked and priced. Nothing stays behind where that fails or the client goes away."""
    folder = service.space.new_folder()
    intake = FileIntake(
        request, service.options, service.space, folder, files=files_a_case(service.input), hint=rule(service.input),
        stopping=lambda: service.jobs.stopping,
    )  # fmt: skip
    try:
        sent, words = await intake.read()
        values = parse_fields(words, JOB_FIELDS, {})
        recipe, first = service.predictor.manifest, service.first
        order = await asyncio.to_thread(
            make_order, sent, values, recipe, service.bounds, None if first is None else first.manifest
        )
        more = order.disk - intake.bytes
        service.space.check_disk(more)
        service.space.add(more, f"the results of {order.case}")
    except BaseException:
        _drop(service, folder, intake.bytes)
        raise
    return Job(order=order, folder=folder, total=order.passes, held=order.disk)


def _drop(service: VolumeService, folder: Path, held: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    service.space.remove(held)


# ---------------------------------------------------------------------------------------------------- asking


def _add_jobs(app: FastAPI, service: VolumeService) -> None:
    @app.get("/v1/jobs", summary="All jobs, in the order of their submission")
    async def jobs() -> JSONResponse:
        if not service.options.loopback:
            raise Refused(
                403, "a job's id is the key to its results, and this server can be reached by others",
                "keep the id that POST /v1/jobs gave you",
            )  # fmt: skip
        return JSONResponse({"jobs": [about(service, job) for job in service.jobs.all()]})

    @app.get(
        "/v1/jobs/{job}",
        summary="How far a job is; with wait=SECONDS as soon as it has ended or the time is over",
        openapi_extra={"parameters": [{"name": "wait", "in": "query", "required": False, "schema": WAIT.schema()}]},
    )
    async def status(job: str, request: Request) -> JSONResponse:
        wait = parse_fields(dict(request.query_params), (WAIT,), {})["wait"]
        found = service.jobs.get(job)
        deadline = time.monotonic() + wait
        while found.ended is None and time.monotonic() < deadline and not service.jobs.stopping:
            await asyncio.sleep(_LOOK_SECONDS)
            if await request.is_disconnected():
                break
        return JSONResponse(about(service, service.jobs.get(job)))

    @app.delete("/v1/jobs/{job}", summary="Delete a job and its files; one at work ends with its current window")
    async def delete(job: str) -> JSONResponse:
        was = await asyncio.to_thread(service.jobs.remove, job)
        return JSONResponse({"id": job, "deleted": True, "was": was})


def about(service: VolumeService, job: Job) -> dict[str, Any]:
    """A job as its client sees it."""
    order: Order = job.order
    found: Found | None = job.found
    at = f"/v1/jobs/{job.id}"
    data: dict[str, Any] = {
        "id": job.id,
        **order.about(),
        "status": job.status,
        "stage": job.stage,
        "position": service.jobs.position(job),
        "windows": {"done": job.done, "total": job.total},
        "waited_seconds": round(job.waited, 3),
        "seconds": round(job.worked, 3),
        "error": job.error.error if job.error else None,
        "hint": job.error.hint if job.error else None,
        "expires_in_seconds": _rounded(service.jobs.expires_in(job)),
        "links": {"self": at},
    }
    if found is None:
        return data
    links = {"self": at, "labels": f"{at}/labels", "preview": f"{at}/preview", "planes": f"{at}/planes"}
    if found.probabilities is not None:
        links["probabilities"] = f"{at}/probabilities"
    labels = [
        {
            "id": label.id, "name": label.name, "color": list(label.color), "voxels": found.voxels[label.id],
            "millilitres": round(found.voxels[label.id] * found.voxel_ml, 4) if math.isfinite(found.voxel_ml) else None,
        }
        for label in service.predictor.manifest.labels
        if label.id != 0
    ]  # fmt: skip
    planes = {plane.name: plane.about() for plane in found.planes}
    file_name = f"{order.case}{service.input.file_ending}"
    return {
        **data, "links": links, "file_name": file_name, "notes": list(found.notes), "labels": labels, "planes": planes
    }  # fmt: skip


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


# -------------------------------------------------------------------------------------------------- fetching


def _add_results(app: FastAPI, service: VolumeService) -> None:
    @app.get("/v1/jobs/{job}/labels", summary="The label file: the bytes that `segship predict` writes")
    async def labels(job: str) -> Response:
        one, found = _found(service, job)
        ending = service.input.file_ending
        return await _file(
            service, found.labels, f"{one.order.case}{ending}", _MEDIA.get(ending.rsplit(".", 1)[-1], NPZ)
        )

    @app.get("/v1/jobs/{job}/preview", summary="Three planes with the labels, as PNG")
    async def preview(job: str) -> Response:
        one, found = _found(service, job)
        return await _file(service, found.preview, f"{one.order.case}.png", PNG)

    @app.get("/v1/jobs/{job}/probabilities", summary="float32 (classes, z, y, x) as .npz, where they were asked for")
    async def probabilities(job: str) -> Response:
        one, found = _found(service, job)
        if found.probabilities is None:
            raise Refused(404, "this job kept no probabilities", "submit the case again with probabilities=true")
        return await _file(service, found.probabilities, f"{one.order.case}.npz", NPZ)

    @app.get(
        "/v1/jobs/{job}/planes/{plane}/{index}",
        summary="One slice as PNG: red is the brightness, green and blue the label's low and high byte",
        openapi_extra={"parameters": [{"name": "channel", "in": "query", "schema": CHANNEL.schema()}]},
    )
    async def plane(job: str, plane: str, index: str, request: Request) -> Response:
        one, found = _found(service, job)
        channel = parse_fields(dict(request.query_params), (CHANNEL,), {})["channel"]
        known = next((have for have in found.planes if have.name == plane), None)
        if known is None:
            names = ", ".join(have.name for have in found.planes)
            raise Refused(404, "there is no such plane", f"this case has: {names}" if names else ", ".join(PLANES))
        if len(index) > 9 or not index.isdecimal() or int(index) >= known.slices:
            raise Refused(404, "there is no such slice", f"{known.name} slices are 0 to {known.slices - 1}")
        channels = len(service.input.channels)
        if channel >= channels:
            raise Refused(404, f"there is no channel {channel}", f"channels are 0 to {channels - 1}")
        try:
            data = await asyncio.to_thread(cut, one.folder, known.name, int(index), channel)
        except OSError:
            raise _gone() from None
        return Response(data, media_type=PNG)


def _found(service: VolumeService, id_: str) -> tuple[Job, Found]:
    """Raises Refused 404 for an unknown job, 409 for one that is not done."""
    job = service.jobs.get(id_)
    if job.status == "failed":
        assert job.error is not None
        raise Refused(409, f"this job failed: {job.error.error}", job.error.hint)
    if job.found is None:
        raise Refused(
            409, f"this job is {job.status}: {job.done:,} of {job.total:,} windows are done",
            f"GET /v1/jobs/{job.id}?wait=60 until its status is done", retry_after=5,
        )  # fmt: skip
    return job, job.found


def _gone() -> Refused:
    return Refused(404, "this job has just been deleted", "submit the case again")


async def _file(service: VolumeService, path: Path, name: str, media_type: str) -> Response:
    """A file in pieces. It is open before the answer begins, so deleting the job does not cut it short."""
    try:
        file = await asyncio.to_thread(path.open, "rb")
    except OSError:
        raise _gone() from None
    headers = {
        "content-length": str(os.fstat(file.fileno()).st_size),
        "content-disposition": f'attachment; filename="{name}"',
        "segship-package": service.sha256,
        "segship-precision": f"{service.precision} {service.engine}",
    }
    return StreamingResponse(_pieces(file), media_type=media_type, headers=headers)


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while piece := await asyncio.to_thread(file.read, _CHUNK):
            yield piece
