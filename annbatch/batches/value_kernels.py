"""How are the values of a batch normalised or binarised while it is made?

Compiled, without the GIL. The threads that make batches do this with one batch after the other.

1. `totals_of` sums up the rows of what was decoded, before columns are selected.
2. `apply` changes the values of the matrix of a batch in place.

A logarithm is computed from additions, multiplications and divisions of float64 alone, in a fixed order, so that
``kernels.cu`` gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.batch import CSR
from annbatch.native import Kernel, inline
from annbatch.transform import LogNormalize, ValueKernel

NO_TOTALS = np.empty(0, np.float64)
"""What stands for the totals of a matrix that holds all columns."""

_N_KNOWN = 64
_LN2 = float(np.log(2))
_SQRT_HALF_BITS = int(np.array(np.sqrt(0.5)).view(np.int64))


def totals_of(kernel: ValueKernel | None, matrix: CSR, dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """Give the (n_rows,) sums of values, each in the type that it comes in; none where nobody asks for them."""
    if not isinstance(kernel, LogNormalize):
        return NO_TOTALS
    return _row_totals(matrix.data, matrix.indptr, np.empty(0, dtype))  # type: ignore[no-any-return]


def apply(
    kernel: ValueKernel | None, matrix: CSR | NDArray[Any], totals: NDArray[np.float64] = NO_TOTALS
) -> CSR | NDArray[Any]:
    """Change the values of a matrix in place, and give it.

    Parameters
    ----------
    kernel
        What to do; None does nothing.
    matrix
        Of float32 or float64 where it is to be normalised.
    totals
        (n_rows,) sums over all columns; `NO_TOTALS` if the matrix holds all of them.
    """
    if kernel is None:
        return matrix
    values = matrix.data if isinstance(matrix, CSR) else matrix
    if not isinstance(kernel, LogNormalize):
        np.greater(values, 0, out=values, casting="unsafe")
        return matrix
    if isinstance(matrix, CSR):
        _log_normalize(values, matrix.indptr.astype(np.int64), totals, kernel.target_sum)
    else:
        starts = np.arange(len(values) + 1) * values.shape[1]
        _log_normalize(values.reshape(-1), starts, totals, kernel.target_sum)
    return matrix


@inline
def _total(data: Any, begin: Any, end: Any) -> Any:
    """Add up values: four sums, so that an addition need not wait for the one before."""
    a = b = c = d = 0.0
    whole = begin + (end - begin) // 4 * 4
    for i in range(begin, whole, 4):
        a += data[i]
        b += data[i + 1]
        c += data[i + 2]
        d += data[i + 3]
    for i in range(whole, end):
        a += data[i]
    return (a + b) + (c + d)


@Kernel
def _row_totals(data: Any, indptr: Any, like: Any) -> Any:
    totals = np.empty(indptr.size - 1, np.float64)
    longest = 0
    for row in range(totals.size):
        longest = max(longest, indptr[row + 1] - indptr[row])
    cast = np.empty(longest, like.dtype)
    for row in range(totals.size):
        begin, n = indptr[row], indptr[row + 1] - indptr[row]
        for i in range(n):
            cast[i] = data[begin + i]
        totals[row] = _total(cast, 0, n)
    return totals


@inline
def _log1p(value: Any) -> Any:
    """Give the logarithm of 1 + ``value``, to a few units of the last place of float64.

    With 1 + value = 2^e m and s = (m - 1) / (m + 1), log m = 2 (s + s^3 / 3 + s^5 / 5 + …); m is within a factor of
    sqrt(2) of 1, so that eleven terms are enough. What rounding 1 + value lost is added at last.
    """
    one = 1.0 + value
    if not (one > 0.0 and one < np.inf):
        return np.nan if not one >= 0.0 else (one if one > 0.0 else -np.inf)
    lost = (value - (one - 1.0)) / one
    bits = np.float64(one).view(np.int64)
    exponent = (bits - _SQRT_HALF_BITS) >> 52
    m = np.int64(bits - (exponent << 52)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = 1.0 / 21.0
    series = series * z + 1.0 / 19.0
    series = series * z + 1.0 / 17.0
    series = series * z + 1.0 / 15.0
    series = series * z + 1.0 / 13.0
    series = series * z + 1.0 / 11.0
    series = series * z + 1.0 / 9.0
    series = series * z + 1.0 / 7.0
    series = series * z + 1.0 / 5.0
    series = series * z + 1.0 / 3.0
    series = series * z + 1.0
    return exponent * _LN2 + (2.0 * s * series + lost)


@Kernel
def _log_normalize(data: Any, indptr: Any, totals: Any, target: Any) -> None:
    # Most values are small counts: their logarithms are computed once a row.
    known = np.empty(_N_KNOWN, data.dtype)
    for row in range(indptr.size - 1):
        begin, end = indptr[row], indptr[row + 1]
        if begin == end:
            continue
        total = totals[row] if totals.size else _total(data, begin, end)
        scale = target / total if total != 0.0 else 1.0
        for count in range(_N_KNOWN):
            known[count] = _log1p(count * scale)
        for i in range(begin, end):
            value = data[i]
            place = np.int64(value) if 0.0 <= value < _N_KNOWN else np.int64(0)
            if np.float64(place) == value:
                data[i] = known[place]
            else:
                data[i] = _log1p(np.float64(value) * scale)
