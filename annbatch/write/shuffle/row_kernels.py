"""How do rows of different lengths get to their places, without the GIL?

`scatter_rows` copies each row of a piece to where it belongs. What the elements mean does not matter, so that callers
view them as unsigned integers of their size (`as_words`), and few types are compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.native import Kernel

Array = np.ndarray[Any, Any]


@Kernel
def scatter_rows(source: Array, source_starts: Array, lengths: Array, target: Array, target_starts: Array) -> None:
    """Copy ``lengths[r]`` elements from ``source_starts[r]`` of ``source`` to ``target_starts[r]`` of ``target``."""
    for row in range(len(lengths)):
        n = lengths[row]
        # A loop over slices from 0 becomes a block copy, which one with offsets in it does not.
        given = source[source_starts[row] : source_starts[row] + n]
        taken = target[target_starts[row] : target_starts[row] + n]
        for i in range(n):
            taken[i] = given[i]


@Kernel
def first_bad_row(indptr: Array, indices: Array, n_columns: int) -> int:
    """Find the first row whose column numbers do not ascend or are out of range; -1 if there is none."""
    for row in range(len(indptr) - 1):
        last = np.int64(-1)
        for i in range(indptr[row], indptr[row + 1]):
            column = np.int64(indices[i])
            if column <= last or column >= n_columns:
                return row
            last = column
    return -1


def as_words(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View a contiguous array as unsigned integers of the same size."""
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))
