"""How are columns of obs, and the names of cells, read for all rows or some, without their counts?

1. `open_columns` and `open_names` open what is asked for in every store.
2. `read_columns` and `read_names` read it a slice of rows at a time.
3. `read_obs` makes a table of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annbatch.errors import StoreError
from annbatch.order.row_selection import Runs
from annbatch.plan.window import Ints, Reading, WindowPlan, plan_readings
from annbatch.remote.request_pool import Requests
from annbatch.stores.array_opening import open_each
from annbatch.stores.cell_names import CellNames, Names, names_in_order
from annbatch.stores.label_columns import Column, StoreColumn, held
from annbatch.stores.obs_access import Obs, check_asked, columns_there
from annbatch.stores.united_columns import Merged, differences, merge_columns
from annbatch.warn import warn

ROWS_AT_ONCE = 1 << 20


def open_columns(
    tables: Sequence[Obs], store_rows: Sequence[int], names: Sequence[str] | None, asked_by: str
) -> Merged:
    """Open columns of all stores.

    Parameters
    ----------
    tables
        The obs of each store.
    store_rows
        Rows of each store.
    names
        The columns, each in at least one store; None means all.
    asked_by
        What messages call that in which they are named.

    Raises
    ------
    InputError
        If a column is not there, or one that is named is of different kinds.
    StoreError
        If one is of another length than its store.
    """
    check_asked(tables, names or (), asked_by)
    is_remote = any(table.is_remote for table in tables)
    opened = open_each(lambda table: columns_there(table, names), tables, is_remote=is_remote)
    for n_obs, columns in zip(store_rows, opened, strict=True):
        for column in columns.values():
            check_length(column, n_obs)
    of_stores = zip((table.store for table in tables), store_rows, opened, strict=True)
    return merge_columns(list(of_stores), asked=names or ())


def check_length(column: StoreColumn, n_obs: int) -> None:
    """Raise StoreError if a column does not have a value for each row of its store."""
    for part in (column.values, column.mask):
        if part is not None and len(part) != n_obs:
            raise StoreError(f"{column.name}: must have n_obs = {n_obs} values, got {len(part)}")


def open_names(tables: Sequence[Obs], store_rows: Sequence[int]) -> tuple[CellNames, ...]:
    """Open the names of the cells of all stores.

    Raises
    ------
    InputError
        If a store has none.
    StoreError
        If it has more or fewer of them than rows.
    """
    opened = open_each(lambda table: table.names(), tables, is_remote=any(table.is_remote for table in tables))
    for table, n_obs, names in zip(tables, store_rows, opened, strict=True):
        if len(names) != n_obs:
            raise StoreError(f"{table.store} obs: must have n_obs = {n_obs} names, got {len(names)}")
    return tuple(opened)


def read_obs(
    tables: Sequence[Obs],
    store_rows: Sequence[int],
    columns: Sequence[str] | None,
    rows: Runs | None = None,
    *,
    in_order: bool = False,
    shown: Callable[[Column], Column] | None = None,
) -> pd.DataFrame:
    """Read columns of obs, and the names of the cells.

    Parameters
    ----------
    tables
        The obs of each store.
    store_rows
        Rows of each store.
    columns
        The columns; None means all that are of one kind in all stores, with a warning that names the others.
    rows
        Which rows; None means all.
    in_order
        Whether they come in the order in which they were named.
    shown
        Gives a column as it is to be shown.

    Returns
    -------
    DataFrame
        (n_rows, n_columns), indexed by the names.

    Raises
    ------
    InputError, StoreError
        As `open_columns` and `open_names` do.
    """
    merged = open_columns(tables, store_rows, columns, "columns")
    for text in differences(merged):
        warn(text)
    names = open_names(tables, store_rows)
    pieces = partial(_pieces, store_rows, rows, in_order)
    series = {}
    for column in merged.columns:
        column = column if shown is None else shown(column)
        read = [piece for (piece,) in read_columns([column], pieces())]
        values: NDArray[Any] = np.concatenate([np.ma.getdata(piece) for piece in read])
        if _can_miss(column):
            values = np.ma.MaskedArray(values, np.concatenate([np.ma.getmaskarray(piece) for piece in read]))
        series[column.name] = column.series(values)
    index = pd.Index(np.concatenate(list(read_names(names, pieces()))))
    labels = {one.label for one in names}
    frame = pd.DataFrame(series, index=pd.RangeIndex(len(index)))
    frame.index = index.rename(labels.pop() if len(labels) == 1 else None)
    return frame


def all_rows(store_rows: Sequence[int]) -> Iterator[WindowPlan]:
    """Plan to read all rows, a slice at a time."""
    return _pieces(store_rows, None, False)


def read_columns(columns: Sequence[Column], plans: Iterator[WindowPlan]) -> Iterator[list[NDArray[Any]]]:
    """Read columns: for each slice, each column as `Column.series` takes it.

    Raises
    ------
    StoreError
        If a code is none of its column's categories.
    """
    requests = Requests()
    for plan in plans:
        waiting = [[_begin(column, reading, requests) for reading in plan.readings] for column in columns]
        yield [_gathered(column, plan, each) for column, each in zip(columns, waiting, strict=True)]


def read_names(names: Sequence[CellNames], plans: Iterator[WindowPlan]) -> Iterator[Names]:
    """Read names: for each slice, (n_rows,) str objects."""
    requests = Requests()
    for plan in plans:
        yield names_in_order(plan, [names[one.store].begin(one.ranges, requests) for one in plan.readings])


def _pieces(store_rows: Sequence[int], rows: Runs | None, in_order: bool) -> Iterator[WindowPlan]:
    first_rows = np.cumsum([0, *store_rows], dtype=np.int64)
    n_rows = int(first_rows[-1]) if rows is None else len(rows)
    for start in range(0, max(1, n_rows), ROWS_AT_ONCE):
        numbers = np.arange(start, min(start + ROWS_AT_ONCE, n_rows))
        if rows is not None:
            numbers = rows.find(rows.order[numbers] if in_order and rows.order is not None else numbers)
        yield plan_readings(numbers, np.array([0, len(numbers)]), first_rows)


def _begin(column: Column, reading: Reading, requests: Requests) -> list[Any]:
    part = column.parts[reading.store]
    return [None if one is None else one.begin(reading.ranges, 0, requests) for one in (part.values, part.mask)]


def _can_miss(column: Column) -> bool:
    return column.categories is None and any(part.mask is not None for part in column.parts)


def _gathered(column: Column, plan: WindowPlan, waiting: Sequence[Any]) -> NDArray[Any]:
    values = np.empty(len(plan.order), column.gathered_dtype)
    missing = np.zeros(len(plan.order), bool) if _can_miss(column) else None
    for reading, (wait_for_values, wait_for_mask) in zip(plan.readings, waiting, strict=True):
        part, places = column.parts[reading.store], plan.order[reading.first : reading.stop]
        found = wait_for_values()
        own = found.values[found.places]
        is_missing = None
        if wait_for_mask is not None:
            mask = wait_for_mask()
            if mask.values.dtype != np.bool_:
                raise StoreError(f"{part.name}: its mask must be boolean, got {mask.values.dtype}")
            is_missing = mask.values[mask.places]
        if part.categories is not None:
            values[places] = _codes(own, is_missing, part, column.recodes[reading.store])
            continue
        values[places] = held(own, values.dtype, part.name)
        if missing is not None and is_missing is not None:
            missing[places] = is_missing
    return values if missing is None else np.ma.MaskedArray(values, missing)


def _codes(
    stored: NDArray[Any], is_missing: NDArray[np.bool_] | None, part: StoreColumn, recode: NDArray[np.int32] | None
) -> NDArray[Any]:
    if stored.dtype.kind not in "biu":
        raise StoreError(f"{part.name}: codes must be integers, got {stored.dtype}")
    assert part.categories is not None
    codes: Ints = stored.astype(np.int64)
    if is_missing is not None:
        codes[is_missing] = -1
    strange = (codes < -1) | (codes >= len(part.categories))
    if strange.any():
        raise StoreError(f"{part.name}: codes must lie in [-1, {len(part.categories)}), got {codes[strange][0]}")
    return codes if recode is None else recode[codes]
