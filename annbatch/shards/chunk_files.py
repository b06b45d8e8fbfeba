"""Where in which file is each inner chunk of a local zarr array, or each chunk of an HDF5 dataset, stored?

1. `locate_all` reads a shard's index on first touch, has it checked (`annbatch.shards.shard_index`), and keeps it. Of
   HDF5 the places are known (`annbatch.shards.hdf5_chunks`); whether the file has changed is checked each time.
2. It opens files, a bounded number of them, and a `Located` keeps those that it names open.
"""

from __future__ import annotations

import os
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.counters import BYTES_READ, READ_NS, of_thread, waiting
from annbatch.errors import StoreError
from annbatch.native import Kernel
from annbatch.plan.chunk_pieces import shard_starts
from annbatch.shards.file_stamp import FileStamp
from annbatch.shards.hdf5_chunks import FileChunks
from annbatch.shards.shard_index import ChunkGrid, Located, parse_index

Ints = npt.NDArray[np.int64]
Places = ChunkGrid | FileChunks
"""Where the chunks of one array are."""


class _File:
    """An open file; it is closed when the last one who holds it lets go, so never under a running kernel."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, path: Path) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # At the end of the interpreter the module's own names may be gone.
        if self.fd >= 0:
            close(self.fd)


def _max_descriptors() -> int:
    """Give the number of descriptors that the process may have; what it is where nothing says so is few."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except ImportError:
        return 256
    return 2048 if soft == resource.RLIM_INFINITY else soft


MAX_FILES = max(4, min(64, _max_descriptors() // 16))
"""Files that one call keeps open."""

# One lock for all tables: it is held for microseconds, except when a shard is touched for the first time. A fork waits
# until nothing is half done, and the child gets it free.
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

_recent: OrderedDict[tuple[int, int], weakref.ref[ChunkFiles]] = OrderedDict()
_max_recent = max(8, min(512, _max_descriptors() // 4))
_of_stamp: weakref.WeakValueDictionary[FileStamp, _File] = weakref.WeakValueDictionary()
"""The HDF5 files that are open: all datasets of one share a descriptor."""
_tokens = count()


class ChunkFiles:
    """Offsets and sizes of the inner chunks of one array, and its recently used files.

    All arrays of the process together keep at most 512 files open (fewer where the limit on descriptors is low), and
    besides those what `Located` objects hold, each of at most `MAX_FILES`.
    """

    def __init__(self, layout: Places) -> None:
        self.layout = layout
        self._token = next(_tokens)
        self._files: dict[int, _File | None] = {}
        if isinstance(layout, FileChunks):
            self._offsets, self._nbytes = layout.offsets, layout.nbytes
            self._known = np.ones(1, np.bool_)
            return
        n = layout.n_shards * layout.chunks_per_shard
        # Untouched pages of these cost no memory.
        self._offsets, self._nbytes = np.empty(n, np.int64), np.empty(n, np.int64)
        self._known = np.zeros(layout.n_shards, np.bool_)

    def __reduce__(self) -> tuple[Callable[[Places], ChunkFiles], tuple[Places]]:
        return ChunkFiles, (self.layout,)

    def locate(self, chunks: npt.ArrayLike) -> Located:
        """Say where ascending chunks are stored; see `locate_all`."""
        wanted = np.require(chunks, np.int64, ["C", "W"])
        return locate_all([self], (0, wanted.size), wanted)

    def stored_nbytes(self) -> int:
        """Add up the sizes of the files, or of an HDF5 dataset's chunks; what does not exist has none."""
        if isinstance(self.layout, FileChunks):
            return self.layout.stored_nbytes
        n_bytes = 0
        for shard in range(self.layout.n_shards):
            with suppress(OSError):
                n_bytes += Path(self.layout.key(shard)).stat().st_size
        return n_bytes

    def _open(self, shard: int) -> _File | None:
        """Give a shard's file, and see to it that its index is known; the lock is held."""
        if shard in self._files:
            file = self._files[shard]
        else:
            path, n = Path(self.layout.key(shard)), self.layout.chunks_per_shard
            stamp = self.layout.stamp if isinstance(self.layout, FileChunks) else None
            try:
                file = None if stamp is None else _of_stamp.get(stamp)
                file = file or _File(path)
            except FileNotFoundError:
                file = None
            except OSError as error:
                raise StoreError(f"{path}: cannot be opened: {error}") from error
            if not self._known[shard]:
                self._read_index(shard, file)
            elif file is None and (self._offsets[shard * n : (shard + 1) * n] != -1).any():
                raise StoreError(f"{path}: has been removed since it was first read")
            self._files[shard] = file
            if stamp is not None and file is not None:
                _of_stamp[stamp] = file
        if isinstance(self.layout, FileChunks) and file is not None:
            self.layout.stamp.check(os.fstat(file.fd))
        _recent[self._token, shard] = weakref.ref(self)
        _recent.move_to_end((self._token, shard))
        while len(_recent) > _max_recent:
            (_, oldest), reference = _recent.popitem(last=False)
            if (tables := reference()) is not None:
                tables._files.pop(oldest, None)
        return file

    def _read_index(self, shard: int, file: _File | None) -> None:
        layout = self.layout
        assert isinstance(layout, ChunkGrid)
        n, path = layout.chunks_per_shard, layout.key(shard)
        offsets, nbytes = self._offsets[shard * n : (shard + 1) * n], self._nbytes[shard * n : (shard + 1) * n]
        if file is None:
            layout.check_absent(shard)
            offsets[:] = nbytes[:] = -1
            self._known[shard] = True
            return
        status = os.fstat(file.fd)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{path}: is not a file")
        size = min(layout.index_nbytes, status.st_size)
        start = 0 if layout.index_at == "start" else status.st_size - size
        try:
            if layout.recorded_crc(shard) is not None:
                layout.check_whole(shard, _read(file.fd, status.st_size, 0))
            stored = _read(file.fd, size, start)
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error}") from error
        offsets[:], nbytes[:] = parse_index(layout, shard, stored, status.st_size)
        self._known[shard] = True


def _read(fd: int, nbytes: int, offset: int) -> npt.NDArray[np.uint8]:
    """Read bytes of a file through its one descriptor; fewer if it ends before."""
    found, done = np.empty(nbytes, np.uint8), 0
    with waiting(READ_NS):
        while got := os.preadv(fd, [found[done:].data], offset + done):
            done += got
    of_thread()[BYTES_READ] += done
    return found[:done]


def locate_all(tables: Sequence[ChunkFiles], edges: Sequence[int], chunks: Ints) -> Located:
    """Say where chunks of several arrays are stored.

    Hold as many at once as one kernel call works on: each keeps its file open.

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
        If a shard's index does not match its checksum, or leads out of its file.
    StoreError
        If a chunk number is out of range, or a file cannot be opened.
    ValueError
        If chunk numbers do not ascend.
    """
    fds, offsets, nbytes = (
        np.empty(chunks.size, np.int32),
        np.empty(chunks.size, np.int64),
        np.empty(chunks.size, np.int64),
    )
    files: list[_File | None] = []
    for of_array, a, b in zip(tables, edges[:-1], edges[1:], strict=True):
        layout, wanted = of_array.layout, chunks[a:b]
        if wanted.size and not 0 <= wanted[0] <= wanted[-1] < layout.n_chunks:
            raise StoreError(
                f"{layout.folder}: chunks must be in 0..{layout.n_chunks - 1}, got {wanted[0]}..{wanted[-1]}"
            )
        shards = [
            int(chunks[at]) // layout.chunks_per_shard for at in shard_starts(chunks, layout.chunks_per_shard, a, b)
        ]
        with _lock:
            found = [of_array._open(shard) for shard in shards]
        is_found = _look_up(
            wanted,
            layout.chunks_per_shard,
            np.array([-1 if file is None else file.fd for file in found], np.int32),
            of_array._offsets,
            of_array._nbytes,
            fds[a:b],
            offsets[a:b],
            nbytes[a:b],
        )
        if not is_found:
            raise ValueError(f"{layout.folder}: chunks must ascend")
        files += found
    return Located(fds, offsets, nbytes, files)


@Kernel
def _look_up(
    chunks: Any,
    per_shard: Any,
    shard_fds: Any,
    table_offsets: Any,
    table_nbytes: Any,
    fds: Any,
    offsets: Any,
    nbytes: Any,
) -> Any:
    """Fill in where ascending chunks are stored; ``shard_fds`` has an entry for each shard that they touch."""
    shard = -1
    for j in range(chunks.size):
        if j == 0 or chunks[j] // per_shard != chunks[j - 1] // per_shard:
            shard += 1
        if (j and chunks[j] < chunks[j - 1]) or chunks[j] >= table_offsets.size or shard >= shard_fds.size:
            return False
        fds[j], offsets[j], nbytes[j] = shard_fds[shard], table_offsets[chunks[j]], table_nbytes[chunks[j]]
    return True
