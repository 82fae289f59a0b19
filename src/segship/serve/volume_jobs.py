"""Jobs: submitted, waiting, worked on one by one, kept for a while, deleted. Knows nothing of volumes or HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from segship.errors import SegshipError
from segship.serve.refused import Refused, from_segship, internal, shutting_down

_log = logging.getLogger(__name__)

Status = Literal["queued", "running", "done", "failed"]
Stage = Literal["waiting", "reading", "network", "writing", "ended"]
END_CHECK_SECONDS = 0.05


class Cancelled(Exception):
    """Raised out of a job's work when nobody wants it any more."""


@dataclass(kw_only=True, eq=False)
class Job:
    """One job. Its order never changes; everything else is its store's to change."""

    order: Any
    """what is to be done: for `JobStore`'s ``work``"""
    folder: Path
    """its own, with all that it reads and writes"""
    total: int
    """windows: an upper bound until the work says more exactly"""
    held: int = 0
    """bytes counted for its folder"""
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    """cannot be guessed: it is the key to the results"""
    status: Status = "queued"
    stage: Stage = "waiting"
    done: int = 0
    """windows"""
    submitted: float = field(default_factory=time.monotonic)
    began: float | None = None
    ended: float | None = None
    error: Refused | None = None
    found: Any = None
    """what ``work`` returned"""
    unwanted: bool = False
    """deleted while running: ends with the window under way"""

    @property
    def waited(self) -> float:
        """Seconds in the queue."""
        return (self.began or self.ended or time.monotonic()) - self.submitted

    @property
    def worked(self) -> float:
        """Seconds at work."""
        return 0.0 if self.began is None else (self.ended or time.monotonic()) - self.began

    def check(self) -> None:
        """For the work to call between its steps. Raises Cancelled."""
        if self.unwanted:
            raise Cancelled

    def progress(self, done: int, total: int, _: str = "") -> None:
        """For the work to call after each window. Raises Cancelled."""
        self.done, self.total, self.stage = done, total, "network"
        self.check()


Watch = Callable[[str, Job], None]
"""told 'done', 'failed' or 'cancelled' with each job that ends"""


class JobStore:
    """A bounded queue before one thread, and the jobs that are done.

    One case is worked on at a time: a second one would need its memory too, and the engine has all the cores already.
    """

    def __init__(
        self, work: Callable[[Job], Any], release: Callable[[Job], None], *, queue: int, keep: int, keep_seconds: float,
        watch: Watch = lambda result, job: None,
    ) -> None:  # fmt: skip
        """``work`` does a job and may take its time, ``release`` is called once when a job is gone for good."""
        self.places = 1 + queue
        self.keep = keep
        self.keep_seconds = keep_seconds
        self.stopping = False
        self._work = work
        self._release = release
        self._watch = watch
        self._jobs: dict[str, Job] = {}
        """in the order of submission"""
        self._queue: list[Job] = []
        self._running: Job | None = None
        self._uploads = 0
        self._closed = False
        self._change = threading.Condition()
        self._threads = [
            threading.Thread(target=run, name=f"segship-serve-{name}", daemon=True)
            for name, run in (("work", self._run), ("keep", self._expire))
        ]
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------------------------------------------ asking

    @property
    def taken(self) -> int:
        """Places of jobs that upload, wait or are at work."""
        with self._change:
            return self._uploads + len(self._queue) + (self._running is not None)

    @property
    def uploads(self) -> int:
        return self._uploads

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return int(self._running is not None)

    @property
    def kept(self) -> int:
        """Jobs that ended and whose results can be fetched."""
        with self._change:
            return sum(job.ended is not None for job in self._jobs.values())

    def get(self, id_: str) -> Job:
        """Raises Refused 404 for one that is not there (any more)."""
        with self._change:
            job = self._jobs.get(id_)
            if job is not None and not self._is_over(job):
                return job
        raise Refused(
            404, "there is no such job (any more)",
            f"finished jobs are kept for {self.keep_seconds:g} seconds, the last {self.keep} of them; submit it again",
        )  # fmt: skip

    def all(self) -> list[Job]:
        with self._change:
            return [job for job in self._jobs.values() if not self._is_over(job)]

    def position(self, job: Job) -> int | None:
        """1 for the job that comes next; None for one that does not wait."""
        with self._change:
            return self._queue.index(job) + 1 if job in self._queue else None

    def expires_in(self, job: Job) -> float | None:
        """Seconds; None while it is not done."""
        return None if job.ended is None else max(0.0, job.ended + self.keep_seconds - time.monotonic())

    def _is_over(self, job: Job) -> bool:
        return job.ended is not None and time.monotonic() >= job.ended + self.keep_seconds

    # --------------------------------------------------------------------------------------- from the outside

    def place(self) -> Place:
        """Take a place for an upload, as a context manager. Raises Refused 503 while stopping, 429 when all are taken."""
        with self._change:
            if self.stopping:
                raise shutting_down()
            if self.taken >= self.places:
                raise Refused(
                    429, f"{self.taken} jobs are at work, waiting or uploading, and that is the limit",
                    "try again in a while", retry_after=10,
                )  # fmt: skip
            self._uploads += 1
        return Place(self)

    def remove(self, id_: str) -> Status:
        """Delete a job and its files; the state it was in. One at work ends with its current window."""
        with self._change:
            job = self.get(id_)
            status = job.status
            del self._jobs[id_]
            job.unwanted = True
            if job in self._queue:
                self._queue.remove(job)
            over = job is not self._running
            self._change.notify_all()
        if over:
            self._forget(job, cancelled=status == "queued")
        return status

    def stop(self) -> None:
        """Refuse what comes from now on and drop what waits; the job at work ends with its current window."""
        with self._change:
            self.stopping = True
            dropped, self._queue = self._queue, []
            for job in dropped:
                del self._jobs[job.id]
            if self._running is not None:
                self._running.unwanted = True
            self._change.notify_all()
        for job in dropped:
            self._forget(job, cancelled=True)

    async def drained(self) -> None:
        """Returns when nothing is at work or uploading any more."""
        while self.taken:
            await asyncio.sleep(END_CHECK_SECONDS)

    def close(self) -> None:
        """Stop, wait for the thread, delete all that is left."""
        self.stop()
        with self._change:
            self._closed = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        for job in list(self._jobs.values()):
            self._jobs.pop(job.id)
            self._forget(job, cancelled=False)

    def _accept(self, job: Job) -> None:
        with self._change:
            if self.stopping:
                raise shutting_down()
            self._uploads -= 1
            self._jobs[job.id] = job
            self._queue.append(job)
            self._change.notify_all()

    def _give_back(self) -> None:
        with self._change:
            self._uploads -= 1

    # ---------------------------------------------------------------------------------------------- threads

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                job = self._running = self._queue.pop(0)
                job.status, job.stage, job.began = "running", "reading", time.monotonic()
            try:
                found, error = self._work(job), None
            except Cancelled:
                found, error = None, None
            except Exception as raised:
                found, error = None, _told(raised)
            self._end(job, found, error)

    def _end(self, job: Job, found: Any, error: Refused | None) -> None:
        with self._change:
            self._running = None
            job.ended, job.stage = time.monotonic(), "ended"
            cancelled = job.unwanted
            if not cancelled:
                job.found, job.error = found, error
                job.status = "failed" if error else "done"
            else:
                self._jobs.pop(job.id, None)
            self._change.notify_all()
        if cancelled:
            self._forget(job, cancelled=True)
        else:
            self._watch(job.status, job)

    def _expire(self) -> None:
        """Delete jobs whose time is over, and the oldest where there are too many."""
        while True:
            with self._change:
                if self._closed:
                    return
                ended = sorted((j for j in self._jobs.values() if j.ended is not None), key=lambda j: j.ended or 0)
                over = [job for job in ended if self._is_over(job)]
                over += [job for job in ended[: max(0, len(ended) - self.keep)] if job not in over]
                for job in over:
                    del self._jobs[job.id]
                if not over:
                    left = None if not ended else self.expires_in(ended[0])
                    self._change.wait(None if left is None else left + 0.01)
            for job in over:
                self._forget(job, cancelled=False)

    def _forget(self, job: Job, *, cancelled: bool) -> None:
        if cancelled:
            self._watch("cancelled", job)
        shutil.rmtree(job.folder, ignore_errors=True)
        with contextlib.suppress(Exception):
            self._release(job)


class Place:
    """One upload's place in the queue, which the job takes over that it becomes."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._given = False

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._given:
            self._store._give_back()

    def submit(self, job: Job) -> None:
        """Hand the job over. Raises Refused 503 while stopping: its folder stays the caller's then."""
        self._store._accept(job)
        self._given = True


def _told(error: Exception) -> Refused:
    """Why a job failed, in a line."""
    if isinstance(error, SegshipError):
        return from_segship(error)
    if isinstance(error, MemoryError):
        return Refused(
            507, "this machine's memory does not hold what this case needs", "send a smaller one, or a part of it"
        )
    if isinstance(error, OSError):
        return Refused(507, f"the server's disk cannot be written ({error.strerror})", "tell who runs this server")
    _log.error("internal error in a job: %s", type(error).__name__, exc_info=error)
    return internal(error)
