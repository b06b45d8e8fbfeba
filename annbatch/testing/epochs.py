"""Which batches does each consumer get in an epoch? Pure: no data are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from annbatch.order.consumers import Segment
from annbatch.order.schedule import Schedule
from annbatch.order.state import Position

Batches = list[list[int]]
"""Row numbers of each batch."""


def batches_of(segment: Segment, index: int, n_done: int = 0, limit: int | None = None) -> Batches:
    """Give the batches of a consumer, window by window, behind the first ``n_done``."""
    found: Batches = []
    for number in range(n_done // segment.batches_per_window, segment.n_windows):
        window = segment.window(number, index)
        found += [window.rows[a:b].tolist() for a, b in zip(window.cuts[:-1], window.cuts[1:], strict=True)]
    found = found[n_done - n_done // segment.batches_per_window * segment.batches_per_window :]
    return found if limit is None else found[:limit]


def epoch_batches(
    schedule: Schedule, epoch: int, count: int = 1, parts: Iterable[tuple[int, int]] = ()
) -> list[Batches]:
    """Give, for each of ``count`` consumers, the batches that it gets from a position on."""
    segment, n_done = schedule.segment(Position(epoch, tuple(parts)), count)
    return [batches_of(segment, index, n_done) for index in range(count)]


def row_counts(consumers: Sequence[Batches]) -> Counter[int]:
    """Count how often each row comes."""
    return Counter(row for batches in consumers for batch in batches for row in batch)
