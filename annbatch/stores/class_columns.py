"""How does an obs column that is no categorical become classes: codes with categories?

1. `check_kind` says which columns can: integers, booleans, text and categories.
2. `classes_of_integers` reads integers once, as codes of one to four bytes a row. Their categories are the values that
   occur, ascending. All other columns that can be classes are codes already.
3. `as_classes` gives the column as a categorical, with these codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annbatch.errors import InputError
from annbatch.order.row_table import Classes
from annbatch.stores.label_columns import Column, StoreColumn
from annbatch.stores.slices import slices_of


def check_kind(column: Column) -> None:
    """Raise InputError if a column cannot be classes."""
    if column.categories is None and column.gathered_dtype.kind not in "iu":
        raise InputError(
            f"obs[{column.name!r}] must hold categories, text, integers or booleans to give classes, got {column.dtype}"
        )


def classes_of_integers(name: str, pieces: Iterable[NDArray[Any]]) -> Classes:
    """Make classes of a column of integers, or of booleans, given in pieces; masked values have none."""
    read: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for piece in pieces:
        is_missing = np.ma.getmaskarray(piece)
        values, codes = np.unique(np.ma.getdata(piece)[~is_missing], return_inverse=True)
        of_piece = np.full(len(piece), -1, np.min_scalar_type(-len(values) - 1))
        of_piece[~is_missing] = codes
        read.append((values, of_piece))
    categories = np.unique(np.concatenate([values for values, _ in read]))
    dtype = np.min_scalar_type(-len(categories) - 1)
    recodes = [np.append(np.searchsorted(categories, values), -1).astype(dtype) for values, _ in read]
    codes = np.concatenate([recode[of_piece] for recode, (_, of_piece) in zip(recodes, read, strict=True)])
    return Classes(name, codes, pd.Index(categories))


def as_classes(column: Column, classes: Classes | None, store_rows: Sequence[int]) -> Column:
    """Give a column as a categorical.

    Parameters
    ----------
    column
        One that passes `check_kind`.
    classes
        What `classes_of_integers` made of it; None if it has categories.
    store_rows
        Rows of each store.
    """
    if classes is None:
        ordered = isinstance(column.dtype, pd.CategoricalDtype) and column.dtype.ordered
        return replace(column, dtype=pd.CategoricalDtype(column.categories, ordered=bool(ordered)))
    dtype = pd.CategoricalDtype(classes.categories)
    codes = np.split(classes.codes, np.cumsum(store_rows)[:-1])
    parts = tuple(
        StoreColumn(part.name, slices_of(part.name, own), None, classes.categories, dtype)
        for part, own in zip(column.parts, codes, strict=True)
    )
    return Column(column.name, classes.categories, dtype, parts, (None,) * len(parts))
