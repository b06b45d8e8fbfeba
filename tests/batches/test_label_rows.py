"""Does every label reach the batch and the row that it belongs to, in the type that users know?"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.batches.label_rows import LabelReader, LabelRows
from annbatch.errors import StoreError
from annbatch.plan.window import WindowPlan, plan_readings
from annbatch.remote.request_pool import Requests
from annbatch.stores.label_columns import columns_of_frame, merge_columns
from annbatch.stores.slices import slices_of

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
        "nullable": pd.array(rng.choice([1, -5, 2**62, None], n), dtype="Int64"),
        "promoted": rng.integers(0, 100, n).astype(["i2", "u2", "i4"][seed]),
    }
    for dtype in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        values = rng.integers(0, 256, (n, np.dtype(dtype).itemsize), np.uint8)
        columns[dtype] = values.view(dtype)[:, 0]
    return pd.DataFrame(columns)


FRAMES = [frame(n, seed) for seed, n in enumerate(SIZES)]
COLUMNS = merge_columns({str(i): columns_of_frame(obs, None, str(i)) for i, obs in enumerate(FRAMES)})
FIRST_ROWS = np.cumsum([0, *SIZES])


@given(st.lists(st.integers(0, sum(SIZES) - 1), max_size=50), st.lists(st.integers(0, 50), max_size=4))
def test_labels_are_those_of_the_rows(rows, ends):
    rows = np.array(rows, np.int64)
    cuts = np.array([0, *sorted(min(end, len(rows)) for end in ends), len(rows)])
    batches = read(LabelReader(COLUMNS), plan_readings(rows, cuts, FIRST_ROWS, 2), rows)
    whole = {column.name: pd.concat([obs[column.name].astype(object) for obs in FRAMES]) for column in COLUMNS}
    assert len(batches) == len(cuts) - 1
    for labels, (a, b) in zip(batches, pairwise(cuts), strict=True):
        own = rows[a:b]
        np.testing.assert_array_equal(labels.index, own)
        shown = labels.frame(own)
        for column in COLUMNS:
            expected = whole[column.name].iloc[own]
            codes = labels.codes(column.name)
            for value, wanted in zip(shown[column.name], expected, strict=True):
                assert (pd.isna(value) and pd.isna(wanted)) or value == wanted, column.name
            if column.categories is None:
                assert codes.dtype == np.float32
                with np.errstate(over="ignore"):
                    numbers = np.array([np.nan if pd.isna(x) else np.float32(x) for x in expected], np.float32)
                np.testing.assert_array_equal(codes, numbers)
            else:
                assert codes.dtype == np.int32
                meant = [None if code == -1 else column.categories[code] for code in codes]
                assert meant == [None if pd.isna(wanted) else wanted for wanted in expected]
        assert all(labels.codes(column.name).base is labels.memory for column in COLUMNS), (
            "a batch has memory of its own"
        )


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
        (np.array([6], "i1"), None, r"codes must lie in \[-1, \d+\), got 6"),
        (np.array([-2], "i1"), None, r"codes must lie in \[-1, \d+\), got -2"),
        (np.array([200], "u1"), None, "got 200"),
        (np.array([2**63], "u8"), None, "codes must lie in"),
        (np.array([], "i1"), None, "a value for each row"),
        (np.array([1.0]), None, "codes must be integers"),
        (np.array([1], "i1"), np.array([], bool), "a value for each row"),
        (np.array([1], "i1"), np.array([1], "i4"), "mask must be boolean"),
    ],
)
def test_codes_that_cannot_be_are_an_error(values, mask, message):
    rows = np.array([40, 3, 41])
    with pytest.raises(StoreError, match=f"obs\\['category'\\].*{message}"):
        read(broken(values, mask), plan_readings(rows, np.array([0, 3]), FIRST_ROWS), rows)
