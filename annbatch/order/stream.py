"""In which order do the rows of a table come, if neighbours stay together?

1. Every store's rows are cut into blocks of ``chunk_size`` contiguous rows (a store's last block may be shorter).
2. A `Stream` is the concatenation of all blocks in a given order. Any part of it is computed when asked for: memory
   does not grow with the number of rows, but for a permutation of up to `annbatch.order.permutation.HELD_LIMIT` blocks.
3. `Passes` goes through a stream again and again, each time in an order of its own.

Pure: no store, no thread, no environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from annbatch.native import Kernel
from annbatch.order.permutation import Ints, Permutation


@dataclass(frozen=True, eq=False)
class Stream:
    """The rows of a table, block by block, in the order of a permutation of the blocks."""

    store_rows: tuple[int, ...]
    """Rows in each store."""
    chunk_size: int
    """Rows in a block; the last block of a store may have fewer."""
    order: Permutation
    """Permutation of all blocks, numbered through the stores."""

    def __len__(self) -> int:
        return sum(self.store_rows)

    def rows(self, start: int, stop: int) -> Ints:
        """Return the row numbers at positions [start, stop), counted through the stores: (stop - start,) int64."""
        if start >= stop:
            return np.empty(0, np.int64)
        short_positions, missing = self._short
        # Where, in the stream, each short block ends.
        ends = (short_positions + 1) * self.chunk_size - missing[1:]
        edges = np.array([start, stop - 1], np.int64)
        first, last = (edges + missing[np.searchsorted(ends, edges, side="right")]) // self.chunk_size
        in_stream = first * self.chunk_size - missing[np.searchsorted(short_positions, first)]
        blocks = self.order.forward(np.arange(first, last + 1, dtype=np.int64))
        return _expand(blocks, self._first_rows, self._first_blocks, self.chunk_size, start - in_stream, stop - start)  # type: ignore[no-any-return]

    def at(self, positions: Ints) -> Ints:
        """Return the row numbers at any positions, (n,) int64: (n,) int64."""
        short_positions, missing = self._short
        ends = (short_positions + 1) * self.chunk_size - missing[1:]
        places = (positions + missing[np.searchsorted(ends, positions, side="right")]) // self.chunk_size
        within = positions - places * self.chunk_size + missing[np.searchsorted(short_positions, places)]
        blocks = self.order.forward(places)
        stores = np.searchsorted(self._first_blocks, blocks, side="right") - 1
        rows: Ints = self._first_rows[stores] + (blocks - self._first_blocks[stores]) * self.chunk_size + within
        return rows

    @cached_property
    def _first_rows(self) -> Ints:
        """(n_stores + 1,) number of each store's first row."""
        return np.cumsum((0, *self.store_rows), dtype=np.int64)

    @cached_property
    def _first_blocks(self) -> Ints:
        """(n_stores + 1,) number of each store's first block."""
        return np.cumsum((0, *n_blocks_each(self.store_rows, self.chunk_size)), dtype=np.int64)

    @cached_property
    def _short(self) -> tuple[Ints, Ints]:
        """Positions of the blocks that are not full, (n_short,) ascending; rows missing before each, (n_short + 1,)."""
        missing = -np.array(self.store_rows, np.int64) % self.chunk_size
        positions = self.order.inverse(self._first_blocks[1:][missing > 0] - 1)
        by_position = np.argsort(positions)
        return positions[by_position], np.cumsum(np.append(0, missing[missing > 0][by_position]))


@dataclass(frozen=True, slots=True)
class Passes:
    """One stream after the other over the same table, without an end."""

    n_rows: int
    """Rows in a pass, at least 1."""
    pass_at: Callable[[int], Stream]
    """Gives pass number 0, 1, … over the table."""

    def rows(self, start: int, stop: int) -> Ints:
        """Give the rows at positions [start, stop): (stop - start,) int64."""
        parts = [np.empty(0, np.int64)]
        while start < stop:
            number, first = divmod(start, self.n_rows)
            n = min(stop - start, self.n_rows - first)
            parts.append(self.pass_at(number).rows(first, first + n))
            start += n
        return np.concatenate(parts)


def n_blocks_each(store_rows: tuple[int, ...], chunk_size: int) -> list[int]:
    """Say how many blocks each store's rows make."""
    return [-(-n // chunk_size) for n in store_rows]


@Kernel
def _expand(blocks: Any, first_rows: Any, first_blocks: Any, chunk_size: Any, skip: Any, n: Any) -> Any:
    """Give ``n`` rows of consecutive blocks, behind the first ``skip`` ones."""
    rows = np.empty(n, np.int64)
    at = 0
    for block in blocks:
        store = np.searchsorted(first_blocks, block, side="right") - 1
        first = first_rows[store] + (block - first_blocks[store]) * chunk_size
        for row in range(first + skip, min(first + chunk_size, first_rows[store + 1])):
            if at < n:
                rows[at] = row
                at += 1
        skip = 0
    return rows
