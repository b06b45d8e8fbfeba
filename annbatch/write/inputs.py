"""What is in an input file, and how are its rows read?

1. `describe` opens a ``.h5ad`` file or a ``.zarr`` directory (v2 or v3), checks that it is AnnData with cells, genes
   and X, and reads obs and var.
2. `read_blocks` yields the rows of X or of a layer, a bounded piece at a time, as CSR with the joined genes as columns.
3. `read_obsm` reads one obsm array.

Whether the file holds CSR, CSC or a dense array ends here. CSC has no rows to read one by one, so it is turned in
memory.
Layouts of before AnnData 0.7, in which obs is one compound dataset, are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import zarr

from annbatch.batch import CSR
from annbatch.errors import AnnbatchError, InputError, MissingInputError

BLOCK_ELEMENTS = 2**24
"""How many elements `read_blocks` reads at a time, unless a single row has more."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input, described."""

    path: str
    """As the caller gave it."""
    obs: pd.DataFrame
    """(n_obs, …) with string names."""
    var: pd.DataFrame
    """(n_vars, …) with unique string names."""
    elements: tuple[str, ...]
    """What `read_blocks` can read: ``"X"`` and ``"layers/{name}"``."""
    obsm: Mapping[str, tuple[int, ...] | None]
    """Name of each obsm element to the shape of one row; None if it is no numeric array."""

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.obs)


def as_paths(adata_paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Give the inputs' paths as strings; a single path counts as a list of one.

    Raises
    ------
    InputError
        If there is none.
    """
    if isinstance(adata_paths, str | os.PathLike):
        adata_paths = [adata_paths]
    paths = [os.fspath(path) for path in adata_paths]
    if not paths:
        raise InputError("adata_paths must name at least one input, got none")
    return paths


def describe(path: str) -> Source:
    """Open the AnnData file ``path`` and say what it holds; the values of X stay unread.

    Raises
    ------
    MissingInputError
        If nothing is there.
    InputError
        If it is no AnnData file, X is missing, it has no cells or no genes, or its var names are not unique.
    """
    with _opened(path) as root:
        obs, var = _read_frame(root, "obs", path), _read_frame(root, "var", path)
        if "X" not in root or root["X"].attrs.get("encoding-type") == "null":
            raise InputError(f"{path}: X is missing")
        for name, frame in (("obs", obs), ("var", var)):
            if not len(frame):
                raise InputError(f"{path}: {name} must have at least one row, got 0")
        duplicated = var.index[var.index.duplicated()].unique()
        if len(duplicated):
            raise InputError(f"{path}: var names must be unique, got more than one of {list(duplicated[:5])}")
        keys = ["X", *(f"layers/{name}" for name in root.get("layers", ()))]
        for key in keys:
            _check_matrix(root[key], key, (len(obs), len(var)), path)
        obsm = {name: _row_shape(root["obsm"][name], len(obs)) for name in root.get("obsm", ())}
    return Source(path, obs, var, tuple(keys), obsm)


def read_blocks(
    source: Source, key: str, columns: npt.NDArray[np.int64], n_vars: int, block_elements: int = BLOCK_ELEMENTS
) -> Iterator[CSR]:
    """Yield all rows of ``source``'s element ``key``, in order, as CSR pieces of about ``block_elements`` elements.

    Parameters
    ----------
    columns
        (source's n_vars,) the joined column of each gene, -1 where the gene is left out.
    n_vars
        Number of joined columns.

    Yields
    ------
    CSR
        Shape (rows of the piece, ``n_vars``), columns ascending within a row; explicit zeros are kept.

    Raises
    ------
    InputError
        If a row has two entries for one gene, or the file cannot be read.
    """
    row = 0
    with _opened(source.path) as root:
        where = f"{source.path}: {key}"
        for piece in _row_pieces(root[key], source.n_obs, block_elements, where):
            block = _joined(piece, columns, n_vars, where, row)
            row += block.shape[0]
            yield block


def read_obsm(source: Source, name: str) -> npt.NDArray[Any]:
    """Read obsm element ``name``, (n_obs, …)."""
    with _opened(source.path) as root:
        return np.asarray(root["obsm"][name][...])


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """The root group of ``path``; whatever goes wrong with the file inside becomes an InputError that names it."""
    if not Path(path).exists():
        raise MissingInputError(f"{path}: no such file or directory")
    try:
        if Path(path).is_dir():
            root: Any = zarr.open_group(path, mode="r")
            yield root
        elif not h5py.is_hdf5(path):
            raise InputError(
                f"{path}: must be an AnnData file, a .h5ad (HDF5) file or a .zarr directory; this is neither"
            )
        else:
            with h5py.File(path, mode="r") as file:
                yield file
    except (AnnbatchError, MemoryError):
        raise
    except Exception as e:
        raise InputError(f"{path}: cannot be read as AnnData: {type(e).__name__}: {e}") from e


def _read_frame(root: Any, name: str, path: str) -> pd.DataFrame:
    encoding = root.attrs.get("encoding-type", "anndata")
    if encoding != "anndata" or name not in root:
        raise InputError(
            f"{path}: must be an AnnData file, got one with encoding-type {encoding!r} and the keys {sorted(root)}"
        )
    frame = ad.io.read_elem(root[name])
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"{path}: {name} is in an outdated layout; read it with anndata and write it again")
    frame.index = pd.Index([str(label) for label in frame.index], dtype=object, name=frame.index.name)
    return frame


def _is_array(element: Any) -> bool:
    return isinstance(element, h5py.Dataset | zarr.Array)


def _check_matrix(element: Any, key: str, shape: tuple[int, int], path: str) -> None:
    found = element if _is_array(element) else ad.io.sparse_dataset(element)
    if tuple(found.shape) != shape:
        raise InputError(f"{path}: {key} must have the shape of obs and var {shape}, got {tuple(found.shape)}")
    if np.dtype(found.dtype).kind not in "biuf":
        raise InputError(f"{path}: {key} must hold real numbers, got {found.dtype}")


def _row_shape(element: Any, n_obs: int) -> tuple[int, ...] | None:
    if not _is_array(element) or not element.shape or element.shape[0] != n_obs or element.dtype.kind not in "biuf":
        return None
    return tuple(element.shape[1:])


def _row_pieces(element: Any, n_obs: int, block_elements: int, where: str) -> Iterator[CSR | sp.csr_matrix]:
    if _is_array(element):
        step = max(1, block_elements // max(element.shape[1], 1))
        for start in range(0, n_obs, step):
            dense = np.asarray(element[start : start + step])
            # SciPy has no sparse matrix of float16.
            dense = (
                dense.astype(np.float32) if dense.dtype == np.float16 else dense.astype(dense.dtype.newbyteorder("="))
            )
            yield sp.csr_matrix(dense)
        return
    dataset = ad.io.sparse_dataset(element)
    if dataset.format == "csc":
        yield dataset.to_memory().tocsr()
        return
    indptr = element["indptr"][...].astype(np.int64)
    for start, stop in _cut(indptr, block_elements, where):
        part = slice(indptr[start], indptr[stop])
        data, indices = element["data"][part], element["indices"][part]
        if len(data) != part.stop - part.start or len(indices) != len(data):
            raise InputError(f"{where}: data and indices must have the {indptr[-1]} elements that indptr says")
        data = data.astype(np.float32 if data.dtype == np.float16 else data.dtype.newbyteorder("="), copy=False)
        yield CSR(data, indices, indptr[start : stop + 1] - indptr[start], (stop - start, dataset.shape[1]))


def _cut(indptr: npt.NDArray[np.int64], block_elements: int, where: str) -> Iterator[tuple[int, int]]:
    """Cut rows into consecutive ranges of at most ``block_elements`` elements, or of one row."""
    start, n_rows = 0, len(indptr) - 1
    if indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise InputError(f"{where}: indptr must start at 0 and never fall")
    while start < n_rows:
        stop = int(np.searchsorted(indptr, indptr[start] + block_elements, side="right")) - 1
        stop = min(max(stop, start + 1), n_rows)
        yield start, stop
        start = stop


def _joined(
    matrix: CSR | sp.csr_matrix, columns: npt.NDArray[np.int64], n_vars: int, where: str, first_row: int
) -> CSR:
    """Rename the columns of ``matrix``, leave out what has none, and sort each row by column."""
    data, indices, indptr = matrix.data, matrix.indices, matrix.indptr.astype(np.int64)
    if len(indices) and not (indices.min() >= 0 and indices.max() < len(columns)):
        raise InputError(
            f"{where}: column numbers must be in [0, {len(columns)}), got {indices.min()} to {indices.max()}"
        )
    indices = columns[indices]
    kept = indices >= 0
    if not kept.all():
        indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
        data, indices = data[kept], indices[kept]
    if not _ascending(indices, indptr).all():
        renamed = sp.csr_matrix((data, indices, indptr), shape=(matrix.shape[0], n_vars), copy=True)
        renamed.sort_indices()
        data, indices = renamed.data, renamed.indices
        bad = np.flatnonzero(~_ascending(indices, indptr))
        if len(bad):
            row = int(np.searchsorted(indptr, bad[0] + 1, side="right")) - 1 + first_row
            raise InputError(f"{where}: a row must have at most one entry for a gene, row {row} has several")
    return CSR(data, indices, indptr, (matrix.shape[0], n_vars))


def _ascending(indices: npt.NDArray[Any], indptr: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """(nnz - 1,) whether each element's column is below that of the next one of the same row."""
    ascending: npt.NDArray[np.bool_] = indices[1:] > indices[:-1]
    starts = indptr[1:-1]
    ascending[starts[(starts > 0) & (starts < len(indices))] - 1] = True
    return ascending
