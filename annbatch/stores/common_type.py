"""Which type do values of several types have together?

1. Values of one type keep it.
2. Whole types have the smallest whole type that holds all, as in NumPy.
3. Otherwise NumPy's common type, in which values that float32 holds exactly count as float32: int32 counts beside
   float32 counts are float32, where NumPy alone would make both float64.

Everything here is pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def common_type(types: Iterable[tuple[np.dtype[Any], bool]]) -> np.dtype[Any]:
    """Give the common type.

    Parameters
    ----------
    types
        Each type, and whether float32 is known to hold its values exactly.
    """
    known = list(types)
    common = np.result_type(*(dtype for dtype, _ in known))
    if common.kind != "f" or len({dtype for dtype, _ in known}) == 1:
        return common
    return np.result_type(*(np.dtype(np.float32) if in_float32 else dtype for dtype, in_float32 in known))


def float32_holds(stored: np.dtype[Any]) -> bool:
    """Say whether float32 holds every value of a type."""
    return np.can_cast(stored, np.float32, "safe")
