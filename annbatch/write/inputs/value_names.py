"""Which strings stand for the values of a column?

`as_strings` writes numbers and booleans as strings, so that columns that inputs hold in different types are one column.
It is pure.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from annbatch.stores.column_kinds import as_categories


def as_strings(column: pd.Series[Any]) -> pd.Series[Any]:
    """Give the column, (n,), with strings for its values; what is missing stays so.

    A float column whose values are all whole is written without decimal points: ``1``, not ``1.0``, as an integer
    column that has missing values is a float column in many files. Categories keep their order.
    """
    if not isinstance(column.dtype, pd.CategoricalDtype):
        if pd.api.types.is_object_dtype(column.dtype) or pd.api.types.is_string_dtype(column.dtype):
            found = as_categories(column)
            found = pd.Categorical.from_codes(found.codes, found.categories.infer_objects())
            # In the order of pandas, which puts numbers before text. What cannot be compared stays as it came.
            with suppress(TypeError):
                found = found.reorder_categories(sorted(found.categories, key=lambda one: (isinstance(one, str), one)))
        else:
            found = pd.Categorical(column)
        column = pd.Series(found)
    categories = column.cat.categories
    # 1.0 and 1 are the same number.
    whole = categories.dtype.kind == "f" and bool((np.abs(categories) < 2**53).all() and (categories % 1 == 0).all())
    texts = (categories.astype(np.int64) if whole else categories).astype(object).map(str)
    # Different values may have one string.
    different = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    codes = np.array([*(different[text] for text in texts), -1])[column.cat.codes.to_numpy()]
    return pd.Series(
        pd.Categorical.from_codes(codes, categories=pd.Index(list(different), dtype=object), ordered=column.cat.ordered)
    )
