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

from annbatch.assemble import Reading
from annbatch.labels import Column
from annbatch.plan import Ints

_BOOL = np.dtype(np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a column stands in the blocks."""

    column: Column
    dtype: np.dtype[Any]
    """Which block."""
    row: int
    """Which row of it."""
    mask_row: int | None
    """Which row of the block of booleans says what is missing; None if nothing can be, or NaN or -1 says it."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelRows:
    """The label columns of some rows."""

    places: Mapping[str, Place]
    """Where each column stands."""
    blocks: Mapping[np.dtype[Any], NDArray[Any]]
    """Per type: (n_columns, n_rows)."""

    def part(self, start: int, stop: int) -> LabelRows:
        """Copy some of the rows."""
        return LabelRows(self.places, {dtype: block[:, start:stop].copy() for dtype, block in self.blocks.items()})

    def gathered(self, name: str) -> tuple[Column, NDArray[Any]]:
        """Give a column and its rows in the form that `Column.codes` and `Column.series` take."""
        place = self.places[name]
        values = self.blocks[place.dtype][place.row]
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
        column, values = self._rows.gathered(name)
        return padded(column.codes(values), self._n_padding)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows.places)

    def __len__(self) -> int:
        return len(self._rows.places)


class LabelReader:
    """Reads label columns over all stores."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._places: dict[str, Place] = {}
        self._counts: dict[np.dtype[Any], int] = {}
        for column in columns:
            is_coded = column.categories is not None
            types = [np.dtype(np.int32)] if is_coded else [part.values.dtype for part in column.parts]
            is_masked = not is_coded and any(part.mask is not None for part in column.parts)
            dtype = np.result_type(*types)
            self._places[column.name] = Place(column, dtype, self._add(dtype), self._add(_BOOL) if is_masked else None)

    def _add(self, dtype: np.dtype[Any]) -> int:
        row = self._counts.get(dtype, 0)
        self._counts[dtype] = row + 1
        return row

    def read(self, readings: Sequence[Reading], n_rows: int) -> LabelRows:
        """Read the rows of a window."""
        blocks = {dtype: np.empty((count, n_rows), dtype) for dtype, count in self._counts.items()}
        for place in self._places.values():
            for reading in readings:
                values = place.column.gather(reading.store, reading.ranges)
                blocks[place.dtype][place.row, reading.places] = np.ma.getdata(values)
                if place.mask_row is not None:
                    blocks[_BOOL][place.mask_row, reading.places] = np.ma.getmaskarray(values)
        return LabelRows(self._places, blocks)


def padded(values: NDArray[Any], n_padding: int) -> NDArray[Any]:
    """Append entries for padding rows: -1, or NaN where the values are floating."""
    if not n_padding:
        return values
    return np.append(values, np.full(n_padding, np.nan if values.dtype.kind == "f" else -1, values.dtype))
