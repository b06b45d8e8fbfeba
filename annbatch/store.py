"""What is in an AnnData store, and how is it opened for reading?

1. `open_anndata` takes what users pass to ``add_anndatas``: an AnnData whose X is a `sparse_dataset` (or a SciPy CSR matrix).
2. `open_path` opens one AnnData store of a collection.
3. Both give a `Store`: X as three arrays that are read by ranges, obs columns, var.

Arrays are opened with the zarrs codec pipeline, which zarr chooses when an array is opened and by a setting that the
whole process shares. It is set for the moment of opening, in the caller's thread, and put back (`fast_codecs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata.abc import CSCDataset, CSRDataset

from annbatch.elements import Elements, elements_of
from annbatch.errors import InputError, StoreError
from annbatch.flat import Flat, flat_of
from annbatch.labels import StoreColumn, columns_of_frame, columns_of_group

ORIGINAL_DTYPE = "original-dtype"
"""Attribute of a sparse element: the dtype that its values had before they were written."""


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """One opened AnnData store."""

    name: str
    """What error messages call it."""
    shape: tuple[int, int]
    """(n_obs, n_vars)."""
    indptr: Flat
    """(n_obs + 1,) element at which each row of X starts."""
    data: Elements
    """(nnz,) values of X."""
    indices: Elements
    """(nnz,) column numbers of X."""
    dtype: np.dtype[Any]
    """Type that the values of X had before they were written."""
    slow: str | None
    """Why zarr reads X; None where the direct path does."""
    columns: dict[str, StoreColumn]
    """The obs columns asked for."""
    var: pd.DataFrame
    """(n_vars, …) var of the store."""


@contextmanager
def fast_codecs() -> Iterator[None]:
    """Let arrays that are opened meanwhile use zarrs; the setting of the process is put back afterwards."""
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        yield


def open_anndata(adata: ad.AnnData, labels: Sequence[str] | None, name: str) -> Store:
    """Describe an AnnData whose X is a `CSRDataset` on a zarr store, or a CSR matrix in memory.

    Raises
    ------
    InputError
        If X is missing or something else, or a label column is not in obs.
    """
    x: Any = adata.X
    if isinstance(x, CSCDataset) or (sp.issparse(x) and x.format == "csc"):
        raise InputError(f"{name} X: must be stored by rows (CSR), got CSC; create_anndata_collection converts it")
    if not isinstance(x, CSRDataset) and not (sp.issparse(x) and x.format == "csr"):
        kind = "nothing" if x is None else type(x).__name__
        raise InputError(f"{name} X: must be a CSR sparse_dataset on a zarr store or a CSR matrix, got {kind}")
    columns = columns_of_frame(adata.obs, labels, name)
    var = adata.var
    if not isinstance(x, CSRDataset):
        return _store(name, x.shape, x.data.dtype, x, columns, var)
    group: Any = x.group
    if not isinstance(group, zarr.Group):
        raise InputError(f"{name} X: must be on a zarr store, got {type(group).__name__}; convert the file first")
    return _open_sparse(group, name, columns, var)


def open_path(path: Path, labels: Sequence[str] | None) -> Store:
    """Open one AnnData store of a collection.

    Raises
    ------
    StoreError
        If there is no readable AnnData store with a CSR matrix X at ``path``.
    InputError
        If a label column is not in obs.
    """
    try:
        root = zarr.open_group(str(path), mode="r")
        x, obs, var = root["X"], root["obs"], root["var"]
    except (OSError, KeyError, ValueError) as e:
        raise StoreError(f"{path}: cannot be opened as an AnnData store: {e}") from e
    if not isinstance(x, zarr.Group) or x.attrs.get("encoding-type") != "csr_matrix":
        kind = "dense" if isinstance(x, zarr.Array) else x.attrs.get("encoding-type")
        raise StoreError(f"{path} X: must be a csr_matrix, got {kind}")
    return _open_sparse(x, str(path), columns_of_group(obs, labels, str(path)), ad.io.read_elem(var))


def _open_sparse(group: zarr.Group, name: str, columns: dict[str, StoreColumn], var: pd.DataFrame) -> Store:
    """Reopen the arrays of a CSR group with fast codecs, and check that they fit together."""
    arrays = SimpleNamespace()
    with fast_codecs():
        for key in ("data", "indices", "indptr"):
            try:
                array = zarr.open_array(store=group.store, path=f"{group.path}/{key}".lstrip("/"), mode="r")
            except (OSError, KeyError, ValueError) as e:
                raise StoreError(f"{name} X/{key}: cannot be opened: {e}") from e
            setattr(arrays, key, array)
    n_obs, n_vars = (int(n) for n in group.attrs["shape"])  # type: ignore[union-attr]
    if arrays.indptr.shape != (n_obs + 1,):
        raise StoreError(f"{name} X/indptr: must have n_obs + 1 = {n_obs + 1} elements, got {arrays.indptr.shape}")
    if arrays.data.shape != arrays.indices.shape or arrays.data.ndim != 1:
        raise StoreError(
            f"{name} X: data and indices must be of one length, got {arrays.data.shape} and {arrays.indices.shape}"
        )
    dtype = np.dtype(str(group.attrs.get(ORIGINAL_DTYPE, arrays.data.dtype)))
    return _store(name, (n_obs, n_vars), dtype, arrays, columns, var)


def _store(
    name: str,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    arrays: Any,
    columns: dict[str, StoreColumn],
    var: pd.DataFrame,
) -> Store:
    """Choose how the arrays are read, and say it where that is not the fast way."""
    data, why = elements_of(f"{name} X/data", arrays.data)
    indices, why_indices = elements_of(f"{name} X/indices", arrays.indices)
    return Store(name, shape, flat_of(arrays.indptr), data, indices, dtype, why or why_indices, columns, var)
