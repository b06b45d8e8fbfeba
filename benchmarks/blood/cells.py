"""Where do the demo's cells come from, and in which files?"""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc
import scipy.sparse as sp

LABEL = "bulk_labels"
"""Obs column of the cell types."""


def blood_cells() -> ad.AnnData:
    """Give the 700 cells with integer counts as X.

    The package has log1p of counts that were scaled per cell. Every cell has a gene that was counted once, so its
    smallest value is the scale. The values carry about four digits: within 0.2 % they must be integers.

    Raises
    ------
    ValueError
        If a value is further than that from an integer.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the stored file says about its own age
        cells = sc.datasets.pbmc68k_reduced()
    logged = sp.csr_matrix(cells.raw.X)
    scaled = np.expm1(logged.data.astype(np.float64))
    lengths = np.diff(logged.indptr)
    counts = scaled / np.repeat(np.minimum.reduceat(scaled, logged.indptr[:-1]), lengths)
    whole = np.rint(counts)
    if not np.allclose(counts, whole, rtol=2e-3, atol=0):
        raise ValueError(f"counts must be integers within 0.2 %, one is off by {np.abs(counts - whole).max()}")
    logged.data = whole.astype(np.float32)
    return ad.AnnData(X=logged, obs=cells.obs[[LABEL, "phase", "n_genes"]].copy(), var=cells.raw.var.copy())


def held_out(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose a quarter of each type: a mask, (n_obs,) bool."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        chosen[rows[: round(len(rows) / 4)]] = True
    return chosen


def write_two_files(cells: ad.AnnData, folder: Path) -> list[Path]:
    """Write ``cells`` as two files such as two laboratories would hand in.

    Each lacks other genes (one in twenty) and one cell type, and each is sorted by cell type: only a real shuffle
    makes batches of them that look like the whole.
    """
    folder.mkdir(parents=True)
    labels = cells.obs[LABEL].astype(str).to_numpy()
    first = np.arange(cells.n_obs) % 2 == 0
    first |= labels == "CD4+/CD45RA+/CD25- Naive T"
    first &= labels != "CD34+"
    paths = []
    for number, rows in enumerate([first, ~first]):
        order = np.flatnonzero(rows)
        order = order[np.argsort(labels[order], kind="stable")]
        genes = np.arange(cells.n_vars) % 20 != number
        path = folder / f"laboratory{number}.h5ad"
        cells[order, genes].copy().write_h5ad(path)
        paths.append(path)
    return paths
