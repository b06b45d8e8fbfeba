"""Which rows are for training, which for validation, which for testing?

1. By fraction: runs of neighbouring rows are dealt at random, so that each part is read nearly as fast as the whole.
2. By a column: categories are held out, say donors.
3. By given rows.

Parts never overlap. Pure: no store, no thread, no environment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.errors import InputError
from annbatch.order.permutation import Ints, Key, Purpose, shuffled
from annbatch.order.row_selection import Runs
from annbatch.order.row_table import Classes

Part = float | npt.ArrayLike | None
"""A fraction, categories, a mask or row numbers; None is the part that takes what the others leave."""


def run_rows(n_rows: int) -> int:
    """Say how many neighbours stay together when ``n_rows`` rows are split by fraction: a thousandth, at most 512."""
    return min(512, max(1, n_rows // 1000))


def split(
    parts: Mapping[str, Part],
    rows: Ints,
    n_stored: int,
    seed: int,
    classes: Classes | None,
    order: Ints | None = None,
    *,
    ordered: bool = False,
) -> dict[str, Runs]:
    """Split rows into parts.

    Parameters
    ----------
    parts
        Name of each part to what it shall hold; at most one None.
    rows
        (n,) ascending numbers of the rows to split.
    n_stored
        Rows of the stores, which ``rows`` are some of.
    seed
        Decides where parts are drawn by fraction.
    classes
        The column of ``rows`` that parts name categories of; None if they name none.
    order
        (n,) numbers within ``rows`` in the order in which they were named; None means ascending.
    ordered
        Whether the order of rows counts. Parts then keep that of the row numbers given for them, else ``order``. Which
        rows a part holds does not depend on it.

    Raises
    ------
    InputError
        If parts overlap, one of them is empty, or they are of several kinds.
    """

    def in_order(numbers: Ints) -> Ints:
        return numbers if order is None else order[np.isin(order, numbers)]

    if not parts:
        raise InputError("parts must name at least one part, got none")
    rest = [name for name, part in parts.items() if part is None]
    if len(rest) > 1:
        raise InputError(f"parts must leave at most one part open, got {rest}")
    given = {name: part for name, part in parts.items() if part is not None}
    fractions = [isinstance(part, Real) for part in given.values()]
    if classes is not None:
        found = {name: in_order(numbers) for name, numbers in _by_category(given, classes).items()}
    elif all(fractions):
        by_fraction = _by_fraction(given, len(rows), seed, has_rest=bool(rest))  # type: ignore[arg-type]
        found = {name: in_order(numbers) for name, numbers in by_fraction.items()}
    elif any(fractions):
        raise InputError(f"parts must be all fractions or all rows, got both in {list(given)}")
    else:
        found = {
            # A mask names rows, but no order.
            name: in_order(numbers) if np.asarray(given[name]).dtype == bool else numbers
            for name, numbers in _by_rows(given, rows, n_stored, ordered=ordered).items()
        }
    owner = np.full(len(rows), -1, np.int16)
    for i, (name, numbers) in enumerate(found.items()):
        taken = owner[numbers]
        if (taken >= 0).any():
            row = int(rows[numbers[np.flatnonzero(taken >= 0)[0]]])
            raise InputError(f"parts must not overlap, {list(found)[int(taken.max())]!r} and {name!r} share row {row}")
        owner[numbers] = i
    if rest:
        found[rest[0]] = in_order(np.flatnonzero(owner < 0))
    for name, numbers in found.items():
        if not len(numbers):
            raise InputError(f"part {name!r} must hold at least one row, it holds none of {len(rows)}")
    return {name: Runs.of(rows[found[name]], n_stored, name, ordered=ordered) for name in parts}


def describe(parts: Mapping[str, Part], name: str, by: str | None, seed: int) -> dict[str, Any]:
    """Say how a part was made, as values that JSON holds; given rows are left to their hash."""
    specs: dict[str, Any] = {}
    for key, part in parts.items():
        if by is not None and part is not None:
            specs[key] = [str(category) for category in np.atleast_1d(np.asarray(part, object))]
        else:
            specs[key] = None if part is None else "rows" if np.ndim(part) else float(np.asarray(part))
    return {"part": name, "parts": specs, "by": by, "seed": seed}


def _by_fraction(parts: Mapping[str, float], n_rows: int, seed: int, *, has_rest: bool) -> dict[str, Ints]:
    for name, fraction in parts.items():
        if not 0 < fraction < 1 and not (fraction == 1 and len(parts) == 1 and not has_rest):
            raise InputError(f"the fraction of part {name!r} must be in (0, 1), got {fraction}")
    if math.fsum(parts.values()) > 1 + 1e-9:
        raise InputError(f"fractions must sum to at most 1, got {math.fsum(parts.values())}")
    size = run_rows(n_rows)
    order = shuffled(-(-n_rows // size), Key(seed, 0, Purpose.SPLIT))
    found, done, first = {}, 0.0, 0
    for name, fraction in parts.items():
        done = min(1.0, done + fraction)
        last = round(done * len(order))
        if 1 - done < 1e-9:
            last = len(order)
        starts = np.sort(order[first:last]) * size
        numbers = (starts[:, None] + np.arange(size)).ravel()
        found[name] = numbers[numbers < n_rows]
        first = last
    return found


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
            raise InputError(f"part {name!r} must hold rows of this loader, got {strange[0]}")
        found[name] = numbers
    return found
