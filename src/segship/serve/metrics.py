"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from typing import Any, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from segship.serve.body import Held
from segship.serve.jobs import Done, Jobs

MEDIA_TYPE = CONTENT_TYPE_LATEST
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")


class Facts(Protocol):
    name: str
    sha256: str
    precision: str
    engine: str


class Metrics:
    """Of one server; a registry of its own, so that two servers in one process do not mix."""

    def __init__(self, jobs: Jobs, held: Held, facts: Facts) -> None:
        disable_created_metrics()  # the time of each series' first value: twice the text, and nobody draws it
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time, open files; on Linux
        self._requests = Counter(
            "segship_requests", "Answers by route, method and status; 499: the client went away.",
            ("route", "method", "status"), registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "segship_request_seconds", "From a request's headers to the end of its answer.",
            ("route",), buckets=BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._waited = self._histogram("segship_queue_seconds", "Time that pictures waited for a free worker.")
        self._worked = self._histogram("segship_work_seconds", "Time from decoding a picture to its encoded answer.")
        self._gauge("segship_requests_in_flight", "Pictures being worked on.", lambda: jobs.running)
        self._gauge("segship_queue_length", "Pictures waiting for a free worker.", lambda: jobs.waiting)
        self._gauge("segship_places_taken", "Requests uploading, waiting or at work.", lambda: jobs.taken)
        self._gauge("segship_places", "How many of them there may be.", lambda: jobs.places)
        self._gauge("segship_held_bytes", "Bytes of encoded pictures in memory.", lambda: held.total)
        Gauge(
            "segship_package", "What is served.", ("name", "sha256", "precision", "engine"), registry=self.registry
        ).labels(facts.name, facts.sha256, facts.precision, facts.engine).set(1)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(name, about, buckets=BUCKETS, registry=self.registry)

    def _gauge(self, name: str, about: str, value: object) -> None:
        Gauge(name, about, registry=self.registry).set_function(value)  # type: ignore[arg-type]

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answer; an unknown method counts as OTHER, so that clients cannot make up series."""
        method = method if method in METHODS else "OTHER"
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def worked(self, done: Done[Any]) -> None:
        self._waited.observe(done.waited)
        self._worked.observe(done.worked)

    def text(self) -> bytes:
        return generate_latest(self.registry)
