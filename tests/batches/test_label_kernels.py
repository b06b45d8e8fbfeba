"""Does each value of a window reach its place in the memory of its batch, and nothing else change?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest

from annbatch.batches.label_kernels import (
    FIRST,
    ITEMSIZE,
    KIND,
    KINDS,
    MASK,
    MASK_PLACES,
    MISSING,
    N_CATEGORIES,
    N_FIELDS,
    N_MASK,
    N_VALUES,
    PLACES,
    RECODE,
    STOP,
    TARGET,
    VALUES,
    gather,
)
from annbatch.plan.window import address

ROWS = np.array([20, 70, 90, 10, 2**40])
ORDER = np.argsort(ROWS)
CUTS = np.array([0, 2, 2, 5])
ROW_BYTES = 40
"""Bytes for each row of a batch, more than the columns need."""
INDEX = 8
GUARD = 64
"""Bytes before and behind the memory of a batch, which must stay as they are."""


@dataclass(frozen=True)
class Column:
    """Some rows of one column in one store; ``places`` says where among its values they lie."""

    values: np.ndarray
    places: np.ndarray
    target: int
    itemsize: int
    first: int = 0
    mask: np.ndarray | None = None
    mask_places: np.ndarray | None = None
    n_categories: int = -1
    recode: np.ndarray | None = None
    missing: int = -1

    def job(self) -> list[int]:
        fields = {
            FIRST: self.first,
            STOP: self.first + len(self.places),
            VALUES: address(self.values),
            N_VALUES: len(self.values),
            KIND: KINDS.index(self.values.dtype) if self.values.dtype in KINDS else -1,
            PLACES: address(self.places),
            MASK: 0 if self.mask is None else address(self.mask),
            N_MASK: 0 if self.mask is None else len(self.mask),
            MASK_PLACES: 0 if self.mask_places is None else address(self.mask_places),
            N_CATEGORIES: self.n_categories,
            RECODE: 0 if self.recode is None else address(self.recode),
            TARGET: self.target,
            ITEMSIZE: self.itemsize,
            MISSING: self.missing,
        }
        return [fields[number] for number in range(N_FIELDS)]


def gathered(*columns: Column) -> tuple[tuple[int, bool, int], list[np.ndarray]]:
    """Gather columns; give what `gather` returned, and the memory of each batch with its guards."""
    batches = empty_batches()
    bases = np.array([address(batch) + GUARD for batch in batches])
    jobs = np.array([column.job() for column in columns], np.int64).reshape(-1, N_FIELDS)
    return gather(ORDER, CUTS, bases, ROWS, INDEX, jobs), batches


def empty_batches() -> list[np.ndarray]:
    return [np.full(GUARD + n_rows * ROW_BYTES + GUARD, 0xAA, np.uint8) for n_rows in np.diff(CUTS)]


def filled(columns: Mapping[int, np.ndarray]) -> list[np.ndarray]:
    """Build the memory of the batches from (n_rows,) arrays by their places, in the order of the window."""
    batches = empty_batches()
    for batch, (first, stop) in zip(batches, pairwise(CUTS), strict=True):
        for at, values in ({INDEX: ROWS} | dict(columns)).items():
            start = GUARD + at * (stop - first)
            own = values[first:stop].view(np.uint8)
            batch[start : start + len(own)] = own
    return batches


def in_window(ascending: np.ndarray) -> np.ndarray:
    """Give what stands in the order of reading in that of the window."""
    found = np.empty_like(ascending)
    found[ORDER] = ascending
    return found


def assert_same(batches: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for batch, wanted in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(batch, wanted)


def test_numbers_reach_their_places():
    """Of two stores, only the second of which says what is missing."""
    rng = np.random.default_rng(0)
    places = [np.array([6, 0, 3]), np.array([0, 2])]
    mask, mask_places = np.array([True, False, False, True]), np.array([1, 3])
    columns, expected = [], {}
    for target, dtype, missing in ((16, "f8", 0), (24, "f4", 31), (28, "i2", -1), (30, "u1", -1)):
        stores = [rng.integers(0, 256, n * np.dtype(dtype).itemsize, np.uint8).view(dtype) for n in (7, 4)]
        first = Column(stores[0], places[0], target, stores[0].itemsize, missing=missing)
        second = Column(stores[1], places[1], target, stores[1].itemsize, first=3, missing=missing)
        if missing >= 0:
            second = replace(second, mask=mask, mask_places=mask_places)
            expected[missing] = in_window(np.array([False, False, False, False, True]))
        columns += [first, second]
        expected[target] = in_window(np.concatenate([values[own] for values, own in zip(stores, places, strict=True)]))
    (failed, _, _), batches = gathered(*columns)
    assert failed == -1
    assert_same(batches, filled(expected))


def test_row_numbers_need_no_column():
    (failed, _, _), batches = gathered()
    assert failed == -1
    assert_same(batches, filled({}))


N_CODES = 100_000
RECODE_ALL = np.arange(N_CODES, -2, -1, np.int32)[1:]
"""The other way round; -1, for missing, stands behind them, and before them what is not a code."""


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_codes_of_any_type_become_those_of_the_collection(kind: np.dtype):
    largest = 1 if kind.kind == "b" else min(np.iinfo(kind).max, N_CODES - 1)
    smallest = -1 if kind.kind == "i" else 0
    values, places = np.array([largest, 0, 1, smallest]).astype(kind), np.array([3, 0, 1, 2, 0])
    own = values[places].astype(np.int64)
    mask, mask_places = np.array([False, True]), np.array([0, 0, 0, 0, 1])
    for is_masked in (False, True):
        codes = np.where(mask[mask_places], -1, own) if is_masked else own
        for recode in (None, RECODE_ALL):
            column = Column(
                values,
                places,
                16,
                4,
                mask=mask if is_masked else None,
                mask_places=mask_places if is_masked else None,
                n_categories=N_CODES,
                recode=recode,
            )
            (failed, _, _), batches = gathered(column)
            assert failed == -1
            expected = codes if recode is None else recode[codes]
            assert_same(batches, filled({16: in_window(expected.astype(np.int32))}))


def test_a_column_without_categories_has_no_codes():
    """But those that say that a value is missing."""
    recode = np.array([7, -1], np.int32)[1:]
    (failed, _, _), batches = gathered(
        Column(np.array([-1], "i1"), np.zeros(5, np.int64), 16, 4, n_categories=0, recode=recode)
    )
    assert failed == -1
    assert_same(batches, filled({16: np.full(5, -1, np.int32)}))


@pytest.mark.parametrize("n_before", [0, 1])
@pytest.mark.parametrize(
    ("values", "places", "mask_places", "n_categories", "code"),
    [
        ([0, 1], [0, 2], None, -1, None),
        ([0, 1], [0, -1], None, -1, None),
        ([0, 1], [0, 2], None, 2, None),
        ([0, 1], [0, -1], None, 2, None),
        ([0, 1], [0, 1], [1, 2], -1, None),
        ([0, 1], [0, 1], [1, -1], 2, None),
        ([0, 2], [0, 1], None, 2, 2),
        ([0, -2], [0, 1], None, 2, -2),
        ([0, 0], [0, 1], None, 0, 0),
    ],
)
def test_the_column_that_fails_is_named(
    values: list[int],
    places: list[int],
    mask_places: list[int] | None,
    n_categories: int,
    code: int | None,
    n_before: int,
):
    """A value that is not there, or a code that is none of the categories, which is named, too."""
    column = Column(
        np.array(values, "i1"),
        np.array(places),
        16,
        1 if n_categories < 0 else 4,
        mask=None if mask_places is None else np.array([False, False]),
        mask_places=None if mask_places is None else np.array(mask_places),
        n_categories=n_categories,
    )
    good = Column(np.array([1.5]), np.zeros(5, np.int64), 24, 8)
    (failed, is_short, found), _ = gathered(*[good] * n_before, column)
    assert (failed, is_short) == (n_before, code is None)
    if code is not None:
        assert found == code
