"""Are the stores of Icechunk's sessions read as any other?"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import zarr

from annbatch import Loader, StoreError
from datagen import awkward_obs, named_matrix
from stores import opened, write_store

icechunk = pytest.importorskip("icechunk")

N_OBS, N_VARS = 60, 20


@pytest.fixture
def repository(tmp_path) -> Any:
    icechunk.set_logs_filter("error")
    return icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repository")))


def check(ds: Loader, x: Any) -> None:
    rows = []
    for batch in ds:
        assert (batch.data.to_scipy() != x[batch.index]).nnz == 0
        rows.append(batch.index)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(x.shape[0]))


def written(repository: Any, seed: int) -> Any:
    """Commit an AnnData store; gives the snapshot and its matrix."""
    x = named_matrix(np.random.default_rng(seed), range(N_OBS), range(N_VARS))
    session = repository.writable_session("main")
    write_store(session.store, x, awkward_obs(range(N_OBS)), shards=5)
    return session.commit("cells"), x


def test_each_snapshot_gives_its_own_rows(repository):
    snapshots = [written(repository, seed) for seed in range(2)]
    for snapshot, x in snapshots:
        session = repository.readonly_session(snapshot_id=snapshot)
        adata = opened(zarr.open_group(session.store, mode="r"))
        ds = Loader(batch_size=8, chunk_size=4, preload_nchunks=4).add_anndatas([adata])
        check(ds, x)
        check(pickle.loads(pickle.dumps(ds)), x)


def test_a_collection_without_manifest(repository):
    """Icechunk keeps only what zarr writes, so that there is no place for one."""
    _, x = written(repository, 0)
    session = repository.readonly_session("main")
    with pytest.raises(StoreError, match="not a collection: it has no collection.json"):
        Loader(batch_size=8).use_collection(session.store)
    session = repository.writable_session("main")
    zarr.create_group(session.store, overwrite=True, attributes={"encoding-type": "annbatch-preshuffled"})
    for i in range(2):
        rows = slice(30 * i, 30 * i + 30)
        write_store(zarr.storage.StorePath(session.store, f"dataset_{i}"), x[rows], awkward_obs(range(N_OBS))[rows])
    session.commit("two stores")
    session = repository.readonly_session("main")
    check(Loader(batch_size=8, chunk_size=4, preload_nchunks=4).use_collection(session.store), x)
