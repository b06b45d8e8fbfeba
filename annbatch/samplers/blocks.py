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

    Use it in samplers of your own: with a stream over 0, 1, 2, … and a function ``find`` it can draw any rows.
    """

    stream: Stream
    """The rows, or numbers, in the order of the epoch."""
    batch_items: int
    """Rows in a full batch."""
    find: Callable[[Ints], Ints] | None = None
    """Maps numbers of the stream to rows, (n,) int64 each; None means that the stream already consists of rows."""
    mixed: bool = True
    """Whether the rows of a window are shuffled."""

    def __len__(self) -> int:
        return len(self.stream)

    def items(self, start: int, stop: int, key: Key) -> Ints:
        """Return the stream's rows [start, stop), (stop - start,) int64, shuffled if ``mixed``."""
        rows = self.stream.rows(start, stop)
        if self.find is not None:
            rows = self.find(rows)
        if self.mixed:
            shuffle(rows, key)
        return rows


def shuffled_blocks(store_rows: tuple[int, ...], chunk_size: int, key: Key) -> Stream:
    """Return the stream of a table's blocks in random order."""
    return Stream(store_rows, chunk_size, permutation(sum(n_blocks_each(store_rows, chunk_size)), key))


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Every row once an epoch: blocks in random order, and the rows of each window in random order.

    This is the default of a loader. With ``chunk_size=1`` every order of the rows is equally likely.

    Examples
    --------
    >>> from annbatch import Loader, samplers
    >>> ds = Loader(batch_size=32, sampler=samplers.Shuffled()).use_collection("collection")
    """

    columns = ()

    def bind(self, table: Table) -> Callable[[int], Order]:
        """Return a function from the epoch's number to its order."""

        def order(epoch: int) -> Order:
            key = Key(table.seed, epoch, Purpose.BLOCKS)
            return RowOrder(shuffled_blocks(table.store_rows, table.chunk_size, key), table.batch_size)

        return order

    def describe(self) -> dict[str, Any]:
        """Return the sampler's name."""
        return {"sampler": "Shuffled"}


@dataclass(frozen=True, slots=True)
class Sequential:
    """Every row once an epoch, in the order of the loader's ``rows`` if it has some, otherwise of the stores.

    ``Loader(shuffle=False)`` does the same.

    Examples
    --------
    >>> from annbatch import Loader, samplers
    >>> ds = Loader(batch_size=32, sampler=samplers.Sequential()).use_collection(
    ...     "collection"
    ... )
    >>> next(iter(ds)).index[:3].tolist()
    [0, 1, 2]
    """

    columns = ()

    def bind(self, table: Table) -> Callable[[int], Order]:
        """Return a function from the epoch's number to its order, the same for each epoch."""
        order: Permutation = Identity()
        named = None if table.rows is None else table.rows.order
        find = None if named is None else named.__getitem__
        whole = RowOrder(Stream(table.store_rows, table.chunk_size, order), table.batch_size, find, mixed=False)
        return lambda epoch: whole

    def describe(self) -> dict[str, Any]:
        """Return the sampler's name."""
        return {"sampler": "Sequential"}
