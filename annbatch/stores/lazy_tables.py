"""Is a part of AnnData in memory, or does it have to be read first?

`anndata.experimental.read_lazy` gives obs and var that are read column by column, when they are asked for, and matrices
as dask arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd


def in_memory(table: Any, columns: Sequence[Any] | None = None) -> pd.DataFrame:
    """Give a table as a DataFrame, of all its columns or some; one that is lazy is read."""
    found = table if columns is None else table[list(columns)]
    if not isinstance(found, pd.DataFrame):
        found = found.to_memory()
    frame: pd.DataFrame = found
    return frame


def is_lazy(matrix: Any) -> bool:
    """Say whether a matrix is a dask array, whose parts are computed when they are asked for."""
    return type(matrix).__module__.partition(".")[0] == "dask"
