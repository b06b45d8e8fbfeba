"""How is a dense matrix read by rows, if each of its chunks holds part of many rows?

Such a chunk, say a few columns of all rows, would be decoded again for every few rows that are read. Where the rows of
a chunk fit in memory together, they are read together (`annbatch.write.inputs.matrix_rows.row_blocks`). Otherwise:

1. `rewrite` decodes each chunk once and puts its part of each range of rows where that range lies in one file; then it
   reads one range after the other and writes it back row by row. The file has the size of the matrix.
2. `rewritten` opens that file, which is read from then on instead of the chunks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from annbatch.write.inputs.matrix_rows import Matrix
from annbatch.write.inputs.spill import RawSlices, spilling


def rewrite(directory: Path, matrix: Matrix, limit_bytes: int, checkpoint: Callable[[], None]) -> None:
    """Write a dense matrix row by row to ``directory``, unless it is there; ``checkpoint`` is called between steps.

    Memory is held to about ``limit_bytes``, or what it takes to decode one chunk.
    """
    if directory.exists():
        return
    building = directory.with_name(f".{directory.name}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    n_rows, n_columns = matrix.shape
    rows, columns = matrix.chunk_shape
    itemsize = matrix.data.dtype.itemsize
    # As many chunks side by side as a quarter of the memory holds, and ranges of rows of that size.
    width = min(columns * max(1, limit_bytes // (4 * rows * columns * itemsize)), n_columns)
    height = max(1, limit_bytes // (4 * n_columns * itemsize))
    with spilling(), (building / "rows").open("w+b") as file:
        for top in range(0, n_rows, rows):
            bottom = min(top + rows, n_rows)
            ranges = [(start, min(start + height, bottom)) for start in range(top, bottom, height)]
            parts = [(left, min(left + width, n_columns)) for left in range(0, n_columns, width)]
            for left, right in parts:
                checkpoint()
                whole = (left, right) == (0, n_columns)
                block = np.asarray(matrix.data[top:bottom] if whole else matrix.data[top:bottom, left:right])
                for start, stop in ranges:
                    file.seek((start * n_columns + (stop - start) * left) * itemsize)
                    file.write(np.ascontiguousarray(block[start - top : stop - top]).reshape(-1).view(np.uint8).data)
            for start, stop in ranges if len(parts) > 1 else ():
                checkpoint()
                file.seek(start * n_columns * itemsize)
                found = np.frombuffer(file.read((stop - start) * n_columns * itemsize), matrix.data.dtype)
                pieces = [
                    found[(stop - start) * left : (stop - start) * right].reshape(stop - start, -1)
                    for left, right in parts
                ]
                file.seek(start * n_columns * itemsize)
                file.write(np.concatenate(pieces, axis=1).reshape(-1).view(np.uint8).data)
    building.rename(directory)


def rewritten(directory: Path, matrix: Matrix) -> Matrix:
    """Open what `rewrite` wrote of ``matrix``."""
    return replace(matrix, data=RawSlices(directory / "rows", matrix.data.dtype, *matrix.shape))
