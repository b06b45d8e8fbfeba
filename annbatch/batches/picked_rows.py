"""How do only the elements of the wanted genes get from chunks into batches?

1. `pick` plans work that decodes chunks and keeps the elements of the wanted columns, in pieces.
2. `PickedRows.join` puts the pieces of a batch together, in the order of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.buffers import SlabPool
from annbatch.plan.chunk_pieces import cut
from annbatch.plan.column_selection import Selection, join_pieces
from annbatch.plan.row_places import RowPlan
from annbatch.plan.window import Ints
from annbatch.shards.scatter_kernels import native_types
from annbatch.shards.select_scatter import Picked
from annbatch.shards.shard_index import Located
from annbatch.stores.elements import Elements, Work
from annbatch.stores.selected_elements import plan_selected

_INT64 = np.dtype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class PickedRows:
    """The elements of a window's rows in the wanted columns."""

    picked: Picked
    """The elements, in pieces; filled by the work."""
    work: Work
    """Decodes chunks, and keeps the wanted elements."""
    order: Ints
    """Numbers of the pieces, in the order of the rows."""
    edges: list[Ints]
    """For each part of a batch, (n_rows + 1,): where in ``order`` the pieces of its rows begin, and where they end."""

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that the elements take."""
        return self.picked.values.nbytes + self.picked.columns.nbytes

    def nnz(self, part: int) -> int:
        """Count the wanted elements of a part."""
        return int(self.picked.counts[self._own(part)].sum())

    def join(self, part: int, data: NDArray[Any], indices: NDArray[Any], n_sorted: int) -> Ints:
        """Write the rows of a part to the front of arrays, cast as NumPy casts.

        Parameters
        ----------
        part
            Number of the part.
        data, indices
            Arrays with room for at least `nnz` elements.
        n_sorted
            Number of wanted columns if rows have to be sorted by column, else 0.

        Returns
        -------
        ndarray
            (n_rows + 1,) int64 indptr.
        """
        picked, edges = self.picked, self.edges[part]
        types = native_types(picked.values.dtype, data.dtype)
        if types is None:
            # The kernel would not cast as NumPy does.
            stored = np.empty(self.nnz(part), picked.values.dtype)
            found = self.join(part, stored, indices, n_sorted)
            data[: len(stored)] = stored
            return found
        values, target = picked.values.view(types[0]), data.view(types[1])
        places = picked.columns, picked.firsts, picked.counts, self._own(part), edges[1:] - edges[0]
        indptr: Ints = join_pieces(values, *places, target, indices, n_sorted)
        return indptr

    def _own(self, part: int) -> Ints:
        return self.order[self.edges[part][0] : self.edges[part][-1]]


def pick(
    arrays: tuple[Sequence[Elements], Sequence[Elements]],
    rows: RowPlan,
    selection: Selection,
    dtypes: tuple[np.dtype[Any], np.dtype[Any]],
    slabs: SlabPool,
    located: Iterator[Located | None],
) -> PickedRows | None:
    """Plan how the wanted elements of a window's rows are picked out of chunks.

    Parameters
    ----------
    arrays
        Values and column numbers of each store of the window, for which
        `annbatch.stores.selected_elements.can_select` holds.
    rows
        Where the rows lie.
    selection
        Which columns are wanted.
    dtypes
        Types of the values and of the column numbers that are picked.
    slabs
        Where memory comes from.
    located
        Where chunks are that are in memory, of values and then of column numbers.

    Returns
    -------
    PickedRows or None
        None if that takes more files than may be open at once.
    """
    # Pieces go to their places in the window: these only say to which row each belongs.
    ends = np.cumsum(rows.n_elements)
    chunk_elements = np.array([[one.chunk_elements for one in arrays[0]]], np.int64)
    (pieces,) = cut(rows, chunk_elements, np.array([ends - rows.n_elements]), np.ones(1, np.int64))
    n_elements, n_pieces = int(pieces.lengths.sum()), len(pieces.lengths)
    wanted = (n_elements, dtypes[0]), (n_elements, dtypes[1]), (n_pieces, _INT64), (n_pieces, _INT64)
    picked = Picked(*slabs.arrays(*wanted))
    work = plan_selected(arrays, pieces, selection, picked, located)
    if work is None:
        return None
    order = np.argsort(pieces.targets)
    stops = [rows.indptr(part) + end - n for part, (end, n) in enumerate(zip(ends, rows.n_elements, strict=True))]
    edges = [np.searchsorted(pieces.targets[order], of_part) for of_part in stops]
    return PickedRows(picked, work, order, edges)
