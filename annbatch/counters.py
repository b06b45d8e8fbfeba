"""What is counted while an epoch is read, and how do the counts of many threads come together?

1. Each thread has counts of its own (`of_thread`). Kernels add to them, and so no thread waits for another one.
2. `Counters` belong to one epoch. `Counters.measured` times what a thread does for the epoch, and adds what the
   thread's own counts gained meanwhile.
3. Requests to object stores run in one thread that serves all epochs: `counted_by` says which epoch they are made for,
   and `count` adds to its counters.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
T = TypeVar("T")

BYTES_READ, READ_NS, BYTES_DECODED, REQUEST_NS, ZARR_NS = range(5)
"""What the counts of a thread are, by their place: bytes read from files and nanoseconds in which the thread did so,
bytes of decoded chunks, and nanoseconds of waiting for object stores and for zarr."""
CLOCK = 6
"""The place of two numbers that kernels read the clock into."""
N_COUNTS = 8

_thread = threading.local()


def of_thread() -> Counts:
    """Give the counts of the calling thread, (N_COUNTS,); they only grow."""
    counts: Counts | None = getattr(_thread, "counts", None)
    if counts is None:
        counts = _thread.counts = np.zeros(N_COUNTS, np.int64)
    return counts


@contextmanager
def waiting(place: int) -> Iterator[None]:
    """Add the time that the block takes to one of the thread's counts."""
    began = time.perf_counter_ns()
    try:
        yield
    finally:
        of_thread()[place] += time.perf_counter_ns() - began


class Counters:
    """What is counted in one epoch; any thread may add.

    Parameters
    ----------
    epoch
        Number of the epoch.
    threads
        Threads that read and decode.
    """

    def __init__(self, epoch: int = 0, threads: int = 0) -> None:
        self.epoch = epoch
        self.threads = threads
        self.cells = self.batches = 0
        # Since when somebody asks for batches, until the first one was there, and until the last one was.
        self.began_ns = self.first_ns = self.last_ns = 0
        self.wait_ns = 0
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()

    def __reduce__(self) -> tuple[type[Counters], tuple[()]]:
        # A copy elsewhere begins to count.
        return Counters, ()

    def add(self, **amounts: int) -> None:
        """Add to totals, by name."""
        with self._lock:
            self._totals.update(amounts)

    def __getitem__(self, name: str) -> int:
        return self._totals[name]

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        """Add the time of the block, which the calling thread spends on ``stage``, without what it read or waited."""
        counts = of_thread()
        before, began = counts.tolist(), time.perf_counter_ns()
        try:
            yield
        finally:
            elapsed = time.perf_counter_ns() - began
            gained = [after - earlier for after, earlier in zip(counts.tolist(), before, strict=True)]
            waited = gained[READ_NS] + gained[REQUEST_NS] + gained[ZARR_NS]
            self.add(
                bytes_read=gained[BYTES_READ],
                bytes_decoded=gained[BYTES_DECODED],
                read=gained[READ_NS],
                request=gained[REQUEST_NS],
                zarr=gained[ZARR_NS],
                **{stage: elapsed - waited},
            )

    def run(self, stage: str, work: Callable[[], T]) -> T:
        """Give the result of some work, measured as `measured` does."""
        with self.measured(stage):
            return work()

    def handed_over(self, cells: int, asked_ns: int) -> None:
        """Count a batch that was asked for at a time; by one thread at a time, and without cells at the end."""
        now = time.perf_counter_ns()
        self.wait_ns += now - asked_ns
        self.last_ns = now
        if not self.began_ns:
            self.began_ns = asked_ns
        if cells and not self.batches:
            self.first_ns = now
        self.batches += cells > 0
        self.cells += cells


_asking: ContextVar[Counters | None] = ContextVar("annbatch-counters", default=None)


@contextmanager
def counted_by(counters: Counters | None) -> Iterator[None]:
    """Let what is begun in the block, also what runs later in another thread, be counted by these counters."""
    token = _asking.set(counters)
    try:
        yield
    finally:
        _asking.reset(token)


def count(**amounts: int) -> None:
    """Add to the counters for which a request is made, if there are any."""
    counters = _asking.get()
    if counters is not None:
        counters.add(**amounts)
