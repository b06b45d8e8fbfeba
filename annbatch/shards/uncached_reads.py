"""How are stored chunks read past the page cache, ahead of the threads that decode them?

Where a collection is larger than memory, what the page cache keeps of it is gone before it is wanted again, and filling
it, page by page, takes longer than reading does.

1. `UncachedReads.begin` merges a window's chunks to ranges (`annbatch.plan.byte_ranges`) and takes memory for them.
2. A few threads read the ranges with ``O_DIRECT``.
3. `UncachedChunks.result` waits, and says where in memory each chunk is. If a range could not be read it says nothing:
   the threads that decode then read the chunks as usual, and raise what is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.buffers import SlabPool
from annbatch.counters import Counters
from annbatch.native import IN_MEMORY
from annbatch.plan.byte_ranges import merge
from annbatch.plan.chunk_pieces import Pieces
from annbatch.shards.chunk_files import ChunkFiles, locate_all
from annbatch.shards.page_cache import MAX_GAP_NBYTES
from annbatch.shards.shard_index import Located

N_THREADS = 8
"""Reads under way. A local disk is busy with four; eight cover the round trips of a network file system."""
BLOCK_NBYTES = 4096
"""What offsets, sizes and addresses are multiples of, as ``O_DIRECT`` asks for."""

_BYTES = np.dtype(np.uint8)
_NOTHING = np.empty(0, np.int64)

_Range = tuple[int, int, int, int]
"""The number of a file, the first byte to read of it, the end of what is wanted, and where in memory it goes."""


@dataclass(frozen=True, slots=True, eq=False)
class UncachedChunks:
    """Chunks on their way into memory."""

    located: Located
    """Where they will be."""
    reads: Sequence[Future[bool]]
    """Say whether all went well."""

    def result(self) -> Located | None:
        """Wait for the chunks, and say where they are; None if not all of them could be read."""
        return self.located if all(read.result() for read in self.reads) else None


class UncachedReads:
    """Reads chunks past the page cache; holds threads, and memory to recycle.

    Parameters
    ----------
    max_files
        Files that are open at once while chunks are located.
    counters
        Those of the epoch.
    """

    def __init__(self, max_files: int, counters: Counters) -> None:
        self._max_files = max_files
        self._counters = counters
        self._pool = ThreadPoolExecutor(N_THREADS, thread_name_prefix="annbatch-read")
        self._slabs = SlabPool()
        self.has_failed = False
        """Whether the system refused a read, as it does where there is no ``O_DIRECT``."""

    def close(self) -> None:
        """End the threads; waits for reads under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, tables: Sequence[ChunkFiles], pieces: Pieces) -> UncachedChunks:
        """Begin to read the chunks of arrays; raises as `annbatch.shards.chunk_files.locate_all` does."""
        per_shard = [of_array.layout.chunks_per_shard for of_array in tables]
        # What is located keeps its files open, so that only the places are held.
        parts = [_places(tables, part) for part in pieces.parts(per_shard, self._max_files)]
        offsets, nbytes, stored = (np.concatenate([_NOTHING, *(part[i] for part in parts)]) for i in range(3))
        files, paths = _files_of(tables, pieces)
        ranges = merge(files, offsets, stored, MAX_GAP_NBYTES)
        starts = ranges.starts // BLOCK_NBYTES * BLOCK_NBYTES
        sizes = _up(ranges.stops - starts)
        places = np.cumsum(sizes) - sizes
        memory = self._memory(int(sizes.sum()))
        is_stored, addresses = ranges.of_piece >= 0, np.full(len(offsets), -1, np.int64)
        of_piece = ranges.of_piece[is_stored]
        in_range = (places + ranges.starts - starts)[of_piece] + ranges.offsets[is_stored]
        addresses[is_stored] = memory.ctypes.data + in_range
        located = Located(np.full(len(offsets), IN_MEMORY, np.int32), addresses, nbytes, [memory])
        # Each range is given out once: the interpreter takes a step of this iterator as one.
        columns = ranges.objects, starts, ranges.stops, places
        todo = iter(list(zip(*(column.tolist() for column in columns), strict=True)))
        n_threads = min(N_THREADS, len(starts))
        return UncachedChunks(located, [self._pool.submit(self._read, todo, paths, memory) for _ in range(n_threads)])

    def _read(self, todo: Iterator[_Range], paths: dict[int, PurePath], memory: NDArray[np.uint8]) -> bool:
        """Read ranges until none is left; say whether all could be read."""
        last, fd = -1, -1
        try:
            for file, start, stop, place in todo:
                if file != last:
                    if fd >= 0:
                        os.close(fd)
                    last, fd = file, -1
                    fd = os.open(paths[file], os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
                room = memory[place : place + _up(stop - start)].data
                done = 0
                while start + done < stop:
                    n_read = os.preadv(fd, [room[done:]], start + done)
                    done += n_read
                    # Only the end of a file may lie within a block.
                    if n_read == 0 or (done % BLOCK_NBYTES and start + done < stop):
                        return False
                self._counters.add(bytes_read=done)
        except OSError:
            self.has_failed = True
            return False
        finally:
            if fd >= 0:
                os.close(fd)
        return True

    def _memory(self, n_bytes: int) -> NDArray[np.uint8]:
        # Two windows: one that is decoded, and the next one.
        self._slabs.max_idle_bytes = max(self._slabs.max_idle_bytes, 4 * n_bytes)
        (memory,) = self._slabs.arrays((n_bytes + BLOCK_NBYTES, _BYTES))
        first = -memory.ctypes.data % BLOCK_NBYTES
        return memory[first : first + n_bytes]


def _places(tables: Sequence[ChunkFiles], pieces: Pieces) -> tuple[NDArray[np.int64], ...]:
    """Give the offsets of chunks, their sizes as `Located` has them, and those alone."""
    found = locate_all(tables, pieces.edges, pieces.chunks)
    return found.offsets, found.nbytes, found.sizes


def _files_of(tables: Sequence[ChunkFiles], pieces: Pieces) -> tuple[NDArray[np.int64], dict[int, PurePath]]:
    """Number the files of chunks: give the number of each chunk's file, and the paths."""
    files, paths, first = np.empty(len(pieces.chunks), np.int64), {}, 0
    for table, a, b in zip(tables, pieces.edges[:-1], pieces.edges[1:], strict=True):
        shards = pieces.chunks[a:b] // table.layout.chunks_per_shard
        files[a:b] = first + shards
        paths.update({first + shard: table.layout.key(shard) for shard in np.unique(shards).tolist()})
        first += table.layout.n_shards
    return files, paths


def _up(nbytes: Any) -> Any:
    """Round up to whole blocks."""
    return -(-nbytes // BLOCK_NBYTES) * BLOCK_NBYTES
