"""Threads for the chain from files to masks: reading, inference and writing overlap, in order, with bounded memory.

Threads only, never processes: decoding, inference and encoding release the interpreter's lock. Each stage pulls
from the one before it, so nothing runs further ahead than its window, an exception stops the whole chain, and
closing the last generator (also by Ctrl-C) waits for the few tasks under way and starts no new one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from segship.engines.processor import processor

T = TypeVar("T")
R = TypeVar("R")


def helper_threads() -> int:
    """Threads for decoding or writing beside inference: the processor's cores, four at most."""
    return max(1, min(4, processor().cores))


def ordered_map(work: Callable[[T], R], items: Iterable[T], *, workers: int, ahead: int) -> Generator[R, None, None]:
    """``map`` with threads: results in the order of ``items``, at most ``ahead`` items taken and not yet given."""
    source = iter(items)
    waiting: deque[Future[R]] = deque()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="segship")
    try:
        more = True
        while True:
            while more and len(waiting) < ahead:
                try:
                    waiting.append(executor.submit(work, next(source)))
                except StopIteration:
                    more = False
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        close = getattr(source, "close", None)
        if close is not None:
            close()


class Numbered(Protocol):
    """An item with its place in the input and the shape of its array; None for one that has none (it failed)."""

    @property
    def number(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...] | None: ...


N = TypeVar("N", bound=Numbered)


def batches(items: Iterable[N], size: int | Callable[[tuple[int, ...]], int]) -> Iterator[list[N]]:
    """Gather items of equal shape into lists of up to ``size``, which may be a function of the shape.

    No item waits for partners longer than four batches, so order can be restored from a bounded buffer. An item
    without a shape is passed on alone.
    """
    most = size if callable(size) else lambda _: size
    groups: dict[tuple[int, ...], list[N]] = {}  # dicts keep insertion order: the first group is the oldest
    for item in items:
        if item.shape is None:
            yield [item]
        else:
            group = groups.setdefault(item.shape, [])
            group.append(item)
            if len(group) >= most(item.shape):
                yield groups.pop(item.shape)
        while groups:
            oldest = next(iter(groups))
            if item.number - groups[oldest][0].number < 4 * most(oldest):
                break
            yield groups.pop(oldest)
    yield from groups.values()


def in_order(groups: Iterable[list[N]]) -> Iterator[N]:
    """Undo the mixing of `batches`: items by number, starting at 0, none missing."""
    early: dict[int, N] = {}
    wanted = 0
    for group in groups:
        early.update((item.number, item) for item in group)
        while wanted in early:
            yield early.pop(wanted)
            wanted += 1
