"""Where in the sorted runs do rows lie that go to consecutive places of the final order?

The final order is ascending by (group, key), and rows with equal ones keep their order. Runs are sorted by that, and
numbered in the order of their rows. `SortedRuns.cut` finds, for a place in the final order, how many rows of each run
come before it: by bisection over groups, then over keys, counting rows below a key in every run.

Everything here is pure: no I/O beyond looking into the arrays that are passed, which may be memory-mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class SortedRuns:
    """The keys of all runs, each ascending."""

    keys: Sequence[npt.NDArray[np.uint64]]
    """Per run: (n_rows,), ascending within a group."""
    groups: Sequence[npt.NDArray[np.uint64]] | None
    """Per run: (n_rows,), ascending; None if there is one group."""

    @property
    def n_rows(self) -> int:
        """Rows of all runs."""
        return sum(map(len, self.keys))

    def cut(self, place: int) -> Ints:
        """Say how many rows of each run come before ``place``: (n_runs,), their sum is ``place``."""
        low, high = np.zeros(len(self.keys), np.int64), np.array([len(keys) for keys in self.keys], np.int64)
        if not 0 <= place <= high.sum():
            raise ValueError(f"place must be in [0, {high.sum()}], got {place}")
        if self.groups is not None:
            group = _last_with_few_before(self.groups, low, high, place)
            low, high = _count(self.groups, low, high, group, "left"), _count(self.groups, low, high, group, "right")
        key = _last_with_few_before(self.keys, low, high, place)
        before = _count(self.keys, low, high, key, "left")
        # Rows of equal keys come in the order of the runs.
        ties = _count(self.keys, low, high, key, "right") - before
        taken: Ints = np.clip(place - before.sum() - (np.cumsum(ties) - ties), 0, ties)
        return before + taken


def _last_with_few_before(arrays: Sequence[npt.NDArray[np.uint64]], low: Ints, high: Ints, place: int) -> np.uint64:
    """Find the largest value that at most ``place`` elements come before."""
    smallest, largest = 0, int(np.iinfo(np.uint64).max)
    while smallest < largest:
        middle = (smallest + largest + 1) // 2
        if _count(arrays, low, high, np.uint64(middle), "left").sum() <= place:
            smallest = middle
        else:
            largest = middle - 1
    return np.uint64(smallest)


def _count(
    arrays: Sequence[npt.NDArray[Any]], low: Ints, high: Ints, value: Any, side: Literal["left", "right"]
) -> Ints:
    """Count, in each run, the elements that come before ``value``, looking between ``low`` and ``high`` only."""
    found = [
        a + np.searchsorted(array[a:b], value, side=side)
        for array, a, b in zip(arrays, low.tolist(), high.tolist(), strict=True)
    ]
    return np.array(found, np.int64)
