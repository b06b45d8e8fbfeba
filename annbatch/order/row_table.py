"""What does a sampler know of the data, and what does it give?

1. A `Table` is the data as samplers see them: how many rows there are, and in which class each of them is.
2. `Sampler.bind` takes a table and gives a function from the epoch's number to its `annbatch.order.consumers.Order`.

Pure: no store, no thread, no environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annbatch import summary
from annbatch.errors import InputError
from annbatch.native import Kernel
from annbatch.order.consumers import Order
from annbatch.order.permutation import Ints
from annbatch.order.row_selection import Runs


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """The classes of rows, from an obs column."""

    name: str
    """Name of the column."""
    codes: NDArray[Any]
    """Class of each row, (n_rows,) integers; -1 if it is missing."""
    categories: pd.Index[Any]
    """Categories, (n_categories,); code i means ``categories[i]``."""

    def code(self, category: object) -> int:
        """Return the code of a category.

        Raises
        ------
        InputError
            If the column has no such category.
        """
        # pandas takes a part of a tuple for all tuples that begin with it.
        is_whole = not isinstance(self.categories, pd.MultiIndex) or (
            isinstance(category, tuple) and len(category) == self.categories.nlevels
        )
        if not is_whole or category not in self.categories:
            held = summary.short(self.categories.tolist())
            raise InputError(f"obs[{self.name!r}] must have the category {category!r}, got only {held}")
        return int(self.categories.get_indexer(pd.Index([category]))[0])

    def select(self, rows: Runs) -> Classes:
        """Return the classes of a subset of the rows."""
        return replace(self, codes=rows.select(self.codes))

    def counts(self) -> Ints:
        """Return the number of rows of each class, (n_categories,) int64."""
        present = self.codes[self.codes >= 0]
        return np.bincount(present, minlength=len(self.categories)).astype(np.int64)


def joint(columns: Sequence[Classes]) -> Classes:
    """Make one class of tuples out of several columns.

    Its categories are the combinations that rows have, in the order of the columns' categories. A row that lacks one of
    the columns' classes has none.
    """
    codes = np.zeros(len(columns[0].codes), np.int64)
    combinations = np.zeros((1, 0), np.int64)
    for column in columns:
        n_categories = len(column.categories)
        both = codes * n_categories + column.codes
        both[(codes < 0) | (column.codes < 0)] = -1
        present, found = np.unique(both, return_inverse=True)
        n_missing = int(len(present) > 0 and present[0] < 0)
        codes, present = found - n_missing, present[n_missing:]
        combinations = np.column_stack([combinations[present // n_categories], present % n_categories])
    names = [column.name for column in columns]
    levels: list[Any] = [column.categories for column in columns]
    categories = pd.MultiIndex(levels=levels, codes=list(combinations.T), names=names)
    return Classes(", ".join(names), codes.astype(np.min_scalar_type(-len(categories) - 1)), categories)


def names_of(by: str | Sequence[str], name: str = "by") -> tuple[str, ...]:
    """Give the names of the obs columns that make a class: one, or several.

    Raises
    ------
    InputError
        If there is none, or one comes twice.
    """
    found = (by,) if isinstance(by, str) else tuple(by)
    if not found or not all(isinstance(one, str) for one in found) or len(set(found)) < len(found):
        raise InputError(f"{name} must be the name of an obs column, or a list of distinct names, got {by!r}")
    return found


def described(by: str | Sequence[str]) -> str | list[str]:
    """Give what makes a class, as a value that JSON holds."""
    return by if isinstance(by, str) else list(by)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The rows that a sampler chooses from, numbered from 0 through the stores."""

    store_rows: tuple[int, ...]
    """Rows of each store."""
    batch_size: int
    """Rows of a full batch."""
    chunk_size: int
    """Rows of a block, which are read contiguously."""
    seed: int
    """Seed of the order."""
    least_rows: int
    """Minimum number of rows of a batch, below which its rows are dropped; ``batch_size`` if it must be full."""
    classes: Mapping[str, Classes]
    """The obs columns that the sampler names in `Sampler.columns`, by name."""
    n_stored: int
    """Number of rows in the stores, of which the table has all or some."""
    rows: Runs | None
    """Which rows of the stores the table has; None means all."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return sum(self.store_rows)

    def classes_by(self, by: str | Sequence[str]) -> Classes:
        """Return a column in `classes`, or several of them as one whose classes are tuples."""
        return self.classes[by] if isinstance(by, str) else joint([self.classes[name] for name in by])

    def select(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the values of the table's rows, (n_rows, …), out of those of all stored rows, (n_stored, …)."""
        return values if self.rows is None else self.rows.select(values)


@runtime_checkable
class Sampler(Protocol):
    """Chooses the rows of an epoch, their order and their batches.

    A sampler is pure: its orders depend only on the table and the number of the epoch. It needs the three members
    below. `Shuffled`, `Weighted` and the others are frozen dataclasses that have them.
    """

    @property
    def columns(self) -> Sequence[str]:
        """Names of the obs columns whose classes the sampler needs for every row."""
        ...

    def bind(self, table: Table) -> Callable[[int], Order]:
        """Check that the sampler fits the data, and return a function from an epoch's number to its order.

        Raises
        ------
        InputError
            If it does not fit. The message should name the argument, the rule and the value.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what distinguishes the sampler from others, as values that JSON holds.

        A state can only be loaded by a loader whose sampler has the same description.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ClassRows:
    """The rows of a table by their class."""

    rows: NDArray[Any]
    """(n,) row numbers, class after class, ascending within each; rows without a class are left out."""
    first: Ints
    """(n_classes + 1,) where the rows of each class begin."""

    @classmethod
    def of(cls, codes: NDArray[Any], n_classes: int) -> ClassRows:
        """Sort rows by class: codes are in [-1, n_classes)."""
        first = np.zeros(n_classes + 1, np.int64)
        present = codes[codes >= 0]
        first[1:] = np.cumsum(np.bincount(present, minlength=n_classes))
        # Half the memory where row numbers fit.
        rows = np.empty(len(present), np.uint32 if len(codes) < 1 << 32 else np.int64)
        _deal(codes, first[:-1].copy(), rows)
        return cls(rows, first)

    def counts(self) -> Ints:
        """Count the rows of each class."""
        return np.diff(self.first)

    def find(self, code: int, numbers: Ints) -> Ints:
        """Give the rows that have these numbers in their class."""
        found: Ints = self.rows[self.first[code] + numbers].astype(np.int64)
        return found


@Kernel
def _deal(codes: Any, ends: Any, rows: Any) -> None:
    for row in range(codes.size):
        code = codes[row]
        if code >= 0:
            rows[ends[code]] = row
            ends[code] += 1


def ranks_in_class(codes: NDArray[Any], n_classes: int) -> NDArray[np.int64]:
    """Say how many rows of the same class stand before each row: (n_rows,) int64."""
    ranks = np.empty(len(codes), np.int64)
    _rank(codes, np.zeros(n_classes, np.int64), ranks)
    return ranks


@Kernel
def _rank(codes: Any, seen: Any, ranks: Any) -> None:
    for row in range(codes.size):
        ranks[row] = seen[codes[row]]
        seen[codes[row]] += 1
