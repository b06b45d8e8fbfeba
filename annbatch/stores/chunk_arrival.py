"""How do stored chunks get into memory while the window before theirs is decoded?

1. Chunks in object stores are requested (`annbatch.remote`).
2. Local chunks that `are_at_hand`, in the page cache, are left there: an epoch that finds everything cached pays for a
   few questions a window.
3. Other local chunks are read past the page cache where arrays `exceed_memory` (`annbatch.shards.uncached_reads`).
   Elsewhere the system is asked to read them into it (`annbatch.shards.page_cache`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Protocol

import numpy as np

from annbatch.plan.chunk_pieces import Pieces
from annbatch.plan.row_places import RowPlan
from annbatch.remote.chunk_objects import fetch_chunks
from annbatch.remote.request_pool import Requests
from annbatch.shards.chunk_files import MAX_FILES, locate_all
from annbatch.shards.page_cache import announce, are_cached, room
from annbatch.shards.shard_index import Located
from annbatch.shards.uncached_reads import UncachedReads
from annbatch.stores.elements import DirectElements, Elements, RemoteElements, alike_runs

N_SAMPLED = 4
"""Rows of a window of which it is found out whether they are cached: each costs as much as decoding a few others."""


class ArrivingChunks(Protocol):
    """Chunks on their way into memory."""

    def result(self) -> Located | None:
        """Wait for them, and say where they are; None if they are to be read when they are decoded."""


class _Announced:
    """Chunks that the system reads into the page cache."""

    def result(self) -> None:
        return None


def request_chunks(
    arrays: Sequence[Elements], pieces: Pieces, requests: Requests, uncached: UncachedReads | None
) -> list[ArrivingChunks]:
    """Begin to get the chunks of remote and of local arrays into memory.

    Parameters
    ----------
    arrays
        The arrays.
    pieces
        Planned for their chunks; their destinations do not matter yet.
    requests
        What remote chunks are requested with.
    uncached
        What reads local chunks; None if the system is asked to.

    Returns
    -------
    list of ArrivingChunks
        What `annbatch.stores.elements.plan_work` takes the results of, one behind the other.
    """
    found: list[ArrivingChunks] = []
    for alike, part in alike_runs(arrays, pieces):
        remote = [array.tables for array in alike if isinstance(array, RemoteElements)]
        local = [array.tables for array in alike if isinstance(array, DirectElements)]
        if remote:
            found.append(requests.submit(fetch_chunks(remote, part.edges, part.chunks)))
        elif local and uncached is not None and not uncached.has_failed:
            found.append(uncached.begin(local, part))
        elif local:
            for of_files in part.parts([one.layout.chunks_per_shard for one in local], MAX_FILES):
                announce(locate_all(local, of_files.edges, of_files.chunks))
            found.append(_Announced())
    return found


def are_at_hand(parts: Sequence[Sequence[Elements]], rows: RowPlan) -> bool:
    """Say whether the local chunks of rows are cached, as far as a few of them tell.

    Parameters
    ----------
    parts
        For ``data`` and ``indices`` of a matrix, say: the array of each reading. They are asked in turns.
    rows
        The rows.
    """
    n_rows, edges = len(rows.lo), rows.edges.tolist()

    def sampled() -> Iterator[Located]:
        for i in range(min(n_rows, N_SAMPLED)):
            row = n_rows * i // N_SAMPLED
            array = parts[i % len(parts)][bisect_right(edges, row) - 1]
            if isinstance(array, DirectElements) and rows.hi[row] > rows.lo[row]:
                yield array.tables.locate([rows.lo[row] // array.chunk_elements])

    return are_cached(sampled())


def exceed_memory(arrays: Iterable[Elements]) -> bool:
    """Say whether local arrays take more bytes, as they are stored, than the page cache can hold."""
    local, limit = [array for array in arrays if isinstance(array, DirectElements)], room()
    # Hardly anything is stored in more bytes than it has: only of large collections are the files looked at.
    if sum(array.size * array.dtype.itemsize for array in local) <= limit:
        return False
    return sum(array.tables.stored_nbytes() for array in local) > limit


def joined(arrays: Sequence[Elements], located: Iterator[Located | None]) -> Located | None:
    """Give where the chunks of local arrays are, as one; None if not all of them were read.

    Parameters
    ----------
    arrays
        The arrays, of one or several forms.
    located
        The results of what `request_chunks` gave; those of these arrays are taken.
    """
    forms = [form for form, _ in groupby(array.form for array in arrays if isinstance(array, DirectElements))]
    parts = [part for part in (next(located, None) for _ in forms) if part is not None]
    if not parts or len(parts) < len(forms):
        return None
    fds, offsets, nbytes = (np.concatenate([getattr(part, name) for part in parts]) for name in _PLACES)
    return Located(fds, offsets, nbytes, [holder for part in parts for holder in part.holders])


_PLACES = "fds", "offsets", "nbytes"
