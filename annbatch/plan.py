"""Which bytes make a window, and where does each of them go?

Pure: no I/O, no threads. Everything is an array; loops over rows are compiled and run without the GIL.

1. `coalesce` turns sorted row numbers into ranges that are read at once (of ``indptr`` and of label columns).
2. `batch_indptr` lays the rows of every batch out from their lengths.
3. `plan_pieces` says which chunks hold the rows' elements, and which piece of a row in which chunk goes to which
   address. Each chunk appears once, however many rows want it, and a row that straddles chunks is several pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.native import Kernel

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """Ranges of a one-dimensional array, read one after the other into one buffer."""

    starts: Ints
    """(n_ranges,) first element of each range, ascending."""
    stops: Ints
    """(n_ranges,) end of each range, exclusive; before the next start."""
    places: Ints
    """(n_rows,) where in the buffer each wanted element lies."""

    @property
    def n_elements(self) -> int:
        """Length of the buffer."""
        return int((self.stops - self.starts).sum())

    def extended(self) -> Ranges:
        """Give the same ranges with one more element behind each: what ``indptr`` needs."""
        range_of_row = np.searchsorted(np.cumsum(self.stops - self.starts), self.places, side="right")
        return Ranges(self.starts, self.stops + 1, self.places + range_of_row)


def coalesce(rows: Ints, max_gap: int) -> Ranges:
    """Turn ascending row numbers (repeats allowed) into ranges, bridging gaps of up to ``max_gap`` rows."""
    first = np.ones(len(rows), np.bool_)
    np.greater(rows[1:] - rows[:-1], max_gap + 1, out=first[1:])
    begins = np.flatnonzero(first)
    starts = rows[begins]
    stops = rows[np.append(begins[1:], len(rows))[: len(begins)] - 1] + 1
    shifts = np.cumsum(np.append(0, stops - starts))[:-1] - starts
    return Ranges(starts, stops, rows + np.repeat(shifts, np.diff(np.append(begins, len(rows)))))


def batch_indptr(lengths: Ints, cuts: Ints) -> list[Ints]:
    """Give each batch's indptr: for batch b, (cuts[b + 1] - cuts[b] + 1,) int64 that starts at 0."""
    ends = np.cumsum(np.append(0, lengths))
    return [ends[start : stop + 1] - ends[start] for start, stop in zip(cuts[:-1], cuts[1:], strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Which chunks of an array to read, and where the elements in them go."""

    chunks: Ints
    """(n_chunks,) chunk numbers, ascending, each once."""
    bounds: Ints
    """(n_chunks + 1,) chunk c's pieces are [bounds[c], bounds[c + 1])."""
    sources: Ints
    """(n_pieces,) first element of a piece, counted within its chunk."""
    lengths: Ints
    """(n_pieces,) elements in a piece, at least 1."""
    targets: Ints
    """(n_pieces,) address of a piece's destination."""


def plan_pieces(lo: Ints, hi: Ints, targets: Ints, itemsize: int, chunk_elements: int) -> Pieces:
    """Cut rows at chunk boundaries.

    Parameters
    ----------
    lo, hi
        (n_rows,) element ranges of the rows, ascending in ``lo``; repeated rows are allowed.
    targets
        (n_rows,) address of each row's destination.
    itemsize
        Bytes of an element at the destination.
    chunk_elements
        Elements in a chunk.
    """
    chunks = _touched_chunks(lo, hi, chunk_elements)
    return Pieces(chunks, *_cut(lo, hi, targets, itemsize, chunk_elements, chunks))


@Kernel
def _touched_chunks(lo: Any, hi: Any, chunk_elements: Any) -> Any:
    n = 0
    last = -1
    for i in range(len(lo)):
        if hi[i] > lo[i]:
            begin = max(lo[i] // chunk_elements, last + 1)
            end = (hi[i] - 1) // chunk_elements
            if end >= begin:
                n += end - begin + 1
                last = end
    chunks = np.empty(n, np.int64)
    n = 0
    last = -1
    for i in range(len(lo)):
        if hi[i] > lo[i]:
            for chunk in range(max(lo[i] // chunk_elements, last + 1), (hi[i] - 1) // chunk_elements + 1):
                chunks[n] = chunk
                n += 1
                last = chunk
    return chunks


@Kernel
def _cut(lo: Any, hi: Any, targets: Any, itemsize: Any, chunk_elements: Any, chunks: Any) -> Any:
    bounds = np.zeros(len(chunks) + 1, np.int64)
    slot = 0
    for i in range(len(lo)):
        if hi[i] > lo[i]:
            chunk = lo[i] // chunk_elements
            while chunks[slot] < chunk:
                slot += 1
            for k in range((hi[i] - 1) // chunk_elements - chunk + 1):
                bounds[slot + k + 1] += 1
    for c in range(len(chunks)):
        bounds[c + 1] += bounds[c]
    n_pieces = bounds[len(chunks)]
    sources = np.empty(n_pieces, np.int64)
    lengths = np.empty(n_pieces, np.int64)
    piece_targets = np.empty(n_pieces, np.int64)
    filled = bounds[:-1].copy()
    slot = 0
    for i in range(len(lo)):
        if hi[i] > lo[i]:
            chunk = lo[i] // chunk_elements
            while chunks[slot] < chunk:
                slot += 1
            begin = lo[i]
            k = slot
            while begin < hi[i]:
                end = min(hi[i], (chunk + 1) * chunk_elements)
                piece = filled[k]
                filled[k] += 1
                sources[piece] = begin - chunk * chunk_elements
                lengths[piece] = end - begin
                piece_targets[piece] = targets[i] + (begin - lo[i]) * itemsize
                begin = end
                chunk += 1
                k += 1
    return bounds, sources, lengths, piece_targets
