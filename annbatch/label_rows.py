"""How do labels travel with the rows at a cost that does not show?

1. `LabelReader.read` reads every column once for a window, into blocks: one (n_columns, n_rows) array for each type.
2. `LabelRows.part` copies a batch's rows out of each block at once, so that a kept batch pins nothing else.
3. `Codes` and `LabelRows.frame` make of them what users see, column by column, when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annbatch.labels import Column
from annbatch.plan import Ints, WindowPlan

_BOOL = np.dtype(np.bool_)
_CODE = np.dtype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a column stands in the blocks."""

    column: Column
    dtype: np.dtype[Any]
    """Which block."""
    row: int
    """Which row of it."""
    number_row: int | None
    """Which row of the numbers, if it is numeric."""
    mask_row: int | None
    """Which row of the block of booleans says what is missing; None if nothing can be, or NaN or -1 says it."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelRows:
    """The label columns of some rows."""

    places: Mapping[str, Place]
    """Where each column stands."""
    blocks: Mapping[np.dtype[Any], NDArray[Any]]
    """Per type: (n_columns, n_rows)."""
    numbers: NDArray[np.float32]
    """(n_numeric_columns, n_rows) what a batch carries for numeric columns, missing NaN."""

    def part(self, start: int, stop: int) -> LabelRows:
        """Copy some of the rows."""
        blocks = {dtype: block[:, start:stop].copy() for dtype, block in self.blocks.items()}
        return LabelRows(self.places, blocks, self.numbers[:, start:stop].copy())

    def codes(self, name: str) -> NDArray[Any]:
        """Give a column as numbers: int32 codes (missing -1) or float32 (missing NaN)."""
        place = self.places[name]
        if place.number_row is not None:
            numbers: NDArray[Any] = self.numbers[place.number_row]
            return numbers
        codes: NDArray[Any] = self.blocks[_CODE][place.row]
        return codes

    def gathered(self, name: str) -> tuple[Column, NDArray[Any]]:
        """Give a column and its rows in the form that `Column.series` takes."""
        place = self.places[name]
        values: NDArray[Any] = self.blocks[place.dtype][place.row]
        if place.mask_row is not None:
            values = np.ma.MaskedArray(values, self.blocks[_BOOL][place.mask_row])
        return place.column, values

    def frame(self, index: Ints) -> pd.DataFrame:
        """Build the DataFrame of the rows; its index are the global row numbers."""
        series = {}
        for name in self.places:
            column, values = self.gathered(name)
            series[name] = column.series(values)
        frame = pd.DataFrame(series, index=pd.RangeIndex(len(index)))
        frame.index = pd.Index(index)
        return frame


class Codes(Mapping[str, NDArray[Any]]):
    """What a batch's labels are as numbers: int32 codes (missing -1) or float32 (missing NaN), padding rows missing."""

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


class LabelReader:
    """Reads label columns over all stores."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._places: dict[str, Place] = {}
        self._counts: dict[np.dtype[Any], int] = {}
        self._n_numeric = 0
        for column in columns:
            is_coded = column.categories is not None
            types = [_CODE] if is_coded else [part.values.dtype for part in column.parts]
            is_masked = not is_coded and any(part.mask is not None for part in column.parts)
            dtype = np.result_type(*types)
            self._places[column.name] = Place(
                column,
                dtype,
                self._add(dtype),
                None if is_coded else self._n_numeric,
                self._add(_BOOL) if is_masked else None,
            )
            self._n_numeric += not is_coded

    def _add(self, dtype: np.dtype[Any]) -> int:
        row = self._counts.get(dtype, 0)
        self._counts[dtype] = row + 1
        return row

    def read(self, plan: WindowPlan) -> LabelRows:
        """Read the rows of a window."""
        n_rows = len(plan.order)
        blocks = {dtype: np.empty((count, n_rows), dtype) for dtype, count in self._counts.items()}
        rows = LabelRows(self._places, blocks, np.empty((self._n_numeric, n_rows), np.float32))
        for name, place in self._places.items():
            target = blocks[place.dtype][place.row]
            mask = None if place.mask_row is None else blocks[_BOOL][place.mask_row]
            for reading in plan.readings:
                values = place.column.gather(reading.store, reading.ranges)
                places = plan.order[reading.first : reading.stop]
                target[places] = np.ma.getdata(values)
                if mask is not None:
                    mask[places] = np.ma.getmaskarray(values)
            if place.number_row is not None:
                rows.numbers[place.number_row] = place.column.numbers(rows.gathered(name)[1])
        return rows


def padded(values: NDArray[Any], n_padding: int) -> NDArray[Any]:
    """Append entries for padding rows: -1, or NaN where the values are floating."""
    if not n_padding:
        return values
    return np.append(values, np.full(n_padding, np.nan if values.dtype.kind == "f" else -1, values.dtype))
