"""How does a matrix stored by columns (CSC) become one stored by rows, if it does not fit in memory?

1. `transpose` streams the columns once and deals their elements to files by ranges of rows.
2. One such range after the other is sorted in memory, columns in their order, and appended to a CSR matrix on disk.
3. `transposed` opens that matrix, which is read from then on instead of the other.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.errors import InputError
from annbatch.write.inputs.matrix_rows import Matrix, cut_rows
from annbatch.write.inputs.spill import RawSlices, load, save, spilling

_ELEMENT_BYTES = 40
"""What an element takes in memory while its range of rows is sorted, at most."""
_MAX_FILES = 256


def transpose(
    directory: Path, matrix: Matrix, where: str, limit_bytes: int, block_elements: int, checkpoint: Callable[[], None]
) -> None:
    """Write a CSC matrix as a CSR matrix to ``directory``, unless it is there; ``checkpoint`` is called between steps.

    Memory is held to about ``limit_bytes`` if rows are of similar length: ranges have equally many rows, and a quarter
    of that many elements on average.

    Raises
    ------
    InputError
        If a row number is out of range, or ``indptr`` is damaged.
    """
    if directory.exists():
        return
    building = directory.with_name(f".{directory.name}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    n_rows = matrix.shape[0]
    starts = matrix.row_starts(where)
    n_ranges = min(max(1, -(-4 * matrix.nnz * _ELEMENT_BYTES // limit_bytes)), _MAX_FILES, n_rows)
    rows_per_range = -(-n_rows // n_ranges)
    paths = [building / f"range{i}" for i in range(-(-n_rows // rows_per_range))]
    dtype = np.dtype([("row", np.int64), ("column", np.int32), ("value", matrix.dtype.newbyteorder("="))])
    for path in paths:
        path.touch()
    for triples in _triples(matrix, starts, dtype, where, block_elements):
        checkpoint()
        numbers = triples["row"] // rows_per_range
        order = np.argsort(numbers, kind="stable")
        bounds = np.searchsorted(numbers[order], np.arange(len(paths) + 1)).tolist()
        sorted_triples = triples[order]
        for path, a, b in zip(paths, bounds[:-1], bounds[1:], strict=True):
            if b > a:
                with spilling(), path.open("ab") as file:
                    file.write(sorted_triples[a:b].view(np.uint8).data)
    lengths = []
    with spilling(), (building / "data").open("wb") as data, (building / "indices").open("wb") as indices:
        for i, path in enumerate(paths):
            checkpoint()
            triples = load(path, dtype, 0, path.stat().st_size // dtype.itemsize)
            triples = triples[np.argsort(triples["row"], kind="stable")]
            data.write(np.ascontiguousarray(triples["value"]).view(np.uint8).data)
            indices.write(np.ascontiguousarray(triples["column"]).view(np.uint8).data)
            first = i * rows_per_range
            lengths.append(np.bincount(triples["row"] - first, minlength=min(rows_per_range, n_rows - first)))
            path.unlink()
    save(building / "indptr", np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64))
    building.rename(directory)


def transposed(directory: Path, matrix: Matrix) -> Matrix:
    """Open what `transpose` wrote of ``matrix``."""
    dtype = matrix.dtype.newbyteorder("=")
    data = RawSlices(directory / "data", dtype, matrix.nnz)
    indices = RawSlices(directory / "indices", np.dtype(np.int32), matrix.nnz)
    indptr = RawSlices(directory / "indptr", np.dtype(np.int64), matrix.shape[0] + 1)
    return replace(matrix, format="csr", data=data, indices=indices, indptr=indptr)


def _triples(
    matrix: Matrix, starts: npt.NDArray[np.int64], dtype: np.dtype[Any], where: str, block_elements: int
) -> Iterator[npt.NDArray[Any]]:
    """Read all elements, column after column."""
    n_rows, n_columns = matrix.shape
    for first, last in cut_rows(starts, slice(0, n_columns), block_elements):
        part = slice(int(starts[first]), int(starts[last]))
        rows = np.asarray(matrix.indices[part])
        if len(rows) and not (rows.min() >= 0 and rows.max() < n_rows):
            raise InputError(f"{where}: row numbers must be in [0, {n_rows}), got {rows.min()} to {rows.max()}")
        triples = np.empty(len(rows), dtype)
        triples["row"] = rows
        triples["column"] = np.repeat(np.arange(first, last), np.diff(starts[first : last + 1]))
        triples["value"] = matrix.data[part]
        yield triples
