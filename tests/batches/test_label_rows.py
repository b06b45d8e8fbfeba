"""Does every label reach the batch and the row that it belongs to, in the type that users know?"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.batches.label_rows import Codes, LabelReader, LabelRows, padded
from annbatch.errors import InputError, StoreError
from annbatch.plan.window import Found, Ranges, WindowPlan, plan_readings
from annbatch.remote.request_pool import Requests
from annbatch.stores.label_columns import Column, StoreColumn, columns_of_frame
from annbatch.stores.slices import slices_of
from annbatch.stores.united_columns import merge_columns

SIZES = (40, 1, 25)


def read(reader: LabelReader, plan: WindowPlan, rows: np.ndarray) -> list[LabelRows]:
    return reader.read(plan, rows, reader.begin(plan, Requests()))


def frame(n: int, seed: int) -> pd.DataFrame:
    """Give a column of every kind; categories stand in another order in each store."""
    rng = np.random.default_rng(seed)
    kinds = list("abcdef")[seed:] + list("xyz")[:seed]
    columns = {
        "category": pd.Categorical(rng.choice([*kinds, None], n), categories=kinds),
        "text": rng.choice(["p", "q", "r"], n),
        "bool": rng.random(n) < 0.5,
        "nullable bool": pd.array(rng.choice([True, False, None], n), dtype="boolean"),
        "nullable": pd.array(rng.choice([1, -5, 2**62 + 1, None], n), dtype="Int64"),
        "promoted": rng.integers(0, 100, n).astype(["i2", "u2", "i4"][seed]),
    }
    for dtype in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        values = rng.integers(0, 256, (n, np.dtype(dtype).itemsize), np.uint8)
        columns[dtype] = values.view(dtype)[:, 0]
    return pd.DataFrame(columns)


CODE_TYPES = (
    {name: np.dtype(np.int64) for name in ("promoted", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")}
    | {name: np.dtype(np.float32) for name in ("f2", "f4", "f8")}
    | {name: np.dtype(np.int32) for name in ("category", "text", "nullable bool")}
    | {"nullable": np.dtype(np.float64), "bool": np.dtype(bool)}
)
FRAMES = [frame(n, seed) for seed, n in enumerate(SIZES)]
COLUMNS = merge_columns(
    [(str(i), len(obs), columns_of_frame(obs, None, str(i))) for i, obs in enumerate(FRAMES)]
).columns
FIRST_ROWS = np.cumsum([0, *SIZES])


@given(st.lists(st.integers(0, sum(SIZES) - 1), max_size=50), st.lists(st.integers(0, 50), max_size=4))
def test_labels_are_those_of_the_rows(rows, ends):
    check_labels(np.array(rows, np.int64), np.array([0, *sorted(min(end, len(rows)) for end in ends), len(rows)]))


def test_labels_of_one_window():
    """All rows, in another order, some of them twice, and an empty batch."""
    rows = np.random.default_rng(0).permutation(np.append(np.arange(sum(SIZES)), [40, 0, 65]))
    check_labels(rows, np.array([0, 7, 7, 30, len(rows)]))


def check_labels(rows: np.ndarray, cuts: np.ndarray) -> None:
    """Compare the labels of each batch of a window with the frames of the stores."""
    batches = read(LabelReader(COLUMNS), plan_readings(rows, cuts, FIRST_ROWS, 2), rows)
    # NumPy 2.0 warns of NaN in random bytes.
    with np.errstate(invalid="ignore"):
        whole = {column.name: pd.concat([obs[column.name].astype(object) for obs in FRAMES]) for column in COLUMNS}
    assert len(batches) == len(cuts) - 1
    for labels, (a, b) in zip(batches, pairwise(cuts), strict=True):
        own = rows[a:b]
        np.testing.assert_array_equal(labels.index, own)
        shown = labels.frame(own)
        for column in COLUMNS:
            expected = whole[column.name].iloc[own]
            for value, wanted in zip(shown[column.name], expected, strict=True):
                assert (pd.isna(value) and pd.isna(wanted)) or value == wanted, column.name
            dtype = CODE_TYPES[column.name]
            if column.categories is None and not all(is_held(x, dtype) for x in expected):
                with pytest.raises(InputError, match=rf"obs\['{column.name}'\]: must hold numbers that fit {dtype}"):
                    labels.codes(column.name)
                continue
            codes = labels.codes(column.name)
            assert codes.dtype == dtype
            if column.categories is None or dtype.kind == "b":
                values = [np.nan if pd.isna(x) and dtype.kind == "f" else x for x in expected]
                np.testing.assert_array_equal(codes, np.array(values, dtype))
            else:
                meant = [None if code == -1 else column.categories[code] for code in codes]
                assert meant == [None if pd.isna(wanted) else wanted for wanted in expected]
        assert all(np.ma.getdata(labels.gathered(column.name)[1]).base is labels.memory for column in COLUMNS), (
            "a batch has memory of its own"
        )


def is_held(value: object, dtype: np.dtype) -> bool:
    """Say whether a type holds a value: an integer exactly, a float rounded to its precision."""
    if pd.isna(value):
        return dtype.kind == "f"
    if isinstance(value, (float, np.floating)):
        with np.errstate(over="ignore"):
            return bool(np.isinf(value) or np.isfinite(dtype.type(value)))
    return int(value) <= (2**53 if dtype.kind == "f" else np.iinfo(dtype).max)


@pytest.mark.parametrize(
    ("columns", "dtype", "values"),
    [
        ([np.array([1], "i8"), np.array([2**63 - 1], "u8")], "i8", [1, 2**63 - 1]),
        ([np.array([1], "i8"), np.array([2**63], "u8")], "i8", "9223372036854775808"),
        ([np.array([2**53], "i8"), np.array([np.nan])], "f8", [2**53, np.nan]),
        ([np.array([-(2**53) - 1], "i8"), np.array([np.nan])], "f8", "-9007199254740993"),
        ([np.array([1 << 24 | 1], "u4"), np.array([0.5], "f4")], "f8", [1 << 24 | 1, 0.5]),
        ([np.array([1e39])], "f4", "1e\\+39"),
        ([np.array([1 / 3, np.inf])], "f4", [1 / 3, np.inf]),
        # R's NA is a signalling NaN, of which NumPy warns.
        ([np.array([0x7FF00000000007A2, 0x3FF8000000000000], "u8").view("f8")], "f4", [np.nan, 1.5]),
        ([np.array([0x7F8007A2], "u4").view("f4"), np.array([1.5])], "f4", [np.nan, 1.5]),
        ([pd.array([2**53, None], "Int64")], "f8", [2**53, np.nan]),
        ([pd.array([None, -(2**53) - 1], "Int64")], "f8", "-9007199254740993"),
        ([pd.array([1], "Int64"), pd.array([7], "UInt64")], "f8", [1, 7]),
        ([pd.array([1.5, None], "Float64")], "f4", [1.5, np.nan]),
        ([np.array([True]), pd.array([None, False], "boolean")], "i4", [1, -1, 0]),
        ([np.array([True]), np.array([False])], "?", [True, False]),
    ],
    ids=str,
)
def test_codes_hold_the_values_of_all_stores_or_refuse_one(columns, dtype, values):
    frames = [
        (str(i), len(one), columns_of_frame(pd.DataFrame({"n": one}), None, str(i))) for i, one in enumerate(columns)
    ]
    rows = np.arange(sum(map(len, columns)))
    plan = plan_readings(rows, np.array([0, len(rows)]), np.cumsum([0, *map(len, columns)]))

    def codes():
        return read(LabelReader(merge_columns(frames).columns), plan, rows)[0].codes("n")

    if isinstance(values, str):
        with pytest.raises(InputError, match=rf"must hold numbers that fit {np.dtype(dtype)}, got {values}"):
            codes()
    else:
        assert codes().dtype == np.dtype(dtype)
        np.testing.assert_array_equal(codes(), np.array(values, dtype))


def test_complex_numbers_are_no_labels():
    with pytest.raises(InputError, match=r"adata obs\['z'\] must hold values of one kind, got complex \(complex128\)"):
        columns_of_frame(pd.DataFrame({"z": [1j]}), None, "adata")


def broken(values: np.ndarray, mask: np.ndarray | None = None) -> LabelReader:
    """Give a reader whose categorical column has other codes in its second store."""
    column = next(column for column in COLUMNS if column.name == "category")
    part = replace(
        column.parts[1], values=slices_of("values", values), mask=None if mask is None else slices_of("mask", mask)
    )
    return LabelReader([replace(column, parts=(column.parts[0], part, column.parts[2]))])


@pytest.mark.parametrize(
    ("values", "mask", "message"),
    [
        (np.array([6], "i1"), None, r"codes must lie in \[-1, 6\), got 6"),
        (np.array([-2], "i1"), None, r"codes must lie in \[-1, 6\), got -2"),
        (np.array([200], "u1"), None, "got 200"),
        (np.array([2**63], "u8"), None, "codes must lie in"),
        (np.array([], "i1"), None, "a value for each row"),
        (np.array([1.0]), None, "codes must be integers"),
        (np.array([1], "i1"), np.array([], bool), "a value for each row"),
        (np.array([1], "i1"), np.array([1], "i4"), "mask must be boolean"),
    ],
)
def test_codes_that_cannot_be_are_an_error(values, mask, message):
    for rows in (np.array([40, 3, 41]), np.array([40])):
        with pytest.raises(StoreError, match=f"1 obs\\['category'\\].*{message}"):
            read(broken(values, mask), plan_readings(rows, np.array([0, len(rows)]), FIRST_ROWS), rows)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_codes_may_have_any_type(dtype: str):
    """Of a store whose categories are not those of the collection."""
    column = next(column for column in COLUMNS if column.name == "category")
    part = column.parts[2]
    assert part.categories is not None
    assert column.categories is not None
    codes = np.arange(SIZES[2]) % len(part.categories)
    changed = replace(part, values=slices_of("values", codes.astype(dtype)))
    rows = np.arange(FIRST_ROWS[2], FIRST_ROWS[3])[::-1].copy()
    reader = LabelReader([replace(column, parts=(*column.parts[:2], changed))])
    (labels,) = read(reader, plan_readings(rows, np.array([0, len(rows)]), FIRST_ROWS), rows)
    expected = [column.categories.get_loc(part.categories[code]) for code in codes[::-1]]
    assert labels.codes("category").tolist() == expected


@pytest.mark.parametrize(("dtype", "n"), [("u1", 256), ("u2", 40_000)])
def test_unsigned_codes_are_not_negative(dtype: str, n: int):
    """Codes of a type whose signed one does not hold them."""
    codes, categories, rows = np.array([n - 1, 0, n // 2 + 1]), pd.RangeIndex(n), np.arange(3)
    kind = pd.CategoricalDtype(categories)
    part = StoreColumn("stored", slices_of("values", codes.astype(dtype)), None, categories, kind)
    reader = LabelReader([Column("kind", categories, kind, (part,), (None,))])
    (labels,) = read(reader, plan_readings(rows, np.array([0, 3]), np.array([0, 3])), rows)
    assert labels.codes("kind").tolist() == codes.tolist()


def test_padding_rows_are_missing():
    names = ("category", "bool", "i8", "f4")
    rows = np.array([3, 41, 50])
    reader = LabelReader([column for column in COLUMNS if column.name in names])
    (labels,) = read(reader, plan_readings(rows, np.array([0, 3]), FIRST_ROWS), rows)
    codes = Codes(labels, 2)
    assert sorted(codes) == sorted(names)
    assert len(codes) == 4
    for name in names:
        whole, own = codes[name], labels.codes(name)
        np.testing.assert_array_equal(whole[:3], own)
        assert whole.dtype == own.dtype
        assert len(whole) == 5
    assert codes["category"][3:].tolist() == codes["i8"][3:].tolist() == [-1, -1]
    assert codes["bool"][3:].tolist() == [False, False]
    assert np.isnan(codes["f4"][3:]).all()
    assert f"category=int32 (5,) into {len(codes._rows.places['category'].column.categories)} categories" in repr(codes)
    assert "f4=float32 (5,)" in repr(codes)
    values = np.arange(3)
    assert padded(values, 0) is values


class Lent:
    """Elements that nobody else holds; all that were lent must be held when others are asked for."""

    def __init__(self, array: np.ndarray, lent: list[weakref.ref]) -> None:
        self._array, self._lent = array, lent
        self.dtype = array.dtype

    def __len__(self) -> int:
        return len(self._array)

    def begin(self, ranges: Ranges, more: int, requests: Requests) -> Callable[[], Found]:
        return partial(self._lend, ranges)

    def _lend(self, ranges: Ranges) -> Found:
        assert all(array() is not None for array in self._lent)
        values = self._array.copy()
        self._lent.append(weakref.ref(values))
        return Found(values, ranges.rows)


def test_arrays_are_held_until_all_columns_are_there():
    """Rows are gathered by addresses, which hold nothing."""
    lent: list[weakref.ref] = []
    rows = np.array([2, 0])
    columns = [
        replace(
            column,
            name=f"{column.name} {i}",
            parts=(replace(column.parts[0], values=Lent(values, lent), mask=Lent(mask, lent)),),
            recodes=column.recodes[:1],
        )
        for i in range(2)
        for column, values in (
            (next(column for column in COLUMNS if column.name == "nullable"), np.array([3, 4, 5])),
            (next(column for column in COLUMNS if column.name == "nullable bool"), np.array([1, 0, 1], "i1")),
        )
        for mask in [np.array([False, False, True])]
    ]
    (labels,) = read(LabelReader(columns), plan_readings(rows, np.array([0, 2]), np.array([0, 3])), rows)
    assert len(lent) == 8
    assert labels.codes("nullable 1").tolist()[1] == 3
    assert labels.codes("nullable bool 1").tolist() == [-1, 1]
    assert labels.frame(rows).isna().to_numpy().tolist() == [[True] * 4, [False] * 4]


def test_each_column_stands_where_its_type_may():
    """Wide ones first: row numbers, values of 8, 4, 2 bytes and of one."""
    reader = LabelReader(COLUMNS)
    at = sorted((place.offset, place.dtype.itemsize) for place in reader._places.values())
    masks = [(place.mask, 1) for place in reader._places.values() if place.mask is not None]
    fields = sorted([*at, *masks, (reader._index_at, 8)])
    assert [offset for offset, _ in fields] == np.cumsum([0, *[size for _, size in fields[:-1]]]).tolist()
    assert [size for _, size in fields] == sorted((size for _, size in fields), reverse=True)
    assert len(masks) == 1
    assert all(not place.column.parts and not place.column.recodes for place in reader._places.values())
