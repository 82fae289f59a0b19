"""A bounded queue before a few threads. What does not fit is refused at once, never left to pile up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from segship.serve.refused import Gone, Refused, shutting_down

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Done(Generic[T]):
    """A job's result and where its time went."""

    value: T
    waited: float
    """seconds in the queue"""
    worked: float
    """seconds at work"""


class Jobs:
    """``workers`` threads and ``queue`` further places. All methods belong to the event loop's thread.

    A place is taken when a request's headers are there and given back when its answer is, or, where the answer came
    too late, when its thread is free again: so there are never more than ``workers + queue`` pictures in memory.
    """

    def __init__(self, *, workers: int, queue: int, timeout: float) -> None:
        self.workers = workers
        self.places = workers + queue
        self.timeout = timeout
        self.taken = 0
        self.waiting = 0
        self.running = 0
        self.stopping = False
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="segship-serve")
        self._empty = asyncio.Event()
        self._empty.set()

    def place(self) -> Place:
        """Take a place, as a context manager. Raises Refused 503 while stopping, 429 when all are taken."""
        if self.stopping:
            raise shutting_down()
        if self.taken >= self.places:
            raise Refused(
                429, f"{self.taken} requests are at work or waiting, and that is the limit", "try again in a moment",
                retry_after=1,
            )  # fmt: skip
        self.taken += 1
        self._empty.clear()
        return Place(self)

    def stop(self) -> None:
        """Refuse all that comes from now on; what is here goes on."""
        self.stopping = True

    async def drained(self) -> None:
        """Returns when no request is here any more."""
        await self._empty.wait()

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _give_back(self) -> None:
        self.taken -= 1
        if self.taken == 0:
            self._empty.set()


class Place:
    """One request's place in the queue."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._future: Future[object] | None = None

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._future is None or self._future.done():
            self._jobs._give_back()
        else:  # its thread is still at work for an answer that came too late
            loop = asyncio.get_running_loop()
            self._future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._jobs._give_back))

    async def run(self, work: Callable[[], T], gone: Callable[[], Awaitable[object]]) -> Done[T]:
        """Run ``work`` in a thread when it is its turn. Raises what it raises, Refused 503 after ``timeout`` seconds,
        and Gone as soon as ``gone`` returns (the client went away); a job that had not begun never will."""
        jobs, loop = self._jobs, asyncio.get_running_loop()
        asked = time.perf_counter()
        began: list[float] = []

        def start() -> None:
            jobs.waiting -= 1
            jobs.running += 1

        def timed() -> Done[T]:
            began.append(time.perf_counter())
            loop.call_soon_threadsafe(start)
            try:
                value = work()
            finally:
                loop.call_soon_threadsafe(stop)
            return Done(value=value, waited=began[0] - asked, worked=time.perf_counter() - began[0])

        def stop() -> None:
            jobs.running -= 1

        jobs.waiting += 1
        future = jobs._threads.submit(timed)
        self._future = future  # type: ignore[assignment]
        answer = asyncio.wrap_future(future)
        client = asyncio.ensure_future(gone())
        try:
            done, _ = await asyncio.wait((answer, client), timeout=jobs.timeout, return_when=asyncio.FIRST_COMPLETED)
            if answer in done:
                return answer.result()
            if client in done:
                raise Gone
            state = "being worked on" if began else "waiting"
            raise Refused(
                503, f"no answer within {jobs.timeout:g} seconds; the picture was still {state}",
                "try again later, or send a smaller picture", retry_after=5,
            )  # fmt: skip
        finally:
            client.cancel()
            if not answer.done():
                if future.cancel():  # else it has begun, and counts as running until it ends
                    jobs.waiting -= 1
                answer.cancel()
