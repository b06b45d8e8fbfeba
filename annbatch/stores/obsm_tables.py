"""Which array is an element of obsm that is a table?

`array_of_table` gives one number type to all columns, if there is one that alters no value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annbatch.errors import InputError


def array_of_table(table: pd.DataFrame, name: str) -> NDArray[Any]:
    """Give the columns of a table as an (n_rows, n_columns) array.

    Raises
    ------
    InputError
        If a column holds no numbers, integers of which some are missing, or integers that the type of all columns does
        not hold; names the element and the column.
    """
    columns = [table.iloc[:, i] for i in range(table.shape[1])]
    for column in columns:
        dtype: Any = column.dtype
        is_number = pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)
        if not is_number or (column.hasnans and not pd.api.types.is_float_dtype(dtype)):
            raise _unfit(name, column, "must be numbers, none of the integers missing")
    dtypes: list[Any] = [getattr(column.dtype, "numpy_dtype", column.dtype) for column in columns]
    common = np.result_type(*dtypes) if dtypes else np.dtype(np.float64)
    array = np.empty(table.shape, common)
    for i, column in enumerate(columns):
        missing: dict[str, Any] = {"na_value": np.nan} if dtypes[i].kind == "f" else {}
        array[:, i] = column.to_numpy(dtypes[i], **missing)
        # Only float64 is ever shared with integers that it may not hold.
        if common.kind == "f" and dtypes[i].kind in "iu" and (np.abs(array[:, i]) >= 2**53).any():
            raise _unfit(name, column, f"must be below 2**53 beside columns that make all of them {common}")
    return array


def _unfit(name: str, column: pd.Series[Any], rule: str) -> InputError:
    return InputError(
        f"{name} column {column.name!r}: {rule}, got {column.dtype}; drop it or make it numeric, as "
        f"obsm[...].select_dtypes('number').to_numpy() does, or carry it in obs"
    )
