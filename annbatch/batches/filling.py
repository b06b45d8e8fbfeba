"""What do the parts of a window's batches share while their memory is filled?

A *part* makes one element of every batch: X, a layer or an element of obsm. `annbatch.fetch` calls its methods in this
order:

1. ``locate`` begins to read the ``indptr`` of the window's rows.
2. ``plan`` waits for that, and says where the rows lie in the stores and in the batches.
3. ``request`` gets chunks into memory that have to be fetched first (`request`).
4. ``begin`` takes memory for the batches, and returns a `Filling`. The threads run its ``work``; ``finish`` then makes
   the matrix of each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.plan.chunk_pieces import cut
from annbatch.plan.column_map import ColumnMap
from annbatch.plan.column_selection import Selection
from annbatch.plan.row_places import RowPlan
from annbatch.plan.window import Found, Ints, address
from annbatch.remote.request_pool import Requests
from annbatch.shards.uncached_reads import UncachedReads
from annbatch.stores.chunk_arrival import ArrivingChunks, are_at_hand, request_chunks
from annbatch.stores.elements import Elements, RemoteElements, Work
from annbatch.transform import LogNormalize, ValueKernel

Indptrs = Sequence[Callable[[], Found]]
"""For each store of a window: waits for its ``indptr``, and returns it."""

Check = Callable[[Any], None]
"""Raises an error if the values of a matrix break a rule."""


@dataclass(frozen=True, slots=True, eq=False)
class Filling:
    """The matrices of one window while they are filled."""

    work: Work
    """Fills the memory, in any order and on any threads."""
    finish: Callable[[int], Any]
    """Returns the matrix of batch b; called when all work is done."""
    heavy: bool
    """Whether ``finish`` takes so long that the threads should share it."""
    n_bytes: int
    """Memory taken for the window."""


def composed(
    columns: ColumnMap | None, selection: Selection | None, kernel: ValueKernel | None
) -> tuple[ColumnMap | None, Selection | None]:
    """Merge a column map and a selection into one map, unless `LogNormalize` has to sum all joined columns first."""
    if columns is None or selection is None or isinstance(kernel, LogNormalize):
        return columns, selection
    return columns.then(selection), None


def checked(check: Check | None, finish: Callable[[int], Any], is_heavy: bool) -> tuple[Callable[[int], Any], bool]:
    """Make ``finish`` check the values of each batch; also return whether the result is work for a thread."""
    if check is None:
        return finish, is_heavy

    def finish_and_check(b: int) -> Any:
        found = finish(b)
        check(found)
        return found

    return finish_and_check, True


def request(
    parts: Sequence[Sequence[Elements]], rows: RowPlan, requests: Requests, uncached: UncachedReads | None
) -> list[ArrivingChunks]:
    """Begin to get the chunks of the parts' arrays into memory, in the order in which their work is planned."""
    is_remote = any(isinstance(elements, RemoteElements) for part in parts for elements in part)
    if not is_remote and are_at_hand(parts, rows):
        return []
    nowhere = [[np.empty(0, np.uint8)] * (len(rows.cuts) - 1)] * len(parts)
    return [
        arriving
        for elements, pieces in zip(parts, cut(rows, *extents(parts, nowhere)), strict=True)
        for arriving in request_chunks(elements, pieces, requests, uncached)
    ]


def extents(
    parts: Sequence[Sequence[Elements]], targets: Sequence[Sequence[NDArray[Any]]]
) -> tuple[NDArray[np.int64], Ints, Ints]:
    """Return the arguments of `cut`: elements in a chunk, addresses of the batches' arrays, bytes of their elements."""
    chunk_elements = [[elements.chunk_elements for elements in part] for part in parts]
    bases = [[address(array) for array in arrays] for arrays in targets]
    itemsizes = [arrays[0].itemsize for arrays in targets]
    return (
        np.array(chunk_elements, np.int64).reshape(len(parts), -1), np.array(bases, np.int64), np.array(itemsizes)
    )  # fmt: skip
