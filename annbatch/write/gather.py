"""How do rows get from the inputs' order into the planned one, in memory?

1. `load_table` reads all inputs, row after row, in their final types.
2. `take_rows` gives the rows of one store in their final order, as the blocks that `annbatch.write.sharded` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch.batch import CSR
from annbatch.manifest import ElementTypes
from annbatch.write.inputs import Source, read_blocks, read_obsm
from annbatch.write.join import GeneJoin
from annbatch.write.narrow import ValueScan
from annbatch.write.sharded import SparseRows, StoreRows

_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True, slots=True)
class Table:
    """All cells of all inputs, in the inputs' order."""

    obs: pd.DataFrame
    """(n_obs, …)."""
    var: pd.DataFrame
    """(n_vars, …)."""
    sparse: Mapping[str, CSR]
    """``"X"`` and ``"layers/{name}"`` to (n_obs, n_vars), each in its stored types."""
    types: Mapping[str, ElementTypes]
    """The types of the same elements."""
    obsm: Mapping[str, npt.NDArray[Any]]
    """Name to (n_obs, …)."""


def load_table(
    sources: Sequence[Source],
    genes: GeneJoin,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    scans: Mapping[str, Sequence[ValueScan]],
    types: Mapping[str, ElementTypes],
    obsm: Sequence[str],
    report: Callable[[int], object],
) -> Table:
    """Read all that goes into the collection; ``scans`` say how much it is, ``report`` is told of rows as they come."""
    sparse = {}
    for key, chosen in types.items():
        nnz = sum(scan.nnz for scan in scans[key])
        whole = CSR(
            np.empty(nnz, chosen.stored),
            np.empty(nnz, chosen.indices),
            np.zeros(len(obs) + 1, np.int64),
            (len(obs), len(var)),
        )
        row = 0
        for source, columns in zip(sources, genes.columns, strict=True):
            for block in read_blocks(source, key, columns, len(var)):
                start, stop = whole.indptr[row], whole.indptr[row] + block.nnz
                whole.data[start:stop] = block.data
                whole.indices[start:stop] = block.indices
                whole.indptr[row + 1 : row + 1 + block.shape[0]] = start + block.indptr[1:]
                row += block.shape[0]
                report(block.shape[0])
        sparse[key] = whole
    arrays = {name: np.concatenate([read_obsm(source, name) for source in sources]) for name in obsm}
    return Table(obs, var, sparse, types, arrays)


def take_rows(table: Table, rows: npt.NDArray[np.int64]) -> StoreRows:
    """Give ``rows`` of ``table`` in that order; X and layers are copied block by block, when they are asked for."""
    return StoreRows(
        obs=table.obs.iloc[rows],
        var=table.var,
        sparse={
            key: SparseRows(
                row_lengths=np.diff(matrix.indptr)[rows], blocks=_take_blocks(matrix, rows), types=table.types[key]
            )
            for key, matrix in table.sparse.items()
        },
        obsm={name: array[rows] for name, array in table.obsm.items()},
    )


def _take_blocks(matrix: CSR, rows: npt.NDArray[np.int64]) -> Iterator[CSR]:
    ends = np.cumsum(matrix.indptr[rows + 1] - matrix.indptr[rows])
    start = 0
    while start < len(rows):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _BLOCK_ELEMENTS, side="right")))
        part = rows[start:stop]
        lengths = matrix.indptr[part + 1] - matrix.indptr[part]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.repeat(matrix.indptr[part] - indptr[:-1], lengths) + np.arange(indptr[-1])
        yield CSR(matrix.data[positions], matrix.indices[positions], indptr, (len(part), matrix.shape[1]))
        start = stop
