"""Which columns of decoded rows are wanted, and how do they get into a matrix of these columns alone?

Compiled, without the GIL.

1. A `Selection` says which columns, and in which order.
2. `select_columns` keeps them in sparse rows; `fill_dense` writes sparse rows into a dense matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.native import Kernel
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
    in_order: bool
    """Whether the wanted columns ascend."""

    @classmethod
    def of(cls, columns: Ints, n_columns: int) -> Selection:
        """Describe wanted columns out of ``n_columns``."""
        lookup = np.full(n_columns, -1, np.int32)
        places = np.flatnonzero(columns >= 0)
        lookup[columns[places]] = places
        return cls(columns, lookup, bool((np.diff(columns[places]) > 0).all()))


@Kernel
def select_columns(data: Any, indices: Any, indptr: Any, lookup: Any, in_order: Any) -> Any:
    """Keep wanted columns, in place: rows move to the front of ``data`` and ``indices``; gives the new indptr."""
    out = np.empty(indptr.size, np.int64)
    out[0] = 0
    k = 0
    for row in range(indptr.size - 1):
        begin = k
        for i in range(indptr[row], indptr[row + 1]):
            column = lookup[indices[i]]
            if column >= 0:
                data[k] = data[i]
                indices[k] = column
                k += 1
        if not in_order and k > begin:
            order = np.argsort(indices[begin:k])
            indices[begin:k] = indices[begin:k][order]
            data[begin:k] = data[begin:k][order]
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
