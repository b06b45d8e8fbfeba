"""How well does a window mix rows that lie in the stores as they were written?

`measure` compares the Shannon entropy of classes (the source file, a label) in windows with that of as many rows drawn
uniformly. Pure: what it is given has been read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Codes = NDArray[Any]

POOR = 0.9
"""Windows that have a smaller part of the entropy of uniformly drawn rows than this mix poorly."""

LEAST_ROWS = 10_000
"""Data with fewer rows are not worth a measurement."""

MOST_WINDOWS = 8
"""Windows that are looked at."""

MOST_ROWS = 4096
"""Rows of each that are looked at."""


@dataclass(frozen=True, slots=True)
class Mixing:
    """The entropy of one column of classes."""

    name: str
    """What the classes are."""
    of_windows: float
    """Mean entropy of a window, in bits."""
    of_random_rows: float
    """Mean entropy of as many rows drawn uniformly, in bits."""

    @property
    def is_poor(self) -> bool:
        """Whether windows mix clearly less than random rows would."""
        return self.of_windows < POOR * self.of_random_rows

    def __str__(self) -> str:
        return f"{self.of_windows:.1f} bits by {self.name}, where random rows have {self.of_random_rows:.1f}"


def measure(name: str, codes_of: Callable[[Ints], Codes], windows: Sequence[Ints], rows: Ints | range) -> Mixing:
    """Measure how well windows mix.

    Parameters
    ----------
    name
        What the classes are called.
    codes_of
        Gives the class of each of some rows, from 0; -1 where it is missing.
    windows
        The rows of some windows, at least one.
    rows
        The rows that windows are made of.
    """
    rng = np.random.default_rng(0)
    found = []
    for window in windows:
        own = rng.permutation(window)[:MOST_ROWS]
        numbers = rng.integers(len(rows), size=len(own))
        drawn = numbers if isinstance(rows, range) else rows[numbers]
        found.append([_entropy(codes_of(own)), _entropy(codes_of(drawn))])
    of_windows, of_random_rows = np.mean(found, axis=0).tolist()
    return Mixing(name, of_windows, of_random_rows)


def _entropy(codes: Codes) -> float:
    counts = np.bincount(codes.astype(np.int64) + 1)
    share = counts[counts > 0] / len(codes)
    return float(-(share * np.log2(share)).sum())
