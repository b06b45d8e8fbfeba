"""What comes when, for given stores and settings?

1. A `Schedule` binds a sampler to the rows that a loader has.
2. `Schedule.segment` says what comes from a position on, for a number of consumers; `Schedule.turns`, for one of the
   worker processes of a consumer.
3. `Schedule.fingerprint` names everything that the order follows from.

Pure: no store, no thread, no environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from annbatch.errors import InputError
from annbatch.order.consumers import Order, Partition, Segment, segment_of
from annbatch.order.permutation import Ints, Key, Purpose
from annbatch.order.row_selection import Runs, digest
from annbatch.order.row_table import Classes, Sampler, Table
from annbatch.order.state import Position
from annbatch.order.turns import Turns


@dataclass(frozen=True, slots=True)
class Settings:
    """What a loader was told about the order."""

    sampler: Sampler
    batch_size: int
    """Rows in a batch."""
    chunk_size: int
    """Rows in a block."""
    preload_nchunks: int
    """Blocks in a window, which is then rounded up to whole batches."""
    seed: int
    drop_last: bool | int
    """Whether the last batch must be full, or how many rows it must have."""

    @property
    def least_rows(self) -> int:
        """Rows that a batch has at least; 0 allows empty ones."""
        return self.batch_size if self.drop_last is True else int(self.drop_last)

    @property
    def batches_per_window(self) -> int:
        """Batches in a full window."""
        return -(-self.chunk_size * self.preload_nchunks // self.batch_size)


class Schedule:
    """The order of all epochs of a loader.

    Parameters
    ----------
    settings
        What the loader was told.
    store_rows
        Rows in each store.
    classes
        The columns that the sampler asks for, over all rows of the stores.
    rows
        Which rows are wanted; None means all.
    data
        What tells these stores from others, for the fingerprint.

    Raises
    ------
    InputError
        If the sampler does not fit the data.
    """

    def __init__(
        self,
        settings: Settings,
        store_rows: tuple[int, ...],
        classes: Mapping[str, Classes],
        rows: Runs | None,
        data: Mapping[str, Any],
    ) -> None:
        self._settings = settings
        self._table = Table(
            store_rows=store_rows if rows is None else rows.counts(store_rows),
            batch_size=settings.batch_size,
            chunk_size=settings.chunk_size,
            seed=settings.seed,
            least_rows=settings.least_rows,
            classes=classes if rows is None else {name: one.select(rows) for name, one in classes.items()},
            n_stored=sum(store_rows),
            rows=rows,
        )
        self._order = settings.sampler.bind(self._table)
        self._n_batches: dict[Partition, int] = {}
        self.fingerprint: dict[str, Any] = {
            **data,
            "rows": None if rows is None else rows.digest(),
            "batch_size": settings.batch_size,
            "chunk_size": settings.chunk_size,
            "preload_nchunks": settings.preload_nchunks,
            "seed": settings.seed,
            "drop_last": settings.drop_last,
            "sampler": settings.sampler.describe(),
            "classes": {name: digest(one.codes) for name, one in classes.items()},
        }

    def __getstate__(self) -> dict[str, Any]:
        # What binding gives may be closures.
        return self.__dict__ | {"_order": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._order = self._settings.sampler.bind(self._table)

    @property
    def n_rows(self) -> int:
        """Rows that the sampler chooses from."""
        return self._table.n_rows

    def segment(self, position: Position, count: int) -> tuple[Segment, int]:
        """Say what ``count`` consumers get from a position on, and how many batches of it they have had.

        Raises
        ------
        InputError
            If the position is beyond the end of its epoch.
        """
        settings = self._settings
        order: Order = self._order(position.epoch)
        if self._table.rows is not None:
            order = _Selected(order, self._table.rows)
        key = Key(settings.seed, position.epoch, Purpose.MIX)
        least_items = -(-settings.least_rows * order.batch_items // settings.batch_size)
        try:
            return segment_of(order, key, settings.batches_per_window, least_items, position.parts, count)
        except ValueError as e:
            raise InputError(f"the state is beyond the end of epoch {position.epoch}: {e}") from e

    def turns(self, position: Position, count: int) -> Turns:
        """Say what each of ``count`` consumers, or the worker whose position it is, gets from a position on.

        Raises
        ------
        InputError
            If the position is beyond the end of its epoch.
        """
        segment, n_done = self.segment(position, count)
        worker, n_workers = position.worker or (0, 1)
        try:
            return Turns(segment, n_done, worker, n_workers, position.n_had)
        except ValueError as e:
            raise InputError(f"the state is beyond the end of epoch {position.epoch}: {e}") from e

    def n_batches(self, partition: Partition) -> int:
        """Say how many batches a consumer, or a worker of it, gets in an epoch."""
        if partition not in self._n_batches:
            position = Position()
            position.begin(partition)
            self._n_batches[partition] = self.turns(position, partition.count).n_batches
        return self._n_batches[partition]


class _Selected(Order):
    """An order of the rows of a subset, as rows of the stores."""

    def __init__(self, order: Order, rows: Runs) -> None:
        self._inner, self._rows = order, rows
        self.batch_items, self.endless, self.divisible = order.batch_items, order.endless, order.divisible

    def __len__(self) -> int:
        return len(self._inner)

    def items(self, start: int, stop: int, key: Key) -> Ints:
        """Give the items at positions [start, stop)."""
        items = self._inner.items(start, stop, key)
        found = items >= 0
        rows = np.full(items.shape, -1, np.int64)
        rows[found] = self._rows.find(items[found])
        return rows
