"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

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

if TYPE_CHECKING:
    from segship.serve.volume_jobs import Job, JobStore
    from segship.serve.volume_space import Space

MEDIA_TYPE = CONTENT_TYPE_LATEST
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
JOB_BUCKETS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
RESULTS = ("done", "failed", "cancelled")
METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")


class Facts(Protocol):
    name: str
    sha256: str
    precision: str
    engine: str


class RequestMetrics:
    """Of one server; a registry of its own, so that two servers in one process do not mix."""

    def __init__(self) -> None:
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

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...] = BUCKETS) -> Histogram:
        return Histogram(name, about, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, about: str, value: object) -> None:
        Gauge(name, about, registry=self.registry).set_function(value)  # type: ignore[arg-type]

    def _served(self, facts: Facts) -> None:
        Gauge(
            "segship_package", "What is served.", ("name", "sha256", "precision", "engine"), registry=self.registry
        ).labels(facts.name, facts.sha256, facts.precision, facts.engine).set(1)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answer; an unknown method counts as OTHER, so that clients cannot make up series."""
        method = method if method in METHODS else "OTHER"
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Metrics(RequestMetrics):
    """Of a server for pictures."""

    def __init__(self, jobs: Jobs, held: Held, facts: Facts) -> None:
        super().__init__()
        self._waited = self._histogram("segship_queue_seconds", "Time that pictures waited for a free worker.")
        self._worked = self._histogram("segship_work_seconds", "Time from decoding a picture to its encoded answer.")
        self._gauge("segship_requests_in_flight", "Pictures being worked on.", lambda: jobs.running)
        self._gauge("segship_queue_length", "Pictures waiting for a free worker.", lambda: jobs.waiting)
        self._gauge("segship_places_taken", "Requests uploading, waiting or at work.", lambda: jobs.taken)
        self._gauge("segship_places", "How many of them there may be.", lambda: jobs.places)
        self._gauge("segship_held_bytes", "Bytes of encoded pictures in memory.", lambda: held.total)
        self._served(facts)

    def worked(self, done: Done[Any]) -> None:
        self._waited.observe(done.waited)
        self._worked.observe(done.worked)


class VolumeMetrics(RequestMetrics):
    """Of a server for volumes."""

    def __init__(self, jobs: JobStore, space: Space, facts: Facts) -> None:
        super().__init__()
        self._jobs = Counter(
            "segship_jobs", "Jobs that ended: done, failed, cancelled.", ("result",), registry=self.registry
        )
        for result in RESULTS:
            self._jobs.labels(result)
        self._windows = Counter("segship_windows", "Windows that the network ran on.", registry=self.registry)
        self._waited = self._histogram("segship_queue_seconds", "Time that jobs waited for their turn.", JOB_BUCKETS)
        self._worked = self._histogram("segship_work_seconds", "Time from a job's turn to its files.", JOB_BUCKETS)
        self._gauge("segship_jobs_running", "Jobs at work.", lambda: jobs.running)
        self._gauge("segship_queue_length", "Jobs waiting for their turn.", lambda: jobs.waiting)
        self._gauge("segship_uploads", "Requests whose files are arriving.", lambda: jobs.uploads)
        self._gauge("segship_jobs_kept", "Jobs that ended and can be fetched.", lambda: jobs.kept)
        self._gauge("segship_places_taken", "Jobs uploading, waiting or at work.", lambda: jobs.taken)
        self._gauge("segship_places", "How many of them there may be.", lambda: jobs.places)
        self._gauge("segship_held_bytes", "Bytes of uploads and results on disk.", lambda: space.total)
        self._served(facts)

    def ended(self, result: str, job: Job) -> None:
        """Count a job that ended: one of RESULTS."""
        self._jobs.labels(result).inc()
        self._windows.inc(job.done)
        self._waited.observe(job.waited)
        if job.began is not None:
            self._worked.observe(job.worked)
