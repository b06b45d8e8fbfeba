"""Do stratified parts and folds keep scikit-learn's rules: shares of classes, and groups that stay together?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold

from annbatch import InputError, Loader
from annbatch.order.row_table import Classes
from annbatch.order.splits import Divisible, folds, split
from stores import named_stores


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return named_stores(tmp_path_factory.mktemp("stores"), "in memory")


def loader(adatas: Any, **options: Any) -> Loader:
    return Loader(batch_size=10, chunk_size=4, **options).add_anndatas(adatas, labels=[])


def classes_of(codes: Any) -> Classes:
    codes = np.asarray(codes, np.int8)
    return Classes("kind", codes, pd.Index(list("abcdefgh")[: max(1, codes.max() + 1)]))


def rows_of(runs: Any) -> np.ndarray:
    return runs.find(np.arange(len(runs)))


CODES = st.lists(st.integers(-1, 5), min_size=30, max_size=300)


@given(CODES, st.lists(st.floats(0.05, 0.4), min_size=1, max_size=3).filter(lambda f: sum(f) < 1), st.integers(0, 99))
def test_each_part_has_its_share_of_each_class_up_to_one_row(codes, fractions, seed):
    strata = classes_of(codes)
    whole = Divisible(np.arange(len(codes)) * 2, 2 * len(codes), strata=strata)
    parts: dict[str, Any] = {f"part {i}": fraction for i, fraction in enumerate(fractions)} | {"rest": None}
    try:
        found = {name: rows_of(runs) // 2 for name, runs in split(parts, whole, seed).items()}
    except InputError as e:
        # A small part may have no row.
        assert "at least one row" in str(e)  # noqa: PT017
        return
    assert np.array_equal(np.sort(np.concatenate(list(found.values()))), np.arange(len(codes)))
    shares = {**parts, "rest": 1 - sum(fractions)}
    for name, rows in found.items():
        for code in range(-1, 6):
            n_class = codes.count(code)
            # With the row itself: sums of fractions are rounded.
            assert abs((strata.codes[rows] == code).sum() - shares[name] * n_class) < 1 + 1e-6
    again = split(parts, whole, seed)
    assert all(np.array_equal(rows_of(again[name]) // 2, rows) for name, rows in found.items())


def test_stratified_parts_are_right_on_average_also_of_small_classes():
    """Of classes of two rows a part of three tenths has a row three times in five."""
    codes = np.append(np.repeat(np.arange(4), 2), np.full(20, 4))
    counts = np.zeros(5)
    for seed in range(400):
        parts = split({"a": 0.3, "rest": None}, Divisible(np.arange(28), 28, strata=classes_of(codes)), seed)
        counts += np.bincount(codes[rows_of(parts["a"])], minlength=5)
    assert np.abs(counts[:4] / 400 - 0.6).max() < 4 * np.sqrt(0.24 / 400)


def test_rows_of_parts_stay_neighbours_where_classes_allow_it():
    """Of a shuffled table only the rows move that have to."""
    n = 20_000
    codes = np.random.default_rng(0).integers(0, 4, n)
    plain = split({"a": 0.5, "b": 0.5}, Divisible(np.arange(n), n), 5)
    strata = split({"a": 0.5, "b": 0.5}, Divisible(np.arange(n), n, strata=classes_of(codes)), 5)
    moved = len(np.setdiff1d(rows_of(strata["a"]), rows_of(plain["a"])))
    counts = np.array([np.bincount(codes[rows_of(plain[name])], minlength=4) for name in "ab"])
    # Of each class, what one of the parts has too many of, up to one row.
    assert moved <= np.abs(counts[0] - counts.sum(axis=0) / 2).sum() + 4


@settings(max_examples=30)
@given(st.lists(st.integers(0, 7), min_size=40, max_size=200), st.integers(2, 4))
def test_groups_are_dealt_as_by_group_k_fold(groups, n_folds):
    codes = np.array(groups)
    codes = np.unique(codes, return_inverse=True)[1]
    if codes.max() + 1 < n_folds:
        with pytest.raises(InputError, match="n_folds must be at most"):
            folds(n_folds, Divisible(np.arange(len(codes)), len(codes), by=classes_of(codes)), 0)
        return
    found = folds(n_folds, Divisible(np.arange(len(codes)), len(codes), by=classes_of(codes)), 0)
    for fold in found:
        train, test = rows_of(fold["train"]), rows_of(fold["test"])
        assert np.array_equal(np.sort(np.append(train, test)), np.arange(len(codes)))
        assert not set(codes[train]) & set(codes[test])
    theirs = [len(test) for _, test in GroupKFold(n_folds).split(codes, groups=codes)]
    assert sorted(len(fold["test"]) for fold in found) == sorted(theirs)


def test_folds_of_a_loader(stores):
    adatas, _, obs = stores
    ds = loader(adatas)
    donors = ds.folds(3, by="donor")
    assert sum(fold["test"].n_obs for fold in donors) == len(obs)
    for fold in donors:
        groups = {name: set(part.obs(["donor"])["donor"]) for name, part in fold.items()}
        assert groups["test"]
        assert not groups["train"] & groups["test"]
    for fold in ds.folds(5, stratify=["stage", "doublet"], seed=2):
        found = fold["test"].obs(["stage", "doublet"]).value_counts()
        whole = obs[["stage", "doublet"]].value_counts()
        assert (found - whole / 5).abs().max() < 1
    plain = [fold["test"].obs([]).index.tolist() for fold in ds.folds(4)]
    assert sorted(name for names in plain for name in names) == sorted(obs.index)
    # Missing ages are a class of a stratified split, and stay together in folds by age.
    parts = ds.split({"a": 0.5, "b": 0.5}, stratify="age")
    n_missing = [part.obs(["age"])["age"].isna().sum() for part in parts.values()]
    assert abs(n_missing[0] - n_missing[1]) <= 1
    of_age = [fold["test"].obs(["age"])["age"].isna().sum() for fold in ds.folds(2, by="age")]
    assert sorted(of_age) == [0, obs["age"].isna().sum()]


def test_a_state_says_which_fold_it_is_of(stores):
    ds = loader(stores[0])
    state = ds.folds(3, by="donor")[0]["train"].state_dict()
    assert state["fingerprint"]["split"] == {
        "part": "train", "fold": 0, "n_folds": 3, "by": "donor", "seed": 0,
    }  # fmt: skip
    ds.folds(3, by="donor")[0]["train"].load_state_dict(state)
    with pytest.raises(InputError, match="split is"):
        ds.folds(3, by="donor")[1]["train"].load_state_dict(state)
    part = ds.split({"a": 0.5, "b": 0.5}, stratify="stage")["a"]
    with pytest.raises(InputError, match="'stratify': 'stage'"):
        ds.split({"a": 0.5, "b": 0.5})["a"].load_state_dict(part.state_dict())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ds: ds.split({"a": 0.5}, by="donor", stratify="stage"), "only one of by and stratify"),
        (lambda ds: ds.folds(3, by="donor", stratify="stage"), "only one of by and stratify"),
        (lambda ds: ds.split({"a": [1, 2]}, stratify="stage"), "parts must all be fractions if stratify is given"),
        (lambda ds: ds.split({"a": 0.5}, stratify="score"), "must hold categories, text, integers or booleans"),
        (lambda ds: ds.split({"a": 0.5}, stratify="nope"), "must be obs columns, got 'nope'"),
        (lambda ds: ds.split({"a": 0.5}, stratify=[]), "stratify must be the name of an obs column"),
        (lambda ds: ds.folds(5, by="donor"), "n_folds must be at most 4, the number of groups of 'donor', got 5"),
        (lambda ds: ds.folds(200), "must hold at least one row"),
    ],
)
def test_what_cannot_be_split_is_refused(stores, call, message):
    with pytest.raises(InputError, match=message):
        call(loader(stores[0]))


def test_fewer_than_two_folds_are_refused(stores):
    with pytest.raises(ValueError, match="n_folds must be >= 2, got 1"):
        loader(stores[0]).folds(1)
