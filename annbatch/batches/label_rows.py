"""How do labels travel with the rows at a cost that does not show?

1. `LabelReader` knows where each column stands in the memory of a batch: column after column, the row numbers among
   them, the widest first. A kept batch pins nothing else.
2. `LabelReader.read` has the columns of a window's stores in memory, and gathers them all in one call.
3. `Codes` and `LabelRows.frame` make of them what users see, column by column, when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annbatch.batches.label_kernels import KINDS, N_FIELDS, gather
from annbatch.errors import StoreError
from annbatch.plan.window import Found, Ints, Reading, WindowPlan, address
from annbatch.remote.request_pool import Requests
from annbatch.stores.label_columns import Column, StoreColumn, held
from annbatch.summary import Summary

_BOOL, _INDEX = np.dtype("?"), np.dtype("i8")


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a column stands in the memory of a batch, in bytes for each of its rows."""

    column: Column
    """The column without its stores: a batch that goes to another process takes none along."""
    dtype: np.dtype[Any]
    """Type of the codes or values."""
    offset: int
    """Where they stand."""
    code_dtype: np.dtype[Any]
    """Type in which ``codes`` give them."""
    mask: int | None
    """Where it stands what is missing; None if nothing can be, or NaN or -1 says it."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelRows:
    """The row numbers and label columns of a batch."""

    places: Mapping[str, Place]
    """Where each column stands."""
    index_at: int
    """Where the row numbers stand."""
    n_rows: int
    memory: NDArray[np.uint8]
    """What holds them all."""

    @property
    def index(self) -> Ints:
        """(n_rows,) the row numbers."""
        return self._values(self.index_at, _INDEX)

    def codes(self, name: str) -> NDArray[Any]:
        """Give a column as numbers, as `Column.numbers` does."""
        column, values = self.gathered(name)
        return column.numbers(values, self.places[name].code_dtype)

    def gathered(self, name: str) -> tuple[Column, NDArray[Any]]:
        """Give a column and its rows in the form that `Column.series` takes."""
        place = self.places[name]
        values = self._values(place.offset, place.dtype)
        if place.mask is not None:
            values = np.ma.MaskedArray(values, self._values(place.mask, _BOOL))
        return place.column, values

    def frame(self, index: NDArray[Any]) -> pd.DataFrame:
        """Build the DataFrame of the rows, indexed by their global numbers or their names."""
        series = {}
        for name in self.places:
            column, values = self.gathered(name)
            series[name] = column.series(values)
        frame = pd.DataFrame(series, index=pd.RangeIndex(len(index)))
        frame.index = pd.Index(index)
        return frame

    def _values(self, at: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        return self.memory[at * self.n_rows : (at + dtype.itemsize) * self.n_rows].view(dtype)


class Codes(Summary, Mapping[str, NDArray[Any]]):
    """What a batch's labels are as numbers (`Column.code_dtype`): padding rows are missing, or False."""

    __slots__ = ("_n_padding", "_rows")

    def __init__(self, rows: LabelRows, n_padding: int) -> None:
        self._rows = rows
        self._n_padding = n_padding

    def __getitem__(self, name: str) -> NDArray[Any]:
        return padded(self._rows.codes(name), self._n_padding)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows.places)

    def __len__(self) -> int:
        return len(self._rows.places)

    def _facts(self) -> dict[str, str]:
        # Not the values: one that its type does not hold would be an error.
        facts, n_rows = {}, self._rows.n_rows + self._n_padding
        for name, place in self._rows.places.items():
            categories = place.column.categories
            more = "" if categories is None else f" into {len(categories):,} categories"
            facts[name] = f"{place.code_dtype} ({n_rows:,},){more}"
        return facts


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """One column of one store, on its way into memory."""

    values: Callable[[], Found]
    """Waits for the values."""
    mask: Callable[[], Found] | None
    """Waits for what says which of them are missing."""


class LabelReader:
    """Reads label columns over all stores."""

    def __init__(self, columns: Sequence[Column]) -> None:
        types = [column.gathered_dtype for column in columns]
        wanted: list[tuple[np.dtype[Any], str, int]] = [(_INDEX, "index", -1)]
        for i, (column, dtype) in enumerate(zip(columns, types, strict=True)):
            wanted.append((dtype, "values", i))
            if column.categories is None and any(part.mask is not None for part in column.parts):
                wanted.append((_BOOL, "mask", i))
        at: dict[tuple[str, int], int] = {}
        self._row_bytes = 0
        # The widest first, so that each stands where its type may.
        for dtype, what, i in sorted(wanted, key=lambda one: -one[0].itemsize):
            at[what, i] = self._row_bytes
            self._row_bytes += dtype.itemsize
        self._index_at = at["index", -1]
        self._columns = {column.name: column for column in columns}
        self._places = {
            column.name: Place(
                replace(column, parts=(), recodes=()),
                types[i],
                at["values", i],
                column.code_dtype,
                at.get(("mask", i)),
            )
            for i, column in enumerate(columns)
        }

    def begin(self, plan: WindowPlan, requests: Requests) -> list[Waiting]:
        """Begin to have the columns of a window's stores in memory: for each column, for each store."""
        return [
            Waiting(
                part.values.begin(reading.ranges, 0, requests),
                None if part.mask is None else part.mask.begin(reading.ranges, 0, requests),
            )
            for name in self._places
            for reading in plan.readings
            for part in [self._columns[name].parts[reading.store]]
        ]

    def read(self, plan: WindowPlan, rows: Ints, waiting: Sequence[Waiting]) -> list[LabelRows]:
        """Give the row numbers and labels of each batch of a window.

        Parameters
        ----------
        plan
            The window.
        rows
            (n_rows,) its row numbers.
        waiting
            What `begin` gave.

        Raises
        ------
        StoreError
            If a column is shorter than its store, or a code is none of its categories.
        """
        batches = [
            LabelRows(self._places, self._index_at, n_rows, np.empty(n_rows * self._row_bytes, np.uint8))
            for n_rows in np.diff(plan.cuts).tolist()
        ]
        parts: list[StoreColumn] = []
        jobs: list[tuple[int, ...]] = []
        in_use: list[Found] = []
        each = iter(waiting)
        for name, place in self._places.items():
            for reading in plan.readings:
                parts.append(self._columns[name].parts[reading.store])
                jobs.append(_job(self._columns[name], place, reading, next(each), in_use))
        bases = np.array([address(batch.memory) for batch in batches], np.int64)
        table = np.array(jobs, np.int64).reshape(-1, N_FIELDS)
        failed, is_short, code = gather(plan.order, plan.cuts, bases, rows, self._index_at, table)
        if failed >= 0:
            part = parts[failed]
            if is_short:
                raise StoreError(f"{part.name}: must have a value for each row of its store")
            n_categories = len(part.categories) if part.categories is not None else 0
            raise StoreError(f"{part.name}: codes must lie in [-1, {n_categories}), got {code}")
        return batches


def _job(column: Column, place: Place, reading: Reading, waiting: Waiting, in_use: list[Found]) -> tuple[int, ...]:
    """Have one column of one store in memory, held by ``in_use``, and give the row of `gather`'s table."""
    part = column.parts[reading.store]
    values = waiting.values()
    recode = column.recodes[reading.store]
    is_coded = part.categories is not None
    if is_coded and values.values.dtype.kind not in "biu":
        raise StoreError(f"{part.name}: codes must be integers, got {values.values.dtype}")
    if values.values.dtype != place.dtype and not is_coded:
        # Stores of different types: NumPy promotes, and the rows lie in order then.
        promoted = held(values.values[values.places], place.dtype, part.name)
        values = Found(promoted, np.arange(len(promoted)))
    mask = None if waiting.mask is None else waiting.mask()
    if mask is not None and mask.values.dtype != _BOOL:
        raise StoreError(f"{part.name}: its mask must be boolean, got {mask.values.dtype}")
    in_use += [values] if mask is None else [values, mask]
    dtype = values.values.dtype
    return (
        reading.first,
        reading.stop,
        address(values.values),
        len(values.values),
        KINDS.index(dtype) if dtype in KINDS else -1,
        address(values.places),
        0 if mask is None else address(mask.values),
        0 if mask is None else len(mask.values),
        0 if mask is None else address(mask.places),
        len(part.categories) if part.categories is not None else -1,
        0 if recode is None else address(recode),
        place.offset,
        place.dtype.itemsize,
        -1 if place.mask is None else place.mask,
    )


def padded(values: NDArray[Any], n_padding: int) -> NDArray[Any]:
    """Append entries for padding rows: -1, NaN where the values are floating, False where they are booleans."""
    if not n_padding:
        return values
    fill = {"f": np.nan, "b": False}.get(values.dtype.kind, -1)
    return np.append(values, np.full(n_padding, fill, values.dtype))
