"""How do threads share out the chunks of a window?

A `Scatter` knows pieces of chunks, of one array or of several alike (the ``X/data`` of all stores), and where their
bytes are. Any number of threads may `run` it, each with its own workspace:

1. Where a kernel knows codec and cast, each thread makes one call that holds no GIL, and the calls share the chunks out
   between them by a counter.
2. gzip, and casts that only NumPy makes as NumPy does, go through Python chunk by chunk.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from annbatch.counters import BYTES_DECODED, of_thread
from annbatch.errors import CorruptStoreError, StoreError
from annbatch.plan.chunk_pieces import Pieces
from annbatch.shards.checksum import CRC32C
from annbatch.shards.chunk_files import ChunkFiles, Places, locate_all
from annbatch.shards.codecs import HEAD_NBYTES, Codec, Decoder, Workspace, gunzip
from annbatch.shards.decode_kernels import DECODE, Job, Status, read_stored
from annbatch.shards.packed_kernels import RUN_NBYTES, PackedJob, plan_runs
from annbatch.shards.packed_layout import BLOCK, Layout
from annbatch.shards.scatter_kernels import copy_types, native_types, scatter_buffer, scatter_chunks, scatter_packed
from annbatch.shards.shard_index import Located

Ints = npt.NDArray[np.int64]

_NO_RUNS: Ints = np.zeros(1, np.int64)


@dataclass(frozen=True, slots=True)
class Form:
    """What the chunks of an array have in common; arrays of equal form can be scattered together."""

    dtype: np.dtype[Any]
    """Stored dtype."""
    chunk_elements: int
    """Elements in a chunk."""
    decoder: Decoder
    """How a chunk is decoded."""
    fill: bytes
    """The one element that missing chunks consist of."""

    @property
    def nbytes(self) -> int:
        """Size of a decoded chunk."""
        return self.chunk_elements * self.dtype.itemsize

    @property
    def max_stored_nbytes(self) -> int:
        """Most bytes that a chunk is stored in."""
        return self.decoder.stored_nbytes(self.chunk_elements, self.dtype.itemsize)[1]


@dataclass(frozen=True, slots=True, eq=False)
class Scatter:
    """Pieces of chunks on the way to their addresses."""

    form: Form
    """Of all arrays."""
    layouts: Sequence[Places]
    """Those of the arrays."""
    pieces: Pieces
    """What to scatter."""
    dtype: np.dtype[Any]
    """What the elements are cast to, as `numpy.ndarray.astype` does."""
    limit: int | None
    """If given, integers must be at least 0 and below it."""
    located: Located
    """Where the chunks are stored."""
    tickets: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    """(1,) the next chunk that a kernel takes."""
    runs: Ints = field(init=False)
    """Of packed chunks, those that are read in one request, as `annbatch.shards.packed_kernels.plan_runs` says."""
    turns: Iterator[int] = field(init=False)
    """The next chunk that Python takes."""

    def __post_init__(self) -> None:
        pieces, dtype = self.pieces, self.dtype
        n_pieces = len(pieces.sources)
        if not n_pieces == len(pieces.lengths) == len(pieces.targets) or len(pieces.bounds) != len(pieces.chunks) + 1:
            raise ValueError(
                f"pieces must have as many sources as lengths and targets, and one bound more than chunks, got "
                f"{n_pieces}, {len(pieces.lengths)}, {len(pieces.targets)}, {len(pieces.bounds)} and "
                f"{len(pieces.chunks)}"
            )
        if len(self.located.fds) != len(pieces.chunks):
            raise ValueError(f"{len(pieces.chunks)} chunks must be located, got {len(self.located.fds)}")
        if self.limit is not None and (self.form.dtype.kind not in "iu" or dtype.kind not in "iu"):
            raise ValueError(f"limit needs integers, got {self.form.dtype} and {dtype}")
        stored = self.located.fds, self.located.offsets, self.located.nbytes
        is_packed = self.form.decoder.codec is Codec.PACKED
        object.__setattr__(self, "runs", plan_runs(*stored) if is_packed else _NO_RUNS)
        object.__setattr__(self, "turns", iter(range(len(pieces.chunks))))

    @classmethod
    def of(
        cls, form: Form, tables: Sequence[ChunkFiles], pieces: Pieces, dtype: np.dtype[Any], limit: int | None
    ) -> Scatter:
        """Find the chunks on the local disk.

        Raises
        ------
        ValueError
            If the pieces do not fit together, or a limit is set where there are no integers.
        CorruptStoreError, StoreError
            As `annbatch.shards.chunk_files.locate_all` does.
        """
        located = locate_all(tables, pieces.edges, pieces.chunks)
        return cls(form, [table.layout for table in tables], pieces, dtype, limit, located)

    def run(self, workspace: Workspace) -> None:
        """Read, decode and scatter chunks until none is left.

        Raises
        ------
        CorruptStoreError
            If what is stored contradicts its checksum, its size or ``limit``; what the destinations hold is then void.
        StoreError
            If a file cannot be read, or a piece reaches beyond its chunk.
        """
        types = native_types(self.form.dtype, self.dtype)
        if types is not None and self.form.decoder.codec is not Codec.GZIP:
            self._run_kernel(workspace, types)
        else:
            self._run_in_python(workspace, types)

    def _run_kernel(self, workspace: Workspace, types: tuple[np.dtype[Any], np.dtype[Any]]) -> None:
        decoder, nbytes, located, pieces = self.form.decoder, self.form.nbytes, self.located, self.pieces
        stored = located.fds, located.offsets, located.nbytes
        wanted = pieces.bounds, pieces.sources, pieces.lengths, pieces.targets, self._limit()
        fill, like = np.frombuffer(bytearray(self.form.fill), types[0]), np.empty(0, types[1])
        if decoder.codec is Codec.PACKED:
            layout = Layout(self.form.chunk_elements, self.form.dtype.itemsize)
            scratch = workspace.scratch(layout.n_blocks * BLOCK * layout.itemsize)
            raw = workspace.raw(max(self.form.max_stored_nbytes, RUN_NBYTES))
            n, own = self.form.chunk_elements, (pieces.bounds, pieces.sources, pieces.lengths)
            packed = PackedJob(decoder.delta, n, stored, self.runs, own, fill, raw, scratch)
            ends = scratch[:nbytes].view(types[0]), like, self.tickets
            status, j = scatter_packed(packed.decode, packed.fields, self.runs, *wanted, *ends)
        else:
            scratch = workspace.scratch(nbytes).view(types[0])
            raw = workspace.raw(self.form.max_stored_nbytes)
            shuffled = workspace.shuffled(nbytes if decoder.shuffle > 1 else 0)
            job = Job(decoder, workspace, fill, pieces.sources, pieces.lengths, raw, shuffled, scratch)
            status, j = scatter_chunks(DECODE.address, job.fields, *stored, *wanted, scratch, like, self.tickets)
        if status != Status.OK:
            self.fail(status, j)

    def _run_in_python(self, workspace: Workspace, types: tuple[np.dtype[Any], np.dtype[Any]] | None) -> None:
        """Do what `_run_kernel` does for codecs and casts that have no kernel."""
        pieces = self.pieces
        for j in self.turns:
            own = slice(pieces.bounds[j], pieces.bounds[j + 1])
            part = pieces.sources[own], pieces.lengths[own], pieces.targets[own]
            # HDF5 may store an array in one piece, of which the last chunk is shorter than the others.
            decoded = self._decoded(workspace, j, int((part[0] + part[1]).max(initial=0)))
            if types is None:
                # A cast that only NumPy makes as NumPy does; what is out of range is its business, not a warning.
                with np.errstate(all="ignore"):
                    decoded = decoded.astype(self.dtype)
            seen, wanted = types or copy_types(self.dtype)
            status = scatter_buffer(decoded.view(seen), *part, self._limit(), np.empty(0, wanted))
            if status != Status.OK:
                self.fail(status, j)

    def _decoded(self, workspace: Workspace, j: int, n: int) -> npt.NDArray[Any]:
        """Give a chunk in memory of its own, of which at least the first ``n`` elements are decoded."""
        form, located = self.form, self.located.part(j)
        decoded = np.full(form.chunk_elements, np.frombuffer(form.fill, form.dtype)[0])
        if located.offsets[0] == -1:
            return decoded
        if form.decoder.codec is not Codec.GZIP:
            first = [np.array([value], np.int64) for value in (0, n, decoded.ctypes.data)]
            pieces = Pieces(self.pieces.chunks[j : j + 1], (0, 1), np.array([0, 1], np.int64), *first)
            one = Scatter(form, self.layouts[self._array_of(j) :][:1], pieces, form.dtype, None, located)
            one.run(workspace)
            return decoded
        raw = workspace.raw(form.max_stored_nbytes)
        check = CRC32C.address if form.decoder.crc32c else 0
        where = located.fds[0], located.offsets[0], located.nbytes[0]
        status, size = read_stored(*where, raw, check, of_thread())
        if status != Status.OK:
            self.fail(status, j)
        plain = gunzip(raw[HEAD_NBYTES : HEAD_NBYTES + size], form.nbytes)
        if plain is None:
            self.fail(Status.DECODE, j)
        of_thread()[BYTES_DECODED] += form.nbytes
        decoded.view(np.uint8).reshape(-1, form.decoder.shuffle)[:] = plain.reshape(form.decoder.shuffle, -1).T
        return np.cumsum(decoded, dtype=decoded.dtype) if form.decoder.delta else decoded

    def _limit(self) -> int:
        """Give the limit for a kernel, which may see negative values as huge unsigned ones."""
        if self.limit is None:
            return -1
        dtype = self.form.dtype
        return min(self.limit, 2 ** (8 * dtype.itemsize - 1)) if dtype.kind == "i" else min(self.limit, 2**63 - 1)

    def _array_of(self, j: int) -> int:
        return bisect_right(self.pieces.edges, j) - 1

    def fail(self, status: int, j: int) -> NoReturn:
        """Raise what a kernel's `Status` at a chunk stands for."""
        text = Status(status).text + (f" of {self.limit}" if status == Status.LIMIT else "")
        kind = StoreError if status in (Status.READ, Status.PIECE) else CorruptStoreError
        if kind is CorruptStoreError and self.located.forget is not None:
            self.located.forget(j)
        raise kind(f"{self.layouts[self._array_of(j)].describe(int(self.pieces.chunks[j]))}: {text}")
