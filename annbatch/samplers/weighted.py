"""How are rows drawn with probabilities of one's own, exactly and in constant memory?

Systematic resampling [1]_: lay the rows side by side, each as long as its weight; put n marks at equal distances, the
first at a random place. A row comes as often as marks fall on it.

1. Weights become integers (`quantized`), so that sums are exact and the same on every machine.
2. A draw's mark, and so its row, is computed from the draw's number (`Draws.find`): draws that follow one another give
   rows that follow one another, so blocks of draws are read as blocks of rows are.
3. Without replacement, weights above the distance of the marks are cut to it: no row is then hit twice.

The expected count of row i is n * weight_i / total exactly (of the integer weights), and its count is that number
rounded up or down.

References
----------
.. [1] Madow: On the theory of systematic sampling, II. Annals of Mathematical Statistics 20 (1949).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.check import integer
from annbatch.errors import InputError
from annbatch.native import Kernel
from annbatch.order.consumers import Order
from annbatch.order.permutation import Ints, Key, Purpose
from annbatch.order.row_selection import digest
from annbatch.order.row_table import Classes, Table, described, names_of
from annbatch.samplers.blocks import RowOrder, shuffled_blocks

_STEP = 256
"""Rows between two sums that are kept."""

_MAX_DRAWS = 1 << 32


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Rows drawn by systematic resampling."""

    weights: Ints
    """(n_rows,) integer weight of each row, or (n_classes,) of the rows of each class."""
    codes: npt.NDArray[Any]
    """(n_rows,) class of each row (-1 has no weight), or (0,) if each row has a weight of its own."""
    sums: Ints
    """(n_rows / 256 rounded up, + 1) weights before every 256th row, and the total."""
    n: int
    """Number of draws, below 2**32."""

    @classmethod
    def of(cls, weights: Ints, codes: npt.NDArray[Any], n: int) -> Draws:
        """Prepare ``n`` draws."""
        return cls(weights, codes, _sums(weights, codes, _STEP), n)

    def find(self, draws: Ints, offset: int) -> Ints:
        """Give the rows of draws, (k,) numbers in [0, n); ``offset`` in [0, total) is where the marks begin."""
        step, rest = divmod(int(self.sums[-1]), self.n)
        first, within = divmod(offset, self.n)
        rows: Ints = _find(draws, self.weights, self.codes, self.sums, _STEP, self.n, step, rest, first, within)
        return rows

    def offset(self, seed: int, epoch: int) -> int:
        """Say where the marks of an epoch begin."""
        # 128 random bits times the total: equally likely offsets up to 2**-64.
        low, high = (int(word) for word in Key(seed, epoch, Purpose.DRAW).words(2))
        return ((high << 64 | low) * int(self.sums[-1])) >> 128

    def order(self, table: Table, epoch: int) -> Order:
        """Give the draws of an epoch in blocks, in random order."""
        offset = self.offset(table.seed, epoch)
        stream = shuffled_blocks((self.n,), table.chunk_size, Key(table.seed, epoch, Purpose.BLOCKS))
        return RowOrder(stream, table.batch_size, lambda draws: self.find(draws, offset))


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """Rows drawn with given weights.

    With replacement, row i comes ``n_rows * w_i / sum(w)`` times an epoch on average, and in each epoch that number
    rounded up or down. Without replacement, it comes at most once, with the probability ``n_rows * v_i / sum(v)``,
    where ``v = minimum(w, c)`` and c is the largest number with which no probability exceeds 1.

    Both hold exactly for the weights as they are used: rounded to multiples of ``max(w) / 2**(62 - k)``, where 2**k is
    the smallest power of two above the number of rows.

    If a row is drawn several times, its copies are in one block, or in consecutive ones. So they usually come in one
    window; copies in different blocks may come in different windows.

    Parameters
    ----------
    weights
        Weight of each row of the stores, (n_obs,), finite and not negative. They need not sum to one.
    n_rows
        Rows in an epoch. None means as many as there are rows. Required if ``replace`` is False.
    replace
        Whether a row may come more than once an epoch.

    Examples
    --------
    >>> import numpy as np
    >>> from annbatch import Loader, samplers
    >>> weights = np.where(np.arange(120) < 60, 1.0, 3.0)
    >>> ds = Loader(batch_size=30, sampler=samplers.Weighted(weights)).use_collection(
    ...     "collection"
    ... )
    >>> sum(int((batch.index >= 60).sum()) for batch in ds)
    90
    """

    weights: npt.ArrayLike = field(repr=False)
    n_rows: int | None = None
    replace: bool = True
    columns = ()

    def bind(self, table: Table) -> Callable[[int], Order]:
        """Check the weights, and return a function from the epoch's number to its order.

        Raises
        ------
        InputError
            If there is not one finite weight >= 0 for each row, or there are fewer rows to draw than are wanted.
        """
        weights = self._array()
        if len(weights) != table.n_stored:
            raise InputError(f"weights must have one value for each of the {table.n_stored} rows, got {len(weights)}")
        if not self.replace and self.n_rows is None:
            raise InputError("n_rows must be a number of rows if replace is False, got None")
        chosen = table.select(weights)
        draws = draws_of(chosen, np.empty(0, np.int8), np.ones(1, np.int64), table, self.n_rows, self.replace)
        return lambda epoch: draws.order(table, epoch)

    def describe(self) -> dict[str, Any]:
        """Return the sampler's name and arguments, the weights as a hash."""
        return {
            "sampler": "Weighted",
            "weights": digest(self._array()),
            "n_rows": self.n_rows,
            "replace": self.replace,
        }

    def _array(self) -> npt.NDArray[np.float64]:
        weights: npt.NDArray[np.float64] = np.asarray(self.weights, np.float64)
        if weights.ndim != 1:
            raise InputError(f"weights must have one axis, got {weights.ndim}")
        return weights


@dataclass(frozen=True, slots=True)
class ClassBalanced:
    """Rows drawn so that classes come equally often, or in given shares.

    A class c of n_c rows gets the share ``w_c / sum(w)`` of an epoch's ``n_rows`` rows on average. Each of its rows
    comes ``n_rows * w_c / (sum(w) * n_c)`` times on average, and in each epoch that number rounded up or down. Rows
    without a class are left out.

    Parameters
    ----------
    by
        obs column that holds the classes; or several columns, whose classes are tuples.
    weights
        The share of each class, >= 0. Classes that are not named are left out. None gives all classes that have rows
        the same share.
    n_rows
        Rows in an epoch. None means as many as have a class with a share.

    Examples
    --------
    >>> from annbatch import Loader, samplers
    >>> sampler = samplers.ClassBalanced("cell_type", weights={"T": 3, "B": 1}, n_rows=80)
    >>> ds = Loader(batch_size=40, sampler=sampler).use_collection(
    ...     "collection", labels=["cell_type"]
    ... )
    >>> n_t_cells = sum(int((batch.labels["cell_type"] == "T").sum()) for batch in ds)
    """

    by: str | Sequence[str]
    weights: Mapping[Any, float] | None = None
    n_rows: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold the classes."""
        return names_of(self.by)

    def bind(self, table: Table) -> Callable[[int], Order]:
        """Check the classes, and return a function from the epoch's number to its order.

        Raises
        ------
        InputError
            If a class with a share is not a category or has no rows.
        """
        classes = table.classes_by(self.by)
        counts = classes.counts()
        shares = class_shares(self.weights, classes, counts)
        weights = np.divide(shares, counts, out=np.zeros(len(counts)), where=counts > 0)
        n_rows = self.n_rows if self.n_rows is not None else int(counts[shares > 0].sum())
        draws = draws_of(weights, classes.codes, counts, table, n_rows, True)
        return lambda epoch: draws.order(table, epoch)

    def describe(self) -> dict[str, Any]:
        """Return the sampler's name and arguments."""
        weights = None if self.weights is None else described_weights(self.weights)
        return {"sampler": "ClassBalanced", "by": described(self.by), "weights": weights, "n_rows": self.n_rows}


def described_weights(weights: Mapping[Any, float]) -> dict[str, float]:
    """Give the weights of classes as values that JSON holds."""
    return {str(key): float(value) for key, value in weights.items()}


def class_shares(weights: Mapping[Any, float] | None, classes: Classes, counts: Ints) -> npt.NDArray[np.float64]:
    """Give the share of each class of ``counts`` rows: (n_classes,); without weights those that have rows are alike.

    Raises
    ------
    InputError
        If a class that is asked for is no category, or has no rows.
    """
    if weights is None:
        if not counts.any():
            raise InputError(f"obs[{classes.name!r}] must have a class for at least one row, but all are missing")
        return (counts > 0).astype(np.float64)
    shares = np.zeros(len(counts))
    for category, share in weights.items():
        code = classes.code(category)
        if share > 0 and not counts[code]:
            raise InputError(
                f"weights must be for classes that have rows, and obs[{classes.name!r}] has no row of {category!r}"
            )
        shares[code] = share
    return shares


def draws_of(
    weights: npt.NDArray[np.float64],
    codes: npt.NDArray[Any],
    counts: Ints,
    table: Table,
    n_rows: int | None,
    replace: bool,
) -> Draws:
    """Check weights, (n,) of rows or of classes of ``counts`` rows, and prepare an epoch's draws."""
    n = integer("n_rows", table.n_rows if n_rows is None else n_rows, 1, _MAX_DRAWS)
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(bad):
        raise InputError(f"weights must be finite and >= 0, got {weights[bad[0]]} at position {bad[0]}")
    if not weights.any():
        raise InputError("weights must not all be zero")
    whole = quantized(weights, table.n_rows)
    if not replace:
        n_positive = int(((whole > 0) * counts).sum())
        if n > n_positive:
            raise InputError(f"n_rows must be at most {n_positive}, the rows of positive weight, got {n}")
        whole = np.minimum(whole, _largest_cap(whole, n))
    return Draws.of(whole, codes, n)


def quantized(weights: npt.NDArray[np.float64], n_rows: int) -> Ints:
    """Turn weights into integers whose sum over ``n_rows`` rows is below 2**62: (n,) int64."""
    unit = 2.0 ** (62 - max(n_rows, 1).bit_length())
    whole: Ints = np.rint(weights / weights.max() * unit).astype(np.int64)
    return whole


def _largest_cap(weights: Ints, n: int) -> int:
    """Give the largest c for which weights cut to c are hit at most once by ``n`` marks: c * n <= their sum."""
    low, high = 0, int(weights.max())
    while low < high:
        middle = (low + high + 1) // 2
        if middle * n <= int(np.minimum(weights, middle).sum()):
            low = middle
        else:
            high = middle - 1
    return low


@Kernel
def _sums(weights: Any, codes: Any, step: Any) -> Any:
    n = codes.size if codes.size else weights.size
    sums = np.empty((n + step - 1) // step + 1, np.int64)
    total = np.int64(0)
    for row in range(n):
        if row % step == 0:
            sums[row // step] = total
        if codes.size == 0:
            total += weights[row]
        elif codes[row] >= 0:
            total += weights[codes[row]]
    sums[-1] = total
    return sums


@Kernel
def _find(
    draws: Any,
    weights: Any,
    codes: Any,
    sums: Any,
    step: Any,
    n: Any,
    distance: Any,
    rest: Any,
    first: Any,
    within: Any,
) -> Any:
    rows = np.empty(draws.size, np.int64)
    cell = np.int64(-1)
    row = np.int64(0)
    before = np.int64(0)
    for k in range(draws.size):
        draw = draws[k]
        # Mark number d stands at (d * total + offset) // n; this way no product exceeds 64 bits.
        mark = np.int64(
            draw * distance + first + np.int64((np.uint64(draw) * np.uint64(rest) + np.uint64(within)) // np.uint64(n))
        )
        if cell < 0 or mark < before or mark >= sums[cell + 1]:
            cell = np.searchsorted(sums, mark, side="right") - 1
            row = cell * step
            before = sums[cell]
        while True:
            if codes.size == 0:
                weight = weights[row]
            elif codes[row] >= 0:
                weight = weights[codes[row]]
            else:
                weight = np.int64(0)
            if mark < before + weight:
                break
            before += weight
            row += 1
        rows[k] = row
    return rows
