"""Which small data do the checks read?

1. `make_cells` makes cells with every kind of element that a batch can carry. The values of X name their own row and
   column, so that a misplaced number says where it belongs.
2. `make_collection` and `make_modalities` write such cells, and give them back in the order in which the collection
   holds them: what SciPy's ``X[batch["index"]]`` is compared with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from annbatch.check import integer
from annbatch.loader import Loader
from annbatch.write import create_anndata_collection

MAX_VARS = 100
"""Columns up to which `value` is different for every place."""

MAX_OBS = 2**24 // MAX_VARS
"""Rows up to which float32 holds `value`."""

SMALL: dict[str, Any] = {"rows_per_store": 64, "chunk_elements": 256, "shard_elements": 1024, "progress": False}
"""Options with which a small collection has several stores, shards and chunks."""


def value(row: Any, column: Any) -> Any:
    """Give the number that a cell has for a gene, if it has one; below 2**16 for the first 655 rows."""
    return row * MAX_VARS + column + 1


def named_matrix(
    rng: np.random.Generator,
    rows: Sequence[int] | npt.NDArray[np.int64],
    columns: Sequence[int],
    *,
    density: float = 0.3,
    dtype: npt.DTypeLike = np.float32,
) -> sp.csr_matrix:
    """Make a random pattern whose elements are `value` of their place; some rows are empty, unless ``density`` is 1."""
    present = rng.random((len(rows), len(columns))) < density
    present[rng.random(len(rows)) < (0.1 if density < 1 else 0)] = False
    numbers = value(np.asarray(rows)[:, None], np.asarray(columns)[None, :])
    return sp.csr_matrix(np.where(present, numbers, 0).astype(dtype))


def awkward_obs(
    rows: Sequence[int] | npt.NDArray[np.int64], categories: Sequence[str] = ("B", "T", "NK")
) -> pd.DataFrame:
    """Make a column of each kind, some with missing values; every value follows from the row and ``categories``."""
    rows = np.asarray(rows)
    of = np.asarray(categories, dtype=object)
    codes = rows % len(of)
    return pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(np.where(rows % 5 == 4, -1, codes), categories=pd.Index(list(of))),
            "stage": pd.Categorical.from_codes(rows % 3, categories=pd.Index(["early", "mid", "late"]), ordered=True),
            "donor": pd.Series([f"donor{r % 4}" for r in rows], dtype=object).to_numpy(),
            "n_counts": rows * 10,
            "score": np.where(rows % 7 == 3, np.nan, rows / 2).astype(np.float32),
            "doublet": rows % 2 == 0,
            "age": pd.arrays.IntegerArray(rows.astype(np.int64), rows % 3 == 1),
            "treated": pd.arrays.BooleanArray(rows % 2 == 1, rows % 4 == 2),
        },
        index=pd.Index([f"cell{r}" for r in rows], dtype=object),
    )


def make_cells(n_obs: int = 120, n_vars: int = 30, *, seed: int = 0) -> ad.AnnData:
    """Make a few cells in memory, with every kind of element that a batch can carry.

    Parameters
    ----------
    n_obs
        Number of cells, at most 167,771, named ``cell0``, ``cell1``, ….
    n_vars
        Number of genes, at most 100, named ``gene0``, ``gene1``, ….
    seed
        Seed of the pattern of X.

    Returns
    -------
    AnnData
        X is CSR, (n_obs, n_vars) float32. Element (r, c) is 0 or ``100 * r + c + 1``; some rows are empty. The layer
        ``doubled`` is ``2 * X``. ``obsm["pca"]`` is dense, (n_obs, 3) float32.

        obs has a column of each kind: ``cell_type`` and ``stage`` are categorical, ``donor`` is text, ``n_counts`` and
        ``age`` are integers, ``score`` is float32, ``doublet`` and ``treated`` are booleans. ``cell_type``, ``score``,
        ``age`` and ``treated`` have missing values.

    Examples
    --------
    >>> make_cells(4, 3).shape
    (4, 3)
    """
    n_obs, n_vars = integer("n_obs", n_obs, 1, MAX_OBS + 1), integer("n_vars", n_vars, 1, MAX_VARS + 1)
    return _cells(np.arange(n_obs), n_vars, seed, "gene")


def make_collection(
    path: str | os.PathLike[str], n_obs: int = 120, n_vars: int = 30, *, seed: int = 0, **options: Any
) -> ad.AnnData:
    """Write the cells of `make_cells` as a small collection, and return them in its order.

    Parameters
    ----------
    path
        Directory to make.
    n_obs, n_vars, seed
        As for `make_cells`; ``seed`` also shuffles the collection.
    **options
        Options of `annbatch.create_anndata_collection` that leave nothing out, such as ``codec``. By default a store
        has 64 rows, and a chunk 256 elements.

    Returns
    -------
    AnnData
        The cells, in memory. Row i is the one that has the number i in ``batch["index"]`` of every loader of the
        collection.

    Examples
    --------
    >>> cells = make_collection("small")  # doctest: +SKIP
    >>> for batch in annbatch.Loader(batch_size=16).use_collection(
    ...     "small"
    ... ):  # doctest: +SKIP
    ...     assert (batch["data"].to_scipy() != cells.X[batch["index"]]).nnz == 0
    """
    cells = make_cells(n_obs, n_vars, seed=seed)
    create_anndata_collection(cells, path, **{**SMALL, "seed": seed, **options})
    return _in_order_of(path, cells)


def make_modalities(
    path: str | os.PathLike[str], n_obs: int = 60, *, seed: int = 0, **options: Any
) -> dict[str, ad.AnnData]:
    """Write a small collection of two modalities, ``rna`` (30 genes) and ``adt`` (8 proteins).

    Every tenth cell lacks ``rna``, and every sixth lacks ``adt``.

    Parameters
    ----------
    path
        Directory to make.
    n_obs
        Number of cells.
    seed
        Seed of the values and of the order.
    **options
        Options of `annbatch.create_anndata_collection`, as for `make_collection`.

    Returns
    -------
    dict of str to AnnData
        Each modality of all cells, in the order of the collection, with the matrices of `make_cells`. obs has
        ``cell_type``, ``stage``, and the boolean column ``measured``, which says which cells have the modality. For the
        other cells, matrices are zero and the other columns are missing.
    """
    rows = np.arange(integer("n_obs", n_obs, 10))
    measured = {"rna": rows % 10 != 9, "adt": rows % 6 != 0}
    widths = {"rna": 30, "adt": 8}
    # Other columns come as those of cells without modalities do.
    columns = ["cell_type", "stage"]
    given = {name: _cells(rows[has], widths[name], seed, name, columns) for name, has in measured.items()}
    create_anndata_collection([given], path, join_obs="outer", **{**SMALL, "seed": seed, **options})
    names = _names(path)
    found = {}
    for name, own in given.items():
        # -1 where the modality lacks the cell.
        places = own.obs_names.get_indexer(names)
        obs = own.obs.reindex(names)
        obs["measured"] = places >= 0
        found[name] = ad.AnnData(
            _or_zeros(own.X, places),
            obs,
            own.var,
            layers={"doubled": _or_zeros(own.layers["doubled"], places)},
            obsm={"pca": _or_zeros(own.obsm["pca"], places)},
        )
    return found


def _cells(
    rows: npt.NDArray[np.int64], n_vars: int, seed: int, prefix: str, columns: list[str] | None = None
) -> ad.AnnData:
    x = named_matrix(np.random.default_rng(seed), rows, range(n_vars))
    pca = np.stack([rows, rows / 2, -rows / 4], axis=1).astype(np.float32)
    var = pd.DataFrame(index=pd.Index([f"{prefix}{column}" for column in range(n_vars)], dtype=object))
    obs = awkward_obs(rows)[columns] if columns else awkward_obs(rows)
    return ad.AnnData(x, obs, var, layers={"doubled": sp.csr_matrix(x * 2)}, obsm={"pca": pca})


def _names(path: str | os.PathLike[str]) -> pd.Index[Any]:
    """Give the names of a collection's cells in their order."""
    return Loader(batch_size=1).use_collection(path, labels=[]).obs([]).index


def _in_order_of(path: str | os.PathLike[str], cells: ad.AnnData) -> ad.AnnData:
    places = cells.obs_names.get_indexer(_names(path))
    return ad.AnnData(
        cells.X[places],
        cells.obs.iloc[places],
        cells.var,
        layers={"doubled": cells.layers["doubled"][places]},
        obsm={"pca": cells.obsm["pca"][places]},
    )


def _or_zeros(matrix: Any, places: npt.NDArray[np.int64]) -> Any:
    """Select rows of a matrix; -1 is a row of zeros."""
    if hasattr(matrix, "tocsr"):
        return sp.csr_matrix(sp.diags((places >= 0).astype(matrix.dtype)) @ matrix[places])
    return np.where(places[:, None] >= 0, matrix[places], np.zeros_like(matrix[:1]))
