"""What do columns of one store hold, and which type holds their numbers?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr

from annbatch.errors import InputError, StoreError
from annbatch.stores import label_columns, slices
from annbatch.stores.label_columns import (
    Column,
    columns_of_file,
    columns_of_frame,
    columns_of_group,
    has_value,
    held,
    nullable,
    promoted,
)
from annbatch.stores.united_columns import merge_columns


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([2**53, -(2**53)]), "f8"),
        (np.array([2**53], "u8"), "f8"),
        (np.array([2**32 - 1], "u4"), "f8"),
        (np.array([2**24, -(2**24)], "i4"), "f4"),
        (np.array([2**63 - 1], "u8"), "i8"),
        (np.array([2**31 - 1], "u4"), "i4"),
        (np.array([1e38, np.inf, -np.inf, np.nan]), "f4"),
        (np.array([1e-3], "f4"), "f8"),
        (np.array([-5], "i1"), "i8"),
    ],
    ids=str,
)
def test_types_that_hold_numbers(values: np.ndarray, dtype: str):
    found = held(values, np.dtype(dtype), "here")
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, values.astype(dtype))


@pytest.mark.parametrize(
    ("values", "dtype", "bad"),
    [
        (np.array([0, 2**53 + 1]), "f8", 2**53 + 1),
        (np.array([1, -(2**53) - 1]), "f8", -(2**53) - 1),
        (np.array([2**53 + 1], "u8"), "f8", 2**53 + 1),
        (np.array([2**24 + 1]), "f4", 2**24 + 1),
        (np.array([7, 2**63], "u8"), "i8", 2**63),
        (np.array([np.inf, 0.5, 1e39]), "f4", 1e39),
        (np.array([np.inf, -1e39, 1]), "f4", -1e39),
    ],
    ids=str,
)
def test_types_that_do_not(values: np.ndarray, dtype: str, bad: Any):
    with pytest.raises(InputError) as error:
        held(values, np.dtype(dtype), "here")
    assert str(error.value).startswith(
        f"here: must hold numbers that fit {np.dtype(dtype)}, got {values.dtype.type(bad)};"
    )


def test_numbers_of_the_same_type_are_not_copied():
    values = np.arange(3)
    assert held(values, values.dtype, "here") is values


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["i1", "i8"], "i8"),
        (["u8", "i8"], "i8"),
        (["i8", "f4"], "f8"),
        (["f4", "f4"], "f4"),
        (["u8", "i8", "f4"], "f8"),
    ],
    ids=str,
)
def test_numbers_of_several_types(dtypes: list[str], expected: str):
    assert promoted([np.dtype(dtype) for dtype in dtypes]) == np.dtype(expected)


def test_names_of_nullable_types():
    assert [nullable(np.dtype(dtype)) for dtype in ("i1", "i8", "u2", "u4")] == ["Int8", "Int64", "UInt16", "UInt32"]


def column_of(*values: Any) -> Column:
    stores = [
        (f"s{i}", len(one), columns_of_frame(pd.DataFrame({"x": one}), None, f"s{i}")) for i, one in enumerate(values)
    ]
    return merge_columns(stores).columns[0]


@pytest.mark.parametrize(
    ("values", "kind", "gathered", "codes", "is_boolean"),
    [
        ([[1, 2]], "number", "i8", "i8", False),
        ([np.array([1], "u2"), np.array([2], "i2")], "number", "i4", "i8", False),
        ([[1, 2], [0.5]], "number", "f8", "f8", False),
        ([[0.5], np.array([1], "f4")], "number", "f8", "f4", False),
        ([pd.array([1, None], "Int16")], "number", "i2", "f8", False),
        ([pd.array([1, None], "UInt64")], "number", "u8", "f8", False),
        ([pd.array([None], "Int64"), ["a"]], "category of string", "i4", "i4", False),
        ([pd.array([1.5, None], "Float32")], "number", "f4", "f4", False),
        ([[True, False]], "boolean", "i4", "?", True),
        ([pd.array([True, None], "boolean")], "boolean", "i4", "i4", False),
        ([["a", "b"]], "category of string", "i4", "i4", False),
        ([pd.Categorical([True, False])], "category of boolean", "i4", "i4", False),
        ([pd.Categorical([2, 1])], "category of integer", "i4", "i4", False),
    ],
    ids=str,
)
def test_types_of_codes(values: list[Any], kind: str, gathered: str, codes: str, is_boolean: bool):
    column = column_of(*values)
    assert column.kind == kind
    assert column.parts[-1].kind == kind
    assert column.gathered_dtype == np.dtype(gathered)
    assert column.code_dtype == np.dtype(codes)
    assert column.is_boolean is is_boolean


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        (pd.Series(["a", None], dtype=object), None),
        (pd.array(["a", None], "string"), pd.NA),
        (pd.array([False, None], "boolean"), pd.NA),
    ],
    ids=["object", "string", "boolean"],
)
def test_what_is_missing_is_what_the_type_has_for_it(values: Any, missing: Any):
    series = column_of(values).series(np.array([0, -1], np.int32))
    assert series.dtype == values.dtype
    assert series[0] == values[0]
    assert series[1] is missing


def test_columns_are_chosen():
    frame = pd.DataFrame({"a": [1], "b": [2.5]})
    assert list(columns_of_frame(frame, None, "s")) == ["a", "b"]
    assert list(columns_of_frame(frame, ["b"], "s")) == ["b"]
    assert list(columns_of_frame(frame, [], "s")) == []
    with pytest.raises(InputError, match="s: labels must be obs columns, got 'c'; there are"):
        columns_of_frame(frame, ["a", "c"], "s")
    frame.columns = ["a", "a"]
    with pytest.raises(InputError, match="s: obs must have one column 'a', got 2; rename or drop all but one"):
        columns_of_frame(frame, None, "s")

    table = {"a": np.array([1]), "b": np.array(["x"], object)}
    found = columns_of_file(["a", "b"], table.__getitem__, ["b"], "f")
    assert list(found) == ["b"]
    assert found["b"].kind == "category of string"
    assert list(columns_of_file(["a", "b"], table.__getitem__, None, "f")) == ["a", "b"]


def test_arrays_without_an_encoding_are_columns():
    """AnnData 0.7 wrote them so."""
    group = zarr.create_group({}, attributes={"column-order": ["n", "flag", "odd", "deep", "complex"]})
    group.create_array("n", data=np.arange(3, dtype="i2"))
    group.create_array("flag", data=np.array([True, False, True]))
    group.create_array("odd", data=np.arange(3), attributes={"encoding-type": "odd"})
    group.create_group("deep")
    group.create_array("complex", data=np.array([1j]), attributes={"encoding-type": "array"})
    found = columns_of_group(group, ["n", "flag"], "s", {})
    assert [(one.name, one.kind, str(one.dtype)) for one in found.values()] == [
        ("s obs['n']", "number", "int16"),
        ("s obs['flag']", "boolean", "bool"),
    ]
    assert found["flag"].categories.tolist() == [False, True]
    for name, encoding in (("odd", "'odd'"), ("deep", "None"), ("complex", "'array'")):
        with pytest.raises(StoreError, match=f"encoding {encoding} cannot be read as a label column"):
            columns_of_group(group, [name], "s", {})


def test_stored_categories_have_an_order_only_if_they_say_so():
    group = zarr.create_group({}, attributes={"column-order": ["c"]})
    column = group.create_group("c", attributes={"encoding-type": "categorical", "encoding-version": "0.2.0"})
    column.create_array("codes", data=np.array([1, -1, 0], "i1"))
    encoding = {"encoding-type": "array", "encoding-version": "0.2.0"}
    column.create_array("categories", data=np.array([5, 3]), attributes=encoding)
    for attributes, ordered in (({}, False), ({"ordered": True}, True), ({"ordered": False}, False)):
        column.attrs.update(attributes)
        found = columns_of_group(group, ["c"], "s", {})["c"].dtype
        assert found.categories.tolist() == [5, 3]
        assert found.ordered is ordered


@pytest.mark.parametrize("at", [0, 4, 11, None])
def test_a_stored_column_is_read_piece_by_piece(at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Up to its first value or its end, of an array that is too long to be kept."""
    monkeypatch.setattr(slices, "KEEP_BYTES", 0)
    monkeypatch.setattr(label_columns, "_ROWS_AT_ONCE", 5)
    group = zarr.create_group(str(tmp_path / "obs"), attributes={"column-order": ["x"]})
    group.create_array("x", data=np.where(np.arange(12) == (-1 if at is None else at), 1, np.nan))
    (column,) = columns_of_group(group, None, "s", {}).values()
    assert isinstance(column.values, slices.Direct)
    assert has_value(column) == (at is not None)
