"""In which order do the rows go out?

1. Every row of the inputs has a 64-bit key that depends on nothing but (seed, row).
2. Rows go out in ascending order of their keys; equal keys (a chance of 1 in 2**64 per pair) in ascending order of
   rows.
3. Stores are consecutive pieces of that order.

Everything here is pure: no I/O. The key of a row can be computed alone, so a plan that does not fit in memory can be
made piece by piece and gives the same order.
The keys are raw Philox4x64-10 words, whose values are a published standard (Salmon et al. 2011,
doi:10.1145/2063384.2063405), and not draws from `numpy.random.Generator`, whose methods may change what they give
from one NumPy version to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DOMAIN = 0x616E6E6277726974
"""Second Philox key word (ASCII "annbwrit"): keeps these keys apart from every other use of the same seed."""

_WORDS = 4
"""Words that one Philox counter value gives."""


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Which input row goes where."""

    order: npt.NDArray[np.int64]
    """(n_obs,) input row numbers (counted through the inputs) in their final order."""
    rows_per_store: int
    """Rows of every store but the last, which may be shorter."""

    def __post_init__(self) -> None:
        if self.rows_per_store < 1:
            raise ValueError(f"rows_per_store must be >= 1, got {self.rows_per_store}")

    @property
    def n_stores(self) -> int:
        """Number of stores."""
        return -(-len(self.order) // self.rows_per_store)

    def stores(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield, for each store, the input rows that it holds, in their final order."""
        for start in range(0, len(self.order), self.rows_per_store):
            yield self.order[start : start + self.rows_per_store]


def row_keys(seed: int, start: int, stop: int) -> npt.NDArray[np.uint64]:
    """Give the (stop - start,) uint64 keys of rows ``start`` to ``stop``.

    The key of row r is word r of the Philox stream of (seed, `DOMAIN`).

    Raises
    ------
    ValueError
        If ``seed`` is not in [0, 2**64).
    """
    _check_seed(seed)
    first = start // _WORDS
    # NumPy raises the counter before it draws, so word r is drawn from counter r // 4 + 1.
    stream = np.random.Philox(key=np.array([seed, DOMAIN], dtype=np.uint64), counter=first)
    words: npt.NDArray[np.uint64] = stream.random_raw(stop - first * _WORDS)
    return words[start - first * _WORDS :]


def plan_rows(n_obs: int, *, rows_per_store: int, shuffle: bool, seed: int) -> RowPlan:
    """Plan the order of ``n_obs`` rows: a uniformly random permutation if ``shuffle``, else as they come.

    Raises
    ------
    ValueError
        If ``seed`` is not in [0, 2**64), also where it is not needed, or ``rows_per_store`` is below 1.
    """
    _check_seed(seed)
    if not shuffle:
        return RowPlan(np.arange(n_obs, dtype=np.int64), rows_per_store)
    # A stable sort is what gives equal keys the order of their rows.
    order = np.argsort(row_keys(seed, 0, n_obs), kind="stable")
    return RowPlan(order.astype(np.int64, copy=False), rows_per_store)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
