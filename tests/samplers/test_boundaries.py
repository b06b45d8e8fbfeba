"""Do samplers and splits know every class, however many there are, and rows that are missing in any column?

1. Numbers of classes around those at which codes need a wider type.
2. A column of which some rows are missing, for each column that a sampler compares.
3. Weights of very different sizes.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import Loader
from annbatch.order.schedule import Schedule, Settings
from annbatch.order.splits import Divisible, folds, split
from annbatch.samplers import ClassBalanced, Classes, Grouped, MatchedPairs, Stratified, Weighted
from annbatch.samplers.weighted import quantized
from annbatch.stores import obs_rows
from annbatch.stores.class_columns import classes_of_integers
from annbatch.testing.epochs import epoch_batches, row_counts

SIZES = [127, 128, 129, 255, 256, 257, 32767, 32768, 32769, 65536, 65537]


def schedule(sampler: Any, codes: dict[str, np.ndarray], categories: dict[str, list[Any]], batch_size: int) -> Schedule:
    n = len(next(iter(codes.values())))
    classes = {name: Classes(name, codes[name], pd.Index(categories[name])) for name in sampler.columns}
    return Schedule(Settings(sampler, batch_size, 3, 4, 0, False), (n // 3, n - n // 3), classes, None, {})


def stored(codes: np.ndarray, n_classes: int) -> ad.AnnData:
    kinds = pd.Categorical.from_codes(codes, [f"k{i}" for i in range(n_classes)])
    obs = pd.DataFrame({"kind": kinds}, index=pd.RangeIndex(len(codes)).astype(str))
    return ad.AnnData(X=sp.csr_matrix((len(codes), 1), dtype=np.float32), obs=obs)


@pytest.mark.parametrize("n_classes", SIZES)
def test_many_classes(n_classes: int, monkeypatch: pytest.MonkeyPatch):
    # The last classes come first; every seventh row has none.
    codes = np.append(np.arange(n_classes)[::-1], [n_classes - 1, 0, -1, n_classes // 2])
    codes[7::7] = -1
    n, last = len(codes), n_classes - 1
    # Codes are read in pieces, of which the last is not full.
    monkeypatch.setattr(obs_rows, "ROWS_AT_ONCE", n // 2 - 1)
    ds = Loader(batch_size=2, threads=1).add_anndatas([stored(part, n_classes) for part in (codes[:-20], codes[-20:])])
    classes = ds._opened().classes("kind")
    np.testing.assert_array_equal(classes.codes, codes)
    np.testing.assert_array_equal(classes.counts(), np.bincount(codes[codes >= 0], minlength=n_classes))

    parts = {"last": [f"k{last}"], "first": ["k0"], "rest": None}
    found = split(parts, Divisible(np.arange(n), n, by=classes), 0)
    for name, wanted in [("last", codes == last), ("first", codes == 0), ("rest", (codes != last) & (codes != 0))]:
        np.testing.assert_array_equal(found[name].find(np.arange(len(found[name]))), np.flatnonzero(wanted))

    def rows_of(sampler: Any, batch_size: int = 2) -> list[list[int]]:
        known = dict.fromkeys(sampler.columns, classes)
        bound = Schedule(Settings(sampler, batch_size, 3, 4, 0, False), (n,), known, None, {})
        return epoch_batches(bound, 0)[0]

    chosen = {f"k{last}": 1, f"k{last - 1}": 1}
    for batch in rows_of(Stratified("kind", chosen, n_batches=4)):
        assert sorted(codes[batch].tolist()) == [last - 1, last]
    drawn = [row for batch in rows_of(ClassBalanced("kind", chosen, n_rows=8)) for row in batch]
    assert np.bincount(codes[drawn])[[last - 1, last]].tolist() == [4, 4]
    if n_classes < 1000:
        groups = [set(codes[batch].tolist()) for batch in rows_of(Grouped("kind"))]
        assert {len(group) for group in groups} == {1}
        assert set.union(*groups) == set(codes[codes >= 0].tolist())


@pytest.mark.parametrize("n_classes", [n for n in SIZES if n < 1000])
def test_stratified_parts_and_folds_of_many_classes(n_classes: int):
    """Each class has two rows, and so have those without one: halves get one of each, and folds all of every other."""
    kinds = np.arange(-1, n_classes)
    # The smallest type that holds them.
    classes = Classes("kind", np.repeat(kinds, 2).astype(np.min_scalar_type(-n_classes)), pd.Index(kinds[1:]))
    n = len(classes.codes)
    halves = split({"a": 0.5, "b": 0.5}, Divisible(np.arange(n), n, strata=classes), 0)
    for half in halves.values():
        np.testing.assert_array_equal(classes.codes[half.find(np.arange(len(half)))], kinds)
    parts = [fold["test"] for fold in folds(2, Divisible(np.arange(n), n, by=classes), 0)]
    held = [np.unique(classes.codes[part.find(np.arange(len(part)))]).tolist() for part in parts]
    # Of groups of the same size, each goes to the fold that has fewer.
    assert held == [kinds[::2].tolist(), kinds[1::2].tolist()]


@pytest.mark.parametrize("n_values", SIZES)
def test_classes_of_many_integers(n_values: int):
    """The first piece has all values but two: one that comes before them, and one between them."""
    values = np.append(np.arange(n_values)[::-1] * 3, [3, -1, 0, 7])
    is_missing = np.arange(len(values)) == n_values
    pieces = np.split(np.ma.MaskedArray(values, is_missing), [n_values])
    found = classes_of_integers("n", pieces)
    codes, categories = pd.factorize(pd.Series(values).where(~is_missing), sort=True)
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.categories, categories)


@pytest.mark.parametrize("n_classes", SIZES)
def test_pairs_of_many_perturbations_in_many_contexts(n_classes: int):
    """The last hundred of so many perturbations and contexts have one row and one control each."""
    numbers = np.arange(n_classes - 100, n_classes)
    codes = np.repeat(numbers, 2)
    codes[::2] = 0
    contexts = np.repeat(numbers, 2)
    dtype = np.min_scalar_type(-n_classes - 1)
    names = [str(i) for i in range(n_classes)]
    found = schedule(
        MatchedPairs("kind", "0", ["donor"]),
        {"kind": codes.astype(dtype), "donor": contexts.astype(dtype)},
        {"kind": names, "donor": names},
        batch_size=32,
    )
    seen = []
    for batch in epoch_batches(found, 0)[0]:
        left, right = np.array(batch).reshape(2, -1)
        np.testing.assert_array_equal(left - 1, right)
        seen += left.tolist()
    assert sorted(seen) == list(range(1, 200, 2))


def test_many_parts():
    """A split by donors has as many parts as there are donors."""
    parts: dict[str, Any] = {f"p{i}": [2 * i, 2 * i + 1] for i in range(300)}
    found = split(parts | {"rest": None}, Divisible(np.arange(602), 602), 0)
    assert [part.find(np.arange(2)).tolist() for part in found.values()] == [[2 * i, 2 * i + 1] for i in range(301)]
    with pytest.raises(ValueError, match="'p299' and 'again' share row 599"):
        split(parts | {"again": [600, 599]}, Divisible(np.arange(602), 602), 0)


# --- missing values ---------------------------------------------------------------------------------------------------

KIND = np.array([-1, 0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2] * 4, np.int8)
PLATE = np.array([0, -1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0] * 4, np.int8)
# Missing beside either plate.
DONOR = np.array([0, 0, -1, 0, 0, 0, 0, 0, -1, 0, 0, 0] * 4, np.int8)
LABELS = {"kind": ["a", "b", "c"], "plate": ["p", "q"], "donor": ["d"]}


@pytest.mark.parametrize("within", [["plate"], ["plate", "donor"], ["donor", "plate"], ["donor"], []], ids=str)
def test_pairs_leave_out_rows_that_are_missing_in_any_column(within: list[str]):
    codes = {"kind": KIND, "plate": PLATE, "donor": DONOR}
    found = schedule(MatchedPairs("kind", "a", within), codes, LABELS, batch_size=4)
    whole = np.all([codes[name] >= 0 for name in ["kind", *within]], axis=0)
    left, right = [], []
    for batch in epoch_batches(found, 0)[0]:
        half = len(batch) // 2
        left += batch[:half]
        right += batch[half:]
    assert sorted(left) == np.flatnonzero(whole & (KIND > 0)).tolist()
    assert (KIND[right] == 0).all()
    assert whole[right].all()
    for name in within:
        np.testing.assert_array_equal(codes[name][left], codes[name][right])


@pytest.mark.parametrize(
    "sampler", [Grouped("kind"), ClassBalanced("kind"), Stratified("kind", {"a": 1, "b": 1, "c": 2})], ids=str
)
def test_rows_without_a_class_never_come(sampler: Any):
    counts = row_counts(epoch_batches(schedule(sampler, {"kind": KIND}, LABELS, batch_size=4), 0))
    assert counts
    assert not set(counts) & set(np.flatnonzero(KIND < 0).tolist())


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1e3, 1e6, 1e9, 1e12])
def test_weights_of_very_different_sizes(ratio: float):
    """Of 1,000 rows one is heavier by far: the light ones come as often as they should, to a part in ten thousand."""
    weights = np.ones(1000)
    weights[417] = ratio
    whole = quantized(weights, len(weights))
    for light in (0, 999):
        assert abs(Fraction(int(whole[light]), int(whole[417])) * Fraction(ratio) - 1) < Fraction(1, 10**4)
    # Each row has a chance, so that all may be asked for at once.
    classes: dict[str, Any] = {}
    all_rows = Weighted(weights, n_rows=1000, replace=False)
    bound = Schedule(Settings(all_rows, 100, 10, 10, 0, False), (1000,), classes, None, {})
    assert sorted(row_counts(epoch_batches(bound, 0)).items()) == [(row, 1) for row in range(1000)]
