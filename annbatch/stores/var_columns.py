"""Which var columns do the inputs agree on?

`VarColumns.add` is told the var of one input after the other and keeps, of each column, one value for each gene: the
first. It remembers for which genes another input gave another value. `VarColumns.joined` gives the columns in which no
gene that is written has two. On request it does as `anndata.concat` instead
(`annbatch.stores.merged_var_column`).

So memory grows with the number of different genes, not with that of inputs. Everything here is pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch.errors import InputError
from annbatch.stores.column_join import join_column
from annbatch.stores.merged_var_column import Merge, MergedVarColumn, padded

Ints = npt.NDArray[np.int64]


class VarColumns:
    """The var columns of all inputs.

    Parameters
    ----------
    merge
        Strategy of `anndata.concat`; None to put columns together gene by gene.
    """

    def __init__(self, merge: Merge | None = None) -> None:
        self._merge = merge
        self._columns: dict[str, _VarColumn | MergedVarColumn] = {}
        self._n_inputs = 0

    def add(self, var: pd.DataFrame, genes: Ints) -> None:
        """Take the var of the next input, whose ``genes`` are (n_vars,) numbers."""
        for name in var.columns:
            if name not in self._columns:
                lacks, merge = self._n_inputs > 0, self._merge
                self._columns[name] = _VarColumn(lacks) if merge is None else MergedVarColumn(merge, lacks)
        for name, column in self._columns.items():
            column.add(var.get(name), genes)
        self._n_inputs += 1

    def joined(self, names: pd.Index[Any], known: Mapping[str, int]) -> pd.DataFrame:
        """Give var, (n_vars, …), of the genes ``names``, whose numbers are those in ``known``."""
        numbers = np.fromiter((known[name] for name in names), np.int64, len(names))
        found = {}
        for name, column in self._columns.items():
            if column.agrees_on(numbers):
                # What is of no kind that is written is left out like what differs.
                with suppress(InputError):
                    found[name] = _identifiers_as_strings(column.of(numbers))
        return pd.DataFrame(found, index=names)


class _VarColumn:
    """One column of all inputs.

    Parameters
    ----------
    lacking
        Whether an input had no such column.
    """

    def __init__(self, lacking: bool) -> None:
        self._lacking = lacking
        self._is_one_kind = True
        self._last: tuple[pd.Series[Any], Ints] | None = None
        # One row of each type of column that came without a value.
        self._valueless: list[pd.Series[Any]] = []
        self._has_value = False
        # The first value of each gene that has one, where each known gene's is (-1: nowhere), and whether another
        # input gave another one.
        self._values: pd.Series[Any] | None = None
        self._row = np.zeros(0, np.int64)
        self._disputed = np.zeros(0, bool)

    def add(self, given: pd.Series[Any] | None, genes: Ints) -> None:
        """Take the column of the next input; None if it has none."""
        self._lacking |= given is None
        if given is None or not self._is_one_kind or self._is_last(given, genes):
            return
        self._last = (given, genes)
        missing = given.isna().to_numpy()
        self._lacking |= bool(missing.any())
        if missing.all():
            if all(one.dtype != given.dtype for one in self._valueless):
                self._valueless.append(given.iloc[:1])
            if not isinstance(given.dtype, pd.CategoricalDtype):
                return
        else:
            self._has_value = True
        try:
            self._take(given, genes, ~missing)
        except InputError:
            # Two kinds of one column contradict each other as much as two values do.
            self._is_one_kind, self._values = False, None

    def agrees_on(self, numbers: Ints) -> bool:
        """Say whether no two inputs contradict each other about one of these genes."""
        return self._is_one_kind and not padded(self._disputed, numbers, False)[numbers].any()

    def of(self, numbers: Ints) -> Any:
        """Give the column of these genes: (n,)."""
        parts = [self._values] if self._values is not None and self._has_value else self._valueless
        # A row without a value makes room for missing ones in the type.
        lengths = [*map(len, parts), 1][: len(parts) + self._lacking]
        whole = _joined([*parts, None][: len(lengths)], lengths)
        return whole.reindex(padded(self._row, numbers, -1)[numbers])

    def _is_last(self, given: pd.Series[Any], genes: Ints) -> bool:
        if self._last is None:
            return False
        column, of_genes = self._last
        return np.array_equal(of_genes, genes) and column.equals(given)

    def _take(self, given: pd.Series[Any], genes: Ints, present: npt.NDArray[np.bool_]) -> None:
        parts = [given] if self._values is None else [self._values, given]
        stacked, n_known = _joined(parts, list(map(len, parts))), sum(map(len, parts[:-1]))
        self._row = padded(self._row, genes, -1)
        self._disputed = padded(self._disputed, genes, False)
        before = self._row[genes]
        again, new = np.flatnonzero(present & (before >= 0)), np.flatnonzero(present & (before < 0))
        left, right = stacked.iloc[before[again]], stacked.iloc[n_known + again]
        self._disputed[genes[again[left.to_numpy() != right.to_numpy()]]] = True
        self._row[genes[new]] = n_known + np.arange(len(new))
        self._values = stacked.iloc[np.concatenate([np.arange(n_known), n_known + new])].reset_index(drop=True)


def _joined(parts: list[Any], lengths: list[int]) -> pd.Series[Any]:
    return join_column(parts, lengths, "var column", [""] * len(parts))


def _identifiers_as_strings(column: pd.Series[Any]) -> Any:
    """Undo the categories of strings that are all different, as AnnData does: gene identifiers."""
    if isinstance(column.dtype, pd.CategoricalDtype) and column.notna().all() and column.is_unique:
        return column.astype(object).to_numpy()
    return column.array
