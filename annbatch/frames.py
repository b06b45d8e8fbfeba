"""How do chunks that a device decodes get there?

1. `why_not` says whether a device can decode the chunks of some matrices: all zstd, alike in form, on the local disk.
2. `plan_chunks` says which chunks hold a window's rows, and where in them each row begins.
3. Threads read their bytes into page-locked memory, as they are; they check what there is to check on the CPU: crc32c,
   and that the frame's header announces the size of a chunk (`read_frames`).
4. `FramedPart` copies them, and lets the device decode all in one call, and look at the column numbers. What it found
   is there before the first batch of the window is handed over. Shuffled bytes are put together when batches are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from annbatch.assemble import Filling
from annbatch.buffers import aligned
from annbatch.codecs import Codec
from annbatch.device import Frames
from annbatch.elements import DirectElements, Elements, Work
from annbatch.errors import CorruptStoreError, StoreError
from annbatch.kernels import Status
from annbatch.layout import RowPlan
from annbatch.native import Kernel, crc32c_at, inline, pread, take_ticket, view
from annbatch.nvcomp import ALIGNMENT_BYTES
from annbatch.pieces import Pieces
from annbatch.plan import Ints, WindowPlan, address
from annbatch.scatter import Form
from annbatch.shard_index import Located
from annbatch.shard_tables import ShardTables, locate_all
from annbatch.shards import MAX_FILES
from annbatch.staging import Staged, StagedPart, Window, extent, place_in
from annbatch.store import Matrix, SparseMatrix

_BYTES = np.empty(0, np.uint8)


def why_not(matrices: Sequence[tuple[str, Matrix]]) -> str | None:
    """Say why a device cannot decode the chunks of these sparse matrices of all stores; None if it can.

    Dense ones among them do not matter: they are decoded on the CPU in any case.
    """
    sparse = [(name, matrix) for name, matrix in matrices if isinstance(matrix, SparseMatrix)]
    if not sparse:
        return "there is no sparse matrix"
    forms: dict[str, Form] = {}
    for name, matrix in sparse:
        for key, elements in (("data", matrix.data), ("indices", matrix.indices)):
            if not isinstance(elements, DirectElements):
                return f"{name}/{key} is not read directly from a local disk"
            form = elements.form
            if form.decoder.codec is not Codec.ZSTD:
                return f"the chunks of {name}/{key} are {form.decoder.codec.name.lower()}, not zstd"
            if form.decoder.shuffle not in (1, form.dtype.itemsize):
                return (
                    f"{name}/{key} is shuffled by {form.decoder.shuffle} bytes, its elements have {form.dtype.itemsize}"
                )
            element = name.rpartition(" ")[2]
            if forms.setdefault(f"{element}/{key}", form) != form:
                return f"the chunks of {name}/{key} have another type, size or codec than those of the first store"
    return None


# --- planning ---------------------------------------------------------------------------------------------------------


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


# --- reading ----------------------------------------------------------------------------------------------------------


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
            status = pread(fds[j], targets[j], size, offsets[j])
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
        j = take_ticket(tickets)
    return _OK, -1


_OK, _CHECKSUM, _HEADER = int(Status.OK), int(Status.CHECKSUM), int(Status.HEADER)


@dataclass(frozen=True, slots=True, eq=False)
class FrameRead:
    """Chunks of some arrays on their way into memory, as they are stored."""

    form: Form
    """Of all arrays."""
    tables: Sequence[ShardTables]
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
        )
        if status != Status.OK:
            kind = StoreError if status == Status.READ else CorruptStoreError
            raise kind(f"{describe(self.tables, self.pieces, j)}: {Status(status).text}")


def describe(tables: Sequence[ShardTables], pieces: Pieces, j: int) -> str:
    """Name the file and the inner chunk of a chunk."""
    array = int(np.searchsorted(pieces.edges, j, "right")) - 1
    return tables[array].layout.describe(int(pieces.chunks[j]))


class _Array:
    """The chunks of one window in ``data``, or in ``indices``, of all stores."""

    def __init__(self, arrays: Sequence[Elements], rows: RowPlan) -> None:
        direct = [array for array in arrays if isinstance(array, DirectElements)]
        self.form = direct[0].form
        self.tables = [array.tables for array in direct]
        self.pieces, self.sources = plan_chunks(rows, self.form.chunk_elements)
        self.stride = _up(self.form.nbytes)
        per_shard = [tables.layout.chunks_per_shard for tables in self.tables]
        # As on the CPU: a window of single rows may touch every file, and only so many are held open.
        parts = self.pieces.parts(per_shard, MAX_FILES) if len(self.pieces.chunks) else []
        located = [locate_all(self.tables, part.edges, part.chunks) for part in parts[:1]]
        self._parts = list(zip(parts, located if len(parts) == 1 else [None] * len(parts), strict=True))
        found = located if len(parts) == 1 else (locate_all(self.tables, part.edges, part.chunks) for part in parts)
        stored = np.concatenate([np.empty(0, np.int64), *(part.nbytes for part in found)])
        is_missing = stored < 0
        self._missing = missing_frame(self.form) if is_missing.any() else _BYTES
        self.room = np.where(is_missing, len(self._missing), stored)
        self.nbytes = self.room - np.where(is_missing, 0, 4 if self.form.decoder.crc32c else 0)

    def work(self, targets: Ints) -> Work:
        """Say what reads the chunks to these addresses."""
        reads, first = [], 0
        for part, located in self._parts:
            own = targets[first : first + len(part.chunks)]
            reads.append(FrameRead(self.form, self.tables, part, own, self._missing, located))
            first += len(own)
        return Work(shared=[*reads]) if len(reads) == 1 else Work(single=[*reads])


class FramedPart(StagedPart):
    """A CSR matrix over all stores whose chunks are decoded, and whose batches are made, on a device."""

    def begin(self, plan: WindowPlan, rows: RowPlan, located: Iterator[Located]) -> Filling:
        """Take page-locked memory for the window's chunks, as they are stored, and say what reads them."""
        values, indices = arrays = [_Array(elements, rows) for elements in self._arrays(plan)]
        n_rows, n_values = len(rows.lo), len(values.room)
        room, nbytes = (np.concatenate([getattr(one, name) for one in arrays]) for name in ("room", "nbytes"))
        n_frames = len(room)
        ends = np.cumsum(_up(room))
        host = self._slabs.arrays(
            (n_rows, _INT64),
            (n_rows, _INT64),
            (len(rows.starts), _INT64),
            (len(self._lookup), np.dtype(np.int32)),
            (4 * n_frames, _INT64),
            (int(ends[-1]) if n_frames else 0, np.dtype(np.uint8)),
            (1, _INT64),
            (n_frames, _INT64),
            (n_frames, np.dtype(np.int32)),
        )
        value_rows, index_rows, starts, lookup, table, frames, wrong, decoded, statuses = host
        value_rows[plan.order], index_rows[plan.order] = values.sources, indices.sources
        starts[:], lookup[:] = rows.starts, self._lookup
        targets = address(frames) + ends - _up(room)
        work = values.work(targets[:n_values])
        work += indices.work(targets[n_values:])

        def send() -> Window:
            device = self._pool.device
            stream, sent, results = device.copying, extent(host[:6]), extent(host[6:])
            sizes = np.repeat([values.form.nbytes, indices.form.nbytes], [n_values, n_frames - n_values])
            strides = np.repeat([values.stride, indices.stride], [n_values, n_frames - n_values])
            places = np.cumsum(strides) - strides
            # In the memory of the device: what the slab holds, decoded chunks, and marks of rows.
            first = aligned(extent(host))
            marks = first + aligned(int(strides.sum()))
            scratch_nbytes = device.scratch_nbytes(n_frames, int(sizes.max()), int(sizes.sum())) if n_frames else 0
            staging = self._pool.take(marks + aligned(n_rows))
            place = partial(place_in, staging, host)
            at = staging.ptr + first
            table.reshape(4, n_frames)[:] = place(frames) + ends - _up(room), nbytes, at + places, sizes
            stream.copy(staging.ptr, address(host[0]), sent)
            stream.zero(place(wrong), results)
            stream.zero(staging.ptr + marks, n_rows)
            column = 8 * n_frames
            frames_there = Frames(
                n_frames,
                sources=place(table),
                source_nbytes=place(table) + column,
                targets=place(table) + 2 * column,
                target_nbytes=place(table) + 3 * column,
                decoded_nbytes=place(decoded),
                statuses=place(statuses),
                scratch=self._pool.scratch(scratch_nbytes),
                scratch_nbytes=scratch_nbytes,
            )
            if n_frames:
                stream.decompress(frames_there)
            window = Window(
                staging,
                _staged(at, values),
                _staged(at + n_values * values.stride, indices),
                place(value_rows),
                place(index_rows),
                place(starts),
                place(lookup) if len(lookup) else 0,
                staging.ptr + marks,
                stream.record(),
            )
            self._check_rows(window, rows, place(wrong))
            stream.copy(address(wrong), place(wrong), results)
            window.copied = stream.record()
            window.check = partial(self._check, plan, rows, arrays, wrong, decoded, statuses)
            self._pool.keep(host, window.copied)
            return window

        return self._filling(plan, rows, work, extent(host), send)

    def _check(
        self, plan: WindowPlan, rows: RowPlan, arrays: Sequence[_Array], wrong: Ints, decoded: Ints, statuses: Any
    ) -> None:
        """Look at what the device said.

        Raises
        ------
        CorruptStoreError
            If a chunk was not decoded, to its size, or a column number is out of range.
        """
        first = 0
        for array in arrays:
            own = slice(first, first + len(array.room))
            bad = np.flatnonzero((statuses[own] != 0) | (decoded[own] != array.form.nbytes))
            if len(bad):
                j = int(bad[0])
                raise CorruptStoreError(
                    f"{describe(array.tables, array.pieces, j)}: {Status.DECODE.text} (nvCOMP's status "
                    f"{statuses[own][j]}, {decoded[own][j]} of {array.form.nbytes} bytes)"
                )
            first = own.stop
        if wrong[0]:
            read = int(np.flatnonzero(plan.order == wrong[0] - 1)[0])
            reading = plan.readings[int(np.searchsorted(rows.edges, read, "right")) - 1]
            row = int(reading.ranges.rows[read - reading.first])
            raise CorruptStoreError(
                f"{self._names[reading.store]}/indices: row {row}: {Status.LIMIT.text} of {self._n_stored}"
            )


def _staged(at: int, array: _Array) -> Staged:
    form = array.form
    return Staged(at, form.chunk_elements, array.stride, form.decoder.shuffle > 1)


def _up(nbytes: Any) -> Any:
    """Round up to what nvCOMP wants."""
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


_INT64 = np.dtype(np.int64)
