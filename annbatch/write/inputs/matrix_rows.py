"""How are some rows of an input's matrix read, whatever it is stored as?

1. `matrix_of` says how an element is laid out: CSR, CSC or dense, and how its parts are sliced. Contiguous HDF5
   datasets and local sharded zarr arrays are read without their libraries, so that threads need not wait for a lock.
2. `read_rows` yields rows a bounded piece at a time, as CSR with the joined genes as columns; `read_dense` as dense.

Elements are read in the order in which they lie in the file, each once. What is not stored by rows, such as CSC, is
turned first, by `annbatch.write.inputs.transpose`. `Matrix.row_starts` checks ``indptr``, before any rows are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import h5py
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import zarr

from annbatch.batch import CSR
from annbatch.errors import InputError
from annbatch.shards.local_array import ShardedArray
from annbatch.stores.anndata_store import ORIGINAL_DTYPE
from annbatch.stores.array_opening import direct_array
from annbatch.stores.elements import workspace
from annbatch.stores.lazy_tables import is_lazy
from annbatch.stores.refusals import refuse_executable
from annbatch.stores.stored_frame import attribute, is_array
from annbatch.write.inputs.narrow_types import ValueScan

Format = Literal["csr", "csc", "dense", "coordinate", "transposed"]
NOT_BY_ROWS: tuple[Format, ...] = ("csc", "coordinate", "transposed")
"""What has no rows that can be read."""
DENSE: tuple[Format, ...] = ("dense", "transposed")
"""What stores zeros, too."""
Ints = npt.NDArray[np.int64]

_SPARSE = ("csr_matrix", "csc_matrix")
BLOCK_ELEMENTS = 2**18
"""How many elements are read at a time, unless a single row has more."""


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """A matrix of an input, not read yet."""

    format: Format
    shape: tuple[int, int]
    """(n_obs, n_columns)."""
    dtype: np.dtype[Any]
    """Type that the values are to have: what they had before they were narrowed, if they were."""
    data: Any
    """Gives (nnz,) values for slices; of a dense matrix, rows; of a transposed one, which is dense too, columns. Has
    ``blocks`` if it is a list of coordinates, which gives elements in any order."""
    indices: Any = None
    """Gives (nnz,) column numbers (row numbers if CSC) for slices; None if dense."""
    indptr: Any = None
    """Gives (n_obs + 1,) (n_columns + 1 if CSC) for slices; None if dense."""
    places: Ints | None = None
    """Of what has no rows: (n_stored_rows,) the row that each becomes, -1 where it is left out; None if all stay."""

    @property
    def nnz(self) -> int:
        """Stored elements."""
        return self.shape[0] * self.shape[1] if self.format in DENSE else int(self.data.shape[0])

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """Rows and columns of what is decoded at once, if it is dense; one row where nothing has to be."""
        if isinstance(self.data, ShardSlices):
            return min(max(1, self.data.chunk_elements // max(1, self.shape[1])), self.shape[0]), self.shape[1]
        rows, columns = getattr(self.data, "chunks", None) or (1, self.shape[1])
        return min(rows, self.shape[0]), min(columns, self.shape[1])

    @property
    def n_stored_rows(self) -> int:
        """Rows in the file."""
        return self.shape[0] if self.places is None else len(self.places)

    def row_starts(self, where: str) -> Ints:
        """Read ``indptr``: (n + 1,) int64.

        Raises
        ------
        InputError
            If it falls, or does not fit the elements.
        """
        indptr = np.asarray(self.indptr[:]).astype(np.int64)
        if not len(indptr) or indptr[0] != 0 or (np.diff(indptr) < 0).any():
            raise InputError(f"{where}: indptr must start at 0 and never fall")
        if indptr[-1] != self.data.shape[0] or self.indices.shape[0] != self.data.shape[0]:
            raise InputError(f"{where}: data and indices must have {indptr[-1]} elements, the last value of indptr")
        return indptr


class FileSlices:
    """A contiguous, uncompressed HDF5 dataset, read as what it is: bytes in a row in a file.

    The kernels of loaders could read it, too (`annbatch.stores.hdf5_arrays`), but cut it into small chunks: for slices
    one read takes less time.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._path, self._offset = dataset.file.filename, dataset.id.get_offset()
        self.shape, self.dtype = dataset.shape, dataset.dtype

    def __getitem__(self, part: slice) -> npt.NDArray[Any]:
        start, stop, _ = part.indices(self.shape[0])
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        values = np.fromfile(
            self._path, self.dtype, (stop - start) * width, offset=self._offset + start * width * self.dtype.itemsize
        )
        if len(values) != (stop - start) * width:
            raise OSError(f"ends before element {stop} of {self.shape[0]}")
        return values.reshape(-1, *self.shape[1:])


class FieldRows:
    """One field of an HDF5 dataset or zarr array of records, as rows."""

    def __init__(self, records: Any, name: str, width: int) -> None:
        self._records, self._name = records, name
        self.shape, self.dtype = (records.shape[0], width), records.dtype[name].base

    def __getitem__(self, part: slice) -> npt.NDArray[Any]:
        return np.asarray(self._records[part][self._name]).reshape(-1, self.shape[1])


class ShardSlices:
    """A local zarr v3 array that the kernels read."""

    def __init__(self, array: ShardedArray) -> None:
        self._array, self.shape, self.dtype = array, array.shape, array.dtype
        self.chunk_elements = array.chunk_elements

    def __getitem__(self, part: slice) -> npt.NDArray[Any]:
        start, stop, _ = part.indices(self.shape[0])
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        bounds = np.array([[start], [stop]]) * width
        return self._array.read_ranges(workspace(), *bounds).reshape(-1, *self.shape[1:])


@dataclass(frozen=True, slots=True)
class Joined:
    """Some rows with the joined genes as columns."""

    rows: CSR
    """Columns ascending within a row."""
    n_lost: int
    """Elements of these rows whose gene is left out."""
    counts_lost: int | None
    """Sum of their values; None if these are no counts."""


def matrix_of(element: Any, where: str) -> Matrix:
    """Describe a matrix of a file, of AnnData in memory, or one that was described before.

    Raises
    ------
    InputError
        If it is no matrix of real numbers.
    """
    if isinstance(element, Matrix):
        return element
    if isinstance(element, np.ma.MaskedArray):
        raise InputError(f"{where} must not be a masked array, whose mask would be lost; fill it, as X.filled(0) does")
    form = getattr(element, "format", None) if sp.issparse(element) else None
    if isinstance(element, np.ndarray) or is_array(element):
        if element.ndim != 2:
            raise InputError(f"{where} must have two dimensions, got {element.ndim}: its shape is {element.shape}")
        original = dict(getattr(element, "attrs", {})).get(ORIGINAL_DTYPE, element.dtype)
        found = Matrix("dense", (element.shape[0], element.shape[1]), np.dtype(str(original)), _slices(element, where))
    elif form in ("csr", "csc"):
        found = Matrix(form, element.shape, element.data.dtype, element.data, element.indices, element.indptr)
    elif isinstance(element, h5py.Group | zarr.Group) and _is_sparse(element):
        dataset = ad.io.sparse_dataset(element)
        parts: list[Any] = [element[name] for name in ("data", "indices", "indptr")]
        original = element.attrs.get(ORIGINAL_DTYPE, parts[0].dtype)
        shape = (int(dataset.shape[0]), int(dataset.shape[1]))
        found = Matrix(dataset.format, shape, np.dtype(str(original)), *(_slices(part, where) for part in parts))
    else:
        if is_lazy(element):
            raise InputError(
                f"{where} must be stored or in memory, got a lazy dask array; pass the path of its store, "
                f"or write it with AnnData.write_zarr, which need not fit in memory, and pass that path"
            )
        kind = type(element).__name__
        kind = attribute(element, "encoding-type", kind) if hasattr(element, "attrs") else kind
        raise InputError(f"{where} must be a CSR, CSC or dense matrix, got {kind}")
    if found.dtype.kind not in "biuf":
        raise InputError(f"{where} must hold real numbers, got {found.dtype}")
    return found


def _is_sparse(group: Any) -> bool:
    # Before AnnData 0.7 the attribute was another.
    return attribute(group, "encoding-type") in _SPARSE or attribute(group, "h5sparse_format") in ("csr", "csc")


def _slices(array: Any, where: str) -> Any:
    if isinstance(array, h5py.Dataset):
        native = array.dtype.kind in "iuf" and array.chunks is None and array.id.get_offset() is not None
        # External and split files keep their bytes elsewhere.
        return FileSlices(array) if native and not array.external and Path(array.file.filename).is_file() else array
    if isinstance(array, zarr.Array):
        refuse_executable(array, where)
        direct = direct_array(array)
        return array if isinstance(direct, str) else ShardSlices(direct)
    return array


def read_rows(
    matrix: Matrix,
    rows: slice,
    columns: npt.NDArray[Any],
    n_vars: int,
    where: str,
    block_elements: int = BLOCK_ELEMENTS,
) -> Iterator[Joined]:
    """Yield ``rows`` of a CSR or dense matrix in order, as CSR pieces of about ``block_elements`` elements.

    Parameters
    ----------
    columns
        (matrix's n_columns,) the joined column of each gene, -1 where the gene is left out.
    n_vars
        Number of joined columns.

    Yields
    ------
    Joined
        Its rows have the shape (rows of the piece, ``n_vars``); explicit zeros of CSR are kept.

    Raises
    ------
    InputError
        If a row has two entries for one gene, or a column number is out of range.
    """
    if n_vars <= 2**31:
        columns = columns.astype(np.int32)
    if matrix.format == "dense":
        step = max(1, block_elements // max(matrix.shape[1], 1))
        for first, last in row_blocks(matrix, rows, step):
            block = np.asarray(matrix.data[first:last])
            for start in range(first, last, step):
                part = sp.csr_matrix(_native(block[start - first : start - first + step], matrix.dtype))
                yield _joined(part.data, part.indices, part.indptr.astype(np.int64), columns, n_vars, where, start)
        return
    indptr = np.asarray(matrix.indptr[rows.start : rows.stop + 1]).astype(np.int64)
    for start, stop in cut_rows(indptr, slice(0, rows.stop - rows.start), block_elements):
        elements = slice(int(indptr[start]), int(indptr[stop]))
        data = _native(np.asarray(matrix.data[elements]), matrix.dtype)
        indices = np.asarray(matrix.indices[elements])
        yield _joined(
            data, indices, indptr[start : stop + 1] - indptr[start], columns, n_vars, where, rows.start + start
        )


def read_dense(matrix: Matrix, rows: slice, columns: Ints | None, n_vars: int, where: str) -> npt.NDArray[Any]:
    """Read ``rows`` as a dense array (rows, n_vars), zero where the input lacks a gene; ``columns`` None keeps all."""
    if matrix.format != "dense":
        assert columns is not None
        pieces = [piece.rows.to_scipy().toarray() for piece in read_rows(matrix, rows, columns, n_vars, where)]
        return np.concatenate(pieces)
    found = _native(np.asarray(matrix.data[rows]), matrix.dtype)
    if columns is None or np.array_equal(columns, np.arange(n_vars)):
        return found
    out = np.zeros((len(found), n_vars), found.dtype)
    out[:, columns[columns >= 0]] = found[:, columns >= 0]
    return out


def row_blocks(matrix: Matrix, rows: slice, n_rows: int) -> Iterator[tuple[int, int]]:
    """Cut ``rows`` of a matrix into ranges of about ``n_rows``, each of whole chunks if it is dense. Pure."""
    chunk_rows = matrix.chunk_shape[0] if matrix.format == "dense" else 1
    n_rows = max(n_rows // chunk_rows, 1) * chunk_rows
    start = rows.start
    while start < rows.stop:
        stop = min((start // n_rows + 1) * n_rows, rows.stop)
        yield start, stop
        start = stop


def cut_rows(starts: Ints, rows: slice, limit: int) -> Iterator[tuple[int, int]]:
    """Cut ``rows`` into consecutive ranges of at most ``limit`` elements, or of one row. Pure.

    Parameters
    ----------
    starts
        (n_obs + 1,) where each row starts, in elements or in bytes.
    """
    start = rows.start
    while start < rows.stop:
        stop = int(np.searchsorted(starts, starts[start] + limit, side="right")) - 1
        stop = min(max(stop, start + 1), rows.stop)
        yield start, stop
        start = stop


def _native(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    # SciPy has no sparse matrix of float16.
    wanted = np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")
    return values.astype(wanted, copy=False)


def _joined(
    data: npt.NDArray[Any],
    indices: npt.NDArray[Any],
    indptr: Ints,
    columns: npt.NDArray[Any],
    n_vars: int,
    where: str,
    row: int,
) -> Joined:
    """Rename the columns of rows from ``row`` on, leave out what has none, and sort each row by column."""
    if len(indices) and not (indices.min() >= 0 and indices.max() < len(columns)):
        raise InputError(
            f"{where}: column numbers must be in [0, {len(columns)}), got {indices.min()} to {indices.max()}"
        )
    n_rows, lost = len(indptr) - 1, data[:0]
    if not _is_identity(columns):
        indices = columns[indices]
        kept = indices >= 0
        if not kept.all():
            lost = data[~kept]
            indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
            data, indices = data[kept], indices[kept]
    if not _ascending(indices, indptr).all():
        renamed = sp.csr_matrix((data, indices, indptr), shape=(n_rows, n_vars), copy=True)
        renamed.sort_indices()
        data, indices = renamed.data, renamed.indices
        bad = np.flatnonzero(~_ascending(indices, indptr))
        if len(bad):
            several = int(np.searchsorted(indptr, bad[0] + 1, side="right")) - 1 + row
            raise InputError(f"{where}: a row must have at most one entry for a gene, row {several} has several")
    counts_lost = int(lost.sum(dtype=np.float64)) if ValueScan.of(lost).countable else None
    return Joined(CSR(data, indices, indptr, (n_rows, n_vars)), len(lost), counts_lost)


def _is_identity(columns: npt.NDArray[Any]) -> bool:
    return bool((columns == np.arange(len(columns))).all())


def _ascending(indices: npt.NDArray[Any], indptr: Ints) -> npt.NDArray[np.bool_]:
    """(nnz - 1,) whether each element's column is below that of the next one of the same row."""
    ascending: npt.NDArray[np.bool_] = indices[1:] > indices[:-1]
    starts = indptr[1:-1]
    ascending[starts[(starts > 0) & (starts < len(indices))] - 1] = True
    return ascending
