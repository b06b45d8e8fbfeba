"""Does a sampler keep what the loader relies on?

1. It is bound to small tables: all rows of two stores, some of the rows, and all rows with ``drop_last``.
2. Its orders are asked for items directly, in several ways that must agree.
3. The loader's own plan deals them to one, two and three consumers, and goes on from positions within an epoch.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from annbatch.order.consumers import Order, Partition
from annbatch.order.permutation import Ints, Key, Purpose
from annbatch.order.row_table import Sampler
from annbatch.order.schedule import Settings
from annbatch.testing.cells import make_cells
from annbatch.testing.epochs import epoch_batches, row_counts
from annbatch.testing.rules import expect, rule
from annbatch.testing.sampler_cases import Bound, Cases

EPOCHS = (0, 1)
COUNTS = (1, 2, 3)


def check_sampler(
    sampler: Sampler,
    obs: pd.DataFrame | None = None,
    *,
    batch_size: int = 8,
    chunk_size: int = 4,
    preload_nchunks: int = 6,
    shuffles: bool = True,
) -> None:
    """Check that a sampler keeps the rules that a loader relies on.

    These are the rules:

    - it has ``columns``, ``bind`` and ``describe``, and what ``describe`` returns survives JSON;
    - its items are row numbers of the table that it is bound to, also if ``rows=`` selects some of the rows;
    - an epoch is always the same, also from a copy of the sampler, and however it is cut into windows;
    - different epochs, and different seeds, give different orders, unless ``shuffles`` is False;
    - batches are not larger than ``batch_size``, and not smaller with ``drop_last=True``;
    - any number of consumers together get the rows that one alone gets, in equally many batches;
    - a run that stops resumes with exactly what is left, on the same number of consumers or another.

    A sampler may refuse ``rows=`` and ``drop_last=True`` with an `annbatch.errors.InputError`. These cases are then
    left out.

    Parameters
    ----------
    sampler
        The sampler.
    obs
        obs of the cells, with the columns that the sampler needs. The first three eighths of its rows are one store,
        the rest are another. None means the obs of `make_cells`, 120 rows.
    batch_size, chunk_size, preload_nchunks
        As for `annbatch.Loader`. The data should make several windows of several batches.
    shuffles
        Whether epochs and seeds give different batches.

    Raises
    ------
    AssertionError
        If a rule is broken. The message names the rule and the values.
    annbatch.errors.InputError
        If the sampler refuses these data altogether.

    Examples
    --------
    >>> from annbatch.samplers import ClassBalanced, Sequential
    >>> check_sampler(ClassBalanced("cell_type"))
    >>> check_sampler(Sequential(), shuffles=False)
    """
    _check_members(sampler)
    asked = Settings(sampler, batch_size, chunk_size, preload_nchunks, seed=0, drop_last=False)
    cases = Cases.of(asked, make_cells().obs if obs is None else obs)
    whole = cases.bound(drop_last=False)
    some = np.flatnonzero(np.arange(cases.n_rows) % 11 != 4)
    others = [cases.bound_unless_refused(rows=some), cases.bound_unless_refused(drop_last=True)]
    for case in [whole, *(one for one in others if one is not None)]:
        for epoch in EPOCHS:
            _check_order(case, epoch)
        _check_consumers(case)
        _check_resuming(case)
    if shuffles:
        _check_shuffling(cases, whole)


def _check_members(sampler: Any) -> None:
    with rule("a sampler must have columns, bind and describe"):
        expect(isinstance(sampler, Sampler), f"got {type(sampler).__name__}")
    with rule("columns must be a sequence of names"):
        expect(not isinstance(sampler.columns, str), f"got the string {sampler.columns!r}")
        expect(all(isinstance(name, str) for name in sampler.columns), f"got {sampler.columns!r}")
    with rule("describe() must give a dict that is the same after JSON, such as a list instead of a tuple"):
        described = sampler.describe()
        expect(isinstance(described, dict), f"got {described!r}")
        again = json.loads(json.dumps(described))
        expect(again == described, f"{described!r} becomes {again!r}")


def _check_order(case: Bound, epoch: int) -> None:
    """Ask for the items of an epoch, and for the same ones in other ways."""
    name = f"epoch {epoch}{case.words}"
    with rule("what bind gives must give an annbatch.samplers.Order for each epoch"):
        order = case.order_of(epoch)
        expect(isinstance(order, Order), f"got {order!r} for {name}")
        n, step = len(order), case.window_items
    cuts = [*range(0, n, step), n]
    windows = [_items(case, order, start, stop, name) for start, stop in zip(cuts[:-1], cuts[1:], strict=True)]
    with rule(
        "the same items must come when an epoch is asked for again, from a copy of the sampler, last window first"
    ):
        again = case.order_of_copy(epoch)
        expect(len(again) == n, f"{name} has {n} items, and {len(again)} from a copy")
        for number in reversed(range(len(windows))):
            found = _items(case, again, cuts[number], cuts[number + 1], name)
            expect(
                np.array_equal(found, windows[number]),
                f"items [{cuts[number]}, {cuts[number + 1]}) of {name} are {_short(windows[number])} and then "
                f"{_short(found)}",
            )
    with rule("the rows of an epoch must not depend on how it is cut into windows"):
        expected = Counter(row for window in windows for row in window.ravel().tolist() if row >= 0)
        other = [*range(0, n, max(1, step * 2 // 3)), n]
        order = case.order_of(epoch)
        pieces = (_items(case, order, start, stop, name) for start, stop in zip(other[:-1], other[1:], strict=True))
        found_rows = Counter(row for piece in pieces for row in piece.ravel().tolist() if row >= 0)
        expect(found_rows == expected, f"{name}: {_difference(found_rows, expected)}")


def _items(case: Bound, order: Order, start: int, stop: int, name: str) -> Ints:
    """Ask for items, and check what comes."""
    asked = f"items({start}, {stop}) of {name}"
    with rule("items(start, stop, key) must give stop - start items: row numbers, or rows of them"):
        items = order.items(start, stop, Key(case.settings.seed, 0, Purpose.MIX, start))
        expect(isinstance(items, np.ndarray), f"{asked} are of the type {type(items).__name__}")
        expect(items.dtype.kind == "i", f"{asked} are {items.dtype}")
        expect(items.ndim in (1, 2) and len(items) == stop - start, f"{asked} have the shape {items.shape}")
    with rule("an item must have a row, and every row must be in range(table.n_rows); -1 fills up an item"):
        n = case.table.n_rows
        bad = items[(items < (-1 if items.ndim == 2 else 0)) | (items >= n)]
        expect(not bad.size, f"{asked} have the row {bad[:1].tolist()}, where the table has {n}")
        expect(items.ndim == 1 or bool((items >= 0).any(axis=1).all()), f"{asked} have an item without a row")
    with rule("batch_items items must have at most batch_size rows"):
        width = 1 if items.ndim == 1 else items.shape[1]
        size = case.settings.batch_size
        expect(
            order.batch_items >= 1 and width * order.batch_items <= size,
            f"{name} has batch_items={order.batch_items} items of up to {width} rows, and batch_size is {size}",
        )
    return items


def _check_consumers(case: Bound) -> None:
    """Deal an epoch to several consumers."""
    for epoch in EPOCHS:
        order = case.order_of(epoch)
        whole = Counter(order.items(0, len(order), Key(0, epoch, Purpose.MIX)).ravel().tolist())
        alone = row_counts(epoch_batches(case.schedule, epoch))
        for count in COUNTS:
            name = f"epoch {epoch}{case.words}, {count} consumers"
            with rule("all consumers must get as many batches as len() says"):
                consumers = epoch_batches(case.schedule, epoch, count)
                numbers = [len(batches) for batches in consumers]
                expected = case.schedule.n_batches(Partition(0, count))
                expect(set(numbers) == {expected}, f"{name}: {numbers} instead of {expected} each")
            found = row_counts(consumers)
            with rule("consumers together must get the rows that one alone gets"):
                if case.settings.drop_last:
                    extra = [] if order.endless else sorted(found - whole)
                    expect(not extra, f"{name}: row {extra[:1]} comes more often than in the epoch")
                else:
                    lacking = alone - found if order.endless else found != alone
                    expect(not lacking, f"{name}: {_difference(found, alone)}")
            sizes = [len(batch) for batches in consumers for batch in batches]
            if case.settings.drop_last:
                with rule("with drop_last=True every batch must have batch_size rows"):
                    expect(set(sizes) <= {case.settings.batch_size}, f"{name}: sizes {sorted(set(sizes))}")
            elif count == 1:
                with rule("one consumer must get no empty batch"):
                    expect(0 not in sizes, f"{name}: batch {sizes.index(0) if 0 in sizes else ''} is empty")


def _check_resuming(case: Bound) -> None:
    """Go on from within an epoch, on as many consumers and on others."""
    epoch, count = 1, 2
    whole = epoch_batches(case.schedule, epoch, count)
    alone = row_counts(epoch_batches(case.schedule, epoch))
    n_batches = len(whole[0])
    for n_done in sorted({min(1, n_batches), n_batches // 2, max(0, n_batches - 1)}):
        name = f"epoch {epoch}{case.words} behind {n_done} of {n_batches} batches"
        with rule("a run that stopped must go on with the batches that were left"):
            rest = epoch_batches(case.schedule, epoch, count, [(count, n_done)])
            expect(rest == [batches[n_done:] for batches in whole], f"{name}: {_short(rest)}")
        with rule("other consumers must get exactly the rows that nobody has had"):
            moved = epoch_batches(case.schedule, epoch, 3, [(count, n_done)])
            found = row_counts([batches[:n_done] for batches in whole]) + row_counts(moved)
            order = case.order_of(epoch)
            # With drop_last, or where rounds are filled up, the last round depends on the number of consumers.
            if not case.settings.drop_last:
                lacking = alone - found if order.endless else found != alone
                expect(not lacking, f"{name}: {_difference(found, alone)}")


def _check_shuffling(cases: Cases, whole: Bound) -> None:
    first = epoch_batches(whole.schedule, 0)[0]
    with rule("epochs must differ (shuffles=False allows the same order)"):
        expect(epoch_batches(whole.schedule, 1)[0] != first, f"epochs 0 and 1 both begin with {_short(first)}")
    with rule("seeds must give different orders (shuffles=False allows the same order)"):
        other = epoch_batches(cases.bound(seed=1).schedule, 0)[0]
        expect(other != first, f"seeds 0 and 1 both begin with {_short(first)}")


def _short(values: Any) -> str:
    """Show the beginning of an array or a list."""
    text = str(np.asarray(values).tolist() if isinstance(values, np.ndarray) else values)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _difference(found: Counter[int], expected: Counter[int]) -> str:
    """Say which row comes how often instead of how often; nothing if there is no such row."""
    rows = [row for row in sorted({*found, *expected}) if found[row] != expected[row]]
    if not rows:
        return ""
    row = rows[0]
    return f"row {row} comes {found[row]} times instead of {expected[row]}"
