"""How is a matrix of an input read as if it had only some of its rows, and empty ones behind them?

The rows that stay keep their order, so that the file is still read forwards, once. What lies between them is read along
where that is little, and skipped where it is much. What is not stored by rows, such as CSC, has none to skip:
`annbatch.write.inputs.transpose` leaves them out when it turns it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.write.inputs.matrix_rows import NOT_BY_ROWS, Ints, Matrix
from annbatch.write.inputs.spill import RawSlices, save

_GAP_ELEMENTS = 2**12
"""So many elements between two rows that stay are read along."""


def choose_rows(matrix: Matrix, rows: Ints, where: str, starts: Path) -> Matrix:
    """Give a matrix of the chosen rows.

    Parameters
    ----------
    rows
        (n,) rows of ``matrix``, ascending, then any number of -1 for rows without elements.
    starts
        File to keep in where the chosen rows start; it is made unless it is there.
    """
    shape = len(rows), matrix.shape[1]
    if matrix.format == "dense":
        return replace(matrix, shape=shape, data=_DenseRows(matrix, rows))
    n_kept = int(np.searchsorted(-(rows >= 0).astype(np.int8), 0))
    if matrix.format in NOT_BY_ROWS:
        places = np.full(matrix.shape[0], -1, np.int64)
        places[rows[:n_kept]] = np.arange(n_kept)
        return replace(matrix, shape=shape, places=places)
    if not starts.exists():
        found = matrix.row_starts(where)
        lengths = np.zeros(len(rows), np.int64)
        lengths[:n_kept] = np.diff(found)[rows[:n_kept]]
        starts.parent.mkdir(exist_ok=True)
        building = starts.with_name(f".{starts.name}")
        save(building, np.concatenate([[0], np.cumsum(lengths)]))
        building.rename(starts)
    data, indices = (_Flat(part, matrix.indptr, rows[:n_kept], starts) for part in (matrix.data, matrix.indices))
    indptr = RawSlices(starts, np.dtype(np.int64), len(rows) + 1)
    return replace(matrix, shape=shape, data=data, indices=indices, indptr=indptr)


def _runs(begins: Ints, ends: Ints, gap: int) -> Iterator[tuple[int, int]]:
    """Cut ascending ranges into runs, (first, last + 1), that have at most ``gap`` between two of them."""
    cuts = np.flatnonzero(begins[1:] - ends[:-1] > gap) + 1
    bounds = [0, *cuts.tolist(), len(begins)]
    return zip(bounds[:-1], bounds[1:], strict=True)


def _gathered(read: Callable[[int, int], npt.NDArray[Any]], begins: Ints, ends: Ints, gap: int) -> list[Any]:
    """Read ascending ranges, and what is in small gaps between them; give what is in the ranges."""
    found = []
    for first, last in _runs(begins, ends, gap):
        start, stop = int(begins[first]), int(ends[last - 1])
        block = read(start, stop)
        if (ends[first : last - 1] != begins[first + 1 : last]).any():
            # Ranges may be empty, so that several begin at one place.
            edges = np.zeros(stop - start + 1, np.int64)
            np.add.at(edges, begins[first:last] - start, 1)
            np.add.at(edges, ends[first:last] - start, -1)
            block = block[np.cumsum(edges[:-1]) > 0]
        found.append(block)
    return found


class _DenseRows:
    """The chosen rows of a dense matrix."""

    def __init__(self, matrix: Matrix, rows: Ints) -> None:
        self._matrix, self._rows = matrix, rows
        self.shape, self.dtype = (len(rows), matrix.shape[1]), matrix.data.dtype
        # Of the file; some of their rows may be left out.
        self.chunks = matrix.chunk_shape

    def __getitem__(self, part: slice | tuple[slice, slice]) -> npt.NDArray[Any]:
        if isinstance(part, tuple):
            return self[part[0]][:, part[1]]
        rows = np.asarray(self._rows[part])
        kept = rows[rows >= 0]
        out = np.zeros((len(rows), self.shape[1]), self.dtype)
        gap = _GAP_ELEMENTS // max(1, self.shape[1])
        blocks = _gathered(lambda a, b: np.asarray(self._matrix.data[a:b]), kept, kept + 1, gap) if len(kept) else []
        if blocks:
            out[: len(kept)] = np.concatenate(blocks)
        return out


class _Flat:
    """The values, or the column numbers, of the chosen rows of a CSR matrix; read by whole rows."""

    def __init__(self, elements: Any, indptr: Any, rows: Ints, starts: Path) -> None:
        self._elements, self._indptr, self._rows = elements, indptr, rows
        self._starts: Ints = np.memmap(starts, np.int64, "r")
        self.shape, self.dtype = (int(self._starts[-1]),), elements.dtype

    def __getitem__(self, part: slice) -> npt.NDArray[Any]:
        start, stop, _ = part.indices(self.shape[0])
        if start >= stop:
            return np.empty(0, self.dtype)
        first, last = np.searchsorted(self._starts, [start, stop]).tolist()
        rows = np.asarray(self._rows[first:last])
        low = int(rows[0])
        bounds = np.asarray(self._indptr[low : int(rows[-1]) + 2]).astype(np.int64)
        begins, ends = bounds[rows - low], bounds[rows - low + 1]
        return np.concatenate(_gathered(lambda a, b: np.asarray(self._elements[a:b]), begins, ends, _GAP_ELEMENTS))
