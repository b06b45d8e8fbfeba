"""Which windows of a consumer does one of its worker processes read, and what is left of them?

Pure: no process is started here.

1. The windows of a consumer go to its workers in turn, each as a whole: window k to worker k mod n_workers. So workers
   change neither the batches of a consumer nor their number, only the order in which they come.
2. A worker may get fewer windows than another one, or none.
3. Without workers the consumer reads all of its windows itself, as the only worker would.
"""

from __future__ import annotations

from dataclasses import dataclass

from annbatch.order.consumers import Segment, Window


@dataclass(frozen=True, eq=False)
class Turns:
    """The windows of a segment that one worker has still to read.

    Raises
    ------
    ValueError
        If the worker has had more batches than there were for it.
    """

    segment: Segment
    """What the consumers share."""
    n_done: int
    """Batches of the segment that each consumer had had when its workers began."""
    worker: int = 0
    """Number of the worker."""
    n_workers: int = 1
    """Workers of a consumer."""
    n_had: int = 0
    """Batches that this worker has had since."""

    def __post_init__(self) -> None:
        if self.n_had > self.n_batches:
            who = f"worker {self.worker} of {self.n_workers}"
            raise ValueError(f"{who} gets {self.n_batches} batches, not {self.n_had}")

    @property
    def n_batches(self) -> int:
        """Batches that the worker gets in all, those that it has had among them."""
        size, numbers = self.segment.batches_per_window, self._numbers
        n_batches = len(numbers) * size - self._n_skipped
        if numbers and numbers[-1] == self.segment.n_windows - 1:
            n_batches -= self.segment.n_windows * size - self.segment.n_batches
        return n_batches

    @property
    def n_windows(self) -> int:
        """Windows that are left."""
        return len(self._left[0])

    @property
    def at_end(self) -> bool:
        """Whether no batch is left."""
        return self.n_had == self.n_batches

    def window(self, number: int, index: int) -> Window:
        """Give window ``number`` of those that are left, for consumer ``index``.

        Of the first one only the batches that the worker has not had are left.
        """
        numbers, n_skipped = self._left
        whole = self.segment.window(numbers[number], index)
        return whole if number else whole.behind(n_skipped)

    @property
    def _first(self) -> int:
        """The window in which the consumer stood when its workers began."""
        is_done = self.n_done == self.segment.n_batches
        return self.segment.n_windows if is_done else self.n_done // self.segment.batches_per_window

    @property
    def _numbers(self) -> range:
        """The windows of the worker."""
        start = self._first + (self.worker - self._first) % self.n_workers
        return range(start, self.segment.n_windows, self.n_workers)

    @property
    def _n_skipped(self) -> int:
        """Batches of its first window that were had before."""
        is_within = bool(self._numbers) and self._numbers[0] == self._first
        return self.n_done % self.segment.batches_per_window if is_within else 0

    @property
    def _left(self) -> tuple[range, int]:
        """The windows that are left, and how many batches of the first one are not."""
        if self.at_end:
            return range(0), 0
        n_windows, n_batches = divmod(self._n_skipped + self.n_had, self.segment.batches_per_window)
        return self._numbers[n_windows:], n_batches
