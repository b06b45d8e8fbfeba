"""How do the windows of an epoch become a stream of batches?

1. An epoch begins when its first batch is asked for. An iterator that nobody asks leaves no trace: no thread, no file,
   and the loader where it was.
2. A window is planned while the one before it is read, so that the threads that decode need not wait for plans.
3. What lies in remote stores is requested several windows ahead: first where rows are, then the rows.
4. A window is read as a whole, ahead of time; its batches are handed over one by one, and counted as they are. Those on
   a device are made then.
5. Small windows are read several at a time (`Reads`): each read costs as much time in Python as some hundred rows take.
6. Threads may share an iterator: a lock gives each batch to one of them.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from threading import RLock, Thread
from typing import Any

from annbatch.batch import Batch
from annbatch.fetch import BegunWindow, Fetcher, PlannedWindow
from annbatch.order.consumers import Window
from annbatch.order.state import Position
from annbatch.order.turns import Turns
from annbatch.prefetch import Prefetch

_PATIENCE_S = 5.0
"""How long dropping an iterator waits for its threads to end."""


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where an epoch begins, or goes on."""

    turns: Turns
    """The windows to come."""
    index: int
    """Number of the consumer."""
    position: Position
    """Moves on with every batch."""
    fetcher: Fetcher
    """Reads windows."""
    prefetch: int
    """How many windows to read ahead."""


@dataclass(frozen=True, slots=True)
class Reads:
    """Which windows are read at a time: one at first, so that it is there soon, then twice as many each time."""

    n_windows: int
    """Windows of the epoch."""
    most: int
    """Windows that are read at a time in the end; a power of two."""

    def __len__(self) -> int:
        doublings = self.most.bit_length() - 1
        if self.n_windows < self.most:
            return self.n_windows.bit_length()
        return doublings + -(-(self.n_windows - self.most + 1) // self.most)

    def __getitem__(self, number: int) -> range:
        return range(self._start(number), min(self._start(number + 1), self.n_windows))

    def _start(self, number: int) -> int:
        doublings = self.most.bit_length() - 1
        return (1 << min(number, doublings)) - 1 + max(0, number - doublings) * self.most


class Epoch(Iterator[Batch]):
    """Iterator over the batches of an epoch for one consumer.

    Closing it ends its threads. Dropping it ends them too, but waits for that only briefly. Several threads may share
    it; each batch goes to one of them.

    Parameters
    ----------
    begin
        Function that is called with this iterator when its first batch is requested. It returns the start of the epoch.
    """

    def __init__(self, begin: Callable[[Epoch], Start]) -> None:
        self._begin: Callable[[Epoch], Start] | None = begin
        self._batches: deque[Batch] = deque()
        # How many of them have been made what is handed over.
        self._n_made = 0
        self._closed = False
        self._stages: tuple[Prefetch[Any], ...] = ()
        # A signal handler may close the iterator in the thread that is asking it for a batch.
        self.lock = RLock()
        """Held while a batch is taken. Adapters that do more in one step hold it, too."""
        self._pid = os.getpid()

    def _start(self, start: Start) -> None:
        turns, fetcher, prefetch = start.turns, start.fetcher, start.prefetch
        n_batches = turns.segment.batches_per_window
        self._fetcher = fetcher
        self._position = start.position
        # Where nothing is read ahead, nothing is planned ahead.
        n_ahead = fetcher.n_ahead(n_batches) if prefetch else 0
        reads = Reads(turns.n_windows, fetcher.n_at_once(n_batches) if prefetch else 1)
        begin = partial(_begin_windows, turns, reads, start.index, fetcher)
        self._begun = Prefetch(begin, len(reads), n_ahead if fetcher.is_remote else 0)
        self._plans = Prefetch(partial(_plan_windows, self._begun, fetcher), len(reads), n_ahead)
        self._windows = Prefetch(partial(_read_windows, self._plans, fetcher), len(reads), prefetch)
        self._stages = (self._begun, self._plans, self._windows)

    def __next__(self) -> Batch:
        with self.lock:
            return self._next()

    def _next(self) -> Batch:
        if self._closed:
            raise RuntimeError("this iterator is closed: its loader was closed, or another epoch was started")
        asked_ns = time.perf_counter_ns()
        if self._begin is not None:
            self._start(self._begin(self))
            self._begin = None
        try:
            while not self._batches:
                self._batches.extend(next(self._windows))
            self._make(1)
        except BaseException as e:
            self._stop()
            # After its end an iterator keeps raising StopIteration; after an error it may not go on as if nothing were.
            self._closed = not isinstance(e, StopIteration)
            if isinstance(e, StopIteration) and self._position.begun:
                self._position.end()
                self._fetcher.counters.handed_over(0, asked_ns)
            raise
        self._position.advance()
        self._n_made -= 1
        batch = self._batches.popleft()
        self._fetcher.counters.handed_over(batch.n_rows - batch.n_padding, asked_ns)
        return batch

    def ahead(self, n: int) -> list[Batch]:
        """Return up to ``n`` of the next batches, as far as they have been read, without handing them over."""
        with self.lock:
            if self._begin is not None:
                return []
            if len(self._batches) < n and self._windows.is_ready:
                self._batches.extend(next(self._windows))
            self._make(n)
            return list(islice(self._batches, n))

    def close(self) -> None:
        """Stop reading and end the threads."""
        self._closed = True
        if self._begin is not None:
            return
        # A thread that waits for requests would otherwise hold the lock.
        self._fetcher.cancel()
        # So would one of the parent's threads in a forked child, for ever.
        with self.lock if self._pid == os.getpid() else nullcontext():
            self._stop()

    def __del__(self) -> None:
        # Empty if it has not begun, or an error came while it did, or it has ended.
        if self._stages:
            _run_aside(partial(_stop, self._fetcher, self._stages))

    def _make(self, n: int) -> None:
        """Let the first ``n`` of the batches that were read be made."""
        while self._n_made < min(n, len(self._batches)):
            self._batches[self._n_made] = self._fetcher.hand_over(self._batches[self._n_made])
            self._n_made += 1

    def _stop(self) -> None:
        self._batches.clear()
        self._n_made = 0
        _stop(self._fetcher, self._stages)
        self._stages = ()


def _stop(fetcher: Fetcher, stages: Sequence[Prefetch[Any]]) -> None:
    """End the threads, the last stage first, all of them even if an interrupt comes while one is waited for."""
    with ExitStack() as steps:
        for close in (fetcher.close, *(stage.close for stage in stages)):
            steps.callback(close)
        # Threads that wait for requests would otherwise wait on.
        steps.callback(fetcher.cancel)


def _run_aside(stop: Callable[[], None]) -> None:
    """Run a finaliser that waits for threads in a thread of its own, and wait for it only briefly.

    The garbage collector runs finalisers in any thread, behind any lock. That may be the thread, or the lock, that the
    threads to be ended wait for: the one in which zarr reads, for example.
    """
    thread = Thread(target=stop, name="annbatch-stop", daemon=True)
    try:
        if sys.is_finalizing():
            raise RuntimeError("no thread starts any more")
        thread.start()
    except RuntimeError:
        stop()
    else:
        thread.join(_PATIENCE_S)


def _begin_windows(turns: Turns, reads: Reads, index: int, fetcher: Fetcher, number: int) -> BegunWindow:
    """Begin the windows of one read; refers to no iterator, so that an abandoned one can be collected."""

    def windows(consumer: int) -> Window:
        return Window.joined([turns.window(window, consumer) for window in reads[number]])

    others = [windows(other) for other in range(turns.segment.count) if other != index] if fetcher.alike else []
    return fetcher.begin(windows(index), others)


def _plan_windows(begun: Iterator[BegunWindow], fetcher: Fetcher, number: int) -> PlannedWindow:
    """Plan the windows that were begun next."""
    return fetcher.plan(next(begun))


def _read_windows(plans: Iterator[PlannedWindow], fetcher: Fetcher, number: int) -> list[Batch]:
    """Read the windows that were planned next."""
    return fetcher.read(next(plans))
