"""How do stored chunks get into page-locked memory, to be decoded elsewhere?

1. `plan_chunks` says which chunks hold a window's rows, and where in them each row begins; `find_chunks` where they are
   stored.
2. A `FrameRead` lets threads read their bytes as they are, and check what can be checked on the CPU: crc32c, and that
   the zstd frame's header announces the size of a chunk. A missing chunk gets the frame that it would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from annbatch.counters import BYTES_DECODED, of_thread
from annbatch.errors import CorruptStoreError, StoreError
from annbatch.native import Kernel, inline, pread, take_ticket, view
from annbatch.plan.chunk_pieces import Pieces
from annbatch.plan.row_places import RowPlan
from annbatch.plan.window import Ints
from annbatch.shards.checksum import crc32c_at
from annbatch.shards.chunk_files import MAX_FILES, ChunkFiles, locate_all
from annbatch.shards.decode_kernels import Status
from annbatch.shards.scatter import Form
from annbatch.shards.shard_index import Located

_BYTES = np.empty(0, np.uint8)
_OK, _CHECKSUM, _HEADER = int(Status.OK), int(Status.CHECKSUM), int(Status.HEADER)


def plan_chunks(rows: RowPlan, chunk_elements: int) -> tuple[Pieces, Ints]:
    """Say which chunks of each reading's array hold its rows, and where each row begins among their elements.

    Parameters
    ----------
    rows
        The rows.
    chunk_elements
        Elements in a chunk.

    Returns
    -------
    chunks
        Without pieces.
    sources
        (n_rows,) the first element of each row, counted through these chunks, in the order of reading.
    """
    edges, chunks, sources = _plan_chunks(rows.lo, rows.hi, rows.edges, chunk_elements)
    nothing = np.empty(0, np.int64)
    bounds = np.zeros(len(chunks) + 1, np.int64)
    return Pieces(chunks, tuple(edges.tolist()), bounds, nothing, nothing, nothing), sources


@Kernel
def _plan_chunks(lo: Any, hi: Any, edges: Any, n: Any) -> Any:
    n_chunks = 0
    for reading in range(edges.size - 1):
        last = np.int64(-1)
        for i in range(edges[reading], edges[reading + 1]):
            if hi[i] > lo[i]:
                end = (hi[i] - 1) // n
                n_chunks += max(0, end - max(lo[i] // n, last + 1) + 1)
                last = max(last, end)
    chunks, sources = np.empty(n_chunks, np.int64), np.zeros(lo.size, np.int64)
    chunk_edges = np.zeros(edges.size, np.int64)
    slot = 0
    for reading in range(edges.size - 1):
        last = np.int64(-1)
        for i in range(edges[reading], edges[reading + 1]):
            if hi[i] > lo[i]:
                first, end = lo[i] // n, (hi[i] - 1) // n
                for chunk in range(max(first, last + 1), end + 1):
                    chunks[slot] = chunk
                    slot += 1
                last = max(last, end)
                # Rows ascend: the chunks of one are neighbours, and the last of them is the last one so far.
                sources[i] = (slot - 1 - (last - first)) * n + lo[i] - first * n
        chunk_edges[reading + 1] = slot
    return chunk_edges, chunks, sources


@dataclass(frozen=True, slots=True, eq=False)
class FoundChunks:
    """Where chunks are stored, in parts that are read one after the other."""

    parts: list[tuple[Pieces, Located | None]]
    """None means that they are found again when they are read: only so many files are held open."""
    nbytes: Ints
    """(n_chunks,) their stored sizes; -1 for one that is missing."""


def find_chunks(tables: Sequence[ChunkFiles], pieces: Pieces, located: Located | None = None) -> FoundChunks:
    """Find the chunks of arrays on the local disk, unless they are in memory already: where they are ``located``."""
    if located is not None:
        return FoundChunks([(pieces, located)], located.nbytes)
    per_shard = [of_array.layout.chunks_per_shard for of_array in tables]
    # As on the CPU: a window of single rows may touch every file.
    parts = pieces.parts(per_shard, MAX_FILES) if len(pieces.chunks) else []
    if len(parts) == 1:
        located = locate_all(tables, pieces.edges, pieces.chunks)
        return FoundChunks([(parts[0], located)], located.nbytes)
    sizes = [locate_all(tables, part.edges, part.chunks).nbytes for part in parts]
    return FoundChunks([(part, None) for part in parts], np.concatenate([np.empty(0, np.int64), *sizes]))


def missing_frame(form: Form) -> NDArray[np.uint8]:
    """Give the frame of a chunk that is all fill value: what would be stored if the chunk were not missing."""
    values = np.frombuffer(form.fill * form.chunk_elements, np.uint8)
    planes = values.reshape(-1, form.decoder.shuffle).T
    return np.frombuffer(Zstd(level=1).encode(np.ascontiguousarray(planes)), np.uint8)


@inline
def _announces(address: int, size: int, nbytes: int) -> bool:
    """Say whether a zstd frame begins at an address that may decode to ``nbytes``, and needs no dictionary.

    Format: RFC 8878, 3.1.1.
    """
    frame = view(address, size, _BYTES)
    if size < 6 or frame[0] != 0x28 or frame[1] != 0xB5 or frame[2] != 0x2F or frame[3] != 0xFD:
        return False
    descriptor = np.int64(frame[4])
    is_single = descriptor >> 5 & 1
    at = np.int64(5 if is_single else 6)
    if descriptor & 3:
        return False
    width = np.int64(1) << (descriptor >> 6)
    if width == 1 and not is_single:
        return True
    if size < at + width:
        return False
    announced = np.int64(256 if width == 2 else 0)
    for k in range(width):
        announced += np.int64(frame[at + k]) << 8 * k
    return bool(announced == nbytes)


@Kernel
def read_frames(
    fds: Any,
    offsets: Any,
    sizes: Any,
    targets: Any,
    verify: bool,
    nbytes: int,
    missing: Any,
    tickets: Any,
    counts: Any,
) -> tuple[int, int]:
    """Read the stored bytes of chunks to their addresses, and check them, until none is left.

    Parameters
    ----------
    fds, offsets, sizes
        (n,) int32, int64, int64: where each chunk is stored; offset -1 means that it is missing.
    targets
        (n,) int64 addresses with room for the stored bytes.
    verify
        Whether these end in a crc32c.
    nbytes
        Size of a decoded chunk.
    missing
        The frame of a missing chunk.
    tickets
        (1,) int64: the next chunk to take; every thread counts it up.
    counts
        Those of the thread, see `annbatch.counters.of_thread`.

    Returns
    -------
    tuple of int
        The `Status`, and the chunk where it arose.
    """
    j = take_ticket(tickets)
    while j < fds.size:
        if offsets[j] == -1:
            target = view(targets[j], missing.size, _BYTES)
            for i in range(missing.size):
                target[i] = missing[i]
        else:
            size = sizes[j]
            status = pread(fds[j], targets[j], size, offsets[j], counts)
            if status != _OK:
                return status, j
            if verify:
                size -= 4
                stored = np.int64(0)
                end = view(targets[j] + size, 4, _BYTES)
                for k in range(4):
                    stored |= np.int64(end[k]) << 8 * k
                if crc32c_at(targets[j], size) != stored:
                    return _CHECKSUM, j
            if not _announces(targets[j], size, nbytes):
                return _HEADER, j
        counts[BYTES_DECODED] += nbytes
        j = take_ticket(tickets)
    return _OK, -1


@dataclass(frozen=True, slots=True, eq=False)
class FrameRead:
    """Chunks of some arrays on their way into memory, as they are stored."""

    form: Form
    """Of all arrays."""
    tables: Sequence[ChunkFiles]
    """Those of the arrays."""
    pieces: Pieces
    """Which chunks."""
    targets: Ints
    """(n_chunks,) addresses that their bytes go to."""
    missing: NDArray[np.uint8]
    """The frame of missing chunks; empty if there are none."""
    located: Located | None
    """Where they are stored; None if that is found out when they are read."""
    tickets: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    """(1,) the next chunk to read."""

    def __call__(self) -> None:
        """Read until none is left; any number of threads may."""
        located = self.located or locate_all(self.tables, self.pieces.edges, self.pieces.chunks)
        status, j = read_frames(
            located.fds,
            located.offsets,
            located.nbytes,
            self.targets,
            self.form.decoder.crc32c,
            self.form.nbytes,
            self.missing,
            self.tickets,
            of_thread(),
        )
        if status != Status.OK:
            kind = StoreError if status == Status.READ else CorruptStoreError
            raise kind(f"{describe(self.tables, self.pieces, j)}: {Status(status).text}")


def describe(tables: Sequence[ChunkFiles], pieces: Pieces, j: int) -> str:
    """Name the file and the inner chunk of a chunk."""
    array = int(np.searchsorted(pieces.edges, j, "right")) - 1
    return tables[array].layout.describe(int(pieces.chunks[j]))
