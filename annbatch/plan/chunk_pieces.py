"""Which chunks hold what is wanted, and which piece of them goes to which address?

Pure, compiled, without the GIL. Each chunk appears once, however many rows want it, and a row that straddles chunks is
several pieces.

1. `cut` cuts the rows of a window, in one or several arrays of each store at once (a CSR matrix has two).
2. `cut_ranges` cuts ranges of one array.
3. `Pieces.parts` keeps the number of files small that one call needs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.native import Kernel
from annbatch.plan.row_places import RowPlan
from annbatch.plan.window import Ints


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Which chunks of some arrays to read, and where the elements in them go."""

    chunks: Ints
    """(n_chunks,) chunk numbers, array by array, ascending in each, each once."""
    edges: tuple[int, ...]
    """(n_arrays + 1,) array a's chunks are [edges[a], edges[a + 1])."""
    bounds: Ints
    """(n_chunks + 1,) chunk c's pieces are [bounds[c], bounds[c + 1])."""
    sources: Ints
    """(n_pieces,) first element of a piece, counted within its chunk."""
    lengths: Ints
    """(n_pieces,) elements in a piece, at least 1."""
    targets: Ints
    """(n_pieces,) address of a piece's destination."""

    def part(self, first: int, stop: int) -> Pieces:
        """Give the pieces of some of the chunks; the long arrays stay whole."""
        edges = tuple(min(max(edge, first), stop) - first for edge in self.edges)
        bounds = self.bounds[first : stop + 1]
        return Pieces(self.chunks[first:stop], edges, bounds, self.sources, self.lengths, self.targets)

    def of_arrays(self, first: int, stop: int) -> Pieces:
        """Give the pieces of some of the arrays."""
        part = self.part(self.edges[first], self.edges[stop])
        return Pieces(part.chunks, part.edges[first : stop + 1], part.bounds, part.sources, part.lengths, part.targets)

    def parts(self, chunks_per_shard: Sequence[int], max_files: int) -> list[Pieces]:
        """Give parts whose chunks lie in at most ``max_files`` files, from the chunks in a file of each array."""
        cuts = [*self.file_starts(chunks_per_shard)[::max_files], len(self.chunks)]
        return [self.part(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]

    def file_starts(self, chunks_per_shard: Sequence[int]) -> list[int]:
        """Say where the chunks of each file begin, from the chunks in a file of each array."""
        starts: list[int] = []
        for per_shard, a, b in zip(chunks_per_shard, self.edges[:-1], self.edges[1:], strict=True):
            starts += shard_starts(self.chunks, per_shard, a, b)
        return starts


def shard_starts(chunks: Ints, chunks_per_shard: int, first: int, stop: int) -> list[int]:
    """Say where the chunks of each shard begin, among ascending ones; searches rather than looks at every chunk."""
    starts = []
    while first < stop:
        starts.append(first)
        next_shard = int(chunks[first]) // chunks_per_shard + 1
        first = max(first + 1, bisect_left(chunks, next_shard * chunks_per_shard, first, stop))
    return starts


def cut(rows: RowPlan, chunk_elements: NDArray[np.int64], bases: Ints, itemsizes: Ints) -> list[Pieces]:
    """Cut rows at chunk boundaries.

    Parameters
    ----------
    rows
        The rows.
    chunk_elements
        (n_parts, n_readings) elements in a chunk.
    bases
        (n_parts, n_batches) address of each batch's memory.
    itemsizes
        (n_parts,) bytes of an element there.

    Returns
    -------
    list of Pieces
        For each part, over the arrays of all readings.
    """
    n_parts, n_readings = chunk_elements.shape
    edges, *arrays = _cut(rows.lo, rows.hi, rows.batches, rows.offsets, rows.edges, chunk_elements, bases, itemsizes)
    chunks, bounds, sources, lengths, targets = arrays
    found = edges.tolist()
    parts = []
    for part in range(n_parts):
        own = found[part * n_readings : (part + 1) * n_readings + 1]
        a, b = own[0], own[-1]
        parts.append(Pieces(chunks[a:b], tuple(e - a for e in own), bounds[a : b + 1], sources, lengths, targets))
    return parts


def cut_ranges(starts: Ints, stops: Ints, offsets: Ints, chunk_elements: int, base: int, itemsize: int) -> Pieces:
    """Cut ranges of one array at chunk boundaries; `range_offsets` has checked them."""
    n = len(starts)
    nothing = np.empty(0, np.int64)
    rows = RowPlan(starts, stops, np.zeros(n, np.int64), offsets, np.array([0, n]), nothing, nothing)
    one = np.array([[chunk_elements]]), np.array([[base]]), np.array([itemsize])
    return cut(rows, *one)[0]


def range_offsets(starts: Ints, stops: Ints, size: int) -> Ints | str:
    """Say where each range begins in a buffer that holds them all, and where the buffer ends: (n + 1,).

    A text says what is wrong with them: they must lie within ``size`` elements and ascend in both ends.
    """
    offsets, problem = _range_offsets(starts, stops, size)
    if problem == 1:
        return f"ranges must lie within {size} elements, got {starts.min()}..{stops.max()}"
    return "ranges must ascend" if problem else offsets


@Kernel
def _range_offsets(starts: Any, stops: Any, size: Any) -> Any:
    offsets = np.zeros(starts.size + 1, np.int64)
    problem = 0
    for i in range(starts.size):
        if starts[i] < 0 or stops[i] < starts[i] or stops[i] > size:
            problem = 1
        elif problem == 0 and i and (starts[i] < starts[i - 1] or stops[i] < stops[i - 1]):
            problem = 2
        offsets[i + 1] = offsets[i] + stops[i] - starts[i]
    return offsets, problem


@Kernel
def _cut(
    lo: Any, hi: Any, batches: Any, offsets: Any, edges: Any, chunk_elements: Any, bases: Any, itemsizes: Any
) -> Any:
    n_parts, n_readings = chunk_elements.shape
    n_chunks = n_pieces = 0
    for part in range(n_parts):
        for reading in range(n_readings):
            n, last = chunk_elements[part, reading], -1
            for i in range(edges[reading], edges[reading + 1]):
                if hi[i] > lo[i]:
                    first, end = lo[i] // n, (hi[i] - 1) // n
                    n_pieces += end - first + 1
                    n_chunks += max(0, end - max(first, last + 1) + 1)
                    last = max(last, end)
    chunk_edges = np.zeros(n_parts * n_readings + 1, np.int64)
    chunks, bounds = np.empty(n_chunks, np.int64), np.zeros(n_chunks + 1, np.int64)
    sources, lengths, targets = np.empty(n_pieces, np.int64), np.empty(n_pieces, np.int64), np.empty(n_pieces, np.int64)
    slot = piece = 0
    for part in range(n_parts):
        itemsize = itemsizes[part]
        for reading in range(n_readings):
            n, stop = chunk_elements[part, reading], edges[reading + 1]
            # The first row that reaches beyond the chunks that are done; rows before it are done.
            first = edges[reading]
            while first < stop:
                if hi[first] == lo[first]:
                    first += 1
                    continue
                chunk = lo[first] // n
                if slot > chunk_edges[part * n_readings + reading] and chunks[slot - 1] >= chunk:
                    chunk = chunks[slot - 1] + 1
                begin, end = chunk * n, (chunk + 1) * n
                chunks[slot] = chunk
                row = first
                while row < stop and lo[row] < end:
                    a, b = max(lo[row], begin), min(hi[row], end)
                    if b > a:
                        sources[piece], lengths[piece] = a - begin, b - a
                        targets[piece] = bases[part, batches[row]] + (offsets[row] + a - lo[row]) * itemsize
                        piece += 1
                    row += 1
                slot += 1
                bounds[slot] = piece
                while first < stop and hi[first] <= end:
                    first += 1
            chunk_edges[part * n_readings + reading + 1] = slot
    return chunk_edges, chunks, bounds, sources, lengths, targets
