"""Which strings stand for the values of a column?

`as_strings` writes numbers and booleans as strings, so that columns that inputs hold in different types are one column.
It is pure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def as_strings(column: pd.Series[Any]) -> pd.Series[Any]:
    """Give the column, (n,), with strings for its values; what is missing stays so.

    A float column whose values are all whole is written without decimal points: ``1``, not ``1.0``, as an integer
    column that has missing values is a float column in many files. Categories keep their order.
    """
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = pd.Series(pd.Categorical(column))
    categories = column.cat.categories
    # 1.0 and 1 are the same number.
    whole = categories.dtype.kind == "f" and bool((np.abs(categories) < 2**53).all() and (categories % 1 == 0).all())
    texts = (categories.astype(np.int64) if whole else categories).astype(object).map(str)
    # Different values may have one string.
    numbers, different = pd.factorize(texts)
    codes = np.append(numbers, -1)[column.cat.codes.to_numpy()]
    return pd.Series(
        pd.Categorical.from_codes(codes, categories=pd.Index(different, dtype=object), ordered=column.cat.ordered)
    )
