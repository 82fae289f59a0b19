"""The application: routes, and nothing else. What they do is in the files beside this one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from segship import __version__
from segship.errors import SegshipError
from segship.serve import answers, metrics
from segship.serve.body import Intake
from segship.serve.fields import Field, parse_fields
from segship.serve.guard import CLIENT_GONE, Guard, Queue
from segship.serve.metrics import RequestMetrics
from segship.serve.refused import Gone, Refused, from_segship, internal
from segship.serve.service import Service

_log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/common.js": ("common.js", "text/javascript; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/picture.js": ("picture.js", "text/javascript; charset=utf-8"),
}
KNOWN = "GET /, /v1/model, /healthz, /metrics, /openapi.json; POST /v1/predict, /api/remove"
NO_URLS = "this server fetches nothing from the web"
_PICTURE = "the encoded picture"


def build_app(service: Service) -> ASGIApp:
    """The ASGI application of an opened service for pictures, behind its guard."""
    app = new_app(service, PAGE_FILES, KNOWN, what="picture")
    _add_predictions(app, service)
    return guarded(app, service, ["GET", "POST"], answers.HEADERS)


class Served(Protocol):
    """What the parts below need of a service, for pictures or for volumes."""

    name: str
    about: dict[str, Any]
    predictor: Any
    options: Any

    @property
    def jobs(self) -> Queue: ...

    @property
    def metrics(self) -> RequestMetrics: ...


def new_app(service: Served, page: Mapping[str, tuple[str, str]], known: str, *, what: str) -> FastAPI:
    """An application with what every server has: its page, its state, its words for errors."""
    app = FastAPI(
        title=f"segship: {service.name}",
        version=__version__,
        description=service.predictor.manifest.description or "A segmentation network behind HTTP.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
    )
    _add_errors(app, known, what)
    _add_page(app, page)
    _add_state(app, service)
    return app


def guarded(app: FastAPI, service: Served, methods: Sequence[str], headers: Sequence[str]) -> ASGIApp:
    """The application behind its guard; ``methods`` and ``headers`` are for web pages elsewhere that may call."""
    if service.options.allow_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(service.options.allow_origins), allow_methods=list(methods),
            allow_headers=["content-type"], expose_headers=list(headers),
        )  # fmt: skip
    routes = frozenset(getattr(route, "path", "") for route in app.routes)
    return Guard(app, service.options, service.jobs, service.metrics, routes)


def _add_page(app: FastAPI, files: Mapping[str, tuple[str, str]]) -> None:
    def add(path: str, content: bytes, media_type: str) -> None:
        async def page() -> Response:
            return Response(content, media_type=media_type)

        app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)

    for path, (name, media_type) in files.items():
        add(path, (PAGE / name).read_bytes(), media_type)


def _add_state(app: FastAPI, service: Served) -> None:
    @app.get("/v1/model", summary="The package, its precision and engine, what executed, and this server's limits")
    async def model() -> JSONResponse:
        return JSONResponse(service.about)

    @app.get("/healthz", summary="200 while requests are taken, 503 while shutting down")
    async def health() -> JSONResponse:
        stopping = service.jobs.stopping
        return JSONResponse({"status": "stopping" if stopping else "ok"}, 503 if stopping else 200)

    @app.get("/metrics", summary="Counts and times as Prometheus reads them")
    async def counts() -> Response:
        return Response(service.metrics.text(), media_type=metrics.MEDIA_TYPE)


def _add_predictions(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/predict",
        summary="A picture in; mask, label file, overlay, cutout, composite, map, numbers or probabilities out",
        openapi_extra=body_schema(answers.PREDICT_FIELDS, _PICTURE, bare="image/*"),
    )
    async def predict(request: Request) -> Response:
        return await _answer(service, request, answers.PREDICT_FIELDS, answers.wanted_by_predict, raw=True)

    @app.post(
        "/api/remove",
        summary="A picture in, its background removed: with rembg's field names",
        openapi_extra=body_schema(answers.REMOVE_FIELDS, _PICTURE, bare=None),
    )
    async def remove(request: Request) -> Response:
        if not service.saliency:
            raise Refused(
                404, f"package '{service.name}' gives classes, not what stands out; backgrounds are removed by others",
                "use POST /v1/predict here",
            )  # fmt: skip
        return await _answer(service, request, answers.REMOVE_FIELDS, answers.wanted_by_remove, raw=False)

    @app.get("/api/remove", include_in_schema=False)
    async def remove_url() -> Response:
        raise Refused(405, NO_URLS, "POST the picture itself: curl -F file=@picture.png …", allow="POST")


async def _answer(service: Service, request: Request, table: tuple[Field, ...], wanted: Any, *, raw: bool) -> Response:
    with service.jobs.place() as place:
        intake = Intake(request, service.options, service.held)
        try:
            upload = await intake.read(raw=raw)
            asked = wanted(parse_fields(upload.fields, table, upload.files), upload.files, service)
            work = functools.partial(answers.answer, service, upload.files["file"], asked)
            done = await place.run(work, functools.partial(_gone, request))
        finally:
            service.held.remove(intake.bytes)
    service.metrics.worked(done)
    return answers.respond(service, done)


async def _gone(request: Request) -> None:
    """Returns when the client closes its connection. The body was read to its end before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_errors(app: FastAPI, known: str, what: str) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(SegshipError)
    async def segship_error(request: Request, error: SegshipError) -> Response:
        return await refused(request, from_segship(error))

    @app.exception_handler(Gone)
    async def gone(request: Request, error: Gone) -> Response:
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> Response:
        wrong = {404: "there is nothing at this address", 405: f"{request.method} is not answered at this address"}
        body = {"error": wrong.get(error.status_code, str(error.detail)), "hint": f"there are: {known}"}
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(MemoryError)
    async def no_memory(request: Request, error: MemoryError) -> Response:
        wrong = f"this machine's memory does not hold what this {what} needs"
        return await refused(request, Refused(503, wrong, "send a smaller one", retry_after=5))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return await refused(request, internal(error))


def body_schema(table: tuple[Field, ...], about: str, *, several: bool = False, bare: str | None) -> dict[str, Any]:
    """OpenAPI's words for a body: a form with ``table``'s fields and a file (``about`` it), or ``several``; or the file
    alone as ``bare``, a media type."""
    file = {"type": "string", "format": "binary", "description": about}
    part = {"type": "array", "items": file} if several else file
    fields = {field.name: field.schema() for field in table}
    form = {"type": "object", "required": ["file"], "properties": {"file": part, **fields}}
    content: dict[str, Any] = {"multipart/form-data": {"schema": form}}
    if bare is not None:
        content[bare] = {"schema": file}
    query = [{"name": f.name, "in": "query", "required": False, "schema": f.schema()} for f in table]
    return {"requestBody": {"required": True, "content": content}, "parameters": query}
