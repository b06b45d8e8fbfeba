"""How well does a window mix rows that lie in the stores as they were written?

1. `measure_windows` looks at some windows of an epoch.
2. `measure` compares the Shannon entropy of classes (the source file, a label) in windows with that of as many rows
   drawn uniformly.
3. `advice` says what to do about poor mixing.

Pure: the classes of rows come from functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.order.consumers import Partition
from annbatch.order.schedule import Schedule
from annbatch.order.state import Position

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


def measure_windows(
    schedule: Schedule, columns: Mapping[str, Callable[[Ints], Codes]], rows: Ints | range
) -> list[Mixing]:
    """Measure how well the windows of epoch 0 mix rows.

    Parameters
    ----------
    schedule
        Says which rows make a window.
    columns
        By name: returns the class of each of some rows, as `measure` takes it.
    rows
        The rows that windows are made of.

    Returns
    -------
    list of Mixing
        One for each of the columns.
    """
    alone, position = Partition(0, 1), Position()
    position.begin(alone)
    turns = schedule.turns(position, 1)
    numbers = np.unique(np.linspace(0, turns.n_windows - 1, MOST_WINDOWS).astype(np.int64)).tolist()
    windows = [turns.window(number, 0).rows for number in numbers]
    return [measure(name, codes_of, windows, rows) for name, codes_of in columns.items()]


def advice(found: Sequence[Mixing], window_rows: int) -> str:
    """Return the warning about windows of ``window_rows`` rows that mix poorly."""
    return (
        f"rows are in the order in which they were written, and a window of {window_rows:,} rows mixes them poorly: it "
        f"has {'; '.join(map(str, found))}. Smaller blocks mix better: try chunk_size=16 and preload_nchunks="
        f"{-(-window_rows // 16)}. A shuffled collection mixes best and is read faster: call "
        f"ds.write_collection(path) once, then use_collection(path)"
    )


def _entropy(codes: Codes) -> float:
    counts = np.bincount(codes.astype(np.int64) + 1)
    share = counts[counts > 0] / len(codes)
    return float(-(share * np.log2(share)).sum())
