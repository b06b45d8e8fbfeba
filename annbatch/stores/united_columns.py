"""How do the obs columns of several stores become one set of columns?

By the rule that building follows, too (`annbatch.stores.column_kinds`): `merge_columns` unites the columns of a name
into one `Column`. In stores that lack it, it has missing values. Columns that are of different kinds are left out,
unless they were asked for by name. Where most stores were merged before, only the others are looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annbatch.errors import InputError
from annbatch.stores.column_kinds import NO_KIND, agreed, is_ordered, united
from annbatch.stores.label_columns import Column, StoreColumn, has_value, nullable, promoted
from annbatch.stores.slices import Constant

StoreColumns = tuple[str, int, Mapping[str, StoreColumn]]
"""What messages call a store, its number of rows, and its columns by name."""


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """The obs columns of all stores."""

    columns: tuple[Column, ...]
    """The columns, by first appearance."""
    lacking: Mapping[str, str]
    """Those that only some stores have, each with the name of the first store that lacks it."""
    disputed: Mapping[str, str]
    """Those that are left out since stores have different kinds of values there, each with a message that says so."""


def merge_columns(stores: Sequence[StoreColumns], asked: Collection[str] = (), before: Sequence[Column] = ()) -> Merged:
    """Unite the columns of stores.

    Parameters
    ----------
    stores
        The stores. Their names are for messages and may repeat.
    asked
        Columns that must not be left out.
    before
        Columns of the first of these stores, merged before.

    Raises
    ------
    InputError
        If a column that is ``asked`` for has values of different kinds in different stores.
    """
    known = {column.name: column for column in before}
    found, disputed = [], {}

    def parts(name: str, first: int) -> list[tuple[str, StoreColumn]]:
        return [
            (store, columns[name] if name in columns else _absent(f"{store} obs[{name!r}]", n_rows))
            for store, n_rows, columns in stores[first:]
        ]

    for name in dict.fromkeys(name for _, _, columns in stores for name in columns):
        old = known.get(name)
        extended = None if old is None else _extended(old, [part for _, part in parts(name, len(old.parts))])
        try:
            found.append(_merge(name, parts(name, 0)) if extended is None else extended)
        except InputError as e:
            if name in asked:
                raise
            disputed[name] = str(e)
    names = [column.name for column in found]
    lacking = {name: next((store for store, _, columns in stores if name not in columns), None) for name in names}
    return Merged(tuple(found), {name: store for name, store in lacking.items() if store is not None}, disputed)


def differences(merged: Merged, before: Merged | None = None) -> list[str]:
    """Say what stores do not share, of which nothing was said ``before``."""
    lacking, disputed = (
        {name: text for name, text in now.items() if name not in then}
        for now, then in (
            (merged.lacking, before.lacking if before else {}),
            (merged.disputed, before.disputed if before else {}),
        )
    )
    found = []
    if lacking:
        named = ", ".join(f"{name!r} is not in {store}" for name, store in lacking.items())
        found.append(f"obs columns are missing in the rows of stores that lack them: {named}")
    if disputed:
        found.append(f"obs columns are left out: {'; '.join(disputed.values())}")
    return found


def _absent(name: str, n_rows: int) -> StoreColumn:
    """Give the column of a store that lacks it: one without a value."""
    return StoreColumn(name, Constant(np.array([-1], np.int8), n_rows), None, pd.Index([], dtype=object), object)


def _extended(before: Column, new: Sequence[StoreColumn]) -> Column | None:
    """Add the columns of further stores, where these fit as they are; None if all have to be looked at together.

    Only columns of categories or text are worth it. The others take next to no time.
    """
    kind, dtype = before.kind, before.dtype
    if before.categories is None or kind in (NO_KIND, "boolean"):
        return None
    kinds = [part.kind for part in new]
    fit = [part for part, own in zip(new, kinds, strict=True) if own == kind]
    is_categorical = isinstance(dtype, pd.CategoricalDtype)
    if any(own not in (kind, NO_KIND) for own in kinds) or not (
        is_categorical or all(part.dtype == dtype for part in fit)
    ):
        return None
    categories = united([before.categories, *(part.categories for part in fit if part.categories is not None)])
    if not categories[: len(before.categories)].equals(before.categories):
        return None
    if is_categorical:
        dtype = pd.CategoricalDtype(categories, ordered=is_ordered([dtype, *(part.dtype for part in fit)]))
    parts = [part if own == kind else _no_category(part) for part, own in zip(new, kinds, strict=True)]
    recodes = (*before.recodes, *(_recode(categories, part) for part in parts))
    return Column(before.name, categories, dtype, (*before.parts, *parts), recodes)


def _recode(categories: pd.Index[Any], part: StoreColumn) -> NDArray[np.int32] | None:
    """Give the common code for each code of a store; None if they are the same."""
    assert part.categories is not None
    if categories[: len(part.categories)].equals(part.categories):
        return None
    return np.append(categories.get_indexer(part.categories), -1).astype(np.int32)


def _merge(name: str, parts: Sequence[tuple[str, StoreColumn]]) -> Column:
    """Unite one column of all stores, by the rule of `annbatch.stores.column_kinds`."""
    stores, columns = [store for store, _ in parts], [column for _, column in parts]
    kinds = [column.kind for column in columns]
    kind = agreed(f"obs[{name!r}]", kinds, stores, lambda i: has_value(columns[i]))
    fit = [column for column, own in zip(columns, kinds, strict=True) if own == kind]
    if kind == "number":
        dtype = _common_dtype([column.dtype for column in fit])
        base = promoted([column.values.dtype for column in fit])
        if len(fit) < len(columns) and base.kind in "iu":
            dtype = pd.api.types.pandas_dtype(nullable(base))
        columns = [c if own == kind else _no_number(c, base) for c, own in zip(columns, kinds, strict=True)]
        return Column(name, None, dtype, tuple(columns), (None,) * len(columns))
    categories = united([column.categories for column in fit if column.categories is not None])
    columns = [c if own == kind else _no_category(c) for c, own in zip(columns, kinds, strict=True)]
    recodes = tuple(_recode(categories, part) for part in columns)
    return Column(name, categories, _dtype_of_categories(kind, categories, fit, columns), tuple(columns), recodes)


def _dtype_of_categories(
    kind: str, categories: pd.Index[Any], fit: Sequence[StoreColumn], columns: Sequence[StoreColumn]
) -> Any:
    dtypes = [column.dtype for column in fit]
    same = bool(dtypes) and all(dtype == dtypes[0] for dtype in dtypes)
    if kind == "boolean":
        return dtypes[0] if same and len(fit) == len(columns) else pd.BooleanDtype()
    if any(isinstance(dtype, pd.CategoricalDtype) for dtype in dtypes):
        return pd.CategoricalDtype(categories, ordered=is_ordered(dtypes))
    return dtypes[0] if same else np.dtype(object)


def _no_number(column: StoreColumn, dtype: np.dtype[Any]) -> StoreColumn:
    """Give a column without a value as one of numbers, none of which is there."""
    n_obs, is_float = len(column.values), dtype.kind == "f"
    values = Constant(np.array([np.nan if is_float else 0], dtype), n_obs)
    return StoreColumn(column.name, values, None if is_float else Constant(np.array([True]), n_obs), None, dtype)


def _no_category(column: StoreColumn) -> StoreColumn:
    """Give a column without a value as one of categories."""
    codes = Constant(np.array([-1], np.int8), len(column.values))
    return StoreColumn(column.name, codes, None, pd.Index([], dtype=object), np.dtype(object))


def _common_dtype(dtypes: list[Any]) -> Any:
    if all(dtype == dtypes[0] for dtype in dtypes):
        return dtypes[0]
    if any(pd.api.types.is_extension_array_dtype(dtype) for dtype in dtypes):
        plain = promoted([getattr(dtype, "numpy_dtype", dtype) for dtype in dtypes])
        return pd.api.types.pandas_dtype(nullable(plain)) if plain.kind in "iu" else pd.Float64Dtype()
    return promoted(dtypes)
