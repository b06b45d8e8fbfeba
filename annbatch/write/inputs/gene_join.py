"""What are the genes and the columns of all inputs together?

1. `join_genes` decides which genes there are, and to which joined column each input's genes go.
2. `join_column` stacks one column of several tables: categories become the union by first appearance, what a table
   lacks is missing.

Nothing here does I/O but reading the lists of genes (`annbatch.write.inputs.gene_lists`). All stores get the same
categories, so a code means the same in each.
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
from annbatch.write.inputs.gene_lists import GeneLists, Ints

MAX_CATEGORIES = 2**16
"""Strings with more distinct values than this, most of which occur once, are identifiers and stay strings."""


How = Literal["outer", "inner", "same"]


@dataclass(frozen=True, slots=True, eq=False)
class GeneJoin:
    """The joined genes, and where each input's genes go."""

    names: pd.Index[str]
    """(n_vars,) joined var names."""
    placed: Ints
    """(n_known,) joined column of each gene of any input, -1 where it is left out."""
    lists: GeneLists
    """The genes of the inputs."""

    def columns(self, source: int) -> Ints:
        """Give the joined column of each gene of an input, -1 where it is left out: (its n_vars,)."""
        return self.placed[self.lists.numbers(source)]

    def n_lost(self) -> list[tuple[int, int]]:
        """Say, per input, how many genes it has, and how many of them are left out."""
        kept = [int((self.placed[numbers] >= 0).sum()) for numbers in self.lists]
        lengths = self.lists.lengths
        return [(lengths[number], lengths[number] - kept[number]) for number in self.lists.of_input]


def join_genes(lists: GeneLists, paths: Sequence[str], join: How, var_names: Iterable[str] | None) -> GeneJoin:
    """Join the inputs' genes: all or the shared ones by first appearance, or exactly ``var_names``.

    Raises
    ------
    InputError
        If ``join`` is unknown, no gene is left, ``var_names`` repeats a name or has one that no input has, or an input
        has not the same genes as the first one though ``join`` is ``"same"``.
    """
    if join not in ("outer", "inner", "same"):
        raise InputError(f"join must be 'outer', 'inner' or 'same', got {join!r}")
    known, in_all = lists.known, lists.n_lists_with == len(lists.lengths)
    if join == "same" and not in_all.all():
        _refuse_others(lists, paths)
    if var_names is not None:
        if isinstance(var_names, str):
            raise InputError(f"var_names must be a list of names, got the string {var_names!r}")
        names = [str(name) for name in var_names]
        if len(set(names)) != len(names):
            raise InputError(f"var_names must be unique, got more than one of {_some(_repeated(names))}")
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"var_names must be in at least one input, got {_some(unknown)}")
    elif join == "inner":
        names = [name for name, number in known.items() if in_all[number]]
    else:
        names = list(known)
    if not names:
        raise InputError(f"no genes are left: join={join!r} of {_some(paths)} has no gene in common")
    return _placed(pd.Index(names, dtype=object), lists)


def fit_genes(lists: GeneLists, paths: Sequence[str], names: pd.Index[str]) -> GeneJoin:
    """Place the inputs' genes among those of a collection that is there; others are left out.

    Raises
    ------
    InputError
        If an input has none of its genes.
    """
    found = _placed(names, lists)
    genes = list(lists.known)
    for number, numbers in enumerate(lists):
        if (found.placed[numbers] < 0).all():
            some = _some([genes[i] for i in numbers[:6]])
            raise InputError(f"{paths[lists.first_with(number)]}: must share a gene with the collection, has {some}")
    return found


def _placed(names: pd.Index[str], lists: GeneLists) -> GeneJoin:
    known = pd.Index(list(lists.known), dtype=object)
    return GeneJoin(names, names.get_indexer(known).astype(np.int64), lists)


def _refuse_others(lists: GeneLists, paths: Sequence[str]) -> None:
    """Refuse the first input that has other genes than the first of all."""
    genes = np.array(list(lists.known), dtype=object)
    first, *others = lists
    for number, numbers in enumerate(others, start=1):
        missing, extra = first[~np.isin(first, numbers)], numbers[~np.isin(numbers, first)]
        if len(missing) or len(extra):
            raise InputError(
                f"{paths[lists.first_with(number)]}: must have the same genes as {paths[0]} (join='same'), lacks "
                f"{len(missing)} {_some(genes[missing].tolist())} and has {len(extra)} others "
                f"{_some(genes[extra].tolist())}"
            )


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


def _repeated(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def _some(names: Sequence[str]) -> str:
    return str(list(names[:5])) + (" …" if len(names) > 5 else "")
