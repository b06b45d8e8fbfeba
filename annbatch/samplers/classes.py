"""How does each batch get the classes that it shall have?

1. The rows of every class are a table of their own, whose blocks come in random order (`annbatch.order.stream`).
2. `Stratified` takes a fixed number of rows of each class into every batch; a class that runs out begins again.
3. `Grouped` makes every batch of one class; batches of all classes come in random order. Every row comes once, or
   classes are drawn with given probabilities.

In both, an item of the order is a batch. The rows of a class that a window holds are mixed before they are dealt to its
batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from annbatch.check import integer
from annbatch.errors import InputError
from annbatch.order.consumers import Order
from annbatch.order.permutation import Ints, Key, Purpose, shuffle, shuffled
from annbatch.order.row_table import Classes, ClassRows, Table, described, names_of
from annbatch.order.stream import Passes, Stream
from annbatch.samplers.blocks import shuffled_blocks
from annbatch.samplers.weighted import class_shares, described_weights, draws_of


@dataclass(frozen=True, slots=True)
class Stratified:
    """Batches with a fixed number of rows of each class.

    Within an epoch, the rows of a class come equally often, up to one: they come in random order and, when all have
    come, again in another order. Classes without a quota, and rows without a class, are left out. Consumers that would
    get no full batch in the last round get one more batch with the same quotas.

    Parameters
    ----------
    by
        obs column that holds the classes; or several columns, whose classes are tuples.
    quotas
        The number of rows of each class in a batch. They must sum to the loader's ``batch_size``.
    n_batches
        Batches in an epoch, over all consumers. None means as many as the rows of these classes would fill, and at
        least one.

    Examples
    --------
    >>> from annbatch import Loader, samplers
    >>> sampler = samplers.Stratified("perturbation", {"none": 16, "a": 8, "b": 8})
    >>> ds = Loader(batch_size=32, sampler=sampler).use_collection(
    ...     "collection", labels=["perturbation"]
    ... )
    >>> next(iter(ds)).labels["perturbation"].value_counts().sort_index().to_dict()
    {'a': 8, 'b': 8, 'none': 16}
    """

    by: str | Sequence[str]
    quotas: Mapping[Any, int]
    n_batches: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold the classes."""
        return names_of(self.by)

    def bind(self, table: Table) -> Callable[[int], Order]:
        """Check the quotas, and return a function from the epoch's number to its order.

        Raises
        ------
        InputError
            If the quotas do not sum to the batch size, or a class with a quota is not a category or has no rows.
        """
        classes = table.classes_by(self.by)
        by_class = ClassRows.of(classes.codes, len(classes.categories))
        counts = by_class.counts()
        quotas: dict[int, int] = {}
        for category, quota in self.quotas.items():
            code = classes.code(category)
            quota = integer(f"quotas[{category!r}]", quota, 0)
            if quota and not counts[code]:
                raise InputError(
                    f"quotas must be for classes that have rows, and obs[{classes.name!r}] has no row of {category!r}"
                )
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
        return lambda epoch: _StratifiedOrder(_ClassStreams(table, by_class, epoch), quotas, n_batches)

    def describe(self) -> dict[str, Any]:
        """Return the sampler's name and arguments."""
        quotas = {str(category): int(quota) for category, quota in self.quotas.items()}
        return {"sampler": "Stratified", "by": described(self.by), "quotas": quotas, "n_batches": self.n_batches}


@dataclass(frozen=True, eq=False)
class _ClassStreams:
    """The rows of every class in random order, and behind the last one of them in another order, without an end."""

    table: Table
    by_class: ClassRows
    epoch: int
    passes: dict[int, tuple[int, Stream]] = field(default_factory=dict)
    """The pass that each class was last in: a stream of many blocks is not made again for each window."""

    def rows(self, code: int, start: int, stop: int) -> Ints:
        """Give the rows at positions [start, stop) of a class."""
        passes = Passes(int(self.by_class.counts()[code]), lambda number: self._pass(code, number))
        return self.by_class.find(code, passes.rows(start, stop))

    def _pass(self, code: int, number: int) -> Stream:
        if self.passes.get(code, (-1,))[0] != number:
            n_rows = int(self.by_class.counts()[code])
            key = Key(self.table.seed, self.epoch, Purpose.CLASS_BLOCKS, code, number)
            self.passes[code] = number, shuffled_blocks((n_rows,), self.table.chunk_size, key)
        return self.passes[code][1]


@dataclass(frozen=True, eq=False)
class _StratifiedOrder(Order):
    streams: _ClassStreams
    quotas: dict[int, int]
    n_batches: int
    batch_items = 1
    endless = True

    def __len__(self) -> int:
        return self.n_batches

    def items(self, start: int, stop: int, key: Key) -> Ints:
        parts = []
        for code, quota in self.quotas.items():
            rows = self.streams.rows(code, start * quota, stop * quota)
            shuffle(rows, replace(key, part=key.part << 32 | code + 1))
            parts.append(rows.reshape(stop - start, quota))
        batches = np.concatenate(parts, axis=1)
        words = replace(key, purpose=Purpose.LAYOUT).words(batches.size).reshape(batches.shape)
        return np.take_along_axis(batches, np.argsort(words, axis=1, kind="stable"), axis=1)


@dataclass(frozen=True, slots=True)
class Grouped:
    """Batches whose rows are all of one class; batches come in random order.

    Without ``weights``, every row comes once an epoch. The last batch of each class holds the remaining rows, or is
    dropped if the loader's ``drop_last`` asks for more. Some batches may be halved, so that all consumers get the same
    number; with ``drop_last``, batches that cannot be shared out equally are dropped instead.

    With ``weights``, all batches are full, and an epoch has ``n = n_rows // batch_size`` of them.

    - With replacement, a class has ``n * w / sum(w)`` batches on average, rounded up or down. When all its rows have
      come, they come again in another order. Consumers that would get no batch in the last round get one more.
    - Without replacement, every row comes at most once. A class of m full batches has ``n * v / sum(v)`` of them, where
      ``v = minimum(w, c * m)`` and c is the largest number with which no class has more than m.

    Rows without a class are left out.

    Parameters
    ----------
    by
        obs column that holds the classes; or several columns, whose classes are tuples.
    weights
        The weight of each class, >= 0. The number of its batches is proportional to it. Classes that are not named are
        left out.
    n_rows
        Rows in an epoch, over all consumers, rounded down to whole batches. None means as many as the weighted classes
        have. Required if ``replace`` is False, and not allowed without ``weights``.
    replace
        Whether, with ``weights``, a row may come more than once an epoch.

    Examples
    --------
    >>> from annbatch import Loader, samplers
    >>> ds = Loader(batch_size=8, sampler=samplers.Grouped("donor")).use_collection(
    ...     "collection", labels=["donor"]
    ... )
    >>> {batch.labels["donor"].nunique() for batch in ds}
    {1}
    """

    by: str | Sequence[str]
    weights: Mapping[Any, float] | None = None
    n_rows: int | None = None
    replace: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold the classes."""
        return names_of(self.by)

    def bind(self, table: Table) -> Callable[[int], Order]:
        """Return a function from the epoch's number to its order.

        Raises
        ------
        InputError
            If no class has enough rows for a batch; if a class with a weight is not a category, has no rows, or does
            not fill a batch without replacement; or if ``n_rows`` is smaller than a batch or larger than the rows that
            there are.
        """
        classes = table.classes_by(self.by)
        by_class = ClassRows.of(classes.codes, len(classes.categories))
        if self.weights is not None:
            batches_of = self._weighted(self.weights, table, classes)
            return lambda epoch: _GroupedOrder.of(table, by_class, batches_of(epoch), epoch, endless=self.replace)
        if self.n_rows is not None:
            raise InputError(f"n_rows must be None without weights, got {self.n_rows}")
        counts = by_class.counts()
        least = max(1, table.least_rows)
        n_batches = counts // table.batch_size + (counts % table.batch_size >= least)
        if not n_batches.any():
            raise InputError(
                f"obs[{classes.name!r}] must have a class of at least {least} rows, the largest has "
                f"{max(counts, default=0)}"
            )
        return lambda epoch: _GroupedOrder.of(table, by_class, n_batches, epoch, endless=False)

    def describe(self) -> dict[str, Any]:
        """Return the sampler's name and arguments."""
        found = {"sampler": "Grouped", "by": described(self.by)}
        if self.weights is None:
            # States of earlier versions, which had no weights, remain valid.
            return found
        weights = described_weights(self.weights)
        return {**found, "weights": weights, "n_rows": self.n_rows, "replace": self.replace}

    def _weighted(self, weights: Mapping[Any, float], table: Table, classes: Classes) -> Callable[[int], Ints]:
        """Check the weights, and give a function from the epoch to the number of batches of each class."""
        counts = classes.counts()
        shares = class_shares(weights, classes, counts)
        if not self.replace and self.n_rows is None:
            raise InputError("n_rows must be a number of rows if replace is False, got None")
        n_rows = int(counts[shares > 0].sum()) if self.n_rows is None else integer("n_rows", self.n_rows, 1)
        n = n_rows // table.batch_size
        if not n:
            raise InputError(f"n_rows must be at least batch_size={table.batch_size}, got {n_rows}")
        drawn = np.arange(len(counts))
        if not self.replace:
            most = counts // table.batch_size
            if (short := np.flatnonzero((shares > 0) & (most == 0))).size:
                raise InputError(
                    f"without replacement, each class must have at least batch_size={table.batch_size} rows, got "
                    f"{counts[short[0]]} of {classes.categories[short[0]]!r} in obs[{classes.name!r}]"
                )
            if n > (total := int(most[shares > 0].sum())):
                raise InputError(
                    f"n_rows must be at most {total * table.batch_size}, the rows of full batches of these classes, "
                    f"got {n_rows}"
                )
            # What is drawn are the full batches of the classes, each at most once.
            drawn = np.repeat(drawn, most)
            shares = (shares / np.maximum(most, 1))[drawn]
        draws = draws_of(shares, np.empty(0, np.int8), np.ones(1, np.int64), table, n, self.replace)

        def batches_of(epoch: int) -> Ints:
            found = draws.find(np.arange(n), draws.offset(table.seed, epoch))
            return np.bincount(drawn[found], minlength=len(counts)).astype(np.int64)

        return batches_of


@dataclass(frozen=True, eq=False)
class _GroupedOrder(Order):
    streams: _ClassStreams
    n_batches: Ints
    """(n_classes,) batches of each class."""
    codes: Ints
    """(n_batches,) class of each batch."""
    places: Ints
    """(n_batches,) how many batches of the same class come before."""
    endless: bool
    batch_items = 1

    @classmethod
    def of(cls, table: Table, by_class: ClassRows, n_batches: Ints, epoch: int, *, endless: bool) -> _GroupedOrder:
        codes = np.repeat(np.arange(len(n_batches)), n_batches)
        shuffle(codes, Key(table.seed, epoch, Purpose.BATCHES))
        by_code = np.argsort(codes, kind="stable")
        places = np.empty(len(codes), np.int64)
        places[by_code] = np.arange(len(codes)) - np.repeat(np.cumsum(n_batches) - n_batches, n_batches)
        return cls(_ClassStreams(table, by_class, epoch), n_batches, codes, places, endless)

    @property
    def divisible(self) -> bool:  # type: ignore[override]
        return not self.endless

    def __len__(self) -> int:
        return len(self.codes)

    def items(self, start: int, stop: int, key: Key) -> Ints:
        size = self.streams.table.batch_size
        batches = np.full((stop - start, size), -1, np.int64)
        # Behind the last batch the same classes come once more.
        times, numbers = np.divmod(np.arange(start, stop), len(self.codes))
        codes = self.codes[numbers]
        places = self.places[numbers] + times * self.n_batches[codes]
        for code in np.unique(codes).tolist():
            mine = np.flatnonzero(codes == code)
            # A class's batches take its rows in turn, so those of a window are neighbours in the stream.
            first, last = int(places[mine[0]]) * size, (int(places[mine[-1]]) + 1) * size
            if not self.endless:
                last = min(last, int(self.streams.by_class.counts()[code]))
            rows = self.streams.rows(code, first, last)
            rows = rows[shuffled(len(rows), replace(key, part=key.part << 32 | code + 1))]
            for k, batch in enumerate(mine.tolist()):
                own = rows[k * size : (k + 1) * size]
                batches[batch, : len(own)] = own
        return batches
