"""Are obs columns of stores united alike, whether at once or as stores are added?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from annbatch.batches.label_rows import LabelReader
from annbatch.errors import InputError
from annbatch.plan.window import plan_readings
from annbatch.remote.request_pool import Requests
from annbatch.stores.label_columns import Column, columns_of_frame
from annbatch.stores.united_columns import Merged, StoreColumns, _common_dtype, differences, merge_columns

N = 3


def category(values: list[Any], categories: list[Any], ordered: bool = False) -> Any:
    return pd.Categorical(values, categories=categories, ordered=ordered)


COLUMNS: dict[str, Any] = {
    "ab": category(["a", "b", "a"], ["a", "b"]),
    "ba": category(["a", None, "b"], ["b", "a"]),
    "a": category(["a", "a", None], ["a"]),
    "ordered": category(["b", "a", "a"], ["a", "b"], ordered=True),
    "empty": category([None] * N, []),
    "text": pd.array(["a", "c", None], dtype="string"),
    "other text": pd.array(["d", "a", "a"], dtype="string"),
    "objects": np.array(["a", "e", None], object),
    "bool": np.array([True, False, True]),
    "nullable bool": pd.array([True, None, False], dtype="boolean"),
    "int": np.array([1, 2, 3], np.int16),
    "wide int": np.array([1, 2, 2**40]),
    "nullable int": pd.array([1, None, 3], dtype="Int8"),
    "float": np.array([0.5, np.nan, 2], np.float32),
    "none": np.array([None] * N, object),
    "nan": np.full(N, np.nan),
}


def store(number: int, **columns: str | None) -> StoreColumns:
    """A store with the named columns of `COLUMNS`."""
    frame = pd.DataFrame({name: COLUMNS[kind] for name, kind in columns.items() if kind is not None})
    name = f"s{number}"
    return name, N, columns_of_frame(frame, None, name)


def stores(*kinds: str | None) -> list[StoreColumns]:
    return [store(number, x=kind) for number, kind in enumerate(kinds)]


def described(column: Column) -> tuple[Any, ...]:
    categories = None if column.categories is None else column.categories.tolist()
    # Codes of a store without categories are all -1.
    recodes = [None if recode is None or len(recode) == 1 else recode.tolist() for recode in column.recodes]
    parts = [
        (
            part.name,
            len(part.values),
            part.values.dtype,
            None if part.mask is None else (len(part.mask), part.mask.dtype),
            None if part.categories is None else part.categories.tolist(),
        )
        for part in column.parts
    ]
    return column.name, column.kind, str(column.dtype), categories, recodes, parts


def objects(column: Any) -> list[Any]:
    return [None if pd.isna(value) else value for value in pd.Series(column).astype(object)]


def values_of(column: Column) -> pd.Series[Any]:
    """All rows of a column, as users see them."""
    n = len(column.parts)
    rows = np.arange(N * n)
    plan = plan_readings(rows, np.array([0, len(rows)]), np.arange(n + 1) * N)
    reader = LabelReader([column])
    (labels,) = reader.read(plan, rows, reader.begin(plan, Requests()))
    return labels.frame(rows)["x"]


@pytest.mark.parametrize(
    ("kinds", "dtype", "categories", "recodes"),
    [
        (["ab", "ab"], "category", "ab", [None, None]),
        (["ab", "ba"], "category", "ab", [None, [1, 0, -1]]),
        (["ab", "a"], "category", "ab", [None, None]),
        (["a", "ba"], "category", "ab", [None, [1, 0, -1]]),
        (["ba", None], "category", "ba", [None, None]),
        ([None, "ba"], "category", "ba", [None, None]),
        (["text", "text"], "string", "ac", [None, None]),
        (["text", "other text"], "string", "acd", [None, [2, 0, -1]]),
        (["text", "objects"], "object", "ace", [None, [0, 2, -1]]),
        (["text", "ab"], "category", "acb", [None, [0, 2, -1]]),
        (["bool", "bool"], "bool", [False, True], [None, None]),
        (["bool", "none"], "boolean", [False, True], [None, None]),
        (["bool", "nullable bool"], "boolean", [False, True], [None, None]),
        (["nullable bool", "nullable bool"], "boolean", [False, True], [None, None]),
        (["int", "int"], "int16", None, [None, None]),
        (["int", "wide int"], "int64", None, [None, None]),
        (["int", "none"], "Int16", None, [None, None]),
        (["int", None], "Int16", None, [None, None]),
        (["int", "nullable int"], "Int16", None, [None, None]),
        (["int", "float"], "float32", None, [None, None]),
        (["float", None], "float32", None, [None, None]),
        (["nullable int", "float"], "Float64", None, [None, None]),
        (["none", "none"], "object", "", [None, None]),
        (["none", None], "object", "", [None, None]),
    ],
)
def test_columns_are_united(kinds: list[str | None], dtype: str, categories: Any, recodes: list[Any]):
    (column,) = merge_columns(stores(*kinds)).columns
    found = described(column)
    assert found[2] == dtype
    assert found[3] == (None if categories is None else list(categories))
    assert found[4] == recodes
    assert [part.name for part in column.parts] == ["s0 obs['x']", "s1 obs['x']"]
    assert [len(part.values) for part in column.parts] == [N, N]
    wanted = [[None] * N if kind is None else objects(COLUMNS[kind]) for kind in kinds]
    assert objects(values_of(column)) == [*wanted[0], *wanted[1]]


@pytest.mark.parametrize("first", COLUMNS)
def test_stores_may_be_added(first: str):
    """Of two stores, then of three, as of three at once."""
    for second in (None, "ab", "text", "int", "none"):
        before = merge_columns(stores(first, second))
        for third in (*COLUMNS, None):
            whole = stores(first, second, third)
            expected = merge_columns(whole)
            found = merge_columns(whole, before=before.columns)
            assert [described(one) for one in found.columns] == [described(one) for one in expected.columns]
            for one, other in zip(found.columns, expected.columns, strict=True):
                if isinstance(other.dtype, pd.CategoricalDtype):
                    assert one.dtype == other.dtype
                    assert one.dtype.ordered == other.dtype.ordered
            assert found.disputed == expected.disputed
            assert found.lacking == expected.lacking


def test_columns_that_fit_are_not_looked_at_again():
    before = merge_columns(stores("ab", "ba"))
    found = merge_columns(stores("ab", "ba", "a"), before=before.columns)
    assert found.columns[0].recodes[1] is before.columns[0].recodes[1]
    assert found.columns[0].parts[0] is before.columns[0].parts[0]


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["int16", "int16"], "int16"),
        (["int16", "uint16"], "int32"),
        (["int64", "uint64"], "int64"),
        (["Int16", "int32"], "Int32"),
        (["Int16", "Float32"], "Float64"),
        (["Float32", "float32"], "Float64"),
        (["Float32", "Float32"], "Float32"),
        (["UInt8", "UInt16"], "UInt16"),
    ],
    ids=str,
)
def test_types_of_numbers(dtypes: list[str], expected: str):
    assert str(_common_dtype([pd.api.types.pandas_dtype(dtype) for dtype in dtypes])) == expected


MANY = [store(0, a="ab", b="int", c="text"), store(1, a="ba", c="int", d="bool"), store(2, a="a", b="wide int")]


def test_columns_that_stores_lack_or_dispute():
    merged = merge_columns(MANY)
    assert [column.name for column in merged.columns] == ["a", "b", "d"]
    assert merged.lacking == {"b": "s1", "d": "s0"}
    assert list(merged.disputed) == ["c"]
    assert "category of string in s0, number in s1" in merged.disputed["c"]
    with pytest.raises(InputError, match=r"obs\['c'\] must be of one kind everywhere"):
        merge_columns(MANY, asked=["c"])
    lacks, disputes = differences(merged)
    assert lacks == ("obs columns are missing in the rows of stores that lack them: 'b' is not in s1, 'd' is not in s0")
    assert disputes == f"obs columns are left out: {merged.disputed['c']}"


def test_what_was_said_before_is_not_said_again():
    merged = merge_columns(MANY)
    assert differences(merged, merged) == []
    before = merge_columns(MANY[:1])
    assert before.lacking == {}
    assert differences(before) == []
    assert differences(merged, before) == differences(merged)
    assert differences(merged, Merged((), {"b": "s1"}, {}))[0].endswith("lack them: 'd' is not in s0")
    assert len(differences(merged, Merged((), {}, {"c": "known"}))) == 1


@pytest.mark.parametrize(("kind", "dtype"), [("bool", "bool"), ("nullable bool", "boolean"), ("text", "string")])
def test_a_single_store_keeps_its_types(kind: str, dtype: str):
    assert str(merge_columns(stores(kind)).columns[0].dtype) == dtype
