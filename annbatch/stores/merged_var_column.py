"""What does `anndata.concat` make of a var column of several inputs?

It takes whole columns, as they are once they have the joined genes, with missing values where an input lacks one:

- ``"same"``: columns that all inputs have, with the same values.
- ``"unique"``: columns that have the same values in all inputs that have them.
- ``"first"``: of each column that of the first input which has it.

`MergedVarColumn` keeps the first column, and for each gene whether another input has another value: which genes are
joined is known only at the end. Everything here is pure: no I/O.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch.stores.column_join import join_column

Merge = Literal["same", "unique", "first"]
Ints = npt.NDArray[np.int64]


class MergedVarColumn:
    """One column of all inputs.

    Parameters
    ----------
    merge
        Which strategy.
    lacking
        Whether an input had no such column.
    """

    def __init__(self, merge: Merge, lacking: bool) -> None:
        self._merge = merge
        self._lacking = lacking
        self._first: pd.Series[Any] | None = None
        self._genes = np.zeros(0, np.int64)
        self._disputed = np.zeros(0, bool)
        # By the type of a column: which genes all inputs have whose column is of that type.
        self._held: dict[Any, npt.NDArray[np.bool_]] = {}

    def add(self, given: pd.Series[Any] | None, genes: Ints) -> None:
        """Take the column of the next input; None if it has none."""
        if given is None:
            self._lacking = True
        elif self._first is None:
            self._first, self._genes = given.reset_index(drop=True), genes
            self._note_type(given.dtype, genes)
        elif self._merge != "first" and not (np.array_equal(genes, self._genes) and given.equals(self._first)):
            self._note_type(given.dtype, genes)
            self._compare(given.reset_index(drop=True), genes)

    def agrees_on(self, numbers: Ints) -> bool:
        """Say whether the strategy takes the column, for these genes."""
        if self._merge == "first":
            return True
        types = [
            dtype if padded(held, numbers, False)[numbers].all() else _with_gaps(dtype)
            for dtype, held in self._held.items()
        ]
        differs = padded(self._disputed, numbers, False)[numbers].any() or len(set(types)) > 1
        return not differs and not (self._lacking and self._merge == "same")

    def of(self, numbers: Ints) -> Any:
        """Give the column of these genes: (n,).

        Raises
        ------
        InputError
            If it is of a kind that is not written.
        """
        assert self._first is not None
        rows = places(self._genes, numbers)
        # A row without a value makes room for missing ones in the type.
        gap = [None] if (rows < 0).any() else []
        lengths = [len(self._first), 1][: 1 + len(gap)]
        return join_column([self._first, *gap], lengths, "var column", [""] * len(lengths)).reindex(rows)

    def _note_type(self, dtype: Any, genes: Ints) -> None:
        held = np.zeros(int(genes.max(initial=-1)) + 1, bool)
        held[genes] = True
        if dtype in self._held:
            n = min(len(held), len(self._held[dtype]))
            held = held[:n] & self._held[dtype][:n]
        self._held[dtype] = held

    def _compare(self, given: pd.Series[Any], genes: Ints) -> None:
        assert self._first is not None
        both = np.union1d(self._genes, genes)
        left, right = (
            column.astype(object).reindex(places(of_column, both))
            for column, of_column in ((self._first, self._genes), (given, genes))
        )
        missing = left.isna().to_numpy(), right.isna().to_numpy()
        other = missing[0] != missing[1]
        valued = np.flatnonzero(~missing[0] & ~missing[1])
        other[valued] = left.to_numpy()[valued] != right.to_numpy()[valued]
        self._disputed = padded(self._disputed, both, False)
        self._disputed[both[other]] = True


def places(genes: Ints, numbers: Ints) -> Ints:
    """Give, for each of ``numbers``, its place in ``genes``, -1 where it is not there."""
    found = padded(np.zeros(0, np.int64), np.concatenate([genes, numbers]), -1)
    found[genes] = np.arange(len(genes))
    return found[numbers]


def padded(array: npt.NDArray[Any], numbers: Ints, fill: Any) -> npt.NDArray[Any]:
    """Give the array, long enough to be indexed with ``numbers``."""
    missing = max(0, int(numbers.max(initial=-1)) + 1 - len(array))
    return np.concatenate([array, np.full(missing, fill, array.dtype)]) if missing else array


def _with_gaps(dtype: Any) -> Any:
    """Give the type that pandas makes of a column when some of its values are missing."""
    if isinstance(dtype, np.dtype) and dtype.kind in "biu":
        return np.dtype(object if dtype.kind == "b" else np.float64)
    return dtype
