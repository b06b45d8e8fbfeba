"""Are all integers of a matrix that comes as floats held by that type?

A float32 holds the integers up to 2**24 and not all beyond, a float64 those up to 2**53. What was rounded is at least
as large as well, so that the values of a batch tell whether one of those stored was too large, whatever way they came.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.batch import CSR
from annbatch.errors import InputError


def check_exact(matrix: CSR | NDArray[Any], name: str, dtype: np.dtype[Any], limit: int) -> None:
    """Look at the values of a batch: integers as they are stored, or floats that were made of them.

    Parameters
    ----------
    dtype
        The floats that they become.
    limit
        A power of two, up to which the floats hold all integers.

    Raises
    ------
    InputError
        If one of them is not below ``limit`` in size; names the value.
    """
    values = matrix.data if isinstance(matrix, CSR) else matrix
    for value in (values.max(initial=0), values.min(initial=0)):
        if value >= limit or value <= -limit:
            wider = "request dtype float64, or " if dtype.itemsize < 8 else ""
            raise InputError(
                f"{name}: to become {dtype}, integers must be below 2**{limit.bit_length() - 1} in size, got "
                f"{int(value)}; {wider}accept rounded values with Loader(casting='same_kind')"
            )
