"""How do the elements of a local zarr array get to their places, without zarr and without the GIL?

1. `ShardedArray.open` gives the array, or the reason why zarr has to read it.
2. `ShardedArray.scatter` locates, reads, decodes and casts many chunks in one call that holds no GIL.
3. `ShardedArray.read_ranges` gathers ranges of elements; of uncompressed arrays it reads nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.counters import of_thread
from annbatch.errors import CorruptStoreError, StoreError
from annbatch.plan.chunk_pieces import Pieces, cut_ranges, range_offsets
from annbatch.plan.window import Ints, address
from annbatch.shards.array_metadata import describe
from annbatch.shards.chunk_files import MAX_FILES, ChunkFiles
from annbatch.shards.codecs import Codec, Decoder, Workspace
from annbatch.shards.decode_kernels import Status
from annbatch.shards.scatter import Form, Scatter
from annbatch.shards.scatter_kernels import read_pieces
from annbatch.shards.shard_index import Located


@dataclass(frozen=True, slots=True, eq=False)
class ShardedArray:
    """A one-dimensional, or row-chunked two-dimensional, local zarr array that the kernels can read.

    It may be used by many threads, after a fork, and unpickled elsewhere.
    """

    path: Path
    """The array's directory."""
    shape: tuple[int, ...]
    """(n,) or (n_rows, n_columns)."""
    form: Form
    """What its inner chunks have in common; element e of the flattened array lies in chunk ``e // chunk_elements``."""
    tables: ChunkFiles = field(repr=False)
    """Where the chunks are stored."""

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], recorded: Mapping[str, int] | None = None, *, zarr_format: int = 3
    ) -> ShardedArray | str:
        """Open the array in a directory, or give the reason why zarr has to read it.

        Nothing but its metadata is read. What is ``recorded`` (keys relative to the directory, and checksums) must be
        there, and as it was, when it is read.
        """
        found = describe(Path(path), recorded, zarr_format=zarr_format)
        if isinstance(found, str):
            return found
        form = Form(found.dtype, found.chunk_elements, found.decoder, found.fill.tobytes())
        return cls(Path(found.layout.folder), found.shape, form, ChunkFiles(found.layout))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored dtype."""
        return self.form.dtype

    @property
    def chunk_elements(self) -> int:
        """Elements in an inner chunk."""
        return self.form.chunk_elements

    @property
    def decoder(self) -> Decoder:
        """How an inner chunk is decoded."""
        return self.form.decoder

    def locate(self, chunks: npt.ArrayLike) -> Located:
        """Say where ascending chunks are stored; see `annbatch.shards.chunk_files.locate_all`."""
        return self.tables.locate(chunks)

    def scatter(self, workspace: Workspace, pieces: Pieces, dtype: np.dtype[Any], limit: int | None = None) -> None:
        """Read and decode chunks, and cast pieces of them to their addresses; see `annbatch.shards.scatter.Scatter`."""
        Scatter.of(self.form, [self.tables], pieces, dtype, limit).run(workspace)

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
            As `scatter` does, and if a range reaches beyond the array or they do not ascend.
        """
        starts, stops = np.require(starts, np.int64, ["C", "W"]), np.require(stops, np.int64, ["C", "W"])
        offsets = range_offsets(starts, stops, math.prod(self.shape))
        if isinstance(offsets, str):
            raise StoreError(f"{self.path}: {offsets}")
        out = np.empty(int(offsets[-1]), self.dtype)
        pieces = cut_ranges(starts, stops, offsets, self.chunk_elements, address(out), self.dtype.itemsize)
        for part in pieces.parts([self.tables.layout.chunks_per_shard], MAX_FILES):
            if self.decoder != Decoder(Codec.RAW):
                self.scatter(workspace, part, self.dtype)
                continue
            located, fill = self.locate(part.chunks), np.frombuffer(bytearray(self.form.fill), np.uint8)
            status, j = read_pieces(
                *(located.fds, located.offsets, part.bounds, part.sources, part.lengths, part.targets),
                *(fill, of_thread()),
            )
            if status != Status.OK:
                chunk = self.tables.layout.describe(int(part.chunks[j]))
                raise (StoreError if status == Status.READ else CorruptStoreError)(f"{chunk}: {Status(status).text}")
        return out
