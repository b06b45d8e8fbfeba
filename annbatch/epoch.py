"""How do the windows of an epoch become a stream of batches?

A window is fetched as a whole, ahead of time; its batches are handed over one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial

from annbatch.batch import Batch
from annbatch.fetch import Fetcher
from annbatch.prefetch import Prefetch
from annbatch.samplers import BlockSampler, Partition, Stream


class Epoch(Iterator[Batch]):
    """The batches of one epoch; closing or dropping it leaves no thread behind."""

    def __init__(
        self, sampler: BlockSampler, fetcher: Fetcher, epoch: int, partition: Partition, prefetch: int
    ) -> None:
        work = partial(_fetch_window, sampler, sampler.stream(epoch), fetcher, epoch, partition)
        self._fetcher = fetcher
        self._windows = Prefetch(work, sampler.n_windows(partition), prefetch)
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
            raise
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
    sampler: BlockSampler, stream: Stream, fetcher: Fetcher, epoch: int, partition: Partition, number: int
) -> list[Batch]:
    """Plan and read one window; refers to no iterator, so that an abandoned one can be collected."""
    return fetcher.fetch(sampler.window(stream, epoch, number, partition))
