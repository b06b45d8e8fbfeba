"""What is in an AnnData store, and how is it opened for reading?

1. `open_anndata` takes what users pass to ``add_anndatas``: an AnnData whose X is a `sparse_dataset` (or in memory).
2. `open_stores` opens the AnnData stores of a collection; `annbatch.stores.h5ad_file` opens ``.h5ad`` files.
3. All give a `Store`: the matrices asked for as arrays that are read by ranges, obs columns, var.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata.abc import CSCDataset, CSRDataset

from annbatch import summary
from annbatch.errors import CorruptStoreError, InputError, StoreError, naming
from annbatch.remote.cached_reads import cached
from annbatch.remote.disk_cache import DiskCache
from annbatch.shards.codecs import numcodecs_are_known
from annbatch.shards.file_stamp import FileStamp
from annbatch.stores.array_opening import open_each, part_of, reopened
from annbatch.stores.collection import Collection
from annbatch.stores.elements import Elements, elements_of
from annbatch.stores.hdf5_arrays import Hdf5Array, with_filters
from annbatch.stores.hdf5_arrays import describe as described
from annbatch.stores.hdf5_links import stamp_behind
from annbatch.stores.label_columns import StoreColumn
from annbatch.stores.lazy_tables import in_memory, is_lazy
from annbatch.stores.manifest import StoreEntry
from annbatch.stores.obs_access import Obs, ObsInFile, ObsInMemory, columns_there, obs_of
from annbatch.stores.obs_rows import check_length
from annbatch.stores.obsm_tables import array_of_table
from annbatch.stores.refusals import refuse_executable
from annbatch.stores.slices import ArraySlices, slices_of
from annbatch.stores.store_var import StoreVar, VarInMemory
from annbatch.stores.stored_frame import attribute

ORIGINAL_DTYPE = "original-dtype"
"""Attribute of a matrix: the dtype that its values had before they were written."""

_PLAIN_DRIVERS = ("sec2", "stdio")
"""HDF5's drivers for files that are what the system's file of that name is."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseMatrix:
    """A CSR matrix of one store."""

    shape: tuple[int, int]
    """(n_obs, n_columns)."""
    dtype: np.dtype[Any]
    """Type that the values had before they were written."""
    indptr: ArraySlices
    """(n_obs + 1,) element at which each row starts."""
    data: Elements
    """(nnz,) values."""
    indices: Elements
    """(nnz,) column numbers."""
    slow: str | None
    """Why zarr or h5py reads it; None where the direct path does."""
    file: FileStamp | None = None
    """The HDF5 file that holds it, and others that hold parts of it; None if none does."""


@dataclass(frozen=True, slots=True, eq=False)
class DenseMatrix:
    """A dense matrix of one store."""

    shape: tuple[int, int]
    """(n_obs, n_columns)."""
    dtype: np.dtype[Any]
    """Type that the values had before they were written."""
    values: Elements
    """(n_obs * n_columns,) values, row by row."""
    slow: str | None
    """Why zarr or h5py reads it; None where the direct path does."""
    file: FileStamp | None = None
    """The HDF5 file that holds it, and others that hold parts of it; None if none does."""


Matrix = SparseMatrix | DenseMatrix


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What of a store a loader carries."""

    labels: Sequence[str] | None
    """Names of obs columns; None means all."""
    elements: tuple[str, ...]
    """``"X"``, ``"layers/…"``, ``"obsm/…"``."""


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """One opened AnnData store."""

    name: str
    """What error messages call it."""
    shape: tuple[int, int]
    """(n_obs, n_vars)."""
    matrices: dict[str, Matrix]
    """The elements asked for."""
    columns: dict[str, StoreColumn]
    """The obs columns asked for."""
    obs: Obs
    """All of obs, opened when it is asked for."""
    var: StoreVar
    """(n_vars, …) var of the store."""

    @property
    def files(self) -> list[FileStamp]:
        """The HDF5 files that hold it, or parts of it, each once."""
        found = [self.obs.stamp] if isinstance(self.obs, ObsInFile) else []
        found += [matrix.file for matrix in self.matrices.values() if matrix.file is not None]
        return list(dict.fromkeys(one for stamp in found for one in stamp.each))


@numcodecs_are_known()
def open_anndata(adata: ad.AnnData, wanted: Wanted, name: str, cache: DiskCache | None = None) -> Store:
    """Describe an AnnData whose matrices are sparse datasets on a zarr store, zarr arrays, or in memory.

    Those in object stores are read through a ``cache``, if there is one.

    Raises
    ------
    InputError
        If a matrix is missing or of another kind, or a label column is not in obs.
    """
    parts: dict[str, Any] = {"X": adata.X, "layers": adata.layers, "obsm": adata.obsm}
    matrices = {}
    for element in wanted.elements:
        part, _, key = element.partition("/")
        if key and key not in parts[part]:
            held = summary.short(sorted(k for k in parts[part] if k))
            raise InputError(f"{name}: {part} must hold {key!r}, got {held}")
        with naming(f"{name} {element}"):
            matrices[element] = _given(parts[part][key] if key else parts[part], f"{name} {element}", cache)
    obs = ObsInMemory.of(adata, name)
    shape = adata.n_obs, matrices["X"].shape[1]
    return checked(
        Store(name, shape, matrices, columns_there(obs, wanted.labels), obs, VarInMemory(in_memory(adata.var)))
    )


@numcodecs_are_known()
def open_stores(collection: Collection, wanted: Wanted) -> list[Store]:
    """Open the AnnData stores of a collection; those that are not on a disk many at a time.

    Raises
    ------
    CorruptStoreError
        If a store has another shape than the collection says.
    StoreError
        If there is no readable AnnData store, or a matrix is neither CSR nor dense.
    InputError
        If a label column, a layer or an element of obsm is not there.
    """
    is_local = isinstance(collection.path, Path)

    def open_one(store: StoreEntry) -> Store:
        name, recorded = f"{collection.path}/{store.name}", collection.recorded(store)
        return open_store(collection.group(store), wanted, name, recorded, reopen=is_local)

    stores = open_each(open_one, collection.stores, is_remote=not is_local)
    for store, entry in zip(stores, collection.stores, strict=True):
        if store.shape != (recorded := (entry.n_obs, collection.n_vars)):
            raise CorruptStoreError(
                f"{store.name}: must have the shape {recorded} of the collection, got {store.shape}"
            )
    return stores


def open_store(
    root: zarr.Group,
    wanted: Wanted,
    name: str,
    recorded: Mapping[str, int] = MappingProxyType({}),
    *,
    reopen: bool = True,
) -> Store:
    """Open one AnnData store; raises as `open_stores` does.

    What is ``recorded`` (keys of the group's store, and checksums) must be there, and as it was, when it is read.
    """
    matrices = {}
    for element in wanted.elements:
        with naming(f"{name} {element}"):
            try:
                found = root[element]
            except KeyError as e:
                raise InputError(f"{name}: {element} is missing") from e
            matrices[element] = _stored(found, f"{name} {element}", recorded, reopen=reopen)
    with naming(f"{name} obs"):
        obs = obs_of(root, name, recorded)
        columns = columns_there(obs, wanted.labels)
    with naming(f"{name} var"):
        refuse_executable(root["var"], f"{name} var")
        var: Any = ad.io.read_elem(root["var"])
        if not isinstance(var, pd.DataFrame):
            raise StoreError(f"{name} var: must be a table, got {type(var).__name__}")
    return checked(Store(name, matrices["X"].shape, matrices, columns, obs, VarInMemory(var)))


def checked(store: Store) -> Store:
    """Give a store if its parts fit together; raises StoreError if not."""
    n_obs, n_vars = store.shape
    for element, matrix in store.matrices.items():
        columns = matrix.shape[1] if element.startswith("obsm/") else n_vars
        if matrix.shape != (n_obs, columns):
            raise StoreError(f"{store.name} {element}: must have the shape {(n_obs, columns)}, got {matrix.shape}")
    for column in store.columns.values():
        check_length(column, n_obs)
    if len(store.var) != n_vars:
        raise StoreError(f"{store.name} var: must have n_vars = {n_vars} rows, got {len(store.var)}")
    return store


def _given(found: Any, name: str, cache: DiskCache | None) -> Matrix:
    """Describe what stands in an AnnData object."""
    form = getattr(found, "format", None) if sp.issparse(found) else None
    if isinstance(found, CSCDataset) or form == "csc":
        raise InputError(f"{name}: must be stored by rows (CSR), got CSC; create_anndata_collection converts it")
    if isinstance(found, CSRDataset):
        found = found.group
    if isinstance(found, h5py.Group | h5py.Dataset):
        with naming(name):
            return matrix_in_hdf5(found, name, stamp_of(found.file, name))
    if isinstance(found, zarr.Group):
        return _stored(found, name, cache=cache)
    if form == "csr":
        _check_numbers(found.dtype, name)
        return _sparse(name, found.shape, found.data.dtype, found)
    if isinstance(found, zarr.Array):
        return _stored(found, name, cache=cache)
    if isinstance(found, pd.DataFrame):
        found = array_of_table(found, name)
    if isinstance(found, np.ma.MaskedArray):
        raise InputError(f"{name}: must not be a masked array, whose mask would be lost; fill it, as X.filled(0) does")
    if isinstance(found, np.ndarray) and found.ndim == 2:
        _check_numbers(found.dtype, name)
        return _dense(name, np.ascontiguousarray(found))
    if isinstance(found, np.ndarray):
        raise InputError(f"{name}: must have two dimensions, got {found.ndim}: its shape is {found.shape}")
    kind, remedy = type(found).__name__, "create_anndata_collection builds a collection from other files"
    if found is None:
        kind, remedy = "nothing", "to read a layer, pass AnnData(X=adata.layers[…], obs=adata.obs, var=adata.var)"
    elif is_lazy(found):
        kind, remedy = "a lazy dask array", "pass anndata.io.sparse_dataset of its group, or the zarr array"
    raise InputError(
        f"{name}: must be a CSR sparse_dataset on a zarr store or an HDF5 file, an array of one, or in memory, got "
        f"{kind}; {remedy}"
    )


def _stored(
    found: Any,
    name: str,
    recorded: Mapping[str, int] = MappingProxyType({}),
    *,
    reopen: bool = True,
    cache: DiskCache | None = None,
) -> Matrix:
    """Reopen a CSR group or a dense array of a zarr store with fast codecs, and check that its parts fit together."""
    store = cached(found.store, cache)

    def part(path: str) -> zarr.Array[Any]:
        return reopened(found, path, name, store) if reopen else part_of(found, path, name)

    refuse_executable(found, name)
    if isinstance(found, zarr.Array):
        if found.ndim != 2:
            raise StoreError(f"{name}: must have two dimensions, got {found.ndim}: its shape is {found.shape}")
        _check_numbers(found.dtype, name)
        return _dense(name, part(""), recorded)
    if found.attrs.get("encoding-type") == "dataframe":
        return _given(ad.io.read_elem(found), name, None)
    if found.attrs.get("encoding-type") != "csr_matrix":
        raise StoreError(
            f"{name}: must be dense, a csr_matrix or a table of numbers, got {found.attrs.get('encoding-type')}"
        )
    shape = tuple(int(n) for n in found.attrs["shape"])
    return _csr(found, part, shape, name, recorded)


def matrix_in_hdf5(found: h5py.Group | h5py.Dataset, name: str, stamp: FileStamp) -> Matrix:
    """Describe a CSR group or a dense dataset of an open HDF5 file.

    Raises
    ------
    InputError
        If it is CSC, or a table with other columns than of numbers.
    StoreError
        If it is something else, or its parts do not fit together.
    """
    stamp = stamp_behind(found, stamp)
    if isinstance(found, h5py.Dataset):
        if found.ndim != 2:
            raise StoreError(f"{name}: must have two dimensions, got {found.ndim}: its shape is {found.shape}")
        _check_numbers(found.dtype, name)
        original = _original_dtype(found, found.dtype, name)
        return replace(_dense(name, described(found, stamp)), dtype=original, file=stamp)
    # AnnData before 0.7 had other names for the attributes.
    encoding = attribute(found, "encoding-type", attribute(found, "h5sparse_format"))
    if encoding == "dataframe":
        return _given(with_filters(found, name, lambda: ad.io.read_elem(found)), name, None)
    if encoding in ("csc_matrix", "csc"):
        raise InputError(f"{name}: must be stored by rows (CSR), got CSC; create_anndata_collection converts it")
    if encoding not in ("csr_matrix", "csr"):
        raise StoreError(f"{name}: must be dense, a csr_matrix or a table of numbers, got {encoding}")
    shape = tuple(int(n) for n in found.attrs["shape" if "shape" in found.attrs else "h5sparse_shape"])

    def part(path: str) -> Hdf5Array:
        return described(found[path[1:]], stamp)

    return replace(_csr(found, part, shape, name), file=stamp)


def stamp_of(file: h5py.File, name: str) -> FileStamp:
    """Take the stamp of an open HDF5 file; raises InputError unless it is one on a disk, open for reading only."""
    if file.mode != "r" or file.driver not in _PLAIN_DRIVERS:
        raise InputError(
            f"{name}: its HDF5 file must be on disk and open for reading only, as ad.read_h5ad(…, backed='r') "
            f"opens it, got {file.filename} with mode {file.mode!r} and driver {file.driver!r}"
        )
    return FileStamp.of(Path(file.filename).absolute())


def _csr(
    group: Any,
    part: Callable[[str], Any],
    shape: tuple[int, ...],
    name: str,
    recorded: Mapping[str, int] = MappingProxyType({}),
) -> SparseMatrix:
    """Describe a CSR matrix whose arrays ``part`` opens, and check that they fit together."""
    arrays = SimpleNamespace(**{key: part(f"/{key}") for key in ("data", "indices", "indptr")})
    if arrays.indptr.shape != (shape[0] + 1,):
        raise StoreError(f"{name}/indptr: must have n_obs + 1 = {shape[0] + 1} elements, got {arrays.indptr.shape}")
    if arrays.data.shape != arrays.indices.shape or arrays.data.ndim != 1:
        raise StoreError(
            f"{name}: data and indices must have the same length, got {arrays.data.shape} and {arrays.indices.shape}"
        )
    for key, kinds in (("data", "biuf"), ("indices", "iu"), ("indptr", "iu")):
        _check_numbers(getattr(arrays, key).dtype, f"{name}/{key}", kinds)
    dtype = _original_dtype(group, arrays.data.dtype, name)
    return _sparse(name, (shape[0], shape[1]), dtype, arrays, recorded)


def _original_dtype(element: Any, stored: np.dtype[Any], name: str) -> np.dtype[Any]:
    """Give the type that the values of an element had before they were written."""
    dtype = np.dtype(str(getattr(element, "attrs", {}).get(ORIGINAL_DTYPE, stored))).newbyteorder("=")
    _check_numbers(dtype, f"{name} {ORIGINAL_DTYPE}")
    return dtype


def _check_numbers(dtype: np.dtype[Any], name: str, kinds: str = "biuf") -> None:
    if dtype.kind not in kinds or dtype.itemsize > 8:
        raise StoreError(f"{name}: must be {'numbers' if 'f' in kinds else 'integers'} of at most 64 bits, got {dtype}")


def _sparse(
    name: str,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    arrays: Any,
    recorded: Mapping[str, int] = MappingProxyType({}),
) -> SparseMatrix:
    data, why_data = elements_of(f"{name}/data", arrays.data, recorded)
    indices, why_indices = elements_of(f"{name}/indices", arrays.indices, recorded)
    indptr = slices_of(f"{name}/indptr", arrays.indptr, recorded)
    return SparseMatrix(shape, dtype, indptr, data, indices, why_data or why_indices)


def _dense(name: str, array: Any, recorded: Mapping[str, int] = MappingProxyType({})) -> DenseMatrix:
    values, why = elements_of(name, array, recorded)
    dtype = _original_dtype(array, array.dtype, name)
    return DenseMatrix(array.shape, dtype, values, why)
