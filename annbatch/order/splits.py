"""Which rows are for training, which for validation, which for testing?

1. By fraction: runs of neighbouring rows are dealt at random, so that each part is read nearly as fast as the whole.
   Where parts are stratified, single rows then move until each part has its share of every class.
2. By a column: categories are held out, say donors.
3. By given rows.
4. `folds` deals all rows to equal parts, for cross-validation.

Parts never overlap. Pure: no store, no thread, no environment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from annbatch.errors import InputError
from annbatch.order.permutation import MAX_WORD, Ints, Key, Purpose, shuffled
from annbatch.order.row_selection import Runs
from annbatch.order.row_table import Classes, ClassRows

Part = float | npt.ArrayLike | None
"""A fraction, categories, a mask or row numbers; None is the part that takes what the others leave."""


def run_rows(n_rows: int) -> int:
    """Say how many neighbours stay together when ``n_rows`` rows are split by fraction: a thousandth, at most 512."""
    return min(512, max(1, n_rows // 1000))


@dataclass(frozen=True, slots=True, eq=False)
class Divisible:
    """The rows that are split."""

    rows: Ints
    """(n,) numbers, ascending."""
    n_stored: int
    """Rows of the stores, which ``rows`` are some of."""
    order: Ints | None = None
    """(n,) numbers within ``rows`` in the order in which they were named; None means ascending."""
    is_ordered: bool = False
    """Whether the order of rows counts. Parts then keep that of the row numbers given for them, else ``order``. Which
    rows a part holds does not depend on it."""
    by: Classes | None = None
    """The column of ``rows`` whose categories stay together; None if there is none."""
    strata: Classes | None = None
    """The column of ``rows`` of whose classes each part gets its share; None if there is none."""

    def in_order(self, numbers: Ints) -> Ints:
        """Put numbers within ``rows``, ascending, in the order in which the rows were named."""
        return numbers if self.order is None else self.order[np.isin(self.order, numbers)]

    def runs(self, numbers: Ints, name: str) -> Runs:
        """Give the rows that have these numbers."""
        if not len(numbers):
            raise InputError(f"part {name!r} must hold at least one row, got none of {len(self.rows)}")
        return Runs.of(self.rows[numbers], self.n_stored, name, ordered=self.is_ordered)


def split(parts: Mapping[str, Part], whole: Divisible, seed: int) -> dict[str, Runs]:
    """Split rows into parts.

    Parameters
    ----------
    parts
        Name of each part to what it shall hold; at most one None.
    whole
        The rows.
    seed
        Decides where parts are drawn by fraction.

    Raises
    ------
    InputError
        If parts overlap, one of them is empty, or they are of several kinds.
    """
    rows, in_order = whole.rows, whole.in_order
    if not parts:
        raise InputError("parts must name at least one part, got none")
    rest = [name for name, part in parts.items() if part is None]
    if len(rest) > 1:
        raise InputError(f"parts must have at most one None, got {rest}")
    given = {name: part for name, part in parts.items() if part is not None}
    fractions = [isinstance(part, Real) for part in given.values()]
    if whole.strata is not None and not all(fractions):
        raise InputError(f"parts must all be fractions if stratify is given, got other values in {list(given)}")
    if whole.by is not None:
        found = {name: in_order(numbers) for name, numbers in _by_category(given, whole.by).items()}
    elif all(fractions):
        _check_fractions(given, has_rest=bool(rest))  # type: ignore[arg-type]
        part_of = _deal(list(given.values()), len(rows), seed, whole.strata)  # type: ignore[arg-type]
        found = {name: in_order(np.flatnonzero(part_of == i)) for i, name in enumerate(given)}
    elif any(fractions):
        raise InputError(f"parts must all be fractions or all be rows, got both in {list(given)}")
    else:
        found = {
            # A mask names rows, but no order.
            name: in_order(numbers) if np.asarray(given[name]).dtype == bool else numbers
            for name, numbers in _by_rows(given, rows, whole.n_stored, ordered=whole.is_ordered).items()
        }
    owner = np.full(len(rows), -1, np.int16)
    for i, (name, numbers) in enumerate(found.items()):
        taken = owner[numbers]
        if (taken >= 0).any():
            row = int(rows[numbers[np.flatnonzero(taken >= 0)[0]]])
            raise InputError(
                f"parts must not overlap, but {list(found)[int(taken.max())]!r} and {name!r} share row {row}"
            )
        owner[numbers] = i
    if rest:
        found[rest[0]] = in_order(np.flatnonzero(owner < 0))
    return {name: whole.runs(found[name], name) for name in parts}


def folds(n_folds: int, whole: Divisible, seed: int) -> list[dict[str, Runs]]:
    """Deal rows to folds, and give the parts of each: ``train`` and ``test``.

    Raises
    ------
    InputError
        If there are too few rows or groups.
    """
    if whole.by is not None:
        fold_of = _balanced(n_folds, whole.by)
    else:
        fold_of = _deal([1 / n_folds] * n_folds, len(whole.rows), seed, whole.strata)
    return [
        {
            "train": whole.runs(whole.in_order(np.flatnonzero(fold_of != i)), "train"),
            "test": whole.runs(whole.in_order(np.flatnonzero(fold_of == i)), "test"),
        }
        for i in range(n_folds)
    ]


def describe(parts: Mapping[str, Part], name: str, whole: Divisible, seed: int) -> dict[str, Any]:
    """Say how a part was made, as values that JSON holds; given rows are left to their hash."""
    specs: dict[str, Any] = {}
    for key, part in parts.items():
        if whole.by is not None and part is not None:
            specs[key] = [str(category) for category in part]  # type: ignore[union-attr]
        else:
            specs[key] = None if part is None else "rows" if np.ndim(part) else float(np.asarray(part))
    return {"part": name, "parts": specs, **_columns(whole), "seed": seed}


def describe_fold(number: int, n_folds: int, name: str, whole: Divisible, seed: int) -> dict[str, Any]:
    """Say how a part of a fold was made, as values that JSON holds."""
    return {"part": name, "fold": number, "n_folds": n_folds, **_columns(whole), "seed": seed}


def _columns(whole: Divisible) -> dict[str, Any]:
    by = {"by": None if whole.by is None else whole.by.name}
    # States of earlier versions, which did not stratify, remain valid.
    return by if whole.strata is None else by | {"stratify": whole.strata.name}


def _check_fractions(parts: Mapping[str, float], *, has_rest: bool) -> None:
    for name, fraction in parts.items():
        if not 0 < fraction < 1 and not (fraction == 1 and len(parts) == 1 and not has_rest):
            raise InputError(f"the fraction of part {name!r} must be in (0, 1), got {fraction}")
    if math.fsum(parts.values()) > 1 + 1e-9:
        raise InputError(f"fractions must sum to at most 1, got {math.fsum(parts.values())}")


def _deal(fractions: Sequence[float], n_rows: int, seed: int, strata: Classes | None) -> Ints:
    """Say which part each row goes to: (n_rows,), ``len(fractions)`` for none."""
    size = run_rows(n_rows)
    order = shuffled(-(-n_rows // size), Key(seed, 0, Purpose.SPLIT))
    ends = np.minimum(1.0, np.cumsum(fractions))
    # What is left by rounding errors is nothing.
    ends[1 - ends < 1e-9] = 1.0
    run_part = np.full(len(order), len(fractions), np.int64)
    first = 0
    for part, end in enumerate(ends.tolist()):
        last = round(end * len(order))
        run_part[order[first:last]] = part
        first = last
    part_of = np.repeat(run_part, size)[:n_rows]
    if strata is not None:
        _even_out(part_of, np.append(ends, 1.0), strata, seed)
    return part_of


def _even_out(part_of: Ints, ends: NDArray[np.float64], strata: Classes, seed: int) -> None:
    """Move as few rows as possible, so that each part has its share of every class up to one row.

    A class of n rows has marks between its parts at ``n * ends``; all marks of the class are moved on by one random
    number below 1, and then rounded down: shares are right on average, and never one row or more off.
    """
    # Rows without a class are one.
    by_class = ClassRows.of(strata.codes.astype(np.int64) + 1, len(strata.categories) + 1)
    for code in np.flatnonzero(by_class.counts()).tolist():
        rows = by_class.find(code, np.arange(by_class.counts()[code]))
        key = Key(seed, 0, Purpose.SPLIT, code + 1)
        mark = int(key.words(1)[0]) / MAX_WORD
        wanted = np.diff(np.floor(np.append(0.0, ends * len(rows)) + mark)).astype(np.int64)
        wanted[-1] += len(rows) - wanted.sum()
        rows = rows[shuffled(len(rows), replace(key, part=1))]
        parts = part_of[rows]
        by_part = np.argsort(parts, kind="stable")
        starts = np.searchsorted(parts[by_part], np.arange(len(ends) + 1))
        found = np.diff(starts)
        leaving = [by_part[starts[i] : starts[i] + max(0, found[i] - wanted[i])] for i in range(len(ends))]
        part_of[rows[np.concatenate(leaving)]] = np.repeat(np.arange(len(ends)), np.maximum(0, wanted - found))


def _balanced(n_folds: int, groups: Classes) -> Ints:
    """Say which fold each row goes to: (n_rows,). The largest group goes first, to the fold with the fewest rows."""
    # Rows without a group are one.
    counts = np.bincount(groups.codes.astype(np.int64) + 1, minlength=len(groups.categories) + 1)
    n_groups = int((counts > 0).sum())
    if n_groups < n_folds:
        raise InputError(f"n_folds must be at most {n_groups}, the number of groups of {groups.name!r}, got {n_folds}")
    sizes, fold_of_group = np.zeros(n_folds, np.int64), np.zeros(len(counts), np.int64)
    for group in np.argsort(-counts, kind="stable").tolist():
        fold_of_group[group] = sizes.argmin()
        sizes[fold_of_group[group]] += counts[group]
    return fold_of_group[groups.codes.astype(np.int64) + 1]


def _by_category(parts: Mapping[str, Any], classes: Classes) -> dict[str, Ints]:
    found = {}
    for name, categories in parts.items():
        if isinstance(categories, str) or not np.iterable(categories):
            raise InputError(f"part {name!r} must be a list of categories of {classes.name!r}, got {categories!r}")
        codes = np.array([classes.code(category) for category in categories], np.int64)
        found[name] = np.flatnonzero(np.isin(classes.codes, codes))
    return found


def _by_rows(parts: Mapping[str, Any], rows: Ints, n_stored: int, *, ordered: bool) -> dict[str, Ints]:
    found = {}
    for name, wanted in parts.items():
        runs = Runs.of(wanted, n_stored, f"part {name!r}", ordered=ordered)
        chosen = runs.find(np.arange(len(runs)) if runs.order is None else runs.order)
        numbers = np.searchsorted(rows, chosen)
        strange = chosen[rows[np.minimum(numbers, len(rows) - 1)] != chosen]
        if len(strange):
            raise InputError(f"part {name!r} must hold rows of this loader, got row {strange[0]}")
        found[name] = numbers
    return found
