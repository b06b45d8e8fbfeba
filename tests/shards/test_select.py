"""Are wanted columns found among all, and do selected batches hold what SciPy selects, whatever the codec?"""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from annbatch import Emit, Loader, create_anndata_collection
from annbatch.native import Kernel
from annbatch.plan.column_selection import join_pieces
from annbatch.shards.select_kernels import PLACES_ROOM, _find
from annbatch.shards.select_vectors import bitmap_of
from epochs import each_batch

N_OBS = 300
PANELS = {
    "few": lambda rng, n: np.sort(rng.choice(n, n // 15, replace=False)),
    "most": lambda rng, n: np.sort(rng.choice(n, n - n // 10, replace=False)),
    "one": lambda rng, n: np.array([n - 1]),
    "in an order of one's own": lambda rng, n: rng.permutation(n)[: n // 3],
}


@Kernel
def _found(columns: Any, first: Any, is_wanted: Any, bitmap: Any, numbers: Any) -> Any:
    return _find(
        columns.ctypes.data + first * columns.itemsize, columns.size - first - 64, columns, is_wanted, bitmap, numbers
    )


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8"])
def test_wanted_columns_are_found(dtype: str) -> None:
    rng = np.random.default_rng(3)
    # Numbers of 8 bits, and of 64, are looked up one by one, as all are by processors that lack the instructions.
    n_columns = 250 if dtype == "u1" else 60_000
    is_wanted = (rng.random(n_columns) < 0.2).astype(np.uint8)
    dense, sparse = np.arange(n_columns // 2), np.sort(rng.choice(n_columns, n_columns // 40, replace=False))
    cases = [dense, sparse, sparse[::-1], rng.permutation(n_columns), np.full(70, n_columns - 1), dense[:1], dense[:0]]
    # Rows that follow one another within a chunk.
    cases.append(np.concatenate([sparse, sparse, dense]))
    for case in cases:
        for first in (0, min(3, len(case))):
            # What lies behind must not be found.
            columns = np.append(case, np.full(64, np.flatnonzero(is_wanted)[0])).astype(dtype)
            places = np.empty(len(case) + PLACES_ROOM, np.int32)
            n = _found(columns, first, is_wanted, bitmap_of(is_wanted), places)
            assert np.array_equal(places[:n], np.flatnonzero(is_wanted[case[first:]]))
        for place in {0, len(case) // 2, len(case) - 1} if len(case) else ():
            wrong = columns.copy()
            wrong[place] = n_columns
            assert _found(wrong, 0, is_wanted, bitmap_of(is_wanted), places) == -1


@pytest.fixture(scope="module")
def matrix() -> sp.csr_matrix:
    x = sp.random(N_OBS, 3000, 0.15, "csr", np.float32, np.random.default_rng(1))
    x.data = np.arange(1, x.nnz + 1, dtype=np.float32) % 60_001
    return x


@pytest.fixture(scope="module", params=["blosc", "packed", "zstd"])
def collection(request, matrix, tmp_path_factory):
    folder = tmp_path_factory.mktemp("select")
    ad.AnnData(matrix).write_h5ad(folder / "a.h5ad")
    create_anndata_collection([folder / "a.h5ad"], folder / "store", codec=request.param, chunk_elements=1500,
                              shard_elements=9000, shuffle=False, progress=False)  # fmt: skip
    return folder / "store"


@pytest.mark.parametrize("panel", PANELS)
def test_selected_batches_are_what_scipy_selects(collection, matrix, panel) -> None:
    columns = PANELS[panel](np.random.default_rng(2), matrix.shape[1])
    names = [str(column) for column in columns]
    for chunk_size, dtype in ((16, np.float32), (1, np.float16)):
        ds = Loader(batch_size=64, chunk_size=chunk_size, preload_nchunks=128 // chunk_size, threads=2, var_names=names,
                        casting="same_kind")  # fmt: skip
        with ds.use_collection(collection) as ds:
            for batch in each_batch(ds.batches(Emit(dtype=np.dtype(dtype))), len(ds)):
                wanted = matrix[batch.index][:, columns]
                wanted.sort_indices()
                found = batch.data
                assert found.data.dtype == dtype
                assert np.array_equal(found.data, wanted.data.astype(dtype))
                assert np.array_equal(found.indices, wanted.indices)
                assert np.array_equal(found.indptr, wanted.indptr)


def test_a_column_that_comes_twice_in_a_row() -> None:
    # Not canonical, but what a store may hold: elements of one column keep their order.
    values, columns = np.array([5, 6, 1, 2, 3, 4], "u2"), np.array([2, 0, 1, 0, 0, 2], "u2")
    firsts, counts, order, ends = (np.array(one) for one in ([2, 0, 4], [2, 2, 2], [0, 2, 1], [2, 3]))
    data, indices = np.zeros(6, "f4"), np.zeros(6, "u4")
    indptr = join_pieces(values, columns, firsts, counts, order, ends, data, indices, 3)
    assert indptr.tolist() == [0, 4, 6]
    assert indices.tolist() == [0, 0, 1, 2, 0, 2]
    assert data.tolist() == [2, 3, 1, 4, 6, 5]
