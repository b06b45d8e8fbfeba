"""Which columns of decoded rows are wanted, and how do they get into a matrix of these columns alone?

Compiled, without the GIL.

1. A `Selection` says which columns, and in which order.
2. `select_columns` keeps them in sparse rows; `join_pieces` does so where they were picked while chunks were decoded.
3. `fill_dense` writes sparse rows into a dense matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.native import Kernel, inline
from annbatch.plan.window import Ints

NO_LOOKUP = np.empty(0, np.int32)
"""What `fill_dense` takes if all columns are wanted as they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Which columns are wanted, in which order."""

    columns: Ints
    """(n_selected,) column numbers in the store, each once; -1 for one that the store lacks, which is all zeros."""
    lookup: NDArray[np.int32]
    """(n_columns,) column of the store -> wanted column, -1 where it is not wanted."""
    is_wanted: NDArray[np.uint8]
    """(n_columns,) 1 for the columns that are wanted, else 0."""
    in_order: bool
    """Whether the wanted columns ascend."""

    @classmethod
    def of(cls, columns: Ints, n_columns: int) -> Selection:
        """Describe wanted columns out of ``n_columns``."""
        lookup = np.full(n_columns, -1, np.int32)
        places = np.flatnonzero(columns >= 0)
        lookup[columns[places]] = places
        return cls(columns, lookup, (lookup >= 0).astype(np.uint8), bool((np.diff(columns[places]) > 0).all()))


@inline
def sort_row(data: Any, indices: Any, begin: Any, end: Any, n_wanted: Any, other: Any) -> None:
    """Sort a row by its column numbers, six bits at a time; elements of one column keep their order.

    ``other`` holds values and column numbers of a row at least as long.
    """
    ends = np.empty(65, np.int64)
    shift = 0
    while n_wanted > 1 << shift:
        ends[:] = 0
        for i in range(begin, end):
            ends[(np.int64(indices[i]) >> shift & 63) + 1] += 1
        for digit in range(64):
            ends[digit + 1] += ends[digit]
        for i in range(begin, end):
            own = np.int64(indices[i]) >> shift & 63
            other[0][ends[own]], other[1][ends[own]] = data[i], indices[i]
            ends[own] += 1
        for i in range(begin, end):
            data[i], indices[i] = other[0][i - begin], other[1][i - begin]
        shift += 6


@Kernel
def select_columns(data: Any, indices: Any, indptr: Any, lookup: Any, n_wanted: Any) -> Any:
    """Keep wanted columns, in place: rows move to the front of ``data`` and ``indices``; gives the new indptr.

    ``n_wanted`` is their number where rows have to be sorted, and 0 where wanted columns ascend.
    """
    out = np.empty(indptr.size, np.int64)
    # A row has each column at most once, or as often as there are columns.
    longest = lookup.size if n_wanted > 0 else 0
    other = np.empty(longest, data.dtype), np.empty(longest, indices.dtype)
    out[0] = 0
    k = 0
    for row in range(indptr.size - 1):
        for i in range(indptr[row], indptr[row + 1]):
            column = lookup[indices[i]]
            if column >= 0:
                data[k] = data[i]
                indices[k] = column
                k += 1
        if n_wanted > 0:
            sort_row(data, indices, out[row], k, n_wanted, other)
        out[row + 1] = k
    return out


@Kernel
def join_pieces(
    values: Any, columns: Any, firsts: Any, counts: Any, order: Any, ends: Any, data: Any, indices: Any, n_wanted: Any
) -> Any:
    """Join the wanted elements of pieces to rows; gives the indptr.

    Parameters
    ----------
    values, columns, firsts, counts
        The elements, and for each piece where its own begin, and their number.
    order
        Numbers of the pieces, in the order of the rows.
    ends
        (n_rows,) where in ``order`` the pieces of each row end.
    data, indices
        As many elements as all pieces have together, of the same types.
    n_wanted
        As `select_columns` takes it.
    """
    out = np.empty(ends.size + 1, np.int64)
    longest = indices.size if n_wanted > 0 else 0
    other = np.empty(longest, data.dtype), np.empty(longest, indices.dtype)
    out[0] = 0
    k = p = 0
    for row in range(ends.size):
        while p < ends[row]:
            piece = order[p]
            for i in range(firsts[piece], firsts[piece] + counts[piece]):
                data[k], indices[k] = values[i], columns[i]
                k += 1
            p += 1
        if n_wanted > 0:
            sort_row(data, indices, out[row], k, n_wanted, other)
        out[row + 1] = k
    return out


@Kernel
def fill_dense(data: Any, indices: Any, indptr: Any, lookup: Any, out: Any) -> None:
    """Write CSR rows into a dense (n_rows, n_columns) array; an empty ``lookup`` means all columns as they are."""
    for row in range(out.shape[0]):
        out[row, :] = 0
        if row >= indptr.size - 1:
            continue
        if lookup.size:
            for i in range(indptr[row], indptr[row + 1]):
                column = lookup[indices[i]]
                if column >= 0:
                    out[row, column] += data[i]
        else:
            for i in range(indptr[row], indptr[row + 1]):
                out[row, indices[i]] += data[i]
