"""What does one column of several tables become in a collection?

`join_column` stacks it, by the rule that loading follows, too (`annbatch.stores.column_kinds`): categories become the
union by first appearance, and what a table lacks is missing. All stores get the same categories, so a code means the
same in each.

Everything here is pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch.errors import InputError
from annbatch.stores.column_kinds import (
    NO_KIND,
    TEXT,
    agreed,
    as_categories,
    is_ordered,
    kind_of,
    plain,
    united,
)

MAX_CATEGORIES = 2**16
"""Strings with more distinct values than this, most of which occur once, are identifiers and stay strings."""

_WRITTEN = frozenset(
    {NO_KIND, "boolean", "number", *(f"category of {kind}" for kind in ("string", "integer", "floating", "boolean"))}
)
"""Kinds of columns that AnnData writes."""


@dataclass(frozen=True, slots=True)
class KnownColumn:
    """An obs column of a collection that gets more cells."""

    column: pd.Series[Any]
    """Its type and categories, without rows."""
    has_value: bool
    """Whether any cell has a value there: if none has, the new cells may have values of any kind."""


def join_column(
    columns: Sequence[pd.Series[Any] | None],
    lengths: Sequence[int],
    what: str,
    paths: Sequence[str],
    known: KnownColumn | None = None,
) -> pd.Series[Any]:
    """Stack one column of several tables; None (or a column without any value) is missing in all of its rows.

    Which columns go together, and what becomes of categories, is said in `annbatch.stores.column_kinds`. Strings and
    categoricals become a categorical, unless the strings are identifiers (`MAX_CATEGORIES`). Numbers get their common
    type: NaN where missing, nullable if the inputs are nullable integers or integers that float64 cannot hold. Booleans
    with missing rows become nullable. A ``known`` column is one more table, before the others.

    Raises
    ------
    InputError
        If the inputs disagree on what kind of column it is, it is of no such kind, or no type holds all numbers.
    """
    if known is not None:
        columns, lengths, paths = [known.column, *columns], [0, *lengths], ["the collection", *paths]
    plain_columns = [c if c is None else plain(c, f"{path}: {what}") for c, path in zip(columns, paths, strict=True)]
    kinds = [
        NO_KIND if c is None else _written_kind(c, what, path) for c, path in zip(plain_columns, paths, strict=True)
    ]

    def has_value(i: int) -> bool:
        column = plain_columns[i]
        if known is not None and i == 0:
            return known.has_value
        return column is not None and bool(column.notna().any())

    if known is not None and known.has_value and kinds[0] == NO_KIND:
        # Text without rows.
        kinds[0] = TEXT
    kind = agreed(what, kinds, paths, has_value)
    fit = [column if own == kind else None for column, own in zip(plain_columns, kinds, strict=True)]
    if kind == "boolean":
        return _stack_maskable(fit, lengths, np.dtype(bool))
    if kind == "number" or all(column is None for column in plain_columns):
        # What has no value says nothing of the type, unless all are so.
        valued = [column if has_value(i) else None for i, column in enumerate(fit)]
        return _stack_numbers(valued if any(c is not None for c in valued) else fit, lengths, what)
    return _stack_categories(fit, lengths)


def _written_kind(column: pd.Series[Any], what: str, path: str) -> str:
    kind = kind_of(column, f"{path}: {what}")
    if kind not in _WRITTEN:
        found = kind.removeprefix("category of ")
        raise InputError(
            f"{path}: {what} must hold strings, categories, numbers or booleans, got {found} "
            f"({column.dtype}); convert it with astype(str), or leave it out"
        )
    return kind


def _stack_categories(columns: Sequence[pd.Series[Any] | None], lengths: Sequence[int]) -> pd.Series[Any]:
    parts = [
        None if c is None else c if isinstance(c.dtype, pd.CategoricalDtype) else pd.Series(as_categories(c))
        for c in columns
    ]
    categories = united([part.cat.categories for part in parts if part is not None])
    pieces = []
    for part, length in zip(parts, lengths, strict=True):
        if part is None:
            pieces.append(np.full(length, -1, np.int32))
        else:
            # The extra last entry is what code -1 picks.
            lookup = np.append(categories.get_indexer(part.cat.categories), -1).astype(np.int32)
            pieces.append(lookup[part.cat.codes.to_numpy()])
    codes = np.concatenate(pieces)
    if (
        len(categories) > max(MAX_CATEGORIES, len(codes) // 2)
        and (codes >= 0).all()
        and pd.api.types.infer_dtype(categories) == "string"
    ):
        return pd.Series(categories.to_numpy(object)[codes], dtype=object)
    ordered = is_ordered([column.dtype for column in columns if column is not None])
    return pd.Series(pd.Categorical.from_codes(codes, categories=categories, ordered=ordered))


def _stack_numbers(columns: Sequence[pd.Series[Any] | None], lengths: Sequence[int], what: str) -> pd.Series[Any]:
    present = [c for c in columns if c is not None]
    if not present:
        return pd.Series(np.full(sum(lengths), np.nan))
    # A nullable type knows the plain one of its values.
    types: list[Any] = [getattr(c.dtype, "numpy_dtype", None) or c.dtype for c in present]
    common = np.result_type(*types)
    if common.kind in "iu":
        nullable = any(pd.api.types.is_extension_array_dtype(c.dtype) for c in present)
        exact = all(max(abs(int(c.min())), abs(int(c.max()))) <= 2**53 for c in present if c.notna().any())
        if nullable or not exact or len(present) == len(columns):
            return _stack_maskable(columns, lengths, common)
        common = np.dtype(np.float64)
    pieces = []
    for column, length in zip(columns, lengths, strict=True):
        piece = np.full(length, np.nan, dtype=common)
        if column is not None:
            there = column.notna().to_numpy()
            values = column[there].to_numpy(dtype=getattr(column.dtype, "numpy_dtype", None))
            piece[there] = values
            _check_exact(values, piece[there], what)
        pieces.append(piece)
    return pd.Series(np.concatenate(pieces))


def _check_exact(values: npt.NDArray[Any], held: npt.NDArray[Any], what: str) -> None:
    """Refuse integers that become others beside the numbers of other inputs."""
    if values.dtype.kind not in "iu":
        return
    # Their sum with 2**63 would not fit: the ends of the range are no integers of a float.
    fits = (held >= np.iinfo(values.dtype).min) & (held < float(np.iinfo(values.dtype).max))
    same = fits | (np.abs(held) < 2**53)
    same[same] = held[same].astype(values.dtype) == values[same]
    if not same.all():
        raise InputError(
            f"{what} must hold numbers that fit {held.dtype}, the common type of all inputs, got "
            f"{values[~same][0]}; convert it with astype, or leave it out"
        )


def _stack_maskable(
    columns: Sequence[pd.Series[Any] | None], lengths: Sequence[int], dtype: np.dtype[Any]
) -> pd.Series[Any]:
    """Stack booleans or integers: plain if no input is nullable and no value is missing, else nullable."""
    values, masks = [], []
    for column, length in zip(columns, lengths, strict=True):
        mask = np.ones(length, dtype=bool) if column is None else column.isna().to_numpy()
        value = np.zeros(length, dtype=dtype)
        if column is not None:
            value[~mask] = column[~mask].to_numpy(dtype=dtype)
        values.append(value)
        masks.append(mask)
    value, mask = np.concatenate(values), np.concatenate(masks)
    if not mask.any() and not any(c is not None and pd.api.types.is_extension_array_dtype(c.dtype) for c in columns):
        return pd.Series(value)
    return pd.Series(pd.arrays.BooleanArray(value, mask) if dtype.kind == "b" else pd.arrays.IntegerArray(value, mask))
