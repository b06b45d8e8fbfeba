"""Which rows of a table are meant, if not all?

1. `Runs.of` takes what users pass: a boolean mask or row numbers.
2. `Runs` keeps them as runs of neighbours: a part that consists of long runs takes next to no memory. The order in
   which they were named is kept beside them where somebody asks for it.
3. `Runs.find` turns numbers within the subset into row numbers of the table.

Pure: no store, no thread, no environment.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.errors import InputError
from annbatch.order.permutation import Ints


@dataclass(frozen=True, eq=False)
class Runs:
    """A subset of the rows of a table, each once, numbered in ascending order."""

    starts: Ints
    """(n_runs,) first row of each run, ascending."""
    lengths: Ints
    """(n_runs,) rows in each run, at least 1."""
    order: Ints | None = None
    """(n,) numbers within the subset in the order in which the rows were named; None means ascending."""

    @classmethod
    def of(cls, rows: npt.ArrayLike, n_rows: int, name: str = "rows", *, ordered: bool = False) -> Runs:
        """Read a mask of (n_rows,) booleans, or row numbers in any order, each once.

        With ``ordered`` the order of row numbers is kept, else they are a set.

        Raises
        ------
        InputError
            If they are anything else, or none.
        """
        array = np.asarray(rows)
        if array.ndim != 1 or array.dtype.kind not in "biu":
            raise InputError(
                f"{name} must be a mask or row numbers, got an array of {array.dtype} with {array.ndim} axes"
            )
        order = None
        if array.dtype.kind == "b":
            if len(array) != n_rows:
                raise InputError(f"{name} must have one boolean for each of the {n_rows} rows, got {len(array)}")
            wanted = np.flatnonzero(array)
        else:
            named = array.astype(np.int64)
            wanted = np.sort(named)
            if len(wanted) and not (wanted[0] >= 0 and wanted[-1] < n_rows):
                bad = wanted[0] if wanted[0] < 0 else wanted[-1]
                raise InputError(f"{name} must be row numbers in [0, {n_rows}), got {bad}")
            if (repeats := np.flatnonzero(wanted[1:] == wanted[:-1])).size:
                raise InputError(f"{name} must name each row once, got row {wanted[repeats[0]]} more than once")
            if ordered and not np.array_equal(named, wanted):
                order = np.searchsorted(wanted, named)
        if not len(wanted):
            raise InputError(f"{name} must name at least one row, got none")
        begins = np.flatnonzero(np.append(True, wanted[1:] != wanted[:-1] + 1))
        return cls(wanted[begins], np.diff(np.append(begins, len(wanted))), order)

    def __len__(self) -> int:
        return int(self._first[-1])

    def find(self, numbers: Ints) -> Ints:
        """Give the rows of the table that have these numbers, in [0, len(self)), in the subset."""
        run = np.searchsorted(self._first, numbers, side="right") - 1
        rows: Ints = self.starts[run] + (numbers - self._first[run])
        return rows

    def select(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give the subset's values out of one for each row of the table."""
        rows = np.repeat(self.starts - self._first[:-1], self.lengths)
        rows += np.arange(len(self))
        return values[rows]

    def counts(self, store_rows: tuple[int, ...]) -> tuple[int, ...]:
        """Say how many of the rows lie in each store."""
        edges = np.cumsum((0, *store_rows), dtype=np.int64)
        run = np.searchsorted(self.starts, edges, side="right") - 1
        within = np.where(run < 0, 0, np.minimum(edges - self.starts[run], self.lengths[run]))
        before = np.where(run < 0, 0, self._first[run] + within)
        return tuple(int(n) for n in np.diff(before))

    def digest(self) -> str:
        """Give a hash of the rows, and of their order if it is kept, in hex."""
        return digest(self.starts, self.lengths, *(() if self.order is None else (self.order,)))

    @cached_property
    def _first(self) -> Ints:
        """(n_runs + 1,) number within the subset at which each run starts."""
        return np.cumsum(np.append(0, self.lengths), dtype=np.int64)


def digest(*arrays: npt.NDArray[Any]) -> str:
    """Give a hash of arrays, the same on every machine, in hex."""
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        state.update(f"{little.dtype.str}{little.shape}".encode())
        state.update(little.data)
    return state.hexdigest()
