"""Does each draw with given weights come from the row on which its mark falls, and is that row found soon?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.samplers import ClassBalanced, Weighted, weighted
from annbatch.samplers.weighted import Draws
from python_kernels import Counted, run_as_python

NO_CODES = np.empty(0, np.int8)

CASES: dict[str, tuple[list[int], list[int], int]] = {
    "one row": ([3], [], 5),
    "one draw": ([1, 1, 0, 4, 2], [], 1),
    "each row once": ([1] * 9, [], 9),
    "rows without weight": ([0, 0, 2, 0, 5, 1, 0, 3, 0, 0], [], 7),
    "more draws than weight": ([1, 0, 2, 1, 1], [], 23),
    "as many draws as there may be": ([1, 2**40, 0, 1000, 2**45, 1], [], 2**32 - 1),
    "weights of classes": ([3, 0, 1], [-1, 2, 0, 1, 0, 2, -1, -1, 0, 2, 2, -1], 10),
    "one row of a class": ([5], [0], 3),
}
"""Weights of rows or of classes, the class of each row, and the number of draws."""


def check(weights: list[int], codes: list[int], n: int, offset: int, numbers: list[int]) -> None:
    """Compare draws with exact fractions; sums are kept for every fourth row."""
    lengths = [weights[code] if code >= 0 else 0 for code in codes] if codes else weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighted, "_STEP", 4)
        draws = Draws.of(np.array(weights, np.int64), np.array(codes, np.int8), n)
        rows = draws.find(np.array(numbers, np.int64), offset).tolist()
    ends = np.cumsum([0, *lengths], dtype=object)
    for number, row in zip(numbers, rows, strict=True):
        mark = (number * sum(lengths) + offset) // n
        assert ends[row] <= mark < ends[row + 1]


def test_draws_with_each_index_checked(monkeypatch: pytest.MonkeyPatch):
    run_as_python(monkeypatch, weighted)
    for weights, codes, n in CASES.values():
        total = sum(weights[code] for code in codes if code >= 0) if codes else sum(weights)
        numbers = np.unique(np.linspace(0, n - 1, 24).astype(np.int64)).tolist()
        for offset in {0, total // 2, total - 1}:
            for some in (numbers, numbers[::-1], numbers[::2] + numbers[1::2], [numbers[-1]] * 2, []):
                check(weights, codes, n, offset, some)


@given(
    st.lists(st.sampled_from([0, 1, 2, 1000, 10**9, 2**40]), min_size=1, max_size=30).filter(any),
    st.integers(1, 2**32 - 1),
    st.floats(0, 1, exclude_max=True),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8),
    st.booleans(),
)
def test_a_draw_is_the_row_on_which_its_mark_falls(weights, n, share, draws, by_class):
    """For up to 2**32 draws."""
    codes = [-1, 2, 0, 1, 0, 2, -1] * 5 if by_class else []
    own = [*weights, 1, 1, 1][:3] if by_class else weights
    total = sum(own[code] for code in codes if code >= 0) if by_class else sum(own)
    if total:
        check(own, codes, n, int(share * total), [int(draw * n) for draw in draws])


@pytest.mark.parametrize(
    ("numbers", "n_reads"),
    [
        # In order: each draw goes on at the row of the one before.
        (range(1024), 2 * 1024),
        # At most the 256 rows behind a sum are read for a draw, wherever the one before it was.
        ([0, 1000], 2 * 256),
        ([1000, 0], 2 * 256),
        ([300, 900, 20], 3 * 256),
    ],
    ids=str,
)
def test_few_rows_are_read_for_a_draw(numbers: Any, n_reads: int, monkeypatch: pytest.MonkeyPatch):
    run_as_python(monkeypatch, weighted)
    ones = np.ones(1024, np.int64)
    weights: Any = Counted(ones)
    draws = Draws(weights, NO_CODES, Draws.of(ones, NO_CODES, 1024).sums, 1024)
    assert draws.find(np.array(numbers), 0).tolist() == list(numbers)
    assert weights.n_reads <= n_reads


def test_marks_begin_anywhere():
    draws = Draws.of(np.full(1000, 7), NO_CODES, 40)
    offsets = np.array([draws.offset(seed, epoch) for seed in (0, 2**64 - 1) for epoch in range(200)])
    assert np.histogram(offsets, 4, (0, 7000))[0].tolist() == pytest.approx([100] * 4, abs=35)
    assert set(offsets % 7) == set(range(7))
    assert ((offsets >= 0) & (offsets < 7000)).all()


def test_samplers_say_what_they_are():
    assert repr(Weighted(np.ones(5), n_rows=3)) == "Weighted(n_rows=3, replace=True)"
    found = ClassBalanced(["kind", "plate"], {("a", "p"): 1, ("b", "p"): 0.5}, n_rows=5).describe()
    weights = {"('a', 'p')": 1.0, "('b', 'p')": 0.5}
    assert found == {"sampler": "ClassBalanced", "by": ["kind", "plate"], "weights": weights, "n_rows": 5}
    assert ClassBalanced("kind").describe()["weights"] is None
