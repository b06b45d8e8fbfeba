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

from annbatch.native import Kernel, address_of, count_bits, inline, inserted, pointer, view
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

    ``data`` is seen as unsigned integers. ``n_wanted`` is the number of wanted columns where rows have to be sorted by
    them, and 0 where they ascend.
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


@inserted
def _rank(values: Any, columns: Any, pieces: Any, bits: Any, ranks: Any, data: Any, indices: Any, k: Any) -> Any:
    """Write the elements of a row's pieces sorted by column; say whether no column came twice, else nothing is sorted.

    A bit for each column says which ones the row has; an element goes behind as many as there are bits before its own.
    """
    firsts, counts, order, begin, end = pieces
    # Not arrays, whose indices might be negative.
    own, of_them = pointer(address_of(values), values), pointer(address_of(columns), columns)
    target, places = pointer(address_of(data), data), pointer(address_of(indices), indices)
    has, before = pointer(address_of(bits), bits), pointer(address_of(ranks), ranks)
    bits[:] = 0
    for p in range(begin, end):
        for i in range(firsts[order[p]], firsts[order[p]] + counts[order[p]]):
            column = np.int64(of_them[i])
            bit = np.int64(1) << (column & 63)
            if has[column >> 6] & bit:
                return False
            has[column >> 6] |= bit
    rank = k
    for word in range(bits.size):
        before[word] = rank
        rank += count_bits(has[word])
    for p in range(begin, end):
        for i in range(firsts[order[p]], firsts[order[p]] + counts[order[p]]):
            column = np.int64(of_them[i])
            at = before[column >> 6] + count_bits(has[column >> 6] & ((np.int64(1) << (column & 63)) - 1))
            target[at], places[at] = own[i], of_them[i]
    return True


@Kernel
def join_pieces(
    values: Any, columns: Any, firsts: Any, counts: Any, order: Any, ends: Any, data: Any, indices: Any, n_wanted: Any
) -> Any:
    """Join the wanted elements of pieces to rows, with casts; gives the indptr.

    Parameters
    ----------
    values, columns, firsts, counts
        The elements, and for each piece where its own begin, and their number.
    order
        Numbers of the pieces, in the order of the rows.
    ends
        (n_rows,) where in ``order`` the pieces of each row end.
    data, indices
        As many elements as all pieces have together, or more.
    n_wanted
        As `select_columns` takes it.
    """
    out = np.empty(ends.size + 1, np.int64)
    longest = indices.size if n_wanted > 0 else 0
    other = np.empty(longest, data.dtype), np.empty(longest, indices.dtype)
    bits, ranks = np.empty(n_wanted + 63 >> 6, np.int64), np.empty(n_wanted + 63 >> 6, np.int64)
    out[0] = 0
    k = p = 0
    for row in range(ends.size):
        begin, first = p, k
        while p < ends[row]:
            k += counts[order[p]]
            p += 1
        out[row + 1] = k
        pieces = firsts, counts, order, begin, p
        if n_wanted > 0 and _rank(values, columns, pieces, bits, ranks, data, indices, first):
            continue
        at = first
        for piece in range(begin, p):
            start, n = firsts[order[piece]], counts[order[piece]]
            # Not slices, which count references.
            own = view(address_of(values) + start * values.itemsize, n, values)
            target = view(address_of(data) + at * data.itemsize, n, data)
            for i in range(n):
                target[i] = own[i]
            of_them = view(address_of(columns) + start * columns.itemsize, n, columns)
            places = view(address_of(indices) + at * indices.itemsize, n, indices)
            for i in range(n):
                places[i] = of_them[i]
            at += n
        if n_wanted > 0:
            sort_row(data, indices, first, k, n_wanted, other)
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
