"""How do the windows of an epoch become a stream of batches?

1. A window is planned while the one before it is read, so that the threads that decode need not wait for plans.
2. What lies in remote stores is requested several windows ahead: first where rows are, then the rows.
3. A window is read as a whole, ahead of time; its batches are handed over one by one, and counted as they are. Those on
   a device are made then.
4. Threads may share an iterator: a lock gives each batch to one of them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import islice
from threading import RLock

from annbatch.batch import Batch
from annbatch.fetch import BegunWindow, Fetcher, PlannedWindow
from annbatch.order.consumers import Segment, Window
from annbatch.order.state import Position
from annbatch.prefetch import Prefetch


class Epoch(Iterator[Batch]):
    """The batches of an epoch for one consumer; closing or dropping it leaves no thread behind.

    Several threads may ask for batches: each batch goes to one of them.

    Parameters
    ----------
    segment
        What is to come, and what of it has come.
    index
        Number of the consumer.
    n_done
        Batches of the segment that it has had.
    position
        Moves on with every batch.
    fetcher
        Reads windows.
    prefetch
        How many windows to read ahead.
    """

    def __init__(
        self, segment: Segment, index: int, n_done: int, position: Position, fetcher: Fetcher, prefetch: int
    ) -> None:
        first = segment.n_windows if n_done == segment.n_batches else n_done // segment.batches_per_window
        n_windows = segment.n_windows - first
        begin = partial(_begin_window, segment, index, first, n_done % segment.batches_per_window, fetcher)
        self._fetcher = fetcher
        self._position = position
        # Where nothing is read ahead, nothing is planned ahead.
        n_ahead = fetcher.n_ahead(segment.batches_per_window) if prefetch else 0
        self._begun = Prefetch(begin, n_windows, n_ahead if fetcher.is_remote else 0)
        self._plans = Prefetch(partial(_plan_window, self._begun, fetcher), n_windows, n_ahead)
        self._windows = Prefetch(partial(_read_window, self._plans, fetcher), n_windows, prefetch)
        self._batches: deque[Batch] = deque()
        # How many of them have been made what is handed over.
        self._n_made = 0
        self._closed = False
        # A signal handler may close the iterator in the thread that is asking it for a batch.
        self.lock = RLock()
        """Held while a batch is taken; adapters hold it where they do more in one step."""
        self._pid = os.getpid()

    def __next__(self) -> Batch:
        with self.lock:
            return self._next()

    def _next(self) -> Batch:
        if self._closed:
            raise RuntimeError("this iterator was closed: its loader was closed, or a new epoch was started")
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
            raise
        self._position.advance()
        self._n_made -= 1
        return self._batches.popleft()

    def ahead(self, n: int) -> list[Batch]:
        """Give up to ``n`` of the batches that come next, as far as they have been read; none of them counts as had."""
        with self.lock:
            if len(self._batches) < n and self._windows.is_ready:
                self._batches.extend(next(self._windows))
            self._make(n)
            return list(islice(self._batches, n))

    def close(self) -> None:
        """Stop reading and end the threads."""
        self._closed = True
        # A thread that waits for requests would otherwise hold the lock.
        self._fetcher.cancel()
        # So would one of the parent's threads in a forked child, for ever.
        with self.lock if self._pid == os.getpid() else nullcontext():
            self._stop()

    def __del__(self) -> None:
        if hasattr(self, "_windows"):
            self._stop()

    def _drop(self) -> None:
        self._batches.clear()
        self._n_made = 0

    def _make(self, n: int) -> None:
        """Let the first ``n`` of the batches that were read be made."""
        while self._n_made < min(n, len(self._batches)):
            self._batches[self._n_made] = self._fetcher.hand_over(self._batches[self._n_made])
            self._n_made += 1

    def _stop(self) -> None:
        # All of it, from the last one up, even if an interrupt comes while one of them is waited for.
        with ExitStack() as steps:
            for close in (self._fetcher.close, self._begun.close, self._plans.close, self._windows.close):
                steps.callback(close)
            # Threads that wait for requests would otherwise wait on.
            steps.callback(self._fetcher.cancel)
            steps.callback(self._drop)


def _begin_window(
    segment: Segment, index: int, first: int, n_skipped: int, fetcher: Fetcher, number: int
) -> BegunWindow:
    """Begin one window; refers to no iterator, so that an abandoned one can be collected.

    Of the first window only the batches that have not been handed over are read.
    """

    def window(index: int) -> Window:
        whole = segment.window(first + number, index)
        return whole if number else whole.behind(n_skipped)

    others = [window(other) for other in range(segment.count) if other != index] if fetcher.alike else []
    return fetcher.begin(window(index), others)


def _plan_window(begun: Iterator[BegunWindow], fetcher: Fetcher, number: int) -> PlannedWindow:
    """Plan the window that was begun next."""
    return fetcher.plan(next(begun))


def _read_window(plans: Iterator[PlannedWindow], fetcher: Fetcher, number: int) -> list[Batch]:
    """Read the window that was planned next."""
    return fetcher.read(next(plans))
