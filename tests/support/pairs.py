"""Which cells of a matrix of cases run each time, if all of them are too many?

So many that each two values of two dimensions meet in one of them: most faults that depend on several things depend on
two.
The other cells are marked ``slow``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest


def covering(*dimensions: Sequence[Any]) -> list[tuple[int, ...]]:
    """Choose cells, as numbers of their values, in which each pair of values of two dimensions occurs."""
    cells = list(product(*(range(len(dimension)) for dimension in dimensions)))

    def pairs(cell: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
        return {(i, cell[i], j, cell[j]) for i, j in combinations(range(len(cell)), 2)}

    left, chosen = set().union(*map(pairs, cells)), []
    while left:
        best = max(cells, key=lambda cell: len(pairs(cell) & left))
        left -= pairs(best)
        chosen.append(best)
    return chosen


def in_pairs(*dimensions: Sequence[Any]) -> list[Any]:
    """Give all cells as parameters of a test; a value may be a `pytest.param` with marks of its own."""
    chosen = set(covering(*dimensions))
    found = []
    for cell in product(*(range(len(dimension)) for dimension in dimensions)):
        values, marks = [], [] if cell in chosen else [pytest.mark.slow]
        for dimension, number in zip(dimensions, cell, strict=True):
            value = dimension[number]
            if isinstance(value, type(pytest.param())):
                marks += value.marks
                values += value.values
            else:
                values.append(value)
        found.append(pytest.param(*values, marks=marks))
    return found
