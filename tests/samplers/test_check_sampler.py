"""Does `check_sampler` pass what keeps the rules, and name the rule that something breaks?

The samplers of this project pass it, over more columns than it makes itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest

from annbatch import InputError
from annbatch.samplers import ClassBalanced, Key, Order, Purpose, Sequential, Shuffled, Table, shuffle
from annbatch.testing import check_sampler
from orders import CATEGORIES, NAMES, codes_of, sampler_of

N = 200
OBS = pd.DataFrame({name: pd.Categorical.from_codes(codes_of(name, N), CATEGORIES[name]) for name in CATEGORIES})


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_keeps_the_rules(name: str) -> None:
    check_sampler(sampler_of(name, N, 6), OBS, batch_size=6, shuffles=name != "sequential")


def test_a_sampler_that_refuses_the_data_says_so_itself() -> None:
    with pytest.raises(InputError, match="nothing"):
        check_sampler(ClassBalanced("nothing"))


# --- broken ones ------------------------------------------------------------------------------------------------------


@dataclass
class Rows(Order):
    """All rows, shuffled by a key that windows do not change."""

    rows: np.ndarray
    batch_items: int

    def __len__(self) -> int:
        return len(self.rows)

    def items(self, start: int, stop: int, key: Key) -> np.ndarray:
        return self.rows[start:stop].copy()


class Own:
    """A sampler that keeps the rules: every row once, in random order. Each case below breaks one thing of it."""

    columns: Any = ()

    def rows(self, table: Table, epoch: int) -> np.ndarray:
        rows = np.arange(table.n_rows)
        shuffle(rows, Key(table.seed, epoch, Purpose.BLOCKS))
        return rows

    def order(self, table: Table, epoch: int) -> Order:
        return Rows(self.rows(table, epoch), table.batch_size)

    def bind(self, table: Table) -> Any:
        return lambda epoch: self.order(table, epoch)

    def describe(self) -> Any:
        return {"sampler": "Own"}


class Unnamed(Own):
    describe = None


class OneColumn(Own):
    columns = "cell_type"


class Tuples(Own):
    def describe(self) -> Any:
        return {"by": ("cell_type", "donor")}


class NoFunction(Own):
    def bind(self, table: Table) -> Any:
        return self.order(table, 0)


class NoOrder(Own):
    def order(self, table: Table, epoch: int) -> Any:
        return self.rows(table, epoch)


class Unseeded(Own):
    def rows(self, table: Table, epoch: int) -> np.ndarray:
        return np.random.default_rng().permutation(table.n_rows)


class Counting(Own):
    """What it gives depends on how often it was asked."""

    def __init__(self) -> None:
        self.n_asked = 0

    def rows(self, table: Table, epoch: int) -> np.ndarray:
        self.n_asked += 1
        return super().rows(table, self.n_asked)


class Stored(Own):
    """Takes the rows of the stores for those of the table."""

    def rows(self, table: Table, epoch: int) -> np.ndarray:
        rows = np.arange(table.n_stored)
        shuffle(rows, Key(table.seed, epoch, Purpose.BLOCKS))
        return rows


class NoEpoch(Own):
    def rows(self, table: Table, epoch: int) -> np.ndarray:
        return super().rows(table, 0)


class NoSeed(Own):
    def rows(self, table: Table, epoch: int) -> np.ndarray:
        rows = np.arange(table.n_rows)
        shuffle(rows, Key(7, epoch, Purpose.BLOCKS))
        return rows


class Locked(Own):
    def __init__(self) -> None:
        self.lock = threading.Lock()


class Wrapped(Own):
    """Gives an order whose items are changed by a function of the order, start, stop and key."""

    def __init__(self, items: Callable[..., Any], batch_items: int | None = None) -> None:
        self.changed, self.batch_items = items, batch_items

    def order(self, table: Table, epoch: int) -> Order:
        order = Rows(self.rows(table, epoch), self.batch_items or table.batch_size)
        order.items = lambda *asked: self.changed(order, *asked)  # type: ignore[method-assign]
        return order


def batches_of_rows(order: Rows, start: int, stop: int, key: Key) -> np.ndarray:
    """Items are batches of two rows."""
    return np.stack([order.rows[start:stop], order.rows[start:stop]], axis=1)


BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "no describe": (Unnamed, "must have columns, bind and describe: got Unnamed"),
    "columns are a string": (OneColumn, "columns must be a sequence of names: got the string 'cell_type'"),
    "a tuple in describe": (Tuples, r"same after JSON.*\('cell_type', 'donor'\)\} becomes .*\['cell_type', 'donor'\]"),
    "bind gives no function": (NoFunction, "bind.* must give a function.*: got Rows"),
    "no order": (NoOrder, "must give an annbatch.samplers.Order for each epoch: got array"),
    "random numbers of its own": (Unseeded, "same items must come .* from a copy"),
    "counts": (Counting, "same items must come"),
    "rows of the stores": (Stored, r"must be in range\(table.n_rows\).*of some rows have the row \[\d+\]"),
    "the same every epoch": (NoEpoch, "epochs must differ.*epochs 0 and 1 both begin with"),
    "the same for every seed": (NoSeed, "seeds must give different orders.*seeds 0 and 1"),
    "too few items": (
        lambda: Wrapped(lambda order, start, stop, key: order.rows[start : stop - 1]),
        r"stop - start items.*items\(0, 24\) of epoch 0 have the shape \(23,\)",
    ),
    "floats": (lambda: Wrapped(lambda order, start, stop, key: order.rows[start:stop] / 1), "epoch 0 are float64"),
    "a list": (lambda: Wrapped(lambda order, start, stop, key: [*order.rows[start:stop]]), "are of the type list"),
    "ignores where it starts": (
        lambda: Wrapped(lambda order, start, stop, key: order.rows[: stop - start].copy()),
        "must not depend on how it is cut into windows.*row [0-9]+ comes [0-9]+ times",
    ),
    "depends on the window": (
        lambda: Wrapped(lambda order, start, stop, key: (order.rows[start:stop] + start) % len(order.rows)),
        "must not depend on how it is cut into windows",
    ),
    "batches that are too large": (
        lambda: Wrapped(batches_of_rows),
        "batch_items items must have at most batch_size rows.*batch_items=8 items of up to 2 rows",
    ),
    "batches that are too small": (
        lambda: Wrapped(batches_of_rows, batch_items=1),
        r"with drop_last=True every batch must have batch_size rows.*sizes \[2\]",
    ),
    "items without rows": (
        lambda: Wrapped(lambda order, start, stop, key: np.full((stop - start, 1), -1)),
        "an item must have a row.*have an item without a row",
    ),
    "raises": (lambda: Wrapped(lambda *_: 1 / 0), "ZeroDivisionError was raised"),
    "cannot be copied": (Locked, "must be one that copy.deepcopy copies.*TypeError was raised"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_sampler_is_named(case: str) -> None:
    make, message = BROKEN[case]
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        check_sampler(make())


def test_what_the_broken_ones_are_made_of_keeps_the_rules() -> None:
    check_sampler(Own())
    check_sampler(Shuffled(), chunk_size=1)
    with pytest.raises(AssertionError, match="epochs must differ"):
        check_sampler(Sequential())
