"""Do batches in parts hold their rows, with room that consumers agree on without a word?"""

from __future__ import annotations

from functools import cache

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from annbatch import CSR, Capacity, Emit, InputError, Loader, Partition
from stores import named_stores

BATCH, PARTS = 12, 3
ROOM = Capacity(growth=1.25, smallest=64)


@pytest.fixture(scope="module")
def stores_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return cache(lambda form: named_stores(folder / form, form))


def part_of(csr: CSR, k: int) -> sp.csr_matrix:
    """Give one part; what is behind its elements must be zeros."""
    data, indices, indptr = csr.data[k], csr.indices[k], csr.indptr[k]
    assert len(indptr) == BATCH // PARTS + 1
    assert not data[indptr[-1] :].any()
    assert not indices[indptr[-1] :].any()
    shape = (BATCH // PARTS, csr.shape[1])
    return sp.csr_matrix((data[: indptr[-1]], indices[: indptr[-1]], indptr), shape=shape)


@pytest.mark.parametrize("form", ["v3 sharded", "v2"])
@pytest.mark.parametrize("genes", [None, [11, 2, 25, 7]], ids=["all genes", "chosen genes"])
@pytest.mark.parametrize("alike", [False, True])
def test_parts(form, genes, alike, stores_of):
    adatas, x, _ = stores_of(form)
    x = x if genes is None else x[:, genes]
    emit = Emit(nse=ROOM, pad_rows=True, parts=PARTS, alike=alike)
    rooms, seen = [], []
    for index in range(2):
        ds = Loader(
            batch_size=BATCH,
            chunk_size=5,
            preload_nchunks=5,
            var_names=None if genes is None else [f"g{gene}" for gene in genes],
            partition=Partition(index, 2),
        ).add_anndatas(adatas)
        rooms.append([])
        for batch in ds.batches(emit):
            csr = batch.data
            assert csr.shape == (BATCH, x.shape[1])
            for k, rows in enumerate(np.split(batch.index, PARTS)):
                real = rows[rows >= 0]
                part = part_of(csr, k)
                np.testing.assert_array_equal(part[: len(real)].toarray(), x[real].toarray())
                assert not part[len(real) :].nnz
                seen += real.tolist()
            most = csr.indptr[:, -1].max()
            rooms[-1].append((ROOM(int(most)), csr.data.shape[1]))
            assert csr.nnz == csr.indptr[:, -1].sum()
    np.testing.assert_array_equal(np.sort(seen), np.arange(x.shape[0]))
    for first, second in zip(*rooms, strict=True):
        if not alike:
            assert first[0] == first[1]
            assert second[0] == second[1]
        elif genes is None:
            assert first[1] == second[1] == max(first[0], second[0])
        else:
            # How many of the chosen genes a row has shows when it is decoded: there is room for the most.
            assert first[1] == second[1] >= max(first[0], second[0])


def test_the_rest_of_a_window_has_the_same_room_on_all(stores_of):
    adatas, _, _ = stores_of("v3 sharded")
    emit = Emit(nse=lambda n: n, pad_rows=True, parts=PARTS, alike=True)
    rooms = []
    for index in range(2):
        ds = Loader(batch_size=BATCH, chunk_size=6, preload_nchunks=6).add_anndatas(adatas)
        whole = [batch.data.data.shape[1] for batch in ds.batches(emit, Partition(index, 2))]
        state = ds.state_dict() | {"epoch": 0, "parts": [[2, 1]]}
        ds.load_state_dict(state)
        assert [batch.data.data.shape[1] for batch in ds.batches(emit, Partition(index, 2))] == whole[1:]
        rooms.append(whole)
    assert rooms[0] == rooms[1]
    assert len(set(rooms[0])) > 1


def test_columns_that_stand_twice_are_refused_where_all_need_the_same_room():
    x = sp.csr_matrix((np.ones(12, np.float32), np.zeros(12, np.int32), np.arange(0, 13, 3)), shape=(4, 3))
    ds = Loader(batch_size=4, var_names=["0", "2"]).add_anndatas([ad.AnnData(X=x)])
    with pytest.raises(ValueError, match="each column at most once, got 12 elements instead of at most 8"):
        next(ds.batches(Emit(nse=ROOM, pad_rows=True, alike=True)))


def test_batches_ahead_do_not_count(stores_of):
    adatas, _, _ = stores_of("v3 sharded")
    ds = Loader(batch_size=8, chunk_size=8, preload_nchunks=3).add_anndatas(adatas)
    epoch = ds.batches(Emit())
    first = next(epoch)
    state = ds.state_dict()
    ahead = epoch.ahead(2)
    assert len(ahead) == 2
    assert ds.state_dict() == state
    assert [next(epoch), next(epoch)] == ahead
    rest = [*ahead, *epoch]
    assert epoch.ahead(3) == []
    ds.set_epoch(0)
    again = [batch.index for batch in ds]
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate([batch.index for batch in (first, *rest)]))


def test_parts_that_cannot_be_are_refused(stores_of):
    for wrong in ({"parts": 0, "pad_rows": True}, {"parts": 2}, {"parts": 2, "pad_rows": True, "layout": "dense"}):
        with pytest.raises(ValueError, match="parts must be >= 1 and needs layout='csr' and pad_rows=True"):
            Emit(**wrong)
    adatas, _, _ = stores_of("in memory")
    with pytest.raises(InputError, match="parts must divide batch_size, 12, got 5"):
        next(Loader(batch_size=12).add_anndatas(adatas).batches(Emit(parts=5, pad_rows=True)))
