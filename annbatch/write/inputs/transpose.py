"""How does a matrix that is not stored by rows become one that is, if it does not fit in memory?

1. `transpose` streams its elements once and deals them to files by ranges of rows: those of CSC and of a transposed
   dense array column after column, those of a list of coordinates as they come.
2. One such range after the other is sorted in memory, columns in their order, and appended to a CSR matrix on disk.
3. `transposed` opens that matrix, which is read from then on instead of the other.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from annbatch.errors import InputError
from annbatch.write.inputs.matrix_rows import Matrix, cut_rows
from annbatch.write.inputs.spill import RawSlices, load, save, spilling

_ELEMENT_BYTES = 40
"""What an element takes in memory while its range of rows is sorted, at most."""
_MAX_FILES = 256
Block: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
"""Rows, columns and values of some elements."""


def transpose(
    directory: Path, matrix: Matrix, where: str, limit_bytes: int, block_elements: int, checkpoint: Callable[[], None]
) -> None:
    """Write a matrix as a CSR matrix to ``directory``, unless it is there; ``checkpoint`` is called between steps.

    Memory is held to about ``limit_bytes`` if rows are of similar length: ranges have equally many rows, and a quarter
    of that many elements on average.

    Raises
    ------
    InputError
        If a row number is out of range, ``indptr`` is damaged, or a list of coordinates has two entries for a place.
    """
    if directory.exists():
        return
    building = directory.with_name(f".{directory.name}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    n_rows = matrix.shape[0]
    n_ranges = min(max(1, -(-4 * matrix.nnz * _ELEMENT_BYTES // limit_bytes)), _MAX_FILES, n_rows)
    rows_per_range = -(-n_rows // n_ranges)
    paths = [building / f"range{i}" for i in range(-(-n_rows // rows_per_range))]
    dtype = np.dtype([("row", np.int64), ("column", np.int32), ("value", matrix.dtype.newbyteorder("="))])
    for path in paths:
        path.touch()
    for triples in _triples(matrix, dtype, where, block_elements):
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
            triples = _in_order(triples, matrix, where)
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
    nnz = (directory / "indices").stat().st_size // np.dtype(np.int32).itemsize
    data = RawSlices(directory / "data", dtype, nnz)
    indices = RawSlices(directory / "indices", np.dtype(np.int32), nnz)
    indptr = RawSlices(directory / "indptr", np.dtype(np.int64), matrix.shape[0] + 1)
    return replace(matrix, format="csr", data=data, indices=indices, indptr=indptr, places=None)


def _in_order(triples: npt.NDArray[Any], matrix: Matrix, where: str) -> npt.NDArray[Any]:
    """Sort elements by row and column, if their columns are not in order already."""
    if matrix.format != "coordinate":
        return triples[np.argsort(triples["row"], kind="stable")]
    triples = triples[np.lexsort((triples["column"], triples["row"]))]
    same = (triples["row"][1:] == triples["row"][:-1]) & (triples["column"][1:] == triples["column"][:-1])
    if same.any():
        row, column = triples[int(np.argmax(same))].tolist()[:2]
        raise InputError(
            f"{where}: a cell must have at most one entry for a gene, cell {row} has several for gene {column}; "
            f"scipy.io.mmread sums them"
        )
    return triples


def _triples(matrix: Matrix, dtype: np.dtype[Any], where: str, block_elements: int) -> Iterator[npt.NDArray[Any]]:
    """Read all elements, a block at a time."""
    blocks = {"csc": _of_csc, "coordinate": _of_coordinates, "transposed": _of_transposed}[matrix.format]
    for rows, columns, values in blocks(matrix, where, block_elements):
        triples = np.empty(len(rows), dtype)
        triples["row"], triples["column"], triples["value"] = rows, columns, values
        if matrix.places is not None:
            triples["row"] = matrix.places[rows]
            triples = triples[triples["row"] >= 0]
        yield triples


def _of_csc(matrix: Matrix, where: str, block_elements: int) -> Iterator[Block]:
    n_rows, n_columns = matrix.n_stored_rows, matrix.shape[1]
    starts = matrix.row_starts(where)
    for first, last in cut_rows(starts, slice(0, n_columns), block_elements):
        part = slice(int(starts[first]), int(starts[last]))
        rows = np.asarray(matrix.indices[part])
        if len(rows) and not (rows.min() >= 0 and rows.max() < n_rows):
            raise InputError(f"{where}: row numbers must be in [0, {n_rows}), got {rows.min()} to {rows.max()}")
        yield rows, np.repeat(np.arange(first, last), np.diff(starts[first : last + 1])), matrix.data[part]


def _of_coordinates(matrix: Matrix, where: str, block_elements: int) -> Iterator[Block]:
    for columns, rows, values in matrix.data.blocks(block_elements):
        yield rows, columns, values


def _of_transposed(matrix: Matrix, where: str, block_elements: int) -> Iterator[Block]:
    """Read each chunk of the array once, in the order of the columns."""
    n_rows, n_columns = matrix.n_stored_rows, matrix.shape[1]
    height, width = getattr(matrix.data, "chunks", None) or (1, min(n_rows, block_elements))
    height = height * max(1, block_elements // (height * n_rows))
    width = width * max(1, block_elements // (height * width))
    for first in range(0, n_columns, height):
        for start in range(0, n_rows, width):
            block = np.asarray(matrix.data[first : first + height, start : start + width])
            columns, rows = np.nonzero(block)
            yield rows + start, columns + first, block[columns, rows]
