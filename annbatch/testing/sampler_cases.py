"""Which tables is a sampler bound to, when it is checked?

1. A loader makes classes of the columns that the sampler asks for, as it does for any data.
2. `Cases.bound` binds the sampler, and a copy of it from before it was used, to all rows of two stores or to some.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from annbatch.errors import InputError
from annbatch.loader import Loader
from annbatch.order.consumers import Order
from annbatch.order.permutation import Ints
from annbatch.order.row_selection import Runs
from annbatch.order.row_table import Classes, Sampler, Table
from annbatch.order.schedule import Schedule, Settings
from annbatch.testing.rules import expect, rule

BIND = "bind(table) must give a function from the number of an epoch to its order, or raise InputError"


@dataclass
class _Probe:
    """The sampler, with a note of what it was bound to and what that gave."""

    sampler: Sampler
    table: Table | None = None
    order_of: Callable[[int], Order] | None = None

    @property
    def columns(self) -> Sequence[str]:
        return self.sampler.columns

    def bind(self, table: Table) -> Callable[[int], Order]:
        self.table, self.order_of = table, self.sampler.bind(table)
        return self.order_of

    def describe(self) -> dict[str, Any]:
        return self.sampler.describe()


@dataclass(frozen=True, eq=False)
class Bound:
    """A sampler that is bound to a table, twice: as it is, and a copy that was made before it was used."""

    settings: Settings
    table: Table
    order_of: Callable[[int], Order]
    order_of_copy: Callable[[int], Order]
    schedule: Schedule

    @property
    def words(self) -> str:
        """How messages call the case."""
        some = "" if self.table.rows is None else " of some rows"
        return some + (" with drop_last" if self.settings.drop_last else "")

    @property
    def window_items(self) -> int:
        """Items in a full window of one consumer."""
        return self.order_of(0).batch_items * self.settings.batches_per_window


@dataclass(frozen=True, eq=False)
class Cases:
    """The data, as what a sampler may be bound to."""

    settings: Settings
    store_rows: tuple[int, ...]
    classes: dict[str, Classes]
    """The columns that the sampler asks for, of all rows."""
    unused: Sampler
    """A copy of the sampler from before it was bound."""

    @classmethod
    def of(cls, settings: Settings, obs: pd.DataFrame) -> Cases:
        """Let a loader make classes of the columns, as it does for any data."""
        with rule("a sampler must be one that copy.deepcopy copies: worker processes have copies of it"):
            copied = copy.deepcopy(settings.sampler)
        obs = obs.set_axis([f"cell{row}" for row in range(len(obs))], axis=0)
        cut = len(obs) * 3 // 8
        stores = [
            ad.AnnData(sp.csr_matrix(np.zeros((len(part), 1), np.float32)), part)
            for part in (obs.iloc[:cut], obs.iloc[cut:])
        ]
        probe = _Probe(settings.sampler)
        loader = Loader(batch_size=settings.batch_size, chunk_size=settings.chunk_size, sampler=probe)
        with rule(BIND, passing=(InputError,)):
            # The number of rows is known when the sampler is bound.
            expect(loader.add_anndatas(stores, labels=[]).n_obs == len(obs), "the table lacks rows")
        assert probe.table is not None
        return cls(settings, probe.table.store_rows, dict(probe.table.classes), copied)

    @property
    def n_rows(self) -> int:
        """Rows of both stores."""
        return sum(self.store_rows)

    def bound(self, rows: Ints | None = None, *, drop_last: bool = False, seed: int = 0) -> Bound:
        """Bind the sampler to all rows or some of them."""
        own, copied = _Probe(self.settings.sampler), _Probe(copy.deepcopy(self.unused))
        runs = None if rows is None else Runs.of(rows, self.n_rows)
        asked = [replace(self.settings, sampler=probe, seed=seed, drop_last=drop_last) for probe in (own, copied)]
        with rule(BIND, passing=(InputError,)):
            schedule, _ = (Schedule(one, self.store_rows, self.classes, runs, {}) for one in asked)
            expect(callable(own.order_of), f"got {own.order_of!r}")
        assert own.table is not None
        assert own.order_of is not None
        assert copied.order_of is not None
        return Bound(asked[0], own.table, own.order_of, copied.order_of, schedule)

    def bound_unless_refused(self, **changes: Any) -> Bound | None:
        """Bind it to another table, which it may refuse."""
        try:
            return self.bound(**changes)
        except InputError:
            return None
