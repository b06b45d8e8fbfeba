"""How do blocks of packed chunks get into page-locked memory, to be unpacked elsewhere?

1. `plan_blocks` says which groups of blocks hold a window's rows, and where in them each row begins.
2. A `BlockRead` lets threads read a chunk's table and those groups, and nothing else of it. They check what
   ``docs/packed.md`` has a reader check, checksums included, but for what shows only when a block is unpacked. The
   bytes lie one behind the other, in the order in which threads came to read them. Beside them stands where each block
   begins, its descriptor, and its base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.counters import BYTES_DECODED, of_thread
from annbatch.device.stored_chunks import describe, plan_chunks
from annbatch.errors import CorruptStoreError, StoreError
from annbatch.native import Kernel, address_of, fetch_add, inline, pread, take_ticket, view
from annbatch.plan.chunk_pieces import Pieces
from annbatch.plan.row_places import RowPlan
from annbatch.plan.window import Ints
from annbatch.shards.checksum import crc32c_at
from annbatch.shards.chunk_files import ChunkFiles, locate_all
from annbatch.shards.decode_kernels import Status
from annbatch.shards.packed_kernels import edges_of
from annbatch.shards.packed_layout import BLOCK, GROUP, Layout
from annbatch.shards.scatter import Form
from annbatch.shards.shard_index import Located

_OK, _SIZE, _CHECKSUM, _DECODE = (int(status) for status in (Status.OK, Status.SIZE, Status.CHECKSUM, Status.DECODE))
_GROUP, _DESCRIPTORS = GROUP, np.empty(0, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class BlockPlan:
    """Which groups of blocks of some arrays hold the rows of a window."""

    pieces: Pieces
    """Their chunks, without pieces."""
    bounds: Ints
    """(n_chunks + 1,) chunk c's units are [bounds[c], bounds[c + 1])."""
    units: Ints
    """(n_units,) their numbers in their chunks."""
    unit_elements: int
    """Elements in a unit: a group of blocks, or a chunk that cannot be cut into whole groups."""
    sources: Ints
    """(n_rows,) the first element of each row, counted through the units, in the order of reading."""

    @property
    def blocks_per_unit(self) -> int:
        """Blocks in a unit; the last one may be filled up."""
        return -(-self.unit_elements // BLOCK)


def plan_blocks(rows: RowPlan, chunk_elements: int) -> BlockPlan:
    """Say which groups of blocks hold the rows of each reading's array."""
    unit_elements = chunk_elements if chunk_elements % (GROUP * BLOCK) else GROUP * BLOCK
    found, sources = plan_chunks(rows, unit_elements)
    chunks, units = np.divmod(found.chunks, chunk_elements // unit_elements)
    is_first = np.diff(chunks, prepend=-1) != 0
    starts = np.array(found.edges, np.int64)
    is_first[starts[starts < len(chunks)]] = True
    firsts = np.flatnonzero(is_first)
    edges = tuple(np.searchsorted(firsts, starts).tolist())
    nothing = np.empty(0, np.int64)
    pieces = Pieces(chunks[firsts], edges, np.zeros(len(firsts) + 1, np.int64), nothing, nothing, nothing)
    return BlockPlan(pieces, np.append(firsts, len(chunks)), units, unit_elements, sources)


@inline
def _load(stored: Any, at: Any, nbytes: Any) -> Any:
    """Load an integer from bytes, the lowest first."""
    found = np.int64(0)
    for k in range(nbytes):
        found |= np.int64(stored[at + k]) << 8 * k
    return found


@Kernel
def read_blocks(
    delta: bool,
    fds: Any,
    offsets: Any,
    sizes: Any,
    bounds: Any,
    units: Any,
    layout: Any,
    target: int,
    room: int,
    cursor: Any,
    fill: int,
    sources: Any,
    descriptors: Any,
    bases: Any,
    tickets: Any,
    counts: Any,
) -> tuple[int, int]:
    """Read and check units of packed chunks until no chunk is left.

    Parameters
    ----------
    delta
        As in ``docs/packed.md``.
    fds, offsets, sizes
        (n,) int32, int64, int64: where each chunk is stored; offset -1 means that it is missing.
    bounds
        (n + 1,) chunk j's units are [bounds[j], bounds[j + 1]).
    units
        Their numbers in their chunks, ascending in each.
    layout
        (6,) int64: blocks in a chunk and in a unit, bytes of a value, first bytes of bases, of checksums and of blocks.
    target, room
        Address that bytes are read to, and how many fit.
    cursor
        (1,) int64: how many there are; every thread counts it up.
    fill
        What missing chunks consist of.
    sources, descriptors, bases
        (n_units * blocks in a unit,) int64: are filled with the first byte of each block behind ``target``, with its
        descriptor, bit 32 of which says whether it holds differences, and with its base.
    tickets
        (1,) int64: the next chunk to take; every thread counts it up.
    counts
        Those of the thread, see `annbatch.counters.of_thread`.

    Returns
    -------
    tuple of int
        The `Status`, and the chunk where it arose.
    """
    n_blocks, per_unit, itemsize, of_bases, of_checksums, table_nbytes = layout
    table, edges = np.empty(table_nbytes, np.uint8), np.empty(n_blocks + 1, np.int32)
    j = take_ticket(tickets)
    while j < fds.size:
        if offsets[j] == -1:
            for b in range(bounds[j] * per_unit, bounds[j + 1] * per_unit):
                sources[b], descriptors[b], bases[b] = 0, 0, fill
            j = take_ticket(tickets)
            continue
        if offsets[j] < 0 or sizes[j] < table_nbytes:
            return _SIZE, j
        status = pread(fds[j], address_of(table), table_nbytes, offsets[j], counts)
        if status != _OK:
            return status, j
        if crc32c_at(address_of(table) + 4, table_nbytes - 4) != _load(table, 0, 4):
            return _CHECKSUM, j
        stored = view(address_of(table) + 4, n_blocks, _DESCRIPTORS)
        if not edges_of(stored, itemsize, edges) or edges[n_blocks] != sizes[j] - table_nbytes:
            return _DECODE, j
        unit = bounds[j]
        while unit < bounds[j + 1]:
            # Neighbours are read together.
            end = unit + 1
            while end < bounds[j + 1] and units[end] == units[end - 1] + 1:
                end += 1
            first, last = units[unit] * per_unit, (units[end - 1] + 1) * per_unit
            start = np.int64(edges[first])
            nbytes = edges[last] - start
            at = fetch_add(address_of(cursor), nbytes)
            if nbytes > room - at:
                return _SIZE, j
            status = pread(fds[j], target + at, nbytes, offsets[j] + table_nbytes + start, counts)
            if status != _OK:
                return status, j
            for group in range(first // _GROUP, (last + _GROUP - 1) // _GROUP):
                low, high = edges[group * _GROUP], edges[min((group + 1) * _GROUP, n_blocks)]
                if crc32c_at(target + at + low - start, high - low) != _load(table, of_checksums + 4 * group, 4):
                    return _CHECKSUM, j
            counts[BYTES_DECODED] += (last - first) * BLOCK * itemsize
            for b in range(first, last):
                to = unit * per_unit + b - first
                sources[to] = at + edges[b] - start
                descriptors[to] = _load(table, 4 + 4 * b, 4) | np.int64(delta) << 32
                bases[to] = _load(table, of_bases + itemsize * b, itemsize)
            unit = end
        j = take_ticket(tickets)
    return _OK, -1


@dataclass(frozen=True, slots=True, eq=False)
class BlockTables:
    """What is noted about the blocks of an array; each (n_blocks,) int64, as `read_blocks` fills it."""

    sources: Ints
    descriptors: Ints
    bases: Ints


@dataclass(frozen=True, slots=True, eq=False)
class BlockRead:
    """Blocks of some arrays on their way into memory, packed."""

    form: Form
    """Of all arrays."""
    tables: Sequence[ChunkFiles]
    """Those of the arrays."""
    plan: BlockPlan
    """Which blocks."""
    pieces: Pieces
    """Which of the plan's chunks are read here."""
    bounds: Ints
    """(n_chunks + 1,) which of the plan's units belong to each of them."""
    blocks: BlockTables
    """What is noted about the plan's blocks."""
    target: NDArray[np.uint8]
    """Memory for their bytes."""
    cursor: Ints
    """(1,) how many bytes there are."""
    located: Located | None
    """Where the chunks are stored; None if that is found out when they are read."""
    tickets: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    """(1,) the next chunk to read."""

    def __call__(self) -> None:
        """Read until none is left; any number of threads may.

        Raises
        ------
        CorruptStoreError
            If what is stored is no packed chunk, or contradicts its checksums.
        StoreError
            If a file cannot be read.
        """
        located = self.located or locate_all(self.tables, self.pieces.edges, self.pieces.chunks)
        form = self.form
        layout, per_unit = Layout(form.chunk_elements, form.dtype.itemsize), self.plan.blocks_per_unit
        sizes = layout.n_blocks, per_unit, layout.itemsize, layout.bases, layout.checksums, layout.blocks
        status, j = read_blocks(
            form.decoder.delta,
            located.fds,
            located.offsets,
            located.nbytes,
            self.bounds,
            self.plan.units,
            np.array(sizes, np.int64),
            self.target.ctypes.data,
            self.target.size,
            self.cursor,
            int(np.frombuffer(form.fill, form.dtype.newbyteorder("<")).astype(np.int64)[0]),
            self.blocks.sources,
            self.blocks.descriptors,
            self.blocks.bases,
            self.tickets,
            of_thread(),
        )
        if status != Status.OK:
            kind = StoreError if status == Status.READ else CorruptStoreError
            raise kind(f"{describe(self.tables, self.pieces, j)}: {Status(status).text}")
