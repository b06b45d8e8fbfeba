"""Which values lie at the edges of a type?"""

from __future__ import annotations

import numpy as np

TYPES = [np.dtype(name) for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")]


def edge_values(dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "b":
        return np.array([False, True] * 20)
    if dtype.kind == "f":
        return np.array([0, -0.0, 1.5, -2.25, 60000, np.inf, -np.inf, np.nan, np.finfo(dtype).max] * 5, dtype)
    info = np.iinfo(dtype)
    edges = [info.min, info.min + 1, 0, 1, 77, info.max - 1, info.max]
    if dtype.itemsize == 8:
        # Integers that a float cannot hold, so that rounding shows.
        edges += [2**53 + 1, 2**53 + 3, 2**62 + 2**9 + 1]
    return np.array(edges * 5, dtype)
