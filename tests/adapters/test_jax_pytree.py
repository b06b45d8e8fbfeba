"""Does a JAX batch go through transformations whole, but for what belongs to the host?"""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from annbatch import Capacity, Loader  # noqa: E402
from annbatch_jax import JaxBatch, JaxLoader, PaddedCSR, densify  # noqa: E402

N_ROWS, N_VARS = 10, 6
X = sp.csr_matrix((np.arange(N_ROWS * N_VARS).reshape(N_ROWS, N_VARS) % 7).astype(np.float32))
PCA = (np.arange(3 * N_ROWS).reshape(N_ROWS, 3) / 8).astype(np.float32)


def open_loader(**options: Any) -> JaxLoader:
    adata = ad.AnnData(X=X, layers={"doubled": 2 * X}, obsm={"pca": PCA, "sparse": sp.csr_matrix(PCA)})
    adata.obs["number"] = np.arange(N_ROWS)
    core = Loader(batch_size=4, layers=["doubled"], obsm=["pca", "sparse"], shuffle=False).add_anndatas([adata])
    return JaxLoader(core, nse=Capacity(fixed=64), **options)


def dense(matrix: Any) -> jax.Array:
    return densify(matrix) if isinstance(matrix, PaddedCSR) else matrix


def summed(batch: JaxBatch) -> jax.Array:
    """Give for each row a number that all parts of the batch have a share in."""
    rows = sum(dense(matrix).sum(axis=1) for matrix in (batch.data, *batch.layers.values(), *batch.obsm.values()))
    return jnp.where(batch["mask"], rows + batch.codes["number"], 0)


EXPECTED = 3 * X.toarray().sum(axis=1) + 2 * PCA.sum(axis=1) + np.arange(N_ROWS)


@pytest.mark.parametrize("layout", ["padded_csr", "dense"])
@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_step_takes_batches_and_compiles_once(is_sharded: bool, layout: Any) -> None:
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data"))
    n_traces = 0

    @jax.jit
    def step(batch: JaxBatch) -> jax.Array:
        nonlocal n_traces
        n_traces += 1
        return summed(batch)

    found = []
    for batch in open_loader(layout=layout, sharding=sharding if is_sharded else None):
        sums = np.asarray(step(batch))
        assert not sums[batch.index < 0].any()
        found.append(sums[batch.index >= 0])
    np.testing.assert_array_equal(np.concatenate(found), EXPECTED)
    assert n_traces == 1, "the last batch is short, and has the same shape"


def test_leaves_are_the_arrays() -> None:
    batch = next(iter(open_loader()))
    leaves = jax.tree.leaves(batch)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert len(leaves) == 3 + 3 + 1 + 3 + 1 + 1
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(batch)}
    assert {".data.data", ".layers['doubled'].indptr", ".obsm['pca']", ".codes['number']", ".mask"} <= paths
    assert jax.tree.structure(batch) == jax.tree.structure(jax.tree.map(lambda leaf: leaf, batch))


def test_index_and_labels_stay_on_the_host() -> None:
    batch = next(iter(open_loader()))
    moved = jax.tree.map(lambda leaf: leaf, batch)
    assert isinstance(moved, JaxBatch)
    assert list(batch) == ["data", "labels", "index", "layers", "obsm", "mask"]
    assert list(moved) == list(dict(moved)) == ["data", "layers", "obsm", "mask"]
    assert moved.index is None
    assert moved.n_padding is None
    np.testing.assert_array_equal(moved["mask"], batch["mask"])
    for name in ("index", "labels"):
        with pytest.raises(KeyError, match=f"{name} is only in the batch that the loader yielded"):
            moved[name]
    with pytest.raises(AttributeError, match="labels is only in the batch"):
        _ = moved.labels
    with pytest.raises(KeyError, match="is only in the batch"):
        jax.jit(lambda batch: batch["index"])(batch)
    assert batch.labels["number"].tolist() == batch.index.tolist()


def test_gradients_of_a_batch() -> None:
    batch = next(iter(open_loader()))
    gradient = jax.jit(jax.grad(lambda batch: jnp.square(summed(batch)).sum(), allow_int=True))(batch)
    assert isinstance(gradient, JaxBatch)
    expected = np.repeat(2 * EXPECTED[:4, None], 3, axis=1)
    np.testing.assert_allclose(gradient.obsm["pca"], expected, rtol=1e-6)
    by_weight = jax.grad(lambda w, batch: (densify(batch.data) @ w).sum())(jnp.ones(N_VARS), batch)
    np.testing.assert_array_equal(by_weight, X[:4].toarray().sum(axis=0))


def test_batches_are_put_and_stacked_as_a_whole() -> None:
    ds = open_loader(layout="dense")
    first, second, _ = ds
    put = jax.device_put(first, jax.devices()[0])
    assert isinstance(put, JaxBatch)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    np.testing.assert_array_equal(jax.vmap(summed)(both).ravel(), EXPECTED[:8])
