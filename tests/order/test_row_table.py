"""Which class is each row in, and which rows are in each class?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from annbatch.errors import InputError
from annbatch.order.row_selection import Runs
from annbatch.order.row_table import Classes, ClassRows, Table, described, joint, names_of, ranks_in_class

CODES = np.array([2, 0, -1, 2, 1, 2, 0], np.int8)
KIND = Classes("kind", CODES, pd.Index(["a", "b", "c", "d"]))


def test_classes_have_codes_and_counts():
    assert [KIND.code(name) for name in "abcd"] == [0, 1, 2, 3]
    assert KIND.counts().tolist() == [2, 1, 3, 0]
    assert KIND.counts().dtype == np.int64
    assert KIND.select(Runs.of([1, 2, 5], 7)).codes.tolist() == [0, -1, 2]
    with pytest.raises(InputError, match=r"obs\['kind'\] must have the category 'e', got only"):
        KIND.code("e")


def joined(*columns: list[int], n_categories: int = 3) -> Classes:
    names = [str(i) for i in range(n_categories)]
    return joint([Classes(f"c{i}", np.array(codes, np.int8), pd.Index(names)) for i, codes in enumerate(columns)])


@pytest.mark.parametrize(
    ("columns", "codes", "categories"),
    [
        (([1, 0, 2, 1],), [1, 0, 2, 1], [("0",), ("1",), ("2",)]),
        (([2, -1, 2],), [0, -1, 0], [("2",)]),
        (([0, 1, 0], [2, 0, 2]), [0, 1, 0], [("0", "2"), ("1", "0")]),
        (([1, 0, 0], [0, 2, 1]), [2, 1, 0], [("0", "1"), ("0", "2"), ("1", "0")]),
        (([0, -1, 1, 1], [1, 1, -1, 0]), [0, -1, -1, 1], [("0", "1"), ("1", "0")]),
        (([0, 1, 1], [0, 2, -1], [1, 0, 0]), [0, 1, -1], [("0", "0", "1"), ("1", "2", "0")]),
        (([-1, -1],), [-1, -1], []),
        (([], []), [], []),
    ],
)
def test_several_columns_are_joined(columns: tuple[list[int], ...], codes: list[int], categories: list[Any]):
    found = joined(*columns)
    assert found.codes.tolist() == codes
    assert found.categories.tolist() == categories
    assert found.name == ", ".join(f"c{i}" for i in range(len(columns)))
    assert found.categories.names == [f"c{i}" for i in range(len(columns))]


@pytest.mark.parametrize("n", [127, 128, 129, 130, 255, 256, 257, 32767, 32768, 32769, 65536])
def test_codes_of_many_combinations_fit_their_type(n: int):
    codes = np.append(np.arange(n), -1)
    found = joint([Classes("one", codes, pd.RangeIndex(n).astype(str))])
    np.testing.assert_array_equal(found.codes, codes)
    assert found.codes.itemsize <= (2 if n < 2**15 else 4)


def test_a_category_of_several_columns_is_a_whole_tuple():
    found = joined([0, 1], [2, 0])
    assert found.code(("1", "0")) == 1
    for part in ("1", ("1",), ("1", "0", "0"), ("0", "0")):
        with pytest.raises(InputError, match="must have the category"):
            found.code(part)


@pytest.mark.parametrize(("by", "names"), [("a", ("a",)), (["a"], ("a",)), (["b", "a"], ("b", "a"))])
def test_columns_are_named(by: Any, names: tuple[str, ...]):
    assert names_of(by) == names
    assert described(by) == by


@pytest.mark.parametrize("by", [[], ["a", "a"], [1], ["a", 1]], ids=str)
def test_names_that_are_none_are_refused(by: Any):
    with pytest.raises(InputError, match="^within must be the name of an obs column, or a list of distinct names"):
        names_of(by, "within")


def table_of(rows: Runs | None) -> Table:
    other = Classes("other", np.array([0, 1, 0, 1, 0, 1, 0]), pd.Index(["x", "y"]))
    return Table((4, 3), 2, 3, 0, 2, {"kind": KIND, "other": other}, 7, rows)


def test_a_table_knows_its_rows():
    whole, part = table_of(None), table_of(Runs.of([0, 6], 7))
    assert whole.n_rows == 7
    assert whole.select(np.arange(7)).tolist() == list(range(7))
    assert part.select(np.arange(7)).tolist() == [0, 6]
    assert whole.classes_by("kind") is KIND
    assert whole.classes_by(["other", "kind"]).categories.tolist() == [
        ("x", "a"),
        ("x", "b"),
        ("x", "c"),
        ("y", "a"),
        ("y", "c"),
    ]


def test_rows_by_class():
    found = ClassRows.of(CODES, 4)
    assert found.rows.tolist() == [1, 6, 4, 0, 3, 5]
    assert found.rows.dtype == np.uint32
    assert found.first.tolist() == [0, 2, 3, 6, 6]
    assert ClassRows.of(CODES, 3).rows.tolist() == found.rows.tolist()
    assert found.counts().tolist() == [2, 1, 3, 0]
    rows = found.find(2, np.array([2, 0]))
    assert rows.tolist() == [5, 0]
    assert rows.dtype == np.int64


def test_ranks_in_class():
    assert ranks_in_class(np.array([2, 0, 2, 1, 2, 0]), 3).tolist() == [0, 0, 1, 0, 2, 1]
