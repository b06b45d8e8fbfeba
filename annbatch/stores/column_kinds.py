"""Of what kind is an obs column, and of what kind are the columns of several tables together?

Building joins the columns of inputs, loading those of stores. Both follow the rule that stands here:

1. `plain` gives a column the type of its values, where pandas has a wrapper around them.
2. `kind_of` and `kind_of_categories` say what it holds: ``"boolean"``, ``"number"``, ``"category of string"`` and so
   on. Text is a category of strings. A column that names no category and holds nothing has `NO_KIND`.
3. `agreed` finds the one kind of all of them. A column without a value fits every kind; any other difference is an
   error: ``1`` and ``"1"`` are not the same, nor are ``True`` and ``1``.
4. `united` and `is_ordered` join categories, by first appearance.

Everything here is pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from annbatch.errors import InputError

NO_KIND = "nothing"
"""The kind of a column that has no value, and neither a type that says which it could have."""

TEXT = "category of string"
"""The kind of text."""

_UNCLEAR = frozenset({"mixed", "mixed-integer", "complex", "unknown-array"})
"""Kinds, in pandas' terms, whose values are not comparable with each other."""


def plain(column: pd.Series[Any], where: str) -> pd.Series[Any]:
    """Give a column of booleans, numbers (nullable or not) or categories as such, whatever pandas wraps them in.

    Raises
    ------
    InputError
        If it holds integers that no type of 64 bits holds.
    """
    dtype: Any = column.dtype
    if isinstance(dtype, pd.SparseDtype):
        column = column.astype(dtype.subtype)
    elif isinstance(dtype, pd.ArrowDtype):
        column = column.astype(object)
    if column.dtype != object:
        return column
    inferred = pd.api.types.infer_dtype(column, skipna=True)
    has_gaps = bool(column.isna().any())
    try:
        if inferred == "boolean":
            return column.astype("boolean" if has_gaps else bool)
        if inferred == "integer":
            is_large = column.dropna().max() > np.iinfo(np.int64).max
            return column.astype(("UInt64" if is_large else "Int64") if has_gaps else "uint64" if is_large else "int64")
        if inferred in ("floating", "mixed-integer-float"):
            numbers = column.astype(np.float64)
            if (numbers.dropna() != column.dropna()).any():
                raise ValueError("float64 does not hold all integers among the values")
            return numbers
    except (OverflowError, TypeError, ValueError) as e:
        raise InputError(f"{where} must hold values of one type of at most 64 bits, got {inferred}: {e}") from e
    return column


def kind_of(column: pd.Series[Any], where: str) -> str:
    """Say of what kind a `plain` column is.

    Raises
    ------
    InputError
        If its values are of several kinds, or numbers of more than 64 bits.
    """
    dtype: Any = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return kind_of_categories(dtype.categories, where)
    if pd.api.types.is_bool_dtype(dtype):
        return "boolean"
    if pd.api.types.is_numeric_dtype(dtype) and dtype.kind in "iuf":
        if dtype.itemsize > 8:
            raise InputError(f"{where} must hold numbers of at most 64 bits, got {dtype}; convert it with astype")
        return "number"
    return NO_KIND if column.isna().all() else kind_of_categories(column, where)


def kind_of_categories(values: Any, where: str) -> str:
    """Say of what kind categories are, or texts and other objects that become categories.

    Raises
    ------
    InputError
        If they are of several kinds.
    """
    inferred = pd.api.types.infer_dtype(values, skipna=True)
    if inferred == "empty":
        return NO_KIND
    if inferred in _UNCLEAR:
        raise InputError(
            f"{where} must hold values of one kind, got {inferred} ({values.dtype}); "
            f"convert it with astype(str), or leave it out"
        )
    return f"category of {inferred}"


def agreed(what: str, kinds: Sequence[str], names: Sequence[str], has_value: Callable[[int], bool]) -> str:
    """Find the kind of one column over several tables; `NO_KIND` if none has a value.

    Parameters
    ----------
    what
        What messages call the column.
    kinds
        Its kind in each table.
    names
        What messages call the tables.
    has_value
        Says whether it has a value in table ``i``. It is asked only where kinds differ, since the answer may take
        reading all of a column.

    Raises
    ------
    InputError
        If tables have values of different kinds; names the kinds and tables.
    """
    stated = [i for i, kind in enumerate(kinds) if kind != NO_KIND]
    if len({kinds[i] for i in stated}) > 1:
        stated = [i for i in stated if has_value(i)]
    found: dict[str, str] = {}
    for i in stated:
        found.setdefault(kinds[i], names[i])
    if len(found) > 1:
        raise InputError(
            f"{what} must be of one kind everywhere, got "
            + ", ".join(f"{kind} in {name}" for kind, name in found.items())
            + "; convert it with astype where it differs, or leave it out"
        )
    return next(iter(found), NO_KIND)


def as_categories(text: pd.Series[Any]) -> pd.Categorical:
    """Make categories of text, or of other objects, by first appearance."""
    given: Any = text.to_numpy(dtype=object, na_value=None)  # type: ignore[call-overload]
    codes, values = pd.factorize(given)
    if (codes >= 0).all() and not (values[codes] == given).all():
        # To pandas, strings end at a NUL.
        numbers = {value: number for number, value in enumerate(dict.fromkeys(given))}
        codes, values = np.array([numbers[value] for value in given]), list(numbers)
    return pd.Categorical.from_codes(codes, categories=pd.Index(values, dtype=object))


def united(categories: Sequence[pd.Index[Any]]) -> pd.Index[Any]:
    """Join the categories of one kind of several tables, by first appearance; none where there is no table."""
    if not categories:
        return pd.Index([], dtype=object)
    first = categories[0]
    if all(other.dtype == first.dtype and other.equals(first) for other in categories[1:]):
        return first
    values = list(dict.fromkeys(chain.from_iterable(other.tolist() for other in categories)))
    joined: pd.Index[Any] = pd.Index(
        values, dtype=first.dtype if len({str(c.dtype) for c in categories}) == 1 else None
    )
    return joined


def is_ordered(dtypes: Sequence[Any]) -> bool:
    """Say whether joined categories are ordered: only if all tables with categories have them in the same order."""
    return bool(dtypes) and all(
        isinstance(dtype, pd.CategoricalDtype) and dtype.ordered and dtype.categories.equals(dtypes[0].categories)
        for dtype in dtypes
    )
