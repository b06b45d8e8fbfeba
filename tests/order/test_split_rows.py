"""Does each part hold the rows that were meant, whatever they are named by? Pure: `test_splits.py` splits loaders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.errors import InputError
from annbatch.order import splits
from annbatch.order.row_selection import Runs
from annbatch.order.row_table import Classes
from annbatch.order.splits import Divisible, describe, describe_fold, folds, run_rows

N = 40
ROWS = np.arange(3, N, 2)
"""Every other row is the table that is split."""
CATEGORIES = ["a", "b", "c", "d"]
CODES = np.array([-1 if i % 7 == 6 else i % 4 for i in range(len(ROWS))], np.int8)
BY = Classes("kind", CODES, pd.Index(CATEGORIES))


def split(
    parts: Any, rows: np.ndarray, n: int, seed: int, by: Any = None, order: Any = None, *, ordered: bool = False
) -> dict[str, Runs]:
    return splits.split(parts, Divisible(rows, n, order, ordered, by), seed)


def rows_of(runs: Runs) -> list[int]:
    found = runs.find(np.arange(len(runs)) if runs.order is None else runs.order)
    return found.tolist()


def of_category(*names: str) -> list[int]:
    return [int(row) for row, code in zip(ROWS, CODES, strict=True) if code >= 0 and CATEGORIES[code] in names]


@given(
    st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=3, unique=True), st.booleans(), st.booleans()
)
def test_categories(names: list[str], rest: bool, ordered: bool):
    order = np.arange(len(ROWS))[::-1] if ordered else None
    parts: dict[str, Any] = {"first": names[:1]}
    if names[1:]:
        parts["others"] = names[1:]
    if rest:
        parts = {"rest": None, **parts}
    found = split(parts, ROWS, N, 0, BY, order, ordered=ordered)
    assert list(found) == list(parts)
    step = -1 if ordered else 1
    assert rows_of(found["first"]) == of_category(names[0])[::step]
    if names[1:]:
        assert rows_of(found["others"]) == of_category(*names[1:])[::step]
    if rest:
        # Rows without a category are in no part but the one that takes what is left.
        left = sorted(set(ROWS.tolist()) - set(of_category(*names)))
        assert rows_of(found["rest"]) == left[::step]


@given(st.lists(st.integers(0, 2), min_size=len(ROWS), max_size=len(ROWS)), st.booleans(), st.booleans(), st.data())
def test_given_rows(owners: list[int], ordered: bool, masks: bool, data: st.DataObject):
    owner = np.array(owners)
    parts, expected = {}, {}
    for number in np.unique(owner).tolist():
        numbers = data.draw(st.permutations(ROWS[owner == number].tolist()))
        parts[f"p{number}"] = np.isin(np.arange(N), numbers) if masks else numbers
        expected[f"p{number}"] = numbers if ordered and not masks else sorted(numbers)
    found = split(parts, ROWS, N, 0, None, ordered=ordered)
    assert {name: rows_of(part) for name, part in found.items()} == expected


def test_parts_are_sets_unless_their_order_counts():
    assert rows_of(splits.split({"a": [9, 3, 7]}, Divisible(ROWS, N), 0)["a"]) == [3, 7, 9]


def test_rows_behind_the_last_one_are_refused():
    for row in (38, 39):
        with pytest.raises(InputError, match=f"must hold rows of this loader, got row {row}"):
            split({"a": [3, row]}, ROWS[:-1], N, 0, None)


def test_the_same_seed_gives_the_same_parts_in_every_version():
    """What these rows are may not change: who goes on with a run would train on other cells."""
    parts = split({"train": 0.5, "test": 0.2, "rest": None}, np.arange(20), 20, 7, None)
    assert {name: rows_of(part) for name, part in parts.items()} == {
        "train": [1, 3, 4, 6, 10, 12, 13, 16, 18, 19],
        "test": [2, 5, 15, 17],
        "rest": [0, 7, 8, 9, 11, 14],
    }


def test_the_same_seed_gives_the_same_stratified_parts_in_every_version():
    """Of each class, the one of missing values too, each part has its share up to one row."""
    codes = np.array([0, 1, 0, -1, 1, 0, 0, -1, 1, 0, 0, 1, -1, 0, 1, 0, 0, 1, 0, -1], np.int8)
    whole = Divisible(np.arange(20), 20, strata=Classes("kind", codes, pd.Index(["a", "b"])))
    parts = splits.split({"train": 0.5, "test": 0.2, "rest": None}, whole, 7)
    assert {name: rows_of(part) for name, part in parts.items()} == {
        "train": [1, 4, 6, 10, 12, 13, 14, 16, 18, 19],
        "test": [2, 5, 17],
        "rest": [0, 3, 7, 8, 9, 11, 15],
    }
    assert [rows_of(fold["test"]) for fold in folds(3, whole, 7)] == [
        [1, 3, 4, 6, 10, 18],
        [2, 5, 12, 13, 14, 16, 17],
        [0, 7, 8, 9, 11, 15, 19],
    ]


def test_the_largest_group_goes_to_the_smallest_fold():
    """Rows without a group are one group."""
    codes = np.array([0, 0, 0, 1, 1, 2, -1, -1, -1, -1], np.int8)
    whole = Divisible(np.arange(10), 10, by=Classes("donor", codes, pd.Index(["a", "b", "c", "none"])))
    found = [{name: rows_of(part) for name, part in fold.items()} for fold in folds(2, whole, 0)]
    first, second = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]
    assert found == [{"train": first, "test": second}, {"train": second, "test": first}]
    assert [rows_of(fold["test"]) for fold in folds(4, whole, 0)] == [[6, 7, 8, 9], [0, 1, 2], [3, 4], [5]]
    with pytest.raises(InputError, match="n_folds must be at most 4, the number of groups of 'donor', got 5"):
        folds(5, whole, 0)


def test_a_mask_follows_the_order_of_the_table_and_names_none():
    order = np.arange(len(ROWS))[::-1]
    mask = np.isin(np.arange(N), ROWS[:5])
    found = split({"mask": mask, "rows": [11 + 2, 39, 15]}, ROWS, N, 0, None, order, ordered=True)
    assert rows_of(found["mask"]) == ROWS[:5][::-1].tolist()
    assert rows_of(found["rows"]) == [13, 39, 15]


@pytest.mark.parametrize(("n_rows", "run"), [(1, 1), (999, 1), (2000, 2), (511_999, 511), (512_000, 512), (10**8, 512)])
def test_how_many_neighbours_stay_together(n_rows: int, run: int):
    assert run_rows(n_rows) == run


@pytest.mark.parametrize("n", [9, 999, 5003])
@pytest.mark.parametrize(
    "fractions",
    [
        {"a": 1.0},
        {"a": 0.1, "b": 0.2, "c": 0.7},
        {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3},
        {"a": 0.3, "b": None, "c": 0.3},
        {"a": 0.5, "b": 0.25},
    ],
    ids=str,
)
def test_fractions_are_dealt_in_runs(fractions: dict[str, float | None], n: int):
    """Each part has its share of the runs, to a run; runs are whole; parts that sum to one, or one open, leave none."""
    rows = np.arange(n) * 3 + 1
    found = split(fractions, rows, 3 * n, 9, None)
    run, owner = run_rows(n), np.full(n, -1)
    n_runs = -(-n // run)
    for number, (name, fraction) in enumerate(fractions.items()):
        numbers = (np.array(rows_of(found[name])) - 1) // 3
        owner[numbers] = number
        if fraction is not None:
            assert abs(len(set((numbers // run).tolist())) - fraction * n_runs) <= 1
    # No run is cut, but that the last one may be short.
    firsts = owner[::run]
    np.testing.assert_array_equal(owner, np.repeat(firsts, run)[:n])
    is_all = None in fractions.values() or sum(f or 0 for f in fractions.values()) > 0.99
    assert (owner >= 0).all() == is_all
    if n > 900 and len(fractions) > 1:
        assert any(a > b for a, b in zip(firsts[:-1], firsts[1:], strict=True)), "parts are not what comes first"


@pytest.mark.parametrize(
    ("parts", "classes", "message"),
    [
        ({}, None, "at least one part, got none"),
        ({"a": None, "b": None}, None, r"parts must have at most one None, got \['a', 'b'\]"),
        ({"a": 1.0, "rest": None}, None, r"fraction of part 'a' must be in \(0, 1\), got 1.0"),
        ({"a": 1.0, "b": 0.1}, None, r"fraction of part 'a' must be in \(0, 1\)"),
        ({"a": 1.5}, None, r"must be in \(0, 1\), got 1.5"),
        ({"a": 0.0}, None, r"must be in \(0, 1\), got 0.0"),
        ({"a": -0.1}, None, r"must be in \(0, 1\), got -0.1"),
        ({"a": 0.5, "b": 0.5, "c": 1e-6}, None, "sum to at most 1"),
        ({"a": 0.5, "b": [3]}, None, "must all be fractions or all be rows"),
        ({"a": [3, 5], "b": [7, 5]}, None, "'a' and 'b' share row 5"),
        ({"a": [3], "b": [5], "c": [5]}, None, "'b' and 'c' share row 5"),
        ({"a": [5, 9], "b": [3, 5, 9]}, None, "'a' and 'b' share row 5"),
        ({"a": [3, 4]}, None, "part 'a' must hold rows of this loader, got row 4"),
        ({"a": [1]}, None, "part 'a' must hold rows of this loader, got row 1"),
        ({"a": ["a", "b"], "b": ["c", "b"]}, BY, "'a' and 'b' share row"),
        ({"a": ["x"]}, BY, "must have the category 'x'"),
        ({"a": "a"}, BY, "must be a list of categories of 'kind', got 'a'"),
        ({"a": 3}, BY, "must be a list of categories of 'kind', got 3"),
        ({"a": []}, BY, "part 'a' must hold at least one row, got none of 19"),
        ({"a": CATEGORIES, "b": [], "rest": None}, BY, "part 'b' must hold at least one row"),
        ({"a": 0.001, "b": None}, None, "part 'a' must hold at least one row"),
    ],
)
def test_parts_that_are_none_are_refused(parts: Any, classes: Any, message: str):
    with pytest.raises(InputError, match=message):
        split(parts, ROWS, N, 0, classes)


def test_one_row():
    assert rows_of(split({"a": 1.0}, np.array([4]), 9, 0, None)["a"]) == [4]


def test_fractions_that_sum_to_one_but_for_rounding():
    parts = split(dict.fromkeys("abcdefghij", 0.1), np.arange(1000), 1000, 0, None)
    assert [len(part) for part in parts.values()] == [100] * 10


def test_descriptions_tell_parts_apart():
    assert describe({"a": 0.5, "b": None, "c": [1, 2]}, "a", Divisible(ROWS, N), 7) == {
        "part": "a",
        "parts": {"a": 0.5, "b": None, "c": "rows"},
        "by": None,
        "seed": 7,
    }
    assert describe({"a": None, "b": ["x", 3]}, "b", Divisible(ROWS, N, by=BY), 0) == {
        "part": "b",
        "parts": {"a": None, "b": ["x", "3"]},
        "by": "kind",
        "seed": 0,
    }
    strata = Divisible(ROWS, N, strata=BY)
    assert describe({"a": 0.5}, "a", strata, 1) == {
        "part": "a",
        "parts": {"a": 0.5},
        "by": None,
        "stratify": "kind",
        "seed": 1,
    }
    assert describe_fold(1, 3, "test", strata, 2) == {
        "part": "test",
        "fold": 1,
        "n_folds": 3,
        "by": None,
        "stratify": "kind",
        "seed": 2,
    }
