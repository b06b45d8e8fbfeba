"""Which row comes when?

Pure: no store, no thread, no environment. The order of an epoch is the same for every consumer, read path and device.

1. Every store's rows are cut into blocks of ``chunk_size`` contiguous rows (a store's last block may be shorter).
2. The *stream* of an epoch is the concatenation of all blocks in an order drawn from (seed, epoch).
3. Window k is the stream's rows [k W, (k + 1) W), where W is ``chunk_size * preload_nchunks`` rounded up to a
   multiple of ``batch_size``. Its rows are shuffled by (seed, epoch, k) and cut into batches.
4. Of several consumers, number i takes windows i, i + count, i + 2 count, … What remains for the last, incomplete
   round is cut by rows so that all consumers get equally many batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from annbatch.permutation import Identity, Ints, Key, Permutation, Purpose, permutation, shuffled

MAX_WORD = 1 << 64


@dataclass(frozen=True, slots=True)
class Partition:
    """Which of several consumers (ranks, workers) this one is.

    Raises
    ------
    ValueError
        If ``count`` is below 1 or ``index`` is not in range(count).
    """

    index: int
    """Number of this consumer."""
    count: int
    """Number of all consumers."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be >= 1, got {self.count}")
        if not 0 <= self.index < self.count:
            raise ValueError(f"index must be in range({self.count}), got {self.index}")


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The rows that are read together, and the batches that they make."""

    rows: Ints
    """(n_rows,) global row numbers, in the order in which they are handed over."""
    cuts: Ints
    """(n_batches + 1,) batch b holds ``rows[cuts[b]:cuts[b + 1]]``."""


@dataclass(frozen=True, eq=False)
class Stream:
    """The rows of one epoch, before they are cut into windows."""

    store_rows: tuple[int, ...]
    """Rows in each store."""
    chunk_size: int
    """Rows in a block."""
    order: Permutation
    """Permutation of all blocks, numbered through the stores."""

    @cached_property
    def _first_rows(self) -> Ints:
        """(n_stores + 1,) global number of each store's first row."""
        return np.cumsum((0, *self.store_rows), dtype=np.int64)

    @cached_property
    def _first_blocks(self) -> Ints:
        """(n_stores + 1,) global number of each store's first block."""
        return np.cumsum((0, *(-(-n // self.chunk_size) for n in self.store_rows)), dtype=np.int64)

    @cached_property
    def _short(self) -> tuple[Ints, Ints]:
        """(n_short,) positions of the blocks that are not full, ascending, and the rows missing up to each of them."""
        rows = np.array(self.store_rows, np.int64)
        missing = -rows % self.chunk_size
        positions = self.order.inverse(self._first_blocks[1:][missing > 0] - 1)
        by_position = np.argsort(positions)
        return positions[by_position], np.cumsum(missing[missing > 0][by_position])

    def rows(self, start: int, stop: int) -> Ints:
        """Give the stream's rows [start, stop): (stop - start,) int64 global row numbers."""
        if start == stop:
            return np.empty(0, np.int64)
        short_positions, missing = self._short
        # Where, in the stream, each short block ends.
        ends = (short_positions + 1) * self.chunk_size - missing
        edges = np.array([start, stop - 1], np.int64)
        before = np.searchsorted(ends, edges, side="right")
        first, last = (edges + np.concatenate(([0], missing))[before]) // self.chunk_size
        positions = np.arange(first, last + 1, dtype=np.int64)
        blocks = self.order.forward(positions)
        stores = np.searchsorted(self._first_blocks, blocks, side="right") - 1
        first_rows = self._first_rows[stores] + (blocks - self._first_blocks[stores]) * self.chunk_size
        lengths = np.minimum(self.chunk_size, self._first_rows[stores + 1] - first_rows)
        in_stream = first * self.chunk_size - np.concatenate(([0], missing))[np.searchsorted(short_positions, first)]
        return expand(first_rows, lengths)[start - in_stream : stop - in_stream]


@dataclass(frozen=True, slots=True)
class BlockSampler:
    """Shuffled (or sequential) blocks, shuffled again within a window."""

    store_rows: tuple[int, ...]
    """Rows in each store."""
    batch_size: int
    chunk_size: int
    """Rows that are read contiguously."""
    preload_nchunks: int
    """Blocks in a window."""
    shuffle: bool = True
    seed: int = 0
    drop_last: bool = False

    @property
    def n_obs(self) -> int:
        """Rows in all stores."""
        return sum(self.store_rows)

    @property
    def window_rows(self) -> int:
        """Rows in a full window; a multiple of ``batch_size``."""
        return -(-self.chunk_size * self.preload_nchunks // self.batch_size) * self.batch_size

    def n_windows(self, partition: Partition) -> int:
        """Say how many windows each consumer gets in an epoch."""
        return self._n_full_rounds(partition) + (self._tail_batches(partition) > 0)

    def n_batches(self, partition: Partition) -> int:
        """Say how many batches each consumer gets in an epoch; the same for all of them."""
        per_window = self.window_rows // self.batch_size
        return self._n_full_rounds(partition) * per_window + self._tail_batches(partition)

    def stream(self, epoch: int) -> Stream:
        """Give the order of the epoch's rows."""
        n_blocks = sum(-(-n // self.chunk_size) for n in self.store_rows)
        key = Key(self.seed, epoch, Purpose.BLOCKS)
        order = permutation(n_blocks, key) if self.shuffle else Identity()
        return Stream(self.store_rows, self.chunk_size, order)

    def window(self, stream: Stream, epoch: int, number: int, partition: Partition) -> Window:
        """Give a consumer's window ``number`` of the epoch whose ``stream`` is passed.

        If fewer rows than consumers remain for the last round, the consumers without one get an empty batch:
        nothing else gives all of them equally many batches and every row once.
        """
        k = number * partition.count + partition.index
        start, stop, cuts = self._extent(number, partition)
        rows = stream.rows(start, stop)
        if self.shuffle:
            rows = rows[shuffled(len(rows), Key(self.seed, epoch, Purpose.ROWS, k))]
        return Window(rows, cuts)

    def _n_full_rounds(self, partition: Partition) -> int:
        return self.n_obs // (self.window_rows * partition.count)

    def _tail_rows(self, partition: Partition) -> int:
        return self.n_obs % (self.window_rows * partition.count)

    def _tail_batches(self, partition: Partition) -> int:
        """Batches that each consumer gets in the last, incomplete round."""
        rows, per_round = self._tail_rows(partition), self.batch_size * partition.count
        return rows // per_round if self.drop_last else -(-rows // per_round)

    def _extent(self, number: int, partition: Partition) -> tuple[int, int, Ints]:
        """Say where in the stream a consumer's window starts and stops, and where its batches are cut."""
        n_full = self._n_full_rounds(partition)
        if number < n_full:
            start = (number * partition.count + partition.index) * self.window_rows
            return start, start + self.window_rows, np.arange(0, self.window_rows + 1, self.batch_size, dtype=np.int64)
        start = n_full * partition.count * self.window_rows
        n_rows, n_batches = self._tail_rows(partition), self._tail_batches(partition)
        if self.drop_last:
            n_rows = n_batches * self.batch_size * partition.count
        first, last = (start + n_rows * i // partition.count for i in (partition.index, partition.index + 1))
        return first, last, even_cuts(last - first, n_batches, self.batch_size)


def even_cuts(n_rows: int, n_batches: int, batch_size: int) -> NDArray[np.int64]:
    """Cut rows into a given number of batches: full ones first, but none empty where that can be.

    Returns
    -------
    (n_batches + 1,) int64 ascending row numbers from 0 to ``n_rows``.
    """
    cuts = np.minimum(np.arange(n_batches + 1) * batch_size, n_rows)
    # A cut at most here leaves a row for each later batch.
    reserved = n_rows - np.arange(n_batches, -1, -1)
    return np.maximum(np.minimum(cuts, reserved), 0).astype(np.int64)


def expand(starts: Ints, lengths: Ints) -> Ints:
    """Concatenate the ranges [start, start + length): (sum of lengths,) int64."""
    ends: Ints = np.cumsum(lengths)
    n = int(ends[-1]) if len(ends) else 0
    shifts: Ints = np.repeat(starts - (ends - lengths), lengths)
    shifts += np.arange(n, dtype=np.int64)
    return shifts
