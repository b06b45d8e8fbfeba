"""Do layers, obsm and dense X reach torch and JAX too?"""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from annbatch import Loader
from epochs import each_batch

X = sp.csr_matrix((np.arange(60).reshape(10, 6) % 7).astype(np.float32))
PCA = np.arange(30).reshape(10, 3) / 8


def make_loader(x: Any, **options: Any) -> Loader:
    adata = ad.AnnData(X=x, layers={"doubled": sp.csr_matrix(X * 2)}, obsm={"pca": PCA})
    return Loader(batch_size=4, layers=["doubled"], obsm=["pca"], **options).add_anndatas([adata])


@pytest.mark.parametrize("x", [X, X.toarray()], ids=["sparse", "dense"])
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_torch(x: Any, layout: Any) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from annbatch_torch import TorchLoader

    for batch in each_batch(TorchLoader(make_loader(x), layout=layout)):
        rows = batch["index"].numpy()
        np.testing.assert_array_equal(batch["data"].to_dense().numpy(), X[rows].toarray())
        np.testing.assert_array_equal(batch["layers"]["doubled"].to_dense().numpy(), 2 * X[rows].toarray())
        assert batch["layers"]["doubled"].is_sparse_csr == (layout == "csr")
        np.testing.assert_array_equal(batch["obsm"]["pca"].numpy(), PCA[rows])


@pytest.mark.parametrize("x", [X, X.toarray()], ids=["sparse", "dense"])
@pytest.mark.parametrize("layout", ["padded_csr", "dense"])
def test_jax(x: Any, layout: Any) -> None:
    pytest.importorskip("jax", reason="JAX is not installed")
    from annbatch_jax import JaxLoader, PaddedCSR, densify

    def dense(matrix: Any) -> np.ndarray:
        return np.asarray(densify(matrix) if isinstance(matrix, PaddedCSR) else matrix)

    for batch in each_batch(JaxLoader(make_loader(x), layout=layout)):
        real = np.asarray(batch["mask"])
        rows = batch["index"][real]
        np.testing.assert_array_equal(dense(batch["data"])[real], X[rows].toarray())
        np.testing.assert_array_equal(dense(batch["layers"]["doubled"])[real], 2 * X[rows].toarray())
        np.testing.assert_array_equal(np.asarray(batch["obsm"]["pca"])[real], PCA[rows])
        assert not dense(batch["data"])[~real].any()


def test_integers_do_not_truncate_obsm() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from annbatch_torch import TorchLoader

    batch = next(iter(TorchLoader(make_loader(X, casting="unsafe"), dtype=torch.int32)))
    np.testing.assert_array_equal(batch["obsm"]["pca"].numpy(), PCA[batch["index"].numpy()])
