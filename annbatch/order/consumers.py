"""Which consumer gets which rows in which batch, and what is left when an epoch stops half-way?

Pure: no store, no thread, no environment. What batches hold follows from the order alone.

1. An `Order` is one epoch of a sampler: a sequence of *items* that is computed piece by piece. An item is a row, or
   rows that belong together: a pair, or a batch.
2. A `Segment` cuts an order into windows, which are read together, and deals them to consumers: window k goes to
   consumer k mod count. What remains for the last, incomplete round is cut so that all consumers get equally many
   batches.
3. When consumers stop after some batches, the items that none of them has had are an order again, `Rest`. The same
   consumers go on in their segment; another number of them makes a new segment of the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from annbatch.order.permutation import Ints, Key, Purpose

VERSION = 1
"""Version of the order; it changes when the same settings give other batches."""


@dataclass(frozen=True, slots=True, repr=False)
class Partition:
    """One of several consumers (ranks) of an epoch, and one of the worker processes that read for it.

    All consumers get the same number of batches. The workers of a consumer share out its windows; they do not change
    which batches it gets. One worker may get fewer batches than another.

    Raises
    ------
    ValueError
        If ``count`` is below 1, ``index`` is not in range(count), or ``worker`` is not one of ``n_workers``.

    Examples
    --------
    >>> from annbatch import Loader, Partition
    >>> parts = [
    ...     Loader(batch_size=30, partition=Partition(rank, 2)).use_collection("collection")
    ...     for rank in range(2)
    ... ]
    >>> [len(ds) for ds in parts]
    [2, 2]
    """

    index: int
    """Number of this consumer, from 0."""
    count: int
    """Number of consumers."""
    worker: int = 0
    """Number of the worker process that reads for this consumer, from 0."""
    n_workers: int = 0
    """Number of worker processes of this consumer; 0 means that it reads itself."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be >= 1, got {self.count}")
        if not 0 <= self.index < self.count:
            raise ValueError(f"index must be in range({self.count}), got {self.index}")
        if not 0 <= self.worker < max(1, self.n_workers):
            raise ValueError(f"worker must be in range({max(1, self.n_workers)}), got {self.worker}")

    def __repr__(self) -> str:
        workers = f", worker={self.worker}, n_workers={self.n_workers}" if self.n_workers else ""
        return f"Partition({self.index}, {self.count}{workers})"


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The rows that are read together, and the batches that they make."""

    rows: Ints
    """(n_rows,) global row numbers, in the order in which they are handed over; a row may come more than once."""
    cuts: Ints
    """(n_batches + 1,) batch b holds ``rows[cuts[b]:cuts[b + 1]]``."""

    def behind(self, n_batches: int) -> Window:
        """Return the window without its first batches."""
        return Window(self.rows[self.cuts[n_batches] :], self.cuts[n_batches:] - self.cuts[n_batches])

    @classmethod
    def joined(cls, windows: Sequence[Window]) -> Window:
        """Return the rows and batches of several windows, one window after the other."""
        if len(windows) == 1:
            return windows[0]
        starts = np.cumsum([0, *(len(window.rows) for window in windows)])
        cuts = [window.cuts[1:] + start for window, start in zip(windows, starts.tolist(), strict=False)]
        return cls(np.concatenate([window.rows for window in windows]), np.concatenate([np.zeros(1, np.int64), *cuts]))


class Order(ABC):
    """One epoch of a sampler, as a sequence of items that are computed on demand.

    An item is a row, or rows that belong together: a pair, or a whole batch.
    """

    batch_items: int
    """Items in a full batch, ``batch_size`` if items are rows, 1 if they are batches."""
    endless: bool = False
    """Whether there are more items beyond the end of the epoch, which then fill up an incomplete last round."""
    divisible: bool = False
    """Whether an item may be halved so that all consumers get the same number of batches."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of items in the epoch."""

    @abstractmethod
    def items(self, start: int, stop: int, key: Key) -> Ints:
        """Return the items at positions [start, stop), which are read together, shuffled among themselves.

        Parameters
        ----------
        start, stop
            Positions in the epoch. Each position is requested once.
        key
            Selects the random words to shuffle with; pass it to `annbatch.samplers.shuffle`.

        Returns
        -------
        ndarray
            (stop - start,) int64 row numbers; or (stop - start, width) if an item has up to ``width`` rows, padded with
            -1. A batch holds the first rows of its items, then their second rows, and so on.
        """


@dataclass(frozen=True, eq=False)
class Segment:
    """An order, or the rest of one, dealt to a number of consumers."""

    order: Order
    key: Key
    """What windows mix with; its part numbers the segments of an epoch."""
    batches_per_window: int
    least_items: int
    """Items that a batch has at least, on every consumer, or what is left for it is left out; 0 allows empty batches,
    ``batch_items`` only full ones."""
    count: int
    """Number of consumers."""

    @property
    def n_windows(self) -> int:
        """Windows that each consumer gets."""
        return self._n_full + (self._tail_batches > 0)

    @property
    def n_batches(self) -> int:
        """Batches that each consumer gets."""
        return self._n_full * self.batches_per_window + self._tail_batches

    def window(self, number: int, index: int) -> Window:
        """Give window ``number`` of consumer ``index``.

        If fewer items than consumers remain for the last round, the consumers without one get an empty batch: nothing
        else gives all of them equally many batches and every row once.
        """
        items, cuts = self._items(number, index)
        width = items.shape[1]
        if width == 1:
            rows = items[:, 0]
        else:
            batches = [items[start:stop].ravel(order="F") for start, stop in zip(cuts[:-1], cuts[1:], strict=True)]
            rows = np.concatenate([np.empty(0, np.int64), *batches])
        kept = np.append(0, np.cumsum(rows >= 0))
        return Window(rows[rows >= 0], kept[cuts * width])

    def rest(self, n_batches: int) -> Order:
        """Give what is left when each consumer has had ``n_batches``."""
        return Rest(self, n_batches) if n_batches else self.order

    @cached_property
    def _window_items(self) -> int:
        return self.order.batch_items * self.batches_per_window

    @cached_property
    def _n_full(self) -> int:
        """Rounds in which every consumer gets a full window."""
        return len(self.order) // (self._window_items * self.count)

    @cached_property
    def _tail_batches(self) -> int:
        """Batches that each consumer gets in the last, incomplete round."""
        n_items = len(self.order) - self._n_full * self._window_items * self.count
        n_batches, left = divmod(n_items, self.order.batch_items * self.count)
        # Consumers get equal shares of what is left, up to one item.
        return n_batches + (left > 0 and left >= self.least_items * self.count)

    @cached_property
    def _tail_items(self) -> int:
        """Items that are dealt in the last, incomplete round."""
        n_items = len(self.order) - self._n_full * self._window_items * self.count
        room = self._tail_batches * self.order.batch_items * self.count
        return room if self.order.endless else min(n_items, room)

    def _extent(self, number: int, index: int) -> tuple[int, int, int]:
        """Say where a consumer's window starts and stops, and how many batches it makes."""
        if number < self._n_full:
            start = (number * self.count + index) * self._window_items
            return start, start + self._window_items, self.batches_per_window
        start = self._n_full * self.count * self._window_items
        first, last = (start + self._tail_items * i // self.count for i in (index, index + 1))
        return first, last, self._tail_batches

    def _cuts(self, number: int, index: int) -> Ints:
        """Say where the items of a consumer's window are cut into batches."""
        start, stop, n_batches = self._extent(number, index)
        return even_cuts(max(stop - start, n_batches), n_batches, self.order.batch_items)

    def _items(self, number: int, index: int) -> tuple[Ints, Ints]:
        """Give the items of a consumer's window, at least one for each batch, and where they are cut."""
        start, stop, n_batches = self._extent(number, index)
        if number == self._n_full and self.order.divisible and not self.least_items:
            # All of the last round is divided before it is dealt, or a consumer might get nothing.
            first = self._n_full * self.count * self._window_items
            dealt = self._drawn(first, first + self._tail_items, number * self.count)
            dealt = _more_items(dealt, n_batches * self.count, divisible=True)
            items = dealt[index * n_batches : (index + 1) * n_batches]
        else:
            items = self._drawn(start, stop, number * self.count + index)
            items = _more_items(items, n_batches, divisible=False)
        return items, self._cuts(number, index)

    def _drawn(self, start: int, stop: int, window: int) -> Ints:
        items = self.order.items(start, stop, replace(self.key, item=window))
        return items.reshape(len(items), -1) if len(items) else np.empty((0, 1), np.int64)


@dataclass(frozen=True, eq=False)
class Rest(Order):
    """The items of a segment that no consumer has had when each has had some batches.

    First come the rests of the windows that the consumers were in, then what no window has reached.
    """

    segment: Segment
    n_batches: int
    """Batches that each consumer has had, at least 1."""

    @property
    def batch_items(self) -> int:  # type: ignore[override]
        """Items in a full batch."""
        return self.segment.order.batch_items

    @property
    def endless(self) -> bool:  # type: ignore[override]
        """Whether items go on behind the last one."""
        return self.segment.order.endless

    @property
    def divisible(self) -> bool:  # type: ignore[override]
        """Whether an item may be halved."""
        return self.segment.order.divisible

    def __len__(self) -> int:
        return int(self._ends[-1]) + max(0, len(self.segment.order) - self._reached)

    def items(self, start: int, stop: int, key: Key) -> Ints:
        """Give the items at positions [start, stop)."""
        parts = []
        for index in range(self.segment.count if self._within else 0):
            first, last = (int(end) for end in self._ends[index : index + 2])
            if start < last and stop > first:
                items, cuts = self.segment._items(self._number, index)
                left = items[cuts[self._within] :]
                parts.append(left[max(start - first, 0) : stop - first])
        beyond = self._reached - int(self._ends[-1])
        if stop + beyond > max(start + beyond, self._reached):
            items = self.segment.order.items(max(start + beyond, self._reached), stop + beyond, key)
            parts.append(items.reshape(len(items), -1))
        width = max((part.shape[1] for part in parts), default=1)
        return np.concatenate(
            [np.empty((0, width), np.int64), *(_widened(part, width) for part in parts)],
        )

    @property
    def _number(self) -> int:
        """Window that the consumers are in."""
        return self.n_batches // self.segment.batches_per_window

    @property
    def _within(self) -> int:
        """Batches of that window that they have had; 0 means that they are at its beginning."""
        return self.n_batches % self.segment.batches_per_window

    @cached_property
    def _reached(self) -> int:
        """First item that no window has reached."""
        last = self._number - (self._within == 0)
        return self.segment._extent(last, self.segment.count - 1)[1]

    @cached_property
    def _ends(self) -> Ints:
        """(count + 1,) where the rest of each consumer's window ends, or (1,) if none is left."""
        if not self._within:
            return np.zeros(1, np.int64)
        cuts = [self.segment._cuts(self._number, index) for index in range(self.segment.count)]
        return np.cumsum([0, *(one[-1] - one[self._within] for one in cuts)], dtype=np.int64)


def segment_of(
    order: Order, key: Key, batches_per_window: int, least_items: int, parts: Sequence[tuple[int, int]], count: int
) -> tuple[Segment, int]:
    """Find where ``count`` consumers go on in an epoch.

    Parameters
    ----------
    order
        The epoch.
    key
        Seed and epoch.
    batches_per_window
        Batches in a full window.
    least_items
        Items that a batch has at least on every consumer.
    parts
        How the epoch went so far: (number of consumers, batches that each of them has had), one pair for each time
        that the number of consumers changed.
    count
        Number of consumers from now on.

    Returns
    -------
    The segment to go on in, and how many of its batches each consumer has had.

    Raises
    ------
    ValueError
        If a part names more batches than there were.
    """
    key = replace(key, purpose=Purpose.MIX)
    # Consumers that came and went without a batch leave no trace.
    parts = [part for part in parts if part[1]]
    number, done = 0, 0
    segment = Segment(order, key, batches_per_window, least_items, parts[0][0] if parts else count)
    for consumers, n_batches in (*parts, (count, 0)):
        if consumers != segment.count:
            number += 1
            segment = replace(segment, order=segment.rest(done), key=replace(key, part=number), count=consumers)
            done = 0
        done += n_batches
        if not 0 <= done <= segment.n_batches:
            raise ValueError(f"each of {consumers} consumers gets {segment.n_batches} batches, not {done}")
    return segment, done


def even_cuts(n_items: int, n_batches: int, batch_items: int) -> Ints:
    """Cut items into a given number of batches: full ones first, but none empty where that can be.

    Returns
    -------
    (n_batches + 1,) int64 ascending numbers from 0 to ``n_items``.
    """
    cuts = np.minimum(np.arange(n_batches + 1) * batch_items, n_items)
    # A cut at most here leaves an item for each later batch.
    reserved = n_items - np.arange(n_batches, -1, -1)
    return np.maximum(np.minimum(cuts, reserved), 0).astype(np.int64)


def _more_items(items: Ints, n: int, *, divisible: bool) -> Ints:
    """Make at least ``n`` items: of fewer by halving the largest ones if that may be, else by adding empty ones."""
    while divisible and 0 < len(items) < n:
        sizes = (items >= 0).sum(axis=1)
        largest = int(sizes.argmax())
        if sizes[largest] < 2:
            break
        rows = items[largest][items[largest] >= 0]
        halves = np.full((2, items.shape[1]), -1, np.int64)
        half = (len(rows) + 1) // 2
        halves[0, :half], halves[1, : len(rows) - half] = rows[:half], rows[half:]
        items = np.concatenate([items[:largest], halves, items[largest + 1 :]])
    return np.concatenate([items, np.full((max(0, n - len(items)), items.shape[1]), -1, np.int64)])


def _widened(items: Ints, width: int) -> Ints:
    return np.pad(items, ((0, 0), (0, width - items.shape[1])), constant_values=-1)
