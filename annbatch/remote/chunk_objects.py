"""Where in which object of a store is each inner chunk of a remote zarr array, and how do chunks get into memory?

1. `ChunkObjects` reads a shard's index on first touch, has it checked (`annbatch.shards.shard_index`), and keeps it.
   Where there is no sharding, the size of the object takes its place.
2. `fetch_chunks` fetches the chunks of a window, of several arrays at once; `fetch_pieces` parts of uncompressed ones.

All of it runs in the thread of `annbatch.remote.request_pool`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from annbatch.errors import CorruptStoreError, StoreError
from annbatch.native import IN_MEMORY
from annbatch.plan.chunk_pieces import Pieces, shard_starts
from annbatch.remote.object_reads import Objects, fetch
from annbatch.remote.request_pool import together
from annbatch.shards.shard_index import ChunkGrid, Located, parse_index

Ints = NDArray[np.int64]


class ChunkObjects:
    """Offsets and sizes of the inner chunks of one array in an object store."""

    def __init__(self, objects: Objects, layout: ChunkGrid) -> None:
        self.objects = objects
        self.layout = layout
        n = layout.n_shards * layout.chunks_per_shard
        # Untouched pages of these cost no memory.
        self.offsets, self.nbytes = np.empty(n, np.int64), np.empty(n, np.int64)
        self._known = np.zeros(layout.n_shards, np.bool_)
        self._under_way: dict[int, asyncio.Task[None]] = {}

    def __reduce__(self) -> tuple[Callable[[Objects, ChunkGrid], ChunkObjects], tuple[Objects, ChunkGrid]]:
        return ChunkObjects, (self.objects, self.layout)

    async def load(self, shards: Sequence[int]) -> None:
        """See to it that the indexes of shards are known."""
        tasks = []
        for shard in shards:
            if self._known[shard]:
                continue
            if shard not in self._under_way:
                task = asyncio.ensure_future(self._load(shard))
                self._under_way[shard] = task
                task.add_done_callback(lambda done, shard=shard: self._forget(shard, done))  # type: ignore[misc]
            tasks.append(self._under_way[shard])

        async def wait(task: asyncio.Task[None]) -> None:
            # Another window may wait for it too.
            await asyncio.shield(task)

        await together(map(wait, tasks))

    def _forget(self, shard: int, done: asyncio.Task[None]) -> None:
        del self._under_way[shard]
        if not done.cancelled():
            # Whoever waited has it; if nobody does any more, it is no news.
            done.exception()

    async def _load(self, shard: int) -> None:
        try:
            await self._read_index(shard)
        except CorruptStoreError:
            self.objects.forget(str(self.layout.key(shard)))
            raise

    async def _read_index(self, shard: int) -> None:
        layout, key = self.layout, str(self.layout.key(shard))
        n = layout.chunks_per_shard
        if layout.recorded_crc(shard) is not None:
            whole = await self.objects.whole(key)
            if whole is not None:
                layout.check_whole(shard, whole)
            found = None if whole is None else (np.empty(0, np.uint8), whole.size)
        elif layout.index_at is None:
            size = await self.objects.size(key)
            found = None if size is None else (np.empty(0, np.uint8), size)
        else:
            found = await self.objects.edge(key, layout.index_nbytes, at_end=layout.index_at == "end")
        own = slice(shard * n, (shard + 1) * n)
        if found is None:
            layout.check_absent(shard)
            self.offsets[own] = self.nbytes[own] = -1
        else:
            self.offsets[own], self.nbytes[own] = parse_index(layout, shard, *found)
        self._known[shard] = True


async def fetch_chunks(tables: Sequence[ChunkObjects], edges: Sequence[int], chunks: Ints) -> Located:
    """Fetch chunks of several arrays.

    Parameters
    ----------
    tables
        Those of the arrays.
    edges
        (n_arrays + 1,) chunks [edges[a], edges[a + 1]) are those of array a.
    chunks
        (n,) chunk numbers, ascending in each array.

    Raises
    ------
    CorruptStoreError
        If a shard's index does not match its checksum, leads out of its object, or the object ends before a chunk.
    StoreError
        If a chunk number is out of range, or an object cannot be read.
    """
    sources, of_chunk, offsets, nbytes = await _locate(tables, edges, chunks)
    found = await fetch(sources, of_chunk, offsets, nbytes)

    def forget(j: int) -> None:
        objects, key = sources[int(of_chunk[j])]
        objects.forget(key)

    return Located(np.full(len(chunks), IN_MEMORY, np.int32), found.addresses, nbytes, found.holders, forget)


async def fetch_pieces(table: ChunkObjects, pieces: Pieces, itemsize: int) -> Located:
    """Fetch pieces of the chunks of one uncompressed array, and nothing else; each counts as a chunk of its own."""
    sources, of_chunk, offsets, _ = await _locate([table], (0, len(pieces.chunks)), pieces.chunks)
    n_each = np.diff(pieces.bounds)
    starts, nbytes = np.repeat(offsets, n_each), pieces.lengths * itemsize
    starts = np.where(starts == -1, -1, starts + pieces.sources * itemsize)
    found = await fetch(sources, np.repeat(of_chunk, n_each), starts, nbytes)
    return Located(np.full(len(starts), IN_MEMORY, np.int32), found.addresses, nbytes, found.holders)


async def _locate(
    tables: Sequence[ChunkObjects], edges: Sequence[int], chunks: Ints
) -> tuple[list[tuple[Objects, str]], Ints, Ints, Ints]:
    """Give the objects that hold chunks, and for each chunk which of them does, where, and how many bytes."""
    sources: list[tuple[Objects, str]] = []
    loads = []
    of_chunk, offsets, nbytes = (np.empty(len(chunks), np.int64) for _ in range(3))
    for table, a, b in zip(tables, edges[:-1], edges[1:], strict=True):
        layout, wanted = table.layout, chunks[a:b]
        if not len(wanted):
            continue
        if not 0 <= wanted[0] <= wanted[-1] < layout.n_chunks:
            raise StoreError(
                f"{layout.root}{layout.folder}: chunks must be in 0..{layout.n_chunks - 1}, got "
                f"{wanted[0]}..{wanted[-1]}"
            )
        firsts = shard_starts(chunks, layout.chunks_per_shard, a, b)
        shards = [int(chunks[first]) // layout.chunks_per_shard for first in firsts]
        loads.append((table, shards))
        of_chunk[a:b] = np.repeat(np.arange(len(shards)) + len(sources), np.diff([*firsts, b]))
        sources += [(table.objects, str(layout.key(shard))) for shard in shards]
    await together(table.load(shards) for table, shards in loads)
    for table, a, b in zip(tables, edges[:-1], edges[1:], strict=True):
        offsets[a:b], nbytes[a:b] = table.offsets[chunks[a:b]], table.nbytes[chunks[a:b]]
    return sources, of_chunk, offsets, nbytes
