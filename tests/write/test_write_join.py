"""What becomes of one column of several tables?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from annbatch.errors import InputError
from annbatch.stores import column_join
from annbatch.stores.column_join import join_column


def joined(*columns: Any, lengths: list[int] | None = None) -> pd.Series[Any]:
    series = [None if c is None else pd.Series(c) for c in columns]
    lengths = lengths or [2 if c is None else len(c) for c in columns]
    return join_column(series, lengths, "obs column 'x'", [f"file{i}" for i in range(len(columns))])


def category(values: list[Any], categories: list[Any], ordered: bool = False) -> Any:
    return pd.Categorical(values, categories=categories, ordered=ordered)


NA = None
CASES = {
    "plain integers": ([[1, 2], [3]], "int64", [1, 2, 3]),
    "integers of two types": ([np.array([1], np.int8), np.array([2], np.int32)], "int32", [1, 2]),
    "integers and floats": ([[1, 2], [0.5]], "float64", [1, 2, 0.5]),
    "integers and none": ([[1], None], "float64", [1, NA, NA]),
    "integers that float64 changes": ([[2**60 + 1], None], "Int64", [2**60 + 1, NA, NA]),
    "nullable integers": ([pd.array([1, None], "Int32"), [3]], "Int64", [1, NA, 3]),
    "nullable integers, none missing": ([pd.array([1, 2], "UInt8")], "UInt8", [1, 2]),
    "nullable integers and floats": ([pd.array([1, None], "Int64"), [0.5]], "float64", [1, NA, 0.5]),
    "float32 and none": ([np.array([0.5], np.float32), None], "float32", [0.5, NA, NA]),
    "booleans": ([[True], [False]], "bool", [True, False]),
    "booleans and none": ([[True], None], "boolean", [True, NA, NA]),
    "nullable booleans": ([pd.array([True, None], "boolean"), [False]], "boolean", [True, NA, False]),
    "strings": ([["a", "b"], ["c", "a"]], "category", ["a", "b", "c", "a"]),
    "strings with gaps": ([np.array(["a", None], object), None], "category", ["a", NA, NA, NA]),
    "pandas strings": ([pd.array(["a", None], "string"), ["b"]], "category", ["a", NA, "b"]),
    "strings and categories": ([category(["b", NA], ["c", "b"]), ["a", "c"]], "category", ["b", NA, "a", "c"]),
    "integer categories": ([category([3, 1], [1, 3]), category([2], [2])], "category", [3, 1, 2]),
    "all missing beside strings": ([[np.nan, np.nan], ["a"]], "category", [NA, NA, "a"]),
    "all missing beside integers": ([np.array([None, None], object), [4]], "float64", [NA, NA, 4]),
    "all missing": ([[np.nan], None], "float64", [NA, NA, NA]),
    "all missing categories": ([category([NA], ["a"])], "category", [NA]),
}


@pytest.mark.parametrize("name", CASES)
def test_stacking(name: str):
    columns, dtype, values = CASES[name]
    found = joined(*columns)
    assert str(found.dtype) == dtype
    assert [None if pd.isna(value) else value for value in found.astype(object)] == values


def test_categories_are_the_union_by_first_appearance():
    found = joined(category(["b"], ["z", "b"]), ["q", "b", "a"], category(["n"], ["a", "n"]))
    assert found.cat.categories.tolist() == ["z", "b", "q", "a", "n"]


@pytest.mark.parametrize(
    ("columns", "ordered"),
    [
        ([category(["a"], ["b", "a"], True), category(["b"], ["b", "a"], True)], True),
        ([category(["a"], ["b", "a"], True), None], True),
        ([category(["a"], ["b", "a"], True), category(["b"], ["a", "b"], True)], False),
        ([category(["a"], ["b", "a"], True), category(["b"], ["b", "a"], False)], False),
        ([category(["a"], ["b", "a"], True), ["b"]], False),
    ],
)
def test_ordered_only_if_all_agree(columns: list[Any], ordered: bool):
    assert joined(*columns).cat.ordered is ordered


def test_identifiers_stay_strings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(column_join, "MAX_CATEGORIES", 3)
    assert joined(["a", "b", "c", "d"]).dtype == object
    assert joined(["a", "b", "c", "d"]).tolist() == ["a", "b", "c", "d"]
    assert joined(["a", "b", "c", "d"] * 2).dtype == "category"
    assert joined(["a", "b", "c"]).dtype == "category"
    # A missing identifier could not be told from an empty one.
    assert joined(["a", "b", "c", "d", None]).dtype == "category"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([["a"], [1]], "one kind everywhere, got category of string in file0, number in file1"),
        ([[True], [1]], "got boolean in file0, number in file1"),
        ([category([1], [1]), ["a"]], "got category of integer in file0, category of string in file1"),
        (
            [pd.to_datetime(["2020-01-01"])],
            "file0: obs column 'x' must hold strings, categories, numbers or booleans, got datetime64",
        ),
        ([np.array([b"a"], object)], "got bytes"),
    ],
)
def test_what_cannot_be_stacked_is_refused(columns: list[Any], message: str):
    with pytest.raises(InputError, match=message):
        joined(*columns)
