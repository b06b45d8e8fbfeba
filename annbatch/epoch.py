"""How do the windows of an epoch become a stream of batches?

A window is fetched as a whole, ahead of time; its batches are handed over one by one, and counted as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial

from annbatch.batch import Batch
from annbatch.fetch import Fetcher
from annbatch.order import Segment
from annbatch.prefetch import Prefetch
from annbatch.state import Position


class Epoch(Iterator[Batch]):
    """The batches of an epoch for one consumer; closing or dropping it leaves no thread behind.

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
        work = partial(_fetch_window, segment, index, first, n_done % segment.batches_per_window, fetcher)
        self._fetcher = fetcher
        self._position = position
        self._windows = Prefetch(work, segment.n_windows - first, prefetch)
        self._batches: deque[Batch] = deque()
        self._closed = False

    def __next__(self) -> Batch:
        if self._closed:
            raise RuntimeError("this iterator was closed: its loader was closed, or a new epoch was started")
        try:
            while not self._batches:
                self._batches.extend(next(self._windows))
        except BaseException as e:
            self._stop()
            # After its end an iterator keeps raising StopIteration; after an error it may not go on as if nothing were.
            self._closed = not isinstance(e, StopIteration)
            if isinstance(e, StopIteration) and self._position.begun:
                self._position.end()
            raise
        self._position.advance()
        return self._batches.popleft()

    def close(self) -> None:
        """Stop reading and end the threads."""
        self._closed = True
        self._stop()

    def __del__(self) -> None:
        if hasattr(self, "_windows"):
            self._stop()

    def _stop(self) -> None:
        self._batches.clear()
        self._windows.close()
        self._fetcher.close()


def _fetch_window(
    segment: Segment, index: int, first: int, n_skipped: int, fetcher: Fetcher, number: int
) -> list[Batch]:
    """Plan and read one window; refers to no iterator, so that an abandoned one can be collected.

    Of the first window only the batches that have not been handed over are read.
    """
    window = segment.window(first + number, index)
    return fetcher.fetch(window if number else window.behind(n_skipped))
