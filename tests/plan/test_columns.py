"""Does each element go to the column that it should, in the order that it should? Pure; the oracle is Python's sort."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.plan import column_selection
from annbatch.plan.column_map import ColumnMap, map_columns, map_dense
from annbatch.plan.column_selection import NO_LOOKUP, Selection, fill_dense, join_pieces, select_columns
from annbatch.plan.window import plan_readings
from python_kernels import run_as_python

Row = list[tuple[int, int]]
"""Column and value of each element."""

# Columns of one, two and three digits of six bits.
COLUMNS = [0, 1, 2, 62, 63, 64, 65, 127, 128, 4094, 4095, 4096, 4097, 4999]
N_COLUMNS = 5000
ELEMENTS = st.lists(st.tuples(st.sampled_from(COLUMNS), st.integers(1, 999)), max_size=20)
ROWS = st.lists(ELEMENTS, max_size=6)
ASKED = st.lists(st.sampled_from(COLUMNS), min_size=1, unique=True)


def csr(rows: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flat = [element for row in rows for element in row]
    indices = np.array([column for column, _ in flat], np.int32)
    return np.array([value for _, value in flat], np.float32), indices, np.cumsum([0, *map(len, rows)])


def rows_of(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray) -> list[Row]:
    assert indptr[0] == 0
    pairs = list(zip(indices.tolist(), data.astype(np.int64).tolist(), strict=True))
    return [pairs[a:b] for a, b in pairwise(indptr.tolist())]


def by_column(row: Row) -> Row:
    """Elements of one column keep their order."""
    return sorted(row, key=lambda element: element[0])


def placed(row: Row, columns: list[int]) -> Row:
    """The elements in columns that are asked for, with their places there."""
    return [(columns.index(column), value) for column, value in row if column in columns]


@given(ROWS, ASKED, st.booleans(), st.integers(0, 3))
def test_wanted_columns_are_kept(rows: list[Row], asked: list[int], ascending: bool, n_absent: int):
    asked = (sorted(asked) if ascending else asked) + [-1] * n_absent
    selection = Selection.of(np.array(asked), N_COLUMNS)
    assert selection.in_order == (asked[: len(asked) - n_absent] == sorted(asked[: len(asked) - n_absent]))
    assert np.flatnonzero(selection.is_wanted).tolist() == sorted(column for column in asked if column >= 0)
    data, indices, indptr = csr(rows)
    wanted = [placed(row, asked) for row in rows]
    dense = np.full((len(rows) + 2, len(asked)), 7, np.float32)
    fill_dense(data, indices, indptr, selection.lookup, dense)
    expected = np.zeros_like(dense)
    for i, row in enumerate(wanted):
        for column, value in row:
            expected[i, column] += value
    np.testing.assert_array_equal(dense, expected)
    n_sorted = 0 if selection.in_order else len(asked)
    # As `annbatch.batches.sparse_on_host` shows values to it.
    kept = select_columns(data.view(np.uint32), indices, indptr, selection.lookup, n_sorted)
    found = rows_of(data[: kept[-1]], indices[: kept[-1]], kept)
    assert found == (wanted if selection.in_order else [by_column(row) for row in wanted])


@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 99)), max_size=8), max_size=4))
def test_all_columns_are_filled(rows: list[Row]):
    dense = np.full((len(rows), 5), 7, np.float32)
    fill_dense(*csr(rows), NO_LOOKUP, dense)
    expected = [[sum(value for own, value in row if own == column) for column in range(5)] for row in rows]
    assert dense.tolist() == expected


@given(st.lists(st.lists(ELEMENTS, max_size=3), max_size=4), st.booleans(), st.randoms(use_true_random=False))
def test_pieces_are_joined(rows: list[list[Row]], is_sorted: bool, random):
    """Each row consists of pieces, which lie anywhere."""
    pieces = [piece for row in rows for piece in row]
    stored = list(range(len(pieces)))
    random.shuffle(stored)
    lengths = np.array([len(pieces[number]) for number in stored], np.int64)
    flat = [element for number in stored for element in pieces[number]]
    values, columns = (np.array([element[i] for element in flat], np.uint16) for i in (1, 0))
    order = np.argsort(stored)
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    data, indices = np.zeros(len(flat) + 1, np.float32), np.zeros(len(flat) + 1, np.uint32)
    firsts = np.cumsum(lengths) - lengths
    n_sorted = N_COLUMNS if is_sorted else 0
    indptr = join_pieces(values, columns, firsts, lengths, order, ends, data, indices, n_sorted)
    expected = [[element for piece in row for element in piece] for row in rows]
    found = rows_of(data[:-1], indices[:-1], indptr)
    assert found == ([by_column(row) for row in expected] if is_sorted else expected)
    assert (data[-1], indices[-1]) == (0, 0)


def test_a_selection_says_where_columns_go():
    """Of five columns the last one is wanted, one that the store lacks, and the first one."""
    selection = Selection.of(np.array([4, -1, 0]), 5)
    assert selection.lookup.tolist() == [2, -1, -1, -1, 0]
    assert selection.is_wanted.tolist() == [1, 0, 0, 0, 1]
    assert not selection.in_order


# One digit of six bits, and one more, each with the largest number of columns and with one more.
N_REVERSED = pytest.mark.parametrize("n", [2, 64, 65, 4096, 4097])


def reversed_row(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row with the first of ``n`` columns, and one with all of them; the value of a column is its number and 1."""
    return np.append(1, np.arange(n) + 1).astype("f4"), np.append(0, np.arange(n)).astype("i4"), np.array([0, 1, n + 1])


def assert_reversed(n: int, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, first: int) -> None:
    """Column c went to n - 1 - c, but that of the first row to ``first``."""
    assert indptr.tolist() == [0, 1, n + 1]
    np.testing.assert_array_equal(indices, np.append(first, np.arange(n)))
    np.testing.assert_array_equal(data, np.append(1, np.arange(n)[::-1] + 1))


@N_REVERSED
def test_selected_rows_with_all_columns_are_sorted(n: int):
    data, indices, indptr = reversed_row(n)
    selection = Selection.of(np.arange(n)[::-1], n)
    kept = select_columns(data.view(np.uint32), indices, indptr, selection.lookup, n)
    assert_reversed(n, data, indices, kept, n - 1)


def test_rows_are_sorted_with_each_index_checked(monkeypatch: pytest.MonkeyPatch):
    run_as_python(monkeypatch, column_selection)
    for n in (2, 64, 65):
        data, indices, indptr = reversed_row(n)
        selection = Selection.of(np.arange(n)[::-1], n)
        kept = column_selection.select_columns(data.view(np.uint32), indices, indptr, selection.lookup, n)
        assert_reversed(n, data, indices, kept, n - 1)


@N_REVERSED
@pytest.mark.parametrize("repeats", [1, 2])
def test_joined_rows_with_all_columns_are_sorted(n: int, repeats: int):
    """A row of a column, and one of all columns in descending order, once or in two pieces of all of them."""
    columns = np.append(0, np.tile(np.arange(n)[::-1], repeats)).astype(np.uint16)
    values = np.arange(len(columns)).astype(np.uint16)
    firsts, counts = np.append(0, 1 + n * np.arange(repeats)), np.append(1, [n] * repeats)
    ends = np.array([1, 1 + repeats])
    data, indices = np.zeros(len(columns), np.float32), np.zeros(len(columns), np.uint32)
    indptr = join_pieces(values, columns, firsts, counts, np.arange(1 + repeats), ends, data, indices, n)
    assert indptr.tolist() == [0, 1, len(columns)]
    order = np.append(0, 1 + np.argsort(columns[1:], kind="stable"))
    np.testing.assert_array_equal(indices, columns[order])
    np.testing.assert_array_equal(data, values[order])


# Three rows of which a batch has two: its indptr is a part of a longer one, and more elements lie behind its own.
PARTLY: list[Row] = [[(1, 5)], [(0, 6), (3, 7)], [(1, 8), (2, 9)]]


def test_elements_behind_the_selected_rows_stay():
    data, indices, indptr = csr(PARTLY)
    selection = Selection.of(np.array([3, 2, 1, 0]), 4)
    kept = select_columns(data.view(np.uint32), indices, indptr[:3], selection.lookup, 4)
    assert kept.tolist() == [0, 1, 3]
    assert rows_of(data[:3], indices[:3], kept) == [[(2, 5)], [(0, 7), (3, 6)]]
    assert (indices[3:].tolist(), data[3:].tolist()) == ([1, 2], [8, 9])


@pytest.mark.parametrize("lookup", [NO_LOOKUP, np.arange(4, dtype=np.int32)])
def test_dense_rows_behind_the_last_one_are_zero(lookup: np.ndarray):
    """More of them than there are columns."""
    data, indices, indptr = csr(PARTLY)
    dense = np.full((7, 4), 7, np.float32)
    fill_dense(data, indices, indptr[:3], lookup, dense)
    assert dense.tolist() == [[0, 5, 0, 0], [6, 0, 0, 7], *[[0] * 4] * 5]


# Of the lists, the first keeps the order of the joined genes, the second does not, and of the third some are left out.
LISTS = [[1, 2, 6], [5, 3, 0, 4], [-1, 3, -1, 1]]
N_JOINED = 7
OF_STORES = [0, 1, 1, 2]
MAP = ColumnMap.of([np.array(one) for one in LISTS], OF_STORES, N_JOINED)
ROW_OF_A_LIST = st.integers(0, 2).flatmap(
    lambda number: st.tuples(
        st.just(number),
        st.lists(st.tuples(st.integers(0, len(LISTS[number]) - 1), st.integers(1, 99)), max_size=9),
    )
)


def joined(number: int, row: Row, lists: list[list[int]]) -> Row:
    found = [(lists[number][column], value) for column, value in row if lists[number][column] >= 0]
    kept = [column for column in lists[number] if column >= 0]
    return found if kept == sorted(kept) else by_column(found)


@given(st.lists(ROW_OF_A_LIST, max_size=8))
def test_columns_of_several_lists_are_mapped(rows: list[tuple[int, Row]]):
    numbers = np.array([number for number, _ in rows], np.int64)
    data, indices, indptr = csr([row for _, row in rows])
    table = MAP.lookup, MAP.bounds, MAP.ascends, MAP.n_columns
    out, bad = map_columns(data.view(np.uint32), indices, indptr, numbers, *table)
    assert bad == -1
    found = rows_of(data[: out[-1]], indices[: out[-1]], out)
    assert found == [joined(number, row, LISTS) for number, row in rows]


@pytest.mark.parametrize(("number", "column"), [(0, 3), (1, 4), (2, -1), (0, -1)])
def test_a_column_beyond_its_list_is_named(number: int, column: int):
    data, indices, indptr = csr([[(0, 1)], [(0, 1), (column, 1)], [(0, 1)]])
    numbers = np.array([0, number, 0])
    table = MAP.lookup, MAP.bounds, MAP.ascends, MAP.n_columns
    assert map_columns(data.view(np.uint32), indices, indptr, numbers, *table)[1] == 1


@given(st.lists(st.integers(0, 2), max_size=6), st.integers(0, 2))
def test_dense_rows_of_several_lists_are_mapped(numbers: list[int], n_padding: int):
    parts = [np.arange(1, len(LISTS[number]) + 1) + 10 * i for i, number in enumerate(numbers)]
    values = np.concatenate([np.empty(0, int), *parts]).astype(np.uint32)
    out = np.full((len(numbers) + n_padding, N_JOINED), 7, np.uint32)
    map_dense(values, np.array(numbers, np.int64), MAP.lookup, MAP.bounds, out)
    expected = np.zeros_like(out)
    for i, (number, part) in enumerate(zip(numbers, parts, strict=True)):
        for column, value in zip(LISTS[number], part.tolist(), strict=True):
            if column >= 0:
                expected[i, column] = value
    np.testing.assert_array_equal(out, expected)


@N_REVERSED
def test_mapped_rows_with_all_columns_are_sorted(n: int):
    """The list of the first row has one column, that of the second all of them in descending order."""
    data, indices, indptr = reversed_row(n)
    both = ColumnMap.of([np.array([0]), np.arange(n)[::-1]], [0, 1], n)
    table = both.lookup, both.bounds, both.ascends, both.n_columns
    out, bad = map_columns(data.view(np.uint32), indices, indptr, both.lists, *table)
    assert bad == -1
    assert_reversed(n, data, indices, out, 0)


def test_elements_behind_the_mapped_rows_stay():
    data, indices, indptr = csr(PARTLY)
    # If it were an end of a row, that row would need more room than there is.
    indptr[3] = np.iinfo(np.int64).max
    turned = ColumnMap.of([np.array([3, 2, 1, 0])], [0], 4)
    table = turned.lookup, turned.bounds, turned.ascends, turned.n_columns
    out, bad = map_columns(data.view(np.uint32), indices, indptr[:3], np.zeros(3, np.int64)[:2], *table)
    assert (out.tolist(), bad) == ([0, 1, 3], -1)
    assert rows_of(data[:3], indices[:3], out) == [[(2, 5)], [(0, 7), (3, 6)]]
    assert (indices[3:].tolist(), data[3:].tolist()) == ([1, 2], [8, 9])


def test_more_dense_rows_than_columns_are_mapped():
    """Two rows of the third list, and of values and lists those of the next batch; seven rows are padding."""
    values, out = np.arange(1, 13, dtype=np.uint32), np.full((9, N_JOINED), 7, np.uint32)
    map_dense(values, np.array([2, 2, 2])[:2], MAP.lookup, MAP.bounds, out)
    assert out.tolist() == [[0, 4, 0, 2, 0, 0, 0], [0, 8, 0, 6, 0, 0, 0], *[[0] * N_JOINED] * 7]
    map_dense(np.ones(33, np.uint32), np.zeros(9, np.int64), MAP.lookup, MAP.bounds, out)
    assert out.tolist() == [[0, 1, 1, 0, 0, 0, 1]] * 9


@pytest.mark.parametrize(
    ("columns", "ascends"),
    [([0, 1], 1), ([1, 0], 0), ([0, 3, 2], 0), ([2, -1, 5], 1), ([-1, 0, -1, 1], 1), ([5, -1, 2], 0), ([-1], 1)],
)
def test_a_list_ascends_if_the_columns_that_are_kept_do(columns: list[int], ascends: int):
    assert ColumnMap.of([np.array(columns)], [0], 6).ascends.tolist() == [ascends]


def test_a_map_says_what_it_does():
    assert MAP.drops
    assert MAP.ascends.tolist() == [1, 0, 0]
    assert not ColumnMap.of([np.array([0, 1])], [0], 2).drops
    assert MAP.lists.tolist() == OF_STORES
    # Of the joined columns 3, 1 and 0 are chosen.
    chosen = MAP.then(Selection.of(np.array([3, 1, 0]), N_JOINED))
    assert chosen.n_columns == 3
    lists = [chosen.lookup[a:b].tolist() for a, b in pairwise(chosen.bounds.tolist())]
    assert lists == [[1, -1, -1], [-1, 0, 2, -1], [-1, 0, -1, 1]]
    assert chosen.ascends.tolist() == [1, 1, 1]
    assert chosen.lists.tolist() == OF_STORES


@given(st.lists(st.integers(0, 19), max_size=12))
def test_the_lists_of_a_windows_rows(rows: list[int]):
    first_rows = np.array([0, 5, 6, 12, 20])
    plan = plan_readings(np.array(rows, np.int64), np.array([0, len(rows)]), first_rows)
    stores = np.searchsorted(first_rows, rows, side="right") - 1
    assert MAP.lists_of_rows(plan).tolist() == [OF_STORES[store] for store in stores]
