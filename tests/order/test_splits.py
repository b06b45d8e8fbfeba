"""Do parts hold what they should, and never the same row?"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch import InputError, Loader
from annbatch.order.row_selection import Runs
from annbatch.order.splits import Divisible, run_rows, split
from annbatch.samplers import ClassBalanced
from stores import named_stores, opened, write_store

N = 98


@given(st.lists(st.booleans(), min_size=1, max_size=60).filter(any), st.data())
def test_runs_are_the_rows_that_were_meant(mask, data):
    rows = np.flatnonzero(mask)
    runs = Runs.of(np.array(mask), len(mask))
    shuffled = data.draw(st.permutations(rows.tolist()))
    assert Runs.of(shuffled, len(mask)).digest() == runs.digest()
    np.testing.assert_array_equal(runs.find(np.arange(len(runs))), rows)
    assert runs.starts.tolist() == [row for row in rows.tolist() if row - 1 not in rows]
    values = np.arange(len(mask)) * 3
    np.testing.assert_array_equal(runs.select(values), values[rows])
    cut = data.draw(st.integers(0, len(mask)))
    stores = (cut, 0, len(mask) - cut)
    assert runs.counts(stores) == ((rows < cut).sum(), 0, (rows >= cut).sum())


def test_the_digest_of_rows_is_the_same_in_every_version():
    """States hold it."""
    assert Runs.of([3, 4, 5, 9], 20).digest() == "0af54919d09ce764d4ba2d66e2ac9324"
    assert Runs.of([9, 3, 4, 5], 20, ordered=True).digest() == "34b44c23acbed9024c151f587acd82d5"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones(9, bool), "one boolean for each of the 10 rows, got 9"),
        (np.zeros(10, bool), "at least one row, got none"),
        ([], "must be a mask or row numbers"),
        ([0, 2, 10], r"in \[0, 10\), got 10"),
        ([-1, 2], r"in \[0, 10\), got -1"),
        ([1, 2, 1], "row 1 more than once"),
        ([[1, 2]], "2 axes"),
        ([1.5], "float64"),
    ],
)
def test_rows_that_are_none_are_refused(rows, message):
    with pytest.raises(InputError, match=message):
        Runs.of(rows, 10)


@given(st.integers(40, 5000), st.integers(0, 2**64 - 1), st.floats(0.05, 0.6), st.floats(0.05, 0.35))
def test_fractions_are_disjoint_and_of_the_right_size(n, seed, first, second):
    rows = np.arange(n)
    parts = split({"a": first, "rest": None, "b": second}, Divisible(rows, n), seed)
    assert list(parts) == ["a", "rest", "b"]
    found = np.concatenate([part.find(np.arange(len(part))) for part in parts.values()])
    np.testing.assert_array_equal(np.sort(found), rows)
    for name, fraction in {"a": first, "b": second}.items():
        assert abs(len(parts[name]) - fraction * n) <= 2 * run_rows(n)
    again = split({"a": first, "rest": None, "b": second}, Divisible(rows, n), seed)
    assert {name: part.digest() for name, part in again.items()} == {
        name: part.digest() for name, part in parts.items()
    }


def test_fractions_that_sum_to_one_take_every_row_and_another_seed_takes_others():
    rows = np.arange(100_000)
    parts = [split({"train": 0.7, "valid": 0.2, "test": 0.1}, Divisible(rows, len(rows)), seed) for seed in (0, 1)]
    assert sum(map(len, parts[0].values())) == len(rows)
    assert [len(part) for part in parts[0].values()] == [70_000, 20_000, 10_000]
    assert parts[0]["test"].digest() != parts[1]["test"].digest()
    # Runs of 100 rows: the whole is cut a thousand times, not a hundred thousand times.
    assert len(parts[0]["test"].starts) <= 100


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory):
    return named_stores(tmp_path_factory.mktemp("stores"), "v3 sharded")


def opened_loader(adatas: list[ad.AnnData], **options) -> Loader:
    return Loader(batch_size=7, chunk_size=3, preload_nchunks=4, threads=1, **options).add_anndatas(
        adatas, labels=["donor", "stage"]
    )


def index_of(ds: Loader) -> set[int]:
    rows = [row for batch in ds for row in batch.index.tolist()]
    assert len(set(rows)) == len(rows) == ds.n_obs
    return set(rows)


def test_held_out_donors(stores):
    adatas, _, obs = stores
    parts = opened_loader(adatas).split({"train": None, "valid": ["donor1"], "test": ["donor3"]}, by="donor")
    donors = obs["donor"].to_numpy()
    assert index_of(parts["valid"]) == set(np.flatnonzero(donors == "donor1").tolist())
    assert index_of(parts["test"]) == set(np.flatnonzero(donors == "donor3").tolist())
    assert index_of(parts["train"]) == set(np.flatnonzero(np.isin(donors, ["donor0", "donor2"])).tolist())


def test_given_rows_and_parts_of_parts(stores):
    adatas, x, _ = stores
    ds = opened_loader(adatas)
    parts = ds.split({"train": np.arange(20, 90), "test": np.arange(N) < 15})
    assert index_of(parts["test"]) == set(range(15))
    inner = parts["train"].split({"a": 0.5, "b": 0.5}, seed=3)
    assert index_of(inner["a"]) | index_of(inner["b"]) == set(range(20, 90))
    for batch in inner["a"]:
        np.testing.assert_array_equal(batch.data.to_scipy().toarray(), x[batch.index].toarray())
    with pytest.raises(InputError, match="must hold rows of this loader, got row 3"):
        parts["train"].split({"x": [21, 3]})


def test_parts_are_read_side_by_side_and_the_whole_stays_whole(stores):
    ds = opened_loader(stores[0])
    parts = ds.split({"train": 0.8, "valid": 0.2})
    train, valid = iter(parts["train"]), iter(parts["valid"])
    seen = [next(train).index, next(valid).index, next(train).index]
    assert len(set(np.concatenate(seen).tolist())) == sum(map(len, seen))
    assert index_of(ds) == set(range(N))


def test_a_part_can_have_classes_balanced(stores):
    adatas, _, obs = stores
    parts = opened_loader(adatas, sampler=ClassBalanced("stage", n_rows=90)).split(
        {"train": None, "test": ["donor0"]}, by="donor"
    )
    codes = obs["stage"].cat.codes.to_numpy()
    rows = np.concatenate([batch.index for batch in parts["train"]])
    assert (obs["donor"].to_numpy()[rows] != "donor0").all()
    np.testing.assert_allclose(np.bincount(codes[rows]), 30, atol=1)


def test_the_state_of_a_part_is_for_that_part(stores):
    def parts(seed):
        return opened_loader(stores[0]).split({"train": 0.8, "valid": 0.2}, seed=seed)

    state = parts(0)["train"].state_dict()
    assert state["fingerprint"]["split"] == {
        "part": "train",
        "parts": {"train": 0.8, "valid": 0.2},
        "by": None,
        "seed": 0,
    }
    parts(0)["train"].load_state_dict(state)
    for other in (parts(0)["valid"], parts(1)["train"], opened_loader(stores[0])):
        with pytest.raises(InputError, match="split is"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    ("parts", "by", "message"),
    [
        ({}, None, "at least one part"),
        ({"a": None, "b": None}, None, "parts must have at most one None"),
        ({"a": 0.7, "b": 0.5}, None, "sum to at most 1, got 1.2"),
        ({"a": 0.0}, None, r"in \(0, 1\), got 0.0"),
        ({"a": 0.5, "b": [1, 2]}, None, "must all be fractions or all be rows"),
        ({"a": [1, 2], "b": [2, 3]}, None, "'a' and 'b' share row 2"),
        ({"a": 0.001, "b": 0.5}, None, "'a' must hold at least one row"),
        ({"a": ["donor1"], "b": ["donor1"]}, "donor", "must not overlap"),
        ({"a": ["nobody"]}, "donor", "must have the category 'nobody'"),
        ({"a": "donor1"}, "donor", "must be a list of categories"),
        ({"a": [1]}, "n_cnt", "columns of classes must be obs columns, got 'n_cnt'"),
    ],
)
def test_bad_parts_are_refused(stores, parts, by, message):
    with pytest.raises(InputError, match=message):
        opened_loader(stores[0]).split(parts, by=by)


def test_a_column_of_floats_has_no_classes(stores):
    ds = Loader(batch_size=4).add_anndatas(stores[0])
    with pytest.raises(InputError, match="must hold categories, text, integers or booleans to give classes"):
        ds.split({"a": [1]}, by="score")


def test_a_column_that_only_the_sampler_needs_is_not_in_batches(stores):
    adatas, _, obs = stores
    ds = Loader(batch_size=6, sampler=ClassBalanced("stage")).add_anndatas(adatas, labels=["donor"])
    batch = next(iter(ds))
    assert list(batch.codes) == ["donor"]
    assert list(batch.labels.columns) == ["donor"]
    assert list(ds.categories) == ["donor"]


def test_only_the_chunks_that_hold_the_rows_are_read(stores, tmp_path: Path):
    """Every byte of the shards that hold other rows is destroyed."""
    _, x, obs = stores
    root = write_store(str(tmp_path / "s.zarr"), x, obs, chunks=16, shards=2)
    rows = np.arange(40, 60)
    lo, hi = x.indptr[40], x.indptr[60]
    for name in ("data", "indices"):
        for file in (tmp_path / "s.zarr" / "X" / name / "c").iterdir():
            first = int(file.name) * 32
            if first + 32 <= lo or first >= hi:
                file.write_bytes(b"\xff" * file.stat().st_size)
    adata = opened(root)
    ds = Loader(batch_size=8, chunk_size=4, preload_nchunks=2, rows=rows).add_anndatas([adata])
    for batch in ds:
        np.testing.assert_array_equal(batch.data.to_scipy().toarray(), x[batch.index].toarray())
    assert index_of(ds) == set(rows.tolist())
    with pytest.raises(ValueError, match="checksum|crc32c"):
        list(Loader(batch_size=8).add_anndatas([adata]))
