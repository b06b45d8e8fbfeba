"""Does narrowing ever change a value?"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from annbatch.errors import InputError
from annbatch.stores.common_type import float32_holds
from annbatch.stores.manifest import ElementTypes
from annbatch.write.inputs.narrow_types import ValueScan, choose_types, smallest_unsigned

DTYPES = [bool, *(np.dtype(t) for t in "bBhHiIlLefd")]
VALUES = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, st.integers(0, 20)))
COUNTS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, st.integers(0, 20), elements=st.integers(0, 1 if dtype is bool else 120))
)


def chosen(*pieces: np.ndarray[Any, Any], narrow: bool = True, n_vars: int = 10) -> Any:
    return choose_types("X", [ValueScan.of(piece) for piece in pieces], n_vars, narrow=narrow)


@given(values=VALUES | COUNTS)
def test_stored_values_are_the_values(values: np.ndarray[Any, Any]):
    types = chosen(values)
    stored = values.astype(types.stored)
    back = stored.astype(types.original)
    np.testing.assert_array_equal(back, values)
    np.testing.assert_array_equal(np.signbit(back.astype(float)), np.signbit(values.astype(float)))


@given(values=COUNTS)
def test_small_counts_of_any_type_become_uint16(values: np.ndarray[Any, Any]):
    types = chosen(values)
    assert types.stored == np.uint16
    assert types.original == (np.float32 if values.dtype == np.float16 else values.dtype)
    assert chosen(values, narrow=False).stored == types.original


@given(pieces=st.lists(VALUES | COUNTS, min_size=1, max_size=4).filter(lambda p: len({a.dtype for a in p}) == 1))
def test_a_merged_scan_is_the_scan_of_the_whole(pieces: list[np.ndarray[Any, Any]]):
    whole = ValueScan.of(np.concatenate(pieces))
    merged = ValueScan.of(pieces[0])
    for piece in pieces[1:]:
        merged = merged.merge(ValueScan.of(piece))
    assert (merged.dtype, merged.nnz, merged.countable) == (whole.dtype, whole.nnz, whole.countable)
    if whole.countable:
        assert (merged.low, merged.high) == (whole.low, whole.high)


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        (np.array([], np.float32), np.uint16),
        (np.array([0, 65535], np.float32), np.uint16),
        (np.array([65536], np.float32), np.uint32),
        (np.array([65536], np.int64), np.uint32),
        (np.array([2**32], np.int64), np.uint64),
        (np.array([2**64 - 1], np.uint64), np.uint64),
        (np.array([2.0**63], np.float64), np.uint64),
        # Wider than the original type would be no narrowing.
        (np.array([2.0**33], np.float32), np.float32),
        (np.array([2.0**64], np.float64), np.float64),
        (np.array([1.5, 2], np.float64), np.float64),
        (np.array([-1, 3], np.int8), np.int8),
        (np.array([-1, 3], np.float64), np.float64),
        (np.array([-0.0, 3], np.float32), np.float32),
        (np.array([np.nan, 3], np.float32), np.float32),
        (np.array([np.inf, 3], np.float32), np.float32),
        (np.array([200], np.uint8), np.uint16),
        (np.array([True]), np.uint16),
    ],
)
def test_cases(values: np.ndarray[Any, Any], stored: Any):
    assert chosen(values).stored == stored


MIXES = {
    "counts": ([("i4", 3), ("f4", 2)], "f4"),
    "counts and fractions": ([("i4", 3), ("f4", 0.5)], "f4"),
    "counts of double precision": ([("f8", 3), ("f4", 0.5)], "f4"),
    "the last count that float32 holds": ([("i4", 2**24), ("f4", 1)], "f4"),
    "a count that float32 changes": ([("i4", 2**24 + 1), ("f4", 1)], "f8"),
    "negative whole numbers": ([("i8", -3), ("f4", 0.5)], "f4"),
    "fractions of double precision": ([("f8", 0.1), ("f4", 0.5)], "f8"),
    "whole types": ([("i4", 3), ("i8", 2)], "i8"),
    "whole types without a common one": ([("u8", 3), ("i8", 2)], "f4"),
    "booleans": ([("?", True), ("f4", 0.5)], "f4"),
    "one type": ([("f8", 3), ("f8", 2)], "f8"),
}


@pytest.mark.parametrize("name", MIXES)
def test_inputs_of_several_types(name: str):
    values, original = MIXES[name]
    assert chosen(*(np.array([value], dtype) for dtype, value in values)).original == np.dtype(original)


@given(values=VALUES | COUNTS, dtype=st.sampled_from([np.dtype(t) for t in "?bBhHiIlLfd"]))
def test_a_type_fits_if_the_values_come_back(values: np.ndarray[Any, Any], dtype: np.dtype[Any]):
    if ValueScan.of(values).fits(dtype):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cast = values.astype(dtype)
        np.testing.assert_array_equal(cast.astype(values.dtype), values)
        assert all(int(a) == int(b) for a, b in zip(cast, values, strict=True) if np.isfinite(b))
    else:
        whole = range(-(2**24), 2**24 + 1) if dtype.kind == "f" else [0, 1]
        assert not (values.dtype.kind in "biu" and all(int(value) in whole for value in values))


@given(before=VALUES | COUNTS, values=VALUES | COUNTS, narrow=st.booleans())
def test_a_collection_counts_as_one_more_input(
    before: np.ndarray[Any, Any], values: np.ndarray[Any, Any], narrow: bool
):
    present = chosen(before, narrow=narrow)
    try:
        at_once = chosen(before, values)
    except InputError:
        assert max(map(abs, [*before.tolist(), *values.tolist()])) > 2**53
        return
    found = choose_types("X", [ValueScan.of(values)], 10, narrow=narrow, present=present)
    np.testing.assert_array_equal(values.astype(found.stored).astype(values.dtype), values)
    # What a loader makes of the stores, old and new, is what was chosen.
    assert present.merge(found).original == found.original
    # Of the values that are there, only the type is known.
    if ValueScan.of(before).fits(np.dtype(np.float32)) == float32_holds(present.stored):
        assert found.original == at_once.original


def test_integers_that_the_common_type_changes_are_refused():
    with pytest.raises(InputError, match=rf"common type float64.*got {2**53 + 1}"):
        chosen(np.array([2**53 + 1], np.int64), np.array([0.5], np.float64))


@pytest.mark.parametrize(
    ("n_vars", "dtype"), [(1, "uint16"), (2**16, "uint16"), (2**16 + 1, "uint32"), (2**33, "uint64")]
)
def test_column_numbers_get_the_smallest_type_too(n_vars: int, dtype: str):
    assert chosen(np.array([1.5]), n_vars=n_vars).indices == dtype
    assert chosen(np.array([1.5]), n_vars=n_vars, narrow=False).indices == ("int32" if n_vars <= 2**31 else "int64")


def test_what_no_unsigned_type_holds():
    with pytest.raises(OverflowError):
        smallest_unsigned(2**64)


@pytest.mark.parametrize(
    ("values", "dtype", "fits"),
    [
        (np.array([2**24, -(2**24)]), "f4", True),
        (np.array([2**24 + 1]), "f4", False),
        (np.array([-(2**24) - 1]), "f4", False),
        (np.array([0, 1]), "?", True),
        (np.array([2]), "?", False),
        (np.array([-1]), "?", False),
        (np.array([127, -128]), "i1", True),
        (np.array([128]), "i1", False),
        (np.array([-129]), "i1", False),
        (np.array([0.5]), "f8", True),
        (np.array([0.5]), "f4", False),
        (np.array([3.0]), "u1", True),
        (np.array([], "f8"), "?", True),
    ],
    ids=str,
)
def test_limits_of_types(values: np.ndarray[Any, Any], dtype: str, fits: bool):
    assert ValueScan.of(values).fits(np.dtype(dtype)) is fits


def test_what_a_scan_says():
    assert ValueScan.of(np.empty(0, np.int8)) == ValueScan(np.dtype(np.int8), 0, True, 0, 0)
    assert ValueScan.of(np.array([3, 5])) == ValueScan(np.dtype(int), 2, True, 0, 5)
    assert ValueScan.of(np.array([-3, -2])) == ValueScan(np.dtype(int), 2, False, -3, 0)
    for values in ([1, np.inf], [-1.0], [0.5], [-0.0], [np.nan]):
        assert not ValueScan.of(np.array(values)).countable
    assert ValueScan.of(np.array([0.0, 5])).countable


@pytest.mark.parametrize(("n_vars", "indices"), [(0, "int32"), (2**31, "int32"), (2**31 + 1, "int64")])
def test_column_numbers_that_are_not_narrowed(n_vars: int, indices: str):
    assert chosen(np.array([1.5]), n_vars=n_vars, narrow=False).indices == indices
    assert chosen(np.array([1.5]), n_vars=0).indices == "uint16"


def test_the_types_of_all_inputs_are_named():
    halves = np.array([0.5], np.float64)
    assert chosen(np.array([2**53, -(2**53)]), halves).original == np.float64
    with pytest.raises(InputError, match=r"types \['float64', 'int64'\] have the common type float64"):
        chosen(np.array([2**53 + 1]), halves)
    present = ElementTypes(np.dtype("f8"), np.dtype("f8"), np.dtype("u2"))
    with pytest.raises(InputError, match=r"types \['float64', 'int64'\].*, got 9007199254740993"):
        choose_types("X", [ValueScan.of(np.array([-(2**53) - 1]))], 10, narrow=True, present=present)
