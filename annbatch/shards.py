"""How do the elements of a local zarr v3 array get to their places, without zarr and without the GIL?

1. `ShardedArray.open` gives the array, or the reason why zarr has to read it.
2. `ShardedArray.scatter` locates, reads, decodes and casts many chunks in one call that holds no GIL.
3. `ShardedArray.read_ranges` gathers ranges of elements; of uncompressed arrays it reads nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.array_metadata import describe
from annbatch.codecs import HEAD_NBYTES, Codec, Decoder, Library, Workspace, gunzip, library
from annbatch.errors import CorruptStoreError, StoreError
from annbatch.kernels import Status, copy_types, native_types, read_pieces, read_stored, scatter_buffer, scatter_chunks
from annbatch.shard_tables import Located, ShardTables

Ints = npt.NDArray[np.int64]
Pieces = tuple[Ints, Ints, Ints]

_FILES_AT_ONCE = 64


@dataclass(frozen=True, slots=True, eq=False)
class ShardedArray:
    """A one-dimensional, or row-chunked two-dimensional, local zarr v3 array that the kernels can read.

    It may be used by many threads, after a fork, and unpickled elsewhere.
    """

    path: Path
    """The array's directory."""
    dtype: np.dtype[Any]
    """Stored dtype."""
    shape: tuple[int, ...]
    """(n,) or (n_rows, n_columns)."""
    chunk_elements: int
    """Elements in an inner chunk; element e of the flattened array lies in chunk ``e // chunk_elements``."""
    decoder: Decoder
    """How an inner chunk is decoded."""
    fill: npt.NDArray[Any] = field(repr=False)
    """(1,) what missing chunks consist of."""
    tables: ShardTables = field(repr=False)
    """Where the chunks are stored."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ShardedArray | str:
        """Open the array in a directory, or give the reason why zarr has to read it.

        Nothing but ``zarr.json`` is read.
        """
        found = describe(Path(path))
        if isinstance(found, str):
            return found
        return cls(
            found.layout.folder,
            found.dtype,
            found.shape,
            found.chunk_elements,
            found.decoder,
            found.fill,
            ShardTables(found.layout),
        )

    def locate(self, chunks: npt.ArrayLike) -> Located:
        """Say where chunks are stored; see `ShardTables.locate`."""
        return self.tables.locate(chunks)

    def scatter(
        self,
        workspace: Workspace,
        chunks: Ints,
        bounds: Ints,
        sources: Ints,
        lengths: Ints,
        targets: Ints,
        dtype: np.dtype[Any],
        limit: int | None = None,
    ) -> None:
        """Read and decode chunks, and cast pieces of them to their addresses; see `prepare`.

        Raises
        ------
        CorruptStoreError
            If what is stored contradicts its checksum, its size or ``limit``; what the destinations hold is then void.
        StoreError
            If a file cannot be read, or a piece reaches beyond its chunk.
        """
        self.prepare(chunks, bounds, sources, lengths, targets, dtype, limit)(workspace)

    def prepare(
        self,
        chunks: Ints,
        bounds: Ints,
        sources: Ints,
        lengths: Ints,
        targets: Ints,
        dtype: np.dtype[Any],
        limit: int | None = None,
    ) -> Callable[[Workspace], None]:
        """Find chunks, and give the function that reads, decodes and scatters them.

        Any number of threads may call it, each with its own workspace: they share the chunks out between them. It
        raises what `scatter` does.

        Parameters
        ----------
        chunks
            (n_chunks,) chunk numbers.
        bounds
            (n_chunks + 1,) chunk c serves the pieces ``bounds[c]`` to ``bounds[c + 1]``. To serve some of the chunks
            of a plan, slice these two and leave the pieces whole.
        sources, lengths
            (n_pieces,) first element, counted within the chunk, and number of elements of each piece.
        targets
            (n_pieces,) address of each piece's destination, which must have room for its elements.
        dtype
            What the elements are cast to, as `numpy.ndarray.astype` does.
        limit
            If given, integers must be at least 0 and below it.
        """
        if not len(sources) == len(lengths) == len(targets) or len(bounds) != len(chunks) + 1:
            raise ValueError(
                f"pieces must have as many sources as lengths and targets, and one bound more than chunks, got "
                f"{len(sources)}, {len(lengths)}, {len(targets)}, {len(bounds)} and {len(chunks)}"
            )
        if limit is not None and (self.dtype.kind not in "iu" or dtype.kind not in "iu"):
            raise ValueError(f"limit needs integers, got {self.dtype} and {dtype}")
        pieces = (_ints(sources), _ints(lengths), _ints(np.asarray(targets).view(np.int64)))
        bounds, located, types = _ints(bounds), self.locate(chunks), native_types(self.dtype, dtype)
        if types is not None and self.decoder.codec is not Codec.GZIP:
            tickets = np.zeros(1, np.int64)
            return partial(self._run, chunks, located, bounds, pieces, types, limit, tickets)
        turns = iter(range(len(chunks)))
        return partial(self._run_in_python, chunks, located, bounds, pieces, types, dtype, limit, turns)

    def read_ranges(self, workspace: Workspace, starts: Ints, stops: Ints) -> npt.NDArray[Any]:
        """Give the elements of ascending ranges of the flattened array, one range after the other.

        Of an uncompressed array without checksums, only these elements are read.

        Parameters
        ----------
        workspace
            Of the calling thread.
        starts, stops
            (n,) the ranges, half open.

        Raises
        ------
        CorruptStoreError, StoreError
            As `scatter` does, and if a range reaches beyond the array.
        """
        starts, stops = _ints(starts), _ints(stops)
        size = math.prod(self.shape)
        if starts.size and (starts.min() < 0 or (stops < starts).any() or stops.max() > size):
            raise StoreError(f"{self.path}: ranges must lie within {size} elements, got {starts.min()}..{stops.max()}")
        starts, stops = starts[stops > starts], stops[stops > starts]
        out = np.empty(int((stops - starts).sum()), self.dtype)
        n = self.chunk_elements
        pieces_of_range = (stops - 1) // n - starts // n + 1
        range_of_piece = np.repeat(np.arange(starts.size), pieces_of_range)
        nth = np.arange(range_of_piece.size) - np.repeat(np.cumsum(pieces_of_range) - pieces_of_range, pieces_of_range)
        chunks = starts[range_of_piece] // n + nth
        first = np.maximum(starts[range_of_piece], chunks * n)
        lengths = np.minimum(stops[range_of_piece], (chunks + 1) * n) - first
        targets = out.ctypes.data + (np.cumsum(lengths) - lengths) * self.dtype.itemsize
        sources = first - chunks * n
        if self.decoder != Decoder(Codec.RAW):
            if (np.diff(chunks) < 0).any():
                raise ValueError("ranges must ascend")
            chunks, bounds = np.unique(chunks, return_index=True)
            bounds = np.append(bounds, lengths.size)
            for at in range(0, chunks.size, _FILES_AT_ONCE):
                part = chunks[at : at + _FILES_AT_ONCE]
                part_bounds = bounds[at : at + part.size + 1]
                self.scatter(workspace, part, part_bounds, sources, lengths, targets, self.dtype)
            return out
        # Pieces of one chunk follow each other, so few files are open at once unless there are few pieces in each.
        for at in range(0, chunks.size, 64 * _FILES_AT_ONCE):
            these = slice(at, at + 64 * _FILES_AT_ONCE)
            located = self.locate(chunks[these])
            status, j = read_pieces(
                located.fds, located.offsets, sources[these], lengths[these], targets[these], self.dtype.itemsize
            )
            self._check(status, chunks[these][j], None)
            for k in at + np.flatnonzero(located.offsets == -1):
                start = (targets[k] - out.ctypes.data) // self.dtype.itemsize
                out[start : start + lengths[k]] = self.fill
        return out

    def _run(
        self,
        chunks: Ints,
        located: Located,
        bounds: Ints,
        pieces: Pieces,
        types: tuple[np.dtype[Any], np.dtype[Any]],
        limit: int | None,
        tickets: Ints,
        workspace: Workspace,
    ) -> None:
        loaded, decoder = library(), self.decoder
        nbytes = self.chunk_elements * self.dtype.itemsize
        status, j = scatter_chunks(
            loaded.decompress_address if isinstance(loaded, Library) else 0,
            workspace.context,
            int(decoder.codec),
            decoder.shuffle,
            decoder.crc32c,
            located.fds,
            located.offsets,
            located.nbytes,
            bounds,
            *pieces,
            self._limit(limit),
            self.fill.view(types[0]),
            workspace.raw(decoder.stored_nbytes(nbytes)[1]),
            workspace.shuffled(nbytes if decoder.shuffle > 1 else 0),
            workspace.scratch(nbytes).view(types[0]),
            np.empty(0, types[1]),
            tickets,
        )
        self._check(status, chunks[j] if len(chunks) else -1, limit)

    def _run_in_python(
        self,
        chunks: Ints,
        located: Located,
        bounds: Ints,
        pieces: Pieces,
        types: tuple[np.dtype[Any], np.dtype[Any]] | None,
        dtype: np.dtype[Any],
        limit: int | None,
        turns: Iterator[int],
        workspace: Workspace,
    ) -> None:
        """Do what `_run` does for codecs and casts that have no kernel."""
        for j in turns:
            decoded = self._decode(workspace, chunks[j : j + 1], located.part(j))
            if types is None:
                # A cast that only NumPy makes as NumPy does; what is out of range is its business, not a warning.
                with np.errstate(all="ignore"):
                    decoded = decoded.astype(dtype)
            seen, wanted = types or copy_types(dtype)
            part = [array[bounds[j] : bounds[j + 1]] for array in pieces]
            status = scatter_buffer(decoded.view(seen), *part, self._limit(limit), np.empty(0, wanted))
            self._check(status, chunks[j], limit)

    def _decode(self, workspace: Workspace, chunks: Ints, located: Located) -> npt.NDArray[Any]:
        """Give a decoded chunk of its own memory."""
        decoded = np.full(self.chunk_elements, self.fill[0])
        if located.offsets[0] == -1:
            return decoded
        decoder = self.decoder
        if decoder.codec is not Codec.GZIP:
            whole = (_ints([0]), _ints([decoded.size]), _ints([decoded.ctypes.data]))
            tickets = np.zeros(1, np.int64)
            self._run(chunks, located, _ints([0, 1]), whole, copy_types(self.dtype), None, tickets, workspace)
            return decoded
        raw = workspace.raw(decoder.stored_nbytes(decoded.nbytes)[1])
        status, size = read_stored(located.fds[0], located.offsets[0], located.nbytes[0], raw, decoder.crc32c)
        self._check(status, chunks[0], None)
        plain = gunzip(raw[HEAD_NBYTES : HEAD_NBYTES + size], decoded.nbytes)
        if plain is None:
            self._check(Status.DECODE, chunks[0], None)
        else:
            decoded.view(np.uint8).reshape(-1, decoder.shuffle)[:] = plain.reshape(decoder.shuffle, -1).T
        return decoded

    def _limit(self, limit: int | None) -> int:
        """Give the limit for a kernel, which may see negative values as huge unsigned ones."""
        if limit is None:
            return -1
        return min(limit, 2 ** (8 * self.dtype.itemsize - 1)) if self.dtype.kind == "i" else min(limit, 2**63 - 1)

    def _check(self, status: int, chunk: int, limit: int | None) -> None:
        if status == Status.OK:
            return
        text = Status(status).text + (f" of {limit}" if status == Status.LIMIT else "")
        kind = StoreError if status in (Status.READ, Status.PIECE) else CorruptStoreError
        raise kind(f"{self.tables.layout.describe(int(chunk))}: {text}")


def _ints(values: npt.ArrayLike) -> Ints:
    # Writable and contiguous, because kernels are compiled for the kind of array that they first saw.
    return np.require(values, np.int64, ["C", "W"])
