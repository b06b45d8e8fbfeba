"""Are all integers of a matrix that comes as float32 held by that type?

A float32 holds the integers up to 2**24 and not all beyond. What was rounded is at least 2**24 as well, so that the
values of a batch tell whether one of those stored was too large, whatever way they came.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from annbatch.batch import CSR
from annbatch.errors import InputError

LIMIT = 1 << 24


def check_exact(matrix: CSR | NDArray[Any], name: str) -> None:
    """Look at the values of a batch: integers as they are stored, or float32 that were made of them.

    Raises
    ------
    InputError
        If one of them is not below 2**24, or not above -2**24; names the value.
    """
    values = matrix.data if isinstance(matrix, CSR) else matrix
    for value in (values.max(initial=0), values.min(initial=0)):
        if value >= LIMIT or value <= -LIMIT:
            raise InputError(
                f"{name}: to become float32, integers must be below 2**24 in size, got {int(value)}; ask for dtype "
                f"float64, or accept rounded values with Loader(casting='same_kind')"
            )
