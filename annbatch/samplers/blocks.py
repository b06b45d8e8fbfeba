"""How do all rows come once an epoch: shuffled, or as they are stored?

1. Blocks of contiguous rows come in random order, or one after the other (`annbatch.order.stream`).
2. The rows of a window are shuffled among themselves, or left as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from annbatch.order.consumers import Order
from annbatch.order.permutation import Identity, Ints, Key, Permutation, Purpose, permutation, shuffle
from annbatch.order.row_table import Table
from annbatch.order.stream import Stream, n_blocks_each


@dataclass(frozen=True, eq=False)
class RowOrder(Order):
    """An epoch whose items are the rows of a stream.

    Samplers of one's own may use it: with a stream over 0, 1, 2, … and a function ``find`` it draws any rows.
    """

    stream: Stream
    """What comes, and in which order windows find it."""
    batch_items: int
    """Rows in a full batch."""
    find: Callable[[Ints], Ints] | None = None
    """Turns what the stream gives into rows; None means that it gives rows."""
    mixed: bool = True
    """Whether the rows of a window are shuffled."""

    def __len__(self) -> int:
        return len(self.stream)

    def items(self, start: int, stop: int, key: Key) -> Ints:
        """Give the stream's rows [start, stop), shuffled if they are to be mixed."""
        rows = self.stream.rows(start, stop)
        if self.find is not None:
            rows = self.find(rows)
        if self.mixed:
            shuffle(rows, key)
        return rows


def shuffled_blocks(store_rows: tuple[int, ...], chunk_size: int, key: Key) -> Stream:
    """Give the stream of a table's blocks in random order."""
    return Stream(store_rows, chunk_size, permutation(sum(n_blocks_each(store_rows, chunk_size)), key))


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Every row once an epoch: blocks in random order, and the rows of a window in random order.

    This is what a loader does by itself. With ``chunk_size=1`` every order of the rows is equally likely.
    """

    columns = ()

    def bind(self, table: Table) -> Callable[[int], Order]:
        """Give the order of each epoch."""

        def order(epoch: int) -> Order:
            key = Key(table.seed, epoch, Purpose.BLOCKS)
            return RowOrder(shuffled_blocks(table.store_rows, table.chunk_size, key), table.batch_size)

        return order

    def describe(self) -> dict[str, Any]:
        """Give its name."""
        return {"sampler": "Shuffled"}


@dataclass(frozen=True, slots=True)
class Sequential:
    """Every row once an epoch: in the order in which ``rows`` of the loader names them, else in that of the stores."""

    columns = ()

    def bind(self, table: Table) -> Callable[[int], Order]:
        """Give the order, which is the same in each epoch."""
        order: Permutation = Identity()
        named = None if table.rows is None else table.rows.order
        find = None if named is None else named.__getitem__
        whole = RowOrder(Stream(table.store_rows, table.chunk_size, order), table.batch_size, find, mixed=False)
        return lambda epoch: whole

    def describe(self) -> dict[str, Any]:
        """Give its name."""
        return {"sampler": "Sequential"}
