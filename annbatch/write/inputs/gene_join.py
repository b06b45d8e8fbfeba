"""What are the genes and the columns of all inputs together?

1. `join_genes` decides which genes there are, and to which joined column each input's genes go.
2. `join_column` stacks one column of several tables: categories become the union by first appearance, what a table
   lacks is missing.
3. `join_var` keeps the var columns on which the inputs agree.

Everything here is pure: no I/O. All stores get the same categories, so a code means the same in each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch.errors import InputError
from annbatch.write.inputs.contents import Source

MAX_CATEGORIES = 2**16
"""Strings with more distinct values than this, most of which occur once, are identifiers and stay strings."""


How = Literal["outer", "inner", "same"]


@dataclass(frozen=True, slots=True)
class GeneJoin:
    """The joined genes, and where each input's genes go."""

    names: pd.Index[str]
    """(n_vars,) joined var names."""
    columns: tuple[npt.NDArray[np.int64], ...]
    """Per input: (its n_vars,) joined column of each gene, -1 where it is left out."""


def join_genes(sources: Sequence[Source], join: How, var_names: Iterable[str] | None) -> GeneJoin:
    """Join the inputs' genes: all or the shared ones by first appearance, or exactly ``var_names``.

    Raises
    ------
    InputError
        If ``join`` is unknown, no gene is left, ``var_names`` repeats a name or has one that no input has, or an input
        has not the same genes as the first one though ``join`` is ``"same"``.
    """
    if join not in ("outer", "inner", "same"):
        raise InputError(f"join must be 'outer', 'inner' or 'same', got {join!r}")
    if join == "same":
        _check_same(sources)
    known = dict.fromkeys(chain.from_iterable(source.var.index for source in sources))
    if var_names is not None:
        if isinstance(var_names, str):
            raise InputError(f"var_names must be a list of names, got the string {var_names!r}")
        names = [str(name) for name in var_names]
        if len(set(names)) != len(names):
            raise InputError(f"var_names must be unique, got more than one of {_some(_repeated(names))}")
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"var_names must be in at least one input, got {_some(unknown)}")
    elif join == "inner":
        shared = set(known).intersection(*(source.var.index for source in sources))
        names = [name for name in known if name in shared]
    else:
        names = list(known)
    if not names:
        raise InputError(f"no genes are left: join={join!r} of {[s.name for s in sources]} has no gene in common")
    return _placed(pd.Index(names, dtype=object), sources)


def fit_genes(sources: Sequence[Source], names: pd.Index[str]) -> GeneJoin:
    """Place the inputs' genes among those of a collection that is there; others are left out.

    Raises
    ------
    InputError
        If an input has none of its genes.
    """
    found = _placed(names, sources)
    for source, columns in zip(sources, found.columns, strict=True):
        if (columns < 0).all():
            raise InputError(
                f"{source.name}: must share a gene with the collection, has {_some(list(source.var.index))}"
            )
    return found


def _placed(names: pd.Index[str], sources: Sequence[Source]) -> GeneJoin:
    return GeneJoin(names, tuple(names.get_indexer(s.var.index).astype(np.int64) for s in sources))


def _check_same(sources: Sequence[Source]) -> None:
    first = sources[0]
    for source in sources[1:]:
        missing = first.var.index.difference(source.var.index, sort=False)
        extra = source.var.index.difference(first.var.index, sort=False)
        if len(missing) or len(extra):
            raise InputError(
                f"{source.name}: must have the same genes as {first.name} (join='same'), lacks {len(missing)} "
                f"{_some(list(missing))} and has {len(extra)} others {_some(list(extra))}"
            )


def join_var(sources: Sequence[Source], genes: GeneJoin) -> pd.DataFrame:
    """Give the joined var, (n_vars, …): for each gene the first input's values.

    Only columns in which no two inputs contradict each other about a gene are kept.
    """
    frames = [source.var for source in sources]
    columns = np.concatenate(genes.columns)
    lengths = [len(frame) for frame in frames]
    joined = {}
    for name in dict.fromkeys(chain.from_iterable(frames)):
        try:
            stacked = join_column(
                [f.get(name) for f in frames], lengths, f"var column {name!r}", [s.name for s in sources]
            )
        except InputError:
            # Two kinds of one column contradict each other as much as two values do.
            continue
        present = np.flatnonzero(stacked.notna().to_numpy() & (columns >= 0))
        genes_with, first = np.unique(columns[present], return_index=True)
        first_row = np.full(len(genes.names), -1)
        first_row[genes_with] = present[first]
        left, right = stacked.iloc[present], stacked.iloc[first_row[columns[present]]]
        if (left.to_numpy() == right.to_numpy()).all():
            joined[name] = _identifiers_as_strings(stacked.reindex(first_row))
    return pd.DataFrame(joined, index=genes.names)


def join_column(
    columns: Sequence[pd.Series[Any] | None], lengths: Sequence[int], what: str, paths: Sequence[str]
) -> pd.Series[Any]:
    """Stack one column of several tables; None (or a column without any value) is missing in all of its rows.

    Strings and categoricals become a categorical, unless the strings are identifiers (`MAX_CATEGORIES`); it is ordered
    only if all
    inputs agree on the order. Numbers get their common type: NaN where missing, nullable if the inputs are nullable
    integers or
    integers that float64 cannot hold. Booleans with missing rows become nullable.

    Raises
    ------
    InputError
        If the inputs disagree on what kind of column it is, or it is of no such kind.
    """
    kinds: dict[str, str] = {}
    present: list[pd.Series[Any] | None] = []
    for column, path in zip(columns, paths, strict=True):
        kind = "empty" if column is None else _kind(column, what, path)
        present.append(None if kind == "empty" else column)
        if kind != "empty":
            kinds.setdefault(kind, path)
    if len(kinds) > 1:
        found = ", ".join(f"{kind} in {path}" for kind, path in kinds.items())
        raise InputError(f"{what} must be of one kind in all inputs, got {found}")
    kind = next(iter(kinds), "empty")
    if kind == "boolean":
        return _stack_maskable(present, lengths, np.dtype(bool))
    if kind == "number" or (kind == "empty" and all(c is None or c.dtype.kind in "iuf" for c in columns)):
        return _stack_numbers(present, lengths)
    return _stack_categories(present, lengths)


def _kind(column: pd.Series[Any], what: str, path: str) -> str:
    """``"category of string"`` and the like, ``"boolean"``, ``"number"``, or ``"empty"`` if no value is there."""
    if len(column) and column.isna().all():
        return "empty"
    if isinstance(column.dtype, pd.CategoricalDtype):
        inferred = pd.api.types.infer_dtype(column.cat.categories, skipna=True)
    elif column.dtype.kind in "iuf":
        return "number"
    else:
        inferred = pd.api.types.infer_dtype(column, skipna=True)
        if inferred == "boolean":
            return "boolean"
    if inferred == "empty":
        return "empty"
    if inferred == "string" or (
        isinstance(column.dtype, pd.CategoricalDtype) and inferred in ("integer", "floating", "boolean")
    ):
        return f"category of {inferred}"
    raise InputError(
        f"{path}: {what} must hold strings, categories, numbers or booleans, got {inferred} ({column.dtype})"
    )


def _stack_categories(columns: Sequence[pd.Series[Any] | None], lengths: Sequence[int]) -> pd.Series[Any]:
    pieces: list[tuple[npt.NDArray[np.int32], list[Any]]] = []
    for column, length in zip(columns, lengths, strict=True):
        if column is None:
            pieces.append((np.full(length, -1, np.int32), []))
        elif isinstance(column.dtype, pd.CategoricalDtype):
            pieces.append((column.cat.codes.to_numpy().astype(np.int32), column.cat.categories.tolist()))
        else:
            codes, values = pd.factorize(column.to_numpy(dtype=object, na_value=None))  # type: ignore[call-overload]
            pieces.append((codes.astype(np.int32), values.tolist()))
    number = {value: i for i, value in enumerate(dict.fromkeys(chain.from_iterable(values for _, values in pieces)))}
    # The extra last entry is what code -1 picks.
    lookups = [np.array([number[value] for value in values] + [-1], np.int32) for _, values in pieces]
    codes = np.concatenate([lookup[codes] for lookup, (codes, _) in zip(lookups, pieces, strict=True)])
    if (
        len(number) > max(MAX_CATEGORIES, len(codes) // 2)
        and (codes >= 0).all()
        and isinstance(next(iter(number)), str)
    ):
        return pd.Series(np.array(list(number), dtype=object)[codes], dtype=object)
    present = [c for c in columns if c is not None]
    ordered = all(isinstance(c.dtype, pd.CategoricalDtype) and c.cat.ordered for c in present)
    ordered = ordered and all(c.cat.categories.equals(present[0].cat.categories) for c in present)
    return pd.Series(pd.Categorical.from_codes(codes, categories=pd.Index(list(number)), ordered=ordered))


def _stack_numbers(columns: Sequence[pd.Series[Any] | None], lengths: Sequence[int]) -> pd.Series[Any]:
    present = [c for c in columns if c is not None]
    if not present:
        return pd.Series(np.full(sum(lengths), np.nan))
    # A nullable type knows the plain one of its values.
    types: list[Any] = [getattr(c.dtype, "numpy_dtype", None) or c.dtype for c in present]
    common = np.result_type(*types)
    if common.kind in "iu":
        nullable = any(pd.api.types.is_extension_array_dtype(c.dtype) for c in present)
        exact = all(max(abs(int(c.min())), abs(int(c.max()))) <= 2**53 for c in present if len(c))
        if nullable or not exact or len(present) == len(columns):
            return _stack_maskable(columns, lengths, common)
        common = np.dtype(np.float64)
    pieces = []
    for column, length in zip(columns, lengths, strict=True):
        piece = np.full(length, np.nan, dtype=common)
        if column is not None:
            there = column.notna().to_numpy()
            piece[there] = column[there].to_numpy(dtype=common)
        pieces.append(piece)
    return pd.Series(np.concatenate(pieces))


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


def _identifiers_as_strings(column: pd.Series[Any]) -> Any:
    """Undo the categories of strings that are all different, as AnnData does: gene identifiers."""
    if isinstance(column.dtype, pd.CategoricalDtype) and column.notna().all() and column.is_unique:
        return column.astype(object).to_numpy()
    return column.array


def _repeated(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def _some(names: Sequence[str]) -> str:
    return str(list(names[:5])) + (" …" if len(names) > 5 else "")
