"""Which column of the batches does each column of a store become, where stores have different genes?

Compiled, without the GIL.

1. A `ColumnMap` says it for each different list of genes. `ColumnMap.then` adds a selection of joined columns.
2. `map_columns` maps sparse rows in place, `map_dense` dense ones into a matrix of the joined columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from annbatch.native import Kernel
from annbatch.plan.column_selection import Selection, sort_row
from annbatch.plan.window import Ints, WindowPlan


@dataclass(frozen=True, slots=True, eq=False)
class ColumnMap:
    """Where the columns of several stores go."""

    n_columns: int
    """Number of joined columns."""
    lookup: NDArray[np.int32]
    """(sum of the lists' lengths,) column of each list -> joined column, -1 where it is left out."""
    bounds: Ints
    """(n_lists + 1,) list i is ``lookup[bounds[i]:bounds[i + 1]]``."""
    ascends: NDArray[np.uint8]
    """(n_lists,) 1 where rows with ascending columns still ascend when they are mapped, else 0."""
    lists: Ints
    """(n_stores,) which list each store has."""

    @classmethod
    def of(cls, columns: Sequence[Ints], lists: Sequence[int], n_columns: int) -> Self:
        """Describe joined columns.

        Parameters
        ----------
        columns
            For each list the joined column of each of its columns, -1 where it is left out.
        lists
            (n_stores,) which list each store has.
        n_columns
            Number of joined columns.
        """
        kept = [each[each >= 0] for each in columns]
        return cls(
            n_columns,
            np.concatenate(columns).astype(np.int32),
            np.cumsum([0, *map(len, columns)], dtype=np.int64),
            np.array([(np.diff(each) > 0).all() for each in kept], np.uint8),
            np.array(lists, np.int64),
        )

    @property
    def drops(self) -> bool:
        """Whether columns are left out, so that rows may lose elements."""
        return bool((self.lookup < 0).any())

    def then(self, selection: Selection) -> ColumnMap:
        """Give the map to the columns that a selection of the joined ones has."""
        # Column -1 picks the last entry.
        chosen = np.append(selection.lookup, -1)
        columns = [chosen[self.lookup[a:b]] for a, b in zip(self.bounds[:-1], self.bounds[1:], strict=True)]
        return ColumnMap.of(columns, self.lists.tolist(), len(selection.columns))

    def lists_of_rows(self, plan: WindowPlan) -> Ints:
        """Say which list each row of a window has: (n_rows,), in the order of the batches."""
        found = np.empty(len(plan.order), np.int64)
        counts = [reading.stop - reading.first for reading in plan.readings]
        found[plan.order] = np.repeat(self.lists[[reading.store for reading in plan.readings]], counts)
        return found


@Kernel
def map_columns(
    data: Any, indices: Any, indptr: Any, lists: Any, lookup: Any, bounds: Any, ascends: Any, n_columns: Any
) -> Any:
    """Map the columns of sparse rows, in place: rows move to the front of ``data`` and ``indices``.

    Parameters
    ----------
    data, indices, indptr
        The rows; ``data`` is seen as unsigned integers.
    lists
        (n_rows,) which list each row has.
    lookup, bounds, ascends, n_columns
        The fields of a `ColumnMap`.

    Returns
    -------
    tuple
        The new indptr, and the first row with a column number out of range, or -1.
    """
    out = np.empty(indptr.size, np.int64)
    longest = 0
    for row in range(indptr.size - 1):
        if ascends[lists[row]] == 0:
            longest = max(longest, indptr[row + 1] - indptr[row])
    other = np.empty(longest, data.dtype), np.empty(longest, indices.dtype)
    out[0] = 0
    k = 0
    for row in range(indptr.size - 1):
        first = bounds[lists[row]]
        width = bounds[lists[row] + 1] - first
        for i in range(indptr[row], indptr[row + 1]):
            own = np.int64(indices[i])
            if own < 0 or own >= width:
                return out, row
            column = lookup[first + own]
            if column >= 0:
                data[k] = data[i]
                indices[k] = column
                k += 1
        if ascends[lists[row]] == 0:
            sort_row(data, indices, out[row], k, n_columns, other)
        out[row + 1] = k
    return out, -1


@Kernel
def map_dense(values: Any, lists: Any, lookup: Any, bounds: Any, out: Any) -> None:
    """Write dense rows, which lie one behind the other, into a matrix of the joined columns; others are 0.

    ``values`` and ``out`` are seen as unsigned integers. Rows of ``out`` behind the last one are 0.
    """
    at = 0
    for row in range(out.shape[0]):
        out[row, :] = 0
        if row >= lists.size:
            continue
        first, stop = bounds[lists[row]], bounds[lists[row] + 1]
        for i in range(first, stop):
            if lookup[i] >= 0:
                out[row, lookup[i]] = values[at + i - first]
        at += stop - first
