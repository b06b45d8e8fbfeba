"""How much memory and disk does a build take, and how is it cut so that it keeps to that?

1. `parse_bytes` reads ``"2GB"``.
2. `Budget.of` shares the memory out: in pass 1 between the tasks that run at a time, in pass 2 between the pieces of a
   store. What it cannot keep to is refused.
3. `reads_chunks_at_once` says whether the rows of a dense matrix's chunks fit in a run.
4. `disk_bytes` says how much temporary space the runs take at least and at most; `check_disk` compares it with what is
   free.

Everything here is pure but `check_disk`, which asks the filesystem.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from annbatch import summary
from annbatch.check import byte_count
from annbatch.errors import InputError, OutputError
from annbatch.write.inputs.contents import Element, MatrixInfo, Source
from annbatch.write.inputs.matrix_rows import DENSE, NOT_BY_ROWS
from annbatch.write.inputs.narrow_types import smallest_unsigned

MIN_BYTES = 64 * 10**6
"""The smallest memory limit that is taken."""

_USED = 0.85
"""Part of the limit that is planned for; the rest is what plans do not see."""
_MIN_TASK_BYTES = 48 * 10**6
_MIN_PIECE_BYTES = 8 * 10**6
_ELEMENT_TEMPORARIES = 40
"""Bytes of temporary arrays for each element of the block that is being read."""
_CHUNK_COPIES = 4
"""Copies of the rows of a dense chunk that are in memory at a time: decoded, cast, and what is asked of each value."""
_STRING_BYTES = 90
"""Bytes of a short string as a Python object in an array."""
_PIECES = 2.3
"""Pieces in memory at a time: one that is written, one that is read, and what comes straight from the disk."""


def parse_bytes(limit: str | int) -> int:
    """Read a memory limit, as `annbatch.check.byte_count` does.

    Raises
    ------
    InputError
        If it is none, or below `MIN_BYTES`.
    """
    try:
        nbytes = byte_count("memory_limit", limit)
    except ValueError as e:
        raise InputError(str(e)) from e
    if nbytes < MIN_BYTES:
        raise InputError(f"memory_limit must be >= {MIN_BYTES // 10**6} MB, got {limit!r}")
    return nbytes


@dataclass(frozen=True, slots=True)
class Budget:
    """How the memory is shared out."""

    tasks: int
    """Tasks of pass 1 at a time."""
    run_bytes: int
    """Bytes that a run may take while it is written."""
    block_elements: int
    """Elements read at a time."""
    piece_bytes: int
    """Bytes of a piece of pass 2."""

    @classmethod
    def of(
        cls, limit_bytes: int, threads: int, *, store_rows: int, record_bytes: int, text_bytes: float, n_texts: int
    ) -> Budget:
        """Share ``limit_bytes`` out.

        Parameters
        ----------
        store_rows
            Rows of the largest store, whose obs is in memory while it is written.
        record_bytes, text_bytes, n_texts
            Size of a row's obs: of its numbers, on average of its texts, and how many texts that is.

        Raises
        ------
        InputError
            If the obs of a store does not fit.
        """
        usable = int(limit_bytes * _USED)
        tasks = max(1, min(threads, usable // _MIN_TASK_BYTES))
        share = usable // tasks
        block = int(np.clip(share // (5 * _ELEMENT_TEMPORARIES), 2**14, 2**18))
        run_bytes = share - block * _ELEMENT_TEMPORARIES
        collected = int(store_rows * (record_bytes + text_bytes + 8 * n_texts))
        writing = int(store_rows * (2 * record_bytes + 3 * text_bytes + n_texts * _STRING_BYTES))
        piece_bytes = int((usable - collected) / _PIECES)
        if piece_bytes < _MIN_PIECE_BYTES or writing > usable:
            needed = max(collected + _PIECES * _MIN_PIECE_BYTES, writing) / _USED
            raise InputError(
                f"memory_limit must be >= {needed / 1e6:.0f} MB for stores of {store_rows} rows, whose obs is written "
                f"at once, got {limit_bytes / 1e6:.0f} MB; raise it, or lower rows_per_store"
            )
        return cls(tasks, run_bytes, block, piece_bytes)


def element_bytes(sources: Sequence[Source], elements: Sequence[Element], n_vars: int) -> dict[str, int]:
    """Give, by element, the most bytes that one stored element takes in memory during pass 1."""
    index = smallest_unsigned(max(n_vars - 1, 0)).itemsize
    widths = {e.key: max(_itemsize(source, e) for source in sources) for e in elements}
    # Values and column numbers are held once as they come, and the larger of them once more in sorted order.
    return {
        e.key: widths[e.key] + index + max(widths[e.key], index) if e.kind == "csr" else 2 * widths[e.key]
        for e in elements
    }


def dense_row_bytes(info: MatrixInfo, element: Element, row_bytes: Mapping[str, int]) -> int:
    """Give the bytes that a row of a dense matrix takes in pass 1; ``row_bytes`` is what `element_bytes` gives."""
    copies = _CHUNK_COPIES if info.chunk_rows > 1 else 0
    return element.n_columns * row_bytes[element.key] + copies * info.shape[1] * info.dtype.itemsize


def reads_chunks_at_once(info: MatrixInfo, element: Element, row_bytes: Mapping[str, int], run_bytes: int) -> bool:
    """Say whether the rows of a dense matrix's chunks fit in a run, beside those of all other elements.

    Otherwise the matrix is written row by row before it is read.
    """
    nbytes = info.chunk_rows * dense_row_bytes(info, element, row_bytes)
    return info.chunk_rows == 1 or nbytes * (len(row_bytes) + 1) <= run_bytes


def disk_bytes(
    sources: Sequence[Source], elements: Sequence[Element], n_vars: int, cell_bytes: float, run_bytes: int
) -> tuple[int, int]:
    """Give the least and the most bytes that temporary files take: if all values are small counts, and if none is.

    Parameters
    ----------
    cell_bytes
        Of each cell beside its matrices.
    run_bytes
        Bytes that a run may take in memory.
    """
    row_bytes = element_bytes(sources, elements, n_vars)
    index = smallest_unsigned(max(n_vars - 1, 0)).itemsize
    least = most = int(sum(source.n_obs for source in sources) * cell_bytes)
    for source in sources:
        for element in elements:
            info = matrix_info(source, element)
            width = info.dtype.itemsize
            stored = 0 if info.format in DENSE else info.nnz
            if element.kind == "csr":
                narrow = min(2, width) if info.dtype.kind in "biuf" else width
                least += stored * (narrow + index)
                most += info.nnz * (max(width, 2) + index)
            else:
                n = source.n_obs * element.n_columns
                least += n * (min(2, width) if element.has_genes else width)
                most += n * max(width, 2)
            if info.format in NOT_BY_ROWS:
                # The turned copy stays beside the runs, and its parts beside it for a while.
                least += stored * (width + 4)
                most += 2 * info.nnz * (width + 12)
            if info.format == "dense" and not reads_chunks_at_once(info, element, row_bytes, run_bytes):
                least += info.nnz * info.dtype.itemsize
                most += info.nnz * info.dtype.itemsize
    return least, most


def check_disk(directory: Path, needed: tuple[int, int]) -> None:
    """Compare what the runs and the stores need with what is free.

    Raises
    ------
    OutputError
        If not even the least that they may need is free.
    """
    free = shutil.disk_usage(directory).free
    if needed[0] > free:
        raise OutputError(
            errno.ENOSPC,
            f"{directory.parent}: the build needs {summary.size(needed[0])} to {summary.size(needed[1])} of temporary "
            f"space in addition to the collection itself, {summary.size(free)} is free",
        )


def _itemsize(source: Source, element: Element) -> int:
    return max(2, matrix_info(source, element).dtype.itemsize)


def matrix_info(source: Source, element: Element) -> MatrixInfo:
    """Give what is known of the matrix of an input that becomes an element."""
    if element.has_genes:
        return source.matrices[element.key]
    info = source.obsm[element.key.removeprefix("obsm/")]
    assert info is not None
    return info
