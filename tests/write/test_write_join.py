"""What becomes of one column of several tables?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from annbatch.errors import InputError
from annbatch.stores import column_join
from annbatch.stores.column_join import KnownColumn, join_column


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
    "all missing, of a type": ([np.full(1, np.nan, np.float32), None], "float32", [NA, NA, NA]),
    "no float beside integers": ([np.full(1, np.nan, np.float32), np.array([4], np.int8)], "float64", [NA, 4]),
    "no nullable beside integers": ([pd.array([None], "Int32"), np.array([4], np.int8)], "float64", [NA, 4]),
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


# --- columns of a collection that gets more cells ---------------------------------------------------------------------


def appended(known: Any, has_value: bool, *columns: Any) -> pd.Series[Any]:
    series = [None if c is None else pd.Series(c) for c in columns]
    lengths = [2 if c is None else len(c) for c in columns]
    paths = [f"file{i}" for i in range(len(columns))]
    return join_column(series, lengths, "obs column 'x'", paths, KnownColumn(pd.Series(known), has_value))


NO_TEXT = np.empty(0, object)
KNOWN = {
    "categories": (category([], ["z", "b"]), True, [["a", "b"]], "category", ["a", "b"]),
    "categories without a value": (category([], ["z"]), False, [["a"]], "category", ["a"]),
    "no value, now numbers": (NO_TEXT, False, [[1, 2]], "float64", [1, 2]),
    "no number, now text": (np.empty(0), False, [["a"]], "category", ["a"]),
    "text, and none": (NO_TEXT, True, [None], "category", [NA, NA]),
    "text, and text": (NO_TEXT, True, [["a"], ["b"]], "category", ["a", "b"]),
    "numbers, and none": (np.empty(0, np.float32), True, [None], "float32", [NA, NA]),
    "integers": (np.empty(0, np.int16), True, [np.array([1], np.int8)], "int16", [1]),
    "booleans": (np.empty(0, bool), True, [None], "boolean", [NA, NA]),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_column_of_a_collection_comes_first(name: str):
    known, has_value, columns, dtype, values = KNOWN[name]
    found = appended(known, has_value, *columns)
    assert str(found.dtype) == dtype
    assert [None if pd.isna(value) else value for value in found.astype(object)] == values


def test_categories_of_a_collection_come_first():
    assert appended(category([], ["z", "b"]), True, ["a", "b"]).cat.categories.tolist() == ["z", "b", "a"]


@pytest.mark.parametrize(
    ("known", "column", "message"),
    [
        (NO_TEXT, [1], "got category of string in the collection, number in file0"),
        (np.empty(0), ["a"], "got number in the collection, category of string in file0"),
    ],
)
def test_values_of_another_kind_than_those_of_a_collection(known: Any, column: Any, message: str):
    with pytest.raises(InputError, match=message):
        appended(known, True, column)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "dtype", "values"),
    [
        ([[2**53], None], "float64", [2**53, NA, NA]),
        ([[-(2**53)], None], "float64", [-(2**53), NA, NA]),
        ([[1, 2**53 + 1], None], "Int64", [1, 2**53 + 1, NA, NA]),
        ([[-(2**53) - 1, 1], None], "Int64", [-(2**53) - 1, 1, NA, NA]),
        # Ends of the ranges of types, of which floats hold some.
        ([[-(2**63)], [0.5]], "float64", [-(2**63), 0.5]),
        ([np.array([127, -128], np.int8), [0.5]], "float64", [127, -128, 0.5]),
        ([np.array([2**32 - 1], np.uint32), [0.5]], "float64", [2**32 - 1, 0.5]),
        ([np.array([255], np.uint8), np.array([0.5], np.float32)], "float32", [255, 0.5]),
    ],
    ids=str,
)
def test_integers_beside_other_numbers(columns: list[Any], dtype: str, values: list[Any]):
    found = joined(*columns)
    assert str(found.dtype) == dtype
    assert [None if pd.isna(value) else value for value in found.astype(object)] == values


@pytest.mark.parametrize("column", [[2**63 - 1], np.array([2**64 - 1], np.uint64), [2**53 + 1], [3, -(2**53) - 1]])
def test_integers_that_floats_change(column: Any):
    with pytest.raises(InputError, match=f"'x' must hold numbers that fit float64.*, got {column[-1]};"):
        joined(column, [0.5])


def test_how_many_strings_are_identifiers(monkeypatch: pytest.MonkeyPatch):
    names = np.arange(2**16 + 1).astype(str).astype(object)
    assert joined(names[:-1]).dtype == "category"
    assert joined(names).dtype == object
    # Most of them occur once.
    monkeypatch.setattr(column_join, "MAX_CATEGORIES", 3)
    assert joined(["a", "b", "c", "d", "a"]).dtype == object
    assert joined(category([1, 2, 3, 4], [1, 2, 3, 4])).dtype == "category"


def test_each_table_has_a_length_and_a_path():
    for lengths, paths in (([1], ["a", "b"]), ([1, 1], ["a"])):
        with pytest.raises(ValueError, match="zip"):
            join_column([pd.Series([1]), pd.Series([2])], lengths, "obs column 'x'", paths)
        with pytest.raises(ValueError, match="zip"):
            join_column([pd.Series(["a"]), pd.Series(["b"])], lengths, "obs column 'x'", paths)
    with pytest.raises(ValueError, match="zip"):
        join_column([pd.Series([0.5]), pd.Series([2])], [1], "obs column 'x'", ["a", "b"])
