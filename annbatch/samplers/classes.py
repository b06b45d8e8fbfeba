"""How does each batch get the classes that it shall have?

1. The rows of every class are a table of their own, whose blocks come in random order (`annbatch.order.stream`).
2. `Stratified` takes a fixed number of rows of each class into every batch; a class that runs out begins again.
3. `Grouped` makes every batch of one class; batches of all classes come in random order, and every row comes once.

In both, an item of the order is a batch. The rows of a class that a window holds are mixed before they are dealt to its
batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from annbatch.check import integer
from annbatch.errors import InputError
from annbatch.order.consumers import Order
from annbatch.order.permutation import Ints, Key, Purpose, shuffle, shuffled
from annbatch.order.row_table import ClassRows, Table
from annbatch.order.stream import Passes, Stream
from annbatch.samplers.blocks import shuffled_blocks


@dataclass(frozen=True, slots=True)
class Stratified:
    """Batches with a fixed number of rows of each class.

    Within an epoch the rows of a class come equally often, up to one time: in random order, and when all have come, in
    another one. Classes without a quota, and rows without a class, are left out. Consumers that would get no full batch
    in the last round get one more of the same kind, so that quotas always hold.

    Parameters
    ----------
    by
        Name of the obs column that holds the classes.
    quotas
        Class to its rows in each batch; they sum to the loader's ``batch_size``.
    n_batches
        Batches in an epoch, over all consumers; None means as many as the rows of these classes would fill, at least
        one.
    """

    by: str
    quotas: Mapping[Any, int]
    n_batches: int | None = None

    @property
    def columns(self) -> tuple[str]:
        """The column that holds the classes."""
        return (self.by,)

    def bind(self, table: Table) -> Callable[[int], Order]:
        """Check the quotas and give the order of each epoch.

        Raises
        ------
        InputError
            If quotas do not sum to the batch size, or a class with a quota is no category or has no rows.
        """
        classes = table.classes[self.by]
        by_class = ClassRows.of(classes.codes, len(classes.categories))
        counts = by_class.counts()
        quotas: dict[int, int] = {}
        for category, quota in self.quotas.items():
            code = classes.code(category)
            quota = integer(f"quotas[{category!r}]", quota, 0)
            if quota and not counts[code]:
                raise InputError(f"quotas must be for classes that have rows, {category!r} of {self.by!r} has none")
            if quota:
                quotas[code] = quota
        if sum(quotas.values()) != table.batch_size:
            raise InputError(f"quotas must sum to batch_size={table.batch_size}, got {sum(quotas.values())}")
        n_rows = int(sum(counts[code] for code in quotas))
        n_batches = max(1, n_rows // table.batch_size)
        if self.n_batches is not None:
            n_batches = integer("n_batches", self.n_batches, 1)
        # In the order of the categories, whatever the order of the mapping is.
        quotas = dict(sorted(quotas.items()))
        return lambda epoch: _StratifiedOrder(table, by_class, quotas, n_batches, epoch)

    def describe(self) -> dict[str, Any]:
        """Give its name and arguments."""
        quotas = {str(category): int(quota) for category, quota in self.quotas.items()}
        return {"sampler": "Stratified", "by": self.by, "quotas": quotas, "n_batches": self.n_batches}


@dataclass(frozen=True, eq=False)
class _StratifiedOrder(Order):
    table: Table
    by_class: ClassRows
    quotas: dict[int, int]
    n_batches: int
    epoch: int
    passes: dict[int, tuple[int, Stream]] = field(default_factory=dict)
    """The pass that each class was last in: a stream of many blocks is not made again for each window."""
    batch_items = 1
    endless = True

    def __len__(self) -> int:
        return self.n_batches

    def items(self, start: int, stop: int, key: Key) -> Ints:
        parts = []
        for code, quota in self.quotas.items():
            n_rows = int(self.by_class.counts()[code])
            passes = Passes(n_rows, lambda number, code=code: self._pass(code, number))  # type: ignore[misc]
            rows = self.by_class.find(code, passes.rows(start * quota, stop * quota))
            shuffle(rows, replace(key, part=key.part << 32 | code + 1))
            parts.append(rows.reshape(stop - start, quota))
        batches = np.concatenate(parts, axis=1)
        words = replace(key, purpose=Purpose.LAYOUT).words(batches.size).reshape(batches.shape)
        return np.take_along_axis(batches, np.argsort(words, axis=1, kind="stable"), axis=1)

    def _pass(self, code: int, number: int) -> Stream:
        if self.passes.get(code, (-1,))[0] != number:
            n_rows = int(self.by_class.counts()[code])
            key = Key(self.table.seed, self.epoch, Purpose.CLASS_BLOCKS, code, number)
            self.passes[code] = number, shuffled_blocks((n_rows,), self.table.chunk_size, key)
        return self.passes[code][1]


@dataclass(frozen=True, slots=True)
class Grouped:
    """Batches whose rows are all of one class, every row once an epoch; batches come in random order.

    The last batch of each class holds what remains of it, or is left out if the loader's ``drop_last`` asks for more
    rows. Rows without a class are left out. A batch may be halved, so that all consumers get equally many; with
    ``drop_last``, batches that do not go round are left out instead.

    Parameters
    ----------
    by
        Name of the obs column that holds the classes.
    """

    by: str

    @property
    def columns(self) -> tuple[str]:
        """The column that holds the classes."""
        return (self.by,)

    def bind(self, table: Table) -> Callable[[int], Order]:
        """Give the order of each epoch.

        Raises
        ------
        InputError
            If no class fills a batch that may be handed over.
        """
        classes = table.classes[self.by]
        by_class = ClassRows.of(classes.codes, len(classes.categories))
        counts = by_class.counts()
        least = max(1, table.least_rows)
        n_batches = counts // table.batch_size + (counts % table.batch_size >= least)
        if not n_batches.any():
            raise InputError(
                f"obs[{self.by!r}] must have a class of at least {least} rows, the largest has {max(counts, default=0)}"
            )
        return lambda epoch: _GroupedOrder.of(table, by_class, n_batches, epoch)

    def describe(self) -> dict[str, Any]:
        """Give its name and argument."""
        return {"sampler": "Grouped", "by": self.by}


@dataclass(frozen=True, eq=False)
class _GroupedOrder(Order):
    table: Table
    by_class: ClassRows
    codes: Ints
    """(n_batches,) class of each batch."""
    places: Ints
    """(n_batches,) how many batches of the same class come before."""
    epoch: int
    streams: dict[int, Stream] = field(default_factory=dict)
    """The rows of each class that a window has asked for."""
    batch_items = 1
    divisible = True

    @classmethod
    def of(cls, table: Table, by_class: ClassRows, n_batches: Ints, epoch: int) -> _GroupedOrder:
        codes = np.repeat(np.arange(len(n_batches)), n_batches)
        shuffle(codes, Key(table.seed, epoch, Purpose.BATCHES))
        by_code = np.argsort(codes, kind="stable")
        places = np.empty(len(codes), np.int64)
        places[by_code] = np.arange(len(codes)) - np.repeat(np.cumsum(n_batches) - n_batches, n_batches)
        return cls(table, by_class, codes, places, epoch)

    def __len__(self) -> int:
        return len(self.codes)

    def items(self, start: int, stop: int, key: Key) -> Ints:
        size = self.table.batch_size
        batches = np.full((stop - start, size), -1, np.int64)
        codes, places = self.codes[start:stop], self.places[start:stop]
        for code in np.unique(codes).tolist():
            mine = np.flatnonzero(codes == code)
            stream = self._stream(code)
            # A class's batches take its rows in turn, so those of a window are neighbours in the stream.
            first, last = int(places[mine[0]]) * size, min((int(places[mine[-1]]) + 1) * size, len(stream))
            rows = self.by_class.find(code, stream.rows(first, last))
            rows = rows[shuffled(len(rows), replace(key, part=key.part << 32 | code + 1))]
            for k, batch in enumerate(mine.tolist()):
                own = rows[k * size : (k + 1) * size]
                batches[batch, : len(own)] = own
        return batches

    def _stream(self, code: int) -> Stream:
        if code not in self.streams:
            n_rows = int(self.by_class.counts()[code])
            key = Key(self.table.seed, self.epoch, Purpose.CLASS_BLOCKS, code)
            self.streams[code] = shuffled_blocks((n_rows,), self.table.chunk_size, key)
        return self.streams[code]
