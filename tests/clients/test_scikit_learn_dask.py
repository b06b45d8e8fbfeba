"""Do estimators of scikit-learn go on exactly, and does a lazy AnnData hold a whole collection?"""

from __future__ import annotations

import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import Collection, Loader, create_anndata_collection

pytestmark = pytest.mark.filterwarnings("ignore")

N_ROWS = 90


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (N_ROWS, 7)).astype(np.float32))
    obs = pd.DataFrame(
        {"kind": pd.Categorical([("a", "b", "c")[row % 3] for row in range(N_ROWS)])},
        index=[f"cell {row}" for row in range(N_ROWS)],
    )
    folder: Path = tmp_path_factory.mktemp("numpy") / "collection"
    create_anndata_collection(ad.AnnData(x, obs), folder, seed=0, rows_per_store=40, progress=False)
    return folder


def test_partial_fit_goes_on_in_mid_epoch(path: Path) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")

    def trained(saved: bytes | None, stop: int | None = None) -> tuple[np.ndarray, bytes]:
        ds = Loader(batch_size=8, chunk_size=2, preload_nchunks=4).use_collection(path, labels=["kind"])
        estimator = linear_model.SGDClassifier(random_state=0)
        if saved is not None:
            estimator, state = pickle.loads(saved)
            ds.load_state_dict(state)
        n_had = 0
        while ds.next_epoch < 2:
            for batch in ds:
                estimator.partial_fit(batch["data"].to_scipy(), batch.codes["kind"], classes=range(3))
                n_had += 1
                if n_had == stop:
                    return estimator.coef_, pickle.dumps((estimator, ds.state_dict()))
        return estimator.coef_, b""

    whole, _ = trained(None)
    half, saved = trained(None, stop=15)
    rest, _ = trained(saved)
    assert not np.array_equal(half, whole)
    np.testing.assert_array_equal(rest, whole)


def test_estimators_see_every_row_once(path: Path) -> None:
    naive_bayes = pytest.importorskip("sklearn.naive_bayes", reason="scikit-learn is not installed")
    ds = Loader(batch_size=8, chunk_size=2, preload_nchunks=4).use_collection(path, labels=["kind"])
    estimator = naive_bayes.MultinomialNB()
    for batch in ds:
        estimator.partial_fit(batch["data"].to_scipy(), batch.codes["kind"], classes=range(3))
    (whole,) = Loader(batch_size=N_ROWS, shuffle=False).use_collection(path, labels=["kind"])
    x, codes = whole["data"].to_scipy(), whole.codes["kind"]
    np.testing.assert_array_equal(estimator.class_count_, np.bincount(codes))
    np.testing.assert_array_equal(estimator.feature_count_, [x[codes == code].sum(axis=0).A1 for code in range(3)])


def test_a_lazy_anndata_holds_a_collection(path: Path) -> None:
    pytest.importorskip("xarray", reason="xarray is not installed")
    pytest.importorskip("dask.array", reason="dask is not installed")
    stores = Collection.open(path).store_paths
    assert len(stores) == 3
    cells = ad.concat([ad.experimental.read_lazy(store) for store in stores])
    ds = Loader(batch_size=N_ROWS, shuffle=False, names=True).use_collection(path, labels=["kind"])
    (batch,) = ds
    np.testing.assert_array_equal(cells.X.compute().toarray(), batch["data"].to_scipy().toarray())
    assert list(cells.obs_names) == list(batch["labels"].index)
    assert cells.to_memory().obs["kind"].tolist() == batch["labels"]["kind"].tolist()
