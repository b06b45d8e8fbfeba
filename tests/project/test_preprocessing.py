"""Do the functions of the page on preprocessing give what scanpy gives for the same cells?

They are taken from the page itself: all definitions in it, with NumPy or CuPy for ``xp``.
"""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import annbatch

PAGE = Path(__file__).parents[2] / "docs/notebooks/preprocessing.md"
N_OBS, N_VARS, N_TOP, N_COMPONENTS = 700, 300, 60, 10


def definitions(xp: Any) -> dict[str, Any]:
    """All functions and classes that the page defines, in a namespace of their own."""
    cells = re.findall(
        r"^```\{code-cell\} ipython3\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    parsed = ast.parse("\n".join(cells))
    parsed.body = [node for node in parsed.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names: dict[str, Any] = {"annbatch": annbatch, "np": np, "pd": pd, "sp": sp, "xp": xp}
    exec(compile(parsed, PAGE.name, "exec"), names)
    return names


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Counts of four groups of cells, of very different depth and genes of very different mean; some are empty."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 4, N_OBS)
    rates = np.exp(rng.normal(-1.5, 1.5, N_VARS))[None] * np.exp(rng.normal(0, 0.5, (N_OBS, 1)))
    rates *= np.exp(rng.normal(0, 0.6, (4, N_VARS)))[groups]
    rates[:, 7] = rates[11] = 0
    return ad.AnnData(
        sp.csr_matrix(rng.poisson(rates).astype(np.float32)),
        obs=pd.DataFrame(index=[f"cell{row}" for row in range(N_OBS)]),
        var=pd.DataFrame(index=[f"g{column}" for column in range(N_VARS)]),
    )


@pytest.fixture(scope="module")
def scanpys(cells: ad.AnnData) -> ad.AnnData:
    # Dense: for sparse cells scanpy compiles loops.
    whole = ad.AnnData(cells.X.toarray(), cells.obs.copy(), cells.var.copy())
    with warnings.catch_warnings():
        # What scanpy and its dependencies say about themselves is no concern of ours.
        warnings.simplefilter("ignore")
        sc = pytest.importorskip("scanpy", reason="scanpy is not installed")
        sc.pp.normalize_total(whole, target_sum=1e4)
        sc.pp.log1p(whole)
        sc.pp.highly_variable_genes(whole, n_top_genes=N_TOP, flavor="seurat")
        sc.pp.pca(whole, n_comps=N_COMPONENTS, svd_solver="covariance_eigh", mask_var="highly_variable")
    return whole


def check(batches: Any, xp: Any, cells: ad.AnnData, scanpys: ad.AnnData) -> None:
    """Go through the three passes of the page, each beside scanpy's result."""
    page = definitions(xp)

    def host(array: Any) -> Any:
        return array.get() if hasattr(array, "get") else array

    moments = page["Moments"]()
    for batch in batches:
        moments.update(page["normalised"](page["csr"](batch)))
    exact = cells.X.toarray().astype(np.float64)
    exact *= 1e4 / np.maximum(exact.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(host(moments.mean), exact.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(host(moments.variance), exact.var(axis=0, ddof=1), rtol=1e-5)

    dispersion = page["standardised_dispersion"](moments.mean, moments.variance)
    theirs = scanpys.var["dispersions_norm"].to_numpy()
    np.testing.assert_array_equal(np.isnan(dispersion), np.isnan(theirs))
    np.testing.assert_allclose(dispersion, theirs, rtol=1e-4, atol=1e-4)
    chosen = np.sort(dispersion.nlargest(N_TOP).index.to_numpy())
    np.testing.assert_array_equal(chosen, np.flatnonzero(scanpys.var["highly_variable"]))

    covariance = page["Covariance"]()
    for batch in batches:
        covariance.update(page["log_chosen"](batch, chosen))
    mean, variances, directions = covariance.components(N_COMPONENTS)
    np.testing.assert_allclose(host(variances), scanpys.uns["pca"]["variance"], rtol=1e-4)
    coordinates = np.full((N_OBS, N_COMPONENTS), np.nan)
    for batch in batches:
        coordinates[host(batch["index"])] = host((page["log_chosen"](batch, chosen) - mean) @ directions)
    theirs = scanpys.obsm["X_pca"]
    coordinates *= np.sign((coordinates * theirs).sum(axis=0))
    np.testing.assert_allclose(coordinates, theirs, atol=2e-3 * theirs.std())


@pytest.fixture
def ds(tmp_path: Path, cells: ad.AnnData) -> Any:
    annbatch.create_anndata_collection(cells, tmp_path / "store", shuffle=False, progress=False)
    with annbatch.Loader(batch_size=128, chunk_size=32, preload_nchunks=8) as ds:
        yield ds.use_collection(tmp_path / "store")


def test_on_the_cpu(ds: annbatch.Loader, cells: ad.AnnData, scanpys: ad.AnnData) -> None:
    check(ds, np, cells, scanpys)


@pytest.mark.gpu
def test_on_a_gpu(ds: annbatch.Loader, cells: ad.AnnData, scanpys: ad.AnnData) -> None:
    cupy = pytest.importorskip("cupy")
    from annbatch_cupy import CupyLoader

    check(CupyLoader(ds), cupy, cells, scanpys)
