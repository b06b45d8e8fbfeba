"""Which samplers are there, over which tables? What tests of the order have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from annbatch.order.consumers import Order
from annbatch.order.permutation import Key
from annbatch.order.row_selection import Runs
from annbatch.order.schedule import Schedule, Settings
from annbatch.order.turns import Turns
from annbatch.samplers import (
    ClassBalanced,
    Classes,
    Grouped,
    MatchedPairs,
    Sampler,
    Sequential,
    Shuffled,
    Stratified,
    Weighted,
)

CATEGORIES = {"kind": ["a", "b", "c", "rare"], "plate": ["p0", "p1"]}


def codes_of(name: str, n: int) -> np.ndarray:
    """Classes that depend on the row alone: of `kind` a quarter is missing or rare, of `plate` nothing is missing."""
    rows = np.arange(n)
    if name == "plate":
        return (rows // 3 % 2).astype(np.int8)
    kinds = np.array([0, 1, 2, 0, 1, 2, 1, 1, 3, -1], np.int8)
    return kinds[rows % 10]


def classes_of(names: Any, n: int) -> dict[str, Classes]:
    return {name: Classes(name, codes_of(name, n), pd.Index(CATEGORIES[name])) for name in names}


def sampler_of(name: str, n: int, batch_size: int) -> Sampler:
    weights = np.arange(n) % 7 / 3.0
    return {
        "shuffled": lambda: Shuffled(),
        "sequential": lambda: Sequential(),
        "weighted": lambda: Weighted(weights, n_rows=2 * n),
        "unreplaced": lambda: Weighted(weights, n_rows=max(1, n // 2), replace=False),
        "balanced": lambda: ClassBalanced("kind"),
        "stratified": lambda: Stratified("kind", {"rare": 1, "b": batch_size - 1} if batch_size > 1 else {"b": 1}),
        "grouped": lambda: Grouped("kind"),
        "drawn groups": lambda: Grouped("kind", {"b": 1.0, "a": 2.0, "rare": 0.5}),
        "groups once": lambda: Grouped("kind", {"b": 1.0, "a": 2.0}, n_rows=max(2 * batch_size, n // 4), replace=False),
        "pairs": lambda: MatchedPairs("kind", "b", ["plate"]),
    }[name]()


NAMES = (
    *("shuffled", "sequential", "weighted", "unreplaced", "balanced"),
    *("stratified", "grouped", "drawn groups", "groups once", "pairs"),
)


@st.composite
def schedules(draw, names=NAMES) -> Schedule:
    """Random settings; tables are large enough for every class to have rows, with and without a subset."""
    name = draw(st.sampled_from(names))
    store_rows = (draw(st.integers(30, 80)), *draw(st.lists(st.integers(0, 30), max_size=3)))
    n = sum(store_rows)
    batch_size = draw(st.integers(1, 12)) if name != "pairs" else 2 * draw(st.integers(1, 6))
    if name == "groups once":
        # Each of its classes has a full batch.
        batch_size = min(batch_size, 4)
    numbers = st.integers(2, batch_size - 1) if batch_size > 2 else st.nothing()
    drop_last = draw(st.booleans() | numbers)
    if name == "grouped" and batch_size > 3:
        # Its classes may be smaller than a batch.
        drop_last = 2 if drop_last else False
    subset = draw(st.booleans())
    rows = None if not subset else Runs.of(np.flatnonzero(np.arange(n) % 11 != 4), n)
    sampler = sampler_of(name, n, batch_size)
    return Schedule(
        Settings(
            sampler,
            batch_size,
            draw(st.integers(1, 12)),
            draw(st.integers(1, 5)),
            draw(st.integers(0, 2**64 - 1)),
            drop_last,
        ),
        store_rows,
        classes_of(sampler.columns, n),
        rows,
        {},
    )


def batches_of_turns(turns: Turns, index: int) -> list[list[int]]:
    """The batches that are left for one worker of a consumer."""
    found: list[list[int]] = []
    for number in range(turns.n_windows):
        window = turns.window(number, index)
        found += [window.rows[a:b].tolist() for a, b in zip(window.cuts[:-1], window.cuts[1:], strict=True)]
    return found


class Numbers(Order):
    """Items 0, 1, … as they are; with ``widths`` item i has so many rows: 10 i, 10 i + 1 and so on."""

    def __init__(
        self,
        n: int,
        *,
        batch_items: int = 1,
        widths: Sequence[int] = (),
        endless: bool = False,
        divisible: bool = False,
    ) -> None:
        self.n, self.widths = n, widths
        self.batch_items, self.endless, self.divisible = batch_items, endless, divisible
        self.asked: list[tuple[int, int, Key]] = []
        """What was asked for, in order."""

    def __len__(self) -> int:
        return self.n

    def items(self, start: int, stop: int, key: Key) -> np.ndarray:
        self.asked.append((start, stop, key))
        numbers = np.arange(start, stop)
        if not self.widths:
            return numbers
        columns = np.arange(max(self.widths[start:stop], default=1))
        return np.where(columns < np.take(self.widths, numbers)[:, None], 10 * numbers[:, None] + columns, -1)
